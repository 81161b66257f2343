"""The headline: means over patients and seeds of the last, the chosen and the best network of each row."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.run import unique
from analysis.statistics.claims import gap_closed
from analysis.statistics.intervals import Interval
from analysis.tables.choice import choice_notes
from analysis.tables.facts import notes_of
from analysis.tables.table import NOTHING, Report, number
from metrics import SHOWN
from study.reading import COUNTS, HEADLINE, NETWORKS, Study
from study.tables.words import blocks_of, earlier_note, heading, mean_words, row_marks, supervision_of, warnings
from utils import counted

Key = tuple[str, str, str, int | None]  # row, network, score, and class; None: the mean of those that count


@dataclass(frozen=True)
class Line:
    """One score of one network of a row, in one class or in their mean.

    seeds   the mean over patients of each seed that is there
    gap     the share of the gap that it closes; None where that is undefined, or an end of the gap is not there
    """

    interval: Interval
    seeds: tuple[float, ...]
    gap: Interval | None


Lines = Mapping[Key, Line]


def read_lines(study: Study) -> Lines:
    """Every score of every row that has a run."""
    keys = [
        (row, which, score, number)
        for row in study.rows
        if (runs := study.of_row(row))
        for which in NETWORKS
        for score in study.known_scores
        for number in (None, *next(iter(runs.values())).metric_axis)
        if number is None or score not in COUNTS
    ]
    return {key: _read_line(study, *key) for key in keys}


def _read_line(study: Study, row: str, which: str, score: str, number: int | None) -> Line:
    classes = None if number is None else [number]
    table, gap = study.scores(row, score, which, classes), None
    if score == study.score and has_gap(study, row):
        ends = (study.scores(end, score, which, classes) for end in (study.asked.lower, study.asked.upper))
        gap = gap_closed(table, *ends)
    return Line(study.interval(row, score, which, classes), tuple(table.mean(axis=0).dropna()), gap)


def has_gap(study: Study, row: str) -> bool:
    """Whether both ends of the gap are rows of the study, on the images that this row was scored on."""
    ends = (study.asked.lower, study.asked.upper)
    return all(end in study.rows and study.images_of(end) == study.images_of(row) for end in ends)


# ------------------------------------------------------------------------------------------------ words


def make_columns(study: Study, lines: Lines) -> dict[str, Callable[[str], str]]:
    """Heading -> how to fill the cell of a row. A column that would say nothing is left out."""
    name, score = study.score_name, study.score

    def mean_of(score: str, which: str = HEADLINE, digits: int = 3) -> Callable[[str], str]:
        return lambda row: mean_cell(study, row, lines[row, which, score, None].interval, digits)

    def total(score: str) -> Callable[[str], str]:
        return lambda row: f"{study.scores(row, score, HEADLINE).to_numpy(na_value=0).sum():.0f}"

    columns: dict[str, Callable[[str], str]] = {
        "row": str,
        "supervision": lambda row: supervision_of(study, row),
        f"{name}, last epoch": mean_of(score, "last"),
        f"{name}, chosen": mean_of(score),
        f"{name}, oracle": mean_of(score, "best_3d"),
        "lowest, highest seed": lambda row: range_words(lines[row, HEADLINE, score, None].seeds),
        "gap closed": lambda row: gap_words(study, row, lines[row, HEADLINE, score, None].gap),
    }
    if score == "dice":
        unit = "/".join(unique([*study.runs.values()], lambda run: run.unit))
        columns |= {f"HD95 ({unit})": mean_of("hd95", digits=2), "HD95 penalised": mean_of("hd95_penalised", digits=2)}
        columns |= {"NSD": mean_of("nsd"), "missed": total("misses"), "false": total("false_structures")}
    columns["marks"] = lambda row: ", ".join([*row_marks(study, row, HEADLINE), *harm_marks(study, row)])
    shown = {
        f"{name}, chosen": any(run.selection for run in study.runs.values()),
        "gap closed": any(has_gap(study, row) for row, *_ in lines),
        "HD95 penalised": score == "dice" and any(lines[key].interval.mean != 0 for key in lines if key[2] in COUNTS),
    }
    return {name: fill for name, fill in columns.items() if shown.get(name, True)}


def mean_cell(study: Study, row: str, interval: Interval, digits: int) -> str:
    """The mean and its interval, with the number of patients, and of seeds, where not all of them count."""
    if not math.isfinite(interval.mean):
        return mean_words(interval, digits)
    fewer, runs = interval.patients < len(study.patients(row)), len(study.of_row(row))
    seeds = f" ({interval.seeds} of {counted(runs, 'seed')})" * (interval.seeds < runs)
    return mean_words(interval, digits) + f" (n = {interval.patients})" * fewer + seeds


def range_words(seeds: tuple[float, ...]) -> str:
    return f"{number(min(seeds))}, {number(max(seeds))}" if len(seeds) > 1 else NOTHING


def gap_words(study: Study, row: str, gap: Interval | None) -> str:
    if gap is None:
        return "undefined" if has_gap(study, row) else NOTHING
    ends = f" ({100 * gap.low:.0f} to {100 * gap.high:.0f} %)"
    return f"{100 * gap.mean:.0f} %" + ends * (row not in (study.asked.lower, study.asked.upper))


def harm_marks(study: Study, row: str) -> list[str]:
    """That the row does harm: its mean is lower than that of the network as it came, in the seeds of both."""
    lower = study.asked.lower
    if row == lower or lower not in study.rows or study.images_of(row) != study.images_of(lower):
        return []
    own, start = (study.scores(name, study.score, HEADLINE) for name in (row, lower))
    return [f"worse than {lower}"] if (own - start).stack().mean() < -SHOWN else []


def notes(study: Study, columns: Mapping[str, Any]) -> list[str]:
    runs = [*study.runs.values()]
    found = [
        f"{study.score_name}: of each patient in 3D, the mean over its classes; then the mean over patients and seeds, "
        "in brackets the 95 % interval for other patients and other source networks (patients and seeds crossed), "
        "which ends where the score does.",
        "Lowest, highest seed: the mean over patients of the seed that is worst, and best.",
    ]
    if "gap closed" in columns:
        ends = (study.asked.lower, study.asked.upper)
        found.append(
            f"Gap closed: (row - {ends[0]}) / ({ends[1]} - {ends[0]}), the ratio of the means, with Fieller's 95 % "
            f"interval; undefined where {ends[1]} is not surely better than {ends[0]}."
        )
    if study.score == "dice":
        found.append(
            "Missed, false: structures of which nothing was predicted, and predicted ones that are not there, of all "
            "patients and seeds together. They have no distance; n is the number of patients who have one in every "
            "seed, and a seed without any is left out."
        )
    if "HD95 penalised" in columns:
        found.append("HD95 penalised: with the diagonal of the volume for each structure that is missed or false.")
    return [*found, *choice_notes(runs), *notes_of(runs, NETWORKS), *earlier_note(study)]


# ------------------------------------------------------------------------------------------------ the table


def make_headline(study: Study, lines: Lines) -> Report:
    columns = make_columns(study, lines)
    blocks = [
        (heading(study, rows, images), [[fill(row) for fill in columns.values()] for row in rows])
        for images, rows in blocks_of(study).items()
    ]
    cells = [csv_line(study, key, line) for key, line in lines.items()]
    return Report(f"Study of {study.asked.name}", warnings(study), [*columns], blocks, notes(study, columns), cells)


def csv_line(study: Study, key: Key, line: Line) -> dict[str, Any]:
    row, which, score, number = key
    interval, gap, nothing = line.interval, line.gap, math.nan
    return {
        "row": row,
        "images": study.images_of(row),
        "supervision": supervision_of(study, row),
        "network": which,
        "score": score,
        "class": "mean" if number is None else number,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "se": interval.se,
        "df": interval.df,
        "patients": interval.patients,
        "seeds": interval.seeds,
        "left_out": interval.left_out,
        "lowest_seed": min(line.seeds, default=nothing),
        "highest_seed": max(line.seeds, default=nothing),
        "gap_closed": gap.mean if gap else nothing,
        "gap_low": gap.low if gap else nothing,
        "gap_high": gap.high if gap else nothing,
    }
