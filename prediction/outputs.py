"""The folder of predictions: which files a patient has, their labels, the table of sizes, what they were made with."""

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from files.foreign import read_json
from files.labels import LabelMap
from files.nifti_headers import write_nifti
from files.reading import read_grid, read_voxels
from files.segments import SEGMENTS, write_segments
from prediction.dicom_segments import DICOM_SEGMENTS, NOBODY, Maker, write_dicom_segments
from prediction.forms import PLAIN, SUFFIX, Form
from prediction.inference import Predicting, Prediction
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin, refuse_taken
from processes.quoting import csv_text, from_cell
from utils import atomic_write, listing

SEGMENTATIONS = {"nrrd": SEGMENTS, "dicom": DICOM_SEGMENTS}  # of --segments, all in one folder
# What is written next to the label maps -> the folder, and what its files end in.
MAPS = {"probabilities": ("probabilities", SUFFIX), "entropy": ("entropy", SUFFIX)}
MAPS |= {kind: ("segments", suffix) for kind, suffix in SEGMENTATIONS.items()}
MADE_WITH = "predict.json"
SIZES = "volumes.csv"
PROGRAM = "predict.py"
UNCOMPARED = {"weights", "volumes"}  # a path may be spelt in several ways; its digest tells
OF_SIZES = ("patient", "file", "class", "label", "voxels", "mm3")  # which are all columns of an older table
OF_QUALITY = ("expected", "low", "high", "note")  # Dice, and what is odd
COLUMNS = (*OF_SIZES, *OF_QUALITY)


@dataclass(frozen=True)
class Outputs:
    """Where predictions go.

    labels: class number -> what is written for it
    names: what the classes are called
    maker: who made them, as DICOM tells it
    """

    folder: Path
    labels: Mapping[int, int]
    predicting: Predicting
    names: Sequence[str] = ()
    form: Form = PLAIN
    maker: Maker = NOBODY

    def paths(self, patient: str) -> dict[str, Path]:
        """The files of a patient by kind. The label map is last, so that it is there when all of them are."""
        asked = {*self.predicting.segments, *(kind for kind in MAPS if getattr(self.predicting, kind, False))}
        maps = {
            kind: self.folder / folder / f"{patient}{suffix}"
            for kind, (folder, suffix) in MAPS.items()
            if kind in asked
        }
        return maps | {"classes": self.folder / self.form.place(patient)}

    def is_done(self, patient: str) -> bool:
        return all(path.exists() for path in self.paths(patient).values())

    def begin(self, made_with: Mapping[str, Any], volumes: Mapping[str, Any], overwrite: bool) -> None:
        """Makes the folder, notes what its predictions are made with, and of what: patient -> digests of the volumes.

        Raises UserError where it holds predictions that were made with something else, or of volumes that have changed,
        unless they may be overwritten; and for masks that were not made here, which never are.
        """
        refuse_foreign_outputs(self.folder)
        read_sizes(self.folder / SIZES)
        begin(self.folder, PROGRAM)
        with locked(self.folder, wait=True):
            path, made_with = self.folder / MADE_WITH, json.loads(json.dumps(made_with))
            old = _read(path, overwrite) if path.exists() else {}
            known = old.get("volumes", {})
            if old or not path.exists():  # a note that cannot be read, and is to be written again, lists nothing
                self._must_know(known, volumes)
            if path.exists() and not overwrite:
                self._must_be_the_same(old, made_with, volumes)
            with atomic_write(path, "w") as file:
                json.dump(made_with | {"volumes": {**known, **volumes}}, file, indent=1)
                file.write("\n")
            if self.names:
                self.form.write_notes(self.folder, {self.labels[k]: self.names[k] for k in sorted(self.labels)})

    def _must_know(self, noted: Mapping[str, Any], volumes: Iterable[str]) -> None:
        paths = [path for name in volumes if name not in noted for path in self.paths(name).values()]
        if foreign := [path.relative_to(self.folder).as_posix() for path in paths if os.path.lexists(path)]:
            raise UserError(
                f"{self.folder} holds files that have the names of masks, and predict.py did not make them "
                f"({MADE_WITH} does not list them): {listing(foreign)}. Move them away, or name another --out."
            )

    def _must_be_the_same(
        self, old: Mapping[str, Any], made_with: Mapping[str, Any], volumes: Mapping[str, Any]
    ) -> None:
        known = old.get("volumes", {})
        changed = [name for name in volumes if name in known and known[name] != volumes[name] and self.is_done(name)]
        if changed:
            raise UserError(
                f"{self.folder} holds predictions of {listing(changed)}, whose volumes have changed since. Name "
                "another --out, or give --overwrite."
            )
        compared = {*old, *made_with} - UNCOMPARED
        if other := sorted(key for key in compared if old.get(key) != made_with.get(key)):
            raise UserError(
                f"{self.folder} holds predictions that were made with something else ({listing(other)}; see "
                f"{self.folder / MADE_WITH}). Name another --out, or give --overwrite."
            )

    def write(self, patient: str, prediction: Prediction, volumes: Sequence[Path] = ()) -> None:
        """Writes the maps of a patient, the label map last, after what is told of it: the Dice is not expected again.

        volumes: those that were predicted. Raises VolumeFault for a series that a segmentation cannot refer to.
        """
        self._note(patient, prediction, joined(volumes))
        paths = self.paths(patient)
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        for kind, values in (("probabilities", prediction.probabilities), ("entropy", prediction.entropy)):
            if values is not None:
                write_nifti(paths[kind], values.astype(np.float32, copy=False), prediction.header)
        labels = self.as_labels(prediction.classes)
        if "nrrd" in paths:
            names = {self.labels[k]: self.names[k] for k in sorted(self.labels)[1:]}
            write_segments(paths["nrrd"], labels, prediction.header, names)
        if "dicom" in paths:
            write_dicom_segments(paths["dicom"], prediction.classes, volumes[0], self.names, self.maker)
        write_nifti(paths["classes"], labels, prediction.header)

    def as_labels(self, classes: np.ndarray) -> np.ndarray:
        """(X, Y, Z) class numbers -> (X, Y, Z) labels to be written, in the smallest type that holds them all."""
        values = [self.labels[k] for k in sorted(self.labels)]
        kind = next(kind for kind in (np.uint8, np.int16, np.int32) if _holds(kind, values))
        return np.array(values, kind)[classes]

    def _note(self, patient: str, prediction: Prediction, file: str) -> None:
        """Puts the lines of a patient into the table, so that they are there if the program is stopped."""
        path, found, rows = self.folder / SIZES, prediction.expected, []
        counts = np.bincount(prediction.classes.ravel(), minlength=len(self.labels))
        mm3 = prediction.grid.voxel_volume()
        for place, k in enumerate(sorted(self.labels)[1:]):
            cells = [values[0, place] for values in (found.expected, found.low, found.high)] if found else [np.nan] * 3
            numbers = ["" if np.isnan(cell) else f"{cell:.4f}" for cell in cells]
            sizes = (k, self.labels[k], int(counts[k]), f"{counts[k] * mm3:.6g}")
            rows.append((patient, file, *sizes, *numbers, found.notes[0][place] if found else ""))
        with locked(self.folder, wait=True):
            self._write_table(path, [*(row for row in read_sizes(path) if row[0] != patient), *rows])

    def rows(self) -> list[tuple[str, ...]]:
        """The lines of the table of sizes, of this call and others."""
        return read_sizes(self.folder / SIZES)

    def expected(self, patients: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Of those patients of whom the table tells it: names, expected Dice (P, F) and its low end (P, F)."""
        of_class: dict[str, list[list[float]]] = {}
        for row in self.rows():
            if row[0] in patients and any(row[len(OF_SIZES) :]):
                cells = row[len(OF_SIZES) : len(OF_SIZES) + 2]
                of_class.setdefault(row[0], []).append([float(cell) if cell else np.nan for cell in cells])
        numbers = np.full((len(of_class), len(self.labels) - 1, 2), np.nan)
        for place, cells in enumerate(of_class.values()):
            numbers[place, : len(cells)] = cells[: numbers.shape[1]]
        return list(of_class), numbers[..., 0], numbers[..., 1]

    def write_sizes(self, files: Mapping[str, str], mm3: Mapping[str, float]) -> Path:
        """Writes a line for each class from 1 of every patient who has a label map.

        The lines of other patients, of another call, stay while their label maps do.

        files: patient -> its volumes
        mm3: patient -> of a voxel, where the label map does not tell it
        """
        path = self.folder / SIZES
        with locked(self.folder, wait=True):
            before = read_sizes(path)
            noted = {(row[0], row[OF_SIZES.index("class")]): row[len(OF_SIZES) :] for row in before}
            sizes = [row for patient in files for row in self._sizes(patient, files[patient], mm3.get(patient))]
            nothing = ("",) * len(OF_QUALITY)
            rows = [(*row, *noted.get((row[0], str(row[OF_SIZES.index("class")])), nothing)) for row in sizes]
            rows += [row for row in before if row[0] not in files and self.paths(row[0])["classes"].exists()]
            self._write_table(path, rows)
        return path

    def _write_table(self, path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
        with atomic_write(path, "w") as file:
            file.write(csv_text([COLUMNS, *sorted(rows, key=lambda row: row[0])]))

    def _sizes(self, patient: str, file: str, mm3: float | None) -> Iterable[tuple[Any, ...]]:
        path = self.paths(patient)["classes"]
        if not path.exists():
            return
        voxels, mm3 = read_voxels(path), mm3 or read_grid(path).voxel_volume()
        for k in sorted(self.labels)[1:]:
            count = int((voxels == self.labels[k]).sum())
            yield patient, file, k, self.labels[k], count, f"{count * mm3:.6g}"


def joined(volumes: Iterable[Path]) -> str:
    """The files of a patient, as the table of sizes shows them."""
    return ";".join(path.as_posix() for path in volumes)


def _read(path: Path, overwrite: bool) -> dict[str, Any]:
    """The note in a folder of predictions. If it is to be written again, what can be read of it."""
    try:
        note = read_json(path, "name another --out, or give --overwrite, which writes it anew")
        if not isinstance(note.get("volumes", {}), dict):
            raise UserError(f"{path} tells of no volumes, by name. Name another --out, or give --overwrite.")
        return note
    except UserError:
        if not overwrite:
            raise
        return {}


def refuse_foreign_outputs(folder: Path) -> None:
    """Raises UserError for a folder that holds anything but predictions, and for a file."""
    refuse_taken(folder, PROGRAM, "--out", MADE_WITH)


def read_sizes(path: Path) -> list[tuple[str, ...]]:
    """The lines of a table of sizes, none where it is not there. Raises UserError for a table that was changed."""
    if not os.path.lexists(path):
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [tuple(map(from_cell, row)) for row in csv.reader(file)]
    except (ValueError, csv.Error):
        rows = []
    if rows[:1] == [OF_SIZES] and all(len(row) == len(OF_SIZES) for row in rows):
        rows = [(*row, *[""] * len(OF_QUALITY)) for row in rows]
        rows[0] = COLUMNS
    if rows[:1] != [COLUMNS] or any(len(row) != len(COLUMNS) or not _tells_dice(row) for row in rows[1:]):
        raise UserError(
            f"{path} is not as predict.py left it (columns {', '.join(COLUMNS)}), and would be written anew: move it "
            "away, and the sizes of the patients of this call are put into a new one."
        )
    return rows[1:]


def _tells_dice(row: Sequence[str]) -> bool:
    """Whether the cells with a Dice are empty or a number."""
    try:
        return all(0 <= float(cell) <= 1 for cell in row[len(OF_SIZES) : -1] if cell)
    except ValueError:
        return False


def _holds(kind: type, values: Iterable[int]) -> bool:
    return all(np.iinfo(kind).min <= value <= np.iinfo(kind).max for value in values)


def labels_of(card: Mapping[str, Any], n_class: int, original: bool) -> dict[int, int]:
    """Class -> what is written for it: its number, or the label that it has in the volumes of the set.

    Of several labels that became one class the lowest. Raises UserError for a class that no label became.
    """
    if not original or not card.get("label_map"):
        return {k: k for k in range(n_class)}
    mapping = LabelMap({int(label): k for label, k in card["label_map"].items()})
    known = {0, *mapping.classes}
    labels = {k: min(label for label in known if mapping.class_of(label) == k) for k in _classes_of(mapping)}
    if nameless := [k for k in range(n_class) if k not in labels]:
        raise UserError(
            f"--label_values original: of class {listing(nameless)} the set tells no label (--label_map "
            f"{card['label_map']}, all others {card['other_labels']}); leave it out, to get class numbers."
        )
    return labels


def _classes_of(mapping: LabelMap) -> set[int]:
    """The classes that any label has."""
    return {k for k in (mapping.class_of(label) for label in {0, *mapping.classes}) if k is not None}
