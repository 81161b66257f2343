"""What labels of a few patients say of each candidate: by hand, with three classes, pixels to ignore, and volumes."""

import numpy as np
import pytest

from selection import decision
from selection.labelled import Labelled
from tests.selection.test_decision import candidates, evidence

TRUTH = {
    0: np.array([[0, 1, 1, 2]], np.uint8),
    2: np.array([[0, 0, 2, 2]], np.uint8),
    3: np.array([[0, 255, 255, 0]], np.uint8),
}
PLACES = {0: 0, 2: 0, 3: 1}  # two images of the first patient, one of the second


def labelled(axis=(1, 2), truth=TRUTH):
    return Labelled(("a", "b"), PLACES, truth, axis, 3)


def maps(*rows):
    """Class numbers of four images; nobody who chooses is in the second."""
    return [np.array([row], np.uint8) for row in rows]


RIGHT = maps([0, 1, 1, 2], [9, 9, 9, 9], [0, 0, 2, 2], [0, 0, 0, 0])
HALF = maps([0, 1, 0, 2], [9, 9, 9, 9], [0, 0, 2, 0], [0, 1, 2, 0])  # what is ignored counts nowhere
FALSE = maps([0, 1, 1, 2], [9, 9, 9, 9], [0, 0, 2, 2], [1, 0, 0, 0])


def test_the_mean_dice_over_classes_then_patients():
    # HALF: class 1 finds one of two pixels, 2/3; class 2 two of three, 4/5. The second patient has neither.
    # FALSE: all of the first patient, and a class that the second has not.
    expected = [1, (2 / 3 + 4 / 5) / 2, (1 + 0) / 2]
    assert labelled().scores([RIGHT, HALF, FALSE]) == pytest.approx(expected)
    assert labelled((2,)).scores([HALF, FALSE]) == pytest.approx([4 / 5, 1])


def test_volumes_are_counted_as_slices_are():
    def whole(rows):
        return [row[None] for row in rows]

    truth = dict(zip(TRUTH, whole(TRUTH.values()), strict=True))
    plain, volumes = labelled().scores([HALF]), labelled(truth=truth).scores([whole(HALF)])
    assert volumes == plain


def test_where_there_is_nothing_there_is_no_score():
    empty = {row: np.zeros_like(truth) for row, truth in TRUTH.items()}
    assert np.isnan(labelled(truth=empty).scores([maps(*[[0] * 4] * 4)])).all()


def choose(monkeypatch, dice, sizes=None):
    nothing = np.full((len(dice), 6, 3), np.nan)
    monkeypatch.setattr(decision, "VALIDATORS", {name: lambda seen: nothing for name in decision.VALIDATORS})
    seen = evidence([[900, 50, 50]] * len(dice) if sizes is None else sizes)
    return decision.decide_by_labels(seen, candidates(len(dice)), np.array(dice, float), ["Case 1", "b\n"])


def test_the_highest_dice_is_chosen_and_of_equal_ones_the_earliest(monkeypatch):
    choice = choose(monkeypatch, [0.5, 0.6, 0.75, 0.75, 0.7])
    assert choice.place == 2
    assert choice.labelled == ("Case 1", "b\n")
    assert choice.reason == (
        "Chosen with 2 labelled patients (Case 1, b\\n): epoch 5, as its Dice on them is 0.750, that of source 0.500."
    )
    assert choice.scores["labelled_dice"].tolist() == [0.5, 0.6, 0.75, 0.75, 0.7]
    assert choose(monkeypatch, [0.5, 0.5, 0.5]).place == 0
    assert choose(monkeypatch, [0.4, 0.5, 0.5]).place == 1


def test_what_has_collapsed_is_held_back_from_labels_too(monkeypatch):
    choice = choose(monkeypatch, [0.5, 0.5, 0.9, 0.6], [[900, 50, 50]] * 2 + [[950, 50, 0], [900, 50, 50]])
    assert choice.place == 3
    assert "1 of 4 candidates were held back, such as epoch 5 (class 2 is missing" in choice.reason
    lost = [[950, 50, 0]] * 3
    assert choose(monkeypatch, [0.1, 0.2, 0.9], [[900, 50, 50], *lost[:2]]).place == 1  # its start, not what it became


def test_labels_that_say_nothing_keep_the_source(monkeypatch):
    choice = choose(monkeypatch, [np.nan] * 3)
    assert choice.place == 0
    assert "neither their labels nor any prediction holds a class that counts" in choice.reason
