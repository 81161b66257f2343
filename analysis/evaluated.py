"""What `python -m study.evaluate` made of a finished run, read back: scores of calibration, and scans for a viewer.

It lies beside the run, in evaluated/<run>, and never in the run's own folder, which holds what main.py made:

    calibration.csv  a row a network, patient (or 'all'), class and region; written last, so where it is, all is there
    reliability.csv  a row a network, class, region and bin, of all patients together
    scans/<patient>.npz  a patient's volume, the truth and what the network makes of it, for a viewer
    evaluated.json   what they were made of
"""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.calibration.scores import SCORES
from analysis.run import number_in
from files.foreign import read_json, reading
from processes.errors import UserError
from processes.quoting import for_shell, from_cell

FOLDER = "evaluated"
CALIBRATION, RELIABILITY, SCANS, NOTE = "calibration.csv", "reliability.csv", "scans", "evaluated.json"
EVERYONE = "all"  # in the place of a patient: the pixels of all patients together
REGIONS = ("image", "band")
UNITS = ("mm", "pixels")  # of the width of a band
TEMPERED = ", tempered"  # behind the name of a network: at the temperature that was fitted without labels
CHECKED = ("image", "truth", "mask", "entropy")


COLUMNS: dict[str, Callable[[str], Any]] = {"which": str, "patient": str, "class": int, "region": str}
COLUMNS |= dict.fromkeys(SCORES, number_in) | {"n": int, "temperature": number_in}
CURVE: dict[str, Callable[[str], Any]] = {"which": str, "class": int, "region": str, "bin": int}
CURVE |= {"confidence": number_in, "frequency": number_in, "n": int}


def evaluated_folder(run: Path) -> Path:
    """Where the evaluation of the run in this folder lies."""
    run = run.resolve()
    return run.parent / FOLDER / run.name


def is_evaluated(run: Path) -> bool:
    """Whether it is there, and whole."""
    return (evaluated_folder(run) / CALIBRATION).is_file()


def read_calibration(folder: Path) -> pd.DataFrame:
    """The columns COLUMNS: scores of each network, patient (or EVERYONE), class and region; NaN where there is none."""
    return _table(folder, CALIBRATION, COLUMNS)


def read_reliability(folder: Path) -> pd.DataFrame:
    """The columns CURVE: mean probability and share of the class in each bin of each network, class and region."""
    return _table(folder, RELIABILITY, CURVE)


def read_note(folder: Path) -> dict[str, Any]:
    """What the evaluation was made of; "unit" is that of the band's width, mm or pixels."""
    path, cure = _there(folder, folder / NOTE), _cure(folder)
    note = read_json(path, cure)
    if note.get("unit") not in UNITS:
        raise UserError(f"{path} does not tell the unit of the band, {' or '.join(UNITS)}; {cure}.")
    return note


def _table(folder: Path, name: str, columns: Mapping[str, Callable[[str], Any]]) -> pd.DataFrame:
    path, cure = _there(folder, folder / name), _cure(folder)
    with reading(path, cure):
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        read = [{column: make(from_cell(row[column])) for column, make in columns.items()} for row in rows]
    if not read:
        raise UserError(f"{path} has no row in it; {cure}.")
    return pd.DataFrame(read)


def _there(folder: Path, path: Path) -> Path:
    """The path of a file of an evaluation. Raises UserError where it is not there."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {_cure(folder)}.")
    return path


def _cure(folder: Path) -> str:
    return f"evaluate the run (again): python -m study.evaluate --run {for_shell(folder.parent.parent / folder.name)}"


@dataclass(frozen=True)
class Scan:
    """One patient, cut round what truth and mask give a class.

    image, truth, mask, entropy  (D, W, H) uint8: grey levels, classes, classes, and 255 where all are equally likely
    spacing  (3,) mm along D, W and H, 1 where it is not known
    corner, size  (3,) where the cut begins in the whole volume, and how large that is
    which    the network: last or chosen
    """

    image: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    entropy: np.ndarray
    spacing: np.ndarray
    corner: np.ndarray
    size: np.ndarray
    which: str


def scan_path(folder: Path, patient: str) -> Path:
    """The scan of a patient in an evaluation's folder."""
    return folder / SCANS / f"{patient}.npz"


def read_scan(folder: Path, patient: str) -> Scan:
    """Raises UserError where it is missing, or is none."""
    path, cure = _there(folder, scan_path(folder, patient)), _cure(folder)
    with reading(path, cure), np.load(path, allow_pickle=False) as held:
        scan = Scan(
            **{name: held[name] for name in Scan.__dataclass_fields__ if name != "which"}, which=str(held["which"])
        )
        volumes = [getattr(scan, name) for name in CHECKED]
        if {each.shape for each in volumes} != {scan.image.shape} or scan.image.ndim != 3:
            raise ValueError("its volumes are not of one shape (D, W, H)")
        if any(each.dtype != np.uint8 for each in volumes):
            raise ValueError("its volumes are no bytes")
        if any(each.shape != (3,) for each in (scan.spacing, scan.corner, scan.size)):
            raise ValueError("spacing, corner and size are not of three axes")
    return scan
