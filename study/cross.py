"""Source networks that learnt in several ways, each adapted in several ways: which two go together.

The source networks lie in FOLDER/sources/seed<seed>/<source>, the runs that start from one in
FOLDER/<source>/seed<seed>/<row>. Of all rows the first is the source network as it came, and of all sources the first
is the usual one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from analysis.plots.canvas import STYLE, make_grid, save
from analysis.plots.squares import draw_square
from analysis.run import Run
from analysis.statistics.claims import gap_closed
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
from utils import counted, doubled, listing

NAME, SOURCES = "cross", "sources"
Square = Mapping[tuple[str, str], float]  # of a source and a row


@dataclass(frozen=True)
class Cross:
    """What is there of it.

    start     the network of a source that runs start from: best_3d, by the source's own labels, or last
    upper     the row that closes all of the gap, trained beside the sources; it starts from none of them
    trained   the runs of the sources, and of `upper`
    studies   the runs that start from each source
    """

    name: str
    folder: Path
    sources: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    start: str
    upper: str
    trained: Study
    studies: Mapping[str, Study]

    @property
    def runs(self) -> list[Run]:
        return [run for study in (self.trained, *self.studies.values()) for run in study.runs.values()]

    @property
    def faults(self) -> list[str]:
        """A line each: a run that is missing, broken, or scored on other patients than those beside it."""
        found = {f"from {source}": study.faults for source, study in self.studies.items()}
        return [*self.trained.faults, *(f"{words}, {fault}" for words, each in found.items() for fault in each)]

    def own(self, source: str) -> Interval | None:
        """The mean of the source network on the validation patients of its own site: what its way of learning costs."""
        there = self.trained.of_row(source)
        return self.trained.interval(source, self.trained.score, self.start) if there else None

    def interval(self, source: str, row: str) -> Interval | None:
        """The mean of what the row chose of this source."""
        study = self.studies[source]
        return study.interval(row, study.score) if study.of_row(row) else None

    def gain(self, source: str, row: str) -> Interval | None:
        """What that is better than the usual source network as it came."""
        return self._against(source, row, paired_interval)

    def closed(self, source: str, row: str) -> Interval | None:
        """The share of the gap between the usual source network as it came and `upper`; None where it is undefined."""
        if (upper := self.trained.chosen(self.upper)) is None:
            return None
        return self._against(source, row, lambda table, lower: gap_closed(table, *lower.align(upper)))

    def _against(self, source: str, row: str, measure: Callable[..., Interval | None]) -> Interval | None:
        table, usual = self.studies[source].chosen(row), self.studies[self.sources[0]].chosen(self.rows[0])
        return None if table is None or usual is None else measure(*table.align(usual))

    def square(self, measure: Callable[[str, str], Interval | None]) -> Square:
        """The means of a measure, where there is one."""
        found = {(source, row): measure(source, row) for source in self.sources for row in self.rows}
        return {place: interval.mean for place, interval in found.items() if interval}


def open_cross(
    folder: Path,
    name: str,
    sources: Sequence[str],
    rows: Sequence[str],
    seeds: Sequence[int],
    start: str = "best_3d",
    upper: str = "fs",
) -> Cross:
    """Reads what is there. Raises UserError where no run is, and for a source or a row that is named twice."""
    if twice := doubled([*sources, *rows]):
        raise UserError(f"{twice[0]} is named twice; name each source and each row once.")
    trained = open_study(folder / SOURCES, Asked(name, (*sources, upper), tuple(seeds)))
    studies = {source: open_study(folder / source, Asked(name, tuple(rows), tuple(seeds))) for source in sources}
    cross = Cross(name, folder, tuple(sources), tuple(rows), tuple(seeds), start, upper, trained, studies)
    if not cross.runs:
        raise UserError(f"{folder} has no finished run: {listing(cross.faults, 4)}.")
    return cross


def write_cross(cross: Cross) -> Report:
    """Writes the tables and the picture into the folder; returns the table."""
    report = make_table(cross)
    write_texts(cross.folder, NAME, report)
    draw(cross, cross.folder / f"{NAME}.png")
    return report


# ------------------------------------------------------------------------------------------------ table


def make_table(cross: Cross) -> Report:
    """A line a source: what it is worth on its own site, and what each row makes of it on the target."""
    score = cross.trained.score_name
    shares = {place: f"{100 * share:.0f} %" for place, share in cross.square(cross.closed).items()}
    blocks = [
        (f"{score} on the target", _block(cross, {k: number(v) for k, v in cross.square(cross.interval).items()})),
        (f"more than {_usual(cross)}", _block(cross, {k: f"{v:+.3f}" for k, v in cross.square(cross.gain).items()})),
        (f"share of the gap from {_usual(cross)} to {cross.upper}", _block(cross, shares)),
    ]
    title = f"Source networks (lines) and what adapts them (columns), {cross.name}, {counted(len(cross.seeds), 'seed')}"
    header = ["source", "on its own site", *cross.rows]
    return Report(
        title,
        [*warnings_of(cross.runs), *missing_lines(cross.faults)],
        header,
        blocks,
        _notes(cross, score),
        [*_lines(cross)],
    )


def _usual(cross: Cross) -> str:
    return f"{cross.sources[0]}, {cross.rows[0]}"


def _block(cross: Cross, cells: Mapping[tuple[str, str], str]) -> list[list[str]]:
    own = {source: cross.own(source) for source in cross.sources}
    return [
        [
            source,
            number(interval.mean) if (interval := own[source]) else NOTHING,
            *(cells.get((source, row), NOTHING) for row in cross.rows),
        ]
        for source in cross.sources
    ]


def _notes(cross: Cross, score: str) -> list[str]:
    return [
        f"{score}: of each validation patient in 3D, the mean over classes; then over patients and seeds. The csv has "
        "the 95 % intervals.",
        "On its own site: on validation patients of the source, of the network that the others start from. They may "
        "have chosen its epoch, so this compares sources, and is no result on new patients.",
        f"A share of the gap is {NOTHING} where {cross.upper} is not surely better than {_usual(cross)}.",
        *choice_notes(cross.runs),
    ]


def _lines(cross: Cross) -> Iterator[dict[str, Any]]:
    """The lines of the csv: every source and row with its intervals."""
    for source in cross.sources:
        own = cross.own(source)
        for row in cross.rows:
            if interval := cross.interval(source, row):
                line = {"source": source, "row": row, "own": own.mean if own else np.nan}
                line |= {"patients": interval.patients, "seeds": interval.seeds}
                for name, measure in (("mean", cross.interval), ("gain", cross.gain), ("closed", cross.closed)):
                    line |= ends_of(name, measure(source, row))
                yield line


# ------------------------------------------------------------------------------------------------ picture


def draw(cross: Cross, out: Path) -> None:
    """Two squares: what each source and row is worth, and what that is more than the usual source as it came."""
    squares = {cross.trained.score_name: (cross.interval, False), f"more than {_usual(cross)}": (cross.gain, True)}
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        title = f"source networks and what adapts them, {counted(len(cross.seeds), 'seed')}"
        figure, _, charts = make_grid(cross.runs, title, len(squares))
        for chart, (name, (measure, signed)) in zip(charts, squares.items(), strict=True):
            square = cross.square(measure)
            values = np.array([[square.get((source, row), np.nan) for row in cross.rows] for source in cross.sources])
            draw_square(chart, values, cross.sources, cross.rows, signed)
            chart.set_title(for_chart(name))
        save(figure, out)
