"""Pictures of predictions: the panel of slices and runs, the film over epochs, masks in colour."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image

from analysis.masks import Masks
from analysis.plots.canvas import CONTOURS, make_canvas, network_words, run_label, save, show_letters, wrap
from analysis.plots.kinds import kind, of_an_epoch, of_slices
from analysis.plots.views import ShownSlices, View, choose_slices, grey_or_colour, make_view
from analysis.run import Run
from metrics import confusion_counts, dice
from processes.errors import UserError
from processes.ownership import begin, refuse_taken
from processes.quoting import for_chart
from utils import atomic_write

FILM_FRAMES = 60  # a longer run is thinned out to this many
FRAME_MS, LAST_FRAME_MS = 200, 2000
NAME_WIDTH = 1.35  # inches of a class's name in a legend
SMALL_LETTERS = 13  # an inch of a slice's name


# -------------------------------------------------------------------------------------------- label maps


def label_colours(run: Run) -> np.ndarray:
    """(256, 3) uint8 colour of each label: the palette of the set, or the outlines' colours on a black background."""
    if run.palette is not None:
        return run.palette
    colours = np.zeros((256, 3), np.uint8)
    for k in range(1, run.n_class):
        colours[k] = np.multiply(to_rgb(CONTOURS[(k - 1) % len(CONTOURS)]), 255).round()
    return colours


def shown_classes(run: Run) -> list[int]:
    """The classes that the run averages over; the background is shown where it has a colour of its own."""
    return [k for k in run.metric_axis if k or run.palette is not None]


def slice_score(run: Run, predicted: np.ndarray, true: np.ndarray) -> float:
    """The mean over the classes of the Dice of a slice, or of its IoU if the run is scored so; NaN where none is there.

    predicted, true: class numbers (W, H)
    """
    counted = run.counted_pixels(true)
    both, *each = confusion_counts(predicted[counted], true[counted], run.n_class)
    values = dice(both, *each)[run.metric_axis]
    values = values / (2 - values) if run.by_iou else values
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def draw_image(ax: Axes, slices: ShownSlices, row: int, view: View) -> None:
    picture = np.moveaxis(view(grey_or_colour(slices, row)), 0, -1)
    ax.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", aspect=view.aspect, vmin=0, vmax=1)
    strip(ax)


def draw_entropy(ax: Axes, entropy: np.ndarray, view: View) -> None:
    """Draws the entropy (W, H) of each pixel, 0..1 of its maximum, from black to bright."""
    ax.imshow(view(entropy), cmap="magma", aspect=view.aspect, vmin=0, vmax=1)
    strip(ax)


def strip(ax: Axes) -> None:
    """Takes away grid, ticks and frame."""
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_label(ax: Axes, run: Run, slices: ShownSlices, row: int, label: np.ndarray, view: View) -> None:
    """Draws a label map (W, H) in the palette of the set, or its outlines on the image where there is no palette."""
    if run.palette is not None:
        ax.imshow(run.palette[view(label)], aspect=view.aspect)
        strip(ax)
        return
    draw_image(ax, slices, row, view)
    draw_contours(ax, view(label), shown_classes(run), label_colours(run) / 255)


def draw_contours(
    ax: Axes, label: np.ndarray, classes: Sequence[int], colours: np.ndarray | str, style: str = "solid"
) -> None:
    """Draws the outline of each class of a label map as it is shown, each in its own colour or all in one.

    label: (rows, columns) class numbers; colours: (K, 3) from 0 to 1, or the name of one
    """
    padded = np.pad(label, 1)  # closes outlines at the image's border
    rows, columns = padded.shape
    for k in classes:
        mask = padded == k
        if mask.any():
            line = colours if isinstance(colours, str) else [colours[k]]
            x, y = np.arange(columns) - 1, np.arange(rows) - 1
            drawn = ax.contour(x, y, mask, [0.5], colors=line, linewidths=1.4, linestyles=style)
            drawn.set_path_effects([withStroke(linewidth=2.6, foreground="#00000090")])
    ax.set(xlim=(-0.5, columns - 2.5), ylim=(rows - 2.5, -0.5))


def draw_prediction(ax: Axes, run: Run, slices: ShownSlices, row: int, mask: np.ndarray, view: View) -> None:
    """Draws a predicted label map (W, H), with its score below it where there is ground truth."""
    draw_label(ax, run, slices, row, mask, view)
    if not run.scored:
        return
    score = slice_score(run, mask, slices.truth(row))
    words = f"mIoU {100 * score:.1f} %" if run.by_iou else f"Dice {score:.2f}"
    ax.set_xlabel(words if np.isfinite(score) else "empty, rightly", size=9, labelpad=2)


def legend_columns(run: Run, width: float) -> int:
    return max(1, min(len(shown_classes(run)), int(width / NAME_WIDTH)))


def legend_height(run: Run, width: float) -> float:
    """Inches that `class_legend` takes on a canvas of this width."""
    number = len(shown_classes(run))
    return 0.1 + 0.2 * -(-number // legend_columns(run, width)) if number > 1 else 0.0


def class_legend(body: FigureBase, run: Run, width: float) -> None:
    """Draws what the colours stand for, if there are several."""
    colours, classes = label_colours(run) / 255, shown_classes(run)
    if len(classes) > 1:
        names = {k: for_chart(run.class_name(k)) for k in classes}
        handles: list[Line2D | Patch] = [Line2D([], [], color=colours[k], label=name) for k, name in names.items()]
        if run.palette is not None:
            handles = [Patch(color=colours[k], label=name) for k, name in names.items()]
        body.legend(handles=handles, loc="outside lower center", ncols=legend_columns(run, width))


# -------------------------------------------------------------------------------------------------- panel


@kind("panel", "images with truth and predictions", of_slices, of_an_epoch)
def plot_panel(runs: Sequence[Run], out: Path, number: int, which: str, data: Path | None) -> None:
    """Draws the panel of slices.

    Its rows are slices. Its columns are the image, the truth, each run's prediction with its score, and the entropy of
    the first two runs.
    """
    first, ranking = runs[0], runs[min(1, len(runs) - 1)]
    slices = Masks(first).slices(data)
    chosen = choose_slices(slices, ranking, which, number)
    masks = {row: [Masks(run).prediction(which, slices, row) for run in runs] for row in chosen}
    views = {row: make_view(slices, row, [slices.truth(row), *masks[row]], first.palette is not None) for row in chosen}
    unsure = [] if which == "best_3d" else [run for run in runs if has_entropy_of(run, which)][:2]
    heads = ["image", "truth", *map(run_label, runs), *(f"entropy, {for_chart(run.name)}" for run in unsure)]
    heads = ["\n".join(wrap(head, 15)) for head in heads]

    widest = max(wide / tall for tall, wide in (view.size for view in views.values()))
    cell = min(1.9 * max(1.0, widest) ** 0.5, 11 / len(heads))
    heights = [cell * tall / wide for tall, wide in (view.size for view in views.values())]
    width = cell * len(heads) + 0.5 + 0.8 * bool(unsure)
    words = 0.35 + 0.2 * max(head.count("\n") + 1 for head in heads) + 0.25 * len(chosen) + legend_height(first, width)
    title = panel_title(network_words(which, runs), chosen, ranking)
    figure, body = make_canvas(runs, title, width, sum(heights) + words)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = body.subplots(len(chosen), len(heads), squeeze=False, height_ratios=heights)
    for line, (row, role), height in zip(axes, chosen.items(), heights, strict=True):
        view, name = views[row], wrap(for_chart(slices.names[row]), max(8, int(SMALL_LETTERS * height)))
        draw_image(line[0], slices, row, view)
        line[0].set_ylabel("\n".join([*name, role]).strip(), size=9)
        draw_label(line[1], first, slices, row, slices.truth(row), view)
        for ax, run, mask in zip(line[2:], runs, masks[row], strict=False):
            draw_prediction(ax, run, slices, row, mask, view)
        for ax, run in zip(line[2 + len(runs) :], unsure, strict=True):
            draw_entropy(ax, Masks(run).entropy(slices.names[row]), view)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head)
    if unsure:
        bar = body.colorbar(axes[0, -1].images[0], ax=axes, fraction=0.02, aspect=30, pad=0.01)
        bar.set_label("entropy / log K")
    class_legend(body, first, width)
    save(figure, out)


def has_entropy_of(run: Run, which: str) -> bool:
    """Whether the entropy maps, which are of the last network, are of this one."""
    return Masks(run).has_entropy and run.epoch(which) == run.epoch("last")


def panel_title(network: str, roles: Mapping[int, str], ranking: Run) -> str:
    return f"{network}; patients ranked by {for_chart(ranking.name)}" if any(roles.values()) else network


# --------------------------------------------------------------------------------------------------- film


@kind("gif", "predictions over epochs", of_slices, several=False)
def make_film(run: Run, out: Path, number: int, data: Path | None) -> None:
    """Writes a GIF of the predictions over epochs on a few slices.

    The truth is dashed, or stands below if there is a palette.
    """
    if out.suffix != ".gif":
        raise UserError(f"The film is a .gif, not '{out.name}'; change --out.")
    epochs = list(Masks(run).epochs().items())
    slices = Masks(run).slices(data)
    rows = list(choose_slices(slices, run, "last", number))
    picks = np.linspace(0, len(epochs) - 1, min(len(epochs), FILM_FRAMES)).round().astype(int)
    masks = {
        epoch: [Masks(run).prediction(name, slices, row) for row in rows] for epoch, name in (epochs[i] for i in picks)
    }
    seen = [slices.truth(row) for row in rows] + [mask for frame in masks.values() for mask in frame]
    views = {row: make_view(slices, row, seen, run.palette is not None) for row in rows}
    frames = [draw_frame(run, slices, views, epoch, predicted) for epoch, predicted in masks.items()]
    palette = frames[-1].quantize(256)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        frames[0].save(file, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0)


def draw_frame(
    run: Run, slices: ShownSlices, views: Mapping[int, View], epoch: int, masks: Sequence[np.ndarray]
) -> Image.Image:
    """Draws one epoch of the film, as an RGB picture: of a run without ground truth the predictions alone.

    masks: predicted class numbers (W, H), one per slice of `views`
    """
    coloured = run.palette is not None and run.scored
    width, height = 2.4 * len(views) + 0.3, max(2.4 * tall / wide for tall, wide in (v.size for v in views.values()))
    truth = f" (truth {'below' if coloured else 'dashed'})" if run.scored else ""
    title = f"{run_label(run)}, epoch {epoch + 1}{truth}"
    figure, body = make_canvas([run], title, width, height * (1 + coloured) + 0.85 + legend_height(run, width))
    axes = body.subplots(1 + coloured, len(views), squeeze=False)
    for line, (row, view), mask in zip(axes.T, views.items(), masks, strict=True):
        draw_prediction(line[0], run, slices, row, mask, view)
        line[0].set_title(for_chart(slices.names[row]))
        if coloured:
            draw_label(line[1], run, slices, row, slices.truth(row), view)
        elif run.scored:
            draw_contours(line[0], view(slices.truth(row)), shown_classes(run), "white", "dashed")
    class_legend(body, run, width)
    show_letters(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# ------------------------------------------------------------------------------------------------- colour


@kind("colour", "saved masks as coloured pictures, in the folder --out", of_an_epoch, several=False)
def write_coloured(run: Run, which: str, out: Path) -> None:
    """Writes every saved mask of an epoch as a coloured PNG of the same name, into the folder `out`."""
    names, colours = Masks(run).names(which), label_colours(run)
    if out.resolve() == Masks(run).folder(which).resolve():
        raise UserError(f"{out} holds the masks themselves; name another folder with --out.")
    refuse_taken(out, "plot.py", "--out")
    begin(out, "plot.py")
    for name in names:
        with atomic_write(out / f"{name}.png") as file:
            Image.fromarray(colours[Masks(run).picture(which, name)]).save(file, format="png")


# ------------------------------------------------------------------------------------------------- for plot.py
