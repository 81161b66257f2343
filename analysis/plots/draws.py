"""Chart over the number of labelled volumes: every draw a dot, the mean over draws a line."""

import itertools
import math
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from analysis.plots.canvas import LINES, make_canvas, network_words, save
from analysis.plots.kinds import kind, of_an_epoch
from analysis.plots.labels import SHARE_LIMITS, score_label
from analysis.run import Run
from analysis.tables.draws import DRAWS, Repeated, experiment_marks, group_draws, read_experiment
from processes.errors import UserError
from processes.quoting import for_chart

APART = 0.06  # between the dots of one kind and the next, lest they hide each other; 1 is twice as many volumes


def _of_draws(parser: ArgumentParser) -> None:
    parser.add_argument("--draws", dest="pattern", metavar="REGEX", required=True, help=DRAWS)


@kind("draws", "Dice over the number of labelled volumes, every draw of them a dot", _of_draws, of_an_epoch)
def plot_draws(runs: Sequence[Run], pattern: str, which: str, out: Path) -> None:
    """Draws one line per kind of experiment. An experiment without a number of labelled volumes is a dashed level."""
    experiments = group_draws(runs, pattern)
    numbers = sorted({each.labelled for each in experiments if each.labelled is not None})
    if not numbers:
        raise UserError(
            "None of these experiments says how many labelled volumes it had, as contrast_2 does (of the runs "
            f"contrast_2_0, contrast_2_1, … with --draws '_\\d+$'): {', '.join(each.name for each in experiments)}."
        )
    points = [read_experiment(each, which) for each in experiments]
    levels = [point for point in points if point.experiment.labelled is None]
    curves: dict[str, list[Repeated]] = {}
    for point in points:
        if point.experiment.labelled is not None:
            curves.setdefault(point.experiment.kind, []).append(point)
    figure, body = make_canvas(runs, f"draws of the labelled volumes, {network_words(which, runs)}", 7.5, 4)
    ax, colours = body.subplots(), itertools.cycle(LINES)
    for rank, curve in enumerate(curves.values()):
        shift = APART * (rank - (len(curves) - 1) / 2)
        draw_curve(ax, curve, shift, next(colours), label_kind(curve, runs))
    for level in levels:
        label = label_kind([level], runs)
        ax.axhline(level.mean["dice"]["mean"], color=next(colours), linestyle=(0, (5, 3)), label=label)
    ax.set_xticks([place(number) for number in numbers], [str(number) for number in numbers])
    ax.set(xlim=(place(numbers[0]) - 0.4, place(numbers[-1]) + 0.4), xlabel="labelled volumes", ylim=SHARE_LIMITS)
    ax.set_ylabel(f"{score_label('dice', runs)}, mean over patients")
    body.legend(loc="outside right center")
    save(figure, out)


def place(number: int) -> float:
    """Where on the axis this number of labelled volumes stands: its logarithm, but 0 has a place too."""
    return math.log2(max(number, 0.5))


def label_kind(points: Sequence[Repeated], runs: Sequence[Run]) -> str:
    """The kind of these experiments, with what a reader must know of them."""
    kind = points[0].experiment.kind
    marks = dict.fromkeys(words for point in points for words in experiment_marks(point, runs))
    return f"{for_chart(kind)} ({'; '.join(marks)})" if marks else for_chart(kind)


def draw_curve(ax: Axes, points: Sequence[Repeated], shift: float, colour: str, label: str) -> None:
    """Draws the means of one kind, and the draws behind them, `shift` to the right of their place."""
    points = sorted(points, key=lambda point: point.experiment.labelled or 0)
    places = [place(point.experiment.labelled or 0) + shift for point in points]
    ax.plot(places, [point.mean["dice"]["mean"] for point in points], "-_", color=colour, markersize=12, label=label)
    for x, point in zip(places, points, strict=True):
        ax.plot([x] * len(point.dice), point.dice, "o", color=colour, markersize=5, alpha=0.7, markeredgewidth=0)
