"""The slices of a set measured: their area, the pixels of each class in them, the size of a pixel."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.files import SPLITS, label_fault
from datasets.set_tables import SPACINGS, read_card, spacing_of_names
from files.decoding import read_slice
from files.listing import SUFFIXES, look_into, stem, tell_foreign
from processes.errors import UserError
from utils import about_faulty, counted, listing, whole


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
    card = read_card(root)
    paths, axes = find_slices(root, folder, splits), 3 if card.get("volumetric") else 2

    def measure(path: Path) -> tuple[int, np.ndarray | None] | str:
        try:
            return _measure(path, n_class, axes, card.get("ignore"))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(measure, paths), "sizes", len(paths), disable=None, unit="slice"))
    faults = [fault for fault in found if isinstance(fault, str)]
    if faults:
        raise UserError(f"{root}, {folder}: {about_faulty(faults)}")
    names = [stem(path.name) for path in paths]
    columns = SPACINGS if axes == 3 else SPACINGS[1:]
    told = spacing_of_names(root, names, columns)
    spacing = None if told is None else np.array([told[name] for name in names])
    area = np.array([pixels for pixels, _ in found])
    counts = None if n_class is None else np.stack([sizes for _, sizes in found])
    return Slices(root, names, area, counts, spacing, axes)


def find_slices(root: Path, folder: str, splits: Sequence[str]) -> list[Path]:
    folders = [root / split / folder for split in splits]
    lost = [place for place in folders if place.parent.is_dir() and not place.is_dir()]
    if lost:
        raise UserError(
            f"Every split needs its {folder} folder; there is no {listing(lost)}. Mend --data or --folder; where the "
            "set has no labels, give its images: --folder IMG --unlabelled."
        )
    found = look_into(place for place in folders if place.is_dir())
    for each in found:
        tell_foreign(each)
    paths = [Path(path) for each in found for path in sorted(file.path for file in each.files.values())]
    if not paths:
        raise UserError(
            f"There is no slice ({', '.join(SUFFIXES)}) in {listing(folders)}. Mend --data and --folder; where the "
            "set has no labels, give its images: --folder IMG --unlabelled."
            + "".join(f" {each.about_foreign}." for each in found if each.foreign)
        )
    home: dict[str, list[Path]] = {}
    for path in paths:
        home.setdefault(stem(path.name), []).append(path)
    twice = [f"{same[0]} and {same[1]}" for same in home.values() if len(same) > 1]
    if twice:
        raise UserError(
            f"{counted(len(twice), 'slice')} there twice, and the csv knows them by name alone: {listing(twice, 5)}."
        )
    return paths


def _measure(path: Path, n_class: int | None, axes: int, ignore: int | None) -> tuple[int, np.ndarray | None]:
    """Pixels of a slice, or voxels of a volume, and (K,) those of each class; a label to ignore counts nowhere.

    Raises UserError.
    """
    pixels = _read_voxels(path) if axes == 3 else read_slice(path, is_image=n_class is None)
    if n_class is None:
        return int(np.prod(pixels.shape[-axes:])), None
    if fault := label_fault(pixels, n_class, ignore, axes):
        raise UserError(f"{path} {fault}")
    return pixels.size, np.bincount(whole(pixels).astype(np.int64).ravel(), minlength=n_class)[:n_class]


def _read_voxels(path: Path) -> np.ndarray:
    """(D, W, H) or (C, D, W, H) of a volume. Raises UserError."""
    from datasets.volume_files import read_volume  # here, as it brings torch, which slices do without

    voxels = read_volume(path)[0]
    return voxels[0] if voxels.ndim == 4 and len(voxels) == 1 else voxels
