"""Volumes: found, paired, read, normalised and cut to size; and slices put back where they came from.

Arrays keep the voxel axes as stored. Cutting along axis `a` gives planes (W, H): W is the first of the two
remaining axes, H the second. A `stack` is a volume with the cutting axis first: (N, W, H).
"""

import csv
import fnmatch
import glob
import gzip
import hashlib
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from skimage.transform import resize

from utils import UserError, listing

MAX_LABEL_RANGE = 2**20  # a wider range of values is an image that was given as a label
READ_ERRORS = (
    *(OSError, EOFError, ValueError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)
Fault = tuple[str, str]  # what is wrong and how to mend it; which file it is


class VolumeFault(Exception):
    """One volume that cannot be used; collected, so that the user sees all of them at once."""

    def __init__(self, what: str, which: str) -> None:
        super().__init__(what, which)
        self.fault: Fault = (what, which)


def describe_faults(faults: Iterable[Fault], limit: int = 40) -> str:
    """The faults in one paragraph, grouped by kind, the offenders listed behind each."""
    groups: dict[str, list[str]] = {}
    for what, which in faults:
        groups.setdefault(what, []).append(which)
    return "; ".join(f"{what}: {listing(which, limit)}" for what, which in groups.items()) + "."


# ------------------------------------------------------------------------------------------ finding and pairing


@dataclass(frozen=True)
class Case:
    """The files of one patient: role (what the volume is for, see SliceSpec.folders) -> path."""

    patient: str
    paths: dict[str, Path]


def find_files(pattern: str) -> list[Path]:
    """Files that match the pattern, sorted.

    Capital and small letters are the same in a file's name (not in its folder's): archives mix `_segmentation` and
    `_Segmentation`. `**` stands for any number of folders. Hidden files are left out, like the `._*` shadows that some
    archives carry.
    """
    wanted = Path(pattern)
    name = wanted.name.lower()
    folders = {Path(folder) for folder in glob.glob(str(wanted.parent), recursive=True)}  # noqa: PTH207  Path.glob takes no absolute pattern
    return sorted(
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if fnmatch.fnmatchcase(path.name.lower(), name) and not path.name.startswith(".") and path.is_file()
    )


def read_id(path: Path, pattern: re.Pattern[str]) -> str | None:
    """The groups of the pattern's match joined, or None.

    Looked for in the file's name, or in the whole path if the pattern holds a '/'.
    """
    match = pattern.search(path.as_posix() if "/" in pattern.pattern else path.name)
    return "".join(group or "" for group in match.groups()) if match else None


def compile_pattern(flag: str, pattern: str) -> re.Pattern[str]:
    """The regular expression of a flag. Raises UserError if it is none or has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{flag} '{pattern}' is no regular expression: {error}.") from error
    if not compiled.groups:
        raise UserError(
            f"{flag} '{pattern}' has no group: put brackets round the part that is wanted, as in (Case\\d+)."
        )
    return compiled


def pair(patterns: Mapping[str, str], patient: re.Pattern[str]) -> tuple[list[Case], list[Fault]]:
    """The patients of a set, sorted by name, and what is wrong with the files.

    `patterns`: role -> glob. A file belongs to the patient that its name says. Faults: a pattern without a file,
    a name without a patient, two files for one place, a patient who lacks a role.
    """
    found: dict[str, dict[str, Path]] = {}
    faults: list[Fault] = []
    for role, pattern in patterns.items():
        files = find_files(pattern)
        if not files:
            faults.append(("no file matches", f"{role} '{pattern}'"))
        for path in files:
            name = read_id(path, patient)
            if not name or not re.fullmatch(r"[\w.-]+", name):
                what = f"--patient '{patient.pattern}' must find an id of letters, digits, . _ and -, but does not in"
                faults.append((what, str(path)))
            elif role in found.setdefault(name, {}):
                faults.append(
                    (f"two files for {role} of one patient (narrow the pattern)", f"{found[name][role]} and {path}")
                )
            else:
                found[name][role] = path
    cases = [Case(name, found[name]) for name in sorted(found)]
    for case in cases:
        faults += [
            (f"patients without {role} volume (no file of '{pattern}')", case.patient)
            for role, pattern in patterns.items()
            if role not in case.paths
        ]
    return cases, faults


# --------------------------------------------------------------------------------------------- reading volumes


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


# --------------------------------------------------------------------------------------------------- grey levels


def histogram(stack: np.ndarray) -> tuple[int, np.ndarray]:
    """The lowest of the integers and how often each value from it upwards occurs."""
    low, high = int(stack.min()), int(stack.max())
    counts = np.zeros(high - low + 1, np.int64)
    for plane in stack if stack.ndim == 3 else [stack]:
        counts += np.bincount(plane.ravel().astype(np.int64) - low, minlength=len(counts))
    return low, counts


def percentiles(stack: np.ndarray, wanted: Sequence[float]) -> list[float]:
    """Percentiles with linear interpolation, as numpy has them.

    Small integers are counted instead of sorted, ten times as fast.
    """
    if stack.dtype.kind == "f":
        return [float(value) for value in np.percentile(stack, wanted)]
    low, counts = histogram(stack)
    upto = np.cumsum(counts)
    values = []
    for percent in wanted:
        place = percent / 100 * (stack.size - 1)
        rank = int(place)
        below, above = np.searchsorted(upto, [rank, min(rank + 1, stack.size - 1)], side="right")
        values.append(float(low + below + (place - rank) * (above - below)))
    return values


@dataclass(frozen=True)
class Scale:
    """Grey level -> (grey level - shift) / width; `lowest` is the lowest grey level there is."""

    shift: float
    width: float
    lowest: float


@dataclass(frozen=True)
class Normalisation:
    """How grey levels become the network's input.

    kind        out                                                     range
    minmax      (x - min) / (max - min)                                 0..1
    percentile  (x - p_low) / (p_high - p_low), clipped                 0..1
    window      (x - low) / (high - low), clipped                       0..1
    zscore      (x - mean) / sd                                         open
    none        x                                                       open

    `no_clip` leaves the values of percentile and window that are outside 0..1 what they are. `clip` cuts the grey
    levels before all that. `scope`: min, percentile, mean, … over the volume or over each slice.
    A flat slice becomes 0 under scope 'slice'; a flat volume is a fault.
    """

    kind: str = "percentile"
    scope: str = "volume"
    percentiles: tuple[float, float] = (1.0, 99.0)
    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    no_clip: bool = False

    KINDS = ("minmax", "percentile", "zscore", "window", "none")
    SCOPES = ("volume", "slice")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS or self.scope not in self.SCOPES:
            raise UserError(
                f"--normalise is one of {listing(self.KINDS)} and --scope one of {listing(self.SCOPES)}; "
                f"got {self.kind} and {self.scope}."
            )
        if (self.kind == "window") != (self.window is not None):
            raise UserError("--window LOW HIGH and --normalise window go together: give both or neither.")
        if self.no_clip and self.kind not in ("percentile", "window"):
            raise UserError(f"--no_clip goes with --normalise percentile or window; {self.kind} does not clip.")
        for flag, limits in (("--window", self.window), ("--clip", self.clip), ("--percentiles", self.percentiles)):
            if limits is not None and not limits[0] < limits[1]:
                raise UserError(f"{flag} takes a lower and a higher number, got {limits[0]:g} and {limits[1]:g}.")
        if self.percentiles[0] < 0 or self.percentiles[1] > 100:
            raise UserError(
                f"--percentiles lie between 0 and 100, got {self.percentiles[0]:g} and {self.percentiles[1]:g}."
            )

    def clipped(self, stack: np.ndarray) -> np.ndarray:
        """The stack cut at `clip`; integers stay integers where the limits are whole numbers."""
        if self.clip is None:
            return stack
        low, high = self.clip
        if stack.dtype.kind == "f" or not (low.is_integer() and high.is_integer()):
            return np.clip(stack.astype(np.float32, copy=False), np.float32(low), np.float32(high))
        kind = np.iinfo(stack.dtype)
        return np.clip(stack, min(max(int(low), kind.min), kind.max), min(max(int(high), kind.min), kind.max))

    def fit(self, stack: np.ndarray) -> Scale:
        """The scale of these (already clipped) voxels: a stack, or one plane under scope 'slice'."""
        lowest = float(stack.min())
        if self.kind == "minmax":
            return Scale(lowest, float(stack.max()) - lowest, lowest)
        if self.kind == "zscore":
            mean = sum(float(plane.sum(dtype=np.float64)) for plane in stack) / stack.size
            square = sum(float(np.square(plane.astype(np.float64) - mean).sum()) for plane in stack) / stack.size
            return Scale(mean, square**0.5, lowest)
        if self.kind == "none":
            return Scale(0.0, 1.0, lowest)
        low, high = self.window or percentiles(stack, self.percentiles)
        return Scale(low, high - low, lowest)

    def apply(self, plane: np.ndarray | float, scale: Scale) -> np.ndarray:
        """float32 values of the plane under this scale."""
        plane = np.asarray(plane, np.float32)
        if scale.width == 0:
            return np.zeros_like(plane)
        plane = (plane - np.float32(scale.shift)) / np.float32(scale.width)
        return plane if self.no_clip or self.kind in ("zscore", "none") else np.clip(plane, 0, 1)


# -------------------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class LabelMap:
    """Label -> class; labels not in `classes` have the class `others`, or none. 0 is background by default."""

    classes: dict[int, int]
    others: int | None = None

    def numbers(self) -> set[int]:
        return {0, *self.classes.values(), *(() if self.others is None else (self.others,))}

    def class_of(self, label: int) -> int | None:
        return self.classes.get(label, 0 if label == 0 else self.others)


def parse_label_map(text: str, others: int | None = None) -> LabelMap:
    """The label map of '41-50:1' or '500:3,421:2'. Raises UserError; the classes must be 0..K-1 without a gap."""
    classes: dict[int, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*:\s*(\d+)\s*", part)
        if not match:
            raise UserError(
                f"--label_map '{text}': cannot read '{part}'; write LABEL:CLASS or FIRST-LAST:CLASS, as 41-50:1,255:2."
            )
        first, last, number = int(match[1]), int(match[2] or match[1]), int(match[3])
        if not 0 <= last - first < MAX_LABEL_RANGE:
            raise UserError(f"--label_map '{text}': the labels {first}-{last} run backwards or are too many.")
        for label in range(first, last + 1):
            if classes.setdefault(label, number) != number:
                raise UserError(f"--label_map '{text}' gives label {label} two classes, {classes[label]} and {number}.")
    numbers = LabelMap(classes, others).numbers()
    if min(numbers) < 0 or max(numbers) > 255:
        raise UserError(f"--label_map '{text}': classes are 0..255, got {min(numbers)} to {max(numbers)}.")
    missing = sorted(set(range(max(numbers))) - numbers)
    if missing:
        raise UserError(f"--label_map '{text}' leaves out class {listing(missing)}: they run 0..K-1 without a gap.")
    return LabelMap(classes, others)


def map_labels(stack: np.ndarray, mapping: LabelMap | None) -> tuple[np.ndarray, list[int]]:
    """Class numbers (uint8, same shape) and the labels that have no class.

    Without a mapping the labels are the classes. Raises ValueError if the values are no labels: fractions, or a range
    too wide.
    """
    if stack.dtype.kind == "f":
        if any((plane != np.rint(plane)).any() for plane in stack):
            raise ValueError("fractions")
        stack = stack.astype(np.int64)
    if int(stack.max()) - int(stack.min()) >= MAX_LABEL_RANGE:
        raise ValueError(f"values from {stack.min()} to {stack.max()}")
    mapping = mapping or LabelMap({value: value for value in range(256)})
    low, counts = histogram(stack)
    table, unknown = np.zeros(len(counts), np.uint8), []
    for place in np.flatnonzero(counts):
        number = mapping.class_of(low + int(place))
        table[place] = number or 0
        if number is None:
            unknown.append(low + int(place))
    return np.stack([table[plane.astype(np.int64) - low] for plane in stack]), unknown


# ---------------------------------------------------------------------------------- size, and the way back


@dataclass(frozen=True)
class Frame:
    """Which part of its plane a slice shows: all of the plane is resampled, then cropped or padded.

    Pixel i of the slice has its centre at pixel (offset + i + 1/2) step - 1/2 of the plane, along each axis.

    shape    of the plane (W, H)
    scaled   of the plane resampled (W, H)
    size     of the slice (W, H)
    offset   pixels of the resampled plane before the slice; below 0 it is padding
    """

    shape: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @classmethod
    def centred(
        cls, shape: tuple[int, int], scaled: tuple[int, int], size: tuple[int, int] | None, multiple: int | None
    ) -> "Frame":
        """A cut of the resampled plane to this size, or to its own, padded up to a multiple."""
        wanted = size or scaled
        if multiple:
            wanted = tuple(-(-n // multiple) * multiple for n in wanted)
        return cls(shape, scaled, wanted, tuple((have - want) // 2 for have, want in zip(scaled, wanted, strict=True)))

    @property
    def step(self) -> tuple[float, float]:
        """Pixels of the plane from one pixel of the slice to the next."""
        return tuple(n / m for n, m in zip(self.shape, self.scaled, strict=True))

    def take(self, plane: np.ndarray, fill: float = 0) -> np.ndarray:
        """The slice out of its plane: `fill` where the plane has no pixel."""
        return self.cut(self.resample(plane), fill)

    def resample(self, plane: np.ndarray) -> np.ndarray:
        """The plane at its new size.

        An image (float32) is smoothed along an axis that shrinks and interpolated linearly, by scikit-image: unlike the
        widened kernels of Pillow and torch, that puts nothing a fraction of a pixel aside. Class numbers are those of
        the nearest pixel.
        """
        if plane.shape == self.scaled:
            return plane
        if plane.dtype.kind != "f":
            return _nearest(plane, self.scaled)
        return resize(plane, self.scaled, order=1, mode="edge", anti_aliasing=True, preserve_range=True)

    def cut(self, plane: np.ndarray, fill: float = 0) -> np.ndarray:
        """The slice out of its resampled plane."""
        if plane.shape == self.size:
            return plane
        out = np.full(self.size, fill, plane.dtype)
        inside, there = self._overlap()
        out[there] = plane[inside]
        return out

    def put_back(self, pixels: np.ndarray) -> np.ndarray:
        """The plane out of the slice, nearest pixels where it was resampled, 0 where nothing was cut."""
        plane = np.zeros(self.scaled, pixels.dtype)
        inside, there = self._overlap()
        plane[inside] = pixels[there]
        return _nearest(plane, self.shape)

    def _overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The common part of resampled plane and cut, in the pixels of each."""
        axes = zip(self.scaled, self.size, self.offset, strict=True)
        spans = [(max(o, 0), max(min(o + w, h), max(o, 0)), o) for h, w, o in axes]
        return tuple(slice(lo, hi) for lo, hi, _ in spans), tuple(slice(lo - o, hi - o) for lo, hi, o in spans)


def _nearest(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixel at the centre of each pixel of the new size; the further one where the centre falls between two."""
    picked = [(2 * np.arange(want) + 1) * have // (2 * want) for have, want in zip(plane.shape, size, strict=True)]
    return plane[np.ix_(*picked)]


def plane_affine(affine: np.ndarray, axis: int, index: int, frame: Frame) -> np.ndarray:
    """The (4, 4) matrix of one slice: its axes W, H and the cutting axis, its pixel (0, 0) as the origin."""
    w, h = (a for a in range(3) if a != axis)
    corner = np.zeros(3)
    corner[[axis, w, h]] = index, *((o + 0.5) * s - 0.5 for o, s in zip(frame.offset, frame.step, strict=True))
    out = affine[:, [w, h, axis, 3]] * [*frame.step, 1, 1]
    out[:3, 3] = nib.affines.apply_affine(affine, corner)
    return out


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def restore(slices: Mapping[int, np.ndarray], rows: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """One patient's slices in the volume they came from.

    slices: slice number -> (W, H) array as cut or resampled; rows: their rows of manifest.csv, one each. Returns the
    volume on the original grid (of the slices' dtype, 0 where nothing was cut, nearest pixels where the planes were
    resampled) and its affine (4, 4). Raises UserError if slices and rows do not belong together.
    """
    if not rows or len({(row["patient"], row["source"]) for row in rows}) != 1:
        raise UserError(
            f"Expected rows of one patient's volume, got {listing(sorted({row['source'] for row in rows})) or 'none'}."
        )
    numbers = [int(row["index"]) for row in rows]
    odd = sorted(set(numbers) ^ set(slices)) or [n for n in set(numbers) if numbers.count(n) > 1]
    if odd:
        raise UserError(
            f"Slices and rows of {rows[0]['patient']} do not pair up one to one; slices at fault: {listing(odd)}."
        )
    axis, grid = int(rows[0]["axis"]), grid_of(rows[0])
    shape = grid.shape
    stack = np.zeros([shape[axis], *shape[:axis], *shape[axis + 1 :]], next(iter(slices.values())).dtype)
    for number, row in zip(numbers, rows, strict=True):
        frame = _frame_of(row, grid)
        if slices[number].shape != frame.size:
            raise UserError(
                f"Slice {row['slice']} was cut to {frame.size}, but {slices[number].shape} came to put back."
            )
        stack[number] = frame.put_back(slices[number])
    return np.moveaxis(stack, 0, axis), grid.affine


def grid_of(row: Mapping[str, str]) -> Grid:
    """The grid of the volume that a row of manifest.csv tells of."""
    affine = np.array([float(number) for number in row["affine"].split()]).reshape(4, 4)
    return Grid(tuple(int(row[f"shape{axis}"]) for axis in range(3)), affine)


def _frame_of(row: Mapping[str, str], grid: Grid) -> Frame:
    """The frame of a row of manifest.csv; its spacing against the grid's tells how the plane was resampled."""
    w, h = (axis for axis in range(3) if axis != int(row["axis"]))
    spacing, new = grid.spacing(), {w: float(row["spacing_w"]), h: float(row["spacing_h"])}
    scaled = tuple(round(grid.shape[axis] * spacing[axis] / new[axis]) for axis in (w, h))
    width, height, offset_w, offset_h = (int(row[name]) for name in ("width", "height", "offset_w", "offset_h"))
    return Frame((grid.shape[w], grid.shape[h]), scaled, (width, height), (offset_w, offset_h))
