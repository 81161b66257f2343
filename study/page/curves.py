"""The score over epochs, a panel a row, a line a seed, with the epoch that was chosen and the best one."""

import math
from collections.abc import Mapping

import plotly.graph_objects as go
from markupsafe import Markup

from analysis.run import Run
from processes.errors import UserError
from study.page.charts import BLUE, FAINT, GREY, VERMILLION, panels, reach
from study.page.template import fill
from study.reading import Study

MARKS = {  # network -> its mark; the ring is larger, so that both are seen where they are the same
    "best_3d": {"symbol": "circle-open", "size": 11, "color": VERMILLION, "line": {"width": 2}},
    "chosen": {"symbol": "circle", "size": 7, "color": BLUE},
}
TICKS = 5  # of the axis of epochs, about
NAMES = {"chosen": "chosen", "best_3d": "best by labels"}
Point = tuple[float, float]


def curves(study: Study) -> Markup:
    """The section. Raises UserError where no run has more than one epoch."""
    rows = {row: study.of_row(row) for row in study.rows}
    rows = {row: runs for row, runs in rows.items() if any(_learns(run) for run in runs.values())}
    if not rows:
        raise UserError("No run has a log of several epochs with a score in it, so there is nothing to draw over them.")
    figure, places = panels(list(rows), "epoch", _words(study))
    level = _level(study)
    for (row, runs), (line, column) in zip(rows.items(), places, strict=True):
        for trace in [*_lines(runs), *(_marks(study, row, runs, which) for which in MARKS)]:
            figure.add_trace(trace, line, column)
        if math.isfinite(level) and study.images_of(row) == study.images_of(study.asked.lower):
            figure.add_hline(level, row=line, col=column, line={"color": GREY, "dash": "dot", "width": 1.5})
    longest = max(len(run.metrics) for runs in rows.values() for run in runs.values())
    figure.update_xaxes(tick0=0, dtick=max(1, math.ceil(longest / TICKS)))
    seen = [y for trace in figure.data for y in trace.y if math.isfinite(y)]
    figure.update_yaxes(range=reach([*seen, *([level] if math.isfinite(level) else [])]))
    return fill("curves.html", figure=figure, panels=len(rows), lower=study.asked.lower if math.isfinite(level) else "")


def _words(study: Study) -> str:
    return "IoU of all images" if study.by_iou else "3D Dice, mean over patients"


def _column(run: Run) -> str:
    return "val_miou" if run.by_iou else "val_dice_3d"


def _learns(run: Run) -> bool:
    column = _column(run)
    return len(run.metrics) > 1 and column in run.metrics and run.metrics[column].notna().any()


def _lines(runs: Mapping[int, Run]) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=[*range(1, len(run.metrics) + 1)],
            y=run.metrics[_column(run)].round(4).tolist(),
            mode="lines",
            line={"color": FAINT, "width": 1.5},
            hovertemplate=f"seed {seed}, epoch %{{x}}: %{{y:.3f}}<extra></extra>",
        )
        for seed, run in runs.items()
        if _learns(run)
    ]


def _marks(study: Study, row: str, runs: Mapping[int, Run], which: str) -> go.Scatter:
    """Where one of the networks of each seed lies, seeds that chose nothing left out; epoch 0 is before the first."""
    points = {
        seed: _point(study, row, seed, which)
        for seed, run in runs.items()
        if _learns(run) and (which != "chosen" or run.selection)
    }
    return go.Scatter(
        x=[x for x, _ in points.values()],
        y=[y for _, y in points.values()],
        customdata=list(points),
        mode="markers",
        marker=MARKS[which],
        hovertemplate=f"{NAMES[which]}, seed %{{customdata}}, epoch %{{x}}: %{{y:.3f}}<extra></extra>",
    )


def _point(study: Study, row: str, seed: int, which: str) -> Point:
    run = study.runs[row, seed]
    epoch = run.epoch(which)
    if epoch < 0:
        return 0, float(study.scores(row, study.score, which)[seed].mean())
    return epoch + 1, float(run.metrics[_column(run)][epoch])


def _level(study: Study) -> float:
    """The mean score of the row without adaptation, NaN where it is none of the rows."""
    lower = study.asked.lower
    if lower not in study.rows or not study.of_row(lower):
        return math.nan
    return float(study.scores(lower, study.score).mean().mean())
