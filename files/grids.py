"""Where the voxels of a volume lie, in which directions its axes run, and one volume on the grid of another.

Matrices are nibabel's: voxel numbers to mm, the first axis to the patient's right, then front, then head (RAS+).
"""

import itertools
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
    ornt_transform,
)
from scipy.ndimage import affine_transform

PLANES = {"sagittal": "LR", "coronal": "PA", "axial": "SI"}  # by name: where the axis across it runs
RADIOLOGICAL = "LPS"  # to the patient's left, back and head, as in DICOM
ORIENT_RULE = "--orient says where the three axes run, as in LPS (left, back, head), or stored"
TOLERANCE = 0.1  # mm that two volumes of one patient may lie apart
TOLERANCE_RULE = "--tolerance is mm, from 0 up"
FINE = 0.5  # of a voxel, where that is less, unless a larger tolerance than the usual one is asked for


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie: shape and the (4, 4) matrix from voxel numbers to mm.

    stored: the directions of its axes in the file, where they were turned away from there
    centre: the voxel that slices are cut round, where that is not the middle
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    stored: str | None = None
    centre: tuple[float, float, float] | None = None

    def spacing(self) -> tuple[float, float, float]:
        """The distances in mm between voxels along the three axes."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    def voxel_volume(self) -> float:
        """The volume of one voxel in mm³."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    def distance(self, other: "Grid") -> float:
        """The largest distance in mm between the places that two matrices give to a corner of this volume."""
        corners = list(itertools.product(*[(0, n - 1) for n in self.shape]))
        apart = nib.affines.apply_affine(self.affine, corners) - nib.affines.apply_affine(other.affine, corners)
        return float(np.linalg.norm(apart, axis=1).max())

    def allows(self, tolerance_mm: float) -> float:
        """How many mm another volume may be displaced: the tolerance, or part of a voxel on a grid finer than that."""
        return tolerance_mm if tolerance_mm > TOLERANCE else min(tolerance_mm, FINE * min(self.spacing()))

    def directions(self) -> str:
        """Where each axis runs, as in 'LPS': to the patient's left, back, head; of an oblique one the nearest."""
        return "".join(ornt2axcodes(io_orientation(self.affine)))

    def turned(self, directions: str) -> "Grid":
        """The grid of the voxels once their axes are reordered and flipped to run in these directions, as in 'LPS'."""
        change = ornt_transform(io_orientation(self.affine), axcodes2ornt(directions))
        shape = tuple(self.shape[int(axis)] for axis in np.argsort(change[:, 0]))
        return Grid(shape, self.affine @ inv_ornt_aff(change, self.shape), self.directions())


def turn(voxels: np.ndarray, stored_directions: str, directions: str) -> np.ndarray:
    """(X, Y, Z, …) -> its first three axes reordered and flipped from directions `now` to `wanted`; not copied."""
    return apply_orientation(voxels, ornt_transform(axcodes2ornt(stored_directions), axcodes2ornt(directions)))


def is_direction(text: str) -> bool:
    """Whether a text names three directions: one of left and right, one of back and front, one of head and feet."""
    return sorted("LPS"["LRPASI".index(letter) // 2] if letter in "LRPASI" else "" for letter in text) == list("LPS")


def axis_across(plane: str, directions: str) -> int:
    """The axis that is cut along for this plane, of axes that run in these directions."""
    return next(axis for axis, letter in enumerate(directions) if letter in PLANES[plane])


def deviation(reference: Grid, grid: Grid, tolerance_mm: float) -> str | None:
    """How a grid differs from the wanted one, in words; None where it does not, within `tolerance_mm`."""
    if grid.shape != reference.shape:
        return f"shape {grid.shape}, not {reference.shape}"
    apart, allowed = reference.distance(grid), reference.allows(tolerance_mm)
    return f"{apart:.3g} mm apart, {allowed:g} allowed" if apart > allowed else None


def place(labels: np.ndarray, grid: Grid, target: Grid) -> np.ndarray:
    """Labels (X, Y, Z) that lie on the grid `where`, on the `wanted` grid: the nearest one at each voxel, 0 outside."""
    there = np.linalg.inv(grid.affine) @ target.affine  # voxel numbers of the one to those of the other
    return affine_transform(labels, there[:3, :3], there[:3, 3], target.shape, order=0, mode="grid-constant", cval=0)
