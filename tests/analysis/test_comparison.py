"""One run against another, and a family of rows against their reference."""

import math

import numpy as np
import pytest

from analysis.statistics.comparison import compare, compare_family
from analysis.statistics.intervals import bootstrap_interval, paired_interval
from analysis.statistics.tests import crossed_test, holm, sign_flip
from processes.errors import UserError


def rows(n_patient=8, n_seed=3):
    generator = np.random.default_rng(0)
    base = generator.normal(0.6, 0.1, (n_patient, 1))
    gains = {"noadap": 0.0, "sfda": 0.06, "tent": 0.01, "shot": -0.03}
    return {name: base + gain + generator.normal(0, 0.03, (n_patient, n_seed)) for name, gain in gains.items()}


def test_a_pair_is_what_its_parts_say():
    first, second = rows()["sfda"], rows()["noadap"]
    found, apart = compare(first, second, seed=4), first - second
    assert found.difference == paired_interval(first, second)
    assert found.bootstrap == bootstrap_interval(apart, np.random.default_rng(4))
    assert found.sign_flip == sign_flip(apart.mean(1), np.random.default_rng(4))
    assert found.crossed == crossed_test(apart)
    assert (found.better, found.worse) == ((apart.mean(1) > 0).sum(), (apart.mean(1) < 0).sum())
    assert found.p == found.p_holm == max(found.sign_flip, found.crossed) >= found.smallest_p == 2 / 2**8
    assert found.probability_false == pytest.approx(found.crossed / 2)


def test_the_other_way_round_is_the_same_with_the_other_sign():
    one, other = compare(rows()["sfda"], rows()["noadap"]), compare(rows()["noadap"], rows()["sfda"])
    assert (one.p, one.wilcoxon, one.probability_false) == pytest.approx(
        (other.p, other.wilcoxon, other.probability_false)
    )
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert (one.better, one.worse) == (other.worse, other.better)
    assert one.probability_better.mean == pytest.approx(1 - other.probability_better.mean)


def test_a_seed_that_is_good_for_all_patients_is_no_proof():
    """All patients gain in the mean of seeds, and one seed loses: over patients it is certain, over seeds it is not."""
    gains = np.array([[0.3, 0.1, -0.2]]) + np.linspace(0, 0.02, 10)[:, None]
    found = compare(gains, np.zeros((10, 3)))
    assert found.sign_flip == found.smallest_p == 2 / 2**10
    assert found.p == found.crossed > 0.3
    assert found.difference.low < 0 < found.difference.high


def test_holm_is_over_the_declared_family():
    every = compare_family(rows(), "noadap")
    assert [*every] == ["sfda", "tent", "shot"]
    for test in ("p", "sign_flip", "wilcoxon"):
        raised = [getattr(each, f"{test}_holm") for each in every.values()]
        assert raised == holm([getattr(each, test) for each in every.values()])
    two = compare_family(rows(), "noadap", ["sfda", "shot"])
    assert [*two] == ["sfda", "shot"]
    assert two["sfda"].p == every["sfda"].p
    assert two["sfda"].p_holm == pytest.approx(2 * two["sfda"].p)
    assert two["sfda"].p_holm < every["sfda"].p_holm


def test_a_name_that_is_no_row_is_refused():
    with pytest.raises(UserError, match="noadapt is none of the rows.*noadap"):
        compare_family(rows(), "noadapt")
    with pytest.raises(UserError, match="tend"):
        compare_family(rows(), "noadap", ["tend"])


def test_patients_who_are_missing_are_counted_and_one_alone_proves_nothing():
    first, second = rows()["sfda"], rows()["noadap"]
    first[0, 1] = math.nan
    found = compare(first, second)
    assert (found.difference.left_out, found.bootstrap.left_out, found.smallest_p) == (1, 1, 2 / 2**7)
    alone = compare(first[1:2], second[1:2])
    assert math.isnan(alone.p)
    assert math.isnan(alone.probability_false)
    assert alone.smallest_p == 1
    nobody = compare(np.full((3, 2), math.nan), second[:3, :2])
    assert math.isnan(nobody.difference.mean)
    assert math.isnan(nobody.p)
