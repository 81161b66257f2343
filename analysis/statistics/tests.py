"""Tests of a paired difference over patients, and what many of them at once need.

`sign_flip` and `wilcoxon` take one difference a patient, the mean over the seeds. They are about other patients, for
the networks that were trained: what all patients owe to the luck of a seed counts as a difference. `crossed_test` is
about other seeds too.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from analysis.statistics.intervals import complete, crossed

EXACT = 40  # patients up to whom all 2^n signs are counted
DRAWS = 100_000  # signs that are drawn for more patients
ROUNDING = 1e-9  # two sums whose distance is below this share of the sum of the sizes are the same


def patient_differences(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """(P,) first - second, mean over seeds, of the patients who have a value in every seed of both tables (P, S)."""
    (first, second), _, _ = complete(first, second)
    return (first - second).mean(axis=1) if first.size else np.zeros(0)


def smallest_p(n: int) -> float:
    """The smallest two-sided p that `sign_flip` or `wilcoxon` can come to with n differences: 2 / 2^n, at most 1.

    All differences then have one sign. Differences of 0 do not count. With five patients it is 0.0625, so that no
    difference, however large, can be significant at 0.05; Holm multiplies it by the number of tests at most.
    """
    return min(1.0, 2.0 ** (1 - n))


def sign_flip(differences: ArrayLike, rng: np.random.Generator) -> float:
    """Two-sided p of Fisher's exact sign-flip test of n differences (P,), one a patient.

    If the two runs were alike, each difference might as well have the other sign. p is the share of the 2^n ways to
    give signs in which the sum lies as far from 0 as it does, or further (Fisher 1935). All are counted for up to EXACT
    differences other than 0. For more, DRAWS ways are drawn with `rng`, and p is (1 + those as far) / (1 + DRAWS)
    (Phipson and Smyth 2010). NaN is left out. No difference at all: NaN. Differences that are all 0: 1.
    """
    found = _known(differences)
    if not found.size:
        return math.nan
    sizes = np.abs(found[found != 0])
    far = abs(float(found.sum())) - ROUNDING * float(sizes.sum())
    if len(sizes) <= EXACT:
        return _share_as_far(sizes, far)
    signs = rng.integers(0, 2, (DRAWS, len(sizes)), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ sizes) >= far).sum()) / (1 + DRAWS))


def _share_as_far(sizes: NDArray[np.float64], far: float) -> float:
    """The share of the 2^n sums of ± sizes (n,) that are at least `far` from 0.

    A sum is one of half of the sizes and one of the other half; there are 2^(n/2) of each, and sorted ones are counted
    without being added.
    """
    if far <= 0:
        return 1.0
    one, other = (np.sort(_signed_sums(half)) for half in (sizes[::2], sizes[1::2]))
    above = len(other) - np.searchsorted(other, far - one, side="left")  # as many lie below -far
    return float(2 * above.sum() / (len(one) * len(other)))


def _signed_sums(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2^n,) sums of ± sizes (n,)."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of differences (P,), one a patient.

    NaN is left out, and differences of 0 (Wilcoxon 1945). Exact up to 50 differences without ties, as SciPy has it. No
    difference at all: NaN. Differences that are all 0: 1.
    """
    found = _known(differences)
    if not found.size:
        return math.nan
    return float(scipy.stats.wilcoxon(found).pvalue) if found.any() else 1.0


def crossed_test(table: ArrayLike) -> float:
    """Two-sided p of the mean of differences (P, S) being 0, for other patients and other seeds: the crossed t test.

    It is below 0.05 just where `crossed_interval` of 95 % does not hold 0. NaN of fewer than two complete patients.
    """
    (table,), _, _ = complete(table)
    if len(table) < 2:
        return math.nan
    mean, se, df = map(float, crossed(table))
    if se == 0:
        return float(mean == 0)
    return float(2 * stdtr(df, -abs(mean) / se))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of one family of tests after Holm (1979), in their order: the i-th smallest of m times m - i + 1.

    None is smaller than one before it, nor above 1. NaN stands for a test that was declared and could not be made: it
    stays NaN, and counts among the m, as the largest. A test is significant at 0.05 where its value here is at most
    that: then the chance that any of the family is so by mistake is at most 0.05.
    """
    found = np.asarray(p_values, dtype=np.float64)
    order = [place for place in np.argsort(found, kind="stable") if not np.isnan(found[place])]
    raised = np.minimum(np.maximum.accumulate(found[order] * np.arange(len(found), len(found) - len(order), -1)), 1.0)
    found = found.copy()
    found[order] = raised
    return found.tolist()


def _known(differences: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(differences, dtype=np.float64).ravel()
    return found[np.isfinite(found)]
