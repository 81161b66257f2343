"""Rankings of runs: by hand, against SciPy, and how stable they are where that is known."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from analysis.statistics.ranking import RANKINGS, kendall_tau, rank_runs, signed_rank_z
from analysis.statistics.tests import holm
from processes.errors import UserError

NAN = math.nan
# The first is best on average, thanks to one patient; the second is best on most.
THREE = np.array([[9.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [1.0, 1.5, 1.5, 0.0]])


def runs(n_run=4, n_patient=20, n_seed=3, apart=0.05, seed=0):
    generator = np.random.default_rng(seed)
    base = generator.normal(0.6, 0.1, (1, n_patient, 1)) + apart * np.arange(n_run)[:, None, None]
    return base + generator.normal(0, 0.02, (n_run, n_patient, n_seed))


def test_three_rankings_by_hand():
    assert RANKINGS["mean then rank"](THREE).tolist() == [1, 2, 3]  # means 3, 2, 1
    assert RANKINGS["rank then mean"](THREE).tolist() == [2, 1, 3]  # mean ranks 2.125, 1.25, 2.625
    assert RANKINGS["test then rank"](THREE).tolist() == [1, 1, 1]  # four patients tell nothing apart


def test_runs_with_one_score_share_a_place():
    scores = np.array([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.9, 0.9]])
    for rank in RANKINGS.values():
        assert rank(scores).tolist() in ([2, 2, 1], [1, 1, 1])


def test_rank_by_tests_counts_wins_after_holm():
    scores = runs(n_run=3, apart=0.03).mean(2)
    pairs = [*itertools.permutations(range(3), 2)]
    p = [
        scipy.stats.wilcoxon(scores[one], scores[other], alternative="greater", method="asymptotic").pvalue
        for one, other in pairs
    ]
    won = [
        sum(raised <= 0.05 for (one, _), raised in zip(pairs, holm(p), strict=True) if one == run) for run in range(3)
    ]
    assert RANKINGS["test then rank"](scores).tolist() == scipy.stats.rankdata(-np.array(won), "min").tolist()
    assert len(set(won)) > 1


@pytest.mark.parametrize("decimals", [1, 6])
def test_signed_rank_z_is_that_of_scipy(decimals):
    """Rounded: with ties and zeros."""
    differences = np.random.default_rng(0).normal(0.3, 1, (5, 30)).round(decimals)
    expected = [scipy.stats.wilcoxon(row, method="asymptotic", alternative="greater").pvalue for row in differences]
    np.testing.assert_allclose(scipy.stats.norm.sf(signed_rank_z(differences)), expected)
    assert signed_rank_z(np.zeros((1, 4))) == [0]


def test_kendall_tau_is_that_of_scipy():
    generator = np.random.default_rng(0)
    ranks, others = generator.integers(1, 5, 6), generator.integers(1, 5, (20, 6))
    np.testing.assert_allclose(
        kendall_tau(ranks, others), [scipy.stats.kendalltau(ranks, other).statistic for other in others]
    )
    assert np.isnan(kendall_tau(ranks, np.ones((1, 6)))).all()


def test_runs_far_apart_have_one_ranking():
    for ranking in rank_runs(runs(apart=0.5), draws=50).values():
        assert ranking.ranks.tolist() == ranking.low.tolist() == ranking.high.tolist() == [4, 3, 2, 1]
        np.testing.assert_array_equal(ranking.frequency, np.eye(4)[::-1])
        assert ranking.tau == 1
        assert ranking.podium(2).tolist() == [0, 0, 1, 1]


def test_two_patients_who_disagree():
    """A is best on one, B on the other, and by more: A wins in a quarter of the draws, where the one is drawn twice."""
    a, b = [[1.0], [0.0]], [[0.0], [2.0]]
    ranking = rank_runs([a, b], draws=4000)["mean then rank"]
    assert ranking.ranks.tolist() == [2, 1]
    np.testing.assert_allclose(ranking.frequency, [[0.25, 0.75], [0.75, 0.25]], atol=0.03)
    assert ranking.tau == pytest.approx(0.5, abs=0.05)


def test_seeds_are_drawn_too():
    """All patients agree, and the two seeds do not: the one that favours A is drawn twice in a quarter of the draws."""
    a, b = [[1.0, 0.0]] * 5, [[0.0, 2.0]] * 5
    ranking = rank_runs([a, b], draws=4000)["rank then mean"]
    np.testing.assert_allclose(ranking.frequency[0], [0.25, 0.75], atol=0.03)


def test_a_draw_is_that_of_all_runs():
    """The same run twice is never told apart."""
    table = runs()[0]
    for ranking in rank_runs([table, table], draws=50).values():
        assert ranking.ranks.tolist() == [1, 1]
        np.testing.assert_array_equal(ranking.frequency, [[1, 0], [1, 0]])
        assert math.isnan(ranking.tau)


def test_missing_scores_are_left_out_or_the_worst():
    first, second = np.array([[0.9], [0.9], [NAN]]), np.array([[0.5], [0.5], [0.5]])
    left_out = rank_runs([first, second], draws=10)["mean then rank"]
    assert (left_out.ranks.tolist(), left_out.patients, left_out.left_out) == ([1, 2], 2, 1)
    worst = rank_runs([first, second], missing=-2, draws=10)["mean then rank"]
    assert (worst.ranks.tolist(), worst.patients, worst.left_out) == ([2, 1], 3, 0)
    with pytest.raises(UserError, match="nothing to rank"):
        rank_runs([[[NAN]], [[0.5]]])
    with pytest.raises(UserError, match="nothing to rank"):
        rank_runs([])


def test_the_same_seed_makes_the_same_ranking():
    one, other = (rank_runs(runs(apart=0.005), seed=3, draws=40) for _ in range(2))
    for name, ranking in one.items():
        np.testing.assert_array_equal(ranking.frequency, other[name].frequency)
