"""What every plot is drawn on: style, colours, the canvas with its banner, grids of charts, saving."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from analysis.run import Run, unique
from analysis.tables.choice import ways
from processes.errors import UserError
from processes.quoting import for_chart, visible
from utils import atomic_write

# Okabe and Ito's palette, told apart by every kind of colour vision; the second set is bright enough for grey images.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CONTOURS = ("#F0E442", "#56B4E9", "#FF8A3D", "#E78AC3", "#66D9A8")
GREY, LIGHT_GREY, RED = "#767676", "#C9C9C9", "#B00020"
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
    "text.parse_math": False,  # a $ in a name is a $
}
BANNER_HEIGHT = 0.4  # inches
LETTERS_PER_INCH = 10  # of a title
DATED: dict[str, dict[str, None] | None] = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
EPOCHS = {"last": "last epoch", "chosen": "chosen without labels", "best_3d": "best epoch (target labels)"}


def network_words(which: str, runs: Sequence[Run]) -> str:
    """Which network of these runs is shown: 'last epoch', 'chosen with 2 labelled patients'."""
    return f"chosen {how}" if which == "chosen" and (how := ways(runs)) else EPOCHS[which]


class Titled(Protocol):
    """What a picture is of: a run, or a set of images."""

    @property
    def set_name(self) -> str: ...

    @property
    def phantom(self) -> bool: ...


def make_canvas(runs: Sequence[Titled], title: str, width: float, height: float) -> tuple[Figure, FigureBase]:
    """Makes a figure of this size in inches.

    Returns it and the part to draw in, below the red banner if a run is phantom.
    """
    phantom = any(run.phantom for run in runs)
    figure = Figure(figsize=(width, height + phantom * BANNER_HEIGHT), layout="constrained")
    body: FigureBase = figure
    if phantom:
        banner, body = figure.subfigures(2, 1, height_ratios=[BANNER_HEIGHT, height])
        banner.set_facecolor(RED)
        banner.text(
            0.5, 0.5, "PHANTOM: made-up images", color="white", size=15, weight="bold", ha="center", va="center"
        )
    named = f"{' / '.join(map(for_chart, unique(runs, lambda run: run.set_name)))}: {title}"
    body.suptitle(textwrap.fill(named, int(LETTERS_PER_INCH * width)), size=12)
    return figure, body


def make_grid(runs: Sequence[Titled], title: str, number: int) -> tuple[Figure, FigureBase, list[Axes]]:
    """Makes a canvas with that many charts, in rows of at most three, with room for a legend below."""
    columns = 2 if number == 4 else min(number, 3)
    rows = -(-number // columns)
    figure, body = make_canvas(runs, title, max(3.7 * columns, 5.2), 2.9 * rows + 0.8)
    axes = body.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[number:]:
        spare.remove()
    return figure, body, list(axes[:number])


def save(figure: Figure, path: Path) -> None:
    """Writes the picture as .png, .pdf or .svg, the same bytes for the same picture."""
    kind = path.suffix[1:]
    if kind not in DATED:
        raise UserError(f"Plots are written as .png, .pdf or .svg, not as '{path.name}'; change --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    show_letters(figure)
    with atomic_write(path) as file, rc_context({"svg.hashsalt": "plots"}):
        figure.savefig(file, format=kind, metadata=DATED[kind])


def show_letters(figure: Figure) -> None:
    """Makes the words of a figure be drawn letter by letter, so that no name in them can stop the drawing."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(visible(text.get_text(), keep="\n"))


def run_label(run: Run) -> str:
    """The run's name, with what a reader must know of it."""
    marks = [
        word for word, on in (("DEBUG", run.provenance.get("debug")), ("oracle", run.provenance.get("oracle"))) if on
    ]
    return f"{for_chart(run.name)} ({', '.join(marks)})" if marks else for_chart(run.name)


def wrap(name: str, letters: int) -> list[str]:
    """Breaks a long name into lines, at spaces and after underscores."""
    if len(name) <= letters:
        return [name]
    return [line.replace("_ ", "_") for line in textwrap.wrap(name.replace("_", "_ "), letters)]


def say(ax: Axes, words: str) -> None:
    """Writes into a chart that has nothing to show.

    A run may fail altogether, and its other plots may still be wanted.
    """
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=GREY)


def whole_numbers() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 5, 10], integer=True)
