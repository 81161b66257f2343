"""Chart of the Dice that was expected without labels: against the real one, and as risk over coverage."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from analysis.expected import Revealed, area, revealed, selective_risk
from analysis.plots.canvas import GREY, LINES, make_grid, run_label, save, say
from analysis.plots.kinds import kind
from analysis.run import Run
from files.run_names import EXPECTED
from processes.quoting import for_chart


@kind("risk", "expected Dice against the real one, and the risk that is left by coverage", several=False)
def plot_risk(run: Run, out: Path) -> None:
    """Draws both charts, and prints what they come to. Where nothing was expected, the charts say so."""
    found = revealed(run)
    figure, _, (left, right) = make_grid([run], f"{run_label(run)}, Dice expected without labels", 2)
    if found is None:
        words = f"there is no {EXPECTED}:\nthe network it started from tells nothing"
        print(f"{run.folder}: {' '.join(words.split())}")
    else:
        words = "no patient has both"
        print(f"{run.folder}: {found.words()}")
    if found is None or not len(found.real):
        say(left, words)
        say(right, words)
    else:
        draw_revealed(left, found)
        draw_coverage(right, found)
    save(figure, out)


def draw_revealed(ax: Axes, found: Revealed) -> None:
    """A point for each patient and class, with its interval; on the line the two Dice are equal."""
    reach = np.abs(np.stack([found.low, found.high]) - found.expected)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=1)
    look = {"fmt": "o", "markersize": 4, "elinewidth": 0.8, "alpha": 0.85}
    ax.errorbar(found.real, found.expected, reach, color=LINES[0], **look)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="real Dice", ylabel="expected Dice, its interval")
    ax.set_title(f"n = {len(found.real)}")


def draw_coverage(ax: Axes, found: Revealed) -> None:
    """The mean 1 - Dice of the patients that are kept, when those of the least expected Dice are left to a person."""
    expected, real = found.by_patient()
    risk, coverage = 1 - real, np.arange(1, len(real) + 1) / len(real)
    curves = {"expected Dice": (expected, LINES[0], "o-"), "real Dice": (real, LINES[2], "--")}
    for name, (trust, colour, style) in curves.items():
        curve = selective_risk(trust, risk)
        ax.plot(coverage, curve, style, color=colour, markersize=3, label=f"by {for_chart(name)}: {area(curve):.3f}")
    ax.axhline(risk.mean(), color=GREY, linestyle=":", label=f"by chance: {risk.mean():.3f}")
    ax.set(
        xlim=(0, 1.03), ylim=(0, None), xlabel="coverage, share of patients that are kept", ylabel="1 - Dice of these"
    )
    ax.set_title("area under risk and coverage")
    ax.legend(fontsize=8)
