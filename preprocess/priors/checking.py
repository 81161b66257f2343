"""How far every column of a size csv is from the truth, where truth exists: ratios of sizes, and their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.size_table import HIGH, ID_COLUMN, LOW, TRUE_SIZES, SizeTable, names_of_columns, read_size_table
from processes.errors import UserError
from processes.quoting import csv_text


@dataclass(frozen=True)
class Error:
    """How far a column is from the truth for one class; all sizes are sums over slices.

    ratio     size of the prior by the true one, over all slices; NaN where the truth has none
    mean      mean of that ratio over the patients who have the class
    worst     the patient for whom it is farthest from 1 (as a factor), and `worst_ratio` there
    low, high the ends of the column's interval by the true size; NaN without an interval
    """

    column: str
    k: int
    ratio: float
    mean: float
    worst: str
    worst_ratio: float
    low: float
    high: float

    @property
    def held(self) -> bool | None:
        """Whether the interval holds the true size; None without an interval."""
        return None if np.isnan(self.low) else self.low <= 1 <= self.high

    def cells(self) -> list[str]:
        numbers = (self.ratio, self.mean, self.worst_ratio, self.low, self.high)
        ratio, mean, worst, low, high = ("" if np.isnan(each) else f"{each:.3f}" for each in numbers)
        held = {None: "", True: "yes", False: "no"}[self.held]
        return [self.column, str(self.k), ratio, mean, self.worst, worst, low, high, held]


HEADER = ["column", "class", "prior/truth", "mean", "worst patient", "there", "low", "high", "held"]


def columns_in(path: Path) -> list[str]:
    """The names of the columns of priors in a size csv: not the slices' names, the truth, or ends of intervals."""
    kept = [name for name in names_of_columns(path) if name not in (ID_COLUMN, TRUE_SIZES, "")]
    return [name for name in kept if name not in {other + end for other in kept for end in (LOW, HIGH)}]


def errors_of(path: Path, columns: Sequence[str], truth: SizeTable, patients: Mapping[str, str]) -> Iterator[Error]:
    """The errors of each column and foreground class. Raises UserError where no slice has both.

    patients: of each slice of the truth
    """
    n_class = len(next(iter(truth.sizes.values())))
    for column in columns:
        table = read_size_table(path, column, n_class)
        names = [name for name in table.sizes if name not in table.skipped and name in truth.sizes]
        if not names:
            raise UserError(f"{path}, '{column}': no slice has a size here and a true one in {truth.path}.")
        prior, true = (_by_patient(each, names, patients) for each in (table, truth))
        every = sorted(dict.fromkeys(patients[name] for name in names))
        low, high = _interval(path, column, names, n_class)
        for k in range(1, n_class):
            ratios = np.array([_by(prior[each][k], true[each][k]) for each in every])
            known = np.isfinite(ratios)
            total = sum(true[each][k] for each in every)
            far = np.where(known, np.abs(np.log(np.maximum(ratios, 1e-9), where=known, out=np.zeros(len(every)))), -1)
            worst = int(far.argmax())
            yield Error(
                column,
                k,
                _by(sum(prior[each][k] for each in every), total),
                float(ratios[known].mean()) if known.any() else np.nan,
                every[worst] if known.any() else "",
                float(ratios[worst]),
                _by(low[k], total),
                _by(high[k], total),
            )


def _by(size: float, true: float) -> float:
    return float(size / true) if true > 0 else np.nan


def _by_patient(table: SizeTable, names: Sequence[str], patients: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Patient -> (K,) pixels in these slices."""
    found: dict[str, np.ndarray] = {}
    for name in names:
        found[patients[name]] = found.get(patients[name], 0) + table[name]
    return found


def _interval(path: Path, column: str, names: Sequence[str], n_class: int) -> tuple[np.ndarray, np.ndarray]:
    """(K,) pixels in these slices at the lower and the upper end; NaN where the csv has no interval."""
    if not {column + LOW, column + HIGH} <= set(names_of_columns(path)):
        return np.full(n_class, np.nan), np.full(n_class, np.nan)
    ends = [read_size_table(path, column + end, n_class) for end in (LOW, HIGH)]
    low, high = (np.sum([end[name] for name in names], axis=0) for end in ends)
    return low, high


def in_lines(errors: Sequence[Error]) -> Iterator[str]:
    """A table for a reader."""
    rows = [HEADER, *(each.cells() for each in errors)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = zip(row, widths, strict=True)
        yield "  ".join(f"{word:<{width}}" if not n else f"{word:>{width}}" for n, (word, width) in enumerate(words))


def as_csv(errors: Sequence[Error]) -> str:
    return csv_text([HEADER, *(each.cells() for each in errors)])
