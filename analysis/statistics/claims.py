"""What a comparison claims: that one run is better, how often it is, and how much of a gap it closes.

Tables are (P, S), a score a patient and a seed, and higher is better: hand in distances with a minus sign.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from analysis.statistics.intervals import Interval, complete, crossed, crossed_interval, paired_interval

FURTHEST = 40  # doublings of the distance within which an end of the interval of a gap is looked for


def probability_false(first: ArrayLike, second: ArrayLike) -> float:
    """The probability that the claim "first is better than second" is false, given these tables (P, S).

    It is T_df(-m / SE): m is the mean of first - second, SE and df are those of its crossed interval, T is the
    distribution function of Student's t. With one seed this is the formula of Christodoulou et al. (2025, False
    Promises in Medical Imaging AI?, arXiv 2505.04720): T_{P-1}(√P (μ_2 - μ_1) / √(s_1² + s_2² - 2 r s_1 s_2)), where μ
    are the means, s the deviations and r the correlation of the patients' scores. With several seeds the claim is about
    other seeds too. Before the tables were seen, any difference was as likely as any other. NaN of fewer than two
    complete patients.
    """
    (first, second), _, _ = complete(first, second)
    if len(first) < 2:
        return math.nan
    mean, se, df = map(float, crossed(first - second))
    if se == 0:
        return 0.5 * (1 - np.sign(mean))
    return float(stdtr(df, -mean / se))


def wins(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """(P, S) 1 where first is higher, 0 where second is, 0.5 where they are the same; NaN where one is missing."""
    apart = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return np.where(np.isnan(apart), np.nan, 0.5 * (1 + np.sign(apart)))


def probability_better(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """P(first > second) for another patient and another seed, tables (P, S): the mean of `wins`.

    After Bouthillier et al. (2021, arXiv 2103.03098), who call a difference meaningful where the interval lies above
    0.5 and the value is at least 0.75. The interval is Wilson's (1927) of n answers, which stays within 0 and 1
    and has a length where all answers agree; t_df stands in place of the normal quantile. n is so large that the
    standard error is that of the crossed interval, and at most P: one answer a patient, however many seeds.
    """
    (first, second), _, left_out = complete(first, second)
    won = wins(first, second)
    found = replace(crossed_interval(won, level), left_out=left_out)
    if not found.is_known:
        return found
    share, n_patient = found.mean, len(won)
    spreads = found.se > 0 and 0 < share < 1
    n = min(n_patient, share * (1 - share) / found.se**2) if spreads else n_patient
    square = float(stdtrit(found.df if spreads else n_patient - 1, (1 + level) / 2)) ** 2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = math.sqrt(square * (share * (1 - share) / n + square / (4 * n**2))) / (1 + square / n)
    return replace(found, low=max(0.0, middle - half), high=min(1.0, middle + half))


# ------------------------------------------------------------------------------------------------- gap closed


def share_of_gap(value: float, bottom: float, top: float) -> float:
    """(value - bottom) / (top - bottom): 0 at the lower bound, 1 at the upper; NaN where the upper is not above."""
    return (value - bottom) / (top - bottom) if top > bottom else math.nan


def gap_closed(row: ArrayLike, lower: ArrayLike, upper: ArrayLike, level: float = 0.95) -> Interval | None:
    """The share of a gap that a run closes: mean(row - lower) / mean(upper - lower), of tables (P, S).

    None, which is "undefined", where the crossed interval of the gap, upper - lower, does not lie above 0: where there
    may be no gap, no share of it can be told. The interval is Fieller's (1954): all shares t for which the crossed
    interval of (row - lower) - t (upper - lower) holds 0. So the three are compared on the same patients and seeds, and
    both means are uncertain. `df` is that of this difference at the share found, and `se` half the length of the
    interval over the t quantile.
    """
    (row, lower, upper), _, left_out = complete(row, lower, upper)
    gap = paired_interval(upper, lower, level)
    if not gap.low > 0:
        return None
    gain, whole = row - lower, upper - lower
    share = float(gain.mean() / whole.mean())
    low, high = (_end_of_gap(gain, whole, share, side, level) for side in (-1, 1))
    df = float(crossed(gain - share * whole).df)
    se = (high - low) / (2 * float(stdtrit(df, (1 + level) / 2)))
    return Interval(share, low, high, se, df, *gain.shape, left_out)


def _end_of_gap(gain: NDArray[np.float64], whole: NDArray[np.float64], share: float, side: int, level: float) -> float:
    """The end of Fieller's interval on one side (-1, 1), where the crossed interval of gain - t whole has 0 as its end.

    Infinite where no share is so far off, which only a gap that hardly exists brings about.
    """

    def beyond(candidate: float) -> float:
        mean, se, df = crossed(gain - candidate * whole)
        return float(abs(mean) - stdtrit(df, (1 + level) / 2) * se)

    if beyond(share) >= 0:  # no spread at all
        return share
    steps = (2.0**power for power in range(FURTHEST))
    outside = next((share + side * step for step in steps if beyond(share + side * step) > 0), None)
    return side * math.inf if outside is None else float(brentq(beyond, share, outside))
