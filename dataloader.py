"""Slice folders as data sets: read and checked once, held in memory, batched by index.

Layout: `<root>/{train,val[,test]}/<folder>/<slice>.{png,nii,nii.gz,npy}`, the same file names in each folder;
ground truth holds the class numbers 0..K-1. The slicer's `manifest.csv` (spacing) and `dataset.json` (modality,
phantom, …) may lie beside the splits.
"""

import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from utils import Registry, UserError, derived_seed, listing, read_literal

TRANSFORMS = Registry("transform")
SPLITS = ("train", "val", "test")
SUFFIXES = (".nii.gz", ".nii", ".png", ".npy")
PUBLISHED_CROP = 384  # nii_transform2 keeps the first 384 rows and columns: the published prostate slices are 385


# ---------------------------------------------------------------------------------------------- transforms


@TRANSFORMS.register("npy_transform")
def nii_transform(raw: np.ndarray) -> np.ndarray:
    """Image as stored, float."""
    return raw.astype(np.float32, copy=False)


@TRANSFORMS.register()
def nii_transform2(raw: np.ndarray) -> np.ndarray:
    """Image as stored, cropped to the published 384 x 384."""
    return nii_transform(raw)[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@TRANSFORMS.register()
def png_transform(raw: np.ndarray) -> np.ndarray:
    """Image divided by the largest value of its depth; 8-bit images stay 8-bit until they are batched."""
    if raw.dtype == np.bool_:
        return raw.astype(np.uint8) * 255
    return raw if raw.dtype == np.uint8 else (raw / 65535).astype(np.float32)


@TRANSFORMS.register("gtpng_transform", "gt_transform", "npy_gt_transform")
def nii_gt_transform(raw: np.ndarray) -> np.ndarray:
    """Ground truth: class numbers as stored."""
    return raw


@TRANSFORMS.register()
def nii_gt_transform2(raw: np.ndarray) -> np.ndarray:
    """Ground truth, cropped to the published 384 x 384."""
    return raw[..., :PUBLISHED_CROP, :PUBLISHED_CROP]


@dataclass(frozen=True)
class FolderSpec:
    """One tuple of `--target_folders`: subfolder, transform name, and whether the published code one-hot encodes it."""

    folder: str
    transform: str
    is_one_hot: bool = False

    def apply(self, raw: np.ndarray) -> np.ndarray:
        return TRANSFORMS[self.transform](raw)


def parse_folders(text: str, n_loss: int) -> list[FolderSpec]:
    """Reads `[(folder, transform, is_one_hot), …]`: the image, the metrics' ground truth, then one per loss.

    A list shorter than that repeats its last ground truth. Raises UserError for anything else.
    """
    items = read_literal(text)
    example = "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]"
    if not isinstance(items, list) or len(items) < 2:
        raise UserError(f"A list of folders starts with the image and the ground truth, like {example}; got {text!r}.")
    folders = []
    for item in items:
        match item:
            case (str(folder), str(transform), bool(is_one_hot)):
                TRANSFORMS[transform]
                folders.append(FolderSpec(folder, transform, is_one_hot))
            case _:
                raise UserError(
                    f"Cannot read the folder {item!r}: expected (folder, transform, is_one_hot) as in {example}."
                )
    if len(folders) > 2 + n_loss:
        raise UserError(
            f"{len(folders)} folders for {n_loss} losses: after the image and the ground truth comes one folder a loss."
        )
    return folders + [folders[-1]] * (2 + n_loss - len(folders))


# ---------------------------------------------------------------------------------------------- reading files


def stem(name: str) -> str:
    """The slice's name without its suffix, `.nii.gz` counted as one."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.endswith(suffix)), name)


def read_slice(path: Path, content: bytes | None = None) -> np.ndarray:
    """The array in a slice file, singleton axes dropped: (W, H), or (C, W, H) for colour.

    Raises UserError for a suffix that is not known and for a file that cannot be read.
    """
    content = path.read_bytes() if content is None else content
    try:
        if path.name.endswith(".npy"):
            array = np.load(io.BytesIO(content), allow_pickle=False)
        elif path.name.endswith(".png"):
            with Image.open(io.BytesIO(content)) as image:
                array = np.asarray(image)
            array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array
        elif path.name.endswith((".nii", ".nii.gz")):
            content = gzip.decompress(content) if path.name.endswith(".gz") else content
            array = np.asanyarray(nib.Nifti1Image.from_bytes(content).dataobj)
        else:
            raise UserError(f"{path}: slices are {', '.join(SUFFIXES)}.")
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        UnidentifiedImageError,
        nib.filebasedimages.ImageFileError,
    ) as e:
        raise UserError(f"{path} cannot be read ({type(e).__name__}: {e}); make it again from its volume.") from e
    return array.squeeze() if array.ndim > 2 and array.shape[0] != 3 else array


@dataclass(frozen=True)
class SliceName:
    """Whose slice it is, and where in the volume."""

    patient: str
    index: int


def parse_name(name: str, regex: str) -> SliceName | None:
    """Patient and slice number of a slice's name; None where the expression does not match.

    The patient is the first group, or the whole match where there is none; the slice number is the second group,
    or the last number of the name. Without groups, a separated number that ends both match and name is the slice's
    and no part of the patient: `Case\\d+_\\d+`, `(Case\\d+)_(\\d+)` and `Case\\d+` all read Case00_12 as patient
    Case00, slice 12.
    """
    match = re.search(regex, name)
    if not match:
        return None
    if match.re.groups >= 2:
        return SliceName(match[1], int(match[2]))
    numbers = re.findall(r"\d+", name)
    index = int(numbers[-1]) if numbers else 0
    if match.re.groups:
        return SliceName(match[1], index)
    return SliceName(re.sub(r"[_-]\d+$", "", match[0]) if match.end() == len(name) else match[0], index)


# ---------------------------------------------------------------------------------------------- data sets


@dataclass
class Batch:
    """What a step sees. `targets` and `bounds` have one entry per loss, None where the method may not look."""

    image: Tensor  # b c w h, float32
    targets: list[Tensor | None]  # b w h, int64
    bounds: list[Tensor | None]  # b k 2, float64
    rows: Tensor  # b, row of each slice in its set


@dataclass
class SliceSet:
    """One split, decoded: N slices in the order of patient and slice number.

    Raises nothing once it exists; every check is made by `open_slices`.
    """

    root: Path
    split: str
    names: list[str]
    patients: list[str]
    image: np.ndarray  # n c w h, uint8 (divided by 255 when batched) or float32
    labels: dict[FolderSpec, np.ndarray]  # n w h, uint8
    folders: list[FolderSpec]
    bounds: list[np.ndarray | None]  # one per loss: n k 2
    spacing: dict[str, tuple[float, float, float]] | None  # patient -> (between slices, W, H) in mm
    digest: str  # sha256 over every file read

    def __len__(self) -> int:
        return len(self.names)

    @property
    def truth(self) -> np.ndarray:
        """(N, W, H) label maps for the metrics."""
        return self.labels[self.folders[1]]

    def images(self, rows: np.ndarray | Tensor, device: torch.device) -> Tensor:
        """(B, C, W, H) float32 images of these rows."""
        image = torch.from_numpy(self.image[np.asarray(rows)]).to(device, non_blocking=True)
        return image.float().div_(255) if image.dtype == torch.uint8 else image

    def batch(self, rows: np.ndarray | Tensor, device: torch.device, with_targets: bool = True) -> Batch:
        """The batch of these rows on the device; without targets the ground truth is not even looked up."""
        rows = np.asarray(rows)
        targets: list[Tensor | None] = [None] * len(self.bounds)
        if with_targets:
            targets = [
                torch.from_numpy(self.labels[folder][rows]).to(device, torch.int64) for folder in self.folders[2:]
            ]
        bounds = [None if bound is None else torch.from_numpy(bound[rows]).to(device) for bound in self.bounds]
        return Batch(self.images(rows, device), targets, bounds, torch.from_numpy(rows))

    def keep(self, rows: Sequence[int]) -> "SliceSet":
        """The set of these rows alone."""
        rows = list(rows)
        return replace(
            self,
            names=[self.names[row] for row in rows],
            patients=[self.patients[row] for row in rows],
            image=self.image[rows],
            labels={folder: label[rows] for folder, label in self.labels.items()},
            bounds=[None if bound is None else bound[rows] for bound in self.bounds],
        )


def join(sets: Sequence[SliceSet]) -> SliceSet:
    """The slices of several splits of one folder as one set, before bounds are laid on it."""
    first = sets[0]
    return replace(
        first,
        split="+".join(part.split for part in sets),
        names=[name for part in sets for name in part.names],
        patients=[patient for part in sets for patient in part.patients],
        image=np.concatenate([part.image for part in sets]),
        labels={folder: np.concatenate([part.labels[folder] for part in sets]) for folder in first.labels},
        spacing=None if first.spacing is None else {k: v for part in sets for k, v in (part.spacing or {}).items()},
        digest=hashlib.sha256("".join(part.digest for part in sets).encode()).hexdigest(),
    )


def lay_bounds(slices: SliceSet, bounds: Sequence[Any], required: bool = True) -> SliceSet:
    """The set with what each loss may know of the sizes, without the slices that a prior leaves out.

    `bounds`: one object of bounds.py per loss, or None. Not `required` (validation): every slice stays, and a bound
    that does not cover them all is left out, instead of raising UserError; its loss is then not measured.
    """
    laid: list[np.ndarray | None] = []
    kept = np.ones(len(slices), bool)
    for bound, folder in zip(bounds, slices.folders[2:], strict=True):
        covered = None if bound is None else _covered(bound, slices.names, required)
        if covered is None:
            laid.append(None)
            continue
        labels = slices.labels[folder] if bound.needs_label else [None] * len(slices)
        laid.append(np.stack([bound(label, name) for label, name in zip(labels, slices.names, strict=True)]))
        kept &= covered
    if not kept.any():
        raise UserError(f"The size prior leaves out every slice of {slices.root / slices.split} (all-zero lists).")
    slices = replace(slices, bounds=laid)
    return slices if kept.all() else slices.keep(np.flatnonzero(kept).tolist())


def _covered(bound: Any, names: Sequence[str], required: bool) -> np.ndarray | None:
    """(N,) which slices the bound speaks of; None if it is not required and does not speak of all."""
    try:
        bound.check(names)
    except UserError:
        if required:
            raise
        return None
    covered = np.array([not bound.skips(name) for name in names])
    return covered if required or covered.all() else None


def open_slices(
    root: Path, split: str, folders: Sequence[FolderSpec], n_class: int, regex: str, limit: int | None = None
) -> SliceSet:
    """Reads and checks one split.

    `limit`: keep that many slices, spread over the set (`--debug`). Raises UserError that lists every offender: a
    missing folder or partner file, a name the expression does not match, different shapes, a label outside 0..K-1,
    NaN, an unreadable file, an empty split.
    """
    names, files = _pair_files(root / split, sorted({spec.folder for spec in folders}))
    read = _read_names(root / split, names, regex)
    order = sorted(range(len(names)), key=lambda i: (read[i].patient, read[i].index, names[i]))
    if limit and limit < len(order):
        order = [order[i] for i in np.linspace(0, len(order) - 1, limit).astype(int)]
    names, read = [names[i] for i in order], [read[i] for i in order]
    files = {folder: [paths[i] for i in order] for folder, paths in files.items()}

    specs = list(dict.fromkeys(folders))
    image_spec = folders[0]
    faults: list[str] = []
    arrays, digests = {}, []
    for spec in specs:
        load = partial(_load, spec=spec, n_class=None if spec is image_spec else n_class)
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(load, files[spec.folder]))
        faults += [fault for _, _, fault in results if fault]
        digests += [digest for _, digest, _ in results]
        arrays[spec] = [array for array, _, _ in results]
    faults = faults or _shape_faults(arrays, image_spec, files)
    if faults:
        raise UserError(f"{root / split}: {len(faults)} faulty files: " + listing(faults, 8).replace(", /", "; /"))
    image = np.stack(arrays.pop(image_spec))
    return SliceSet(
        root,
        split,
        names,
        [name.patient for name in read],
        image if image.ndim == 4 else image[:, None],
        {spec: np.stack(labels) for spec, labels in arrays.items()},
        list(folders),
        [None] * (len(folders) - 2),
        _read_spacing(root, names, [name.patient for name in read]),
        hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def _pair_files(folder: Path, subfolders: Sequence[str]) -> tuple[list[str], dict[str, list[Path]]]:
    """Slice names and, per subfolder, their files in the same order."""
    found: dict[str, dict[str, Path]] = {}
    for name in subfolders:
        path = folder / name
        if not path.is_dir():
            there = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else None
            hint = (
                f"there is {listing(there)}" if there else f"{folder} {'is empty' if there == [] else 'does not exist'}"
            )
            raise UserError(f"The folder {path} is missing ({hint}). Slices lie in <set>/<split>/<folder>/<slice>.png.")
        found[name] = {
            stem(p.name): p for p in sorted(path.iterdir()) if p.name.endswith(SUFFIXES) and p.name[0] != "."
        }
    names = sorted(set().union(*found.values()))
    if not names:
        raise UserError(
            f"{folder} holds no slice ({', '.join(SUFFIXES)}) in {listing(subfolders)}: the split is empty."
        )
    lost = [f"{folder / sub / name}" for name in names for sub, files in found.items() if name not in files]
    if lost:
        raise UserError(
            f"{len(lost)} slices have no partner of the same name in another folder of {folder}; "
            f"missing: {listing(lost)}."
        )
    return names, {sub: [files[name] for name in names] for sub, files in found.items()}


def _read_names(folder: Path, names: Sequence[str], regex: str) -> list[SliceName]:
    try:
        read = [parse_name(name, regex) for name in names]
    except re.error as error:
        raise UserError(f"--grp_regex '{regex}' is not a regular expression: {error}.") from error
    lost = [name for name, parsed in zip(names, read, strict=True) if parsed is None]
    if lost:
        raise UserError(
            f"--grp_regex '{regex}' does not match {len(lost)} of the {len(names)} slice names in {folder}: "
            f"{listing(lost)}. Its first group is the patient, its second the slice number."
        )
    return [parsed for parsed in read if parsed]


def _load(path: Path, spec: FolderSpec, n_class: int | None) -> tuple[np.ndarray | None, str, str]:
    """Array, digest and fault of one file; `n_class` is given for ground truth."""
    try:
        content = path.read_bytes()
        array = spec.apply(read_slice(path, content))
    except UserError as error:
        return None, "", str(error)
    fault = _image_fault(array) if n_class is None else _label_fault(array, n_class)
    if fault:
        return None, "", f"{path} {fault}"
    return (array if n_class is None else array.astype(np.uint8)), hashlib.sha256(content).hexdigest(), ""


def _image_fault(image: np.ndarray) -> str:
    bad = 0 if image.dtype == np.uint8 else int((~np.isfinite(image)).sum())
    return f"has {bad} pixels that are NaN or infinite" if bad else ""


def _label_fault(label: np.ndarray, n_class: int) -> str:
    if label.ndim != 2:
        return f"has shape {label.shape}; ground truth is one grey level a pixel, (W, H)"
    values = np.unique(label)
    if np.issubdtype(label.dtype, np.floating) and not np.isfinite(values).all():
        return "has labels that are NaN or infinite"
    outside = [f"{value:g}" for value in values if not (0 <= value < n_class and value == int(value))]
    if not outside:
        return ""
    fix = " A 0/255 mask: write 1 for 255 (slice with --label_map 255:1)." if outside == ["255"] else ""
    return f"holds the labels {listing(outside)}, outside 0..{n_class - 1} (--n_class {n_class}).{fix}"


def _shape_faults(
    arrays: dict[FolderSpec, list[np.ndarray]], image: FolderSpec, files: dict[str, list[Path]]
) -> list[str]:
    """Files whose shape is not that of the set's first image (ground truth has no channels)."""
    expected = arrays[image][0].shape
    faults = []
    for spec, stack in arrays.items():
        shape = expected if spec is image else expected[-2:]
        faults += [
            f"{path} has shape {array.shape}, not {shape}"
            for path, array in zip(files[spec.folder], stack, strict=True)
            if array.shape != shape
        ]
    return [*faults, "slice every volume of a set to one size (--size W H)"] if faults else []


def _read_spacing(
    root: Path, names: Sequence[str], patients: Sequence[str]
) -> dict[str, tuple[float, float, float]] | None:
    """Voxel spacing in mm per patient from manifest.csv, or None where there is no manifest."""
    path = root / "manifest.csv"
    if not path.is_file():
        return None
    manifest = pd.read_csv(path).set_index("slice")
    lost = [name for name in names if name not in manifest.index]
    if lost:
        raise UserError(
            f"{path} has no row for {len(lost)} slices: {listing(lost)}. Remove it, or slice the set again."
        )
    columns = ["spacing_slice", "spacing_w", "spacing_h"]
    first = {patient: name for name, patient in zip(reversed(names), reversed(patients), strict=True)}
    return {patient: tuple(float(v) for v in manifest.loc[name, columns]) for patient, name in first.items()}


def read_card(root: Path) -> dict[str, Any]:
    """The set's dataset.json, empty where there is none."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}. Slice the set again, or remove the file.") from error


def check_patients(root: Path, folder: str, regex: str) -> None:
    """Raises UserError if one patient's slices lie in two splits (dataset.json may declare that they do)."""
    if read_card(root).get("split_unit", "patient") != "patient":
        return
    home: dict[str, set[str]] = {}
    for split in SPLITS:
        for path in (root / split / folder).glob("*"):
            parsed = parse_name(stem(path.name), regex) if path.name.endswith(SUFFIXES) else None
            if parsed:
                home.setdefault(parsed.patient, set()).add(split)
    shared = [f"{patient} ({' and '.join(sorted(splits))})" for patient, splits in home.items() if len(splits) > 1]
    if shared:
        raise UserError(
            f"{root}: {len(shared)} patients lie in two splits: {listing(sorted(shared))}. A patient belongs to one; "
            "check --grp_regex, whose first group is the patient."
        )


# ---------------------------------------------------------------------------------------------- batches


class Stream:
    """Shuffled batches of a set; the order of an epoch depends on seed and epoch alone, so a resume needs no state."""

    def __init__(
        self, slices: SliceSet, batch_size: int, seed: int, device: torch.device, augment: bool, with_targets: bool
    ) -> None:
        self.slices, self.batch_size, self.seed, self.device = slices, batch_size, seed, device
        self.augment, self.with_targets = augment, with_targets

    def __len__(self) -> int:
        return -(-len(self.slices) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Every slice once, in this epoch's order."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        for rows in torch.randperm(len(self.slices), generator=generator).split(self.batch_size):
            batch = self.slices.batch(rows, self.device, self.with_targets)
            yield augment(batch, generator) if self.augment else batch


def augment(batch: Batch, generator: torch.Generator) -> Batch:
    """Random flips and a rotation within ±45°, the same for image and ground truth; contrast and gamma of the image.

    Drawn per image: x -> (x·c)^γ with c in 0.5..1.5 and γ in 0.5..2, for images without negative values.
    """
    B = len(batch.image)
    angle = (torch.rand(B, generator=generator) - 0.5) * torch.pi / 2
    flips = 1 - 2 * torch.randint(2, (B, 2), generator=generator).float()
    W, H = batch.image.shape[-2:]
    theta = torch.zeros(B, 2, 3)  # grid_sample's x runs along H, its y along W
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * flips[:, 0], -angle.sin() * flips[:, 0] * W / H
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * flips[:, 1] * H / W, angle.cos() * flips[:, 1]
    grid = F.affine_grid(theta, [B, 1, W, H], align_corners=False).to(batch.image.device)
    sample: Callable[..., Tensor] = partial(F.grid_sample, grid=grid, align_corners=False)

    def turn(label: Tensor | None) -> Tensor | None:
        return None if label is None else sample(label[:, None].float(), mode="nearest")[:, 0].long()

    contrast = (0.5 + torch.rand(B, 1, 1, 1, generator=generator)).to(grid.device)
    gamma = (2 ** (2 * torch.rand(B, 1, 1, 1, generator=generator) - 1)).to(grid.device)
    image = sample(batch.image, mode="bilinear", padding_mode="border")
    positive = image.amin((1, 2, 3), keepdim=True) >= 0  # a z-score has no gamma
    image = torch.where(positive, (image.clamp_min(0) * contrast) ** gamma, image)
    return Batch(image, [turn(label) for label in batch.targets], batch.bounds, batch.rows)
