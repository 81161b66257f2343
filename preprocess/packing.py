"""What a set of volumes is asked to be, and one patient's volumes read, turned and measured for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from datasets.volume_files import read_volume
from files.faults import Fault, VolumeFault
from files.grey_levels import must_fit
from files.grids import ORIENT_RULE, RADIOLOGICAL, TOLERANCE, TOLERANCE_RULE, Grid, is_direction, turn
from files.labels import LabelMap, classes_of, parse_label_map
from files.nifti_headers import Header, turned
from files.pairing import Case
from files.reading import read_grid, read_header
from processes.errors import UserError
from utils import listing

SPLITS = ("train", "val", "unlabelled")
IMAGE, LABEL = "IMG", "GT"
Result = TypeVar("Result")


@dataclass(frozen=True)
class VolumeSpec:
    """Everything that decides what a set looks like; the fields are the flags of the command line (see its help).

    Raises UserError for settings that contradict each other.
    """

    dest: Path
    image: tuple[str, ...]
    label: str | None  # None: no ground truth
    patient: str
    unlabelled: tuple[str, ...] = ()
    orient: str | None = RADIOLOGICAL  # directions that the axes are turned to; None: as stored
    axes: tuple[int, int, int] = (0, 1, 2)  # of them
    channels: tuple[int, ...] = ()  # all of them
    label_map: str | None = None
    others: int | None = None  # an error
    train: int = 1
    val: int | None = None  # all that are left
    seed: int | None = None  # in the order of their names
    normalise: str = "zscore"
    scale_of: Path | None = None  # a set whose scale is taken instead
    tolerance: float = TOLERANCE
    site: str = ""
    modality: str = ""
    phantom: str | None = None
    jobs: int = 1

    KINDS: ClassVar[tuple[str, ...]] = ("zscore", "foreground", "none")

    def __post_init__(self) -> None:
        checks = [
            (
                self.orient is None or is_direction(self.orient),
                f"{ORIENT_RULE}; got {self.orient}",
            ),
            (self.tolerance >= 0, f"{TOLERANCE_RULE}, got {self.tolerance:g}"),
            (sorted(self.axes) == [0, 1, 2], f"--axes names each of 0 1 2 once, got {listing(self.axes)}"),
            (min(self.channels, default=0) >= 0, f"--channels count from 0, got {listing(self.channels)}"),
            (self.others is None or self.label_map, "--others goes with --label_map"),
            (self.label or not self.label_map, "--label_map says what labels become: it goes with --label"),
            (self.label or self.normalise != "foreground", "--normalise foreground looks inside labels: give --label"),
            (self.train > 0, "--train is the number of patients to train on, at least 1"),
            (self.val is None or self.val > 0, "--val is the number of patients to validate on, at least 1"),
            (self.normalise in self.KINDS, f"--normalise is one of {listing(self.KINDS)}"),
            (not self.scale_of or self.normalise == "zscore", "--scale_of takes the place of --normalise"),
            (len(self.unlabelled) in (0, len(self.image)), "--unlabelled is given as often as --image, in its order"),
            (self.jobs > 0, "--jobs is at least 1"),
        ]
        if wrong := [text for is_right, text in checks if not is_right]:
            raise UserError(f"Cannot make {self.dest}: {'; '.join(wrong)}.")

    def mapping(self) -> LabelMap | None:
        return parse_label_map(self.label_map, self.others) if self.label_map else None

    def roles(self, globs: Sequence[str]) -> dict[str, str]:
        """What each image of a patient is for -> its glob."""
        return {f"{IMAGE}[{number}]" if len(globs) > 1 else IMAGE: glob for number, glob in enumerate(globs)}


@dataclass(frozen=True)
class Task:
    """One patient: files by role, and the split they go to."""

    case: Case
    split: str

    @property
    def paths(self) -> dict[str, Path]:
        """The files that are read: no labels where none are to be known."""
        return {role: path for role, path in self.case.paths.items() if role != LABEL or self.split != "unlabelled"}


@dataclass
class PackingResult:
    """What became of one patient."""

    faults: list[Fault] = field(default_factory=list)
    grid: Grid | None = None  # of what is written
    header: Header | None = None  # the same, in both its forms
    guessed: bool = False  # whether the first image's own header leaves open where its axes run
    levels: list[list[float]] = field(default_factory=list)  # of each channel, see trained_on
    channels: int = 0
    voxels: np.ndarray | None = None  # (256,) of each class
    moments: np.ndarray | None = None  # number, sum, sum of squares of the grey levels that the scale is of, float64
    sources: list[dict[str, str]] = field(default_factory=list)  # of the images first

    def attempt(self, work: Callable[..., Result], *args: Any) -> Result | None:
        """What the work returns, or its fault noted."""
        try:
            return work(*args)
        except VolumeFault as error:
            self.faults.append(error.fault)
            return None


def moments(values: np.ndarray) -> np.ndarray:
    """(3,) float64: number, sum and sum of squares of values of any shape."""
    values = values.astype(np.float64)
    return np.array([values.size, values.sum(), np.square(values).sum()])


def moments_of_image(image: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    """(C, D, W, H) -> `moments` of the voxels above the lowest grey level of their channel.

    Padding, and what was cut away, has that lowest grey level.
    """
    lowest = [channel.min() for channel in image]
    planes = ((plane, low) for channel, low in zip(image, lowest, strict=True) for plane in channel)
    return sum(moments(plane[plane > low]) for plane, low in planes)  # of one plane at a time: float64 is large


def moments_of_foreground(image: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """(C, D, W, H) -> `moments` of the voxels whose class, of (D, W, H), is above 0."""
    return moments(image[:, classes > 0])


MOMENTS: Mapping[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray | None]] = {
    "zscore": moments_of_image,
    "foreground": moments_of_foreground,
    "none": lambda image, classes: None,
}


def reordered(grid: Grid, axes: Sequence[int]) -> Grid:
    """The grid of a volume whose axes of these numbers become D, W and H."""
    return Grid(tuple(grid.shape[axis] for axis in axes), grid.affine[:, [*axes, 3]], grid.stored)


def turned_header(path: Path, channel: int | None, grid: Grid) -> Header:
    """The header of a file for its voxels on this grid, where they lie in another order of axes."""
    stored = read_grid(path, channel)
    return turned(read_header(path), np.rint(np.linalg.inv(stored.affine) @ grid.affine))


def read_voxels(path: Path) -> np.ndarray:
    """(D, W, H) or (C, D, W, H) as stored. Raises VolumeFault."""
    try:
        return read_volume(path)[0]
    except UserError as error:
        raise VolumeFault("files that cannot be used", str(error)) from error


def turned_voxels(path: Path, channel: int | None, directions: str | None) -> np.ndarray:
    """(X, Y, Z) or (C, X, Y, Z) with the axes in these directions, None: as stored. Raises VolumeFault."""
    voxels = read_voxels(path)
    if not directions:
        return voxels
    spatial = np.moveaxis(voxels, 0, -1) if voxels.ndim == 4 else voxels
    spatial = turn(spatial, read_grid(path, channel).directions(), directions)
    return np.moveaxis(spatial, -1, 0) if voxels.ndim == 4 else spatial


def read_image(path: Path, directions: str | None = None) -> np.ndarray:
    """(C, X, Y, Z) with its axes in these directions.

    Raises VolumeFault, also for NaN and infinity, and for numbers too wide for float32.
    """
    image = turned_voxels(path, 0, directions)
    if image.dtype.kind == "f" and (bad := int((~np.isfinite(image)).sum())):
        raise VolumeFault("has voxels that are NaN or infinite", f"{path} ({bad} of {image.size})")
    must_fit(image, path)
    return image[None] if image.ndim == 3 else image


def gather_image(
    paths: Sequence[Path], axes: Sequence[int], channels: Sequence[int], directions: str | None = None
) -> np.ndarray:
    """(C, D, W, H) of one patient's files, all their channels or those chosen. Raises VolumeFault."""
    image = np.concatenate([read_image(path, directions) for path in paths])
    if channels and max(channels) >= len(image):
        what = f"has no channel {max(channels)}, they count from 0 (change --channels)"
        raise VolumeFault(what, f"{listing(paths)} has {len(image)}")
    image = image[list(channels)] if channels else image
    return image.transpose(0, *(1 + axis for axis in axes))


def read_classes(path: Path, spec: VolumeSpec) -> np.ndarray:
    """(X, Y, Z) uint8 class numbers, the axes turned. Raises VolumeFault."""
    label = turned_voxels(path, None, spec.orient)
    return classes_of(label.reshape(label.shape[-3:]), spec.mapping(), path)
