"""Losses of the distance to a border: the boundary loss and those of the Hausdorff distance.

Formulas: Kervadec et al. 2019 (boundary), Karimi and Salcudean 2019 (Hausdorff distance). Shapes as in losses.py.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from datasets.distance_maps import signed_distance_maps
from losses import LOSSES, Loss
from nets.probabilities import fits_labels, log_probabilities, most_probable, one_hot, pick


@LOSSES.register("SurfaceLoss")
class BoundaryLoss(Loss):
    """(1/(B·|idc|·|Ω|)) Σ_{b,k ∈ idc,i} φ_{bki} p_{bki}, φ the signed distance to the true border (Kervadec et al.).

    The target is distance maps (`dist_map_transform` and its relatives): positive outside the class, negative inside.
    So a good prediction has a negative loss, and that is right. `lowest` is what the true segmentation would give on
    the same batch, −Σ|φ| over the inside: as low as the loss can get. The gradient by p is φ divided by its count.

    On a binary task the loss alone ends in an empty prediction, where it is 0: `force` allows that all the same. On
    several classes it stands alone if `idc` (all of them by default) holds every class.
    """

    example: ClassVar = {"force": True}
    shown = ("lowest",)
    needs_target = True
    needs_maps = True
    note = (
        "BoundaryLoss adds up signed distances, negative inside the true border: a value below 0 is right, and the "
        "nearer to BoundaryLoss_lowest in the log the better."
    )

    def __init__(self, *, idc: Sequence[int] | None = None, force: bool = False) -> None:
        super().__init__()
        self.idc, self.force = idc, force

    def needs_company(self, n_class: int) -> str:
        if self.force or (n_class > 2 and (self.idc is None or set(self.idc) == set(range(n_class)))):
            return ""
        chosen = f" and idc {list(self.idc)}" if self.idc else ""
        return (
            f"BoundaryLoss alone with {n_class} classes{chosen} ends in an empty prediction, where it is 0 and stays. "
            "Put a regional loss before it, as in [('GeneralizedDice', {'idc': [0, 1]}, 1), ('BoundaryLoss', "
            "{'idc': [1]}, 0.1)]; with three classes or more it stands alone if idc lists them all. {'force': True} in "
            "its parameters runs it as it is."
        )

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> dict[str, Tensor]:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        probs = pick(log_probabilities(logits).exp(), self.idc)
        maps = pick(target, self.idc).to(probs.dtype)
        return {"": (probs * maps).mean(), "lowest": maps.clamp_max(0).mean()}


@LOSSES.register()
class HausdorffDTLoss(Loss):
    """mean_{b,k ∈ idc,i} (p − y)² (φ_y² + φ_p²), the Hausdorff distance by its transforms (Karimi et al. 2019).

    φ_y and φ_p: signed distances, in pixels, to the border of the truth and of the most probable class. The latter
    are computed again in every step, on the CPU: a step waits for the device, and takes as long as the transforms do.

    `inner` is the loss of the published code. It uses only the distances inside truth and prediction
    (`inner_distances`), so what lies outside of both costs nothing, however far away it is. HausdorffLoss, its
    published name, has it set.
    """

    needs_target = True

    def __init__(self, *, idc: Sequence[int] | None = None, inner: bool = False) -> None:
        super().__init__()
        self.idc, self.inner = idc, inner

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        probs = log_probabilities(logits).exp()
        n_class, predicted = probs.shape[1], most_probable(probs)
        error = (probs - one_hot(target, n_class, probs.dtype)) ** 2
        if self.inner:
            distances = inner_distances(target, n_class), inner_distances(predicted, n_class).trunc()
        else:
            distances = border_distances(target, n_class), border_distances(predicted, n_class)
        return pick(error * (distances[0] ** 2 + distances[1] ** 2).to(error), self.idc).mean()


@LOSSES.register()
class HausdorffLoss(HausdorffDTLoss):
    """HausdorffDTLoss as published: only with distances inside the shapes, unless `inner` is False."""

    def __init__(self, *, idc: Sequence[int] | None = None, inner: bool = True) -> None:
        super().__init__(idc=idc, inner=inner)


def border_distances(label: Tensor, n_class: int) -> Tensor:
    """(B, …) class numbers -> (B, K, …) float32 signed distances in pixels, on the CPU."""
    return torch.from_numpy(np.stack([signed_distance_maps(each, n_class) for each in label.cpu().numpy()]))


def inner_distances(label: Tensor, n_class: int) -> Tensor:
    """(B, …) class numbers -> (B, K, …) float32: inside each class the pixels to the nearest one of another, else 0.

    On the CPU. As in the published code, a class that fills the image has whatever scipy makes of a shape without a
    border. (Published, the distances of the prediction are whole numbers besides, cut towards zero.)
    """
    masks = one_hot(label, n_class, torch.bool).cpu().numpy()
    maps = [[distance_transform_edt(mask) if mask.any() else mask for mask in image] for image in masks]
    return torch.from_numpy(np.array(maps, np.float32))
