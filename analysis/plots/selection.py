"""Chart of a choice: every validator over the candidates, and the Dice that labels reveal afterwards."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from analysis.plots.canvas import GREY, LINES, make_canvas, run_label, save, say, whole_numbers
from analysis.plots.kinds import kind
from analysis.plots.labels import column_label
from analysis.plots.patients import patient_scores
from analysis.run import Run
from analysis.selection import Selection
from files.run_names import HEARD, LABELLED
from processes.errors import UserError
from processes.quoting import for_chart

COLUMNS = 4  # of small charts
WIDTH, HEIGHT, LOWER = 9.0, 1.45, 2.1  # inches: of the picture, of a small chart, of the one of the Dice
APART = 0.09  # between networks before the first epoch, by the length of the axis
FARTHEST = 3.0  # standard deviations; what lies beyond is drawn at the edge
TRUSTED, CHOSEN, BEST = LINES[0], LINES[1], LINES[2]
CHOSEN_LINE = {"color": CHOSEN, "linewidth": 1.2, "zorder": 1}


@kind("selection", "every validator over the networks that one was chosen from", several=False)
def plot_selection(run: Run, out: Path) -> None:
    """Draws a small chart per validator, those that choose first, then the Dice over epochs if labels are there."""
    if not run.selection:
        raise UserError(f"{run.folder} has no selection.csv: nothing was chosen. Train it with --keep_every.")
    shown = standardised(run.selection)
    names = dict.fromkeys(name for name in (*trusted(run.selection), *run.selection.validators) if name in shown)
    figure, body, axes, lower = make_axes(run, len(names))
    places = places_of(run)
    for name, ax in zip(names, axes, strict=False):
        draw_validator(ax, name, shown[name], run.selection, places)
    if not names:
        say(axes[0], "no validator says anything")
    if lower:
        draw_revealed(lower, run, places)
    for ax in [*axes, lower] if lower else axes:
        candidate_axis(ax, run, places)
    legend(body, run.selection)
    save(figure, out)


def make_axes(run: Run, number: int) -> tuple[Figure, FigureBase, list[Axes], Axes | None]:
    """The canvas, that many small charts of one scale, and a wide one below where the log has a score."""
    columns = max(min(number, COLUMNS), 1)
    rows = -(-max(number, 1) // columns)
    words = f"{run_label(run)} chose {for_chart(run.selection.chosen.name)} {run.selection.how}"
    height = rows * HEIGHT + run.scored * LOWER + 1.1
    figure, body = make_canvas([run], words, WIDTH, height)
    grid = body.add_gridspec(rows + run.scored, columns, height_ratios=[HEIGHT] * rows + [LOWER] * run.scored)
    axes = [body.add_subplot(grid[n // columns, n % columns]) for n in range(max(number, 1))]
    for n, ax in enumerate(axes):
        ax.set_ylim(-FARTHEST - 0.3, FARTHEST + 0.3)
        ax.set_yticks([-2, 0, 2])
        ax.tick_params(labelsize=7, labelleft=n % columns == 0)
        ax.set_ylabel("" if n % columns else "sd from the mean", size=7)
    return figure, body, axes, body.add_subplot(grid[rows, :]) if run.scored else None


# ------------------------------------------------------------------------------------------------ numbers


def trusted(selection: Selection) -> tuple[str, ...]:
    """The columns that chose."""
    return (LABELLED,) if selection.labelled else HEARD


def standardised(selection: Selection) -> dict[str, np.ndarray]:
    """Validator -> (candidates,) its scores less their mean, by their standard deviation, NaN where it says nothing.

    Mean and deviation are of the candidates that were not held back, lest a collapse sets the scale. All are 0 where
    these are equal. Validators that say nothing of any candidate are left out.
    """
    passed = np.array([not one.gate for one in selection.candidates])
    shown = {}
    for name in selection.validators:
        values = np.array([one.scores[name] for one in selection.candidates])
        known = np.isfinite(values)
        among = values[known & passed] if (known & passed).any() else values[known]
        if known.any():
            spread = among.std()
            unequal = spread > 1e-9 * np.abs(among).max()
            shown[name] = np.where(known, (values - among.mean()) / spread if unequal else 0, np.nan)
    return shown


def places_of(run: Run) -> list[float]:
    """Where each candidate stands on the axis: at its epoch; those before the first step side by side, left of 0."""
    candidates = run.selection.candidates
    starts = [one.name for one in candidates if not one.epoch]
    apart = APART * max(len(run.metrics), 1)
    return [one.epoch or apart * (starts.index(one.name) - len(starts)) for one in candidates]


def score_of(run: Run, which: str) -> float:
    """The mean Dice, or IoU, of the network that is 'last', 'chosen' or 'best_3d'."""
    if run.by_iou:
        values = [row["iou"] for row in run.classes(which) if np.isfinite(row["iou"])]
    else:
        values = list(patient_scores(run, "dice", which, None).values())
    return float(np.mean(values)) if values else np.nan


# ------------------------------------------------------------------------------------------------ charts


def draw_validator(ax: Axes, name: str, values: np.ndarray, selection: Selection, places: Sequence[float]) -> None:
    """Draws the standardised scores of one validator: a dot a candidate, a line through those of epochs."""
    chooses, x, y = name in trusted(selection), np.array(places), np.clip(values, -FARTHEST, FARTHEST)
    colour = TRUSTED if chooses else GREY
    held = np.array([bool(one.gate) for one in selection.candidates])
    trained = x > 0
    chosen = selection.candidates.index(selection.chosen)
    size = 3.2 if len(x) <= 30 else 2.2
    ax.axvline(places[chosen], **CHOSEN_LINE)
    ax.plot(x[trained], y[trained], color=colour, linewidth=1)
    for marker, there in (("^", values > FARTHEST), ("v", values < -FARTHEST), ("o", np.abs(values) <= FARTHEST)):
        ax.plot(x[there & ~held], y[there & ~held], marker, color=colour, markersize=size)
    ax.plot(x[held], y[held], "x", color="black", markersize=size + 1.5, markeredgewidth=1)
    ax.plot(x[chosen], y[chosen], "o", color=CHOSEN, markersize=size + 2.5)
    ax.set_title(
        for_chart(name), size=9, color="black" if chooses else GREY, weight="bold" if chooses else "normal", pad=3
    )


def draw_revealed(ax: Axes, run: Run, places: Sequence[float]) -> None:
    """Draws the score of the validation images over epochs, of which the choice knew nothing, and what it came to."""
    column = "val_miou" if run.by_iou else "val_dice_3d"
    known = run.column(column).dropna()
    place = places[run.selection.candidates.index(run.selection.chosen)]
    ax.axvline(place, **CHOSEN_LINE)
    ax.plot(known.index + 1, known, color="black", linewidth=1.2)
    marks: Mapping[str, tuple[float, str, str, float]] = {
        "last": (run.epoch("last") + 1, "s", "black", 6),
        "chosen": (place, "o", CHOSEN, 8),
        "best_3d": (run.epoch("best_3d") + 1, "*", BEST, 12),
    }
    words = {"last": "last epoch", "chosen": f"chosen {run.selection.how}", "best_3d": "oracle (reads labels)"}
    for which, (x, marker, colour, size) in marks.items():
        score = score_of(run, which)
        look = {"color": colour, "markersize": size, "markeredgecolor": "white", "linestyle": ""}
        ax.plot(x, score, marker, label=f"{words[which]} {score:.3f}", **look)
    ax.set_title("revealed afterwards, on validation images", size=9, loc="left")
    ax.set_ylabel(column_label(column, run), size=8)
    ax.tick_params(labelsize=8)
    close = {"columnspacing": 1, "handletextpad": 0.2, "borderaxespad": 0.2}
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, **close)


def candidate_axis(ax: Axes, run: Run, places: Sequence[float]) -> None:
    """The axis of epochs, on which networks before the first step are told by their first letter."""
    length = max(len(run.metrics), 1)
    starts = {place: one.name[:1].upper() for place, one in zip(places, run.selection.candidates, strict=True)}
    starts = {place: letter for place, letter in starts.items() if place < 0}
    ticks = [tick for tick in whole_numbers().tick_values(0, length) if 1 <= tick <= length]
    ax.set_xticks([*starts, *ticks], [*starts.values(), *(f"{tick:.0f}" for tick in ticks)])
    ax.set_xlim(min([*starts, 0]) - 0.06 * length, 1.04 * length)


def legend(body: FigureBase, selection: Selection) -> None:
    dot = {"marker": "o", "markersize": 3.2, "linewidth": 1}
    handles = [
        Line2D([], [], color=TRUSTED, label="trusted", **dot),
        Line2D([], [], color=GREY, label="shown only", **dot),
        Line2D([], [], color=CHOSEN, marker="o", markersize=5.7, linewidth=1.2, label="chosen"),
    ]
    if any(one.gate for one in selection.candidates):
        words = "held back by the gate"
        handles.append(Line2D([], [], color="black", marker="x", markersize=4.7, linestyle="", label=words))
    words = "over epochs; S: source network, R: its batch-norm refresh; higher is better"
    body.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, title=words, title_fontsize=8)
