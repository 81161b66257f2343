"""The slices of a set measured: their area, the pixels of each class in them, the size of a pixel."""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slice_files import SPLITS, SUFFIXES, read_card, read_slice, stem
from utils import UserError, listing

SPACINGS = ("spacing_slice", "spacing_w", "spacing_h")


@dataclass(frozen=True)
class Slices:
    """The slices of some splits of a set: names (N), pixels of the whole slice (N,), pixels per class (N,K) or None."""

    root: Path
    names: list[str]
    area: np.ndarray
    counts: np.ndarray | None
    spacing: np.ndarray | None  # (N, 2) mm, of volumes (N, 3)
    axes: int = 2  # 3 of volumes

    def pixel_mm(self) -> np.ndarray:
        """(N,) mm² of a pixel, or mm³ of a voxel. Raises UserError without a manifest."""
        if self.spacing is None:
            raise UserError(
                f"Sizes in mm need the pixel spacing, and there is no {self.root / 'manifest.csv'}: slice the volumes "
                "with the project's slicer, or give the sizes in pixels (--constant)."
            )
        return self.spacing.prod(axis=1)


def measure_slices(root: Path, folder: str, n_class: int | None, splits: Sequence[str] = SPLITS) -> Slices:
    """Counts the pixels of each class in every label of the splits; `n_class` None: images, measured only in area.

    Raises UserError that lists the offenders: no such folder, a slice in two splits, an unreadable file, a label
    outside 0..K-1.
    """
    paths, axes = find_slices(root, folder, splits), 3 if read_card(root).get("volumetric") else 2

    def measure(path: Path) -> tuple[int, np.ndarray | None] | str:
        try:
            pixels = read_slice(path)
            return int(np.prod(pixels.shape[-axes:])), None if n_class is None else _count(pixels, n_class, axes)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"{path} {error}"

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(measure, paths), "sizes", len(paths), disable=None, unit="slice"))
    faults = [fault for fault in found if isinstance(fault, str)]
    if faults:
        raise UserError(f"{root}: {len(faults)} faulty files in {folder}: {listing(faults, 8)}")
    names = [stem(path.name) for path in paths]
    area = np.array([pixels for pixels, _ in found])
    counts = None if n_class is None else np.stack([sizes for _, sizes in found])
    return Slices(root, names, area, counts, read_spacing(root, names, axes), axes)


def find_slices(root: Path, folder: str, splits: Sequence[str]) -> list[Path]:
    folders = [root / split / folder for split in splits]
    lost = [place for place in folders if place.parent.is_dir() and not place.is_dir()]
    if lost:
        raise UserError(
            f"Every split needs its {folder} folder; there is no {listing(lost)}. Mend --data or --folder; where the "
            "set has no labels, give its images: --folder IMG --unlabelled."
        )
    paths = [path for place in folders if place.is_dir() for path in sorted(place.iterdir())]
    paths = [path for path in paths if path.name.endswith(SUFFIXES) and not path.name.startswith(".")]
    if not paths:
        raise UserError(
            f"There is no slice ({', '.join(SUFFIXES)}) in {listing(folders)}. Mend --data and --folder; where the "
            "set has no labels, give its images: --folder IMG --unlabelled."
        )
    home: dict[str, list[Path]] = {}
    for path in paths:
        home.setdefault(stem(path.name), []).append(path)
    twice = [f"{same[0]} and {same[1]}" for same in home.values() if len(same) > 1]
    if twice:
        raise UserError(f"{len(twice)} slices are there twice, the csv knows them by name alone: {listing(twice, 5)}.")
    return paths


def _count(label: np.ndarray, n_class: int, axes: int = 2) -> np.ndarray:
    """(W,H) or (D,W,H) class numbers -> (K,) pixels. Raises ValueError in words that follow the file's name."""
    if label.ndim != axes:
        raise ValueError(f"has shape {label.shape}, not the {'(D, W, H)' if axes == 3 else '(W, H)'} of a label map")
    values, counts = np.unique(label, return_counts=True)
    outside = [f"{value:g}" for value in values if value not in range(n_class)]
    if outside:
        raise ValueError(f"holds the labels {listing(outside)}, outside 0..{n_class - 1} (--n_class {n_class})")
    sizes = np.zeros(n_class, np.int64)
    sizes[values.astype(np.int64)] = counts
    return sizes


def read_spacing(root: Path, names: Sequence[str], axes: int = 2) -> np.ndarray | None:
    """(N, axes) mm from manifest.csv: spacing_w, spacing_h, and of volumes spacing_slice; None where there is none."""
    path = root / "manifest.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            name, columns = ("name", SPACINGS) if axes == 3 else ("slice", SPACINGS[1:])
            rows = {stem(row[name]): [float(row[column]) for column in columns] for row in csv.DictReader(file)}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: expected numbers in {' and '.join(columns)} ({error!r}).") from error
    lost = [name for name in names if name not in rows or not all(0 < mm < np.inf for mm in rows[name])]
    if lost:
        raise UserError(
            f"{path} has no row with a spacing above 0 for {len(lost)} of {len(names)} slices: {listing(lost)}. "
            "Remove it, or slice the set again."
        )
    return np.array([rows[name] for name in names])
