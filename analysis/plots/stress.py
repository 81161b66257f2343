"""Chart of a stress test: the Dice over severities, a small chart a shift, with a band over patients."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.plots.canvas import GREY, LINES, Titled, make_grid, save, say, whole_numbers
from analysis.plots.labels import SHARE_LIMITS
from analysis.stress import UNDISTURBED, StressTable, by_loss
from processes.quoting import for_chart

QUARTILES = (25, 75)


def plot_stress(table: StressTable, axis: Sequence[int], of: Titled, title: str, out: Path) -> None:
    """Draws a small chart per shift, the one first that costs most: nine bands in one chart would hide each other.

    axis: the classes that the Dice is averaged over; of: the set whose images were shifted
    """
    shifts, home = by_loss(table, axis), table.mean(UNDISTURBED, axis)
    figure, body, axes = make_grid([of], title, max(len(shifts), 1))
    for ax, (shift, means) in zip(axes, shifts.items(), strict=False):
        draw_shift(ax, table, axis, shift, means)
        ax.set(title=for_chart(shift).replace("_", " "), ylim=SHARE_LIMITS, xlabel="severity", ylabel="Dice")
        ax.axhline(home, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
    if not shifts:
        say(axes[0], "no shift was tried")
    handles = [
        Line2D([], [], color=LINES[0], marker="o", markersize=4, label="mean over patients"),
        Patch(color=LINES[0], alpha=0.2, linewidth=0, label="the middle half of the patients"),
        Line2D([], [], color=GREY, linestyle=(0, (5, 3)), label="mean of undisturbed images"),
    ]
    body.legend(handles=handles, loc="outside lower center", ncols=3)
    save(figure, out)


def draw_shift(ax: Axes, table: StressTable, axis: Sequence[int], shift: str, means: dict[int, float]) -> None:
    """Draws one line from undisturbed images (0) on, and the band behind it."""
    kinds = [UNDISTURBED, *((shift, severity) for severity in means)]
    places = [severity for _, severity in kinds]
    values = [np.array(list(table.dice(kind, axis).values())) for kind in kinds]
    known = [each[np.isfinite(each)] for each in values]
    bands = np.array([np.percentile(each, QUARTILES) if len(each) else (np.nan, np.nan) for each in known])
    ax.fill_between(places, *bands.T, color=LINES[0], alpha=0.2, linewidth=0)
    ax.plot(places, [table.mean(kind, axis) for kind in kinds], "-o", color=LINES[0], markersize=4)
    ax.xaxis.set_major_locator(whole_numbers())
