"""What was expected of a run's masks without labels, held against the Dice that labels reveal afterwards."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from analysis.run import AGAIN, Run
from files.foreign import reading
from files.run_names import EXPECTED, PATIENTS
from processes.quoting import from_cell

NUMBERS = ("expected", "low", "high")


@dataclass(frozen=True)
class Revealed:
    """Of N patients and classes that have both: expected Dice, the interval's ends, the real Dice; whose each is."""

    patients: Sequence[str]
    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray
    real: np.ndarray

    def by_patient(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) expected and real Dice of each patient, means over its classes."""
        _, at = np.unique(self.patients, return_inverse=True)
        counts = np.bincount(at)
        return np.bincount(at, self.expected) / counts, np.bincount(at, self.real) / counts

    def words(self) -> str:
        """What it comes to, in one line."""
        if not len(self.real):
            return "no patient has an expected and a real Dice"
        expected, real = self.by_patient()
        off = self.expected - self.real
        within = int(((self.low <= self.real + 1e-4) & (self.real - 1e-4 <= self.high)).sum())
        areas = [area(selective_risk(order, 1 - real)) for order in (expected, real)]
        return (
            f"expected Dice is off by {np.abs(off).mean():.3f} (mean {off.mean():+.3f}), {within} of {len(off)} within "
            f"the interval; rank correlation {rank_correlation(expected, real):.2f}; area under risk and coverage "
            f"{areas[0]:.3f} (by truth {areas[1]:.3f}, by chance {(1 - real).mean():.3f})"
        )


def revealed(run: Run) -> Revealed | None:
    """Both of a run; None where nothing was expected of it.

    Raises UserError for a table that is broken, and for a run that was evaluated without ground truth.
    """
    path = run.folder / EXPECTED
    if not path.is_file():
        return None
    with reading(path, AGAIN):
        rows = [_numbers(row) for row in csv.DictReader(io.StringIO(run.text(EXPECTED), newline=""), strict=True)]
    which = rows[0]["network"] if rows else "last"
    real = {(row["patient"], row["class"]): row["dice"] for row in run.patients(which)}
    axis, kept = run.metric_axis, []
    for row in rows:
        dice = real.get((row["patient"], row["class"]), np.nan)
        if row["class"] in axis and np.isfinite([row["expected"], dice]).all():
            kept.append((row["patient"], *(row[name] for name in NUMBERS), dice))
    columns = np.array([numbers for _, *numbers in kept]).reshape(len(kept), len(NUMBERS) + 1).T
    return Revealed([patient for patient, *_ in kept], *columns)


def _numbers(row: Mapping[str, str]) -> dict[str, Any]:
    """A line of the table; raises ValueError or KeyError for one that was not written by a run."""
    cells = {name: float(row[name]) if row[name] else np.nan for name in NUMBERS}
    if any(not 0 <= cell <= 1 for cell in cells.values() if np.isfinite(cell)) or row["network"] not in PATIENTS:
        raise ValueError("a Dice is no number from 0 to 1, or a network is none of a run")
    return {"patient": from_cell(row["patient"]), "class": int(row["class"]), "network": row["network"]} | cells


def selective_risk(trust: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """(P,) mean risk of the patients that are trusted most, 1 to P of them; of equally trusted ones, any."""
    order = np.argsort(-trust, kind="stable")
    _, at = np.unique(trust[order], return_inverse=True)
    of_equals = (np.bincount(at, risk[order]) / np.bincount(at))[at]
    return np.cumsum(of_equals) / np.arange(1, len(risk) + 1)


def area(curve: np.ndarray) -> float:
    """Area under risk and coverage (Geifman and El-Yaniv, NeurIPS 2017): the mean of a curve of `selective_risk`."""
    return float(curve.mean())


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, equal ones with their mean rank; NaN where either is constant."""
    return float(spearmanr(first, second).statistic) if np.ptp(first) and np.ptp(second) else float("nan")
