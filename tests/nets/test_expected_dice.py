"""What is expected of a mask without labels: by hand, and where little is known."""

import numpy as np
import pytest
import torch

from nets.bundle import KNOTS, QUANTITIES, Bundle, make_bundle
from nets.expected_dice import (
    EMPTY,
    LARGE,
    SMALL,
    UNKNOWN,
    ConfidenceSums,
    ExpectedDice,
    at_score,
    expected_dice,
    first_to_look_at,
    fit_curve,
    grey_distance,
    usual_residuals,
)

NAN = np.nan


def straight(first, last):
    """A curve through two points."""
    return np.linspace([first[0], first[1]], [last[0], last[1]], KNOTS).T


def told(**changes):
    """Of two foreground classes: one whose Dice is its score, one of which nothing is known."""
    values = {
        "temperatures": np.ones(3),
        "curve": np.array([straight((0.5, 0.5), (1, 1)), np.full((2, KNOTS), NAN)]),
        "residuals": np.array([[-0.1, 0.05], [NAN, NAN]]),
        "quantiles": np.zeros((1, 256)),
        "usual": np.ones(1),
        "sizes": {"voxels": np.array([[10.0, 100.0], [NAN, NAN]])},
    }
    return ExpectedDice(**(values | changes))


def estimate(scores, predicted, distance=(0.0,), told=told(), **more):  # noqa: B008  nothing changes it
    rows = (np.array([[0.99, *each]]) for each in (scores, predicted))
    return told.estimate(*rows, np.array(distance), **more)


# -- sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_scores_are_those_of_the_formula_at_the_temperatures(shape):
    torch.manual_seed(0)
    log_p = (3 * torch.randn(4, 3, *shape)).log_softmax(1)
    temperatures, patients = np.array([0.5, 2.0, NAN]), [0, 1, 0, 1]
    sums = ConfidenceSums(2, temperatures, "cpu")
    sums.add(patients[:3], log_p[:3])
    sums.add(patients[3:], log_p[3:])
    scores, predicted = sums.read()
    flat = log_p.double().flatten(2).numpy()
    for patient in range(2):
        pixels = np.concatenate([flat[row] for row in range(4) if patients[row] == patient], 1)
        label = pixels.argmax(0)
        cooled = np.exp(pixels / np.array([0.5, 2.0, 1.0])[label])
        p = cooled / cooled.sum(0)
        for k in range(3):
            assert predicted[patient, k] == (label == k).sum()
            wanted = 2 * p[k][label == k].sum() / (p[k].sum() + (label == k).sum())
            assert scores[patient, k] == pytest.approx(wanted, abs=1e-6)


def test_a_class_that_is_not_predicted_has_score_0():
    sums = ConfidenceSums(1, np.ones(2), "cpu")
    sums.add([0], torch.tensor([[[-0.1, -0.2], [-3.0, -2.0]]]))
    scores, predicted = sums.read()
    assert scores[0, 1] == predicted[0, 1] == 0
    assert predicted[0, 0] == 2


# -- the curve ----------------------------------------------------------------------------------------------------


def test_a_curve_rises_through_the_means_of_what_falls():
    curve = fit_curve(np.array([0.9, 0.2, 0.6, 0.4]), np.array([1.0, 0.1, 0.2, 0.6]))
    assert at_score(curve, np.array([0.2, 0.9])) == pytest.approx([0.1, 1.0])
    assert at_score(curve, curve[0]) == pytest.approx(np.interp(curve[0], [0.2, 0.4, 0.6, 0.9], [0.1, 0.4, 0.4, 1.0]))
    assert (np.diff(curve) >= 0).all()


def test_equal_scores_count_as_their_mean_by_their_number():
    curve = fit_curve(np.array([0.5, 0.5, 0.5, 0.8]), np.array([0.6, 0.6, 0.9, 0.3]))
    assert at_score(curve, np.array([0.5, 0.8])) == pytest.approx([0.6, 0.6])  # of 0.7 three times and 0.3 once


def test_below_the_lowest_score_a_curve_falls_straight_to_0_and_above_the_highest_it_rises_to_1():
    curve = straight((0.5, 0.4), (0.8, 0.9))
    assert at_score(curve, np.array([0.0, 0.25, 0.5, 0.8, 0.9, 1.0])) == pytest.approx([0, 0.2, 0.4, 0.9, 0.95, 1])
    assert at_score(straight((0.5, 0.4), (1.0, 0.9)), np.array([1.0])) == pytest.approx([0.9])


def test_without_a_score_there_is_no_curve():
    curve = fit_curve(np.zeros(0), np.zeros(0))
    assert np.isnan(curve).all()
    assert np.isnan(at_score(curve, np.array([0.5]))).all()


# -- residuals ----------------------------------------------------------------------------------------------------


def test_residuals_by_hand():
    """Two patients on one level, and one that lies off it: each is held against the curve of the others."""
    patients = np.repeat([0, 1, 2, 3], 5)
    dice = np.repeat([0.5, 0.5, 0.5, 0.9], 5)
    scores, distance = np.full(20, 0.7), np.repeat([0.0, 0.0, 0.0, 1.0], 5)
    mean_of_others = (0.5 + 0.5 + 0.9) / 3
    wanted = [0.5 - mean_of_others, (0.9 - 0.5) / 2]
    assert usual_residuals(scores, dice, distance, patients) == pytest.approx(wanted)


def test_the_ends_are_the_ranks_of_split_conformal_prediction():
    """Of 39 residuals the second of either end: (39 + 1) * 0.05."""
    rng = np.random.default_rng(0)
    patients, scores = np.arange(39), np.full(39, 0.5)
    dice = rng.permutation(np.linspace(0, 1, 39))
    off = dice - (dice.sum() - dice) / 38
    assert usual_residuals(scores, dice, np.zeros(39), patients) == pytest.approx(np.sort(off)[[1, -2]])


@pytest.mark.parametrize(("images", "patients"), [(18, 18), (40, 1), (0, 0)])
def test_too_few_to_tell_an_end(images, patients):
    rng = np.random.default_rng(0)
    found = usual_residuals(
        rng.random(images), rng.random(images), np.zeros(images), np.arange(images) % max(patients, 1)
    )
    assert np.isnan(found).all()


def test_nine_of_ten_new_patients_lie_within():
    """A made-up world in which Dice is score and noise that grows with the distance."""
    rng = np.random.default_rng(0)

    def world(number):
        scores, distance = rng.uniform(0.3, 0.9, number), rng.uniform(0, 4, number)
        return scores, scores + 0.02 * (1 + distance) * rng.standard_normal(number), distance

    scores, dice, distance = world(600)
    patients = np.arange(600) // 4
    curve, residuals = fit_curve(scores, dice), usual_residuals(scores, dice, distance, patients)
    new = told(curve=curve[None], residuals=residuals[None], sizes={})
    scores, dice, distance = world(4000)
    both = np.stack([scores, scores], 1)
    found = new.estimate(both, np.ones(both.shape), distance)
    within = (found.low[:, 0] <= dice) & (dice <= found.high[:, 0])
    assert within.mean() == pytest.approx(0.9, abs=0.03)
    assert within[distance > 3].mean() == pytest.approx(0.9, abs=0.05)
    assert np.abs(found.expected[:, 0] - scores).mean() < 0.02


# -- estimates ----------------------------------------------------------------------------------------------------


def test_the_interval_grows_with_the_distance():
    near, far = (estimate([0.8, 0.5], [50, 5], (distance,)) for distance in (0.0, 1.0))
    assert [near.low[0, 0], near.expected[0, 0], near.high[0, 0]] == pytest.approx([0.7, 0.8, 0.85])
    assert [far.low[0, 0], far.expected[0, 0], far.high[0, 0]] == pytest.approx([0.6, 0.8, 0.9])
    assert far.distance == [1.0]


def test_it_ends_at_0_and_1_and_holds_what_is_expected():
    wide = told(residuals=np.array([[-2.0, 2.0], [NAN, NAN]]))
    odd = told(residuals=np.array([[0.01, 0.02], [NAN, NAN]]))
    assert [estimate([0.8, 0], [50, 0], told=wide).low[0, 0], estimate([0.8, 0], [50, 0], told=wide).high[0, 0]] == [
        0,
        1,
    ]
    assert estimate([0.8, 0], [50, 0], told=odd).low[0, 0] == pytest.approx(0.8)


def test_where_nothing_is_known_the_interval_is_everything():
    found = estimate([0.8, 0.5], [50, 5])
    assert np.isnan(found.expected[0, 1])
    assert (found.low[0, 1], found.high[0, 1]) == (0, 1)
    assert found.notes == [["", UNKNOWN]]


def test_a_class_that_was_not_found():
    found = estimate([0, 0], [0, 0])
    assert found.expected.tolist() == found.low.tolist() == found.high.tolist() == [[0, 0]]
    assert found.notes == [[EMPTY, EMPTY]]


@pytest.mark.parametrize(("voxels", "note"), [(201, LARGE), (200, ""), (5, ""), (4, SMALL)])
def test_a_flood_is_not_believed_whatever_the_confidence(voxels, note):
    found = estimate([1.0, 0.5], [voxels, 5])
    assert found.notes[0][0] == note
    assert found.low[0, 0] == (0 if note else pytest.approx(0.9))
    assert found.expected[0, 0] == 1


def test_sizes_are_compared_in_mm3_where_both_are_known():
    both = told(sizes={"voxels": np.array([[10.0, 100.0]] * 2), "mm3": np.array([[1000.0, 2000.0]] * 2)})
    volumes = np.array([[0.0, 4001.0, 1500.0]])
    assert estimate([0.8, 0.8], [50, 50], told=both, mm3=volumes).notes == [[LARGE, UNKNOWN]]
    assert estimate([0.8, 0.8], [500, 50], told=both).notes == [[LARGE, UNKNOWN]]
    assert estimate([0.8, 0.8], [500, 50], mm3=volumes).notes == [[LARGE, UNKNOWN]]


def test_distance_is_the_mean_over_channels_by_the_usual_one():
    quantiles = np.stack([np.full((1, 256), 0.3), np.full((1, 256), 0.5)], 1)
    assert grey_distance(quantiles, np.zeros((2, 256)), np.array([0.1, 0.5])) == pytest.approx([2.0])
    assert grey_distance(quantiles, np.zeros((2, 256)), np.array([0.1, NAN])) == pytest.approx([3.0])
    assert grey_distance(quantiles, np.zeros((2, 256)), np.full(2, NAN)) == [0.0]


# -- what a bundle tells ------------------------------------------------------------------------------------------


def bundle(without=()):
    sizes = {"C": 1, "K": 3, "F": 2, "*": 5}
    values = {}
    for name, about in QUANTITIES.items():
        values[name] = np.sort(np.random.default_rng(0).random([sizes.get(n, n) for n in about.dims]), axis=-1)
    kept = {name: each for name, each in values.items() if name not in without}
    return make_bundle(kept, {"training": "x", "validation": "y"}, dict.fromkeys(without, "nobody asked"), 0)


def test_it_is_read_from_a_bundle():
    found = expected_dice(bundle())
    assert np.array_equal(found.curve, bundle().dice_curve)
    assert np.array_equal(found.sizes["mm3"], bundle().volume_mm3[:, [3, 6]])
    assert set(expected_dice(bundle(without=("volume_mm3",))).sizes) == {"voxels"}


def test_why_nothing_is_told():
    assert "no source bundle" in expected_dice(None)
    assert expected_dice(bundle(without=("temperatures",))) == "its source bundle has no temperatures: nobody asked"
    older = Bundle(manifest={}, temperatures=np.ones(3))
    assert "no dice_curve: it was trained by an older version" in expected_dice(older)


# -- what to look at first ----------------------------------------------------------------------------------------


def test_the_worst_come_first():
    expected = np.array([[0.9, 0.7], [0.3, NAN], [0.8, 0.8], [NAN, NAN]])
    low = np.array([[0.8, 0.6], [0.1, 0], [0.2, 0.4], [0, 0]])
    line = first_to_look_at(["a", "b", "c", "d"], expected, low)
    assert line.endswith("labels: b 0.30 (from 0.10), c 0.80 (from 0.30), a 0.80 (from 0.70).")


def test_of_many_five_are_named():
    line = first_to_look_at([*"ABCDEFGH"], np.linspace(0.9, 0.1, 8)[:, None], np.zeros((8, 1)))
    assert [letter for letter in line.split("labels:")[1] if letter.isupper()] == [*"HGFED"]
    assert line.endswith(", and 3 more.")


def test_nothing_to_name():
    assert "Of no patient" in first_to_look_at(["a"], np.full((1, 1), NAN), np.zeros((1, 1)))
