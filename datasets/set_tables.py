"""What a set tells of itself, where it does: dataset.json, how it was made, and manifest.csv, where its slices lie.

Other programs write files of these names. They are told apart by their keys and columns: what is of somebody else is
left aside with a line, as if it were not there; what is of ours and broken is refused in a paragraph.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from files.foreign import parse_json, read_text
from files.listing import stem
from processes.errors import UserError
from processes.quoting import from_cell
from utils import listing, tell_once

OWN = (  # keys of a card, one of which nobody else's dataset.json has
    *("split_unit", "normalisation", "label_map", "n_class", "class_names", "volumetric"),
    *("truth_size", "uses_labels"),
)
SHARED: dict[str, Callable[[Any], bool]] = {  # keys that others may use too: alone they count with our values only
    "scale": lambda told: isinstance(told, dict) and {"mean", "sd"} <= told.keys(),
    "phantom": lambda told: told in (True, "small", "full"),
}
FOREIGN = ("numTraining", "file_ending", "channel_names", "training", "tensorImageSize")  # nnU-Net's, the Decathlon's
KINDS: dict[str, tuple[tuple[type, ...], str]] = {  # key -> what its value must be
    "split_unit": ((str,), "a word"),
    "n_class": ((int, type(None)), "a number"),
    "images": ((list,), "a list of folders"),
    "labels": ((str, type(None)), "the name of a folder"),
    "distance_maps": ((str, type(None)), "the name of a folder"),
    "class_names": ((list, type(None)), "a list of names"),
    "label_map": ((dict, type(None)), "a table of labels"),
    "sources": ((list, dict), "a list of files"),
    "counts": ((dict,), "a table of splits"),
    "channels": ((dict,), "a table of folders"),
    "scale": ((dict, type(None)), "a mean and an sd"),
}
Rows = Sequence[dict[str, str]]
PLACE_OFF = 0.5  # of the spacing between slices, by which a slice may lie off the place that its number gives it
SPACINGS = ("spacing_slice", "spacing_w", "spacing_h")


# ------------------------------------------------------------------------------------------------- dataset.json


def read_card(root: Path) -> dict[str, Any]:
    """The set's dataset.json; empty where there is none, or one of somebody else (nnU-Net's, the Decathlon's, …).

    Raises UserError for what is no JSON, and for a value of ours that is none.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    card = parse_json(path, "make the set again, or remove the file")
    if not isinstance(card, dict) or not _is_ours(card):
        tell_once(f"{path} is of another program (it has none of {', '.join(OWN)}); it is left aside.")
        return {}
    wrong = [
        f"{key} is {_short(card[key])}, expected {words}"
        for key, (_, words) in KINDS.items()
        if key in card and not _fits(card, key)
    ]
    if wrong:
        raise UserError(f"{path} tells what cannot be: {'; '.join(wrong)}. Make the set again, or mend the file.")
    return card


def _is_ours(card: Mapping[str, Any]) -> bool:
    """Whether a card is one of this program's, or was written for it by hand."""
    if any(key in card and _fits(card, key) for key in OWN):
        return True
    is_told = any(key in card and is_own(card[key]) for key, is_own in SHARED.items())
    return is_told and not any(key in card for key in FOREIGN)


def _fits(card: Mapping[str, Any], key: str) -> bool:
    """Whether a key has a value of the kind that it has in our cards."""
    kinds, _ = KINDS.get(key, ((), ""))
    return not kinds or (isinstance(card[key], kinds) and not isinstance(card[key], bool))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}…"


def normalisation_of(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the grey levels of a set were made: `kind`, and what else its card tells; an older one has the kind alone."""
    how = card.get("normalisation") or {}
    return how if isinstance(how, dict) else {"kind": how}


def is_split_by_patients(card: Mapping[str, Any]) -> bool:
    """Whether all of a patient's slices should lie in one split."""
    return card.get("split_unit", "patient") == "patient"


# ------------------------------------------------------------------------------------------------- manifest.csv


def read_rows(root: Path) -> list[dict[str, str]]:
    """The rows of the set's manifest.csv, the name of the slice or volume without suffix under "name".

    Semicolons or tabs may stand for commas, as a spreadsheet writes them, with a line that says so before the columns;
    then a decimal comma becomes a point. Columns may be in capitals. Empty where there is no manifest, or one of
    somebody else.
    """
    path = root / "manifest.csv"
    if not path.is_file():
        return []
    lines = io.StringIO(read_text(path), newline="").readlines()
    told = re.match(r'"?sep=(.)', lines[0].lower()) if lines else None  # as Excel writes it
    lines = lines[1:] if told else lines
    separator = told[1] if told else max(",;\t", key=lines[0].count) if lines else ","
    try:
        head, *cells = csv.reader(lines, delimiter=separator)
    except (csv.Error, ValueError):
        head, cells = [], []
    columns = [name.strip().lower() for name in head]
    key = next((name for name in ("slice", "name") if name in columns), "")
    if not key or not {"spacing_w", "affine"} & set(columns):
        shown = f"its columns are {listing(columns)}" if columns else "it is empty"
        tell_once(f"{path} is of another program ({shown}, not slice, {', '.join(SPACINGS)}); it is left aside.")
        return []
    clean = ([from_cell(cell.strip()) for cell in row[: len(columns)]] for row in cells if row)
    rows = [dict(zip_longest(columns, row, fillvalue="")) for row in clean]
    if separator != ",":
        rows = [row | {name: row[name].replace(",", ".") for name in SPACINGS if name in row} for row in rows]
    return [row | {"name": stem(row[key])} for row in rows]


def spacing_of_names(
    root: Path, names: Sequence[str], columns: Sequence[str] = SPACINGS, rows: Rows | None = None
) -> dict[str, tuple[float, ...]] | None:
    """mm in these columns of manifest.csv for each of the names; None where no manifest tells.

    rows: of the manifest, where they were read before

    Raises UserError that lists what is wrong with it: names without a row, or with two that differ, no numbers, lengths
    of 0 or less.
    """
    rows, path = read_rows(root) if rows is None else rows, root / "manifest.csv"
    if not rows:
        return None
    if lost := [column for column in columns if column not in rows[0]]:
        tell_once(f"{path} has no column {listing(lost)}: it is left aside, and lengths are in pixels.")
        return None
    cells: dict[str, tuple[str, ...]] = {}
    doubled, wanted = set(), set(names)
    for row in rows:
        seen = tuple(row[column] for column in columns)
        if row["name"] in wanted and cells.setdefault(row["name"], seen) != seen:
            doubled.add(row["name"])
    lengths = {told: tuple(map(_length, told)) for told in set(cells.values())}
    spacing = {name: lengths[told] for name, told in cells.items()}
    odd = [
        f"{name} ({', '.join(cells[name]) if name in cells else 'no row'})"
        for name in dict.fromkeys(names)
        if None in spacing.get(name, (None,))
    ]
    faults = {
        f"no row with a spacing above 0 for {len(odd)} of {len(wanted)} slices (in {', '.join(columns)})": odd,
        "rows that contradict each other": sorted(doubled),
    }
    told = [f"{what}: {listing(which)}" for what, which in faults.items() if which]
    if told:
        raise UserError(f"{path} cannot be used; {'; '.join(told)}. Remove it, or slice the set again.")
    return spacing


def spacing_of_patients(
    root: Path, names: Sequence[str], patients: Sequence[str], rows: Rows | None = None
) -> dict[str, tuple[float, float, float]] | None:
    """mm between slices, along W and along H of each patient, by the row of the first slice; None without a manifest.

    Raises UserError as `spacing_of_names` does.
    """
    spacing = spacing_of_names(root, names, rows=rows)
    if spacing is None:
        return None
    found: dict[str, set[tuple[float, ...]]] = {}
    for name, patient in zip(names, patients, strict=True):
        found.setdefault(patient, set()).add(spacing[name])
    if several := [patient for patient, told in found.items() if len({tuple(np.round(mm, 3)) for mm in told}) > 1]:
        tell_once(
            f"{root / 'manifest.csv'} tells several spacings for slices of one patient ({listing(several, 4)}); that "
            "of the first slice counts. Two volumes of one name? See --grp_regex."
        )
    return {patient: spacing[name] for name, patient in zip(reversed(names), reversed(patients), strict=True)}


def contradicted(
    rows: Rows,
    names: Sequence[str],
    patients: Sequence[str],
    numbers: Sequence[int],
    spacing_mm: Mapping[str, Sequence[float]] | None,
) -> list[str]:
    """The patients of whose slices the rows of a manifest tell other places than the slices' numbers do.

    spacing_mm: patient -> mm between slices, …
    """
    if not (rows or spacing_mm):
        return []
    told = {row["name"]: row for row in rows}
    slices: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for name, patient, number in zip(names, patients, numbers, strict=True):
        slices.setdefault(patient, []).append((number, told.get(name, {})))
    return [
        patient
        for patient, each in slices.items()
        if len({index - number for number, index in _indices(each)}) > 1
        or (spacing_mm and _lie_elsewhere(each, spacing_mm[patient][0]))
    ]


def _indices(slices: Sequence[tuple[int, Mapping[str, str]]]) -> list[tuple[int, int]]:
    """Number and index of each slice whose row tells one."""
    return [(number, int(row["index"])) for number, row in slices if row.get("index", "").isdecimal()]


def _lie_elsewhere(slices: Sequence[tuple[int, Mapping[str, str]]], spacing_mm: float) -> bool:
    """Whether slices with affines of their own lie farther apart, or nearer, than their numbers times the spacing."""
    if len({row.get("affine", "") for _, row in slices}) == 1:
        return False  # all have that of their volume
    try:
        origins = np.array([affine_of(row)[:3, 3] for _, row in slices])
    except (KeyError, ValueError):
        return False
    numbers = np.array([number for number, _ in slices])
    apart = np.linalg.norm(origins - origins[0], axis=1)
    wanted = np.abs(numbers - numbers[0]) * spacing_mm
    return bool((np.abs(apart - wanted) > PLACE_OFF * spacing_mm).any())


def affine_of(row: Mapping[str, str], column: str = "affine") -> np.ndarray:
    """(4, 4) matrix that a row tells. Raises ValueError for anything but 16 numbers, KeyError for no cell."""
    return np.array(row[column].split(), np.float64).reshape(4, 4)


def _length(text: str) -> float | None:
    """A number above 0, or None."""
    try:
        return number if 0 < (number := float(text)) < float("inf") else None
    except ValueError:
        return None
