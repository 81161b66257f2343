"""Pictures of sets before any run: grey levels and class ratios, the sites overlaid, and slices with outlines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter

from analysis.plots.canvas import CONTOURS, LINES, make_canvas, make_grid, save, say, wrap
from analysis.plots.pictures import NAME_WIDTH, draw_contours, draw_image
from analysis.plots.views import make_view
from preprocess.survey.sets import Survey
from processes.quoting import for_chart
from utils import counted

BINS = 64
TAIL = 0.1  # per cent of the grey levels at each end that the histogram leaves out
CELL = 1.75  # inches of a slice in a montage
COLUMNS, ROWS = 6, 3


def plot_levels(surveys: Sequence[Survey], out: Path) -> None:
    """One line a site and image folder: which grey levels its images have, as they are stored."""
    found = {
        f"{survey.set_name}, {folder}" if len(survey.images) > 1 else survey.set_name: np.concatenate(
            [item.images[folder].sample for item in survey.items if folder in item.images] or [np.zeros(0)]
        )
        for survey in surveys
        for folder in survey.images
    }
    figure, body = make_canvas(surveys, "grey levels as stored (png: of the largest of their depth)", 7.5, 4)
    ax, every = body.subplots(), np.concatenate(list(found.values()))
    if not len(every):
        say(ax, "no image can be read")
    else:
        low, high = np.percentile(every, (TAIL, 100 - TAIL))
        bins = np.linspace(low, high if high > low else low + 1, BINS + 1)
        for number, (name, sample) in enumerate(found.items()):
            share = 100 * np.histogram(sample, bins)[0] / max(len(sample), 1)
            ax.stairs(share, bins, color=LINES[number % len(LINES)], linewidth=1.8, label=for_chart(name))
        ax.set(xlabel="grey level", ylabel="% of the pixels (logarithmic)", yscale="log", xlim=(bins[0], bins[-1]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # the usual one writes formulas
        body.legend(loc="outside lower center", ncols=min(len(found), 3))
    save(figure, out)


def plot_ratios(surveys: Sequence[Survey], out: Path) -> None:
    """One chart a class: the share of the slice that it takes, in the slices that show it, the sites overlaid."""
    n_class = max(survey.n_class for survey in surveys)
    figure, body, axes = make_grid(surveys, "class ratios where the class shows", n_class - 1)
    labelled = [(number, survey) for number, survey in enumerate(surveys) if len(survey.class_counts())]
    for k, ax in zip(range(1, n_class), axes, strict=True):
        ratios = {number: 100 * class_ratios(survey, k) for number, survey in labelled}
        highest = max((each.max(initial=0) for each in ratios.values()), default=0)
        ax.set_title(for_chart(labelled[0][1].class_name(k)), weight="bold")
        if not highest:
            say(ax, "in no slice")
            continue
        bins = np.linspace(0, highest * 1.02, 25)
        for number, each in ratios.items():
            if len(each):
                share = 100 * np.histogram(each, bins)[0] / len(each)
                ax.stairs(share, bins, color=LINES[number % len(LINES)], linewidth=1.8)
                ax.axvline(np.median(each), color=LINES[number % len(LINES)], linestyle="--", linewidth=1.2)
        ax.set(xlabel="% of the slice", ylabel="% of the slices with it", xlim=(0, bins[-1]), ylim=(0, None))
    handles = [
        Line2D([], [], color=LINES[number % len(LINES)], label=for_chart(survey.set_name))
        for number, survey in labelled
    ]
    handles.append(Line2D([], [], color="black", ls="--", lw=1.2, label="median"))
    body.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    save(figure, out)


def class_ratios(survey: Survey, k: int) -> np.ndarray:
    """Share of class k in each labelled slice that shows it."""
    counts = survey.class_counts()
    if k >= counts.shape[1]:
        return np.zeros(0)
    shown = counts[counts[:, k] > 0]
    return shown[:, k] / shown.sum(1)


def plot_montage(survey: Survey, out: Path) -> None:
    """Slices of one set, spread over its patients, with the outlines of their ground truth where there is one."""
    rows = spread_rows(survey, COLUMNS * ROWS)
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    truths = [survey.truth(row) for row in rows]
    views = [make_view(survey, row, [truth], True) for row, truth in zip(rows, truths, strict=True)]
    tall = max(height / width for height, width in (view.size for view in views))
    classes, colours = class_colours(survey)
    many = survey.n_class > 2 and len(survey.class_counts()) > 0
    how = "with ground truth" if len(survey.class_counts()) else "without ground truth"
    words = f"{survey.unit} of {counted(len({survey.items[row].patient for row in rows}), 'patient')}, {how}"
    width = max(CELL * columns, 4.5)
    legend = max(1, min(len(classes), int(width / NAME_WIDTH)))  # columns
    figure, body = make_canvas(
        [survey], words, width, lines * (CELL * tall + 0.3) + 0.65 + many * (0.1 + 0.2 * -(-len(classes) // legend))
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    axes = body.subplots(lines, columns, squeeze=False).ravel()
    for spare in axes[len(rows) :]:
        spare.remove()
    for ax, row, truth, view in zip(axes, rows, truths, views, strict=False):
        item = survey.items[row]
        draw_image(ax, survey, row, view)
        if item.pixels is not None:
            draw_contours(ax, view(truth), classes, colours)
        ax.set_title("\n".join([*wrap(for_chart(item.name), 22), item.split]), size=7.5, pad=2)
    if many:
        handles = [Line2D([], [], color=colours[k], label=for_chart(survey.class_name(k))) for k in classes]
        body.legend(handles=handles, loc="outside lower center", ncols=legend)
    save(figure, out)


def class_colours(survey: Survey) -> tuple[Sequence[int], np.ndarray]:
    """The classes that are outlined, and the (256, 3) colours in 0..1: of the set's palette, or bright ones."""
    if palette := survey.card.get("palette"):
        colours = np.zeros((256, 3))
        colours[: len(palette)] = np.array(palette) / 255
        return range(survey.n_class), colours
    return range(1, survey.n_class), np.array([to_rgb(CONTOURS[(k - 1) % len(CONTOURS)]) for k in range(256)])


def spread_rows(survey: Survey, number: int) -> list[int]:
    """Rows to show: as many of each patient, of those who have an image, spread over the slices with foreground."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(survey.items):
        if item.images:
            rows.setdefault(item.patient, []).append(row)
    patients = list(rows)
    picks = np.linspace(0, len(patients) - 1, min(number, len(patients))).round().astype(int)
    chosen = []
    for patient in (patients[pick] for pick in picks):
        own = rows[patient]
        full = [r for r in own if survey.items[r].pixels is not None and survey.items[r].pixels[1:].any()] or own
        places = np.linspace(0, len(full) - 1, 2 + max(1, number // len(picks)))[1:-1].round().astype(int)
        chosen += [full[place] for place in dict.fromkeys(places.tolist())]
    return chosen[:number]
