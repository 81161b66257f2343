"""Every site as source, every site as target: what a network of each is worth at each other, adapted and as it came.

The runs of a pair lie in FOLDER/<source>/<target>/seed<seed>/<row>. Where source and target are one site, there is the
source network on its own validation patients, `lower`. The run <row>_back of a pair is the network that <row> chose,
back on the validation patients of its source: what it has forgotten.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from analysis.plots.canvas import STYLE, make_grid, save
from analysis.plots.squares import draw_square
from analysis.run import Run
from analysis.statistics.intervals import Interval, paired_interval
from analysis.tables.choice import choice_notes
from analysis.tables.facts import warnings_of
from analysis.tables.table import NOTHING, Report, number
from processes.errors import UserError
from processes.quoting import for_chart
from study.asking import Asked
from study.reading import Study, open_study
from study.report import write_texts
from study.tables.words import ends_of, missing_lines
from utils import counted, listing

NAME, BACK = "matrix", "_back"
Pair = tuple[str, str]  # the source, the target
Square = Mapping[Pair, float]


@dataclass(frozen=True)
class Matrix:
    """What is there of a matrix.

    rows      runs of each pair, the first of them the source network as it came
    studies   the runs of each pair, over its seeds
    """

    name: str
    folder: Path
    sites: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    studies: Mapping[Pair, Study]

    @property
    def lower(self) -> str:
        return self.rows[0]

    @property
    def runs(self) -> list[Run]:
        return [run for study in self.studies.values() for run in study.runs.values()]

    @property
    def faults(self) -> list[str]:
        """A line each: a run that is missing, broken, or scored on other patients than those beside it."""
        found = {f"{source} to {target}": study.faults for (source, target), study in self.studies.items()}
        return [f"{pair}, {fault}" for pair, faults in found.items() for fault in faults]

    def table(self, row: str, pair: Pair) -> pd.DataFrame | None:
        """(patients, seeds) Dice, or IoU, of what the row chose; None where no run of it is there."""
        return self.studies[pair].chosen(row)

    def interval(self, row: str, pair: Pair) -> Interval | None:
        """The mean of that table, for other patients and seeds."""
        study = self.studies[pair]
        return None if self.table(row, pair) is None else study.interval(row, study.score)

    def means(self, row: str) -> Square:
        """The mean of each pair that has a run of the row."""
        found = {pair: self.interval(row, pair) for pair in self.studies}
        return {pair: interval.mean for pair, interval in found.items() if interval}

    def gain(self, row: str, pair: Pair) -> Interval | None:
        """What the row adds to the source network as it came, of the patients and seeds of both."""
        return _difference(self.table(row, pair), self.table(self.lower, pair))

    def forgotten(self, row: str, pair: Pair) -> Interval | None:
        """What the network that the row chose lacks on its source's own patients, against the source network there."""
        source, _ = pair
        return _difference(self.table(self.lower, (source, source)), self.table(row + BACK, pair))


def _difference(first: pd.DataFrame | None, second: pd.DataFrame | None) -> Interval | None:
    """Of the patients and seeds of both tables."""
    return None if first is None or second is None else paired_interval(*first.align(second))


def open_matrix(folder: Path, name: str, sites: Sequence[str], rows: Sequence[str], seeds: Sequence[int]) -> Matrix:
    """Reads the runs of every pair. Raises UserError where there is none at all, or fewer than two sites."""
    if len(set(sites)) < 2:
        raise UserError(f"A matrix has at least two different sites; named are: {listing(sites) or 'none'}.")
    rows = tuple(dict.fromkeys(rows))
    studies = {}
    for source in sites:
        for target in sites:
            wanted = rows[:1] if source == target else (*rows, *(row + BACK for row in rows[1:]))
            studies[source, target] = open_study(folder / source / target, Asked(name, wanted, tuple(seeds)))
    matrix = Matrix(name, folder, tuple(sites), rows, tuple(seeds), studies)
    if not matrix.runs:
        raise UserError(f"{folder} has no finished run: {listing(matrix.faults, 4)}.")
    return matrix


def write_matrix(matrix: Matrix) -> Report:
    """Writes the tables and the picture into the folder; returns the table."""
    report = make_table(matrix)
    write_texts(matrix.folder, NAME, report)
    draw(matrix, matrix.folder / f"{NAME}.png")
    return report


# ------------------------------------------------------------------------------------------------ table


def make_table(matrix: Matrix) -> Report:
    """A block a row, its means; and a block of what it adds to the source network as it came."""
    header = ["source", *matrix.sites, "others", "forgets"]
    blocks = [(f"{matrix.lower}: the source network as it came", _block(matrix.means(matrix.lower), matrix.sites))]
    for row in matrix.rows[1:]:
        gains, lost = _means(matrix, row, matrix.gain), _means(matrix, row, matrix.forgotten)
        blocks.append((f"{row}: after adaptation", _block(matrix.means(row), matrix.sites, lost)))
        blocks.append((f"{row} - {matrix.lower}: what that adds", _block(gains, matrix.sites, signed=True)))
    seeds, score = counted(len(matrix.seeds), "seed"), next(iter(matrix.studies.values())).score_name
    title = f"Every site of {matrix.name} as source (lines) and as target (columns): {score}, {seeds}"
    return Report(
        title,
        [*warnings_of(matrix.runs), *missing_lines(matrix.faults)],
        header,
        blocks,
        _notes(matrix, score),
        [*_lines(matrix)],
    )


def _means(matrix: Matrix, row: str, measure: Callable[[str, Pair], Interval | None]) -> Square:
    found = {pair: measure(row, pair) for pair in matrix.studies}
    return {pair: interval.mean for pair, interval in found.items() if interval}


def _block(square: Square, sites: Sequence[str], lost: Square | None = None, signed: bool = False) -> list[list[str]]:
    """A line a source and one of the means over sources, each with its mean over the other sites."""

    def words(values: Sequence[float]) -> str:
        mean = float(np.mean(values)) if values else np.nan
        return f"{mean:+.3f}" if signed and np.isfinite(mean) else number(mean)

    def cells(chosen: Mapping[Pair, float], axis: int, site: str) -> list[float]:
        return [value for pair, value in chosen.items() if pair[axis] == site and pair[0] != pair[1]]

    lost = lost or {}
    block = [
        [
            source,
            *(words([square[source, target]] if (source, target) in square else []) for target in sites),
            words(cells(square, 0, source)),
            number(float(np.mean(cells(lost, 0, source)))) if cells(lost, 0, source) else NOTHING,
        ]
        for source in sites
    ]
    apart = [value for pair, value in square.items() if pair[0] != pair[1]]
    forgotten = number(float(np.mean([*lost.values()]))) if lost else NOTHING
    return [*block, ["other sources", *(words(cells(square, 1, site)) for site in sites), words(apart), forgotten]]


def _notes(matrix: Matrix, score: str) -> list[str]:
    lower = matrix.lower
    return [
        f"{score}: of each validation patient of the target in 3D, the mean over classes; then over patients and "
        "seeds. The csv has the 95 % intervals.",
        "On the diagonal is the source network on validation patients of its own site, which may have chosen its "
        "epoch (FROM=best): a bound, and no result on new patients.",
        "Others: the mean over the other sites, pair by pair.",
        f"Forgets: on the validation patients of its source, the {score} of {lower} less that of the adapted network, "
        "the mean over targets. That takes images and labels of the source, which source-free adaptation has not: it "
        "is looked at afterwards, and nothing is chosen by it.",
        *choice_notes(matrix.runs),
    ]


def _lines(matrix: Matrix) -> Iterator[dict[str, Any]]:
    """The lines of the csv: every pair and row with its intervals."""
    for pair in matrix.studies:
        for row in matrix.rows:
            if interval := matrix.interval(row, pair):
                line = {"source": pair[0], "target": pair[1], "row": row} | ends_of("mean", interval)
                line |= {"patients": interval.patients, "seeds": interval.seeds}
                adapted = row != matrix.lower
                line |= ends_of("gain", matrix.gain(row, pair) if adapted else None)
                yield line | ends_of("forgotten", matrix.forgotten(row, pair) if adapted else None)


# ------------------------------------------------------------------------------------------------ picture


def draw(matrix: Matrix, out: Path) -> None:
    """A square a row, and one of what it adds: sources from top to bottom, targets from left to right."""
    squares = {matrix.lower: (matrix.means(matrix.lower), False)}
    for row in matrix.rows[1:]:
        squares[row] = (matrix.means(row), False)
        squares[f"{row} - {matrix.lower}"] = (_means(matrix, row, matrix.gain), True)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        title = f"every site as source and as target, {counted(len(matrix.seeds), 'seed')}"
        figure, _, charts = make_grid(matrix.runs, title, len(squares))
        for chart, (name, (square, signed)) in zip(charts, squares.items(), strict=True):
            values = np.array(
                [[square.get((source, target), np.nan) for target in matrix.sites] for source in matrix.sites]
            )
            draw_square(chart, values, matrix.sites, matrix.sites, signed)
            chart.set_title(for_chart(name))
        charts[0].set_ylabel("source")
        charts[0].set_xlabel("target")
        save(figure, out)
