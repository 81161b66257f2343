"""Tests of paired differences: by hand, against SciPy and statsmodels, and the smallest p that there can be."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from analysis.statistics.intervals import crossed_interval
from analysis.statistics.tests import crossed_test, holm, patient_differences, sign_flip, smallest_p, wilcoxon

NAN = math.nan


def rng():
    return np.random.default_rng(0)


def test_sign_flip_by_hand():
    """Of the 8 sums ±1 ±2 ±4, |1 + 2 + 4| = 7 twice; |-1 + 2 + 4| = 5 or more four times."""
    assert sign_flip([1.0, 2.0, 4.0], rng()) == 2 / 8
    assert sign_flip([-1.0, 2.0, 4.0], rng()) == 4 / 8
    assert sign_flip([1.0, -1.0], rng()) == 1
    assert sign_flip([0.3], rng()) == 1


def test_sign_flip_counts_as_enumeration_does():
    for seed, n in itertools.product(range(3), (2, 5, 9)):
        found = np.random.default_rng(seed).normal(0.4, 1, n).round(1)  # rounded: with ties between sums
        sums = np.array([np.dot(signs, found) for signs in itertools.product((-1, 1), repeat=n)])
        expected = (np.abs(sums) >= abs(found.sum()) - 1e-9).mean()
        assert sign_flip(found, rng()) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_is_the_permutation_test_of_scipy():
    found = np.random.default_rng(1).normal(0.5, 1, 11)
    theirs = scipy.stats.permutation_test((found,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(found, rng()) == pytest.approx(theirs.pvalue)


def test_sign_flip_of_many_patients_is_drawn_and_never_zero():
    found = np.random.default_rng(2).normal(0.2, 1, 80)
    assert sign_flip(found, rng()) == pytest.approx(scipy.stats.ttest_1samp(found, 0).pvalue, abs=0.01)
    assert sign_flip(np.ones(80), rng()) == 1 / 100_001


@pytest.mark.parametrize("n", [1, 2, 5, 6, 12, 37])
def test_no_p_is_smaller_than_the_smallest(n):
    differences = np.arange(1.0, n + 1)
    assert sign_flip(differences, rng()) == pytest.approx(smallest_p(n), rel=1e-9)
    assert wilcoxon(differences) == pytest.approx(smallest_p(n), rel=1e-9)


def test_five_patients_can_never_be_significant():
    assert smallest_p(5) == 0.0625
    assert smallest_p(6) == 0.03125
    assert smallest_p(0) == smallest_p(1) == 1


@pytest.mark.parametrize("test", [wilcoxon, lambda differences: sign_flip(differences, rng())])
def test_differences_that_are_none(test):
    assert test([0.0, 0.0, NAN]) == 1
    assert math.isnan(test([NAN, NAN]))
    assert math.isnan(test([]))
    assert test([0.0, NAN, 1.0, 2.0, 3.0]) == test([1.0, 2.0, 3.0]) == 2 / 8


def test_wilcoxon_by_hand():
    """Ranks 1 to 4, of which 1 is of a negative one: a rank sum of at most 1 or at least 9 in 4 of 16 ways."""
    assert wilcoxon([-1.0, 2.0, 3.0, 4.0]) == 4 / 16


def test_patient_differences_are_means_over_seeds():
    first, second = [[0.5, 0.7], [0.9, 0.3], [0.2, NAN]], [[0.5, 0.5], [0.5, 0.5], [0.1, 0.1]]
    np.testing.assert_allclose(patient_differences(first, second), [0.1, 0.1])


def test_crossed_test_is_the_paired_t_test_for_one_seed():
    first, second = np.random.default_rng(4).normal(0.5, 0.1, (2, 8))
    assert crossed_test(first - second) == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_crossed_test_is_significant_where_the_interval_excludes_zero(seed):
    generator = np.random.default_rng(seed)
    table = generator.normal(0.05, 0.1, (7, 1)) + generator.normal(0.02, 0.05, (7, 3))
    p = crossed_test(table)
    assert crossed_interval(table, 1 - p * 0.999).low * crossed_interval(table, 1 - p * 0.999).high < 0
    assert crossed_interval(table, 1 - p * 1.001).low * crossed_interval(table, 1 - p * 1.001).high > 0


def test_crossed_test_of_what_does_not_spread():
    assert crossed_test(np.zeros((4, 2))) == 1
    assert crossed_test(np.full((4, 2), 0.5)) == 0
    assert math.isnan(crossed_test([[0.1, 0.2]]))


def test_holm_by_hand():
    """0.01 of 4, 0.02 of 3, then 0.03 of 2; 0.04 would be less than the one before it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_a_test_that_could_not_be_made_was_declared_too():
    found = holm([0.02, NAN, 0.04])
    assert found[::2] == pytest.approx([0.06, 0.08])
    assert math.isnan(found[1])
    assert all(map(math.isnan, holm([NAN, NAN])))


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(0).uniform(0, 0.3, 11)
    np.testing.assert_allclose(holm(p_values), multitest.multipletests(p_values, method="holm")[1])
