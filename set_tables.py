"""What a set tells of itself, where it does: dataset.json, how it was made, and manifest.csv, where its slices lie.

Other programs write files of these names. They are told apart by their keys and columns: what is of somebody else is
left aside with a line, as if it were not there; what is of ours and broken is refused in a paragraph.
"""

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from folder_listing import stem
from utils import UserError, listing, tell_once

OWN = (  # keys of a card, one of which nobody else's dataset.json has
    *("split_unit", "normalisation", "label_map", "n_class", "class_names", "volumetric", "scale", "phantom"),
    *("truth_size", "uses_labels"),
)
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
}
SPACINGS = ("spacing_slice", "spacing_w", "spacing_h")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path) -> str:
    """A text file in whatever encoding: by its mark, else UTF-8, else Latin-1."""
    content = path.read_bytes()
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


# ------------------------------------------------------------------------------------------------- dataset.json


def read_card(root: Path) -> dict[str, Any]:
    """The set's dataset.json; empty where there is none, or one of somebody else (nnU-Net's, the Decathlon's, …).

    Raises UserError for what is no JSON, and for a value of ours that is none.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        card = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Make the set again, or remove the file.") from error
    if not isinstance(card, dict) or not any(key in card and _fits(card, key) for key in OWN):
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


def _fits(card: Mapping[str, Any], key: str) -> bool:
    """Whether a key has a value of the kind that it has in our cards."""
    kinds, _ = KINDS.get(key, ((), ""))
    return not kinds or (isinstance(card[key], kinds) and not isinstance(card[key], bool))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}…"


# ------------------------------------------------------------------------------------------------- manifest.csv


def read_rows(root: Path) -> list[dict[str, str]]:
    """The rows of the set's manifest.csv, the name of the slice or volume without suffix under "name".

    Semicolons or tabs may stand for commas, as a spreadsheet writes them; then a decimal comma becomes a point. Empty
    where there is no manifest, or one of somebody else.
    """
    path = root / "manifest.csv"
    if not path.is_file():
        return []
    text = read_text(path)
    first = text.splitlines()[0] if text.strip() else ""
    separator = max(",;\t", key=first.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error:
        rows = []
    columns = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    key = next((name for name in ("slice", "name") if name in columns), "")
    if not key or not {"spacing_w", "affine"} & set(columns):
        shown = f"its columns are {listing(columns)}" if columns else "it is empty"
        tell_once(f"{path} is of another program ({shown}, not slice, {', '.join(SPACINGS)}); it is left aside.")
        return []
    clean = [{(name or "").strip(): str(cell or "").strip() for name, cell in row.items()} for row in rows]
    if separator != ",":
        clean = [row | {name: row[name].replace(",", ".") for name in SPACINGS if name in row} for row in clean]
    return [row | {"name": stem(row[key])} for row in clean]


def spacing_of_names(
    root: Path, names: Sequence[str], columns: Sequence[str] = SPACINGS
) -> dict[str, tuple[float, ...]] | None:
    """mm in these columns of manifest.csv for each of the names; None where no manifest tells.

    Raises UserError that lists what is wrong with it: names without a row, or with two that differ, no numbers, lengths
    of 0 or less.
    """
    rows, path = read_rows(root), root / "manifest.csv"
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
    spacing = {name: tuple(map(_length, told)) for name, told in cells.items()}
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
    root: Path, names: Sequence[str], patients: Sequence[str]
) -> dict[str, tuple[float, float, float]] | None:
    """mm between slices, along W and along H of each patient, by the row of the first slice; None without a manifest.

    Raises UserError as `spacing_of_names` does.
    """
    spacing = spacing_of_names(root, names)
    if spacing is None:
        return None
    found: dict[str, set[tuple[float, ...]]] = {}
    for name, patient in zip(names, patients, strict=True):
        found.setdefault(patient, set()).add(tuple(round(mm, 3) for mm in spacing[name]))
    if several := [patient for patient, told in found.items() if len(told) > 1]:
        tell_once(
            f"{root / 'manifest.csv'} tells several spacings for slices of one patient ({listing(several, 4)}); that "
            "of the first slice counts. Two volumes of one name? See --grp_regex."
        )
    return {patient: spacing[name] for name, patient in zip(reversed(names), reversed(patients), strict=True)}


def _length(text: str) -> float | None:
    """A number above 0, or None."""
    try:
        return number if 0 < (number := float(text)) < float("inf") else None
    except ValueError:
        return None
