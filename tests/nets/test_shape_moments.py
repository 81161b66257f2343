"""Centroid and spread against their definitions, what is usual of them, and the loss that draws to it."""

import math

import numpy as np
import pytest
import torch
from conftest import FOLDERS, write_prior, write_site

from bounds import BOUNDS
from datasets.slices import lay_bounds, open_slices
from datasets.transforms import parse_folders
from losses import LEAST_AREA, LOSSES
from methods.objective import LossSum
from methods.terms import Term, check_sizes
from nets.shape_moments import UsualShape, shapes_of
from processes.errors import UserError

B, K, SIZE = 3, 3, (7, 9)
MM = torch.tensor([[1.5, 0.7], [2.0, 2.0], [0.5, 3.0]], dtype=torch.float64)


def logits_of(seed=0, size=SIZE):
    return torch.randn(B, K, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bounds_of(sizes, spacing=MM):
    """(B, K, 2) exact sizes, the mm of a pixel behind them."""
    bounds = torch.tensor(sizes, dtype=torch.float64)[..., None].expand(-1, -1, 2)
    rows = torch.cat([torch.ones(len(spacing), 4 - spacing.shape[1]).double(), spacing], 1)
    return torch.cat([bounds, rows.view(-1, 2, 2)], 1)


def literally(p, spacing):
    """Area, centroid and spread of one map, pixel by pixel."""
    area = sum(float(p[at]) for at in np.ndindex(*p.shape))
    centre = [sum(float(p[at]) * at[axis] for at in np.ndindex(*p.shape)) / area for axis in range(p.ndim)]
    spread = [
        math.sqrt(sum(float(p[at]) * (at[axis] - centre[axis]) ** 2 for at in np.ndindex(*p.shape)) / area)
        for axis in range(p.ndim)
    ]
    return (
        area,
        [c * s for c, s in zip(centre, spacing, strict=True)],
        [d * s for d, s in zip(spread, spacing, strict=True)],
    )


@pytest.mark.parametrize("size", [(7, 9), (3, 4, 5)])
def test_they_are_the_formulas(size):
    probs, spacing = logits_of(size=size).softmax(1), torch.rand(B, len(size), dtype=torch.float64) + 0.5
    areas, shapes = shapes_of(probs, spacing)
    for b in range(B):
        for k in range(K):
            area, centre, spread = literally(probs[b, k], spacing[b].tolist())
            assert areas[b, k].item() == pytest.approx(area)
            assert shapes[b, k].tolist() == [pytest.approx(centre), pytest.approx(spread)]


def learnt(loss, logits, bounds):
    """The loss after an epoch that saw this batch."""
    loss(logits, None, bounds)
    loss.bends.begin_epoch(1)
    return loss


@pytest.mark.parametrize("silent", [True, False])
def test_the_loss_is_the_formula(silent):
    """Class 1 counts in the first two images, and costs in those where its tag is on."""
    first, then = logits_of(), logits_of(1)
    areas = first.softmax(1).flatten(2).sum(2)
    sizes = areas.tolist()
    sizes[1][1] *= 1.9  # still more than half of its prior
    sizes[2][1] = 0  # its tag is off
    bounds = bounds_of(sizes)
    loss = learnt(LOSSES.build("ShapeMoments", idc=[1, 2], margin=0.2, silent=silent), first, bounds)
    usual, counted = {}, {1: (0, 1), 2: (0, 1, 2)}
    for k, images in counted.items():
        shapes = [literally(first.softmax(1)[b, k], MM[b].tolist())[1:] for b in images]
        usual[k] = np.mean(shapes, 0)
    expected = {"centroid": 0.0, "spread": 0.0}
    for k, images in counted.items():
        for b in images:
            area, *shape = literally(then.softmax(1)[b, k], MM[b].tolist())
            assert area > LEAST_AREA
            for name, values, wanted, room in zip(expected, shape, usual[k], (0, 0.2 if silent else -0.2), strict=True):
                for m, goal in zip(values, wanted, strict=True):
                    low, high = goal * (1 - room), goal * (1 + room)
                    expected[name] += (max(0, low - m) ** 2 + max(0, m - high) ** 2) / B
    found = loss(then, None, bounds)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)
    assert expected["centroid"] > 0


def test_the_gradient_is_right():
    loss = learnt(LOSSES.build("ShapeMoments", idc=[1, 2]), logits_of(), bounds_of([[21.0] * K] * B))
    small = logits_of(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(loss(x, None, bounds_of([[21.0] * K] * B)).values()), small)
    assert torch.autograd.grad(sum(loss(small, None, bounds_of([[21.0] * K] * B)).values()), small)[0].abs().sum() > 0


def square(size, at, side, off=20.0):
    """Logits (1, 2, *size) of a square of class 1."""
    found = torch.zeros(1, 2, *size, dtype=torch.float64)
    found[:, 1] = -off
    found[:, 1, at[0] : at[0] + side, at[1] : at[1] + side] = off
    return found


def test_what_lies_aside_is_drawn_back_and_what_is_usual_is_not():
    size, told = (20, 20), bounds_of([[364.0, 36.0]], torch.ones(1, 2).double())
    loss = learnt(LOSSES.build("ShapeMoments"), square(size, (7, 7), 6), told)
    assert sum(loss(square(size, (7, 7), 6), None, told).values()).item() == pytest.approx(0, abs=1e-6)
    aside = loss(square(size, (7, 10), 6), None, told)
    assert aside["centroid"].item() == pytest.approx(9, abs=1e-6)  # three pixels
    assert aside["spread"].item() == pytest.approx(0, abs=1e-6)
    spread = math.sqrt(35 / 12)
    larger = loss(square(size, (6, 6), 8), None, told)["spread"].item()
    assert larger == pytest.approx(2 * (math.sqrt(63 / 12) - 1.1 * spread) ** 2, abs=1e-6)
    for silent in (
        square(size, (0, 0), 3),
        torch.full((1, 2, *size), -9.0).double() * torch.tensor([0.0, 1])[:, None, None],
    ):
        assert sum(loss(silent, None, told).values()).item() == 0  # nine pixels, and none
    off = bounds_of([[400.0, 0.0]], torch.ones(1, 2).double())
    assert sum(loss(square(size, (0, 0), 6), None, off).values()).item() == 0


def test_images_of_an_unusual_size_teach_nothing_of_what_is_usual():
    size, told = (20, 20), bounds_of([[340.0, 60.0]], torch.ones(1, 2).double())
    loss = LOSSES.build("ShapeMoments")
    loss(square(size, (3, 3), 8), None, told)
    loss(square(size, (0, 0), 4), None, told)  # 16 of 60 pixels
    loss.bends.begin_epoch(1)
    assert loss.bends.mean[0, 0].tolist() == pytest.approx([6.5, 6.5], abs=1e-6)


def test_an_epoch_counts_once_an_evaluation_never_and_what_is_not_seen_is_kept():
    usual, shapes = UsualShape(), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert torch.equal(usual.near(shapes, torch.tensor([[True]])), shapes)
    with torch.no_grad():
        usual.near(shapes * 9, torch.tensor([[True]]))
    usual.begin_epoch(1)
    assert torch.equal(usual.near(shapes * 3, torch.tensor([[False]])), shapes)
    usual.begin_epoch(2)
    assert torch.equal(usual.near(shapes * 3, torch.tensor([[True]])), shapes)
    other = UsualShape()
    other.load_state(usual.state())
    for each in (usual, other):
        each.begin_epoch(3)
        assert torch.equal(each.mean, 3 * shapes[0].double())
    usual.begin_epoch(0)
    assert usual.state() == {}


@pytest.mark.parametrize(
    "state",
    [
        {"mean": torch.ones(1, 3, 2)},
        {"sums": torch.ones(1, 2, 2)},
        {"sums": torch.full((1, 2, 2), math.nan), "counts": torch.ones(1)},
        {"sums": torch.ones(1, 2, 2), "counts": torch.ones(2)},
        {"mean": torch.ones(2, 2, 2), "sums": torch.ones(1, 2, 2), "counts": torch.ones(1)},
    ],
)
def test_a_state_that_cannot_be_is_refused(state):
    with pytest.raises(ValueError, match="is none"):
        UsualShape().load_state(state)


def test_the_set_tells_the_size_of_a_pixel(tmp_path):
    site = write_site(tmp_path / "site", 150, 90, seed=0)
    prior = BOUNDS.build(
        "PredictionBounds", 2, sizefile=str(write_prior(tmp_path / "p.csv", site)), predcol="dumbpredwtags"
    )
    other = BOUNDS.build("ConstantBounds", 2, values=[400, 80])
    check_sizes([Term(LOSSES.build("ShapeMoments"), 1, prior), Term(LOSSES.build("EntKLProp"), 1, other)], [])
    slices = open_slices(site, "train", parse_folders(FOLDERS, 1), 2, r"(Case\d+)_(\d+)")
    bound, plain = lay_bounds(replace_folders(slices), [prior, other]).bounds
    assert bound.shape == (len(slices), 4, 2)
    assert plain.shape == (len(slices), 2, 2)
    assert (bound[:, 2:] == 1).all()
    spaced = replace_folders(slices)
    spaced.spacing = dict.fromkeys(slices.patients, (3.0, 1.5, 0.5))
    bound, _ = lay_bounds(spaced, [prior, other]).bounds
    assert (bound[:, 2:] == [[1, 3], [1.5, 0.5]]).all()


def replace_folders(slices):
    """The set read for two losses."""
    slices.folders = [*slices.folders[:2], slices.folders[1], slices.folders[1]]
    return slices


def test_volumes_are_measured_along_all_axes():
    logits, spacing = logits_of(size=(3, 4, 5)), torch.tensor([[2.0, 1.0, 0.5]] * B).double()
    loss = learnt(LOSSES.build("ShapeMoments"), logits, bounds_of([[20.0] * K] * B, spacing))
    centre, spread = (np.mean([literally(each[1], [2, 1, 0.5])[n] for each in logits.softmax(1)], 0) for n in (1, 2))
    assert loss.bends.mean[0].tolist() == [pytest.approx(centre), pytest.approx(spread)]


def test_a_sum_of_losses_hands_epochs_and_state_on():
    loss = LOSSES.build("ShapeMoments")
    total = LossSum([Term(loss)])
    total(logits_of(), [None], [bounds_of([[21.0] * K] * B)])
    total.begin_epoch(1)
    assert total.moving() == {}
    assert set(total.state()["ShapeMoments"]) == {"mean"}


def test_a_margin_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="'margin' is at least 0 and at most 1"):
        LOSSES.build("ShapeMoments", margin=2.0)
