"""Volumes prepared as nnU-Net v2 prepares them, and scores put back as it does.

Axes reordered, the empty border cut off, grey levels normalised, resampled to the plan's spacing, and where a window is
larger, laid in the middle of zeros. On the way back the scores of the classes are resampled, not their masks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from files.faults import Fault, VolumeFault
from files.grids import Grid, turn
from files.nifti_headers import Header
from files.pairing import Case
from prediction.cases import common_grid, first_header, unplaced
from prediction.familiar import unlike_training
from prediction.model import Recipe
from prediction.nnunet_plan import NnunetPlan
from prediction.nnunet_resampling import new_shape, resample
from preprocess.packing import gather_image, reordered

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class PlannedVolume:
    """A volume as nnU-Net prepares it; (N, C, W, H) for a network of planes, (1, C, D, W, H) for one of volumes.

    turned    shape of the volume turned and its axes in the network's order
    body      the box in it that is not empty
    own_mm    spacing of that grid, in mm
    inside    where what is left of the volume lies in `stored`, along the axes of the window
    seen      shape of it there: (D, W, H)
    """

    grid: Grid
    header: Header
    stored: np.ndarray
    unlike: list[Fault]
    plan: NnunetPlan
    directions: str | None
    turned: tuple[int, int, int]
    body: Box
    own_mm: tuple[float, ...]
    inside: tuple[slice, ...]

    def decode(self, stored: Tensor) -> Tensor:
        return stored.float()

    def restore(self, log_p: Tensor) -> Tensor:
        """(N, K, W, H) or (1, K, D, W, H) log-probabilities -> the same, of the body on its own grid."""
        is_2d = log_p.ndim == 4
        scores = log_p[(..., *self.inside)]
        scores = scores.transpose(0, 1) if is_2d else scores[0]
        shape = [part.stop - part.start for part in self.body]
        there_mm = self.plan.spacing_for(self.own_mm)
        own = resample(scores.cpu().numpy(), shape, there_mm, self.own_mm, self.plan.scores_order)
        found = torch.from_numpy(own).log_softmax(0)
        return found.transpose(0, 1) if is_2d else found[None]

    def put_back(self, maps: np.ndarray) -> np.ndarray:
        whole = np.zeros(self.turned, maps.dtype)
        whole[self.body] = maps.reshape(whole[self.body].shape)
        volume = whole.transpose(np.argsort(self.plan.axes))
        return turn(volume, self.directions, self.grid.directions()) if self.directions else volume


@dataclass(frozen=True)
class PlannedPreparation:
    """Prepares volumes as the plan says; Recipe has one."""

    recipe: Recipe
    plan: NnunetPlan

    def read(self, case: Case) -> PlannedVolume:
        directions, header, plan = self.recipe.directions, first_header(case), self.plan
        grid, turned = common_grid(case.paths, 0, directions)
        image = gather_image(list(case.paths.values()), plan.axes, (), directions).astype(np.float32)
        if len(image) != len(plan.schemes):
            what = f"has another number of channels than the {len(plan.schemes)} that the network takes"
            raise VolumeFault(what, f"{case.patient} ({len(image)})")
        mm = reordered(turned, plan.axes).spacing()
        unlike = unlike_training(self.recipe.card, self.recipe.image.folder, case.patient, mm, [])
        unlike += unplaced(case.patient, header, grid) if directions else []
        body, mask = body_of(image, case.patient)
        cut = plan.normalise(image[(slice(None), *body)], mask[body], case.patient)
        there_mm = plan.spacing_for(mm)
        made = resample(cut, new_shape(cut.shape[1:], mm, there_mm), mm, there_mm, plan.order)
        stored, inside = _at_least(made, plan.window)
        stored = stored.swapaxes(0, 1) if len(plan.window) == 2 else stored[None]
        return PlannedVolume(
            grid,
            header,
            np.ascontiguousarray(stored),
            unlike,
            plan,
            directions,
            image.shape[1:],
            body,
            mm,
            inside,
        )


def body_of(image: np.ndarray, name: str) -> tuple[Box, np.ndarray]:
    """The box of what is not 0 in any channel of (C, D, W, H), and (D, W, H) that without holes.

    Raises VolumeFault where all is 0.
    """
    mask = binary_fill_holes((image != 0).any(0))
    if not mask.any():
        raise VolumeFault("holds nothing but 0", name)
    ends = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends), mask


def _at_least(image: np.ndarray, window: tuple[int, ...]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """(C, D, W, H) in the middle of zeros where its last axes are smaller than the window; where it lies there."""
    sizes = image.shape[-len(window) :]
    missing = [max(wanted - size, 0) for wanted, size in zip(window, sizes, strict=True)]
    margins = [(0, 0)] * (image.ndim - len(window)) + [(more // 2, more - more // 2) for more in missing]
    inside = tuple(slice(more // 2, more // 2 + size) for more, size in zip(missing, sizes, strict=True))
    return np.pad(image, margins), inside
