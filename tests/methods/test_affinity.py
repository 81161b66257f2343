"""Affinities of neighbouring cells, their loss and the walk along them, pair by pair."""

import itertools
import math

import pytest
import torch

import methods.affinity as module
from methods.affinity import Affinity, label_of_cells, neighbours, to_cells, to_pixels

CASES = [((5, 6), 3), ((2, 7), 4), ((3, 2, 4), 2), ((4, 3, 3), 3)]


def made(size, radius, channels=3):
    torch.manual_seed(0)
    affinity = Affinity(channels, len(size), radius).double()
    cells = torch.randn(2, channels, *size, dtype=torch.float64)
    affinity(cells)  # its norm learns nothing of it in evaluation
    return affinity.eval(), cells


def by_hand(affinity, cells, radius):
    """{(image, cell, cell): affinity} of every pair that is less than the radius apart, both ways round."""
    seen = affinity.norm(affinity.reduce(cells)).relu().detach()
    places = list(itertools.product(*map(range, cells.shape[2:])))
    found = {}
    for b, one, other in itertools.product(range(len(cells)), places, places):
        if 0 < math.dist(one, other) < radius:
            apart = (seen[(b, slice(None), *one)] - seen[(b, slice(None), *other)]).abs().mean()
            found[b, one, other] = math.exp(-apart)
    return found


@pytest.mark.parametrize(("size", "radius"), CASES)
def test_the_pairs_are_those_less_than_the_radius_apart_each_once(size, radius):
    affinity, cells = made(size, radius)
    expected = by_hand(affinity, cells, radius)
    found = torch.cat([each.detach().flatten() for *_, each in affinity(cells)]).tolist()
    assert len(found) == len(expected) / 2
    assert sorted(found * 2) == pytest.approx(sorted(expected.values()))


@pytest.mark.parametrize(("size", "radius"), CASES)
@pytest.mark.parametrize("n_class", [2, 3])
def test_the_loss_is_the_formula_written_out(size, radius, n_class):
    """The label n_class is that of a cell without one."""
    affinity, cells = made(size, radius)
    label = torch.randint(n_class + 1, (2, *size), generator=torch.Generator().manual_seed(1))
    costs = {"background": [], "foreground": [], "two": []}
    for (b, one, other), value in by_hand(affinity, cells, radius).items():
        first, second = label[(b, *one)].item(), label[(b, *other)].item()
        if n_class in (first, second):
            continue
        kind = "two" if first != second else "foreground" if first else "background"
        costs[kind].append(-math.log(1 + 1e-5 - value if kind == "two" else value + 1e-5))
    means = {kind: sum(each) / len(each) for kind, each in costs.items()}
    expected = means["background"] / 4 + means["foreground"] / 4 + means["two"] / 2
    assert affinity.loss(cells, label, n_class).item() == pytest.approx(expected, rel=1e-4)


def test_kinds_of_pairs_that_are_not_there_cost_nothing():
    affinity, cells = made((4, 4), 3)
    assert affinity.loss(cells, torch.full((2, 4, 4), 2), 2).item() == 0
    whole = affinity.loss(cells, torch.ones(2, 4, 4, dtype=torch.int64), 2)
    values = [-math.log(value + 1e-5) for value in by_hand(affinity, cells, 3).values()]
    assert whole.item() == pytest.approx(sum(values) / len(values) / 4, rel=1e-4)


def test_the_gradient_of_the_loss():
    affinity, cells = made((3, 3), 2)
    label = torch.randint(2, (2, 3, 3), generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda each: affinity.loss(each, label, 2), cells.requires_grad_())


@pytest.mark.parametrize(("size", "radius"), CASES)
def test_a_walk_is_a_weighted_mean_over_neighbours_step_by_step(size, radius):
    affinity, cells = made(size, radius)
    pairs, places = by_hand(affinity, cells, radius), list(itertools.product(*map(range, size)))
    probs = torch.randn(2, 3, *size, dtype=torch.float64).softmax(1)
    expected = probs
    for _ in range(3):
        now = torch.zeros_like(expected)
        for b, place in itertools.product(range(2), places):
            near = {other: value**2 for (c, one, other), value in pairs.items() if (c, one) == (b, place)}
            near[place] = 1.0
            total = sum(weight * expected[(b, slice(None), *other)] for other, weight in near.items())
            now[(b, slice(None), *place)] = total / sum(near.values())
        expected = now
    before = probs.clone()
    found = affinity.walk(cells, probs, 3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    assert torch.equal(probs, before)


def test_it_learns_to_tell_two_classes_apart_and_the_walk_stops_between_them():
    """Two halves whose features differ, a hole in the one: the walk fills it and does not cross the border."""
    torch.manual_seed(0)
    affinity = Affinity(4, 2, 3)
    label = (torch.arange(12) >= 6).long().expand(2, 12, 12)
    features = torch.randn(2, 4, 12, 12) / 10 + torch.where(label == 1, 1.0, -1.0).unsqueeze(1)
    optimiser = torch.optim.Adam(affinity.parameters(), 3e-2)
    for _ in range(60):
        optimiser.zero_grad()
        affinity.loss(features, label, 2).backward()
        optimiser.step()
    probs = torch.where(label == 1, 0.9, 0.1)
    probs[:, 5, 9] = 0.2
    walked = affinity.eval().walk(features, torch.stack([1 - probs, probs], 1), 4)
    assert (walked[:, 1].round() == label).all()


def test_steps_to_neighbours():
    assert neighbours(2, 2) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    assert len(neighbours(4, 2)) == 22  # as published: 22 of half a disc
    assert neighbours(2, 3)[:2] == [(0, 0, 1), (0, 1, -1)]


def test_cells_and_their_labels_and_back(monkeypatch):
    monkeypatch.setattr(module, "CELLS", 2)
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert to_cells(maps).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    label = torch.tensor([[[0, 1, 2, 2], [1, 1, 2, 2], [2, 0, 1, 2], [2, 2, 0, 0]]])  # 2 is none
    assert label_of_cells(label, 2).flatten().tolist() == [1, 2, 2, 0]
    assert to_cells(torch.rand(1, 1, 1, 3)).shape == (1, 1, 1, 2)
    torch.testing.assert_close(to_pixels(torch.full((1, 2, 2, 2), 0.3), (5, 7)), torch.full((1, 2, 5, 7), 0.3))
