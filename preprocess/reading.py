"""Volumes read from their files, and where their voxels lie.

Arrays keep the voxel axes as stored. Cutting along axis `a` gives planes (W, H): W is the first of the two
remaining axes, H the second. A `stack` is a volume with the cutting axis first: (N, W, H).
"""

import gzip
import hashlib
import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from preprocess.faults import Fault, VolumeFault

READ_ERRORS = (
    *(OSError, EOFError, ValueError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie: shape and the (4, 4) matrix from voxel numbers to mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def spacing(self) -> tuple[float, float, float]:
        """mm between voxels along each axis."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    def distance(self, other: "Grid") -> float:
        """The largest distance in mm between the places that two matrices give to a corner of this volume."""
        corners = list(itertools.product(*[(0, n - 1) for n in self.shape]))
        apart = nib.affines.apply_affine(self.affine, corners) - nib.affines.apply_affine(other.affine, corners)
        return float(np.linalg.norm(apart, axis=1).max())


def displaced(
    paths: Mapping[str, Path], grids: Mapping[str, Grid], reference: str, tolerance: float
) -> Iterator[Fault]:
    """The volumes of a patient that do not lie on the grid of the `reference`, one of them; `tolerance` in mm."""
    wanted = grids[reference]
    what = f"does not lie on the grid of its {reference} volume (resample one of them, or raise --tolerance)"
    for role, grid in grids.items():
        if grid.shape != wanted.shape:
            yield what, f"{paths[role]} (shape {grid.shape}, not {wanted.shape})"
        elif (apart := wanted.distance(grid)) > tolerance:
            yield what, f"{paths[role]} ({apart:.3g} mm apart, {tolerance:g} allowed)"


def _open(path: Path) -> nib.spatialimages.SpatialImage:
    try:
        image = nib.load(path)
    except READ_ERRORS as error:
        raise VolumeFault("cannot be read", f"{path} ({type(error).__name__}: {error})") from error
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise VolumeFault("is no volume", str(path))
    return image


def read_grid(path: Path, channel: int | None = None) -> Grid:
    """The grid of a volume, or of this channel of a 4D one, from its header alone. Raises VolumeFault."""
    image = _open(path)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if channel is not None:
        (count,), shape = shape[3:4] or (1,), shape[:3] + shape[4:]
        if channel >= count:
            raise VolumeFault(f"has no channel {channel}, they count from 0 (change --channel)", f"{path} has {count}")
    if len(shape) != 3 or 0 in shape:
        what = "is not 3D (pick one volume of a series of images with --channel N, or save it as a file of its own)"
        raise VolumeFault(what, f"{path} {shape}")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeFault("has a matrix of voxels to mm that cannot be inverted", str(path))
    return Grid(shape, affine)


def read_stack(path: Path, axis: int, is_label: bool = False, channel: int = 0) -> np.ndarray:
    """The voxels, cutting axis first: (N, W, H), contiguous; of a 4D volume those of the channel.

    Small integers stay what they are; other images become float32, and labels keep their type. Raises VolumeFault
    for an unreadable file, colours, NaN or infinity.
    """
    image = _open(path)
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeFault("holds no numbers but colours or complex values", f"{path} ({image.get_data_dtype()})")
    try:
        if path.suffix.lower() == ".gz" and isinstance(image, nib.filebasedimages.SerializableImage):
            # the whole file, for its checksum: reading through nibabel stops before it
            image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
        voxels = np.asanyarray(image.dataobj)
    except READ_ERRORS as error:
        raise VolumeFault("cannot be read", f"{path} ({type(error).__name__}: {error})") from error
    voxels = voxels.reshape(*voxels.shape[:3], -1)[..., channel]
    keep = is_label or (voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2)
    # one transposing copy: taking planes out of a column-major file one by one reads the volume N times
    stack = np.ascontiguousarray(
        np.moveaxis(voxels, axis, 0), dtype=voxels.dtype.newbyteorder("=") if keep else np.float32
    )
    if stack.dtype.kind == "f" and not (np.isfinite(stack.min()) and np.isfinite(stack.max())):
        bad = sum(int((~np.isfinite(plane)).sum()) for plane in stack)
        raise VolumeFault("has voxels that are NaN or infinite", f"{path} ({bad} of {stack.size})")
    return stack


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
