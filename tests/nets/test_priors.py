"""Priors that leave room, and priors that are estimated anew, by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from losses import LOSSES
from methods.objective import LossSum
from methods.terms import Term
from nets.priors import BendingPrior, nearest_ratios, ratio_limits
from processes.errors import UserError


def bounds_of(*limits):
    return torch.tensor([limits], dtype=torch.float64)


def logits_of(shares, pixels=100):
    """Logits (1, K, 10, n) float64 whose softmax is these shares in every pixel, with a gradient."""
    p = torch.tensor(shares, dtype=torch.float64).log().view(1, -1, 1, 1)
    return p.expand(1, len(shares), 10, pixels // 10).clone().requires_grad_()


def prior_term(shares, bounds, **params):
    """The KL of EntKLProp and its gradient by the logits."""
    logits = logits_of(shares)
    value = LOSSES.build("EntKLProp", **params)(logits, None, bounds)["prior"]
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient


# ------------------------------------------------------------------------------------------------ room


@pytest.mark.parametrize(
    ("foreground", "nearest"), [(0.05, 0.1), (0.1, 0.1), (0.15, 0.15), (0.2, 0.2), (0.3, 0.2), (0.9, 0.2)]
)
def test_of_two_classes_the_nearest_end_counts(foreground, nearest):
    """10 to 20 of 100 pixels."""
    f = foreground
    expected = f * math.log(f / nearest) + (1 - f) * math.log((1 - f) / (1 - nearest))
    value, gradient = prior_term((1 - f, f), bounds_of([80, 90], [10, 20]))
    assert value == pytest.approx(expected, abs=1e-9)
    slope = math.log(f / nearest) - math.log((1 - f) / (1 - nearest))  # by the share of the foreground
    by_logit = slope * f * (1 - f) / 100  # of each pixel
    assert gradient[0, 1].numpy() == pytest.approx(by_logit, abs=1e-11)
    if nearest == foreground != 0.1 and foreground != 0.2:
        assert value == 0
        assert not gradient.any()


def test_three_classes_by_hand():
    """Class 1 is cut to 0.2, and the others share what it gives up: (0.5, 0.2) * 8 / 7."""
    limits = ratio_limits(bounds_of([60, 60], [0, 20], [10, 30]), 100)
    assert limits[0].tolist() == [[0, 1], [0, 0.2], [0.1, 0.3]]
    found = nearest_ratios(torch.tensor([[0.5, 0.3, 0.2]]), limits)
    assert found[0].tolist() == pytest.approx([4 / 7, 0.2, 1.6 / 7])
    value, _ = prior_term((0.5, 0.3, 0.2), bounds_of([60, 60], [0, 20], [10, 30]))
    assert value == pytest.approx(0.7 * math.log(7 / 8) + 0.3 * math.log(1.5), abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_class", [2, 3, 5])
def test_no_allowed_prior_is_nearer(seed, n_class):
    """Both divergences, against a search that knows nothing of the formula."""
    rng = np.random.default_rng(seed)
    predicted = rng.dirichlet(np.ones(n_class))
    middle = rng.dirichlet(np.ones(n_class))
    sizes = np.stack([middle * 60, middle * 130], 1)
    limits = ratio_limits(torch.from_numpy(sizes)[None], 100)
    found = nearest_ratios(torch.from_numpy(predicted)[None], limits)[0].numpy()
    assert found.sum() == pytest.approx(1)
    low, high = limits[0].T.numpy()
    assert (found >= low - 1e-9).all()
    assert (found <= high + 1e-9).all()
    for divergence in (
        lambda prior: (predicted * np.log(predicted / prior)).sum(),
        lambda prior: (prior * np.log(prior / predicted)).sum(),
    ):
        ends = list(zip(np.maximum(low, 1e-9), high, strict=True))
        whole = {"type": "eq", "fun": lambda prior: prior.sum() - 1}
        best = minimize(divergence, middle, bounds=ends, constraints=[whole], method="SLSQP", tol=1e-12)
        assert divergence(found) <= best.fun + 1e-6


def test_the_loss_has_no_step_at_the_border():
    """From 0.199 to 0.201 of the image it grows by less than the square of the distance, of either direction."""
    bounds = bounds_of([70, 90], [10, 20])
    for name in ("EntKLProp", "KLPropInv"):
        values = []
        for f in (0.199, 0.2, 0.2001, 0.201):
            found = LOSSES.build(name)(logits_of((1 - f, f)), None, bounds)
            values.append((found["prior"] if isinstance(found, dict) else found).item())
        assert values[:2] == pytest.approx([0, 0], abs=1e-12)
        assert 0 < values[2] < 1e-7
        assert values[2] < values[3] < 1e-5


@pytest.mark.parametrize(
    ("bounds", "silent", "dear"),
    [
        ([[90, 99], [10, 11]], 0.105, 0.095),  # dir 'high', margin 0.1: so much larger, and no smaller
        ([[81, 90], [9, 10]], 0.095, 0.105),  # dir 'low'
        ([[81, 99], [9, 11]], 0.095, 0.115),  # both
        ([[0, 1000], [9, 11]], 0.105, 0.085),  # the background is what is left, whatever it is told
    ],
)
def test_a_margin_goes_to_its_side(bounds, silent, dear):
    assert prior_term((1 - silent, silent), bounds_of(*bounds))[0] == 0
    assert prior_term((1 - dear, dear), bounds_of(*bounds))[0] > 1e-5


def test_sizes_of_a_canvas_that_is_larger_are_shares_of_it():
    """Published sizes sum to 385² for 384²: as near to the pixels as the bounds allow."""
    limits = ratio_limits(bounds_of([180, 180], [20, 30]), 100)
    assert limits[0, 1].tolist() == pytest.approx([0.1, 0.15])


def test_of_a_batch_the_means_are_compared():
    """0.05 and 0.25 of two images are 0.15 of both, and each for itself is outside."""
    logits = torch.cat([logits_of((0.95, 0.05)), logits_of((0.75, 0.25))])
    bounds = bounds_of([80, 90], [10, 20]).expand(2, -1, -1)
    assert LOSSES.build("EntKLProp", over="batch")(logits, None, bounds)["prior"].item() == 0
    assert LOSSES.build("EntKLProp")(logits, None, bounds)["prior"].item() > 0.01


@pytest.mark.parametrize("name", ["EntKLProp", "KLPropInv"])
@pytest.mark.parametrize("params", [{}, {"fn": "norm_soft_size", "power": 2}])
def test_bounds_without_room_give_the_same_bits_as_before(name, params):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 7, generator=generator).requires_grad_()
    sizes = torch.rand(4, 3, 1, generator=generator, dtype=torch.float64) * 20
    sizes[0, 1] = 0  # a tag that is off
    found = []
    for silent in (True, False):
        value = LOSSES.build(name, silent=silent, **params)(logits, None, sizes.expand(-1, -1, 2))
        total = value["prior"] if isinstance(value, dict) else value
        found.append([total, *torch.autograd.grad(total, logits)])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_published_the_lower_ends_count():
    assert prior_term((0.85, 0.15), bounds_of([80, 90], [10, 20]))[0] == 0
    value, _ = prior_term((0.85, 0.15), bounds_of([80, 90], [10, 20]), silent=False)
    assert value == pytest.approx(0.85 * math.log(0.85 * 9 / 8) + 0.15 * math.log(0.15 * 9), abs=1e-8)


# ------------------------------------------------------------------------------------------------ estimated anew


def adapting(rate, **params):
    """A loss, and its term; nothing was seen yet."""
    loss = LOSSES.build("EntKLProp", reestimate=rate, **params)
    return loss, LossSum([Term(loss)])


def test_a_prior_follows_by_its_rate_and_is_anchored():
    """Told 0.1, predicted 0.2: 0.15 after an epoch at a rate of one half, and not further in the next."""
    loss, total = adapting(0.5)
    bounds = bounds_of([90, 90], [10, 10])

    def value(share):
        return loss(logits_of((1 - share, share)), None, bounds)["prior"].item()

    assert value(0.2) == pytest.approx(0.2 * math.log(2) + 0.8 * math.log(8 / 9), abs=1e-8)
    for epoch in (1, 2):
        total.begin_epoch(epoch)
        assert value(0.15) == pytest.approx(0, abs=1e-9)
        loss.bends.load_state(loss.bends.state() | {"seen": torch.tensor([[0.8, 0.2], [0.9, 0.1]])})
    total.begin_epoch(0)
    assert value(0.1) == pytest.approx(0, abs=1e-9)


def test_an_estimate_is_cut_off_at_four_times_its_start_and_a_tag_stays_off():
    """K = 3: class 1 is predicted nine times too large, class 2 only where its tag is on."""
    loss, total = adapting(1.0)
    bounds = torch.tensor([[[98, 98], [2, 2], [0, 0]], [[88, 88], [2, 2], [10, 10]]], dtype=torch.float64)
    logits = torch.cat([logits_of((0.72, 0.18, 0.1)), logits_of((0.77, 0.18, 0.05))])
    loss(logits, None, bounds)
    total.begin_epoch(1)
    told = total.moving()
    assert told["prior_EntKLProp_1"] == 4
    assert told["prior_EntKLProp_2"] == pytest.approx(0.5)
    assert told["prior_EntKLProp_0"] == pytest.approx(1.49 / 1.86)
    factors = loss.bends.bend(torch.tensor([[0.98, 0.02, 0.0]]), torch.tensor([[0.9, 0.1, 0.0]]))
    assert (factors * torch.tensor([[0.98, 0.02, 0.0]]))[0, 2] == 0
    assert (factors * torch.tensor([[0.98, 0.02, 0.0]])).sum().item() == pytest.approx(1)


def test_its_room_bends_with_it():
    loss, total = adapting(1.0)
    bounds = bounds_of([81, 99], [9, 11])
    loss(logits_of((0.8, 0.2)), None, bounds)
    total.begin_epoch(1)
    for share, is_silent in ((0.17, False), (0.19, True), (0.21, True), (0.23, False)):
        assert (loss(logits_of((1 - share, share)), None, bounds)["prior"].item() == 0) == is_silent


def test_an_evaluation_is_not_learnt_from():
    loss, total = adapting(0.5)
    bounds = bounds_of([90, 90], [10, 10])
    loss(logits_of((0.8, 0.2)), None, bounds)
    before = loss.bends.state()["seen"].tolist()
    with torch.inference_mode():
        loss(logits_of((0.2, 0.8)), None, bounds)
    assert loss.bends.state()["seen"].tolist() == before
    total.begin_epoch(1)
    loss(logits_of((0.8, 0.2)), None, bounds)["prior"].backward()


def test_a_state_that_is_restored_goes_on_as_the_other():
    first, one = adapting(0.3)
    first(logits_of((0.8, 0.2)), None, bounds_of([90, 90], [10, 10]))
    _, two = adapting(0.3)
    two.load_state(one.state())
    for total in (one, two):
        total.begin_epoch(1)
    assert one.moving() == two.moving() != {}


@pytest.mark.parametrize(
    "state",
    [
        {"factors": torch.ones(2), "seen": torch.full((2, 2), float("nan"))},
        {"factors": torch.ones(2), "seen": torch.ones(2, 3)},
        {"factors": torch.full((2,), 9.0), "seen": torch.ones(2, 2)},
        {"factors": torch.ones(3), "seen": torch.ones(2, 3)},
    ],
)
def test_a_state_that_cannot_be_is_refused(state):
    prior = BendingPrior(0.5)
    prior.load_state({"factors": torch.ones(2), "seen": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="is none"):
        prior.load_state(state)


def test_a_rate_that_cannot_be_is_refused():
    for wrong in ({"reestimate": 1.5}, {"reestimate": 0.5, "silent": False}, {"reestimate": 0.5, "curi": False}):
        with pytest.raises(UserError, match="'reestimate'"):
            LOSSES.build("EntKLProp", **wrong)
