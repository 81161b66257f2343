"""What a stress test of a network found, read back from its stress.csv: the Dice of each shift at each severity."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.tables.table import NOTHING, aligned, boxed, number
from files.foreign import reading
from metrics import DISTANCES, SCORES, average_classes, summarise
from processes.quoting import csv_text, from_cell
from utils import counted

Kind = tuple[str, int]  # acquisition and severity
Cells = Sequence[Sequence[Any]]  # rows of the table, without their first two cells
UNDISTURBED: Kind = ("undisturbed", 0)
FIRST = ["shift", "severity", "patient", "class"]


@dataclass(frozen=True)
class StressTable:
    """The rows of stress.csv by shift and severity. The columns after these are those of patients_last.csv."""

    columns: Sequence[str]
    rows: Mapping[Kind, Cells]

    def text(self, order: Iterable[Kind]) -> str:
        """The csv, in this order, whichever row was found first."""
        kinds = [kind for kind in order if kind in self.rows]
        return csv_text([self.columns, *([*kind, *cells] for kind in kinds for cells in self.rows[kind])])

    def whole(self, patients: Sequence[str], n_class: int) -> "StressTable":
        """Without the shifts whose rows are not those of all these patients and classes."""
        due = [(patient, str(k)) for patient in patients for k in range(1, n_class)]
        kept = {kind: rows for kind, rows in self.rows.items() if [(row[0], row[1]) for row in rows] == due}
        return StressTable(self.columns, kept)

    def dice(self, kind: Kind, axis: Sequence[int]) -> dict[str, float]:
        """Patient -> Dice, the mean over the classes of the axis; NaN where a patient has none."""
        return {row["patient"]: row["dice"] for row in self._averages(kind, axis)}

    def mean(self, kind: Kind, axis: Sequence[int]) -> float:
        """The mean Dice over patients, as a report gives it."""
        return summarise(self._averages(kind, axis), "dice")["mean"]

    def _averages(self, kind: Kind, axis: Sequence[int]) -> list[dict[str, Any]]:
        names = [re.sub("_(mm|vox)$", "", name) for name in self.columns[2:]]
        rows = [dict(zip(names, cells, strict=True)) for cells in self.rows[kind]]
        scores = (*SCORES, "diagonal")
        rows = [row | {name: float(row[name] if row[name] != "" else "nan") for name in scores} for row in rows]
        return average_classes(row for row in rows if int(row["class"]) in axis)


def read_stress(path: Path, columns: Sequence[str]) -> StressTable:
    """The table of a stress.csv. Raises UserError where it is not as it was written."""
    rows: dict[Kind, list[list[str]]] = {}
    cure = "remove it, and its shifts are predicted anew"
    with reading(path, cure):
        header, *lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        if header != list(columns) or any(len(line) != len(columns) for line in lines):
            raise ValueError(f"its columns are not {', '.join(columns)}")
        for line in lines:
            shift, severity, *cells = map(from_cell, line)
            named = dict(zip(columns[2:], cells, strict=True))
            int(named["class"]), [float(named[name] or "nan") for name in ("dice", *_in_unit(columns))]
            rows.setdefault((shift, int(severity)), []).append(cells)
    return StressTable(columns, rows)


def _in_unit(columns: Sequence[str]) -> list[str]:
    """The columns of the distances."""
    return [name for name in columns if name.split("_")[0] in (*DISTANCES, "diagonal")]


# ------------------------------------------------------------------------------------------------ in words


def by_loss(table: StressTable, axis: Sequence[int]) -> dict[str, dict[int, float]]:
    """Shift -> severity -> mean Dice; the shift first that costs most at its worst severity."""
    found: dict[str, dict[int, float]] = {}
    for shift, severity in table.rows:
        if (shift, severity) != UNDISTURBED:
            found.setdefault(shift, {})[severity] = table.mean((shift, severity), axis)
    ordered = {shift: dict(sorted(means.items())) for shift, means in found.items()}
    return dict(sorted(ordered.items(), key=lambda item: _least(item[1].values())))


def _least(means: Iterable[float]) -> float:
    known = [mean for mean in means if np.isfinite(mean)]
    return min(known, default=np.inf)


def stress_text(table: StressTable, axis: Sequence[int], title: str, warnings: Sequence[str]) -> str:
    """A line a shift, the worst one first: the mean Dice at each severity, and what is lost against undisturbed."""
    home, means = table.mean(UNDISTURBED, axis), by_loss(table, axis)
    severities = sorted({severity for of_shift in means.values() for severity in of_shift})
    header = ["shift", *(f"severity {severity}" for severity in severities)]
    rows = [[shift, *(_cell(of_shift.get(s), home) for s in severities)] for shift, of_shift in means.items()]
    patients = counted(len(table.dice(UNDISTURBED, axis)), "patient")
    about = f"Dice, mean over {patients}; behind it what it lost or gained. Undisturbed: {number(home)}."
    return "\n".join([title, *boxed(warnings), "", about, "", *aligned(header, rows)])


def _cell(mean: float | None, home: float) -> str:
    if mean is None or not np.isfinite(mean):
        return NOTHING
    return f"{mean:.3f} {mean - home:+.3f}"
