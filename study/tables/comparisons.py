"""Each row against the reference rows: differences with intervals, exact tests after Holm, what a claim is worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.statistics.comparison import Paired, compare_family
from analysis.statistics.intervals import Interval, paired_interval
from analysis.statistics.tests import smallest_p
from analysis.tables.table import Report
from study.reading import HEADLINE, Study
from study.tables.words import (
    SIGNIFICANT,
    blocks_of,
    earlier_note,
    interval_cells,
    mean_words,
    p_words,
    signed_words,
    warnings,
)
from utils import counted


def references(study: Study, rows: Sequence[str]) -> list[str]:
    """Those of these rows that the others are tested against; the first where none of those asked for is among them."""
    return [row for row in study.asked.references if row in rows] or list(rows[:1])


def compare_rows(study: Study, rows: Sequence[str]) -> dict[str, dict[str, Paired]]:
    """Reference -> row -> its comparison with it, in the score that heads the study; each reference is one family."""
    tables = {row: study.scores(row, study.score, HEADLINE) for row in rows}
    return {name: compare_family(tables, name) for name in references(study, rows) if len(rows) > 1}


HEADER = ["row", "difference", "better : worse", "p", "p after Holm", "smallest p", "P(claim false)", "P(better)"]


def words(study: Study, row: str, reference: str, paired: Paired) -> list[str]:
    difference, better = paired.difference, paired.probability_better
    seeds = f" ({difference.seeds} of {counted(len(study.seeds), 'seed')})" * (difference.seeds < len(study.seeds))
    return [
        row,
        signed_words(difference) + seeds,
        f"{paired.better} : {paired.worse}",
        *map(p_words, (paired.p, paired.p_holm, paired.smallest_p, paired.probability_false)),
        mean_words(better, 2),
        *(signed_words(beside(study, row, reference, score), digits) for score, digits in scores_beside(study).items()),
    ]


def scores_beside(study: Study) -> Mapping[str, int]:
    """Scores whose differences stand beside, without a test, and their digits."""
    return {"hd95_penalised": 2, "nsd": 3} if study.score == "dice" else {}


def beside(study: Study, row: str, reference: str, score: str) -> Interval:
    """The difference in another score, row - reference."""
    return paired_interval(*(study.scores(name, score, HEADLINE) for name in (row, reference)))


def notes(study: Study) -> list[str]:
    told = [
        f"Difference: row - reference in {study.score_name} of the chosen network, patient by patient and seed by "
        "seed, with its 95 % interval for other patients and other source networks.",
        "Better : worse: on how many patients the row is better, worse, in the mean over seeds.",
        "p: the larger of two tests, so that a small one speaks for other patients and for other seeds: Fisher's exact "
        "sign-flip test on the patients, and the t test of the crossed interval. After Holm: of the rows of the block, "
        "one family that is declared when the study is typed. Smallest p: what so many patients can give at best.",
        "P(claim false): the probability that it is false that the better of the two is better (Christodoulou et al. "
        "2025). P(better): how often the row is better for another patient and another seed; a difference is called "
        "meaningful from 0.75 on, with an interval above 0.5 (Bouthillier et al. 2021).",
    ]
    if scores_beside(study):
        told.append("HD95 (penalised for what is missed or false; lower is better) and NSD stand beside, untested.")
    return [*told, *earlier_note(study)]


def powerless(study: Study, found: Sequence[Paired]) -> list[str]:
    """A warning where no test can succeed, however large a difference is."""
    patients = max((paired.difference.patients for paired in found), default=0)
    if patients < 2 or smallest_p(patients) <= SIGNIFICANT:
        return []
    return [
        f"{counted(patients, study.unit)}: the smallest p that a test can come to is {smallest_p(patients):.3g}, so no "
        "difference, however large, is significant at 0.05."
    ]


# ------------------------------------------------------------------------------------------------ the table


def make_comparisons(study: Study) -> Report | None:
    """None where no two rows were scored on the same images."""
    blocks, lines, every = [], [], []
    for images, rows in blocks_of(study).items():
        for reference, family in compare_rows(study, rows).items():
            title = f"Against {reference}: {images}, a family of {counted(len(family), 'test')}"
            blocks.append((title, [words(study, row, reference, paired) for row, paired in family.items()]))
            lines += [csv_line(study, row, reference, paired) for row, paired in family.items()]
            every += family.values()
    if not blocks:
        return None
    header = [*HEADER, *("HD95 penalised" if "hd95" in score else score.upper() for score in scores_beside(study))]
    title = f"Comparisons of {study.asked.name}: {study.score_name} of the chosen network"
    return Report(title, [*powerless(study, every), *warnings(study)], header, blocks, notes(study), lines)


def csv_line(study: Study, row: str, reference: str, paired: Paired) -> dict[str, Any]:
    line = {"row": row, "reference": reference, "images": study.images_of(row), "score": study.score}
    for name, value in vars(paired).items():
        line |= interval_cells(name, value) if isinstance(value, Interval) else {name: value}
    for score in scores_beside(study):
        line |= interval_cells(f"{score}_difference", beside(study, row, reference, score))
    return line
