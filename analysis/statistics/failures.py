"""What a mean hides: the worst patients of a run, and those whom it harms."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.intervals import as_table
from metrics import SHOWN


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
