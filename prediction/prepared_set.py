"""A set to adapt to, of volumes that are prepared as nnU-Net prepares them: slices, or whole volumes.

    DEST/{train,val}/IMG/<patient>_<number>.npy   (C, W, H), all of one size: in the middle of zeros, as a window is
    DEST/{train,val}/IMG/<patient>.npy            (C, D, W, H), of a network of volumes
    DEST/manifest.csv, DEST/dataset.json          their spacing, and the card of the network's own set

The last patient is watched, the others are learnt from; of a single patient's slices every other one is watched.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from files.faults import Fault, VolumeFault
from files.pairing import Case
from files.reading import sha256
from prediction.nnunet_preparation import PlannedPreparation, PlannedVolume
from preprocess.new_set import refuse, refuse_existing, whole_folder, write_card
from processes.quoting import csv_text
from utils import atomic_write, counted

COLUMNS = ("split", "patient", "index", "spacing_slice", "spacing_w", "spacing_h", "source", "sha256")
STACKS = "stacks"  # folder of what is prepared until all sizes are known
TOOL = "prediction.prepared_set 1"


@dataclass(frozen=True)
class _Packed:
    """One patient's volume, (N, C, W, H) or (1, C, D, W, H), as it lies in a file."""

    patient: str
    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    sources: list[dict[str, str]]


def write_prepared_set(dest: Path, prepare: PlannedPreparation, cases: Sequence[Case]) -> dict[str, Any]:
    """Writes the set and returns its card. Raises UserError that lists the volumes that cannot be used."""
    refuse_existing(dest, "--out")
    card, name = prepare.recipe.card, prepare.recipe.image.folder
    is_3d = len(prepare.plan.window) == 3
    with whole_folder(dest) as made:
        (made / STACKS).mkdir(parents=True)
        packed, faults = _pack_all(made / STACKS, prepare, cases)
        refuse(faults, dest)
        rows = [*(_write_volumes if is_3d else _write_slices)(made, name, packed)]
        for each in packed:
            each.path.unlink()
        (made / STACKS).rmdir()
        _write_manifest(made, rows, "name" if is_3d else "slice")
        card = {**card, **_members(dest, rows, packed)}
        write_card(made, card)
    return card


def _pack_all(folder: Path, prepare: PlannedPreparation, cases: Sequence[Case]) -> tuple[list[_Packed], list[Fault]]:
    packed, faults = [], []
    for case in tqdm(cases, "preparing", unit="volume", disable=None):
        try:
            volume = prepare.read(case)
            sources = [_source(case.patient, role, path) for role, path in case.paths.items()]
        except VolumeFault as fault:
            faults.append(fault.fault)
            continue
        path = folder / f"{case.patient}.npy"
        np.save(path, volume.stored)
        packed.append(_Packed(case.patient, path, volume.stored.shape, _spacing(prepare, volume), sources))
    return packed, faults


def _source(patient: str, role: str, path: Path) -> dict[str, str]:
    return {"patient": patient, "role": role, "path": path.as_posix(), "sha256": sha256(path)}


def _spacing(prepare: PlannedPreparation, volume: PlannedVolume) -> tuple[float, ...]:
    return prepare.plan.spacing_for(volume.own_mm)


def _write_slices(made: Path, name: str, packed: Sequence[_Packed]) -> Iterator[tuple[str, str, str, int, _Packed]]:
    """Writes the slices; yields name, split, patient and number of each."""
    size = np.max([each.shape[2:] for each in packed], axis=0)
    for number, each in enumerate(packed):
        missing = size - each.shape[2:]
        margins = [(0, 0), *((more // 2, more - more // 2) for more in missing.tolist())]
        for index, image in enumerate(np.load(each.path, mmap_mode="r")):
            split = ("train", "val")[index % 2] if len(packed) == 1 else _split(number, packed)
            path = made / split / name / f"{each.patient}_{index}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.pad(image, margins))
            yield path.stem, split, each.patient, index, each


def _write_volumes(made: Path, name: str, packed: Sequence[_Packed]) -> Iterator[tuple[str, str, str, int, _Packed]]:
    """Writes the volumes; yields as `_write_slices` does."""
    for number, each in enumerate(packed):
        split = _split(number, packed)
        path = made / split / name / f"{each.patient}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.load(each.path, mmap_mode="r")[0])
        yield each.patient, split, each.patient, 0, each


def _split(number: int, packed: Sequence[_Packed]) -> str:
    return "val" if number == len(packed) - 1 else "train"


def _write_manifest(made: Path, rows: Sequence[tuple[str, str, str, int, _Packed]], key: str) -> None:
    with atomic_write(made / "manifest.csv", "w") as file:
        file.write(csv_text([(key, *COLUMNS)]))
        for name, split, patient, index, each in rows:
            source = [";".join(source[part] for source in each.sources) for part in ("path", "sha256")]
            file.write(csv_text([(name, split, patient, index, *each.spacing_mm, *source)]))


def _members(
    dest: Path, rows: Sequence[tuple[str, str, str, int, _Packed]], packed: Sequence[_Packed]
) -> Mapping[str, Any]:
    """What a card tells of the patients of its set."""
    split = {part: list(dict.fromkeys(row[2] for row in rows if row[1] == part)) for part in ("train", "val")}
    split = {part: patients for part, patients in split.items() if patients}
    return {
        "name": dest.name,
        "split_unit": "patient" if len(packed) > 1 else "slice blocks",
        "split": split,
        "counts": {
            part: {"patients": len(patients), "slices": sum(row[1] == part for row in rows), "slices_with_class": None}
            for part, patients in split.items()
        },
        "sources": [source for each in packed for source in each.sources],
        "uses_labels": None,
        "tool": TOOL,
    }


def describe(card: Mapping[str, Any]) -> str:
    """A line on the set for the screen."""
    parts = [
        f"{split} {counted(count['slices'], 'image')} of {counted(count['patients'], 'patient')}"
        for split, count in card["counts"].items()
    ]
    return f"{card['name']}: {'; '.join(parts)}, prepared as nnU-Net does"
