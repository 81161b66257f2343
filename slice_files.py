"""Slices as files: what a folder line names, how a file is read and turned, whose slice it is, and what can be wrong.

Layout: `<root>/{train,val[,test]}/<folder>/<slice>.{png,nii,nii.gz,npy}`, the same file names in each folder; images
are (W, H) or (C, W, H), ground truth is (W, H) and holds the class numbers 0..K-1. The slicer's `manifest.csv`
(spacing) and `dataset.json` (modality, phantom, …) may lie beside the splits.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from decoding import read_slice
from distance_maps import signed_distance_maps
from folder_listing import SUFFIXES, SliceFile, is_slice, look_into, stem, tell_foreign
from set_tables import is_split_by_patients, read_card
from utils import ROUNDING, Registry, UserError, counted, listing, read_literal, whole

TRANSFORMS = Registry("transform")
SPLITS = ("train", "val", "test")
PUBLISHED_CROP = 384  # nii_transform2 keeps the first 384 rows and columns: the published prostate slices are 385
EXACT = 2**24  # up to here float32 holds every whole number
MOST_CLASSES = 256  # labels are bytes
LAYOUTS = {2: "W, H", 3: "D, W, H"}  # by the number of spatial axes
MOST_CHANNELS = 8  # a last axis of at most so many pixels, and longer ones before it, is that of the channels


# ---------------------------------------------------------------------------------------------- transforms
#
# A transform that takes `n_class` makes one map a class out of the ground truth's class numbers; one that takes
# `spacing` too needs the (W, H) lengths of a pixel in mm.


@TRANSFORMS.register("npy_transform", "tensor_transform", "torch.tensor")
def nii_transform(raw: np.ndarray) -> np.ndarray:
    """Image as stored, float. Raises UserError for numbers that float32 cannot tell apart."""
    if fault := wide_fault(raw):
        raise UserError(fault)
    return raw.astype(np.float32, copy=False)


@TRANSFORMS.register()
def nii_zscore_transform(raw: np.ndarray) -> np.ndarray:
    """Image of mean 0 and sd 1, whose -4 to 4.5 become 0 to 1: what the published heart recipe calls nii_transform.

    Raises UserError for grey levels outside of that, as the published loader does.
    """
    image = (nii_transform(raw) + 4) / 8.5
    if image.min() < 0 or image.max() > 1:
        raise UserError(
            f"holds grey levels from {raw.min():.4g} to {raw.max():.4g}; nii_zscore_transform is for images of mean 0 "
            "and standard deviation 1, from -4 to 4.5 (nii_transform reads them as they are stored)"
        )
    return image


@TRANSFORMS.register()
def nii_transform2(raw: np.ndarray) -> np.ndarray:
    """Image as stored, cropped to the published 384 x 384."""
    return nii_transform(raw)[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register("imnpy_transform")
def png_transform(raw: np.ndarray) -> np.ndarray:
    """Image divided by the largest value of its depth; the integers stay integers until they are batched.

    Raises UserError for anything but grey levels of 8 or 16 bits, of which no largest value is known.
    """
    if raw.dtype == np.bool_:
        return raw.astype(np.uint8) * 255
    if raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
        return raw
    raise UserError(
        f"holds {raw.dtype} values from {raw.min():.6g} to {raw.max():.6g}, and png_transform is for grey levels of "
        "unsigned 8 or 16 bits; name nii_transform or npy_transform"
    )


@TRANSFORMS.register("gtpng_transform", "gt_transform", "npy_gt_transform", "gtnpy_transform")
def nii_gt_transform(raw: np.ndarray) -> np.ndarray:
    """Ground truth: class numbers as stored."""
    return raw


@TRANSFORMS.register()
def nii_gt_transform2(raw: np.ndarray) -> np.ndarray:
    """Ground truth, cropped to the published 384 x 384."""
    return raw[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register()
def dist_map_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """(K, W, H) signed distance maps of the ground truth, in pixels, for the boundary loss."""
    return signed_distance_maps(raw, n_class)


@TRANSFORMS.register()
def dist_map_mm_transform(raw: np.ndarray, n_class: int, spacing: tuple[float, float]) -> np.ndarray:
    """Signed distance maps in mm."""
    return signed_distance_maps(raw, n_class, spacing)


@TRANSFORMS.register()
def dist_map_max_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """Signed distance maps, each divided by its largest absolute value."""
    return signed_distance_maps(raw, n_class, normalise=True)


@TRANSFORMS.register()
def dist_map_legacy_transform(raw: np.ndarray, n_class: int) -> np.ndarray:
    """Signed distance maps in whole pixels, as published."""
    return signed_distance_maps(raw, n_class, legacy=True)


@TRANSFORMS.register()
def dist_map_legacy_mm_transform(raw: np.ndarray, n_class: int, spacing: tuple[float, float]) -> np.ndarray:
    """Signed distance maps in whole mm, as published with a spacing."""
    return signed_distance_maps(raw, n_class, spacing, legacy=True)


@TRANSFORMS.register()
def raw_npy_transform(raw: np.ndarray) -> np.ndarray:
    """(K, W, H) maps as stored, one a class: distances that were measured in the volume."""
    return raw.astype(np.float32, copy=False)


OF_IMAGES = (nii_transform, nii_zscore_transform, nii_transform2, png_transform)
OF_LABELS = (nii_gt_transform, nii_gt_transform2)


@cache
def _parameters(transform: str) -> frozenset[str]:
    return frozenset(inspect.signature(TRANSFORMS[transform]).parameters)


@dataclass(frozen=True)
class FolderSpec:
    """One tuple of `--target_folders`: subfolder, transform name, and whether the published code one-hot encodes it."""

    folder: str
    transform: str
    is_one_hot: bool = False

    @property
    def holds_maps(self) -> bool:
        """Whether (K, W, H) maps lie in its files ready-made."""
        return self.transform == raw_npy_transform.__name__

    @property
    def is_map(self) -> bool:
        """Whether it gives (K, W, H) maps, not class numbers."""
        return self.holds_maps or "n_class" in _parameters(self.transform)

    @property
    def in_mm(self) -> bool:
        """Whether what it gives depends on the spacing."""
        return "spacing" in _parameters(self.transform)

    def apply(self, raw: np.ndarray, n_class: int, spacing: tuple[float, float] | None = None) -> np.ndarray:
        """What the transform makes of a file's array; `spacing`: (W, H) mm, for one in mm."""
        known, wanted = {"n_class": n_class, "spacing": spacing}, _parameters(self.transform)
        return TRANSFORMS[self.transform](raw, **{name: known[name] for name in known if name in wanted})


FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]"


def parse_folders(text: str, n_loss: int) -> list[FolderSpec]:
    """Reads `[(folder, transform, is_one_hot), …]`: the image, the metrics' ground truth, then one per loss.

    A list shorter than that repeats its last ground truth; the image alone stays alone: there is no ground truth.
    Raises UserError for anything else.
    """
    items = read_literal(text)
    if not isinstance(items, list) or not items:
        raise UserError(f"A list of folders starts with the image and the ground truth, like {FOLDERS}; got {text!r}.")
    if len(items) == 1:
        return [parse_image_folder(text)]
    folders = [_read_folder(item) for item in items]
    for number, spec in enumerate(folders):
        _check_role(spec, is_image=number == 0)
    if folders[0].folder == folders[1].folder:
        raise UserError(
            f"Image and ground truth are both read from {folders[0].folder}, so that the network would be shown what "
            f"it is to find: the first folder is the images, the second the ground truth; got {text!r}."
        )
    if any(spec.is_map for spec in folders[:2]):
        raise UserError(
            f"The first two folders, image and ground truth of the metrics, are no distance maps; got {text!r}. A map "
            "stands in the place of the loss that needs it, third or later."
        )
    if len(folders) > 2 + n_loss:
        raise UserError(
            f"{len(folders)} folders for {n_loss} losses: after the image and the ground truth comes one folder a loss."
        )
    return folders + [folders[-1]] * (2 + n_loss - len(folders))


def parse_image_folder(text: str) -> FolderSpec:
    """The first tuple of such a list, the image, for who reads nothing else. Raises UserError for anything else."""
    items = read_literal(text)
    if not isinstance(items, list) or not items:
        raise UserError(f"A list of folders starts with the image, like {FOLDERS}; got {text!r}.")
    image = _read_folder(items[0])
    _check_role(image, is_image=True)
    if image.is_map:
        raise UserError(f"The first folder is the image, no distance maps; got {text!r}.")
    return image


def _read_folder(item: Any) -> FolderSpec:
    match item:
        case (str(folder), str(transform), bool(is_one_hot)):
            TRANSFORMS[transform]
            return FolderSpec(folder, transform, is_one_hot)
    raise UserError(f"Cannot read the folder {item!r}: expected (folder, transform, is_one_hot) as in {FOLDERS}.")


def _check_role(spec: FolderSpec, is_image: bool) -> None:
    """Raises UserError for a transform of ground truth where images are read, which it does not scale; the reverse."""
    if TRANSFORMS[spec.transform] not in (OF_LABELS if is_image else OF_IMAGES):
        return
    here, there = ("images", "ground truth") if is_image else ("ground truth", "images")
    right = "png_transform (.png), nii_transform or npy_transform" if is_image else "gt_transform"
    raise UserError(
        f"'{spec.transform}' is for {there}, and {spec.folder} is read as {here}: name {right} there, or another "
        f"folder. The images come first, as in {FOLDERS}."
    )


# ---------------------------------------------------------------------------------------------- reading files


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
    """The same of a volume's name: the patient is the first group, or the whole name where there is none."""
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
    """Array and fault of one file: None and a sentence, or the array and ''.

    ignore: a label that ground truth may hold beside the class numbers; no distance is known to its pixels, so a
        folder of which distance maps are made may not
    spacing: (W, H) mm, for a transform in mm
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
    """What is wrong with an image of so many spatial axes, after the file's name in a sentence; '' if nothing is."""
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


def wide_fault(image: np.ndarray) -> str:
    """The same of numbers that float32, which networks compute in, cannot hold, and whole ones it cannot tell apart."""
    if not image.size or image.dtype.kind not in "iuf" or image.dtype.itemsize <= (4 if image.dtype.kind == "f" else 2):
        return ""
    low, high = image.min(), image.max()
    if -EXACT <= low and high <= EXACT:
        return ""
    words = f"holds grey levels from {low:.10g} to {high:.10g}"
    if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        return f"{words}, beyond what 32 bits hold; divide them first"
    if image.dtype.kind == "f" and (image != np.rint(image)).any():
        return ""  # rounded to 7 digits, as any image is
    return f"{words}, whole numbers of which 32 bits tell only each second or fewer apart; subtract or divide first"


def map_fault(maps: np.ndarray, n_class: int, axes: int = 2) -> str:
    """The same of ready-made maps."""
    if maps.ndim != axes + 1 or len(maps) != n_class:
        wanted = f"(K, {LAYOUTS[axes]}), one a class, K = {n_class} (--n_class)"
        return f"has shape {maps.shape}; ready-made maps are {wanted}"
    return image_fault(maps, axes)


def label_fault(label: np.ndarray, n_class: int, ignore: int | None = None, axes: int = 2) -> str:
    """The same of a label map."""
    if label.ndim != axes:
        return f"has shape {label.shape}; ground truth is one grey level a pixel, ({LAYOUTS[axes]})"
    return values_fault(np.unique(label), n_class, ignore)


def values_fault(values: np.ndarray, n_class: int, ignore: int | None = None) -> str:
    """The same of the values that a label map holds."""
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
