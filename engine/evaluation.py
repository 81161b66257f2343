"""A network over a set of slices: predictions, class counts, Dice per slice and per patient, scores in mm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader import AnySet
from datasets.packed_maps import PackedMaps
from datasets.stacks import numbers_of, placeless, stack, without_distances
from datasets.streams import Stream
from datasets.volumes import WholeStream
from methods.base import Method
from metrics import SCORES, Outcome, dice, score_patients
from nets.decoding import DECODERS
from nets.probabilities import log_probabilities
from processes.interrupt import STOP


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How an evaluation is scored, under the names of the flags."""

    n_class: int
    metric_axis: Sequence[int]
    scores: str
    ignore: int | None
    nsd_tolerance: float
    jobs: int


class MapsOnDevice:
    """uint8 maps of slices (W, H), left on the device until all are there."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, maps: Tensor) -> None:
        """Adds the class numbers or grey levels (B, W, H) of a batch, uint8."""
        self.parts.append(maps)

    def whole(self) -> Sequence[np.ndarray]:
        """All maps (S, W, H), fetched from the device."""
        return torch.cat(self.parts).cpu().numpy()


@dataclass
class Evaluation:
    """What one pass over S slices, or volumes, found. Counts are pixels, (S, K).

    Without ground truth `intersection` and `true` are NaN, and so is every score. `everywhere` depends on no truth:
    it is what an adaptation may look at.
    """

    names: list[str]
    patients: list[str]
    terms: dict[str, float]  # each loss term, mean over slices; NaN where a loss could not be computed
    intersection: np.ndarray
    predicted: np.ndarray
    true: np.ndarray
    everywhere: np.ndarray  # predicted, pixels that the truth ignores included
    prediction: Sequence[np.ndarray] | None  # s, each w h or d w h uint8 class numbers, where they were asked for
    entropy: Sequence[np.ndarray] | None  # likewise: 255 is log K
    mean_entropy: float = np.nan  # over all pixels, 1 is log K; known where there is no ground truth

    @property
    def dice_2d(self) -> np.ndarray:
        """(S, K) Dice of each slice, NaN where prediction and truth are both empty."""
        return dice(self.intersection, self.predicted, self.true)

    def per_patient(self) -> tuple[list[str], np.ndarray]:
        """Patients in the order of their first slice, and (3, P, K) their intersections, predictions and truths."""
        places = {patient: place for place, patient in enumerate(dict.fromkeys(self.patients))}
        counts = np.stack([self.intersection, self.predicted, self.true])
        sums = np.zeros((3, len(places), counts.shape[-1]), counts.dtype)
        np.add.at(sums, (slice(None), [places[patient] for patient in self.patients]), counts)
        return list(places), sums

    def dice_3d(self) -> np.ndarray:
        """(P, K) Dice of each patient's volume, patients in the order of their first slice."""
        return dice(*self.per_patient()[1])

    def iou(self) -> np.ndarray:
        """(K,) intersection over union of each class over the whole set, NaN where it is in neither."""
        intersection, union = self.overlap()
        return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)

    def overlap(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) pixels of intersection and union over the whole set."""
        intersection = self.intersection.sum(0)
        return intersection, self.predicted.sum(0) + self.true.sum(0) - intersection

    def mean_iou(self, axis: Sequence[int]) -> float:
        """The mean IoU over the classes `axis` that the set holds; NaN if it holds none."""
        return nanmean(self.iou()[list(axis)])

    def score(self, scoring: Scoring) -> float:
        """The score that a run is judged by: mean Dice of volumes, or mean IoU of pictures.

        It is NaN without ground truth.
        """
        mean = self.mean_iou if scoring.scores == "iou" else self.mean_dice_3d
        return mean(scoring.metric_axis)

    def mean_dice_3d(self, axis: Sequence[int]) -> float:
        """The mean Dice over patients, each being the mean over the classes `axis`.

        It is NaN if there is nothing to average.
        """
        return nanmean(class_mean(self.dice_3d(), axis))


def class_counts(predicted: Tensor, true: Tensor | None, n_class: int) -> Tensor:
    """(4, B, K) pixel counts of intersection, prediction, truth, and of the prediction everywhere; no host sync.

    Of two (B, W, H) label maps, any axes. Pixels whose truth is no class (a label to be ignored) count in the last
    alone, which so never depends on the truth. Without truth the counts that need it are NaN.
    """
    if true is None:
        every = predicted.flatten(1)
        counts = torch.zeros(len(every), n_class, dtype=torch.float64, device=every.device)
        counts.scatter_add_(1, every, torch.ones_like(every, dtype=torch.float64))
        unknown = torch.full_like(counts, torch.nan)
        return torch.stack([unknown, counts, unknown, counts])
    cell = (true.long().clamp_max(n_class) * n_class + predicted).flatten(1)
    counts = torch.zeros(len(cell), (n_class + 1) * n_class, dtype=torch.int64, device=cell.device)
    whole = counts.scatter_add_(1, cell, torch.ones_like(cell)).unflatten(1, (n_class + 1, n_class))
    confusion = whole[:, :n_class]
    return torch.stack([confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2), whole.sum(1)])


@torch.inference_mode()
def evaluate(
    method: Method,
    val: Stream | WholeStream,
    keep_masks: bool = True,
    keep_entropy: bool = False,
    look: Callable[[int, Tensor], None] | None = None,
) -> Evaluation:
    """Makes one pass in evaluation mode. What it finds on slices stays on the device until it is over.

    The loss, if there is any, is computed where every bound it needs is there. Several processes share out the forward
    passes, and each holds the whole result; of volumes, which come one by one, the first has all the work.

    look: is shown each batch's number and class numbers (B, W, H), any axes
    """
    method.net.eval()
    slices, loss, n_class = val.slices, method.loss, method.settings.n_class
    measurable = bool(loss.names) and all(
        (bound is not None or not part.needs_bounds) and (slices.has_truth or not part.needs_target)
        for part, bound in zip(loss.losses, slices.bounds, strict=True)
    )
    terms, counts, spread = [], [], []
    predictions, entropies = (
        (PackedMaps(), PackedMaps()) if isinstance(val, WholeStream) else (MapsOnDevice(), MapsOnDevice())
    )
    for number, (batch, truth) in enumerate(val.epoch(0)):
        STOP.check()
        log_p = log_probabilities(method.predict(batch, None if truth is None else truth.shape[1:]))
        if measurable:
            values = loss(log_p, batch.targets, batch.bounds)
            terms.append(torch.stack([values[name] for name in loss.columns]) * len(batch.rows))
        label = DECODERS[method.settings.decode](log_p)
        if look:
            look(number, label)
        counts.append(class_counts(label, truth, n_class))
        if keep_masks:
            predictions.add(label.to(torch.uint8))
        if keep_entropy or truth is None:
            bits = -(log_p.exp() * log_p).sum(1) / np.log(n_class)
            total = bits.double().sum()
            spread.append(torch.stack([total, torch.full_like(total, bits.numel())]))
        if keep_entropy:
            entropies.add((bits * 255).round().clamp(0, 255).to(torch.uint8))
    means = (torch.stack(terms).sum(0) / len(slices)).tolist() if terms else [float("nan")] * len(loss.columns)
    intersection, predicted, true, everywhere = torch.cat(counts, 1).cpu().numpy()
    total, pixels = torch.stack(spread).sum(0).tolist() if spread else (np.nan, 1)
    return Evaluation(
        slices.names,
        slices.patients,
        dict(zip(loss.columns, means, strict=True)),
        intersection,
        predicted,
        true,
        everywhere,
        predictions.whole() if keep_masks else None,
        entropies.whole() if keep_entropy else None,
        total / pixels,
    )


def nanmean(values: np.ndarray) -> float:
    """The mean of the values (N,) that are not NaN; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def class_mean(values: np.ndarray, axis: Sequence[int]) -> np.ndarray:
    """(P,) or (S,) mean over the classes `axis`, NaN left out; NaN where all of them are."""
    chosen = values[:, list(axis)]
    known = ~np.isnan(chosen)
    return np.where(known.any(1), np.nansum(chosen, 1) / np.maximum(known.sum(1), 1), np.nan)


def score_patients_of(evaluation: Evaluation, slices: AnySet, scoring: Scoring) -> list[dict[str, Any]]:
    """One row per patient and foreground class; distances in mm, or in voxels for a set without spacing."""
    return score_pictures(evaluation) if scoring.scores == "iou" else score_volumes(evaluation, slices, scoring)


class Volumes(Mapping[str, tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]):
    """Patient -> prediction and truth (D, W, H), spacing in mm; put together when it is asked for."""

    def __init__(self, evaluation: Evaluation, slices: AnySet, ignore: int | None) -> None:
        self.evaluation, self.slices, self.ignore = evaluation, slices, ignore
        self.rows: dict[str, list[int]] = {}
        for row, patient in enumerate(evaluation.patients):
            self.rows.setdefault(patient, []).append(row)

    def __getitem__(self, patient: str) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
        rows = self.rows[patient]
        predicted = [self.evaluation.prediction[row] for row in rows]
        stacks = [self._stack(maps, rows) for maps in (predicted, self.slices.labels(rows))]
        if self.ignore is not None:
            stacks = [np.where(stacks[1] == self.ignore, 0, stack) for stack in stacks]
        return *stacks, (1.0, 1.0, 1.0) if self.slices.spacing is None else self.slices.spacing[patient]

    def _stack(self, maps: Sequence[np.ndarray], rows: Sequence[int]) -> np.ndarray:
        """Stacks slices (W, H) at their numbers to (D, W, H); one volume (D, W, H) stays as it is."""
        return np.concatenate(maps) if maps[0].ndim == 3 else stack(maps, [self.slices.numbers[row] for row in rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def score_volumes(evaluation: Evaluation, slices: AnySet, scoring: Scoring) -> list[dict[str, Any]]:
    """Scores volumes: one row per patient and foreground class, with overlap, surface distances and volume error.

    A distance is NaN where the slices of a patient do not say where they lie.
    """
    volumes = Volumes(evaluation, slices, scoring.ignore)
    rows = score_patients(volumes, scoring.n_class, scoring.nsd_tolerance, scoring.jobs)
    lost = placeless(numbers_of(slices.patients, slices.numbers))
    return without_distances(rows, {*lost, *slices.contradicted})


def score_pictures(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Scores pictures: one row per patient (a city) and foreground class, with the Dice over all its pictures.

    A picture has no depth, so every other score is NaN.
    """
    patients, counts = evaluation.per_patient()
    overlap = dice(*counts)
    nothing = dict.fromkeys([*SCORES, "diagonal"], np.nan)
    return [
        {"patient": patient, "class": k, "outcome": Outcome.of(predicted, true), **nothing}
        | {"dice": float(overlap[row, k]), "predicted": int(predicted), "true": int(true)}
        for row, patient in enumerate(patients)
        for k, (predicted, true) in enumerate(zip(*counts[1:, row], strict=True))
        if k > 0
    ]
