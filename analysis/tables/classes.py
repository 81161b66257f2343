"""Runs on pictures, scored class by class: the IoU of all images together, in per cent as the papers print it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.run import Run, unique
from analysis.statistics.claims import share_of_gap
from analysis.tables.choice import blocks_of, choice_notes, make_summary
from analysis.tables.facts import facts, marks, notes_of, progress, supervision, warnings_of
from analysis.tables.harm import find_harm, harm_note, on_other_images
from analysis.tables.table import NOTHING, Comparison, Report, number


@dataclass
class Entry:
    """One run at one of its epochs."""

    run: Run
    which: str
    rows: dict[int, dict[str, Any]]  # class -> its row of Run.classes
    gap: float = math.nan  # share of the gap closed
    worse_than: str = ""  # the network as it came, where that scores higher

    @property
    def images(self) -> frozenset[str]:
        return frozenset(self.run.names)

    @property
    def score(self) -> float:
        return self.miou

    @property
    def miou(self) -> float:
        """The mean IoU over the classes that are there."""
        known = [row["iou"] for row in self.rows.values() if math.isfinite(row["iou"])]
        return float(np.mean(known)) if known else math.nan


def read_entry(run: Run, which: str) -> Entry:
    return Entry(run, which, {row["class"]: row for row in run.classes(which) if row["class"] in run.metric_axis})


def close_gaps(entries: Sequence[Entry], lower: str, upper: str) -> None:
    """Fills `gap` in one block: (run - lower) / (upper - lower) of the mIoU, all three on the same images."""
    named = {entry.run.name: entry for entry in entries}
    if lower not in named or upper not in named:
        return
    low, high = named[lower], named[upper]
    for entry in entries:
        if sorted(entry.run.names) == sorted(low.run.names) == sorted(high.run.names):
            entry.gap = share_of_gap(entry.miou, low.miou, high.miou)


def per_cent(share: float) -> str:
    return number(100 * share, 1)


def make_columns(entries: Sequence[Entry], runs: Sequence[Run]) -> dict[str, Callable[[Entry], str]]:
    """Heading -> how to fill the cell. A column that would say nothing is left out."""
    columns: dict[str, Callable[[Entry], str]] = {
        "run": lambda entry: entry.run.name,
        "supervision": lambda entry: supervision(entry.run),
        "epoch": lambda entry: progress(entry.run, entry.which),
        "mIoU": lambda entry: per_cent(entry.miou),
        "gap closed": lambda entry: f"{100 * entry.gap:.0f} %" if math.isfinite(entry.gap) else NOTHING,
    }
    for k, name in short_names({k: row["name"] for entry in entries for k, row in entry.rows.items()}).items():
        columns[name] = lambda entry, k=k: per_cent(entry.rows[k]["iou"]) if k in entry.rows else NOTHING
    columns["marks"] = lambda entry: ", ".join(entry_marks(entry, runs))
    shown = {
        "gap closed": any(math.isfinite(entry.gap) for entry in entries),
        "marks": any(entry_marks(entry, runs) for entry in entries),
    }
    return {name: fill for name, fill in columns.items() if shown.get(name, True)}


def entry_marks(entry: Entry, runs: Sequence[Run]) -> list[str]:
    harm = [f"worse than {entry.worse_than}"] if entry.worse_than else []
    return marks(entry.run, entry.which, runs) + harm


def short_names(names: Mapping[int, str]) -> dict[int, str]:
    """'traffic light' -> 'light', unless two classes then had one name; a name that is a number gets its word."""
    names = {k: f"class {name}" if name.isdecimal() else name for k, name in sorted(names.items())}
    last = {k: name.split()[-1] for k, name in names.items()}
    return last if len(set(last.values())) == len(names) and not any(map(str.isdecimal, last.values())) else dict(names)


def make_notes(entries: Sequence[Entry], comparison: Comparison) -> list[str]:
    """How the numbers came about."""
    notes = [
        "IoU, in %: pixels that are a class in truth and prediction over those that are it in either, of all images "
        "together. mIoU: its mean over the classes that are true or predicted somewhere; the others have no IoU."
    ]
    if any(math.isfinite(entry.gap) for entry in entries):
        notes.append(f"Gap closed: (run - {comparison.lower}) / ({comparison.upper} - {comparison.lower}) of the mIoU.")
    return notes + harm_note(entries, "IoU")


def csv_lines(entry: Entry) -> list[dict[str, Any]]:
    """The lines of the csv: one for the mean, one per class. Counts are pixels; IoU is a share, not in per cent."""
    first = facts(entry.run, entry.which) | {"worse_than": entry.worse_than, "images": len(entry.run.names)}
    mean = {"class": "mean", "name": "", "iou": entry.miou, "intersection": math.nan, "union": math.nan}
    lines = [first | row | {"gap_closed": math.nan} for row in (mean, *entry.rows.values())]
    lines[0]["gap_closed"] = entry.gap
    return lines


def make_class_report(runs: Sequence[Run], comparison: Comparison) -> Report:
    """Makes the report of runs on pictures."""
    headings = blocks_of(runs)
    blocks = {which: [read_entry(run, which) for run in runs] for which in headings}
    for block in blocks.values():
        close_gaps(block, comparison.lower, comparison.upper)
        find_harm(block, comparison.lower)
    entries = [entry for block in blocks.values() for entry in block]
    columns = make_columns(entries, runs)
    apart = ["Not every run was evaluated on the same images; compare with care."]
    return Report(
        " / ".join(unique(runs, lambda run: run.set_name)),
        warnings_of(runs) + apart * on_other_images(entries),
        list(columns),
        [(headings[which], [[fill(e) for fill in columns.values()] for e in block]) for which, block in blocks.items()],
        choice_notes(runs) + make_notes(entries, comparison) + notes_of(runs, blocks),
        [line for entry in entries for line in csv_lines(entry)],
        make_summary(blocks, columns, "mIoU", lambda entry: [entry.run]),
    )
