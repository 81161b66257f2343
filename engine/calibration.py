"""From labelled validation images of the source: what the confidence in a mask is worth (nets/expected_dice.py).

Networks do well on their own validation images, which so tell nothing of how confidence falls where Dice falls. So some
of them are shown again as other acquisitions would show them (preprocess/shifts): the labels stay right. The shifts are
drawn from fixed seeds, and their number does not grow with the set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataloader import AnySet, AnyStream
from datasets.grey_quantiles import SAMPLE, grey_quantiles, sample_levels, spread
from datasets.volumes import VolumeSet
from engine.evaluation import class_counts
from methods.base import Method, infer
from metrics import dice
from nets.expected_dice import ConfidenceSums, fit_curve, grey_distance, grey_distances, usual_residuals
from nets.probabilities import log_probabilities, most_probable
from preprocess.shifts.acquisitions import acquire
from processes.interrupt import STOP

SHIFTS = (  # name and severity: those that do some harm, from a little to much
    *(("gamma", severity) for severity in (1, 3, 2, 4)),
    *(("bias_field", severity) for severity in (3, 5)),
    *(("noise", severity) for severity in (3, 5)),
    *(("inverted_contrast", severity) for severity in (1, 3)),
    *(("resolution", severity) for severity in (3, 5)),
    ("blur", 5),
)
SHIFTED = 24  # images, or patients of slices, that are shown again
MOST = 64  # patients that are looked at
VOXELS = 2**24  # of a patient, at most: what shifts a volume needs several times its memory

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Points:
    """N images of patients: score and Dice (N, K), quantiles of grey levels (N, C, 256), and whose each is (N,)."""

    scores: np.ndarray
    dice: np.ndarray
    quantiles: np.ndarray
    patients: np.ndarray


def calibrate(
    method: Method,
    val: AnyStream,
    cases: Sequence[Sequence[int]],
    temperatures: np.ndarray,
    found: tuple[np.ndarray, np.ndarray],
    levels: np.ndarray,
) -> Values:
    """The quantities dice_curve, dice_residuals and grey_distance of a bundle.

    cases: the rows of each of P patients, in the order of their slices
    temperatures: (K,) of the classes; found: (P, K) scores at these, and Dice, of the images as they are
    levels: (C, 256) quantiles of the grey levels of the source
    Raises Interrupted if the process was asked to stop.
    """
    chosen = spread(range(len(cases)), MOST)
    own = np.array([_quantiles_of(val.slices, cases[case]) for case in chosen])
    seen = Points(found[0][chosen], found[1][chosen], own, np.array(chosen))
    shown = _shown_again(method, val, [cases[case] for case in chosen], temperatures)
    usual = grey_distances(own, levels).mean(0)
    return fit(seen, shown, usual, levels) | {"grey_distance": usual}


def fit(seen: Points, shown: Points, usual: np.ndarray, levels: np.ndarray) -> Values:
    """Curves and residuals of F classes from images as they are, and as they were shown again.

    Masks without the class are left out: their Dice is known.
    usual, levels: (C,) and (C, 256), see ExpectedDice
    """
    patients = np.concatenate([seen.patients, seen.patients[shown.patients]])
    scores, real, quantiles = (
        np.concatenate([getattr(seen, name), getattr(shown, name)]) for name in ("scores", "dice", "quantiles")
    )
    distance = grey_distance(quantiles, levels, usual)
    curves, residuals = [], []
    for score, of_class in zip(scores.T[1:], real.T[1:], strict=True):
        at = (score > 0) & ~np.isnan(of_class)
        curves.append(fit_curve(score[at], of_class[at]))
        residuals.append(usual_residuals(score[at], of_class[at], distance[at], patients[at]))
    return {"dice_curve": np.array(curves), "dice_residuals": np.array(residuals)}


def _shown_again(method: Method, val: AnyStream, cases: Sequence[Sequence[int]], temperatures: np.ndarray) -> Points:
    """SHIFTED images of these cases, in turn, each as another acquisition shows it; `patients` are places of cases."""
    places = [number % len(cases) for number in range(SHIFTED)]
    scores, real, quantiles = [], [], []
    for number, place in enumerate(places):
        STOP.check()
        slices, rows = val.slices, cases[place]
        image, truth = _middle(slices, rows)
        spacing = (1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[slices.patients[rows[0]]]
        shift, rng = SHIFTS[number % len(SHIFTS)], np.random.default_rng(number)
        image = np.stack([acquire(channel, spacing, *shift, rng) for channel in image])
        score, overlap = _look(method, val, image, truth, temperatures)
        scores.append(score)
        real.append(overlap)
        quantiles.append(grey_quantiles(image.reshape(len(image), -1)[:, :: max(1, image[0].size // SAMPLE)])[0])
    return Points(np.array(scores), np.array(real), np.array(quantiles), np.array(places))


def _quantiles_of(slices: AnySet, rows: Sequence[int]) -> np.ndarray:
    """(C, 256) quantiles of a case's grey levels."""
    return grey_quantiles(sample_levels(slices, rows))[0]


def _middle(slices: AnySet, rows: Sequence[int]) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """(C, D, W, H) image of a case, and its D label maps (W, H); of a large one slices spread over it, or its middle.

    The labels of a set of pictures may be of another size.
    """
    if isinstance(slices, VolumeSet):
        image, truth = slices.image(rows[0]), slices.labels(rows)[0]
        depth = min(max(slices.crop[0], VOXELS // image[0, 0].size), image.shape[1])
        part = slice((image.shape[1] - depth) // 2, (image.shape[1] + depth) // 2)
        return image[:, part], truth[part]
    rows = spread(rows, max(1, VOXELS // int(np.prod(slices.sizes[rows[0]]))))
    return np.stack([slices.image(row) for row in rows], axis=1), slices.labels(rows)


def _look(
    method: Method, val: AnyStream, image: np.ndarray, truth: Sequence[np.ndarray], temperatures: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) scores and Dice of an image (C, D, W, H) with D label maps."""
    settings, n_class = method.settings, len(temperatures)
    sums = ConfidenceSums(1, temperatures, val.device)
    counts = torch.zeros(3, n_class, dtype=torch.float64, device=val.device)
    for part, label in _batches(image, truth, isinstance(val.slices, VolumeSet), settings.batch_size):
        part, label = part.to(val.device), label.to(val.device)
        with settings.autocast():
            logits = infer(method.net, part, settings, label.shape[1:])
        log_p = log_probabilities(logits)
        sums.add([0] * len(part), log_p)
        counts += class_counts(most_probable(log_p), label, n_class)[:3].sum(1)
    return sums.read()[0][0], dice(*counts.cpu().numpy())


def _batches(image: np.ndarray, truth: Sequence[np.ndarray], whole: bool, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The slices (B, C, W, H) of an image with their labels (B, W, H), or all of it as one batch of one volume."""
    if whole:
        yield torch.from_numpy(image)[None], torch.from_numpy(np.ascontiguousarray(truth))[None]
        return
    slices, labels = torch.from_numpy(image.swapaxes(0, 1).copy()), torch.from_numpy(np.asarray(truth))
    yield from zip(slices.split(size), labels.split(size), strict=True)
