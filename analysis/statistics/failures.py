"""What a mean hides: the worst patients of a run, those whom it harms, the structures that it misses or invents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.intervals import as_table
from metrics import SHOWN, Outcome


@dataclass(frozen=True)
class Worst:
    """A patient of a table (P, S): the place in it, the mean over the seeds that have a score, the lowest of them."""

    place: int
    mean: float
    lowest: float


def worst_patients(table: ArrayLike, number: int = 3) -> list[Worst]:
    """The patients with the lowest mean over seeds, of a table (P, S) in which higher is better; the lowest first.

    A seed without a score is left out of a patient's mean, and a patient without any score out of the list. Of equal
    means the first patient comes first.
    """
    means, table = seed_means(table), as_table(table)
    known = np.flatnonzero(np.isfinite(means))
    places = known[np.argsort(means[known], kind="stable")][:number]
    return [Worst(int(place), float(means[place]), float(np.nanmin(table[place]))) for place in places]


def harmed_patients(table: ArrayLike, start: ArrayLike, by: float = SHOWN) -> NDArray[np.int64]:
    """The places of patients whose mean over seeds lies more than `by` below that of the start, the most harmed first.

    Tables are (P, S), higher is better; a patient without a score in one of them is not among them.
    """
    loss = seed_means(start) - seed_means(table)
    places = np.flatnonzero(loss > by)
    return places[np.argsort(-loss[places], kind="stable")]


def seed_means(table: ArrayLike) -> NDArray[np.float64]:
    """(P,) mean over the seeds that have a score, of a table (P, S); NaN where none has."""
    table = as_table(table)
    known = np.isfinite(table)
    sums = np.where(known, table, 0).sum(1)
    return np.divide(sums, known.sum(1), out=np.full(len(table), np.nan), where=known.any(1))


@dataclass(frozen=True)
class Failures:
    """How often, over patients, classes and seeds, something was missed or invented, out of how many chances.

    true, absent   structures that are there, and that are not
    misses         true ones of which nothing was predicted
    false          absent ones that were predicted
    patients       who had a miss or a false structure in any seed
    """

    true: int
    absent: int
    misses: int
    false: int
    patients: int


def count_failures(rows: Sequence[Mapping[str, object]]) -> Failures:
    """Counts the outcomes of rows as `Run.patients` has them: one a patient and class, of one seed or of several."""
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in Outcome}
    failed = {row["patient"] for row in rows if row["outcome"] in (Outcome.MISS, Outcome.FALSE_STRUCTURE)}
    return Failures(
        true=counts[Outcome.HIT] + counts[Outcome.MISS],
        absent=counts[Outcome.FALSE_STRUCTURE] + counts[Outcome.TRUE_ABSENCE],
        misses=counts[Outcome.MISS],
        false=counts[Outcome.FALSE_STRUCTURE],
        patients=len(failed),
    )
