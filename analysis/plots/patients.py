"""Charts over patients and slices: box plots, histograms of scores, histograms of sizes."""

import itertools
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.plots.canvas import (
    GREY,
    LIGHT_GREY,
    LINES,
    make_canvas,
    make_grid,
    network_words,
    run_label,
    save,
    say,
    whole_numbers,
    wrap,
)
from analysis.plots.kinds import kind, of_a_score, of_an_epoch, of_one_class
from analysis.plots.labels import SHARE_LIMITS, array_label, cases, is_share, score_label
from analysis.run import Run
from metrics import average_classes
from processes.errors import UserError
from processes.quoting import for_chart

FEW_PATIENTS = 5  # a box needs at least as many points
BINS = 20


# -------------------------------------------------------------------------------------------------- boxes


@kind("boxes", "a score per patient and run", of_a_score, of_one_class, of_an_epoch)
def plot_boxes(runs: Sequence[Run], score: str, which: str, out: Path, only: int | None = None) -> None:
    """Draws one box per run over its patients.

    Each patient is a point, and a line joins the same patient in two runs.
    """
    title = f"patients one by one, {network_words(which, runs)}"
    figure, body = make_canvas(runs, title, max(5.2, 1.15 * len(runs) + 1.2), 4)
    ax = body.subplots()
    points = [patient_scores(run, score, which, only) for run in runs]
    if not any(points):
        say(ax, "no patient has a value")
    lines = {part: {"color": GREY} for part in ("boxprops", "whiskerprops", "capprops")}
    for number, values in enumerate(points):
        colour, heights = LINES[number % len(LINES)], list(values.values())
        if len(heights) >= FEW_PATIENTS:
            median = {"color": colour, "linewidth": 2}
            ax.boxplot(heights, positions=[number], widths=0.5, showfliers=False, medianprops=median, **lines)
        ax.scatter(number + spread(len(heights)), heights, s=22, color=colour, alpha=0.85, linewidths=0, zorder=3)
    join_patients(ax, points)
    ax.set_xticks(range(len(runs)), [box_label(run, which, only, len(p)) for run, p in zip(runs, points, strict=True)])
    ax.set(xlim=(-0.6, len(runs) - 0.4), ylabel=score_label(score, runs))
    if is_share(score):
        ax.set_ylim(*SHARE_LIMITS)
    ax.grid(visible=False, axis="x")
    save(figure, out)


def chosen_rows(run: Run, which: str, only: int | None) -> list[dict[str, Any]]:
    """The patients' rows of class `only`, or of every class that the run averages over."""
    classes = run.metric_axis if only is None else [only]
    rows = run.patients(which)
    chosen = [row for row in rows if row["class"] in classes]
    if not chosen:
        raise UserError(
            f"{run.folder} scored no class {only}; its classes are {sorted({row['class'] for row in rows})}."
        )
    return chosen


def patient_scores(run: Run, score: str, which: str, only: int | None) -> dict[str, float]:
    """Patient -> score: the mean of the classes, or that of class `only`. Patients without a score are left out."""
    rows = average_classes(chosen_rows(run, which, only))
    return {row["patient"]: row[score] for row in rows if np.isfinite(row[score])}


def box_label(run: Run, which: str, only: int | None, number: int) -> str:
    outcomes = [row["outcome"] for row in chosen_rows(run, which, only)]
    lines = [*wrap(run_label(run), 15), f"n = {number}"]
    for outcome, words in (("miss", "missed"), ("false structure", "false")):
        if outcome in outcomes:
            lines.append(f"{outcomes.count(outcome)} {words}")
    return "\n".join(lines)


def spread(number: int) -> np.ndarray:
    """(number,) sideways shifts that keep points of similar height apart, the same in every picture."""
    return np.zeros(1) if number == 1 else 0.16 * np.array([(i * 0.618) % 1 - 0.5 for i in range(number)]) * 2


def join_patients(ax: Axes, points: Sequence[dict[str, float]]) -> None:
    """Draws a thin line between a patient's scores in neighbouring runs."""
    for number, (left, right) in enumerate(itertools.pairwise(points)):
        starts, ends = (dict(zip(side, spread(len(side)), strict=True)) for side in (left, right))
        for patient in (each for each in left if each in right):  # in one order, where a set has none
            x = [number + starts[patient], number + 1 + ends[patient]]
            ax.plot(x, [left[patient], right[patient]], color=GREY, linewidth=0.6, alpha=0.45, zorder=1)


# --------------------------------------------------------------------------------------------- histograms


def plot_histogram(runs: Sequence[Run], source: str, which: str, out: Path, only: int | None = None) -> None:
    """Draws how a score of patients, or a raw array (`source` ends in .npy), is distributed, one panel per run."""
    values = [case_values(run, source, which, only) for run in runs]
    figure, body, axes = make_grid(runs, f"{cases(source)} one by one, {network_words(which, runs)}", len(runs))
    bins = np.histogram_bin_edges([0, *np.concatenate(values)], BINS, (0, 1) if is_share(source) else None)
    highest = max(np.histogram(each, bins)[0].max() for each in values)
    for number, (run, each, ax) in enumerate(zip(runs, values, axes, strict=True)):
        if len(each):
            ax.hist(each, bins, color=LINES[number % len(LINES)], alpha=0.75)
            ax.axvline(each.mean(), color="black", linestyle="--", linewidth=1.4)
        else:
            say(ax, "no value")
        ax.set(
            title=f"{run_label(run)}\nn = {len(each)}", xlabel=source_label(source, runs, only), ylabel=cases(source)
        )
        ax.set(xlim=(bins[0], bins[-1]), ylim=(0, 1.05 * max(highest, 1)))
        ax.yaxis.set_major_locator(whole_numbers())
    body.legend(handles=[Line2D([], [], color="black", ls="--", lw=1.4, label="mean")], loc="outside lower center")
    save(figure, out)


def case_values(run: Run, source: str, which: str, only: int | None) -> np.ndarray:
    """(N,) the finite values of one epoch, one per patient or slice: the mean over the classes, or class `only`."""
    if not source.endswith(".npy"):
        return np.array(list(patient_scores(run, source, which, only).values()))
    epoch = run.epoch(which)
    if epoch < 0:
        raise UserError(
            f"{run.folder} chose a network before its first epoch, of which {source} holds nothing; name another with "
            "--which, or draw a --score."
        )
    values = run.class_means(source, run.metric_axis if only is None else [only])[epoch]
    return values[np.isfinite(values)]


def source_label(source: str, runs: Sequence[Run], only: int | None) -> str:
    words = array_label(source, runs) if source.endswith(".npy") else score_label(source, runs)
    return words if only is None else f"{words}, {for_chart(runs[0].class_name(only))}"


# -------------------------------------------------------------------------------------------------- sizes


@kind("sizes", "predicted, true and prior sizes", several=False)
def plot_sizes(run: Run, out: Path) -> None:
    """Draws a histogram per class of the sizes predicted in the last epoch, of the true ones and of the prior."""
    true, prior = run.array("val_gt_sizes.npy"), run.array("prior_sizes.npy")
    predicted = run.array("val_sizes.npy")[len(run.metrics) - 1]
    classes = run.metric_axis
    figure, body, axes = make_grid([run], f"foreground sizes, last epoch of {run_label(run)}", len(classes))
    for k, ax in zip(classes, axes, strict=True):
        draw_sizes(ax, predicted[:, k], true[:, k], prior[:, k])
        none = [int((sizes[:, k] == 0).sum()) for sizes in (predicted, true)]
        empty = f"empty slices: {none[0]} predicted, {none[1]} true, of {len(true)}"
        ax.set_title(f"{for_chart(run.class_name(k))}\n", weight="bold")
        ax.text(0.5, 1.02, empty, transform=ax.transAxes, ha="center", va="bottom", size=8.5, color="#444444")
        ax.set(xlabel="size (pixels)", ylabel="slices")
        ax.yaxis.set_major_locator(whole_numbers())
    handles = [
        Patch(facecolor=LIGHT_GREY, label="true"),
        Line2D([], [], color=LINES[0], label="predicted"),
        Line2D([], [], color=LINES[1], linestyle="--", label="prior"),
    ]
    body.legend(handles=handles[: 3 if np.isfinite(prior).any() else 2], loc="outside lower center", ncols=3)
    save(figure, out)


def draw_sizes(ax: Axes, predicted: np.ndarray, true: np.ndarray, prior: np.ndarray) -> None:
    """Draws the histograms of sizes (N,) above zero, in pixels.

    A prior of few values is a line at each, since a bar would hide the rest.
    """
    predicted, true, prior = (sizes[np.isfinite(sizes) & (sizes > 0)] for sizes in (predicted, true, prior))
    everything = np.concatenate([predicted, true, prior])
    if not len(everything):
        say(ax, "nothing true, nothing predicted")
        return
    bins = np.linspace(0, everything.max() * 1.02, 25)
    ax.hist(true, bins, color=LIGHT_GREY)
    ax.hist(predicted, bins, histtype="step", color=LINES[0], linewidth=1.8)
    levels = np.unique(prior.round())
    if len(levels) > 3:
        ax.hist(prior, bins, histtype="step", color=LINES[1], linestyle="--", linewidth=1.6)
    for level in levels if len(levels) <= 3 else ():
        ax.axvline(level, color=LINES[1], linestyle="--", linewidth=1.6)


# ------------------------------------------------------------------------------------------------- for plot.py


def _of_a_source(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    of_a_score(source)
    source.add_argument("--array", help="a raw array (epochs, cases, classes) of the run, such as val_dice.npy")


@kind(
    "histogram",
    "how a score is distributed over patients, or an array over its slices",
    _of_a_source,
    of_one_class,
    of_an_epoch,
)
def _histogram(runs: Sequence[Run], score: str, array: str | None, which: str, out: Path, only: int | None) -> None:
    plot_histogram(runs, array or score, which, out, only)
