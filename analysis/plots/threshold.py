"""Chart over iterations: the threshold of pseudo labels, and its prior."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.plots.canvas import GREY, LIGHT_GREY, LINES, make_grid, run_label, save, say, whole_numbers
from analysis.plots.kinds import kind
from analysis.plots.labels import SHARE_LIMITS
from analysis.run import Run
from processes.errors import UserError
from processes.quoting import for_chart

TERM = "tra_loss_"  # how the log calls the terms of a step, whose order is that of tra_loss.npy


@kind("threshold", "the threshold of pseudo labels over iterations, and its prior")
def plot_threshold(runs: Sequence[Run], out: Path) -> None:
    """Draws one panel per run. The title names runs without pseudo labels."""
    made = [run for run in runs if f"{TERM}threshold" in run.metrics]
    others = [for_chart(run.name) for run in runs if run not in made]
    title = "threshold of the pseudo labels" + f" (no pseudo labels in {', '.join(others)})" * bool(others)
    figure, body, axes = make_grid(runs, title, max(len(made), 1))
    if not made:
        say(axes[0], "no run made pseudo labels")
    drawn = [draw_threshold(ax, run) for run, ax in zip(made, axes, strict=False)]
    threshold_legend(body, with_prior=any(drawn))
    save(figure, out)


def draw_threshold(ax: Axes, run: Run) -> bool:
    """Draws the threshold of every step, and the prior behind it if there was one.

    Returns whether there was a prior.
    """
    terms = step_terms(run)
    steps = np.arange(1, len(terms["threshold"]) + 1)
    has_prior = "prior_mu" in terms
    if has_prior:
        mean, sd = terms["prior_mu"], terms["prior_sd"]
        ax.fill_between(steps, mean - sd, mean + sd, color=LIGHT_GREY, alpha=0.5, linewidth=0)
        ax.plot(steps, mean, "--", color=GREY, linewidth=1)
    ax.plot(steps, terms["threshold"], color=LINES[0], linewidth=1.2, marker="o" if len(steps) == 1 else "")
    ax.set(title=run_label(run), xlabel="iteration", ylabel="threshold", ylim=SHARE_LIMITS)
    ax.xaxis.set_major_locator(whole_numbers())
    return has_prior


def step_terms(run: Run) -> dict[str, np.ndarray]:
    """(iterations,) each term of every step that was made."""
    names = [name.removeprefix(TERM) for name in run.metrics if name.startswith(TERM)]
    values = run.array("tra_loss.npy")[: len(run.metrics)]
    if values.ndim != 3 or values.shape[2] != len(names):
        raise UserError(
            f"{run.folder / 'tra_loss.npy'} has the shape {values.shape}, and the log of the run {len(names)} training "
            f"terms; expected (epochs, steps, {len(names)}). Train the run again."
        )
    return dict(zip(names, values.reshape(-1, len(names)).T, strict=True))


def threshold_legend(body: FigureBase, with_prior: bool) -> None:
    handles: list[Line2D | Patch] = [Line2D([], [], color=LINES[0], label="threshold")]
    if with_prior:
        handles.append(Line2D([], [], color=GREY, ls="--", linewidth=1, label="its prior"))
        handles.append(Patch(color=LIGHT_GREY, alpha=0.5, label="± sd of the prior"))
    body.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize="small", columnspacing=1)
