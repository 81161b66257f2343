"""Intervals of a mean over patients and seeds, which are crossed: every network is scored on every patient.

A table is (P, S): one score a patient and a seed. It is read as d = m + a_patient + b_seed + e, so that the interval
of m holds for other patients and for other seeds. Two runs are compared by the table of their differences: patients
and seeds that are easy for both then cancel out.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from processes.errors import UserError

DRAWS = 10_000  # of a bootstrap
SEEDS_COUNT = 3.0  # how often the mean square of the seeds counts in the degrees of freedom, see `degrees_of_freedom`
NO_EFFECT = 0.7  # seeds whose mean square is below so many times that of the rest do not differ


@dataclass(frozen=True)
class Interval:
    """A mean over P patients and S seeds, and its interval.

    mean       of all cells of the complete patients; NaN where there is none
    low, high  NaN where nothing is known of the spread between patients: of one patient, or of none
    se         standard error, NaN likewise
    df         degrees of freedom of the t distribution that the interval is taken from, NaN likewise
    patients   that counted; a patient counts who has a value in every seed (and in both tables of a comparison)
    seeds      that counted; a seed counts that has a value for any patient
    left_out   patients who have a value somewhere and did not count
    """

    mean: float
    low: float
    high: float
    se: float
    df: float
    patients: int
    seeds: int
    left_out: int = 0

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


# ---------------------------------------------------------------------------------------------- which cells count


def as_table(table: ArrayLike) -> NDArray[np.float64]:
    """(P, S) float64 of a table, or of (P,) values of a single seed. Raises UserError for any other shape."""
    table = np.asarray(table, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2:
        raise UserError(
            f"A table of scores has the axes patients and seeds, (P, S); this one has the shape {table.shape}."
        )
    return table


def complete(*tables: ArrayLike) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_], int]:
    """The tables (P, S) without what no balanced comparison can use; which patients (P,) stay; how many do not.

    First go the seeds that have no value at all in one of the tables: runs that are not there. Then go the patients who
    lack a value in any seed that is left, in any of the tables. Those of them who have a value somewhere are counted:
    the mean is then over other patients than each table's own. Infinite values are missing ones.
    """
    found = [as_table(table) for table in tables]
    if len(shapes := {table.shape for table in found}) > 1:
        raise UserError(f"Tables that are compared have the same patients and seeds; these have the shapes {shapes}.")
    known = np.all([np.isfinite(table) for table in found], axis=0)
    seeds = np.all([np.isfinite(table).any(0) for table in found], axis=0)
    kept = known[:, seeds].all(1) & seeds.any()
    some = np.any([np.isfinite(table).any(1) for table in found], axis=0)
    return [table[kept][:, seeds] for table in found], kept, int((some & ~kept).sum())


# -------------------------------------------------------------------------------------------- the crossed interval


class Crossed(NamedTuple):
    """Of tables (..., P, S): their means, standard errors and degrees of freedom, (...) each."""

    mean: NDArray[np.float64]
    se: NDArray[np.float64]
    df: NDArray[np.float64]


class MeanSquares(NamedTuple):
    """Of tables (..., P, S): the mean squares of a two-way analysis of variance, (...) each."""

    patients: NDArray[np.float64]
    seeds: NDArray[np.float64]
    rest: NDArray[np.float64]


def mean_squares(tables: NDArray[np.float64]) -> MeanSquares:
    """The two-way analysis of variance with one value a cell (Searle, Casella and McCulloch 1992, chapter 4).

    With P patients and S seeds their expected values are S Va + Ve, P Vb + Ve and Ve: Va is the variance of the
    patients, Vb of the seeds, Ve of what is left. P and S are at least 2.
    """
    n_patient, n_seed = tables.shape[-2:]
    mean = tables.mean((-2, -1), keepdims=True)
    of_patients, of_seeds = tables.mean(-1, keepdims=True) - mean, tables.mean(-2, keepdims=True) - mean
    rest = tables - mean - of_patients - of_seeds
    return MeanSquares(
        n_seed * (of_patients**2).sum((-2, -1)) / (n_patient - 1),
        n_patient * (of_seeds**2).sum((-2, -1)) / (n_seed - 1),
        (rest**2).sum((-2, -1)) / ((n_patient - 1) * (n_seed - 1)),
    )


def crossed(tables: NDArray[np.float64]) -> Crossed:
    """The mean of complete tables (..., P, S), its standard error and degrees of freedom. P is at least 2.

    SE² = (MS_patient + MS_seed - MS_rest) / (P S), the estimate of Va / P + Vb / S + Ve / (P S). A component that
    comes out negative is taken as 0, so that SE² is at least MS_patient / (P S) and MS_seed / (P S). Where that of the
    patients is, there are S - 1 degrees of freedom, else those of `degrees_of_freedom`. Where seeds do not differ
    (MS_seed below NO_EFFECT MS_rest), it is the usual standard error of P means over seeds, with P - 1; likewise where
    S = 1.
    """
    n_patient, n_seed = tables.shape[-2:]
    mean = tables.mean((-2, -1))
    if n_seed == 1:
        se = tables[..., 0].std(-1, ddof=1) / math.sqrt(n_patient)
        return Crossed(mean, se, np.full_like(se, n_patient - 1))
    squares = mean_squares(tables)
    of_patients, of_seeds, rest = squares
    square = np.maximum(np.maximum(of_patients, of_seeds), of_patients + of_seeds - rest)
    alike = of_seeds < NO_EFFECT * rest
    square = np.where(alike, of_patients, square)
    common = degrees_of_freedom(squares, n_patient, n_seed)
    df = np.select([alike, of_patients < rest], [n_patient - 1, n_seed - 1], common)
    return Crossed(mean, np.sqrt(square / (n_patient * n_seed)), df)


def degrees_of_freedom(squares: MeanSquares, n_patient: int, n_seed: int) -> NDArray[np.float64]:
    """Satterthwaite's (1946): (a + b - c)² / (a² / (P - 1) + b² / (S - 1) + c² / ((P - 1)(S - 1))).

    a, b and c are MS_patient, MS_seed and MS_rest. As published, b counts once. Of three seeds b may come out small by
    chance, and then the degrees of freedom come out large just where the interval is too short. So b counts SEEDS_COUNT
    times here (docs/statistics.md has the coverage of both). At least 1.
    """
    of_patients, of_seeds, rest = squares.patients, SEEDS_COUNT * squares.seeds, squares.rest
    below = of_patients**2 / (n_patient - 1) + of_seeds**2 / (n_seed - 1) + rest**2 / ((n_patient - 1) * (n_seed - 1))
    above = (of_patients + of_seeds - rest) ** 2
    return np.maximum(np.divide(above, below, out=np.full_like(below, n_patient - 1), where=below > 0), 1)


def crossed_interval(
    table: ArrayLike, level: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """The interval of the mean of a table (P, S), for other patients and other seeds: mean ± t_df SE, see `crossed`.

    With one seed it holds for the network of that seed alone. Of one patient, or of none, there is no interval.

    bounds: between which the mean lies for sure, as a Dice does between 0 and 1; the interval ends there at the latest,
        and holds as often
    """
    (table,), _, left_out = complete(table)
    if len(table) < 2:
        return _unknown(table, left_out)
    mean, se, df = map(float, crossed(table))
    half = float(stdtrit(df, (1 + level) / 2)) * se
    low, high = max(mean - half, bounds[0]), min(mean + half, bounds[1])
    return Interval(mean, low, high, se, df, *table.shape, left_out)


def paired_interval(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """The crossed interval of first - second, tables (P, S) of the same patients and seeds."""
    (first, second), _, left_out = complete(first, second)
    return replace(crossed_interval(first - second, level), left_out=left_out)


def _unknown(table: NDArray[np.float64], left_out: int) -> Interval:
    """Of a complete table of one patient, or of none: its mean, if it has one."""
    mean = float(table.mean()) if table.size else math.nan
    return Interval(mean, math.nan, math.nan, math.nan, math.nan, *table.shape, left_out)


# ---------------------------------------------------------------------------------------------------- bootstraps


def draw(n: int, rng: np.random.Generator, draws: int = DRAWS) -> NDArray[np.int64]:
    """(draws, n) places out of n, drawn with replacement."""
    return rng.integers(n, size=(draws, n))


def draw_shares(n: int, rng: np.random.Generator, draws: int = DRAWS) -> NDArray[np.float64]:
    """(draws, n) share of each of n in a sample of n drawn with replacement."""
    places = draw(n, rng, draws) + n * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n) / n


def means_of_draws(
    tables: NDArray[np.float64], patients: NDArray[np.float64], seeds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(..., B) means of complete tables (..., P, S) in B draws; patients (B, P), seeds (B, S): their shares in each.

    Patients and seeds are drawn independently: the pigeonhole bootstrap (Owen 2007, doi 10.1214/07-AOAS122).
    """
    return ((patients @ tables) * seeds).sum(-1)


def bootstrap_ends(
    tables: NDArray[np.float64], patients: NDArray[np.float64], seeds: NDArray[np.float64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(...) lower and upper ends of the interval of `bootstrap_interval`, of the arrays that `means_of_draws` takes."""
    mean, se, df = crossed(tables)
    apart = means_of_draws(tables, patients, seeds) - mean[..., None]
    low, high = np.quantile(apart, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    length = 2 * stdtrit(df, (1 + level) / 2) * se
    times = np.divide(length, high - low, out=np.ones_like(length), where=high > low)
    return mean + times * low, mean + times * high


def bootstrap_interval(table: ArrayLike, rng: np.random.Generator, level: float = 0.95, draws: int = DRAWS) -> Interval:
    """The interval of the mean of a table (P, S) by a two-way bootstrap, made as long as the crossed one.

    The percentiles of `means_of_draws` say how the interval leans to one side. Its length they say badly: a bootstrap
    over S seeds is too narrow by sqrt((S - 1) / S), and knows nothing of the t distribution, so that with three seeds
    it holds far too seldom. So the distances of both percentiles from the mean are multiplied by one number, with which
    the interval is as long as that of `crossed_interval`. `se` and `df` are those of the crossed interval. Tables of
    one shape get the same draws from generators in the same state.
    """
    (table,), _, left_out = complete(table)
    exact = replace(crossed_interval(table, level), left_out=left_out)
    if not exact.is_known:
        return exact
    patients, seeds = (draw_shares(n, rng, draws) for n in table.shape)
    low, high = bootstrap_ends(table, patients, seeds, level)
    return replace(exact, low=float(low), high=float(high))


def percentile_interval(
    values: ArrayLike, rng: np.random.Generator, level: float = 0.95, draws: int = DRAWS
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean: the values (P,), one per patient, are drawn with replacement.

    NaN is left out; (NaN, NaN) for fewer than two values. With ten or twenty patients it is too narrow.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size < 2:
        return math.nan, math.nan
    means = values[draw(values.size, rng, draws)].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
