"""What a network says of one patient's prepared volumes, on their own grid."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from files.grids import Grid
from files.nifti_headers import Header
from nets.probabilities import most_probable
from prediction.model import Model
from prediction.preparation import Prepared, as_tensor


@dataclass(frozen=True)
class Predicting:
    """Which maps are predicted in addition to the classes, which pieces are kept, how many slices are seen at once."""

    probabilities: bool = False
    entropy: bool = False
    largest_component: bool = False  # whether only the largest one of each class is kept
    batch_size: int = 8


@dataclass(frozen=True)
class Prediction:
    """The prediction of one patient, on the grid of its volumes.

    header         where that is, as the first of them states it
    classes        (X, Y, Z) uint8, the background where the network saw nothing
    probabilities  (X, Y, Z, K) float32; there 1 for the background
    entropy        (X, Y, Z) float32, 1 where every class is equally likely; there 0
    """

    grid: Grid
    header: Header
    classes: np.ndarray
    probabilities: np.ndarray | None = None
    entropy: np.ndarray | None = None


def predict(model: Model, prepared: Prepared, predicting: Predicting) -> Prediction:
    """Predicts one patient, batch by batch. Of the maps of the whole volume only those that are asked for are kept."""
    batches = as_tensor(prepared.stored).split(predicting.batch_size)
    parts = [_maps(model, prepared, batch, predicting) for batch in batches]
    classes, probabilities, entropy = (
        None if maps[0] is None else np.concatenate(maps) for maps in zip(*parts, strict=True)
    )
    labels = prepared.put_back(classes)
    if predicting.largest_component:
        labels = largest_components(labels, model.n_class)
    return Prediction(
        prepared.grid,
        prepared.header,
        labels,
        None if probabilities is None else _put_back_all(prepared, probabilities),
        None if entropy is None else prepared.put_back(entropy),
    )


def _maps(
    model: Model, prepared: Prepared, batch: Tensor, predicting: Predicting
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(B, …) classes, (B, K, …) probabilities and (B, …) entropy of a part of what is stored."""
    log_p = model.log_probabilities(prepared.decode(batch.to(model.device)))
    classes = most_probable(log_p).to(torch.uint8).cpu().numpy()
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
