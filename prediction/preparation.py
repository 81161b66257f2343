"""New volumes on their way to the network and back: prepared as those of its training, put back on their own grid.

There is one preprocessing: that of the slicer and of the sets of volumes. What is here only leaves out the files
between them and the network.
"""

from dataclasses import dataclass, replace
from operator import le
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.files import divisor_of
from datasets.trained_on import grey_levels
from files.faults import Fault
from files.grids import Grid, turn
from files.nifti_headers import Header
from files.pairing import Case
from files.reading import read_stack
from prediction.cases import common_grid, first_header, unplaced
from prediction.familiar import unlike_training
from prediction.model import Recipe
from prediction.nnunet_preparation import PlannedPreparation
from preprocess.packing import gather_image, reordered
from preprocess.slicing.case import as_stored, image_planes
from preprocess.slicing.frames import Frame
from preprocess.slicing.spec import SliceSpec


class Prepared(Protocol):
    """One patient's images as the network takes them.

    grid    of the volumes, as they are stored
    header  where they lie, as the first of them states it
    stored  (N, C, W, H), or (1, C, D, W, H), perhaps still whole grey levels
    unlike  what of them is far from what the network was trained on: what, and whose
    """

    grid: Grid
    header: Header
    stored: np.ndarray
    unlike: list[Fault]

    def decode(self, stored: Tensor) -> Tensor:
        """A part of `stored`, (B, C, W, H) or (1, C, d, w, h) on the device -> the network's input, float32."""

    def put_back(self, maps: np.ndarray) -> np.ndarray:
        """Maps of the input's size, (N, W, H) or (1, D, W, H) -> on the grid, 0 where the network saw nothing."""


class Preparation(Protocol):
    """How the volumes of a patient are prepared."""

    def read(self, case: Case) -> Prepared:
        """Prepares the volumes of a patient. Raises VolumeFault for a volume that cannot be used."""


def preparation(recipe: Recipe, dest: Path) -> "SlicePreparation | VolumePreparation | PlannedPreparation":
    """The preparation that a network was trained with. Raises UserError for a card that lacks a part."""
    if recipe.plan:
        return PlannedPreparation(recipe, recipe.plan)
    if recipe.crop is not None:
        scale = recipe.card["scale"] or {"mean": 0.0, "sd": 1.0}
        axes, channels = tuple(recipe.card["axes"]), tuple(recipe.card.get("kept_channels", ()))
        return VolumePreparation(recipe, axes, channels, float(scale["mean"]), float(scale["sd"]))
    count = recipe.channels or 1
    globs = {recipe.image.folder: ("",) * count if count > 1 else ""}
    spec = SliceSpec.from_card(recipe.card, dest=dest, images=globs, patient="(.)", val=1)
    return SlicePreparation(recipe, replace(spec, orient=recipe.directions))


# ------------------------------------------------------------------------------------------------------ slices


@dataclass(frozen=True)
class PreparedSlices:
    """A volume as slices: which part of its planes they show, and what the transform of their folder left of it.

    directions: of the axes that it was turned to (None: as stored)
    """

    grid: Grid
    header: Header
    stored: np.ndarray
    unlike: list[Fault]
    axis: int
    frame: Frame
    directions: str | None

    def decode(self, stored: Tensor) -> Tensor:
        values, divisor = stored.float(), divisor_of(self.stored)
        return values if divisor == 1 else values.div_(divisor)

    def put_back(self, maps: np.ndarray) -> np.ndarray:
        missing = [(0, whole - seen) for whole, seen in zip(self.frame.size, maps.shape[1:], strict=True)]
        whole = np.pad(maps, [(0, 0), *missing])
        volume = np.moveaxis(np.stack([self.frame.put_back(plane) for plane in whole]), 0, self.axis)
        return turn(volume, self.directions, self.grid.directions()) if self.directions else volume


@dataclass(frozen=True)
class SlicePreparation:
    """Prepares volumes as preprocess.slice_volumes makes slices and the transform of the image folder reads them."""

    recipe: Recipe
    spec: SliceSpec

    def read(self, case: Case) -> PreparedSlices:
        spec, header = self.spec, first_header(case)
        grid, turned = common_grid(case.paths, spec.channel, spec.orient)
        frame = self._frame(turned)
        channels, levels = zip(*[self._planes(path, frame) for path in case.paths.values()], strict=True)
        transform = self.recipe.image.apply
        slices = [transform(np.stack(planes), n_class=1) for planes in zip(*channels, strict=True)]
        unlike = unlike_training(
            self.recipe.card, self.recipe.image.folder, case.patient, spec.spacing_of(turned), levels
        )
        unlike += unplaced(case.patient, header, grid) if spec.orient else []
        return PreparedSlices(grid, header, np.stack(slices), unlike, spec.axis, frame, spec.orient)

    def _frame(self, grid: Grid) -> Frame:
        """The frame of the spec. A frame of the whole plane is at least as large as a window of the network."""
        frame, tile = self.spec.frame(grid), self.recipe.tile
        if not tile or all(map(le, tile, frame.size)):
            return frame
        return Frame.centred(frame.shape, frame.scaled, tuple(map(max, tile, frame.size)), self.spec.multiple)

    def _planes(self, path: Path, frame: Frame) -> tuple[list[np.ndarray], list[float]]:
        """The planes as their files would hold them; the grey levels of the volume, see trained_on."""
        stack = read_stack(path, self.spec.axis, channel=self.spec.channel or 0, directions=self.spec.orient)
        levels = grey_levels(stack)
        return [as_stored(plane, self.spec) for plane in image_planes(stack, frame, path, self.spec)], levels


# ----------------------------------------------------------------------------------------------------- volumes


@dataclass(frozen=True)
class PreparedVolume:
    """A whole volume, turned to these directions (None: as stored), its axes then in the network's order."""

    grid: Grid
    header: Header
    stored: np.ndarray
    unlike: list[Fault]
    directions: str | None
    axes: tuple[int, int, int]
    mean: float
    sd: float

    def decode(self, stored: Tensor) -> Tensor:
        values = stored.float()
        return values if (self.mean, self.sd) == (0, 1) else values.sub_(self.mean).div_(self.sd)

    def put_back(self, maps: np.ndarray) -> np.ndarray:
        volume = maps[0].transpose(np.argsort(self.axes))
        return turn(volume, self.directions, self.grid.directions()) if self.directions else volume


@dataclass(frozen=True)
class VolumePreparation:
    """Prepares volumes as preprocess.volume_set makes them and a volumetric run reads them."""

    recipe: Recipe
    axes: tuple[int, int, int]
    channels: tuple[int, ...]  # those that are kept of the volumes; () is all
    mean: float
    sd: float

    def read(self, case: Case) -> PreparedVolume:
        directions, header = self.recipe.directions, first_header(case)
        grid, turned = common_grid(case.paths, 0, directions)
        image = gather_image(list(case.paths.values()), self.axes, self.channels, directions)
        spacing, levels = reordered(turned, self.axes).spacing(), [grey_levels(channel) for channel in image]
        unlike = unlike_training(self.recipe.card, self.recipe.image.folder, case.patient, spacing, levels)
        unlike += unplaced(case.patient, header, grid) if directions else []
        stored = np.ascontiguousarray(image[None], np.float32)
        return PreparedVolume(grid, header, stored, unlike, directions, self.axes, self.mean, self.sd)


def as_tensor(stored: np.ndarray) -> Tensor:
    """An array of any shape as a tensor of the same type.

    It may be uint16, which torch stores but cannot compute with.
    """
    return torch.from_numpy(np.ascontiguousarray(stored))
