"""Charts over epochs: a column or an array of several runs, the losses of one, the weights of losses."""

import itertools
import re
import textwrap
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.plots.canvas import GREY, LIGHT_GREY, LINES, make_canvas, make_grid, run_label, save, say, whole_numbers
from analysis.plots.kinds import kind
from analysis.plots.labels import SHARE_LIMITS, array_label, cases, column_label, is_share
from analysis.run import Run
from processes.errors import UserError
from processes.quoting import for_chart

LOWEST, ACCURACY = "_lowest", "_accuracy"  # how columns end that hold a loss's lower bound, a discriminator's accuracy
HEALTHY = (0.5, 0.8)  # accuracy of a discriminator that neither guesses nor has won
WEIGHT = "weight_"


def epoch_axis(ax: Axes, n_epoch: int) -> None:
    ax.set(xlabel="epoch", xlim=(0.5, max(n_epoch + 0.02 * n_epoch, 1.5)))
    ax.xaxis.set_major_locator(whole_numbers())


# ------------------------------------------------------------------------------------------------- curves


def plot_column(runs: Sequence[Run], column: str, out: Path) -> None:
    """Draws one curve per run, of a column of the log."""
    series = [pd.Series(run.column(column).to_numpy(float), run.metrics["epoch"]) for run in runs]
    plot_curves(runs, series, column_label(column, runs[0]), is_share(column), out)


def plot_array(runs: Sequence[Run], name: str, classes: Sequence[int] | None, out: Path) -> None:
    """Draws one curve per run, of a raw array: the mean over patients or slices of the mean over these classes."""
    means = [run.class_means(name, classes or run.metric_axis) for run in runs]
    series = [pd.DataFrame(each[: len(run.metrics)]).mean(axis=1) for each, run in zip(means, runs, strict=True)]
    words = ", ".join([array_label(name, runs), *(for_chart(runs[0].class_name(k)) for k in classes or [])])
    plot_curves(runs, series, f"{words}, mean over {cases(name)}", is_share(name), out)


def plot_curves(runs: Sequence[Run], series: Sequence[pd.Series], words: str, share: bool, out: Path) -> None:
    """Draws one curve per run, indexed by epoch. A run of one epoch among longer ones is a level, drawn dashed."""
    figure, body = make_canvas(runs, "epoch by epoch", 7.5, 4)
    ax = body.subplots()
    longest = max(map(len, series))
    for number, (run, values) in enumerate(zip(runs, series, strict=True)):
        colour = LINES[number % len(LINES)]
        if len(values) == 1 < longest:
            ax.axhline(values.iloc[0], color=colour, linestyle=(0, (5, 3)), label=run_label(run))
            continue
        line = ("-", "-.", ":")[number // len(LINES) % 3]
        known = values[np.isfinite(values)]  # distances stand in some epochs only
        ax.plot(known.index + 1, known, line, color=colour, marker="o" if len(known) == 1 else "", label=run_label(run))
    epoch_axis(ax, longest)
    ax.set_ylabel(textwrap.fill(words, 48))
    if share:
        ax.set_ylim(*SHARE_LIMITS)
    if not any(np.isfinite(values).any() for values in series):
        say(ax, "no run has a value")
    body.legend(loc="outside right center")
    save(figure, out)


# ------------------------------------------------------------------------------------------------- losses


@kind("losses", "every loss term over epochs", several=False)
def plot_losses(run: Run, out: Path) -> None:
    """Draws every loss term in training and in validation, one panel per term."""
    found = [match[1] for name in run.metrics if (match := re.fullmatch("(?:tra|val)_loss_(.+)", name))]
    terms = [term for term in dict.fromkeys(found) if term.removesuffix(LOWEST) == term and known_sides(run, term)]
    figure, body, axes = make_grid([run], f"loss terms of {run_label(run)}", max(len(terms), 1))
    if not terms:
        say(axes[0], "no loss was computed")
    for term, ax in zip(terms, axes, strict=False):
        draw_term(ax, run, term)
    loss_legend(body, run, terms)
    save(figure, out)


def known_sides(run: Run, term: str) -> dict[str, pd.Series]:
    """'tra' and 'val' -> the values of the term, if any are known; the index counts epochs from 1."""
    table = run.metrics.set_index(run.metrics["epoch"] + 1)
    columns = {side: table[name].dropna() for side in ("tra", "val") if (name := f"{side}_loss_{term}") in table}
    return {side: column for side, column in columns.items() if len(column)}


def draw_term(ax: Axes, run: Run, term: str) -> None:
    """Draws a term of the loss, with its lower bound if that was logged, or a discriminator's accuracy in its range."""
    for name, width in ((term, 1.8), (term + LOWEST, 0.8)):
        for side, values in known_sides(run, name).items():
            line, colour = ("-", LINES[0]) if side == "tra" else ("--", LINES[1])
            marker = "o" if len(values) == 1 else ""
            ax.plot(values.index, values, line, color=colour, linewidth=width, marker=marker)
    epoch_axis(ax, len(run.metrics))
    ax.set(title="total" if term == "tot" else for_chart(term), ylabel="loss")
    if term.endswith(ACCURACY):
        ax.axhspan(*HEALTHY, color=LIGHT_GREY, alpha=0.5, linewidth=0)
        ax.set(ylabel="accuracy", ylim=(0, 1))


def loss_legend(body: FigureBase, run: Run, terms: Sequence[str]) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=LINES[0], label="training"),
        Line2D([], [], color=LINES[1], ls="--", label="validation"),
    ]
    if any(known_sides(run, term + LOWEST) for term in terms):
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="lowest possible"))
    if any(term.endswith(ACCURACY) for term in terms):
        handles.append(Patch(color=LIGHT_GREY, alpha=0.5, label="healthy range"))
    body.legend(handles=handles, loc="outside lower center", ncols=len(handles))


# ------------------------------------------------------------------------------------------------ weights


@kind("weights", "the weights of the losses over epochs")
def plot_weights(runs: Sequence[Run], out: Path) -> None:
    """Draws the weights of the losses over epochs, one panel per run. The title names runs without --scheduler."""
    columns = {run.name: [name for name in run.metrics if name.startswith(WEIGHT)] for run in runs}
    moving, still = [run for run in runs if columns[run.name]], [name for name, found in columns.items() if not found]
    names = dict.fromkeys(name for found in columns.values() for name in found)
    colours = dict(zip(names, itertools.cycle(LINES), strict=False))
    highest = max((run.column(name).max() for run in moving for name in columns[run.name]), default=1)
    title = "weights of the losses" + f" (constant in {', '.join(map(for_chart, still))})" * bool(still)
    figure, body, axes = make_grid(runs, title, max(len(moving), 1))
    if not moving:
        say(axes[0], "no run had a --scheduler")
    for run, ax in zip(moving, axes, strict=False):
        epochs = run.metrics["epoch"] + 1
        for name in columns[run.name]:
            ax.plot(epochs, run.column(name), color=colours[name], marker="o" if len(epochs) == 1 else "")
        epoch_axis(ax, len(epochs))
        ax.set(title=run_label(run), ylabel="weight", ylim=(-0.03 * highest, 1.03 * highest))
    handles = [
        Line2D([], [], color=colour, label=for_chart(name.removeprefix(WEIGHT))) for name, colour in colours.items()
    ]
    body.legend(handles=handles, loc="outside lower center", ncols=max(min(len(handles), 4), 1))
    save(figure, out)


# ------------------------------------------------------------------------------------------------- for plot.py


def _of_a_column(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--column", default="val_dice_3d", help="of the log (default: %(default)s)")
    source.add_argument("--array", help="a raw array (epochs, cases, classes) of the run, such as val_3d_hd95.npy")
    parser.add_argument("--classes", type=int, nargs="+", help="those of --array to average (default: --metric_axis)")


@kind("curves", "one column of the log, or one raw array, over epochs", _of_a_column)
def _curves(runs: Sequence[Run], column: str, array: str | None, classes: Sequence[int] | None, out: Path) -> None:
    if classes and not array:
        raise UserError("--classes chooses classes of an --array; a --column of one class has its number in its name.")
    if array:
        plot_array(runs, array, classes, out)
    else:
        plot_column(runs, column, out)
