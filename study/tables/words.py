"""What the tables of a study have in common: blocks of rows that can be compared, warnings, marks, numbers in words."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from analysis.run import unique
from analysis.statistics.intervals import Interval
from analysis.tables.facts import marks, supervision, warnings_of
from analysis.tables.table import NOTHING, number
from study.reading import Study
from utils import counted, listing

MOST_FAULTS = 10  # lines above a table
SIGNIFICANT = 0.05


def blocks_of(study: Study) -> dict[str, list[str]]:
    """Images -> the rows that were scored on them, in the order of the study; a row without a run is in none."""
    blocks: dict[str, list[str]] = {}
    for row in study.rows:
        if study.of_row(row):
            blocks.setdefault(study.images_of(row), []).append(row)
    return blocks


def heading(study: Study, rows: Sequence[str], images: str) -> str:
    """'prostate_target/IMG: 10 patients, 3 seeds'."""
    patients, seeds = counted(len(study.patients(rows[0])), study.unit), counted(len(study.seeds), "seed")
    return f"{images}: {patients}, {seeds}"


def warnings(study: Study) -> list[str]:
    """What stands above every table: that the images are made up, how little is known, what is missing."""
    found = cautions(study)
    if study.faults:
        missing = len(study.rows) * len(study.seeds) - len(study.runs)
        wanted = len(study.rows) * len(study.seeds)
        found.append(f"{missing} of {wanted} runs are missing or left out; means are over the others, as marked:")
        found += study.faults[:MOST_FAULTS]
        found += [f"… ({len(study.faults) - MOST_FAULTS} more)"] * (len(study.faults) > MOST_FAULTS)
    return found


def missing_lines(faults: Sequence[str]) -> list[str]:
    """What stands above a table that is not of one study, where runs of it are missing."""
    if not faults:
        return []
    more = [f"… ({len(faults) - MOST_FAULTS} more)"] * (len(faults) > MOST_FAULTS)
    return [
        f"{counted(len(faults), 'run')} missing or left out; means are over the others:",
        *faults[:MOST_FAULTS],
        *more,
    ]


def cautions(study: Study) -> list[str]:
    """That the images are made up, or the runs otherwise no measure; how little is known."""
    found = warnings_of([*study.runs.values()])
    if any(len(study.patients(row)) == 1 for row in study.rows):
        found.append(f"One {study.unit}: no interval and no test, for nothing is known of others.")
    if len(study.seeds) == 1:
        found.append("One seed: intervals and tests are about other patients, and not about other source networks.")
    return found


def row_marks(study: Study, row: str, which: str) -> list[str]:
    """What a reader must know of a row, with the number of its seeds where it is not of all of them."""
    runs = study.of_row(row)
    every = [*study.runs.values()]
    counts = Counter(mark for run in runs.values() for mark in marks(run, which, every) if not mark.startswith("on "))
    found = [mark if times == len(runs) else f"{mark} ({times} of {len(runs)})" for mark, times in counts.items()]
    if len(runs) < len(study.seeds):
        found.insert(0, f"{len(runs)} of {counted(len(study.seeds), 'seed')}")
    return found


def supervision_of(study: Study, row: str) -> str:
    return " or ".join(unique([*study.of_row(row).values()], supervision))


def mean_words(interval: Interval, digits: int = 3) -> str:
    """'0.853 (0.812 to 0.894)', without the brackets where no interval is known."""
    return number(interval.mean, digits) + ends_words(interval, digits)


def ends_words(interval: Interval, digits: int = 3) -> str:
    return f" ({number(interval.low, digits)} to {number(interval.high, digits)})" if interval.is_known else ""


def signed_words(interval: Interval, digits: int = 3) -> str:
    """'+0.021 (-0.003 to +0.045)'."""
    mean, low, high = (f"{value:+.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    if not math.isfinite(interval.mean):
        return NOTHING
    return f"{mean} ({low} to {high})" if interval.is_known else mean


def interval_cells(name: str, interval: Interval) -> dict[str, Any]:
    """The cells of a csv: name_mean, name_low, …"""
    return {f"{name}_{key}": value for key, value in asdict(interval).items()}


def ends_of(name: str, interval: Interval | None) -> dict[str, float]:
    """The cells of a csv: a mean, and the ends of its interval; NaN where there is none."""
    ends = (interval.mean, interval.low, interval.high) if interval else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def p_words(p: float) -> str:
    return f"{p:.3g}" if math.isfinite(p) else NOTHING


def earlier_note(study: Study) -> list[str]:
    """That rows or seeds were chosen anew, which a reader of tests must know."""
    if not study.asked.earlier:
        return []
    said = "; ".join(f"{listing(ask['rows'])} with {counted(len(ask['seeds']), 'seed')}" for ask in study.asked.earlier)
    return [f"Asked for otherwise before in this folder: {said}. Tests assume that rows were chosen without a look."]
