"""One patient: volumes checked, normalised, framed, and written as slices."""

import gzip
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from isal import isal_zlib

from datasets.distance_maps import signed_distance_maps
from datasets.trained_on import grey_levels
from files.faults import Fault, VolumeFault
from files.grey_levels import count_values
from files.grids import Grid, deviation
from files.labels import classes_of
from files.nifti_headers import states_no_place
from files.pairing import Case
from files.reading import read_grid, read_header, read_placed, read_stack, sha256
from preprocess.slicing.bias_field import correct_bias
from preprocess.slicing.frames import Frame, plane_affine
from preprocess.slicing.spec import IGNORED, SliceSpec


@dataclass(frozen=True)
class Task:
    """One patient: the files, where their voxels lie, and the split of each slice."""

    case: Case
    grid: Grid
    splits: tuple[str, ...]


@dataclass
class SlicingResult:
    """What became of one patient: faults, files used, pixels per slice and class (N, 256)."""

    faults: list[Fault] = field(default_factory=list)
    sources: list[dict[str, str]] = field(default_factory=list)  # of the first image first
    pixels: np.ndarray | None = None
    displacement: str | None = None  # how far off its image a label lay that was placed on the image's grid
    levels: dict[str, list[float]] = field(default_factory=dict)  # of each image, see trained_on
    guessed: bool = False  # whether the header of the first image leaves open where its axes run
    cut_away: int = 0  # voxels of the classes from 1, once resampled, that the cut left outside


def slice_case(task: Task, spec: SliceSpec, folder: Path | None) -> SlicingResult:
    """Checks one patient's volumes and writes their slices below `folder` (None: only checks)."""
    result = SlicingResult()
    for name, roles in spec.folders().items():
        channels = list(_channels(name, roles, task, spec, result))
        if folder and not result.faults:
            _write_slices(name, zip(*channels, strict=True), task, spec, folder)
            if name == spec.label_folder and spec.distance_maps:
                _write_distance_maps(np.stack(channels[0]), task, spec, folder)
    return result


def _channels(
    name: str, roles: Iterable[str], task: Task, spec: SliceSpec, result: SlicingResult
) -> Iterator[Iterable[np.ndarray]]:
    """The slices of each volume of a folder; notes its source, or its fault."""
    frame, is_label = spec.frame(task.grid), name == spec.label_folder
    for role in roles:
        path = task.case.paths.get(role)
        if path is None:
            continue  # a fault already
        try:
            if is_label:
                planes = _label_planes(_read_label(path, task.grid, spec, result), frame, path, spec, result)
            else:
                stack = read_stack(path, spec.axis, channel=spec.channel or 0, directions=spec.orient)
                result.levels[role] = grey_levels(stack)
                result.guessed |= len(result.levels) == 1 and states_no_place(read_header(path))
                planes = image_planes(stack, frame, path, spec)
        except VolumeFault as error:
            result.faults.append(error.fault)
            continue
        shown = Path(os.path.relpath(path)).as_posix()
        result.sources.append({"patient": task.case.patient, "role": role, "path": shown, "sha256": sha256(path)})
        yield planes


def _read_label(path: Path, grid: Grid, spec: SliceSpec, result: SlicingResult) -> np.ndarray:
    """The labels (N, W, H) on the grid of the image; placed there if that is asked for, and noted."""
    if spec.place_labels:
        apart = deviation(grid, read_grid(path, directions=spec.orient, is_label=True), spec.tolerance)
        if apart:
            stack, share = read_placed(path, spec.axis, grid)
            result.displacement = f"{apart}; {share:.1%} of its labelled volume kept"
            return stack
    return read_stack(path, spec.axis, is_label=True, directions=spec.orient)


def image_planes(stack: np.ndarray, frame: Frame, path: Path, spec: SliceSpec) -> Iterator[np.ndarray]:
    """Checks the image (N, W, H), then yields its slices (W, H): normalised float32, padded with the lowest value."""
    how = spec.normalisation
    stack = how.clipped(correct_bias(stack, spec.n4_shrink) if spec.n4 else stack)
    scale = how.fit(stack)
    if scale.width == 0:
        raise VolumeFault(f"cannot be normalised by {how.kind}, it has no spread of grey levels", str(path))
    if spec.format == "png" and how.kind == "none" and not (scale.lowest >= 0 and stack.max() <= 1):
        what = "has values outside 0..1, which png cannot hold (take another --normalise or --format)"
        raise VolumeFault(what, f"{path} ({scale.lowest:g} to {stack.max():g})")

    def planes() -> Iterator[np.ndarray]:
        for plane in stack:
            own = how.fit(plane) if how.scope == "slice" else scale
            yield frame.take(how.apply(plane, own), float(how.apply(own.lowest, own)))

    return planes()


def _label_planes(
    stack: np.ndarray, frame: Frame, path: Path, spec: SliceSpec, result: SlicingResult
) -> list[np.ndarray]:
    """Checks and counts the labels, then gives their slices: class numbers, padded with background."""
    classes = classes_of(stack, spec.mapping(), path)
    highest = int(classes.max())
    highest_class = highest if spec.ignore is None else int(classes.max(where=classes != IGNORED, initial=0))
    if spec.n_class and highest_class >= spec.n_class:
        what = f"has classes outside 0..{spec.n_class - 1} (raise --n_class {spec.n_class}, or give --label_map)"
        raise VolumeFault(what, f"{path} (up to {highest_class})")
    resampled = [frame.resample(plane) for plane in classes]
    planes = [frame.cut(plane) for plane in resampled]
    result.pixels = np.zeros((len(planes), 256), np.int64)
    for plane, pixels in zip(planes, result.pixels, strict=True):
        pixels[: highest + 1] = count_values(plane, 0, highest + 1)
    result.cut_away = int(sum(map(np.count_nonzero, resampled)) - result.pixels[:, 1:].sum())
    return planes


def _write_slices(
    name: str, slices: Iterable[tuple[np.ndarray, ...]], task: Task, spec: SliceSpec, folder: Path
) -> None:
    """The slices of one folder, each given as the planes of its channels."""
    homes = {split: folder / split / name for split in task.splits}
    for index, (planes, split) in enumerate(zip(slices, task.splits, strict=True)):
        pixels = planes[0] if len(planes) == 1 else np.stack(planes)
        path = homes[split] / f"{task.case.patient}_{index}.{spec.format}"
        if spec.format == "png":
            save_png(path, pixels, spec.bits)
        elif spec.format == "npy":
            np.save(path, np.ascontiguousarray(pixels))
        else:
            save_nifti(path, pixels, plane_affine(task.grid.affine, spec.axis, index, spec.frame(task.grid)))


def _write_distance_maps(classes: np.ndarray, task: Task, spec: SliceSpec, folder: Path) -> None:
    """Of every slice the (K, W, H) float32 cut through the distance maps of its whole volume (N, W, H), in mm."""
    maps = signed_distance_maps(classes, spec.class_count(), spec.spacing_of(task.grid))
    for index, split in enumerate(task.splits):
        np.save(folder / split / spec.distance_maps / f"{task.case.patient}_{index}.npy", maps[:, index])


def as_stored(plane: np.ndarray, spec: SliceSpec) -> np.ndarray:
    """(W, H) -> (W, H): what a file of this plane gives back; whole grey levels for png, else the plane itself."""
    return quantised(plane, spec.bits) if spec.format == "png" else plane


def quantised(plane: np.ndarray, bits: int) -> np.ndarray:
    """(W, H) from 0 to 1 -> (W, H) whole grey levels up to 255, or 65535 with 16 bits."""
    kind = np.uint8 if bits == 8 else np.uint16
    levels = plane * np.float32(np.iinfo(kind).max)
    return np.rint(levels, out=levels).astype(kind)


def save_png(path: Path, plane: np.ndarray, bits: int) -> None:
    """Writes a grey png of class numbers (W, H) uint8 as they are, or of an image (W, H) from 0 to 1.

    Packed by ISA-L: through Pillow, packing took as long as all else that slicing does.
    """
    plane = plane if plane.dtype == np.uint8 else quantised(plane, bits)
    rows, columns = plane.shape
    if plane.flags.f_contiguous:
        plane = cv2.transpose(plane.T)  # the same, row by row: four times as fast as numpy
    lines = np.zeros((rows, 1 + columns * plane.itemsize), np.uint8)  # each begins with its filter, 0: none
    lines[:, 1:] = np.ascontiguousarray(plane, plane.dtype.newbyteorder(">")).view(np.uint8)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8 * plane.itemsize, 0, 0, 0, 0)),
        (b"IDAT", isal_zlib.compress(lines, 1)),
        (b"IEND", b""),
    )
    content = (
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", isal_zlib.crc32(name + c)) for name, c in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))


def save_nifti(path: Path, pixels: np.ndarray, affine: np.ndarray) -> None:
    """A slice as a NIfTI that knows its place in space; the same bytes each time.

    pixels: (W, H), or (C, W, H), whose channels then lie one behind the other along the cutting axis.
    """
    if pixels.ndim == 3:
        affine = affine[:, [2, 0, 1, 3]]
    header = _nifti_header(pixels.shape, pixels.dtype, affine[:3, :3].tobytes())
    place = np.frombuffer(header, nib.Nifti1Header.template_dtype).copy()
    for axis, (row, name) in enumerate(zip("xyz", ("qoffset_x", "qoffset_y", "qoffset_z"), strict=True)):
        place[f"srow_{row}"][0, 3] = place[name] = affine[axis, 3]
    content = place.tobytes() + bytes(4) + pixels.tobytes("F")
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)


@lru_cache(64)
def _nifti_header(shape: tuple[int, ...], dtype: np.dtype, turn: bytes) -> bytes:
    """What nibabel writes before such pixels at the origin: alike for all slices of a volume but for their place."""
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(turn).reshape(3, 3)
    return nib.Nifti1Image(np.zeros(shape, dtype), affine).to_bytes()[: nib.Nifti1Header.template_dtype.itemsize]
