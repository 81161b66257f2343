"""A set of slices or volumes as it lies on the disk: every file read once and measured, nothing taken for granted.

Truly nothing: ground truth, manifest.csv, dataset.json and any split but one may be missing, files may be torn. What is
wrong with a file is noted beside its measures; set_problems.py says what is wrong with the whole.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from preprocess.faults import Fault
from preprocess.trained_on import read_orders
from slice_cache import divisor_of
from slice_files import (
    SPLITS,
    SUFFIXES,
    SliceName,
    parse_name,
    parse_volume,
    png_transform,
    read_card,
    read_slice,
    read_spacing,
    stem,
)
from utils import UserError, listing
from volume_files import read_volume

EVERY = (*SPLITS, "unlabelled")
SAMPLE = 512  # grey levels kept of an image, for the histograms
NAME = r"(.+)_(\d+)"  # patient and number of a slice, where nobody says otherwise
NO_IMAGE = re.compile(r"dist|ent_map", re.IGNORECASE)  # folders of maps
LABELS = re.compile(r"gt|label|mask|seg", re.IGNORECASE)  # how folders of ground truth begin
MOST_VALUES = 256


@dataclass(frozen=True)
class Image:
    """One image file. `size`: (W, H) or (D, W, H); the grey levels as the network sees them, first channel alone."""

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

    def counted(self, split: str | None = None) -> np.ndarray:
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
        image = read_image(self._path(item, next(iter(item.images))), self.volumetric)
        return image[:, self._plane(row)] if self.volumetric else image

    def truth(self, row: int) -> np.ndarray:
        """(W, H) class numbers of a row, zeros where it has none."""
        item = self.items[row]
        if item.pixels is None:
            return np.zeros(item.size[-2:], np.uint8)
        label = read_label(self._path(item, self.labels), self.volumetric)
        return label[self._plane(row)] if self.volumetric else label

    def _plane(self, row: int) -> int:
        item = self.items[row]
        if item.pixels is None:
            return item.size[0] // 2
        return int((read_label(self._path(item, self.labels), True) > 0).sum(axis=(1, 2)).argmax())

    def _path(self, item: Item, folder: str) -> Path:
        return _find(self.root / item.split / folder, item)


def read_image(path: Path, volumetric: bool) -> np.ndarray:
    """(C, W, H) or (C, D, W, H) as the network sees it, but for the scale of a set of volumes. Raises UserError."""
    if volumetric:
        voxels = np.asarray(read_volume(path)[0], np.float32)
        return voxels if voxels.ndim == 4 else voxels[None]
    raw = read_slice(path)
    if path.suffix == ".png":
        raw = png_transform(raw)
        raw = raw / np.float32(divisor_of(raw))
    if raw.ndim not in (2, 3):
        raise UserError(f"{path} has shape {raw.shape}; images are (W, H) or (C, W, H)")
    return raw.astype(np.float32) if raw.ndim == 3 else raw.astype(np.float32)[None]


def read_label(path: Path, volumetric: bool) -> np.ndarray:
    """(W, H) or (D, W, H) labels as stored. Raises UserError."""
    label = np.asarray(read_volume(path)[0]).squeeze() if volumetric else read_slice(path)
    if label.ndim != 2 + volumetric:
        raise UserError(f"{path} has shape {label.shape}; ground truth is one label a pixel")
    return label


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
    volumetric, any_size = bool(card.get("volumetric")), bool(card.get("truth_size"))
    items = [item for split in present for item in _list_items(root / split, [*images, labels], regex, volumetric)]
    with ThreadPoolExecutor(2) as pool:
        work = pool.map(lambda item: _measure(root, item, images, labels, volumetric, any_size), items)
        items = list(tqdm(work, f"reading {root.name}", len(items), unit="slice", disable=None))
    faults: list[Fault] = [fault for item in items for fault in item.faults]
    try:
        spacing = read_spacing(root, [i.name for i in items], [i.patient for i in items])
    except (UserError, KeyError, ValueError) as error:
        spacing, faults = None, [*faults, ("manifest.csv cannot be used", str(error))]
    return Survey(root, card, images, labels, items, spacing, faults, *read_orders(root))


def _list_items(place: Path, folders: Sequence[str], regex: str, volumetric: bool) -> Iterator[Item]:
    """The slices of a split, those that lack a file in one of the folders included."""
    names = {
        stem(path.name)
        for folder in folders
        if folder and (place / folder).is_dir()
        for path in (place / folder).iterdir()
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
    }
    parse = parse_volume if volumetric else parse_name
    guess = r".+" if volumetric else NAME
    read = {name: parse(name, regex) if regex else parse(name, guess) or SliceName(name, 0) for name in names}
    for name in sorted(names, key=lambda n: (read[n].patient, read[n].index, n) if read[n] else (n, 0, n)):
        item = Item(place.name, name, read[name].patient if read[name] else name)
        if read[name] is None:
            item.faults.append((f"name that --grp_regex '{regex}' does not match", item.key))
        yield item


def _measure(root: Path, item: Item, images: Sequence[str], labels: str, volumetric: bool, any_size: bool) -> Item:
    """The item with all measures of its files. `any_size`: labels may be larger than their images, by the card."""
    for folder in images:
        if path := _find(root / item.split / folder, item):
            try:
                item.images[folder] = _measure_image(read_image(path, volumetric), folder)
            except (UserError, OSError, ValueError) as error:
                item.faults.append(("cannot be read or used", str(error)))
        elif (root / item.split / folder).is_dir():
            item.faults.append((f"no image in {folder}", item.key))
    place = root / item.split / labels
    path = _find(place, item) if labels else None
    if path:
        _measure_label(path, item, volumetric, any_size)
    elif labels and item.split != "unlabelled":
        item.faults.append(
            (f"no label in {labels}" if place.is_dir() else f"no folder {labels} in the split", item.key)
        )
    return item


def _find(place: Path, item: Item) -> Path | None:
    return next((place / (item.name + s) for s in SUFFIXES if (place / (item.name + s)).is_file()), None)


def _measure_image(image: np.ndarray, folder: str) -> Image:
    if not np.isfinite(image).all():
        raise UserError(f"{folder} holds {int((~np.isfinite(image)).sum())} pixels that are NaN or infinite")
    first = image[0].ravel()
    digest = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
    sample = first[np.linspace(0, first.size - 1, min(SAMPLE, first.size)).astype(int)]
    mean, sd = float(first.mean(dtype=np.float64)), float(first.std(dtype=np.float64))
    return Image(folder, image.shape[1:], len(image), float(first.min()), float(first.max()), mean, sd, digest, sample)


def _measure_label(path: Path, item: Item, volumetric: bool, any_size: bool) -> None:
    try:
        label = read_label(path, volumetric)
    except (UserError, OSError) as error:
        item.faults.append(("cannot be read or used", str(error)))
        return
    values, counts = np.unique(label, return_counts=True)
    if not (np.isin(values, np.arange(MOST_VALUES))).all():
        odd = [f"{value:g}" for value in values if value not in range(MOST_VALUES)]
        item.faults.append(("label that is no class number", f"{item.key} ({listing(odd, 5)})"))
        return
    item.pixels, item.label_size = np.zeros(MOST_VALUES, np.int64), label.shape
    item.pixels[values.astype(int)] = counts
    if item.images and item.size != label.shape and not any_size:
        item.faults.append(("label of another size than its image", f"{item.key} ({label.shape}, not {item.size})"))
