"""Masks to be looked over: a picture of each case with the contours of its classes, and a page of all of them.

    OUT/montage/<patient>.png   a few slices across the coarsest axis, from the first to the last that shows a class
    OUT/montage/index.html      all pictures, the masks first of which the lowest Dice is expected; one file, to be sent

Slices lie as radiologists look at them: the patient's right is on the left (of a sagittal slice his front), and his
front or head is above.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from PIL import Image
from tqdm import tqdm

from analysis.plots.canvas import CONTOURS, STYLE, make_canvas, save
from analysis.plots.pictures import draw_contours, strip
from files.faults import Fault, VolumeFault
from files.grids import RADIOLOGICAL, Grid, turn
from files.reading import read_grid, read_voxels
from prediction.outputs import COLUMNS
from processes.quoting import for_chart, for_html
from utils import atomic_write, counted

FOLDER, PAGE = "montage", "index.html"
COLUMNS_SHOWN, MOST = 4, 8  # slices in a row, and in a picture
CELL = 2.4  # inches
COARSE = 1.2  # times as far apart as along the finest axis: slices are shown across such an axis, else axial ones
GREYS = (0.5, 99.5)  # percentiles that become black and white
EDGE = 2000  # pixels of a picture on the page, at most
ABOVE = {0: (2, 1), 1: (2, 0), 2: (1, 0)}  # axis that is cut along -> those that become rows and columns, of LPS


Lines = Sequence[Mapping[str, str]]  # of one patient, in the table of sizes


@dataclass(frozen=True)
class Shown:
    """What is shown of a case: its first volume, and its mask."""

    patient: str
    volume: Path
    mask: Path


@dataclass(frozen=True)
class Look:
    """How cases are shown. `labels`: class -> its number in a mask; `names`: of the classes; phantom: it is made up."""

    labels: Mapping[int, int]
    names: Sequence[str]
    phantom: bool = False


@dataclass(frozen=True)
class Titled:
    """What a picture is of."""

    set_name: str
    phantom: bool


def by_column(rows: Iterable[Sequence[str]]) -> dict[str, list[dict[str, str]]]:
    """Patient -> the lines of the table of sizes by column."""
    lines: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        lines.setdefault(row[0], []).append(dict(zip(COLUMNS, row, strict=True)))
    return lines


# ------------------------------------------------------------------------------------------------ one picture


def draw_montage(case: Shown, lines: Lines, look: Look, out: Path) -> None:
    """Draws a case. Raises VolumeFault for a volume or a mask that cannot be read, and for a mask of another size."""
    grid, image, classes = _read(case, look)
    axis = _axis(grid)
    numbers = choose_slices(classes, axis)
    rows, columns = ABOVE[axis]
    spacing = grid.spacing()
    shown = np.concatenate([np.ravel(image.take(number, axis)) for number in numbers])
    low, high = np.percentile(shown, GREYS)
    across, down = min(len(numbers), COLUMNS_SHOWN), -(-len(numbers) // COLUMNS_SHOWN)
    shape = (grid.shape[rows] * spacing[rows], grid.shape[columns] * spacing[columns])
    tall = CELL * min(max(shape[0] / shape[1], 0.4), 2)
    colours = np.array([(0, 0, 0), *(to_rgb(CONTOURS[k % len(CONTOURS)]) for k in range(len(look.labels) - 1))])
    with mpl.rc_context(STYLE):
        title = expected_words(lines) or "what Dice to expect is not known"
        titled = [Titled(for_chart(case.patient), look.phantom)]
        figure, body = make_canvas(titled, title, CELL * across, (tall + 0.25) * down + 0.9)
        axes = body.subplots(down, across, squeeze=False).ravel()
        for ax in axes[len(numbers) :]:
            ax.remove()
        for ax, number in zip(axes, numbers, strict=False):
            plane, label = (_upright(volume.take(number, axis), axis) for volume in (image, classes))
            aspect = spacing[rows] / spacing[columns]
            ax.imshow(plane, cmap="gray", aspect=aspect, vmin=low, vmax=max(high, low + 1e-6))
            strip(ax)
            draw_contours(ax, label, range(1, len(look.labels)), colours)
            ax.set_xlabel(f"{number + 1} of {grid.shape[axis]}", size=8, labelpad=2)
        handles = [
            Line2D([], [], color=colours[k], label=for_chart(f"{look.names[k]}{_size(lines, k)}"))
            for k in range(1, len(look.labels))
        ]
        body.legend(handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), across)), fontsize=8)
        save(figure, out)


def _read(case: Shown, look: Look) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Grid, image and class numbers (X, Y, Z), the axes turned to left, back and head."""
    grid = read_grid(case.volume, channel=0)
    image, mask = read_voxels(case.volume), read_voxels(case.mask)
    if mask.shape != image.shape:
        raise VolumeFault("has another size than its volume", f"{case.mask} ({mask.shape}, not {image.shape})")
    classes = np.zeros(mask.shape, np.uint8)
    for k, label in look.labels.items():
        classes[mask == label] = k
    stored = grid.directions()
    return grid.turned(RADIOLOGICAL), turn(image, stored, RADIOLOGICAL), turn(classes, stored, RADIOLOGICAL)


def _axis(grid: Grid) -> int:
    """The axis that the slices are cut along: that in which they were taken, as far as the spacing tells it."""
    spacing = grid.spacing()
    return int(np.argmax(spacing)) if max(spacing) > COARSE * min(spacing) else 2


def _upright(plane: np.ndarray, axis: int) -> np.ndarray:
    """A slice as rows and columns: the patient's back, or his feet, below."""
    return plane.T if axis == 2 else plane.T[::-1]


def choose_slices(classes: np.ndarray, axis: int) -> list[int]:
    """The numbers of the slices that are shown, evenly from the first to the last that shows a class; else from all.

    classes: (X, Y, Z) class numbers, 0 where there is none
    """
    others = tuple({0, 1, 2} - {axis})
    seen = np.flatnonzero(classes.any(others))
    first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, classes.shape[axis] - 1)
    return sorted(set(np.linspace(first, last, min(MOST, last - first + 1)).round().astype(int).tolist()))


# -------------------------------------------------------------------------------------------------- words


def mean_dice(lines: Lines) -> tuple[float, float]:
    """The Dice that is expected of a mask and its low end, mean over the classes; NaN where nothing is known."""
    known = [(float(line["expected"]), float(line["low"] or "nan")) for line in lines if line.get("expected")]
    return tuple(float(np.mean(values)) for values in zip(*known, strict=True)) if known else (math.nan, math.nan)


def expected_words(lines: Lines) -> str:
    """'expected Dice 0.91 (from 0.80)', or '' where nothing is known."""
    dice, low = mean_dice(lines)
    if math.isnan(dice):
        return ""
    return f"expected Dice {dice:.2f}" + ("" if math.isnan(low) else f" (from {low:.2f})")


def _size(lines: Sequence[Mapping[str, str]], k: int) -> str:
    mm3 = next((line["mm3"] for line in lines if line["class"] == str(k) and line["mm3"]), None)
    return "" if mm3 is None else f", {float(mm3) / 1000:.3g} ml"


# ------------------------------------------------------------------------------------------------- the page

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; margin: .5em 0; }}
td, th {{ padding: .1em .8em .1em 0; text-align: right; }} td:first-child, th:first-child {{ text-align: left; }}
h2 {{ margin: 2em 0 .3em; font-size: 1.1em; border-top: 1px solid #ccc; padding-top: .8em; }}
.phantom {{ background: #b00020; color: white; padding: .4em .8em; font-weight: bold; }}
</style></head><body>
<h1>{title}</h1>
"""


def write_page(folder: Path, pictures: Mapping[str, Path], lines: Mapping[str, Lines], look: Look) -> None:
    """Writes the page of all pictures (patient -> file) into the folder, those first that should be looked at first."""

    def rank(patient: str) -> tuple[bool, float, float, str]:
        dice, low = mean_dice(lines.get(patient, ()))
        return math.isnan(dice), 0 if math.isnan(dice) else dice, 0 if math.isnan(low) else low, patient

    parts = [HEAD.format(title=for_html(f"Masks of {folder.resolve().parent.name}"))]
    if look.phantom:
        parts.append('<p class="phantom">PHANTOM: made-up images</p>\n')
    parts.append(
        f"<p>{counted(len(pictures), 'case')}, those first whose mask is expected to have the lowest Dice. It is "
        "estimated without labels. The patient's right is on the left; of a sagittal slice his front.</p>\n"
    )
    for patient in sorted(pictures, key=rank):
        own = lines.get(patient, ())
        words = expected_words(own)
        parts.append(f"<h2>{for_html(patient)}{f', {for_html(words)}' if words else ''}</h2>\n{_table(own, look)}")
        parts.append(f'<img alt="{for_html(patient)}" src="{_embedded(pictures[patient])}">\n')
    with atomic_write(folder / PAGE, "w") as file:
        file.write("".join([*parts, "</body></html>\n"]))


def _table(lines: Sequence[Mapping[str, str]], look: Look) -> str:
    if not lines:
        return ""
    heads = ("class", "ml", "expected Dice", "from", "to", "note")
    rows = []
    for line in lines:
        k = int(line["class"])
        name = look.names[k] if k < len(look.names) else f"class {k}"
        ml = f"{float(line['mm3']) / 1000:.4g}" if line["mm3"] else ""
        dice = (f"{float(line[key]):.2f}" if line[key] else "" for key in ("expected", "low", "high"))
        rows.append((name, ml, *dice, line["note"]))
    text = "".join(f"<tr>{''.join(f'<td>{for_html(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>\n{text}</table>\n"


def _embedded(path: Path) -> str:
    """A picture as an address that holds it."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((EDGE, EDGE))
    content = io.BytesIO()
    small.save(content, format="jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


# -------------------------------------------------------------------------------------------------- all of them


def write_montages(
    out: Path, cases: Sequence[Shown], fresh: Iterable[str], look: Look, rows: Iterable[Sequence[str]]
) -> list[Fault]:
    """Draws what is not drawn yet, and writes the page. Returns the faults of the cases that cannot be drawn.

    out: the folder of predictions; fresh: patients whose masks are new; rows: the table of sizes, of all calls
    """
    folder, faults, fresh, lines = out / FOLDER, [], {*fresh}, by_column(rows)
    for case in tqdm(cases, "montages", unit="case", disable=None):
        path = folder / f"{case.patient}.png"
        if path.exists() and case.patient not in fresh:
            continue
        try:
            draw_montage(case, lines.get(case.patient, ()), look, path)
        except VolumeFault as error:
            faults.append(error.fault)
    pictures = {patient: path for patient in lines if (path := folder / f"{patient}.png").exists()}
    if pictures:
        write_page(folder, pictures, lines, look)
    return faults
