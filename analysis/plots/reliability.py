"""Reliability diagrams: how often a class is there, by how probable a network says that it is."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from analysis.calibration.region import WIDTH
from analysis.evaluated import EVERYONE, REGIONS, evaluated_folder, read_calibration, read_note, read_reliability
from analysis.plots.canvas import GREY, LINES, make_grid, network_words, run_label, save, say
from analysis.plots.kinds import kind, of_an_epoch
from analysis.plots.labels import SHARE_LIMITS
from analysis.run import Run, unique
from processes.errors import UserError
from processes.quoting import for_chart

SMALLEST, LARGEST = 6.0, 90.0  # points² of the marker of an empty bin, and of one that holds all pixels


def of_a_region(parser: ArgumentParser) -> None:
    """--region"""
    words = f"the whole image, or what prediction or truth give the class and {WIDTH:g} mm round it (default)"
    parser.add_argument("--region", choices=REGIONS, default="band", help=words)


@kind("reliability", "reliability diagrams of evaluated runs, a class each", of_an_epoch, of_a_region)
def plot_reliability(runs: Sequence[Run], which: str, region: str, out: Path) -> None:
    """Draws a chart a class, and in it a line a run: the diagonal, where a network is right as often as it says."""
    if which == "best_3d":
        raise UserError("study.evaluate shows the last and the chosen network of a run; give --which last or chosen.")
    if differ := {run.n_class for run in runs} - {runs[0].n_class}:
        raise UserError(f"One picture is of runs with as many classes; these have {runs[0].n_class} and {max(differ)}.")
    classes = range(1, runs[0].n_class)
    units = unique(runs, lambda run: read_note(evaluated_folder(run.folder))["unit"])
    width = f"the class and {WIDTH:g} {'/'.join(units)} round it"
    where = {"image": "the whole image", "band": width}[region]
    figure, body, axes = make_grid(runs, f"reliability in {where}, {network_words(which, runs)}", len(classes))
    found = {run_label(run): curves_of(run, which, region) for run in runs}
    for ax, k in zip(axes, classes, strict=True):
        draw_reliability(ax, {name: table[table["class"] == k] for name, table in found.items()})
        ax.set_title(for_chart(runs[0].class_name(k)))
    handles, labels = axes[0].get_legend_handles_labels()
    body.legend(handles, labels, loc="outside lower center", ncols=3)
    save(figure, out)


def curves_of(run: Run, which: str, region: str) -> pd.DataFrame:
    """The bins of a run's network in a region: class, bin, confidence, frequency, n, and the ECE of their class."""
    folder, which = evaluated_folder(run.folder), run.standing_for(which)
    bins, scores = read_reliability(folder), read_calibration(folder)
    bins = bins[(bins["which"] == which) & (bins["region"] == region)]
    scores = scores[(scores["which"] == which) & (scores["region"] == region) & (scores["patient"] == EVERYONE)]
    return bins.merge(scores[["class", "cw_ece"]], on="class")


def draw_reliability(ax: Axes, curves: Mapping[str, pd.DataFrame]) -> None:
    """Draws a line for each name; the larger a marker, the more pixels have such a probability."""
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, zorder=1)
    for number, (name, table) in enumerate(curves.items()):
        colour, known = LINES[number % len(LINES)], table[table["n"] > 0]
        ax.plot(known["confidence"], known["frequency"], color=colour, label=name)
        if len(known):
            share = known["n"] / known["n"].sum()
            sizes = SMALLEST + (LARGEST - SMALLEST) * share
            ax.scatter(known["confidence"], known["frequency"], sizes, color=colour, linewidths=0, zorder=3)
            words, place = f"ECE {known['cw_ece'].iloc[0]:.3f}", (0.98, 0.02 + 0.08 * (len(curves) - 1 - number))
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            ax.text(*place, words, color=colour, transform=ax.transAxes, ha="right", size=8, bbox=box, zorder=4)
    if not any(table["n"].any() for table in curves.values()):
        say(ax, "no pixel")
    ax.set(xlim=SHARE_LIMITS, ylim=SHARE_LIMITS, xlabel="probability of the class", ylabel="how often it is there")
