"""What a comparison claims: by hand, against published formulas and SciPy, and where it is undefined."""

import math

import numpy as np
import pytest
import scipy.stats

from analysis.statistics.claims import gap_closed, probability_better, probability_false, share_of_gap, wins
from analysis.statistics.intervals import crossed_interval, paired_interval
from analysis.statistics.tests import crossed_test

NAN = math.nan


def rng():
    return np.random.default_rng(0)


def three_runs(n_patient=10, n_seed=4, gain=0.1, seed=0):
    """A run, its lower and its upper bound, (P, S) each: 0.5 + gain, 0.5 and 0.7 on average."""
    generator = np.random.default_rng(seed)
    base = generator.normal(0.5, 0.08, (n_patient, 1)) + generator.normal(0, 0.02, (1, n_seed))
    return [base + more + generator.normal(0, 0.03, (n_patient, n_seed)) for more in (gain, 0.0, 0.2)]


def test_probability_false_is_the_published_formula_for_one_seed():
    """Christodoulou et al. 2025, with the means, deviations and correlation of the two runs."""
    first, second = three_runs(n_seed=1)[:2]
    a, b = first[:, 0], second[:, 0]
    spread = a.var(ddof=1) + b.var(ddof=1) - 2 * np.corrcoef(a, b)[0, 1] * a.std(ddof=1) * b.std(ddof=1)
    expected = scipy.stats.t.cdf(math.sqrt(len(a)) * (b.mean() - a.mean()) / math.sqrt(spread), len(a) - 1)
    assert probability_false(first, second) == pytest.approx(expected)
    assert expected == pytest.approx(scipy.stats.ttest_rel(a, b, alternative="greater").pvalue)


def test_probability_false_is_half_of_p_where_the_claim_holds_and_the_rest_for_the_other_claim():
    first, second = three_runs()[:2]
    assert probability_false(first, second) == pytest.approx(crossed_test(first - second) / 2)
    assert probability_false(first, second) + probability_false(second, first) == pytest.approx(1)


def test_probability_false_without_spread():
    ones = np.ones((3, 2))
    assert probability_false(ones, ones) == 0.5
    assert probability_false(2 * ones, ones) == 0
    assert probability_false(ones, 2 * ones) == 1
    assert math.isnan(probability_false(ones[:1], ones[:1]))


def test_wins_are_half_where_scores_are_the_same():
    won = wins([[0.9, 0.5], [0.1, NAN]], [[0.8, 0.5], [0.2, 0.3]])
    np.testing.assert_array_equal(won, [[1, 0.5], [0, NAN]])


def test_probability_better_by_hand():
    """Three of four patients, one seed: p (1 - p) is 3 times the squared standard error of 1, 1, 1, 0."""
    found = probability_better([0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.5, 0.5])
    assert (found.mean, found.df, found.patients) == (0.75, 3, 4)
    q2, n = scipy.stats.t.ppf(0.975, 3) ** 2, 0.75 * 0.25 / (0.25 / 4)
    # Wilson's ends are the p' with (0.75 - p')² = q² p' (1 - p') / n
    roots = sorted(np.roots([1 + q2 / n, -1.5 - q2 / n, 0.75**2]))
    assert (found.low, found.high) == tuple(map(pytest.approx, roots))


def test_probability_better_is_wilsons_interval_of_scipy_where_n_is_large():
    """With one seed, t is nearly normal and n is the number of patients less one."""
    won = np.random.default_rng(0).random((2000, 1)) < 0.8
    theirs = scipy.stats.binomtest(int(won.sum()), 2000).proportion_ci(method="wilson")
    found = probability_better(won.astype(float), np.full(won.shape, 0.5))
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=1e-4), pytest.approx(theirs.high, abs=1e-4))


def test_patients_who_agree_in_all_seeds_leave_doubt():
    first, second = np.ones((10, 3)), np.zeros((10, 3))
    found = probability_better(first, second)
    q2 = scipy.stats.t.ppf(0.975, 9) ** 2
    assert (found.mean, found.low, found.high) == (1, pytest.approx(1 / (1 + q2 / 10)), 1)
    lost = probability_better(second, first)
    assert (lost.mean, lost.low, lost.high) == (0, 0, pytest.approx(1 - found.low))


def test_probability_better_counts_a_patient_once():
    """Patients and seeds that do not agree in anything: n is the number of patients, not of cells."""
    generator = np.random.default_rng(0)
    found = probability_better(generator.normal(size=(12, 5)), generator.normal(size=(12, 5)))
    one_seed = math.sqrt(found.mean * (1 - found.mean) / 12)
    assert found.high - found.low > 2 * one_seed


def test_probability_better_of_one_patient_is_not_known():
    found = probability_better([[0.9, 0.8]], [[0.5, 0.9]])
    assert found.mean == 0.5
    assert not found.is_known


# ------------------------------------------------------------------------------------------------- gap closed


def test_share_of_gap_by_hand():
    assert share_of_gap(0.6, 0.5, 0.7) == pytest.approx(0.5)
    assert share_of_gap(0.4, 0.5, 0.7) == pytest.approx(-0.5)
    assert math.isnan(share_of_gap(0.6, 0.7, 0.5))
    assert math.isnan(share_of_gap(0.6, 0.5, 0.5))


def test_gap_closed_is_fiellers_interval_for_one_seed():
    """The roots in t of (x - t y)² = q² (s_xx - 2 t s_xy + t² s_yy), of means x, y and their covariances s."""
    row, lower, upper = three_runs(n_seed=1)
    gain, whole = (row - lower)[:, 0], (upper - lower)[:, 0]
    (xx, xy), (_, yy) = np.cov(gain, whole) / len(gain)
    q2, x, y = scipy.stats.t.ppf(0.975, len(gain) - 1) ** 2, gain.mean(), whole.mean()
    roots = sorted(np.roots([y**2 - q2 * yy, 2 * (q2 * xy - x * y), x**2 - q2 * xx]))
    found = gap_closed(row, lower, upper)
    assert (found.mean, found.low, found.high) == (pytest.approx(x / y), *map(pytest.approx, roots))
    assert found.df == len(gain) - 1


def test_ends_of_gap_closed_are_where_the_crossed_interval_reaches_zero():
    row, lower, upper = three_runs()
    found = gap_closed(row, lower, upper)
    assert found.low < found.mean < found.high
    for end in (found.low, found.high):
        at = crossed_interval(row - lower - end * (upper - lower))
        assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-9)


def test_bounds_close_nothing_and_everything():
    _, lower, upper = three_runs()
    none, all_of_it = gap_closed(lower, lower, upper), gap_closed(upper, lower, upper)
    assert (none.mean, none.low, none.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (all_of_it.mean, all_of_it.low, all_of_it.high) == pytest.approx((1, 1, 1))


def test_gap_closed_does_not_depend_on_unit_or_direction():
    row, lower, upper = three_runs()
    found, other = gap_closed(row, lower, upper), gap_closed(100 * row - 7, 100 * lower - 7, 100 * upper - 7)
    assert (other.mean, other.low, other.high) == pytest.approx((found.mean, found.low, found.high))


def test_a_gap_that_may_be_none_has_no_share():
    row, lower, upper = three_runs()
    assert gap_closed(row, lower, lower + 0.01 * rng().normal(size=lower.shape)) is None
    assert gap_closed(row, upper, lower) is None
    assert gap_closed(row[:1], lower[:1], upper[:1]) is None
    assert gap_closed(row, lower, np.full_like(upper, NAN)) is None
    assert paired_interval(upper, lower).low > 0


def test_gap_closed_of_those_who_are_in_all_three():
    row, lower, upper = three_runs()
    row[0, 0], upper[1, 2] = NAN, NAN
    found, expected = gap_closed(row, lower, upper), gap_closed(row[2:], lower[2:], upper[2:])
    assert (found.mean, found.low, found.high) == (expected.mean, expected.low, expected.high)
    assert (found.patients, found.left_out) == (8, 2)
