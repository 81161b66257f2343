"""What a network says of one patient's prepared volumes, on their own grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from datasets.grey_matching import matched
from datasets.grey_quantiles import SAMPLE, grey_quantiles, thinned
from files.grids import Grid
from files.nifti_headers import Header
from nets.decoding import DECODERS
from nets.expected_dice import ConfidenceSums, Estimate, ExpectedDice
from prediction.model import Model
from prediction.nnunet_preparation import PlannedVolume
from prediction.preparation import Prepared, as_tensor


@dataclass(frozen=True)
class Predicting:
    """Which maps are predicted in addition to the classes, which pieces are kept, how many slices are seen at once.

    segments: formats in which the classes are written once more, with their names, keys of outputs.SEGMENTATIONS
    """

    probabilities: bool = False
    entropy: bool = False
    largest_component: bool = False  # whether only the largest one of each class is kept
    batch_size: int = 8
    segments: Sequence[str] = ()


@dataclass(frozen=True)
class Prediction:
    """The prediction of one patient, on the grid of its volumes.

    header         where that is, as the first of them states it
    classes        (X, Y, Z) uint8, the background where the network saw nothing
    probabilities  (X, Y, Z, K) float32; there 1 for the background
    entropy        (X, Y, Z) float32, 1 where every class is equally likely; there 0
    expected       the Dice to expect of the one patient's classes, before any piece is left out; None: nothing is known
    """

    grid: Grid
    header: Header
    classes: np.ndarray
    probabilities: np.ndarray | None = None
    entropy: np.ndarray | None = None
    expected: Estimate | None = None


class _Looks:
    """What is noted of one patient's batches, of which the Dice is expected: sums, and a part of the grey levels."""

    def __init__(self, model: Model, told: ExpectedDice, prepared: Prepared) -> None:
        self.told, self.levels = told, list[np.ndarray]()
        self.sums = ConfidenceSums(1, told.temperatures, model.device)
        count, _, *size = prepared.stored.shape
        self.step = max(1, ceil((count * prod(size) / SAMPLE) ** (1 / len(size))))

    def add(self, image: Tensor, log_p: Tensor) -> None:
        """Notes a batch (B, C, …) and what the network says of it (B, K, …)."""
        self.sums.add([0] * len(image), log_p)
        thin = image[(..., *[slice(None, None, self.step)] * (image.ndim - 2))]
        self.levels.append(thin.transpose(0, 1).flatten(1).cpu().numpy())

    def estimate(self, labels: np.ndarray, voxel_mm3: float) -> Estimate:
        """What is expected of the label map (X, Y, Z) that this gave, whose voxels have that volume."""
        scores, predicted = self.sums.read()
        mm3 = np.bincount(labels.ravel(), minlength=scores.shape[1])[None] * voxel_mm3
        distance = self.told.distance(grey_quantiles(np.concatenate(self.levels, axis=1))[None, 0])
        return self.told.estimate(scores, predicted, distance, mm3)


def predict(model: Model, prepared: Prepared, predicting: Predicting) -> Prediction:
    """Predicts one patient, batch by batch. Of the maps of the whole volume only those that are asked for are kept."""
    batches = as_tensor(prepared.stored).split(predicting.batch_size)
    decode = _decoding(model, prepared)
    looks = None if isinstance(model.told, str) else _Looks(model, model.told, prepared)
    scores = (_scores(model, decode, batch, looks) for batch in batches)
    if isinstance(prepared, PlannedVolume):
        scores = [prepared.restore(torch.cat([each.cpu() for each in scores]))]
    parts = [_maps(model, log_p, predicting) for log_p in scores]
    classes, probabilities, entropy = (
        None if maps[0] is None else np.concatenate(maps) for maps in zip(*parts, strict=True)
    )
    labels = prepared.put_back(classes)
    expected = None if looks is None else looks.estimate(labels, prepared.grid.voxel_volume())
    if predicting.largest_component:
        labels = largest_components(labels, model.n_class)
    return Prediction(
        prepared.grid,
        prepared.header,
        labels,
        None if probabilities is None else _put_back_all(prepared, probabilities),
        None if entropy is None else prepared.put_back(entropy),
        expected,
    )


def _decoding(model: Model, prepared: Prepared) -> Callable[[Tensor], Tensor]:
    """What makes the network's input of a part of what is stored: decoded, and matched where its images are."""
    if model.levels is None:
        return prepared.decode

    def image_of(row: int) -> np.ndarray:
        return prepared.decode(as_tensor(prepared.stored[[row]]))[0].numpy()  # a copy, which decode may write into

    seen = thinned(image_of, range(len(prepared.stored)), prepared.stored.shape[2:])
    curves = torch.from_numpy(model.levels.curve(seen)[None]).to(model.device)
    share = model.levels.share

    def decode(batch: Tensor) -> Tensor:
        return matched(prepared.decode(batch), curves.expand(len(batch), -1, -1, -1), share)

    return decode


def _scores(model: Model, decode: Callable[[Tensor], Tensor], batch: Tensor, looks: _Looks | None) -> Tensor:
    """(B, K, …) log-probabilities of a part of what is stored, on the device."""
    image = decode(batch.to(model.device))
    log_p = model.log_probabilities(image)
    if looks is not None:
        looks.add(image, log_p)
    return log_p


def _maps(
    model: Model, log_p: Tensor, predicting: Predicting
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(B, …) classes, (B, K, …) probabilities and (B, …) entropy of (B, K, …) log-probabilities."""
    classes = DECODERS[model.decode](log_p).to(torch.uint8).cpu().numpy()
    p = log_p.exp() if predicting.probabilities or predicting.entropy else None
    entropy = (-(p * log_p).sum(1) / np.log(model.n_class)).cpu().numpy() if predicting.entropy else None
    return classes, p.cpu().numpy() if predicting.probabilities else None, entropy


def _put_back_all(prepared: Prepared, probabilities: np.ndarray) -> np.ndarray:
    """(N, K, …) maps -> (X, Y, Z, K) on the grid of the volumes."""
    seen = prepared.put_back(np.ones(probabilities[:, 0].shape, np.uint8))
    whole = np.stack([prepared.put_back(maps) for maps in probabilities.swapaxes(0, 1)], axis=-1)
    whole[seen == 0, 0] = 1
    return whole


def largest_components(classes: np.ndarray, n_class: int) -> np.ndarray:
    """(X, Y, Z) class numbers -> (X, Y, Z): keeps the largest piece of each class, and makes the rest background.

    The voxels of a piece touch by their faces.
    """
    kept = np.zeros_like(classes)
    for k in range(1, n_class):
        pieces, count = ndimage.label(classes == k)
        if count:
            kept[pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()] = k
    return kept
