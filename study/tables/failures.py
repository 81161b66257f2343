"""What a mean hides: the patients on whom a row is worst, those whom it harms most, what it misses and makes up."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics.failures import harmed_patients, worst_patients
from analysis.tables.table import NOTHING, Report
from metrics import SHOWN
from study.reading import COUNTS, HEADLINE, Study
from study.tables.words import blocks_of, heading, row_marks, warnings
from utils import listing

WORST = 3  # patients that are named
HEADER = ["row", "worst patients", "most harmed", "harmed", "missed", "false", "marks"]


def start_of(study: Study, row: str) -> pd.DataFrame | None:
    """Patients x seeds: the score of the network as it came; None of that row itself, or where it is not there."""
    lower = study.asked.lower
    if row == lower or lower not in study.rows or study.images_of(lower) != study.images_of(row):
        return None
    return study.scores(lower, study.score, HEADLINE)


def worst_words(scores: pd.DataFrame) -> str:
    """'Case03 0.412 (0.391)': mean over seeds, and the lowest of them."""
    found = worst_patients(scores, WORST)
    return listing(f"{scores.index[each.place]} {each.mean:.3f} ({each.lowest:.3f})" for each in found) or NOTHING


def harm_words(scores: pd.DataFrame, start: pd.DataFrame | None) -> list[str]:
    """'Case03 -0.212' of those who lose most, and on how many patients and seeds the row is worse than its start."""
    if start is None:
        return [NOTHING, NOTHING]
    change, known = (scores - start).mean(axis=1), (scores - start).to_numpy()
    known = known[np.isfinite(known)]
    most = scores.index[harmed_patients(scores, start)[:WORST]]
    return [
        listing(f"{patient} {change[patient]:+.3f}" for patient in most) or NOTHING,
        f"{(known < -SHOWN).sum()} of {len(known)}",
    ]


def words(study: Study, row: str) -> list[str]:
    scores = study.scores(row, study.score, HEADLINE)
    marks = ", ".join(row_marks(study, row, HEADLINE))
    return [row, worst_words(scores), *harm_words(scores, start_of(study, row)), *counts(study, row), marks]


def counts(study: Study, row: str) -> list[str]:
    """How many structures are missed, and are false, over all patients and seeds."""
    if study.score != "dice":
        return [NOTHING, NOTHING]
    return [f"{study.scores(row, name, HEADLINE).to_numpy(na_value=0).sum():.0f}" for name in COUNTS]


def make_failures(study: Study) -> Report:
    blocks, lines = [], []
    for images, rows in blocks_of(study).items():
        blocks.append((heading(study, rows, images), [words(study, row) for row in rows]))
        lines += [line for row in rows for line in csv_lines(study, row)]
    notes = [
        f"Worst patients: the lowest {study.score_name} of the chosen network, mean over seeds; in brackets the worst "
        "seed's.",
        f"Most harmed: by how much the {study.score_name} of a patient falls below that of {study.asked.lower}, mean "
        "over seeds. Harmed: of all patients and seeds, those that fall by more than 0.001.",
        "Missed, false: structures of which nothing was predicted, and predicted ones that are not there, of all "
        "patients and seeds together.",
    ]
    return Report(f"Failures of {study.asked.name}", warnings(study), HEADER, blocks, notes, lines)


def csv_lines(study: Study, row: str) -> list[dict[str, Any]]:
    """A line a patient: means over seeds, the worst patient first."""
    scores, start = study.scores(row, study.score, HEADLINE), start_of(study, row)
    table = pd.DataFrame({study.score: scores.mean(axis=1), "lowest_seed": scores.min(axis=1)})
    change = scores * np.nan if start is None else scores - start
    table["change"], table["harmed_seeds"] = change.mean(axis=1), (change < -SHOWN).sum(axis=1)
    for name in COUNTS if study.score == "dice" else ():
        table[name] = study.scores(row, name, HEADLINE).sum(axis=1)
    table = table.sort_values(study.score, kind="stable").reset_index()
    return [{"row": row, "images": study.images_of(row), **line} for line in table.to_dict("records")]
