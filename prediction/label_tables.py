"""Names and colours of labels as viewers read them: files for ITK-SNAP and 3D Slicer, and the dseg.tsv of BIDS.

ITK-SNAP: Segmentation > Import Label Descriptions. 3D Slicer: choose the table as the colour node when a mask is loaded
as a segmentation. Formats: the header that ITK-SNAP writes into its files; "Color table files" of 3D Slicer's guide for
developers; "Common image-derived labels" of the BIDS specification.
"""

import colorsys
from collections.abc import Mapping
from pathlib import Path

from processes.quoting import for_cell, visible
from utils import atomic_write

ITK_SNAP, SLICER = "labels_itksnap.txt", "labels_slicer.ctbl"
# Okabe and Ito, Color Universal Design (2008): told apart by nearly everyone, whatever the colours that they see
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
GOLDEN = 0.61803398875  # of a turn from hue to hue, so that further colours lie far apart
ITK_SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of the class `number`, from 1: red, green, blue, 0 to 255."""
    if number <= len(COLOURS):
        return COLOURS[number - 1]
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def itk_snap_table(names: Mapping[int, str]) -> str:
    """`names`: label -> name, the background first, which is clear."""
    lines = [f'{0:5d} {0:5d} {0:4d} {0:4d} {0:8d}  0  0    "Clear Label"']
    for number, (label, name) in enumerate(_foreground(names).items(), start=1):
        red, green, blue = colour_of(number)
        told = visible(name).replace('"', "'")
        lines.append(f'{label:5d} {red:5d} {green:4d} {blue:4d} {1:8d}  1  1    "{told}"')
    return ITK_SNAP_HEAD + "".join(f"{line}\n" for line in lines)


def slicer_table(names: Mapping[int, str]) -> str:
    """A line a label: value, name with _ for blanks, red, green, blue, opacity."""
    lines = ["# Color table file: value name red green blue opacity", "0 background 0 0 0 0"]
    for number, (label, name) in enumerate(_foreground(names).items(), start=1):
        told = "_".join(visible(name).split()) or f"class_{number}"
        lines.append(f"{label} {told} {' '.join(map(str, colour_of(number)))} 255")
    return "".join(f"{line}\n" for line in lines)


def bids_table(names: Mapping[int, str]) -> str:
    """Columns index, name, color, separated by tabs."""
    rows = [("index", "name", "color"), (0, "background", "#000000")]
    for number, (label, name) in enumerate(_foreground(names).items(), start=1):
        rows.append((label, for_cell(visible(name)), "#{:02x}{:02x}{:02x}".format(*colour_of(number))))
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def _foreground(names: Mapping[int, str]) -> dict[int, str]:
    """Without the background, which is the label 0 everywhere."""
    return {label: name for label, name in names.items() if label}


def write_label_tables(folder: Path, names: Mapping[int, str]) -> None:
    """Both viewers' tables next to the masks. `names`: label -> name, in the order of the classes."""
    for file, text in ((ITK_SNAP, itk_snap_table(names)), (SLICER, slicer_table(names))):
        write_text(folder / file, text)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)
