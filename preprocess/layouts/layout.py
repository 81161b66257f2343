"""What a layout finds in the folder of a data set, and the list of the layouts that are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.pairing import find_files
from processes.errors import UserError
from processes.quoting import visible
from utils import Registry, listing

LONGEST = 50_000  # letters of a pattern: a command has several, and Linux takes 131,072 in all
LAYOUTS = Registry("layout")  # name -> a function (folder, asked) -> SiteFiles, whose docstring is the flag's help


@dataclass(frozen=True)
class Asked:
    """What a user may ask of a layout that leaves a choice."""

    fold: int = 0  # of a split into folds
    contrast: str | None = None  # which image of a patient, by the name that the layout has for it
    masks: str | None = None  # which masks, likewise
    labels: bool = True  # whether labels are wanted


@dataclass(frozen=True)
class SiteFiles:
    """The volumes of one site.

    images: a pattern for each channel of an image
    label: pattern of the labels, None where there are none
    patient: expression whose groups, joined, are the patient's id in the name (or path) of a file
    channel: of 4D images, counted from 0
    class_names: label -> name, the background too; empty where nobody tells
    names_all: whether every label has a name there, and is a class; a table of an atlas has more than a data set holds
    ignore: the label of voxels whose class nobody knows
    place_labels: whether labels lie on grids of their own, and are put on those of their images by geometry
    group: expression whose group is the person, where one was scanned several times
    val: patients who validate, where the layout says so
    modality: of the images, for the record
    pictures: whether they are 2D pictures, in place of volumes
    notes: what a person should know of this site, a clause each
    """

    images: tuple[str, ...]
    label: str | None
    patient: str
    channel: int | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    names_all: bool = True
    ignore: int | None = None
    place_labels: bool = False
    group: str | None = None
    val: tuple[str, ...] = ()
    modality: str = ""
    pictures: bool = False
    notes: tuple[str, ...] = ()


def as_pattern(folder: Path, names: str) -> str:
    """Pattern of files in a folder. Raises UserError where the folder's name would be taken for several."""
    if "|" in str(folder):
        raise UserError(f"{folder}: a | in a folder's name parts two patterns here; rename it, or reach it by a link.")
    return f"{folder.as_posix()}/{names}"


def pattern_of(folder: Path, files: Sequence[Path], *names: str) -> str:
    """The first of these patterns below a folder that finds these files and no others; else one that names each.

    A | parts several in one. Raises UserError where the names of all are more than a command holds.
    """
    for each in names:
        pattern = "|".join(as_pattern(folder, part) for part in each.split("|"))
        if set(find_files(pattern)) == set(files):
            return pattern
    named = "|".join(as_pattern(path.parent, path.name) for path in files)
    if len(named) > LONGEST:
        raise UserError(
            f"{folder}: some files are left out, and to name the {len(files)} others one by one is more than a command "
            "holds. Bring those that are wanted into a folder of the same layout; links will do."
        )
    return named


def require_files(pattern: str, what: str) -> list[Path]:
    """The files of a pattern. Raises UserError where there are none: `what` are they, and where they should be."""
    if not (found := find_files(pattern)):
        raise UserError(f"No file matches {pattern}: {what}.")
    return found


def shown(value: Any, most: int = 60) -> str:
    """A value out of somebody's JSON, short and to be seen."""
    text = visible(repr(value))
    return text if len(text) <= most else f"{text[:most]}…"


def plain_name(text: Any, path: Path) -> str:
    """The name of a class or of an image as somebody's JSON tells it. Raises UserError for what is no name."""
    if not isinstance(text, str) or not text.strip() or len(text) > 200:
        raise UserError(f"{path}: a name is a word or a few, there is {shown(text)}; mend it there.")
    return " ".join(visible(text).split())


def chosen_of(names: Sequence[str], wanted: str | None, what: str) -> str:
    """Which of several images of a patient is meant: `--contrast`, or the only one. Raises UserError for another."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        given = f"--contrast {wanted} is none of them" if wanted else "name one"
        raise UserError(f"{what}, {listing(names)}: {given}, as in --contrast '{names[0]}'.")
    return str(wanted)


def case_count_told(card: Mapping[str, Any], count: int) -> list[str]:
    """A clause where a data set's own count of its training cases is not what is there."""
    told = card.get("numTraining")
    return [] if told in (None, count) else [f"it tells of {shown(told)} training cases, there are {count}; check"]
