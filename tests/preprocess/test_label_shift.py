"""Shares of the classes in a target, by hand and on samples whose shares are known."""

import numpy as np
import pytest
from scipy.optimize import minimize

from preprocess.priors.label_shift import (
    bootstrap,
    confusion_of_patients,
    likelihood_of_patients,
    most_likely_shares,
    shares_by_confusion,
)

SOURCE = np.array([0.7, 0.2, 0.1])
CENTRES = np.array([-1.0, 0.5, 2.0])  # of a grey level, with deviation 1, for each class


def sample(shares, count, seed=0):
    """Classes (N,) and the probabilities (N, K) of a network that knows the source perfectly."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, count, p=shares)
    levels = CENTRES[truth] + rng.normal(size=count)
    joint = SOURCE * np.exp(-((levels[:, None] - CENTRES) ** 2) / 2)
    return truth, joint / joint.sum(1, keepdims=True)


def confusion_of(truth, predicted):
    found = np.zeros((3, 3))
    np.add.at(found, (truth, predicted), 1 / len(truth))
    return found


@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.1), (0.3, 0.3, 0.4), (0.9, 0.02, 0.08), (0.5, 0.5, 0.0)])
def test_shares_of_a_shifted_sample_are_found(shares):
    _, p = sample(shares, 40_000)
    naive = np.bincount(p.argmax(1), minlength=3) / len(p)
    truth, validation = sample(SOURCE, 40_000, seed=1)
    by_confusion = shares_by_confusion(naive, confusion_of(truth, validation.argmax(1)))
    by_likelihood = most_likely_shares(p, SOURCE)
    assert by_likelihood == pytest.approx(shares, abs=0.015)
    assert by_confusion == pytest.approx(shares, abs=0.03)
    assert np.abs(naive - shares).max() > 3 * np.abs(by_likelihood - shares).max()
    for found in (by_likelihood, by_confusion):
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)


def test_one_round_by_hand():
    """Two pixels, q = (1/2, 1/2): p' = p in the first round, π = (0.6, 0.4), and so on to the border."""
    p = np.array([[0.8, 0.2], [0.4, 0.6]])
    shares = np.array([0.5, 0.5])
    for _ in range(2000):
        adapted = p * shares
        shares = (adapted / adapted.sum(1, keepdims=True)).mean(0)
    assert most_likely_shares(p, np.array([0.5, 0.5])) == pytest.approx(shares, abs=1e-5)
    # d/dπ of log(.2 + .6 π) + log(.6 - .2 π) is 0 at π = 4/3 > 1: all pixels are of the first class
    assert shares == pytest.approx([1, 0], abs=1e-3)


def test_it_is_the_maximum_that_others_find():
    """MLLS maximises the same likelihood directly."""
    _, p = sample((0.4, 0.35, 0.25), 500)

    def negative(free):
        return -np.log((p / SOURCE) @ np.append(free, 1 - free.sum())).mean()

    limits = {"type": "ineq", "fun": lambda free: 1 - free.sum()}
    found = minimize(negative, [0.3, 0.3], bounds=[(1e-9, 1)] * 2, constraints=[limits], method="SLSQP", tol=1e-12).x
    assert most_likely_shares(p, SOURCE)[:2] == pytest.approx(found, abs=1e-4)


def test_a_pixel_that_counts_twice_is_there_twice():
    _, p = sample((0.4, 0.35, 0.25), 50)
    times = np.random.default_rng(0).integers(0, 3, 50)
    assert most_likely_shares(p, SOURCE, times) == pytest.approx(most_likely_shares(p.repeat(times, 0), SOURCE))


def test_a_class_that_the_source_did_not_have_has_no_share():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    assert most_likely_shares(p, np.array([0.5, 0.5, 0.0]))[2] == 0
    confusion = np.array([[0.4, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.0]])
    assert shares_by_confusion(np.array([50.0, 50.0, 0.0]), confusion) == pytest.approx([0.5, 0.5, 0])


def test_confusion_by_hand():
    """Of either class 4 pixels in 5 are right: .8 π + .2 (1 - π) = .32 for π = .2."""
    confusion = np.array([[0.4, 0.1], [0.1, 0.4]])
    assert shares_by_confusion(np.array([32.0, 68.0]), confusion) == pytest.approx([0.2, 0.8])
    uneven = np.array([[0.72, 0.18], [0.02, 0.08]])  # the same mistakes, where the classes are 9 to 1
    assert shares_by_confusion(np.array([32.0, 68.0]), uneven) == pytest.approx([0.2, 0.8])


def test_what_no_shares_explain_lies_on_the_border():
    """Less than 1 pixel in 5 cannot be predicted as the first class."""
    assert shares_by_confusion(np.array([10.0, 90.0]), np.array([[0.4, 0.1], [0.1, 0.4]])) == pytest.approx([0, 1])


def test_the_spread_is_that_of_the_patients():
    """One patient without the class and one full of it: drawn anew the share is 0, 1/2 or 1, for 1/4, 1/2, 1/4."""
    sure = np.diag([0.5, 0.5])
    found = confusion_of_patients(np.array([[100.0, 0.0], [0.0, 100.0]]), sure, draws=4000)
    assert found.shares == pytest.approx([0.5, 0.5])
    assert found.deviation == pytest.approx([8**-0.5] * 2, abs=0.02)
    assert [*found.low, *found.high] == pytest.approx([0, 0, 1, 1], abs=1e-9)
    same = confusion_of_patients(np.array([[70.0, 30.0]] * 5), sure)
    assert same.deviation == pytest.approx([0, 0], abs=1e-12)


def test_patients_differ_more_than_pixels():
    """Ten patients whose shares differ by 0.1: their mean is known to 0.1 / √10, not to that of 10,000 pixels."""
    rng = np.random.default_rng(0)
    drawn = [sample((0.6 - extra, 0.3 + extra, 0.1), 1000, seed) for seed, extra in enumerate(rng.normal(0, 0.1, 10))]
    p, patients = np.concatenate([each for _, each in drawn]), np.repeat(np.arange(10), 1000)
    found = likelihood_of_patients(p, patients, SOURCE, draws=100)
    assert found.shares == pytest.approx(most_likely_shares(p, SOURCE), abs=1e-5)
    assert 0.015 < found.deviation[1] < 0.06
    assert (found.low < found.shares).all()
    assert (found.shares < found.high).all()


def test_one_patient_tells_nothing_of_the_spread():
    found = bootstrap(lambda times: np.array([0.9, 0.1]), 1)
    assert found.shares.tolist() == [0.9, 0.1]
    assert np.isnan([found.deviation, found.low, found.high]).all()


def test_the_same_draws_every_time():
    predicted = np.array([[90.0, 10.0], [80.0, 20.0], [60.0, 40.0]])
    first, second = (confusion_of_patients(predicted, np.diag([0.5, 0.5]), seed=3) for _ in range(2))
    assert first.deviation.tolist() == second.deviation.tolist()
