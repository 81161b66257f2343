"""Slices as files: how a file is read, whose slice its name says it is, and what can be wrong with it.

Layout: `<root>/{train,val[,test]}/<folder>/<slice>.{png,nii,nii.gz,npy}`, the same file names in each folder; images
are (W, H) or (C, W, H), ground truth is (W, H) and holds the class numbers 0..K-1. The slicer's `manifest.csv`
(spacing) and `dataset.json` (modality, phantom, …) may lie next to the splits.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.set_tables import is_split_by_patients, read_card
from datasets.transforms import FolderSpec
from files.decoding import read_slice
from files.grey_levels import wide_fault
from files.listing import SUFFIXES, SliceFile, is_slice, look_into, stem, tell_foreign
from processes.errors import UserError
from utils import ROUNDING, counted, listing, whole

SPLITS = ("train", "val", "test")
MOST_CLASSES = 256  # labels are bytes
LAYOUTS = {2: "W, H", 3: "D, W, H"}  # by the number of spatial axes
SETTLED = 2_000_000_000  # ns: a file that changed later than this before it was read may change again unseen
MOST_CHANNELS = 8  # a last axis of at most so many pixels, and longer ones before it, is that of the channels


@dataclass(frozen=True, slots=True)
class SliceName:
    """Whose slice it is, and where in the volume."""

    patient: str
    index: int


class NoNumberError(ValueError):
    """The expression matches, and what it takes for the slice's number is none; the message is that."""


def parse_name(name: str, regex: str) -> SliceName | None:
    """Patient and slice number of a slice's name; None where the expression does not match.

    The patient is the first group, or the whole match where there is none; the slice number is the second group,
    or the last number of the name. Without groups, a separated number that ends both match and name is the slice's
    and no part of the patient: `Case\\d+_\\d+`, `(Case\\d+)_(\\d+)` and `Case\\d+` all read Case00_12 as patient
    Case00, slice 12. A number of several parts, as 000001_000019 of a street scene, is one. Raises NoNumberError.
    """
    match = re.search(regex, name)
    if not match or (match.re.groups and match[1] is None):
        return None
    if match.re.groups >= 2:
        if not re.fullmatch(r"[+-]?\d+(_\d+)*", match[2] or ""):
            raise NoNumberError("nothing" if match[2] is None else f"'{match[2]}'")
        return SliceName(match[1], int(match[2].replace("_", "")))
    numbers = re.findall(r"\d+", name)
    index = int(numbers[-1]) if numbers else 0
    if match.re.groups:
        return SliceName(match[1], index)
    return SliceName(re.sub(r"[_-]\d+$", "", match[0]) if match.end() == len(name) else match[0], index)


def parse_volume(name: str, regex: str) -> SliceName | None:
    """The patient of a volume's name, as slice 0; None where the expression does not match.

    The patient is the first group of the expression, or the whole name where it has no group.
    """
    match = re.search(regex, name)
    patient = match and (match[1] if match.re.groups else name)
    return None if patient is None else SliceName(patient, 0)


def check_regex(regex: str, flag: str = "grp_regex") -> None:
    """Raises UserError for what is no regular expression."""
    try:
        re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--{flag} '{regex}' is not a regular expression: {error}.") from error


def pair_files(folder: Path, subfolders: Sequence[str]) -> tuple[list[str], dict[str, list[SliceFile]]]:
    """Slice names in order and, per subfolder, their files in the same order.

    Raises UserError for a missing folder or partner, and for a split without slices.
    """
    for name in subfolders:
        path = folder / name
        if not path.is_dir():
            there = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else None
            there = there and [name for name in there if name[0] != "."]
            hint = (
                f"there is {listing(there)}" if there else f"{folder} {'is empty' if there == [] else 'does not exist'}"
            )
            raise UserError(
                f"The folder {path} is missing ({hint}). Slices lie in <set>/<split>/<folder>/<slice>.png, volumes in "
                "<set>/<split>/<folder>/<case>.npy or .nii.gz. A set without ground truth is named by its images "
                "alone: --target_folders \"[('IMG', png_transform, False)]\"."
            )
    found = dict(zip(subfolders, look_into(folder / name for name in subfolders), strict=True))
    names = sorted(set().union(*(each.files for each in found.values())))
    others = "".join(f" {each.about_foreign}." for each in found.values() if each.foreign)
    if not names:
        raise UserError(
            f"{folder} holds nothing to read ({', '.join(SUFFIXES)}) in {listing(subfolders)}: the split is empty."
            + others
        )
    lost = [f"{folder / sub / name}" for name in names for sub, each in found.items() if name not in each.files]
    if lost:
        raise UserError(
            f"{counted(len(lost), 'file')} with no partner of the same name in another folder of {folder}; "
            f"missing: {listing(lost)}.{others}"
        )
    for each in found.values():
        tell_foreign(each)
    return names, {sub: [each.files[name] for name in names] for sub, each in found.items()}


def read_names(
    folder: Path, names: Sequence[str], regex: str, parse: Callable[[str, str], SliceName | None] = parse_name
) -> list[SliceName]:
    """Patient and number of every slice.

    Raises UserError that lists the names that the expression does not match, or in which it finds no number.
    """
    check_regex(regex)
    read, odd = [], []
    for name in names:
        try:
            read.append(parse(name, regex))
        except NoNumberError as error:
            odd.append(f"{name} ({error})")
    if odd:
        raise UserError(
            f"The second group of --grp_regex '{regex}' is the slice number, and in {len(odd)} of the {len(names)} "
            f"names in {folder} it reads no number: {listing(odd)}. Put the brackets round the digits alone, or leave "
            "the second group out: the number is then the last one of the name."
        )
    lost = [name for name, parsed in zip(names, read, strict=True) if parsed is None]
    if lost:
        raise UserError(
            f"--grp_regex '{regex}' does not match {len(lost)} of the {len(names)} slice names in {folder}: "
            f"{listing(lost)}. Its first group is the patient, its second the slice number."
        )
    return [parsed for parsed in read if parsed]


def load_slice(
    path: Path,
    spec: FolderSpec,
    n_class: int,
    is_image: bool,
    ignore: int | None = None,
    spacing: tuple[float, float] | None = None,
) -> tuple[np.ndarray | None, str]:
    """Reads one file and applies its transform. Returns the array and '', or None and a sentence on what is wrong.

    The array is (W, H) or (C, W, H) of an image, (W, H) uint8 of ground truth, (K, W, H) float32 of maps.

    ignore: a label that ground truth may hold besides the class numbers. A folder that distance maps are made from may
        not hold it, since no distance is known for its pixels
    spacing: (W, H) in mm, for a transform in mm
    """
    try:
        raw = read_slice(path, is_image)
    except UserError as error:
        return None, str(error)
    if is_image:
        fault = image_fault(raw)
    elif spec.holds_maps:
        fault = map_fault(raw, n_class)
    else:
        fault = label_fault(raw, n_class, None if spec.is_map else ignore)
        raw = raw if fault else whole(raw).astype(np.uint8)
    if fault:
        return None, f"{path} {fault}"
    try:
        return spec.apply(raw, n_class, spacing), ""
    except UserError as error:
        return None, f"{path} {error}"


def image_fault(image: np.ndarray, axes: int = 2) -> str:
    """What is wrong with an image, after the file's name in a sentence; '' if nothing is.

    image: (W, H) or (C, W, H) for two spatial axes, (D, W, H) or (C, D, W, H) for three
    """
    layout = LAYOUTS[axes]
    if image.ndim not in (axes, axes + 1):
        return f"has shape {image.shape}; an image is ({layout}), or (C, {layout}) with its channels first"
    if image.ndim > axes and image.shape[-1] <= MOST_CHANNELS < min(image.shape[:-1]):
        return (
            f"has shape {image.shape}, with its channels last; write them first, (C, {layout}): "
            "np.moveaxis(image, -1, 0)"
        )
    if not image.size:
        return f"has shape {image.shape}, without a pixel"
    bad = int((~np.isfinite(image)).sum()) if image.dtype.kind == "f" else 0
    return f"has {counted(bad, 'pixel')} of NaN or infinity" if bad else wide_fault(image)


def map_fault(maps: np.ndarray, n_class: int, axes: int = 2) -> str:
    """What is wrong with ready-made maps (K, W, H), after the file's name in a sentence; '' if nothing is.

    axes: 3 for maps of a volume (K, D, W, H)
    """
    if maps.ndim != axes + 1 or len(maps) != n_class:
        wanted = f"(K, {LAYOUTS[axes]}), one a class, K = {n_class} (--n_class)"
        return f"has shape {maps.shape}; ready-made maps are {wanted}"
    return image_fault(maps, axes)


def label_fault(label: np.ndarray, n_class: int, ignore: int | None = None, axes: int = 2) -> str:
    """What is wrong with a label map (W, H), after the file's name in a sentence; '' if nothing is.

    axes: 3 for the label map of a volume (D, W, H)
    """
    if label.ndim != axes:
        return f"has shape {label.shape}; ground truth is one grey level a pixel, ({LAYOUTS[axes]})"
    return values_fault(np.unique(label), n_class, ignore)


def values_fault(values: np.ndarray, n_class: int, ignore: int | None = None) -> str:
    """What is wrong with the values (N,) of a label map, after the file's name in a sentence; '' if nothing is."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "has labels that are NaN or infinite"
    known = {*range(n_class), ignore}
    nearest = np.rint(values) if values.dtype.kind == "f" else values
    outside = [
        f"{value:.7g}"
        for value, number in zip(values.tolist(), nearest.tolist(), strict=True)
        if number not in known or abs(value - number) > ROUNDING
    ]
    if not outside:
        return ""
    fix = (
        " A 0/255 mask: write 1 for 255 (slice with --label_map 255:1). Pixels without a class: --ignore 255."
        if outside == ["255"]
        else ""
    )
    return f"holds the labels {listing(outside)}, outside 0..{n_class - 1} (--n_class {n_class}).{fix}"


def check_class_count(roots: Iterable[Path], n_class: int) -> None:
    """Raises UserError for the sets whose dataset.json states another number of classes; it may state none."""
    stated = {root: read_card(root).get("n_class") for root in dict.fromkeys(roots)}
    wrong = [f"{root / 'dataset.json'} says {k}" for root, k in stated.items() if k not in (None, n_class)]
    if wrong:
        raise UserError(
            f"--n_class is {n_class}, background included, but {listing(wrong)}. Give the number of classes that the "
            "set has. If the card is wrong, as after a change of the labels, or where a class is in none of them, "
            f'slice the set again with --n_class {n_class}, or correct "n_class" in the file.'
        )


def check_ignored(ignore: int | None, n_class: int) -> None:
    """Raises UserError for more classes than bytes tell apart, and for a label to be ignored that is one of them."""
    if n_class > MOST_CLASSES:
        raise UserError(
            f"--n_class {n_class}: labels are kept as bytes, which tell {MOST_CLASSES} classes apart and no more."
        )
    if ignore is not None and not n_class <= ignore <= np.iinfo(np.uint8).max:
        raise UserError(
            f"--ignore {ignore}: expected a label that is no class, {n_class}..255, as in street scenes 255."
        )


def check_patients(
    root: Path, folder: str, regex: str, parse: Callable[[str, str], SliceName | None] = parse_name
) -> None:
    """Raises UserError if one patient's slices lie in two splits (dataset.json may declare that they do)."""
    if not is_split_by_patients(read_card(root)):
        return
    check_regex(regex)
    home: dict[str, set[str]] = {}
    for split in SPLITS:
        names = os.listdir(root / split / folder) if (root / split / folder).is_dir() else []  # noqa: PTH208  quick
        for name in filter(is_slice, names):
            with suppress(NoNumberError):  # told by read_names, of all names at once
                if parsed := parse(stem(name), regex):
                    home.setdefault(parsed.patient, set()).add(split)
    shared = [f"{patient} ({' and '.join(sorted(splits))})" for patient, splits in home.items() if len(splits) > 1]
    if shared:
        raise UserError(
            f"{root}: {counted(len(shared), 'patient')} in two splits: {listing(sorted(shared))}. A patient belongs to "
            "one; check --grp_regex, whose first group is the patient."
        )


def divisor_of(image: np.ndarray) -> float:
    """The number that an image, of any shape, is divided by: the largest of its type if unsigned (a png), else 1."""
    return float(np.iinfo(image.dtype).max) if image.dtype.kind == "u" else 1.0


def narrowest(array: np.ndarray) -> np.dtype:
    """The smallest of uint8, int16, float16, int32 and float32 that holds all values, of any shape, exactly."""
    low, high = array.min(), array.max()
    if array.dtype.kind in "iub" or (abs(low) < 2**15 and abs(high) < 2**15 and (array == np.rint(array)).all()):
        return next(
            np.dtype(kind) for kind in ("u1", "i2", "i4") if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        )
    with np.errstate(over="ignore"):
        return np.dtype(np.float16 if (array.astype(np.float16) == array).all() else np.float32)
