"""Intervals over patients and seeds: by hand, against two libraries, and where there is none."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from analysis.statistics.intervals import (
    bootstrap_interval,
    complete,
    crossed_interval,
    draw_shares,
    mean_squares,
    means_of_draws,
    paired_interval,
    percentile_interval,
)
from processes.errors import UserError

NAN = math.nan
# Means of patients 1.5, 4, 6.5; of seeds 3, 5; of all 4. What is left is ±0.5, 0, ±0.5.
SMALL = [[1.0, 2.0], [3.0, 5.0], [5.0, 8.0]]


def rng():
    return np.random.default_rng(0)


def scores(n_patient, n_seed, seed=0):
    """Patients and seeds that differ, in shares of 1."""
    generator = np.random.default_rng(seed)
    patients, seeds = generator.normal(0.8, 0.1, (n_patient, 1)), generator.normal(0, 0.03, (1, n_seed))
    return patients + seeds + generator.normal(0, 0.02, (n_patient, n_seed))


def test_mean_squares_by_hand():
    assert mean_squares(np.array(SMALL)) == pytest.approx((2 * (2.5**2 + 2.5**2) / 2, 3 * (1 + 1) / 1, 4 * 0.5**2 / 2))


def test_crossed_interval_by_hand():
    found = crossed_interval(SMALL)
    assert found.mean == 4
    assert found.se == pytest.approx(math.sqrt((12.5 + 6 - 0.5) / 6))
    assert found.df == pytest.approx((12.5 + 18 - 0.5) ** 2 / (12.5**2 / 2 + 18**2 / 1 + 0.5**2 / 2))
    half = scipy.stats.t.ppf(0.975, found.df) * found.se
    assert (found.low, found.high) == (pytest.approx(4 - half), pytest.approx(4 + half))
    assert (found.patients, found.seeds, found.left_out) == (3, 2, 0)


def test_an_interval_ends_where_the_score_does():
    table = [[0.99, 0.97], [0.7, 0.72], [1, 1]]
    free, cut = crossed_interval(table), crossed_interval(table, bounds=(0, 1))
    assert free.high > 1
    assert cut == replace(free, high=1)
    assert crossed_interval([[3.0], [3.5]], bounds=(3, 9)).low == 3


def test_seeds_that_do_not_differ_count_as_one():
    """Identical columns: the interval is that of the patients."""
    column = np.array([0.3, 0.5, 0.9, 0.8])
    found, alone = crossed_interval(np.repeat(column[:, None], 3, axis=1)), crossed_interval(column)
    assert (found.se, found.df) == (pytest.approx(alone.se), pytest.approx(3))


def test_components_below_zero_are_none():
    """What is left by a checkerboard is larger than what the sum of patients, or of seeds, adds."""
    board = np.array([[1.0, -1.0], [-1.0, 1.0]] * 2)
    patients = board + np.array([[6.0], [2.0], [-2.0], [-6.0]])
    found = crossed_interval(patients)
    assert (found.se, found.df) == (pytest.approx(patients.mean(1).std(ddof=1) / 2), 3)
    seeds = board + np.array([[6.0, -6.0]])
    found = crossed_interval(seeds)
    assert (found.se, found.df) == (pytest.approx(seeds.mean(0).std(ddof=1) / math.sqrt(2)), 1)
    found = crossed_interval(board)  # the mean of each patient is 0
    assert (found.se, found.df) == (0, 3)


def test_one_seed_is_the_t_interval_of_scipy():
    first, second = scores(9, 2).T
    alone = scipy.stats.ttest_1samp(first, 0).confidence_interval(0.9)
    found = crossed_interval(first, 0.9)
    assert (found.low, found.high, found.df) == (pytest.approx(alone.low), pytest.approx(alone.high), 8)
    paired = scipy.stats.ttest_rel(first, second).confidence_interval()
    found = paired_interval(first[:, None], second[:, None])
    assert (found.low, found.high) == (pytest.approx(paired.low), pytest.approx(paired.high))


@pytest.mark.filterwarnings("ignore")  # of a mixed model of few numbers
def test_standard_error_is_that_of_a_mixed_model_of_statsmodels():
    """Restricted maximum likelihood and the analysis of variance agree in balanced tables with components above 0."""
    models = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    pandas = pytest.importorskip("pandas")
    table = 100 * scores(8, 4, seed=3)
    patients, seeds = np.indices(table.shape)
    data = pandas.DataFrame({"score": table.ravel(), "patient": patients.ravel(), "seed": seeds.ravel(), "all": 1})
    parts = {"patient": "0 + C(patient)", "seed": "0 + C(seed)"}
    model = models.MixedLM.from_formula("score ~ 1", data, groups="all", vc_formula=parts, re_formula="0")
    fit = model.fit(reml=True)
    found = crossed_interval(table)
    assert found.mean == pytest.approx(fit.fe_params["Intercept"])
    assert found.se == pytest.approx(fit.bse_fe["Intercept"], rel=0.01)


@pytest.mark.parametrize("table", [[[0.5, 0.7]], [0.5], [[NAN, 0.2], [0.4, 0.8]]])
def test_of_one_patient_there_is_a_mean_and_no_interval(table):
    for found in (crossed_interval(table), bootstrap_interval(table, rng())):
        assert 0.5 <= found.mean <= 0.6 + 1e-9
        assert not found.is_known
        assert all(map(math.isnan, (found.low, found.high, found.se, found.df)))
        assert found.patients == 1


@pytest.mark.parametrize("table", [np.full((3, 2), NAN), np.zeros((0, 2)), np.zeros((0, 0)), []])
def test_of_nothing_there_is_nothing(table):
    found = crossed_interval(table)
    assert math.isnan(found.mean)
    assert not found.is_known
    assert found.patients == 0


def test_constant_scores_have_an_interval_without_length():
    for found in (crossed_interval(np.full((5, 3), 0.7)), bootstrap_interval(np.full((5, 3), 0.7), rng())):
        assert (found.mean, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))
        assert found.se == pytest.approx(0, abs=1e-12)


def test_patients_with_a_gap_are_left_out_and_counted():
    table = np.array([[0.1, 0.3, NAN], [0.5, NAN, NAN], [0.7, 0.9, NAN], [NAN, NAN, NAN], [math.inf, 0.2, NAN]])
    found = crossed_interval(table)
    assert (found.patients, found.seeds, found.left_out) == (2, 2, 2)
    assert found.mean == pytest.approx(0.5)
    assert found == crossed_interval(table).__class__(
        **{**vars(crossed_interval([[0.1, 0.3], [0.7, 0.9]])), "left_out": 2}
    )


def test_a_pair_counts_who_is_in_both_tables():
    first = np.array([[0.9, 0.8], [0.5, 0.6], [NAN, NAN], [0.7, 0.4]])
    second = np.array([[0.8, 0.8], [0.4, 0.2], [0.5, 0.5], [NAN, 0.1]])
    (one, other), kept, left_out = complete(first, second)
    assert (kept.tolist(), left_out) == ([True, True, False, False], 2)
    assert paired_interval(first, second).left_out == 2
    assert paired_interval(first, second).mean == pytest.approx((one - other).mean()) == pytest.approx(0.15)


def test_a_run_that_is_missing_takes_its_seed_from_both_tables():
    first, second = scores(4, 3), scores(4, 3, seed=1)
    second[:, 1] = NAN
    found = paired_interval(first, second)
    assert (found.patients, found.seeds, found.left_out) == (4, 2, 0)
    assert found.mean == pytest.approx((first - second)[:, [0, 2]].mean())


def test_tables_of_other_shapes_are_refused():
    with pytest.raises(UserError, match="shape"):
        complete(np.zeros((3, 2)), np.zeros((3, 3)))
    with pytest.raises(UserError, match="axes patients and seeds"):
        crossed_interval(np.zeros((2, 2, 2)))


# ---------------------------------------------------------------------------------------------------- bootstraps


def test_shares_of_a_draw():
    shares = draw_shares(5, rng(), draws=400)
    assert shares.shape == (400, 5)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(5 * shares, np.round(5 * shares), atol=1e-9)
    np.testing.assert_allclose(shares.mean(0), 0.2, atol=0.03)


def drawn_means(table, draws=10_000):
    generator = rng()
    patients, seeds = (draw_shares(n, generator, draws) for n in table.shape)
    return means_of_draws(table, patients, seeds)


def test_drawn_means_spread_as_the_pigeonhole_bootstrap_does():
    """Owen 2007, equation 3: the variance over draws, exactly, of patients and seeds drawn independently."""
    table = scores(6, 3)
    apart = table - table.mean()
    patients, seeds, cells = (apart.mean(1) ** 2).mean(), (apart.mean(0) ** 2).mean(), (apart**2).mean()
    expected = patients / 6 * (1 - 1 / 3) + seeds / 3 * (1 - 1 / 6) + cells / 18
    means = drawn_means(table, draws=100_000)
    assert means.var() == pytest.approx(expected, rel=0.02)
    assert means.mean() == pytest.approx(table.mean(), abs=1e-3)


def test_a_table_of_two_patients_has_three_means():
    """(0, 1) drawn twice: 0, 1/2, 1 with the probabilities 1/4, 1/2, 1/4."""
    means = drawn_means(np.array([[0.0], [1.0]]), draws=40_000)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(counts / 40_000, [0.25, 0.5, 0.25], atol=0.01)


def test_bootstrap_interval_is_as_long_as_the_crossed_one_and_leans_as_the_draws_do():
    table = scores(12, 3) ** 8  # a tail to the right
    exact, found = crossed_interval(table), bootstrap_interval(table, rng())
    assert found.high - found.low == pytest.approx(exact.high - exact.low)
    assert (found.mean, found.se, found.df) == (exact.mean, exact.se, exact.df)
    low, high = np.quantile(drawn_means(table), [0.025, 0.975]) - table.mean()
    assert (found.high - found.mean) / (found.mean - found.low) == pytest.approx(high / -low)
    assert found == bootstrap_interval(table, rng())


def test_percentile_interval_of_two_values():
    # The mean of two drawn from {0, 1} is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert percentile_interval([0.0, 1.0, NAN], rng()) == (0, 1)
    assert percentile_interval([0.0, 1.0], rng(), level=0.4) == (0.5, 0.5)


def test_percentile_interval_is_that_of_scipy():
    values = scores(30, 1)[:, 0]
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1, n_resamples=20_000)
    low, high = theirs.confidence_interval
    assert percentile_interval(values, rng()) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))


def test_percentile_interval_of_many_is_the_normal_one():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = percentile_interval(values, rng())
    half = 1.96 * values.std() / 20
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.02), pytest.approx(values.mean() + half, abs=0.02))
    assert (low, high) == percentile_interval(values, rng()) != percentile_interval(values, np.random.default_rng(3))


def test_percentile_interval_needs_two_values():
    assert all(map(math.isnan, percentile_interval([0.3, NAN], rng())))
