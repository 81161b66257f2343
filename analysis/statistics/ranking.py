"""Which of several runs is best, by three rankings, and how much of that is luck of patients and seeds.

After Wiesenfarth et al. (2021, Methods and visualizations for assessing the uncertainty of challenge rankings,
Scientific Reports 11:2369). Scores are (R, P, S): R runs, P patients, S seeds; higher is better.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import rankdata

from analysis.statistics.intervals import complete, draw, draw_shares
from processes.errors import UserError

DRAWS = 1000  # of the bootstrap
AT_ONCE = 2**21  # differences whose ranks are held at a time
SIGNIFICANT = 0.05
DIGITS = 12  # of a score; what is the same to so many is the same


# ------------------------------------------------------------------------------------------------ three rankings


def mean_then_rank(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., R) ranks, 1 is best, of runs by their mean over patients, (..., R, P)."""
    return _places(scores.mean(-1))


def rank_then_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., R) ranks of runs by the mean of their ranks on each patient, (..., R, P); the same score, the mean rank."""
    return _places(-rankdata(-np.round(scores, DIGITS), axis=-2).mean(-1))


def rank_by_tests(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., R) ranks of runs by how many others they beat, (..., R, P).

    One beats another if Wilcoxon's signed-rank test says so, one-sided at 0.05, after Holm over all ordered pairs.
    """
    flat = scores.reshape(-1, *scores.shape[-2:])
    n_run, n_patient = flat.shape[1:]
    one, other = np.triu_indices(n_run, 1)
    step = max(1, AT_ONCE // max(1, len(one) * n_patient))
    beaten = [_beats(flat[start : start + step], one, other) for start in range(0, len(flat), step)]
    return _places(np.concatenate(beaten).sum(-1).reshape(scores.shape[:-1]))


RANKINGS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean then rank": mean_then_rank,
    "rank then mean": rank_then_mean,
    "test then rank": rank_by_tests,
}


def _places(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., R) 1 of the highest value; equal ones share the best of their places."""
    return rankdata(-np.round(values, DIGITS), axis=-1, method="min")


def _beats(scores: NDArray[np.float64], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, R, R) whether a run beats another, of scores (B, R, P); one, other: the pairs of runs, each once."""
    z = signed_rank_z(scores[:, one] - scores[:, other])
    p = ndtr(np.concatenate([-z, z], axis=-1))
    n_pair = p.shape[-1]
    order = np.argsort(p, axis=-1)
    raised = np.maximum.accumulate(np.take_along_axis(p, order, -1) * np.arange(n_pair, 0, -1), axis=-1)
    significant = np.zeros(p.shape, bool)
    np.put_along_axis(significant, order, raised <= SIGNIFICANT, -1)
    beats = np.zeros((len(scores), scores.shape[1], scores.shape[1]), bool)
    beats[:, np.concatenate([one, other]), np.concatenate([other, one])] = significant
    return beats


def signed_rank_z(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """(...) z of Wilcoxon's signed-rank test of differences (..., P), by its normal approximation, corrected for ties.

    Differences of 0 are left out; 0 where all are. Of patients drawn with replacement no other form can be exact.
    """
    sizes = np.abs(np.round(differences, DIGITS))
    counted = sizes > 0
    none = (~counted).sum(-1)
    ranks = np.where(counted, rankdata(sizes, axis=-1) - none[..., None], 0)
    n = counted.sum(-1)
    positive = np.where(differences > 0, ranks, 0).sum(-1)
    variance = (ranks**2).sum(-1) / 4  # which is n (n + 1) (2 n + 1) / 24, less what ties take away
    apart = positive - n * (n + 1) / 4
    return np.divide(apart, np.sqrt(variance), out=np.zeros_like(apart), where=variance > 0)


# ------------------------------------------------------------------------------------------------- stability


@dataclass(frozen=True)
class Ranking:
    """The ranks of R runs, and what they are in bootstrap draws of patients and seeds.

    ranks     (R,) from 1; runs that cannot be told apart share the best of their places
    low, high (R,) the rank of 95 % of the draws lies between them
    frequency (R, R) share of the draws in which a run (row) has the rank (column, from 1)
    tau       Kendall's tau-b between the ranking and that of a draw, mean over the draws; 1 is always the same, NaN
              where nothing can be told apart
    patients, seeds, left_out   as in Interval
    """

    ranks: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    frequency: NDArray[np.float64]
    tau: float
    patients: int
    seeds: int
    left_out: int

    def podium(self, places: int = 3) -> NDArray[np.float64]:
        """(R,) share of the draws in which a run is among the first."""
        return self.frequency[:, :places].sum(1)


def rank_runs(
    scores: Sequence[ArrayLike], seed: int = 0, missing: float | None = None, draws: int = DRAWS
) -> dict[str, Ranking]:
    """Ranks runs, R tables (P, S), in three ways; name of the ranking -> Ranking.

    In each draw patients and seeds are drawn anew, independently and with replacement, the same for all runs.

    missing: what stands for a score that is not there, such as the worst that there can be where a run missed the
             structure. Without it patients who lack a score in any run count in none.

    Raises UserError where nobody is left.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in scores]
    if missing is not None:
        tables = [np.where(np.isnan(table), missing, table) for table in tables]
    tables, _, left_out = complete(*tables) if tables else ([], None, 0)
    if not tables or not tables[0].size:
        raise UserError("No patient has a score in every run and seed, so that there is nothing to rank runs by.")
    rng, whole = np.random.default_rng(seed), np.stack(tables)
    n_patient, n_seed = whole.shape[1:]
    patients, seeds = draw(n_patient, rng, draws), draw_shares(n_seed, rng, draws)
    means = np.einsum("rps,bs->brp", whole, seeds)
    drawn = np.take_along_axis(means, patients[:, None, :], axis=2)
    facts = (n_patient, n_seed, left_out)
    return {name: _with_stability(rank(whole.mean(2)), rank(drawn), facts) for name, rank in RANKINGS.items()}


def _with_stability(ranks: NDArray[np.float64], drawn: NDArray[np.float64], facts: tuple[int, int, int]) -> Ranking:
    """ranks (R,) of all patients and seeds, drawn (B, R) of the draws."""
    places = np.arange(1, len(ranks) + 1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="nearest").astype(int)
    frequency = (drawn[:, :, None] == places).mean(0)
    taus = kendall_tau(ranks, drawn)
    tau = float(np.nanmean(taus)) if np.isfinite(taus).any() else math.nan
    return Ranking(ranks.astype(int), low, high, frequency, tau, *facts)


def kendall_tau(ranks: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) Kendall's tau-b of a ranking (R,) and others (B, R): 1 the same, -1 upside down, NaN where all are tied."""
    one, other = np.triu_indices(len(ranks), 1)
    first, second = np.sign(ranks[one] - ranks[other]), np.sign(others[:, one] - others[:, other])
    untied = np.sqrt(np.abs(first).sum() * np.abs(second).sum(1))
    return np.divide(second @ first, untied, out=np.full(len(others), math.nan), where=untied > 0)
