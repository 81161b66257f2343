"""Pictures of finished runs: curves, loss terms, box plots, sizes, the picture panel, the film over epochs.

    python plot.py curves --runs results/spine/noadap results/spine/sfda --column val_dice_3d --out curves.png

Everything is drawn from the run folders alone, except `panel` and `gif`, which also need the images.
"""

import argparse
import csv
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from dataloader import SliceSet
from metrics import DISTANCES, SCORES, average_classes, dice
from run_files import Run, open_runs, unique
from utils import UserError, atomic_write, run_program

# Okabe and Ito's palette, told apart by every kind of colour vision; the second set is bright enough for grey images.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CONTOURS = ("#F0E442", "#56B4E9", "#FF8A3D", "#E78AC3", "#66D9A8")
GREY, RED = "#767676", "#B00020"
STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
BANNER_HEIGHT = 0.4  # inches
LETTERS_PER_INCH = 10  # of a title
FILM_FRAMES = 60  # a longer run is thinned out to this many
FRAME_MS, LAST_FRAME_MS = 200, 2000
FEW_PATIENTS = 5  # a box needs at least as many points


# ------------------------------------------------------------------------------------------------- canvas


def make_canvas(runs: Sequence[Run], title: str, width: float, height: float) -> tuple[Figure, FigureBase]:
    """A figure of this size in inches, and the part of it to draw in: below the red banner if a run is phantom."""
    phantom = any(run.phantom for run in runs)
    figure = Figure(figsize=(width, height + phantom * BANNER_HEIGHT), layout="constrained")
    body: FigureBase = figure
    if phantom:
        banner, body = figure.subfigures(2, 1, height_ratios=[BANNER_HEIGHT, height])
        banner.set_facecolor(RED)
        banner.text(
            0.5, 0.5, "PHANTOM: made-up images", color="white", size=15, weight="bold", ha="center", va="center"
        )
    named = f"{' / '.join(unique(runs, lambda run: run.set_name))}: {title}"
    body.suptitle(textwrap.fill(named, int(LETTERS_PER_INCH * width)), size=12)
    return figure, body


def save(figure: Figure, path: Path) -> None:
    """Writes the picture as .png or .pdf, the same bytes for the same picture."""
    kind = path.suffix[1:]
    if kind not in ("png", "pdf"):
        raise UserError(f"Plots are written as .png or .pdf, not as '{path.name}'; change --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)


def run_label(run: Run) -> str:
    """The run's name, with what a reader must know of it."""
    marks = [
        word for word, on in (("DEBUG", run.provenance.get("debug")), ("oracle", run.provenance.get("oracle"))) if on
    ]
    return f"{run.name} ({', '.join(marks)})" if marks else run.name


def column_label(column: str, run: Run) -> str:
    """What a column of the log holds, in words, with its unit."""
    side = {"tra": "training", "val": "validation"}.get(column[:3], "")
    patterns: dict[str, Callable[[re.Match[str]], str]] = {
        r"..._loss_tot": lambda _: f"total loss, {side}",
        r"..._loss_(.+)": lambda m: f"{m[1]}, {side}",
        r"..._dice": lambda _: f"2D Dice, mean over slices, {side}",
        r"val_dice_3d": lambda _: "3D Dice, mean over patients",
        r"val_dice_3d_sd": lambda _: "3D Dice, sd over patients",
        r"val_dice_3d_(\d+)": lambda m: f"3D Dice, {run.class_name(int(m[1]))}",
        r"val_(hd95|assd)_(mm|vox)_(\d+)": lambda m: f"{m[1].upper()} ({m[2]}), {run.class_name(int(m[3]))}",
        r"val_size_mean": lambda _: "predicted size, mean over slices (pixels)",
        r"val_gt_size_mean": lambda _: "true size, mean over slices (pixels)",
        r"l_rate": lambda _: "learning rate",
        r"seconds": lambda _: "time of an epoch (s)",
    }
    for pattern, words in patterns.items():
        if match := re.fullmatch(pattern, column):
            return words(match)
    return column


def say(ax: Axes, words: str) -> None:
    """What stands in a chart that has nothing to show: a run may fail altogether, and its other plots be wanted."""
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=GREY)


def epoch_limits(n_epoch: int) -> tuple[float, float]:
    return 0.5, max(n_epoch + 0.02 * n_epoch, 1.5)


def whole_numbers() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 5, 10], integer=True)


def make_grid(runs: Sequence[Run], title: str, number: int) -> tuple[Figure, FigureBase, list[Axes]]:
    """A canvas with that many charts in rows of at most three, and room for a legend below."""
    columns = 2 if number == 4 else min(number, 3)
    rows = -(-number // columns)
    figure, body = make_canvas(runs, title, max(3.7 * columns, 5.2), 2.9 * rows + 0.8)
    axes = body.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[number:]:
        spare.remove()
    return figure, body, list(axes[:number])


# ------------------------------------------------------------------------------------------- over epochs


def plot_curves(runs: Sequence[Run], column: str, out: Path) -> None:
    """One curve a run over epochs; a run of one epoch beside longer ones is a level, drawn dashed."""
    series = {run.name: run.column(column).to_numpy(float) for run in runs}
    words = column_label(column, runs[0])
    figure, body = make_canvas(runs, "epoch by epoch", 7.5, 4)
    ax = body.subplots()
    longest = max(map(len, series.values()))
    for number, run in enumerate(runs):
        values, colour = series[run.name], LINES[number % len(LINES)]
        if len(values) == 1 < longest:
            ax.axhline(values[0], color=colour, linestyle=(0, (5, 3)), label=run_label(run))
            continue
        line = ("-", "-.", ":")[number // len(LINES) % 3]
        known = np.isfinite(values)  # distances stand in some epochs only
        marker = "o" if known.sum() == 1 else ""
        ax.plot(run.metrics["epoch"][known] + 1, values[known], line, color=colour, marker=marker, label=run_label(run))
    ax.set(xlabel="epoch", ylabel=words, xlim=epoch_limits(longest))
    ax.xaxis.set_major_locator(whole_numbers())
    if "dice" in column and not column.endswith("sd"):
        ax.set_ylim(-0.03, 1.03)
    if not any(np.isfinite(values).any() for values in series.values()):
        say(ax, "no run has a value")
    body.legend(loc="outside right center")
    save(figure, out)


def plot_losses(run: Run, out: Path) -> None:
    """Every loss term in training and in validation, one panel a term."""
    found = [re.fullmatch("(tra|val)_loss_(.+)", name) for name in run.metrics]
    terms = list(dict.fromkeys(match[2] for match in found if match and run.column(match[0]).notna().any()))
    figure, body, axes = make_grid([run], f"loss terms of {run_label(run)}", max(len(terms), 1))
    if not terms:
        say(axes[0], "no loss was computed")
    epochs = run.metrics["epoch"] + 1
    for term, ax in zip(terms, axes, strict=False):
        for side, line, colour in (("tra", "-", LINES[0]), ("val", "--", LINES[1])):
            name = f"{side}_loss_{term}"
            if name in run.metrics and run.column(name).notna().any():
                ax.plot(epochs, run.column(name), line, color=colour, marker="o" if len(epochs) == 1 else "")
        ax.set(title="total" if term == "tot" else term, xlabel="epoch", ylabel="loss", xlim=epoch_limits(len(epochs)))
        ax.xaxis.set_major_locator(whole_numbers())
    sides = [
        Line2D([], [], color=LINES[0], label="training"),
        Line2D([], [], color=LINES[1], ls="--", label="validation"),
    ]
    body.legend(handles=sides, loc="outside lower center", ncols=2)
    save(figure, out)


# ------------------------------------------------------------------------------------------ over patients


def plot_boxes(runs: Sequence[Run], score: str, which: str, out: Path, only: int | None = None) -> None:
    """One box a run over its patients, every patient a point, the same patient joined by a line."""
    epoch = "last epoch" if which == "last" else "best epoch (target labels)"
    figure, body = make_canvas(runs, f"patients one by one, {epoch}", max(5.2, 1.15 * len(runs) + 1.2), 4)
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
    if score in ("dice", "nsd"):
        ax.set_ylim(-0.03, 1.03)
    ax.grid(visible=False, axis="x")
    save(figure, out)


def score_label(score: str, runs: Sequence[Run]) -> str:
    """Dice, HD95 (mm), …"""
    names = {"dice": "3D Dice", "nsd": "NSD", "volume_error": "relative volume error"}
    unit = f" ({', '.join(unique(runs, lambda run: run.unit))})" if score in DISTANCES else ""
    return names.get(score, score.upper()) + unit


def chosen_rows(run: Run, which: str, only: int | None) -> list[dict[str, Any]]:
    """The patients' rows of class `only`, or of every class that the run averages over."""
    classes = run.metric_axis if only is None else [only]
    rows = [row for row in run.patients(which) if row["class"] in classes]
    if not rows:
        raise UserError(f"{run.folder} scored no class {only}; its classes are {run.metric_axis}.")
    return rows


def patient_scores(run: Run, score: str, which: str, only: int | None) -> dict[str, float]:
    """Patient -> score, the mean of the classes or that of class `only`; patients without one left out."""
    rows = average_classes(chosen_rows(run, which, only))
    return {row["patient"]: row[score] for row in rows if np.isfinite(row[score])}


def box_label(run: Run, which: str, only: int | None, number: int) -> str:
    outcomes = [row["outcome"] for row in chosen_rows(run, which, only)]
    lines = [*textwrap.wrap(run_label(run).replace("_", "_ "), 15), f"n = {number}"]
    for outcome, words in (("miss", "missed"), ("false structure", "false")):
        if outcome in outcomes:
            lines.append(f"{outcomes.count(outcome)} {words}")
    return "\n".join(lines).replace("_ ", "_")


def spread(number: int) -> np.ndarray:
    """Sideways shifts that keep points of similar height apart, the same in every picture."""
    return np.zeros(1) if number == 1 else 0.16 * np.array([(i * 0.618) % 1 - 0.5 for i in range(number)]) * 2


def join_patients(ax: Axes, points: Sequence[dict[str, float]]) -> None:
    """A thin line between a patient's scores in neighbouring runs."""
    for number, (left, right) in enumerate(itertools.pairwise(points)):
        starts, ends = (dict(zip(side, spread(len(side)), strict=True)) for side in (left, right))
        for patient in left.keys() & right.keys():
            x = [number + starts[patient], number + 1 + ends[patient]]
            ax.plot(x, [left[patient], right[patient]], color=GREY, linewidth=0.6, alpha=0.45, zorder=1)


# -------------------------------------------------------------------------------------------------- sizes


def plot_sizes(run: Run, out: Path) -> None:
    """Histogram per class of the sizes predicted in the last epoch, of the true ones and of the prior."""
    true, prior = run.array("val_gt_sizes.npy"), run.array("prior_sizes.npy")
    predicted = run.array("val_sizes.npy")[len(run.metrics) - 1]
    classes = run.metric_axis
    figure, body, axes = make_grid([run], f"foreground sizes, last epoch of {run_label(run)}", len(classes))
    for k, ax in zip(classes, axes, strict=True):
        draw_sizes(ax, predicted[:, k], true[:, k], prior[:, k])
        none = [int((sizes[:, k] == 0).sum()) for sizes in (predicted, true)]
        empty = f"empty slices: {none[0]} predicted, {none[1]} true, of {len(true)}"
        ax.set_title(f"{run.class_name(k)}\n", weight="bold")
        ax.text(0.5, 1.02, empty, transform=ax.transAxes, ha="center", va="bottom", size=8.5, color="#444444")
        ax.set(xlabel="size (pixels)", ylabel="slices")
        ax.yaxis.set_major_locator(whole_numbers())
    handles = [
        Patch(facecolor="#C9C9C9", label="true"),
        Line2D([], [], color=LINES[0], label="predicted"),
        Line2D([], [], color=LINES[1], linestyle="--", label="prior"),
    ]
    body.legend(handles=handles[: 3 if np.isfinite(prior).any() else 2], loc="outside lower center", ncols=3)
    save(figure, out)


def draw_sizes(ax: Axes, predicted: np.ndarray, true: np.ndarray, prior: np.ndarray) -> None:
    """Sizes above zero; a prior of few values is a line at each, as a bar would hide the rest."""
    predicted, true, prior = (sizes[np.isfinite(sizes) & (sizes > 0)] for sizes in (predicted, true, prior))
    everything = np.concatenate([predicted, true, prior])
    if not len(everything):
        say(ax, "nothing true, nothing predicted")
        return
    bins = np.linspace(0, everything.max() * 1.02, 25)
    ax.hist(true, bins, color="#C9C9C9")
    ax.hist(predicted, bins, histtype="step", color=LINES[0], linewidth=1.8)
    levels = np.unique(prior.round())
    if len(levels) > 3:
        ax.hist(prior, bins, histtype="step", color=LINES[1], linestyle="--", linewidth=1.6)
    for level in levels if len(levels) <= 3 else ():
        ax.axvline(level, color=LINES[1], linestyle="--", linewidth=1.6)


# ----------------------------------------------------------------------------------------------- pictures


def choose_slices(slices: SliceSet, run: Run, which: str, number: int) -> dict[int, str]:
    """Row of each slice to show -> what it stands for.

    With enough patients one slice each, from the patient whom `run` segments best to the worst; else from different
    places of the volumes. Of each patient or place, the slice with the most foreground.
    """
    area = np.array([np.count_nonzero(slices.truth(row)) for row in range(len(slices))])
    order = list(dict.fromkeys(slices.patients))
    if len(order) >= number > 1:
        scores = patient_scores(run, "dice", which, None)
        ranked = sorted(order, key=lambda patient: -scores.get(patient, 0.0))
        picks = np.linspace(0, len(ranked) - 1, number).round().astype(int)
        roles = {0: f"best of {len(ranked)}", len(ranked) - 1: f"worst of {len(ranked)}"}
        members = {pick: np.flatnonzero(np.array(slices.patients) == ranked[pick]) for pick in picks}
        return {int(rows[area[rows].argmax()]): roles.get(pick, "") for pick, rows in members.items()}
    rows = np.flatnonzero(area) if area.any() else np.arange(len(slices))
    blocks = np.array_split(rows, min(number, len(rows)))
    return {int(block[area[block].argmax()]): "" for block in blocks}


@dataclass(frozen=True)
class View:
    """How a slice is shown: the part of it that matters, upright."""

    part: tuple[slice, slice]  # of W and H
    swap: bool  # H runs downwards
    flip: tuple[bool, bool]  # downwards and sideways, after the swap
    aspect: float  # height of a pixel over its width

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(…, W, H) as stored -> (…, rows, columns) as shown."""
        shown = array[..., *self.part]
        shown = np.swapaxes(shown, -1, -2) if self.swap else shown
        return shown[..., :: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]

    def shape(self, slices: SliceSet) -> tuple[float, float]:
        """Height and width as shown, in widths of a pixel."""
        rows, columns = self(np.empty(slices.shape)).shape[-2:]
        return rows * self.aspect, columns


def make_view(slices: SliceSet, row: int, masks: Sequence[np.ndarray]) -> View:
    """The view of a slice: a window around these masks, upright if the set's manifest says how the patient lay."""
    spacing = (1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[slices.patients[row]]
    swap, flip = upright(axis_codes(slices.root, slices.names[row]))
    aspect = spacing[2] / spacing[1] if swap else spacing[1] / spacing[2]
    return View(window(masks), swap, flip, aspect)


def upright(codes: str) -> tuple[bool, tuple[bool, bool]]:
    """Swap and flips that show a slice as radiologists do: head or front up, the patient's right or front on the left.

    `codes`: where W and H point, two of RLAPSI; '' leaves the slice as it is.
    """
    if not codes:
        return False, (False, False)
    rank = {code: number for number, pair in enumerate(("RL", "AP", "SI")) for code in pair}
    swap = rank[codes[1]] > rank[codes[0]]  # of two axes, the one of higher rank runs downwards
    down, across = codes[::-1] if swap else codes
    return swap, (down in "AS", across in "RA")


def axis_codes(root: Path, name: str) -> str:
    """Where the slice's W and H axes point, such as 'PI'; '' where the set's manifest.csv does not tell."""
    path = root / "manifest.csv"
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        row = next((row for row in csv.DictReader(file) if row["slice"] == name), {})
    if not row.get("affine") or not row.get("axis"):
        return ""
    affine = np.array([float(number) for number in row["affine"].split()]).reshape(4, 4)
    return "".join(code for axis, code in enumerate(nib.aff2axcodes(affine)) if axis != int(row["axis"]))


def window(masks: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """The part of the image to show: everything true or predicted with a margin, at least half of each axis."""
    seen = np.any([mask > 0 for mask in masks], axis=0)
    parts = []
    for axis, size in enumerate(seen.shape):
        hit = np.flatnonzero(seen.any(1 - axis))
        low, high = (hit[0], hit[-1] + 1) if len(hit) else (0, size)
        margin = max(size // 10, -(-(size // 2 - (high - low)) // 2))
        parts.append(slice(max(0, low - margin), min(size, high + margin)))
    return parts[0], parts[1]


def prediction(run: Run, which: str, slices: SliceSet, row: int) -> np.ndarray:
    """(W, H) predicted classes of a slice; raises UserError where they do not fit the images."""
    mask = run.picture(which, slices.names[row])
    if mask.shape != slices.shape[1:]:
        raise UserError(
            f"{run.folder} predicted {mask.shape} pixels on {slices.names[row]}, the images in {slices.root} have "
            f"{slices.shape[1:]}: these are not the images of that run."
        )
    return mask


def slice_dice(predicted: np.ndarray, true: np.ndarray, classes: Sequence[int]) -> float:
    """2D Dice, mean over the classes that are there; NaN where none is."""
    pairs = [(predicted == k, true == k) for k in classes]
    values = [float(dice(*(np.array([m.sum()]) for m in (p & t, p, t)))[0]) for p, t in pairs if p.any() or t.any()]
    return float(np.mean(values)) if values else float("nan")


def show_image(ax: Axes, image: np.ndarray, view: View) -> None:
    """A (C, W, H) image in grey or colour, its darkest and brightest hundredth clipped, without axes."""
    low, high = np.percentile(image, (1, 99))
    shown = np.clip((view(image) - low) / max(high - low, 1e-6), 0, 1)
    picture = np.moveaxis(shown, 0, -1) if len(shown) == 3 else shown[0]
    ax.imshow(picture, cmap="gray", aspect=view.aspect, vmin=0, vmax=1)
    strip(ax)


def show_entropy(ax: Axes, entropy: np.ndarray, view: View) -> None:
    ax.imshow(view(entropy), cmap="magma", aspect=view.aspect, vmin=0, vmax=1)
    strip(ax)


def strip(ax: Axes) -> None:
    """No grid, no ticks, no frame."""
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_contours(ax: Axes, label: np.ndarray, classes: Sequence[int], style: str = "solid", colour: str = "") -> None:
    """The outline of each class of a label map as shown, each in its own colour or all in one."""
    padded = np.pad(label, 1)  # closes outlines at the image's border
    rows, columns = padded.shape
    for number, k in enumerate(classes):
        mask = padded == k
        if mask.any():
            line = colour or CONTOURS[number % len(CONTOURS)]
            x, y = np.arange(columns) - 1, np.arange(rows) - 1
            drawn = ax.contour(x, y, mask, [0.5], colors=line, linewidths=1.4, linestyles=style)
            drawn.set_path_effects([withStroke(linewidth=2.6, foreground="#00000090")])
    ax.set(xlim=(-0.5, columns - 2.5), ylim=(rows - 2.5, -0.5))


def draw_prediction(ax: Axes, slices: SliceSet, row: int, mask: np.ndarray, view: View, classes: Sequence[int]) -> None:
    """The image, the outlines of a prediction, its Dice."""
    show_image(ax, slices.image(row), view)
    draw_contours(ax, view(mask), classes)
    score = slice_dice(mask, slices.truth(row), classes)
    ax.set_xlabel(f"Dice {score:.2f}" if np.isfinite(score) else "empty, rightly", size=9, labelpad=2)


def class_legend(body: FigureBase, run: Run) -> None:
    """Names of the outlines' colours, where there is more than one."""
    if len(run.metric_axis) > 1:
        colours = zip(run.metric_axis, itertools.cycle(CONTOURS), strict=False)
        handles = [Line2D([], [], color=colour, label=run.class_name(k)) for k, colour in colours]
        body.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))


def plot_panel(runs: Sequence[Run], out: Path, number: int, which: str, data: Path | None) -> None:
    """Rows: slices. Columns: image, truth, each run's outlines with the slice's Dice, entropy of the first two runs."""
    slices, ranking = runs[0].slices(data), runs[min(1, len(runs) - 1)]
    chosen = choose_slices(slices, ranking, which, number)
    masks = {row: [prediction(run, which, slices, row) for run in runs] for row in chosen}
    seen = [mask for row in chosen for mask in (slices.truth(row), *masks[row])]
    views = {row: make_view(slices, row, seen) for row in chosen}
    unsure = [run for run in runs if run.has_entropy][:2] if which == "last" else []
    heads = ["image", "truth", *map(run_label, runs), *(f"entropy, {run.name}" for run in unsure)]
    heads = [textwrap.fill(head, 15) for head in heads]

    cell = min(1.9, 11 / len(heads))
    heights = [cell * tall / wide for tall, wide in (view.shape(slices) for view in views.values())]
    words = 0.35 + 0.2 * max(head.count("\n") + 1 for head in heads) + 0.25 * len(chosen)
    words += 0.3 * (len(runs[0].metric_axis) > 1)
    title = panel_title(which, chosen, ranking)
    width = cell * len(heads) + 0.5 + 0.8 * bool(unsure)
    figure, body = make_canvas(runs, title, width, sum(heights) + words)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = body.subplots(len(chosen), len(heads), squeeze=False, height_ratios=heights)
    for line, (row, role) in zip(axes, chosen.items(), strict=True):
        show_image(line[0], slices.image(row), views[row])
        line[0].set_ylabel(f"{slices.names[row]}\n{role}".strip(), size=9)
        show_image(line[1], slices.image(row), views[row])
        draw_contours(line[1], views[row](slices.truth(row)), runs[0].metric_axis)
        for ax, mask in zip(line[2:], masks[row], strict=False):
            draw_prediction(ax, slices, row, mask, views[row], runs[0].metric_axis)
        for ax, run in zip(line[2 + len(runs) :], unsure, strict=True):
            show_entropy(ax, run.entropy(slices.names[row]), views[row])
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head)
    if unsure:
        bar = body.colorbar(axes[0, -1].images[0], ax=axes, fraction=0.02, aspect=30, pad=0.01)
        bar.set_label("entropy / log K")
    class_legend(body, runs[0])
    save(figure, out)


def panel_title(which: str, chosen: Mapping[int, str], ranking: Run) -> str:
    epoch = "last epoch" if which == "last" else "best epoch (target labels)"
    return f"{epoch}; patients ranked by {ranking.name}" if any(chosen.values()) else epoch


# --------------------------------------------------------------------------------------------------- film


def make_film(run: Run, out: Path, number: int, data: Path | None) -> None:
    """A GIF of the predictions over epochs on a few slices, the truth dashed."""
    if out.suffix != ".gif":
        raise UserError(f"The film is a .gif, not '{out.name}'; change --out.")
    epochs = run.epochs_saved()
    if not epochs:
        raise UserError(f"{run.folder} holds no iter000/val; run it again with --saveim True.")
    slices = run.slices(data)
    rows = list(choose_slices(slices, run, "last", number))
    picks = np.linspace(0, len(epochs) - 1, min(len(epochs), FILM_FRAMES)).round().astype(int)
    masks = {epochs[i]: [prediction(run, epochs[i], slices, row) for row in rows] for i in picks}
    seen = [slices.truth(row) for row in rows] + [mask for frame in masks.values() for mask in frame]
    views = {row: make_view(slices, row, seen) for row in rows}
    frames = [draw_frame(run, slices, views, epoch, predicted) for epoch, predicted in masks.items()]
    palette = frames[-1].quantize(256)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        frames[0].save(file, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0)


def draw_frame(
    run: Run, slices: SliceSet, views: Mapping[int, View], epoch: str, masks: Sequence[np.ndarray]
) -> Image.Image:
    """One epoch of the film as an RGB picture."""
    height = max(2.4 * tall / wide for tall, wide in (view.shape(slices) for view in views.values()))
    title = f"{run_label(run)}, epoch {int(epoch[4:]) + 1} (truth dashed)"
    figure, body = make_canvas([run], title, 2.4 * len(views) + 0.3, height + 0.85)
    axes = body.subplots(1, len(views), squeeze=False)[0]
    for ax, (row, view), mask in zip(axes, views.items(), masks, strict=True):
        draw_prediction(ax, slices, row, mask, view, run.metric_axis)
        draw_contours(ax, view(slices.truth(row)), run.metric_axis, "dashed", "white")
        ax.set_title(slices.names[row])
    class_legend(body, run)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# --------------------------------------------------------------------------------------------------- main


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    kinds = parser.add_subparsers(dest="kind", required=True)

    def add(kind: str, several: bool, help: str) -> argparse.ArgumentParser:
        command = kinds.add_parser(kind, help=help, description=help, allow_abbrev=False)
        runs = ("--runs", {"nargs": "+"}) if several else ("--run", {"nargs": 1, "dest": "runs"})
        command.add_argument(runs[0], type=Path, required=True, help="results/<set>/<run>", **runs[1])
        command.add_argument("--out", type=Path, required=True)
        return command

    which = {"choices": ("last", "best_3d"), "default": "last", "help": "best_3d was chosen with target labels"}
    add("curves", True, "one column of the log over epochs").add_argument("--column", default="val_dice_3d")
    add("losses", False, "every loss term over epochs")
    boxes = add("boxes", True, "a score per patient and run")
    boxes.add_argument("--score", choices=SCORES, default="dice")
    boxes.add_argument("--which", **which)
    boxes.add_argument("--class", dest="only", type=int, help="one class instead of the mean of all")
    add("sizes", False, "predicted, true and prior sizes")
    panel = add("panel", True, "images with truth and predictions")
    panel.add_argument("--which", **which)
    film = add("gif", False, "predictions over epochs")
    for command in (panel, film):
        command.add_argument("--slices", type=int, default=3, help="how many")
        command.add_argument("--data", type=Path, help="the set's folder, if it moved since the run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    runs = open_runs(args.runs)
    draw: dict[str, Callable[[], None]] = {
        "curves": lambda: plot_curves(runs, args.column, args.out),
        "losses": lambda: plot_losses(runs[0], args.out),
        "boxes": lambda: plot_boxes(runs, args.score, args.which, args.out, args.only),
        "sizes": lambda: plot_sizes(runs[0], args.out),
        "panel": lambda: plot_panel(runs, args.out, args.slices, args.which, args.data),
        "gif": lambda: make_film(runs[0], args.out, args.slices, args.data),
    }
    with mpl.rc_context(STYLE):
        draw[args.kind]()


if __name__ == "__main__":
    run_program(main)
