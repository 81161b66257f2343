"""Schedules of loss weights: the published numbers, and that a resume needs no state."""

import pytest

from methods.objective import LossSum
from methods.schedules import SCHEDULES, read_params
from methods.terms import Term, build_loss, parse_losses
from processes.errors import UserError

TWO = "[('GeneralizedDice', {}, 1), ('SelfEntropy', {}, 0.01)]"


def weights(name, first, epoch, **params):
    return SCHEDULES.build(name, first, **params)(epoch)


@pytest.mark.parametrize("epoch", [0, 1, 50, 90, 99])
def test_rebalance_is_as_published(epoch):
    expected = [max(0.1, 1 - 0.01 * epoch), 0.01 * (1 + epoch)]
    for name in ("StealWeight", "rebalance"):
        assert weights(name, [1, 0.01], epoch, to_steal=0.01) == pytest.approx(expected)


def test_rebalance_never_raises_a_first_weight_below_its_floor():
    assert weights("StealWeight", [0.05, 1], 7) == pytest.approx([0.05, 1.07])


def test_increase_adds_its_summands():
    assert weights("AddWeightLoss", [1, 0.01], 10, to_add=[0, 0.01]) == pytest.approx([1, 0.11])


def test_constant_stays():
    assert weights("Constant", [1, 2, 3], 99) == [1, 2, 3]


def test_the_sum_of_losses_follows_its_schedule_and_says_its_weights():
    specs = parse_losses(TWO)
    terms = [Term(build_loss(spec), spec.weight) for spec in specs]
    total = LossSum(terms, "StealWeight", to_steal=0.02)
    total.begin_epoch(3)
    assert total.moving() == pytest.approx({"weight_GeneralizedDice": 0.94, "weight_SelfEntropy": 0.07})
    assert LossSum(terms).moving() == {}


@pytest.mark.parametrize(
    ("name", "first", "params", "message"),
    [
        ("StealWeight", [1, 1, 1], {}, "between two losses; --target_losses has 3"),
        ("AddWeightLoss", [1, 1], {"to_add": [1]}, "to_add has 1, --target_losses 2"),
        ("AddWeightLoss", [1, 1], {}, "to_add"),
        ("Steal", [1, 1], {}, "Did you mean 'StealWeight'"),
        ("StealWeight", [1, 1], {"steal": 1}, "Did you mean 'to_steal'"),
        ("StealWeight", [1, 1], {"to_steal": None, "floor": "a"}, "'to_steal' takes a number, not None; 'floor' takes"),
        ("AddWeightLoss", [1, 1], {"to_add": 0.01}, "'to_add' takes a list of numbers, not 0.01"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(name, first, params, message):
    with pytest.raises(UserError, match=message):
        weights(name, first, 0, **params)


def test_params_are_a_dict():
    assert read_params("{'to_steal': 0.01}") == {"to_steal": 0.01}
    for text in ("[1]", "{1: 2}"):
        with pytest.raises(UserError, match="expects a dict"):
            read_params(text)
