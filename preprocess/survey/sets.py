"""A set of slices or volumes as it lies on the disk: every file read once and measured, nothing taken for granted.

Truly nothing: ground truth, manifest.csv, dataset.json and any split but one may be missing, files may be torn. What is
wrong with a file is noted next to its measures; problems.py says what is wrong with the whole.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.files import (
    MOST_CHANNELS,
    SPLITS,
    NoNumberError,
    SliceName,
    check_regex,
    divisor_of,
    image_fault,
    parse_name,
    parse_volume,
    values_fault,
)
from datasets.set_tables import contradicted, read_card, read_rows, spacing_of_patients
from datasets.trained_on import read_orders
from datasets.transforms import png_transform
from datasets.volume_files import read_volume
from files.decoding import read_slice
from files.faults import Fault
from files.listing import Listing, look
from processes.errors import UserError
from utils import listing, whole

EVERY = (*SPLITS, "unlabelled")
SAMPLE = 512  # grey levels kept of an image, for the histograms
NAME = r"(.+)_(\d+)"  # patient and number of a slice, where nobody says otherwise
NO_IMAGE = re.compile(r"dist|ent_map", re.IGNORECASE)  # folders of maps
LABELS = re.compile(r"gt|label|mask|seg", re.IGNORECASE)  # how folders of ground truth begin
MOST_VALUES = 256
AS_READ = "as stored, of png as shares of the largest of their depth"


@dataclass(frozen=True)
class Image:
    """One image file. `size`: (W, H) or (D, W, H); the grey levels of the first channel alone (see read_image)."""

    folder: str
    size: tuple[int, ...]
    channels: int
    low: float
    high: float
    mean: float
    sd: float
    digest: str  # of the grey levels
    sample: np.ndarray  # (SAMPLE,) float32, or fewer


@dataclass
class Item:
    """One slice, or one volume, of a split: its images by folder, and pixels per label (256,) where it has labels."""

    split: str
    name: str
    patient: str
    number: int | None  # in its volume; None where the name tells none
    paths: dict[str, Path]  # by folder
    images: dict[str, Image] = field(default_factory=dict)
    pixels: np.ndarray | None = None
    label_size: tuple[int, ...] = ()
    faults: list[Fault] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, ...]:
        return next((image.size for image in self.images.values()), self.label_size)

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


@dataclass
class Survey:
    """Everything that was measured of a set, in the order of split and name.

    images, labels   the folders of images; that of the ground truth, '' where there is none
    spacing          patient -> mm from slice to slice, along W and along H; None where no manifest tells
    orders           order of voxels in the file -> the patients whose volumes are stored in it, by the manifest
    directions       of the axes that all volumes were cut in; None where they differ, or nothing tells
    taken_for        whether slices or volumes, and why, where no card tells and it could be either; else ''
    """

    root: Path
    card: dict[str, Any]
    images: list[str]
    labels: str
    items: list[Item]
    spacing: dict[str, tuple[float, float, float]] | None
    faults: list[Fault]
    orders: dict[str, list[str]] = field(default_factory=dict)
    directions: str | None = None
    taken_for: str = ""

    @property
    def set_name(self) -> str:
        return self.root.name

    @property
    def phantom(self) -> bool:
        return bool(self.card.get("phantom"))

    @property
    def volumetric(self) -> bool:
        return bool(self.card.get("volumetric"))

    @property
    def is_of_pictures(self) -> bool:
        """Whether its slices are pictures, which lie in no volume."""
        return bool(self.card.get("truth_size"))

    @property
    def unit(self) -> str:
        return "volumes" if self.volumetric else "slices"

    @cached_property
    def n_class(self) -> int:
        """K by the card, else by the labels; 0 where there are none."""
        seen = [int(np.flatnonzero(item.pixels[:255]).max(initial=0)) for item in self.items if item.pixels is not None]
        return int(self.card.get("n_class") or (1 + max(seen) if seen else 0))

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(item.split for item in self.items))

    def of(self, split: str) -> list[Item]:
        return [item for item in self.items if item.split == split]

    def class_name(self, number: int) -> str:
        names = self.card.get("class_names") or []
        return str(names[number]) if isinstance(names, list) and number < len(names) else f"class {number}"

    def class_counts(self, split: str | None = None) -> np.ndarray:
        """(N, K) pixels of each class in the labelled slices of the split, or of all."""
        rows = [i.pixels[: self.n_class] for i in self.items if i.pixels is not None and split in (None, i.split)]
        return np.stack(rows) if rows else np.zeros((0, self.n_class), np.int64)

    # -- as plots.views wants it -----------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return [item.name for item in self.items]

    @property
    def patients(self) -> list[str]:
        return [item.patient for item in self.items]

    def image(self, row: int) -> np.ndarray:
        """(C, W, H) of a row, of a volume the plane that shows most of its foreground."""
        item = self.items[row]
        image = read_image(item.paths[next(iter(item.images))], self.volumetric)
        return image[:, self._plane(row)] if self.volumetric else image

    def truth(self, row: int) -> np.ndarray:
        """(W, H) class numbers of a row, zeros where it has none."""
        item = self.items[row]
        if item.pixels is None:
            return np.zeros(item.size[-2:], np.uint8)
        label = read_label(item.paths[self.labels], self.volumetric)
        return label[self._plane(row)] if self.volumetric else label

    def _plane(self, row: int) -> int:
        item = self.items[row]
        if item.pixels is None:
            return item.size[0] // 2
        return int((read_label(item.paths[self.labels], True) > 0).sum(axis=(1, 2)).argmax())


def read_image(path: Path, volumetric: bool) -> np.ndarray:
    """(C, W, H) or (C, D, W, H) grey levels: of a png as shares of the largest of its depth, of others as stored.

    Raises UserError for a file that no training would read.
    """
    raw = np.asarray(read_volume(path)[0]) if volumetric else read_slice(path)
    if fault := image_fault(raw, 2 + volumetric):
        raise UserError(f"{path} {fault}")
    if path.suffix.lower() == ".png":
        raw = png_transform(raw)
        raw = raw / np.float32(divisor_of(raw))
    image = raw.astype(np.float32)
    return image if image.ndim == 3 + volumetric else image[None]


def read_label(path: Path, volumetric: bool) -> np.ndarray:
    """(W, H) or (D, W, H) class numbers, uint8. Raises UserError for what holds none, of at most 256 classes."""
    label = np.asarray(read_volume(path)[0]) if volumetric else read_slice(path, is_image=False)
    if label.ndim == 4 and len(label) == 1:
        label = label[0]
    if label.ndim != 2 + volumetric:
        raise UserError(f"{path} has shape {label.shape}; ground truth is one label a pixel")
    if fault := values_fault(np.unique(label), MOST_VALUES):
        raise UserError(f"{path} {fault.split(', outside')[0]}: ground truth holds class numbers")
    return whole(label).astype(np.uint8)


def survey_set(root: Path, images: Sequence[str] = (), labels: str = "", regex: str = "") -> Survey:
    """Reads every file of the set once. Raises UserError where there is no split with images.

    images, labels: the folders, where card and names do not tell them; regex: see --grp_regex of main.py
    """
    card = read_card(root)
    present = [split for split in EVERY if (root / split).is_dir()]
    folders = sorted({f.name for s in present for f in (root / s).iterdir() if f.is_dir() and f.name[0] != "."})
    labels = labels or card.get("labels") or next((name for name in folders if LABELS.match(name)), "")
    labels = labels if labels in folders else ""
    maps = card.get("distance_maps")
    guessed = [f for f in folders if f not in (labels, maps) and not NO_IMAGE.search(f) and not LABELS.match(f)]
    images = [name for name in images or card.get("images") or guessed if name in folders]
    if not images:
        raise UserError(
            f"There are no images in {root}: expected {root}/train/IMG/<slice>.png and the like, and found the splits "
            f"{listing(present) or 'none'} with the folders {listing(folders) or 'none'}. Mend --data or --images."
        )
    check_regex(regex)
    found = {split: _look(root / split, [*images, labels]) for split in present}
    volumetric, taken_for = _find_kind(card, found, images[0], labels)
    card, any_size = card | ({"volumetric": True} if volumetric else {}), bool(card.get("truth_size"))
    items = [item for split in present for item in _list_items(split, found[split], regex, volumetric)]
    with ThreadPoolExecutor(2) as pool:
        work = pool.map(lambda item: _measure(root, item, images, labels, volumetric, any_size), items)
        items = list(tqdm(work, f"reading {root.name}", len(items), unit="slice", disable=None))
    faults = [fault for listings in found.values() for each in listings.values() for fault in _faults_of(each)]
    faults += [fault for item in items for fault in item.faults]
    try:
        spacing = spacing_of_patients(root, [i.name for i in items], [i.patient for i in items])
    except UserError as error:
        spacing, faults = None, [*faults, ("manifest.csv cannot be used", str(error))]
    if not (volumetric or any_size):
        faults += _contradictions(root, items, spacing)
    return Survey(root, card, images, labels, items, spacing, faults, *read_orders(root), taken_for)


def _contradictions(
    root: Path, items: Sequence[Item], spacing: Mapping[str, Sequence[float]] | None
) -> Iterator[Fault]:
    """Patients of whose slices manifest.csv tells other places than their names do."""
    numbered = [item for item in items if item.number is not None]
    columns = ([getattr(item, name) for item in numbered] for name in ("name", "patient", "number"))
    for patient in contradicted(read_rows(root), *columns, spacing):
        yield "numbers of slices that are not their places by manifest.csv (no distance is measured there)", patient


def _find_kind(
    card: Mapping[str, Any], listings: Mapping[str, Mapping[str, Listing]], images: str, labels: str
) -> tuple[bool, str]:
    """Whether the set is of volumes, by its card, else by the shape of a file; and `taken_for` of Survey."""
    if {"volumetric", "truth_size", "channels"} & card.keys():
        return bool(card.get("volumetric")), ""
    label, image = (_a_shape(listings, folder) for folder in (labels, images))
    is_open = len(label) != 2 and len(image) > 2  # ground truth of a slice is flat, whatever its image
    if not is_open:
        return False, ""
    volumetric = len(label) == 3 or len(image) > 3 or image[0] > MOST_CHANNELS
    kind = "volumes" if volumetric else f"slices of {image[0]} channels"
    right, key = ("slices", "false") if volumetric else ("volumes", "true")
    shown = f"ground truth of {label}" if len(label) == 3 else f"images of {image}"
    return volumetric, f'{shown} were taken for {kind}; if they are {right}, write {{"volumetric": {key}}} into it'


def _a_shape(listings: Mapping[str, Mapping[str, Listing]], folder: str) -> tuple[int, ...]:
    """Of the first file of a folder that can be read; of a picture, which is no volume, without its channels."""
    files = (Path(file.path) for each in listings.values() if folder in each for file in each[folder].files.values())
    for path in files:
        with suppress(UserError):
            shape = read_slice(path, is_image=False).shape
            return shape[-2:] if path.suffix.lower() == ".png" else shape
    return ()


def _look(place: Path, folders: Sequence[str]) -> dict[str, Listing]:
    """What lies in these folders of a split, as far as they are there."""
    return {name: look(place / name) for name in folders if name and (place / name).is_dir()}


def _faults_of(files: Listing) -> Iterator[Fault]:
    """Files that training refuses, or never reads."""
    yield from (("a slice twice, which training refuses", f"{files.folder}: {t}") for t in files.twins)
    yield from (("an image file that is not read", f"{files.folder / name}") for name in files.foreign)


def _list_items(split: str, listings: Mapping[str, Listing], regex: str, volumetric: bool) -> Iterator[Item]:
    """The slices of a split, those that lack a file in one of the folders included."""
    items = []
    for name in set().union(*(each.files for each in listings.values())):
        paths = {folder: Path(each.files[name].path) for folder, each in listings.items() if name in each.files}
        read, fault = _read_name(name, regex, volumetric)
        items.append(Item(split, name, read.patient if read else name, read and read.index, paths))
        items[-1].faults += [(fault, items[-1].key)] if fault else []
    yield from sorted(items, key=lambda item: (item.patient, item.number or 0, item.name))


def _read_name(name: str, regex: str, volumetric: bool) -> tuple[SliceName | None, str]:
    """Patient and number by the name, and what is wrong; without an expression, what can be guessed."""
    if volumetric:
        read = parse_volume(name, regex or r".+")
    elif not regex:
        return parse_name(name, NAME), ""
    else:
        try:
            read = parse_name(name, regex)
        except NoNumberError:
            return None, f"name in which the second group of --grp_regex '{regex}' is no number"
    return read, "" if read else f"name that --grp_regex '{regex}' does not match"


def _measure(root: Path, item: Item, images: Sequence[str], labels: str, volumetric: bool, any_size: bool) -> Item:
    """The item with all measures of its files. `any_size`: labels may be larger than their images, by the card."""
    for folder in images:
        if path := item.paths.get(folder):
            try:
                item.images[folder] = _measure_image(read_image(path, volumetric), folder)
            except UserError as error:
                item.faults.append(("cannot be read or used", str(error)))
        elif (root / item.split / folder).is_dir():
            item.faults.append((f"no image in {folder}", item.key))
    path = item.paths.get(labels)
    if path:
        _measure_label(path, item, volumetric, any_size)
    elif labels and item.split != "unlabelled":
        is_there = (root / item.split / labels).is_dir()
        item.faults.append((f"no label in {labels}" if is_there else f"no folder {labels} in the split", item.key))
    return item


def _measure_image(image: np.ndarray, folder: str) -> Image:
    first = image[0].ravel()
    digest = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
    sample = first[np.linspace(0, first.size - 1, min(SAMPLE, first.size)).astype(int)]
    mean, sd = float(first.mean(dtype=np.float64)), float(first.std(dtype=np.float64))
    return Image(folder, image.shape[1:], len(image), float(first.min()), float(first.max()), mean, sd, digest, sample)


def _measure_label(path: Path, item: Item, volumetric: bool, any_size: bool) -> None:
    try:
        label = read_label(path, volumetric)
    except UserError as error:
        item.faults.append(("cannot be read or used", str(error)))
        return
    item.pixels, item.label_size = np.zeros(MOST_VALUES, np.int64), label.shape
    item.pixels[...] = np.bincount(label.ravel(), minlength=MOST_VALUES)
    if item.images and item.size != label.shape and not any_size:
        item.faults.append(("label of another size than its image", f"{item.key} ({label.shape}, not {item.size})"))
