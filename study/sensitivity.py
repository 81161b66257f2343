"""How much sfda hangs on what nobody knows exactly: its scores over the size prior, wrong tags, the learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from analysis.plots.canvas import GREY, LINES, STYLE, make_grid, save
from analysis.run import Run
from analysis.statistics.intervals import Interval, paired_interval
from analysis.tables.facts import notes_of
from analysis.tables.table import Report
from processes.errors import UserError
from study.reading import HEADLINE, NETWORKS, Study
from study.report import write_texts
from study.tables.words import mean_words, row_marks, signed_words, warnings
from utils import counted, listing

BASE, NAME = "sfda", "sensitivity"
SHOWN = {HEADLINE: "chosen network", "last": "last epoch"}


@dataclass(frozen=True)
class Axis:
    """What is changed: the runs are called `begin` and a number; sfda stands at `usual`, None: at all its patients."""

    begin: str
    title: str
    usual: float | None
    by_factors: bool  # whether numbers are factors, of which the double is as far as the half


AXES = (
    Axis("sfda_prior_x", "prior size, times that of sfda", 1, by_factors=True),
    Axis("sfda_wrong_", "image-level tags that are wrong, %", 0, by_factors=False),
    Axis("sfda_rate_x", "learning rate, times that of sfda", 1, by_factors=True),
    Axis("sfda_patients_", "patients of the target to adapt to", None, by_factors=True),
)


def points_of(study: Study, axis: Axis) -> dict[float, str]:
    """Number -> row, ascending, of the runs that are there, sfda among them; {} where nothing is changed along it."""
    rows = [row for row in study.rows if row.startswith(axis.begin) and study.of_row(row)]
    if not rows or not study.of_row(BASE):
        return {}
    usual = max(map(trained_on, study.of_row(BASE).values())) if axis.usual is None else axis.usual
    return dict(sorted(({float(row.removeprefix(axis.begin)): row for row in rows} | {usual: BASE}).items()))


def trained_on(run: Run) -> float:
    """How many patients of the target the run adapted to."""
    return float(len(run.provenance.get("training_volumes", ())))


def scores(study: Study, row: str, which: str = HEADLINE) -> pd.DataFrame:
    return study.scores(row, study.score, which)


# ------------------------------------------------------------------------------------------------ table


def make_table(study: Study) -> Report:
    """Raises UserError where no run is there that changes anything."""
    axes = {axis: points for axis in AXES if (points := points_of(study, axis))}
    if not axes:
        raise UserError(f"{study.folder}: there is nothing to compare, for {listing(study.faults, 4)}.")
    name = study.score_name
    means = [f"{name}, {words}" for words in ("last epoch", "chosen", "oracle")]
    header = ["at", "run", *means, f"chosen, against {BASE}", "marks"]
    blocks, lines = [], []
    for axis, points in axes.items():
        blocks.append((axis.title, [_words(study, number, row) for number, row in points.items()]))
        lines += [line for number, row in points.items() for line in _cells(study, axis, number, row)]
    notes = [
        f"{name}: mean over patients and seeds, in brackets the 95 % interval for other patients and source networks.",
        f"Against {BASE}: the difference on the same patients and seeds. Wrong tags are others in each seed; those of "
        "a smaller share are among those of a larger one. So are patients.",
        *notes_of([*study.runs.values()], NETWORKS),
    ]
    return Report(f"Sensitivity of {BASE} on {study.asked.name}", warnings(study), header, blocks, notes, lines)


def _difference(study: Study, row: str) -> Interval:
    return paired_interval(scores(study, row), scores(study, BASE))


def _words(study: Study, number: float, row: str) -> list[str]:
    means = [mean_words(study.interval(row, study.score, which)) for which in NETWORKS]
    apart = "" if row == BASE else signed_words(_difference(study, row))
    return [f"{number:g}", row, *means, apart, ", ".join(row_marks(study, row, HEADLINE))]


def _cells(study: Study, axis: Axis, number: float, row: str) -> list[dict[str, object]]:
    """A line a seed and network: its mean over patients; beside it mean and interval over all seeds."""
    lines = []
    for which, words in SHOWN.items():
        table = scores(study, row, which)
        interval = study.interval(row, study.score, which)
        facts = {"row": f"{BASE}, {words}", "parameter": axis.title, "value": number, "run": row}
        over = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        lines += [facts | {"seed": seed, "score": mean} | over for seed, mean in table.mean().dropna().items()]
    return lines


# ------------------------------------------------------------------------------------------------ picture


def draw(study: Study, out: Path) -> None:
    """A chart an axis: the mean of the last and the chosen network, their 95 % bands, and the network as it came."""
    axes = {axis: points for axis in AXES if (points := points_of(study, axis))}
    runs = [*study.runs.values()]
    with mpl.rc_context(STYLE):
        title = f"sensitivity of {BASE}, {counted(len(study.seeds), 'seed')}, 95 % bands"
        figure, body, charts = make_grid(runs, title, len(axes))
        for chart, (axis, points) in zip(charts, axes.items(), strict=True):
            for colour, which in zip(LINES, SHOWN, strict=False):
                _curve(chart, study, points, which, colour)
            _level(chart, study)
            _ticks(chart, axis, list(points))
        charts[0].set_ylabel(f"{study.score_name}, mean over patients and seeds")
        handles, labels = charts[0].get_legend_handles_labels()
        body.legend(handles, labels, loc="outside lower center", ncols=3)
        save(figure, out)


def _curve(chart: Axes, study: Study, points: dict[float, str], which: str, colour: str) -> None:
    found = [study.interval(row, study.score, which) for row in points.values()]
    chart.plot([*points], [each.mean for each in found], "o-", color=colour, label=SHOWN[which])
    low, high = ([getattr(each, end) for each in found] for end in ("low", "high"))
    chart.fill_between([*points], low, high, color=colour, alpha=0.15, linewidth=0)


def _level(chart: Axes, study: Study) -> None:
    lower = study.asked.lower
    if lower in study.rows and study.of_row(lower):
        mean = study.interval(lower, study.score).mean
        chart.axhline(mean, color=GREY, linestyle=(0, (5, 3)), label=lower)


def _ticks(chart: Axes, axis: Axis, numbers: Sequence[float]) -> None:
    if axis.by_factors:
        chart.set_xscale("log")
    chart.set_xticks(numbers, [f"{number:g}" for number in numbers], minor=False)
    chart.set_xticks([], minor=True)
    chart.set(xlabel=axis.title, ylim=(0, 1))


def write_sensitivity(study: Study) -> Report:
    """Writes sensitivity.{csv,md,tex,txt,png} into the folder of the study; returns the table."""
    table = make_table(study)
    draw(study, study.folder / f"{NAME}.png")
    write_texts(study.folder, NAME, table)
    return table
