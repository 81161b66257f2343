"""Pseudo labels that four positions of an image agree on: positions, labels, pieces, and what a step learns."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

import methods.upl as module
from datasets.streams import Batch
from methods.feature_dropout import WithDropout
from networks import build_network
from processes.errors import UserError
from processes.team import Team
from tests.methods.test_pseudo_label import build
from tests.modes import Watch

DICE = "[('DiceLoss', {}, 1)]"
NETWORKS = (
    "UNet:nG=2",
    "ResidualUNet:nG=2",
    "PooledUNet:nG=2",
    "UNet3D:width=2,depth=1",
    "Dimwit:nG=3",
    "ENet:kernels=4",
)


def network(name="Dimwit:nG=4", n_class=2):
    torch.manual_seed(0)
    net = build_network(name, 1, n_class)
    for part in net.classifier.modules():
        if getattr(part, "weight", None) is not None:
            torch.nn.init.normal_(part.weight, std=6)  # sure of some pixels
    return net


def make(*flags, losses=DICE, n_class=2, name="Dimwit:nG=4", team=None):
    return build(*flags, method="upl", losses=losses, net=network(name, n_class), n_class=n_class, team=team)


def batch_of(shape, count=3, n_loss=1):
    image = torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(1))
    return Batch(image, [None] * n_loss, [None] * n_loss, torch.arange(count))


# -- positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 3, 4, 6, 6)])
@pytest.mark.parametrize("quarters", [True, False])
def test_each_position_is_another_and_its_way_back_leads_to_the_image(shape, quarters):
    image = torch.arange(math.prod(shape)).view(shape)
    moves = module.moves_of(quarters)
    seen = [there(image) for there, _ in moves]
    assert all(torch.equal(back(each), image) for (_, back), each in zip(moves, seen, strict=True))
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    corners = {each[(0,) * len(shape)].item() for each in seen}
    w, h = (image[0, 0, ..., at, to].flatten()[0].item() for at, to in ((-1, 0), (0, -1)))
    assert corners == {0, w, h, image[0, 0, ..., -1, -1].flatten()[0].item()}
    planes = [each.flatten(0, -3)[0] for each in seen]
    assert {abs((plane[0, 1] - plane[0, 0]).item()) for plane in planes} == (
        {1, 6} if quarters else {1}
    )  # an axis of W becomes one of H


class Stream:
    """Of a set with this spacing."""

    def __init__(self, spacing):
        self.slices = type("Slices", (), {"spacing": spacing})


@pytest.mark.parametrize(
    ("spacing", "square"),
    [
        (None, True),
        ({"a": (3, 1, 1), "b": (3, 0.5, 0.5)}, True),
        ({"a": (3, 1, 1), "b": (3, 0.5, 0.6)}, False),
    ],
)
@pytest.mark.parametrize("shape", [(6, 6), (6, 8)])
def test_quarters_of_a_circle_are_for_square_slices_of_square_pixels(spacing, square, shape, monkeypatch):
    method, asked = make(), []
    method.meet({"target": Stream(spacing)})
    moves_of = module.moves_of
    monkeypatch.setattr(module, "moves_of", lambda quarters: asked.append(quarters) or moves_of(quarters))
    method.step({"target": batch_of(shape)})
    assert asked == [square and shape == (6, 6)]


# -- dropout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_decoder_begins_without_the_channels_that_are_dropped(name):
    """What it reads has zeros there, and twice the rest; every other call is as ever."""
    net = network(name).eval()
    module, seen = WithDropout(net), []
    image = torch.rand(2, 1, *((8,) * net.axes if net.axes == 3 else (32, 32)))
    plain = net(image)
    begins = next(part for part in net.modules() if part._forward_pre_hooks)
    begins.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].detach()))
    kept = torch.tensor([[2.0, 0.0] * module.channels])[:, : module.channels].repeat(2, 1)
    with torch.no_grad():
        net(image)
        dropped = module(image, kept)
    factors = kept.view(2, -1, *[1] * net.axes)
    torch.testing.assert_close(seen[1], seen[0] * factors)
    assert torch.equal(module(image), plain)
    assert torch.equal(net(image), plain)
    assert not torch.equal(dropped, plain)
    if net.n_blocks:
        assert torch.equal(seen[0], net.encode(image)[-1])


def test_with_a_fault_in_it_the_network_is_as_it_was():
    made = WithDropout(network())
    with pytest.raises(RuntimeError):
        made(torch.rand(1, 1, 4, 4), torch.ones(1, 99))
    assert made(torch.rand(1, 1, 4, 4)).shape == (1, 2, 4, 4)


# -- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 10), (4, 8, 9)])
def test_the_largest_piece_of_each_class_of_the_foreground_is_kept(shape):
    label = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)  # 3: no label
    kept = module.largest_pieces(label, 3)
    for k in (1, 2):
        pieces, count = ndimage.label(label == k)
        sizes = [(pieces == piece).sum() for piece in range(1, count + 1)]
        first = 1 + sizes.index(max(sizes))
        assert count > 1
        assert np.array_equal(kept == k, pieces == first)
    assert np.array_equal(kept == 0, label == 0)
    assert ((kept == label) | (kept == 3)).all()


def test_a_pixel_has_a_label_where_the_mean_is_above_tau():
    probs = torch.tensor([[0.96, 0.03, 0.01], [0.03, 0.96, 0.01], [0.03, 0.01, 0.96], [0.5, 0.3, 0.2]])
    probs = torch.cat([probs, probs[1:2]]).T.reshape(1, 3, 1, 5)  # the last is class 1 again, aside of the first
    found = [make("--pieces", pieces, n_class=3).pseudo_label(probs).tolist() for pieces in ("all", "largest")]
    assert found == [[[[0, 1, 2, 3, 1]]], [[[0, 1, 2, 3, 3]]]]
    assert make("--tau", "0.97", n_class=3).pseudo_label(probs).unique().tolist() == [3]


def test_entropy_in_bits_by_hand():
    probs = torch.tensor([[0.5, 0.25, 0.25], [1, 0, 0]], dtype=torch.float64, requires_grad=True)
    found = module.entropy_in_bits(probs.T.reshape(1, 3, 2, 1))
    assert found.item() == pytest.approx((1.5 / 3 + 0) / 2)
    found.backward()
    assert torch.isfinite(probs.grad).all()


# -- a step -------------------------------------------------------------------------------------------------------


def total_by_hand(method, batch, quarters, tau=0.95, weight=1.0):
    """The paper's loss in float64: each position by itself, each pixel and class by itself."""
    net = method.net
    count, n_class = len(batch.image), net.n_class
    generator = torch.Generator().manual_seed(7)
    kept = (torch.rand(4, count, method.module.channels, generator=generator) >= 0.5) * 2.0
    moved = torch.cat([there(batch.image) for there, _ in module.moves_of(quarters)])
    logits = WithDropout(net)(moved, kept.flatten(0, 1)).double().chunk(4)
    views = [back(each.softmax(1)) for (_, back), each in zip(module.moves_of(quarters), logits, strict=True)]
    mean = sum(views) / 4
    total = 0.0
    for b in range(count):
        label = torch.where(mean[b].amax(0) > tau, mean[b].argmax(0), n_class)
        label = torch.from_numpy(module.largest_pieces(label.numpy().astype(np.uint8), n_class))
        for view in views:
            for k in range(n_class):
                p, y = view[b, k][label < n_class], (label == k)[label < n_class].double()
                if y.sum() > 0:
                    total += (1 - 2 * (p * y).sum() / (p.sum() + y.sum())) / (4 * count * n_class)
                else:
                    total += p.sum() / label.numel() / (4 * count * n_class)
    return total - weight * (mean * mean.log2()).sum(1).mean() / n_class, mean


@pytest.mark.parametrize(("shape", "n_class"), [((8, 8), 2), ((8, 10), 3)])
def test_the_total_is_the_paper_s_and_so_is_its_gradient(shape, n_class):
    flags, batch = ("--tau", "0.6", "--entropy_weight", "2"), batch_of(shape)
    method, twin = make(*flags, n_class=n_class), make(*flags, n_class=n_class)
    expected, mean = total_by_hand(twin, batch, shape == (8, 8), 0.6, 2.0)
    expected.backward()
    method.begin_step(0, seed=7)
    terms, logits = method.step({"target": batch})
    assert terms["tot"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logits.exp().double(), mean.detach(), rtol=1e-4, atol=1e-6)
    assert 0 < terms["pseudo_share"] < 1
    for ours, theirs in zip(method.net.parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_bounds_go_with_each_position():
    sized = "[('DiceLoss', {}, 1), ('NaivePenalty', {}, 'ConstantBounds', {'values': {1: [1, 2]}}, 'soft_size', 1)]"
    method, batch = make(losses=sized), batch_of((6, 6), n_loss=2)
    batch.bounds[1] = torch.tensor([[[0.0, 36.0], [1.0, 2.0]]] * 3)
    assert math.isfinite(method.step({"target": batch})[0]["NaivePenalty"])


def test_the_draw_depends_on_the_seed_of_the_step_alone():
    totals = []
    for seed, state in ((1, 0), (1, 5), (2, 0)):
        method = make()
        method.begin_step(0, seed)
        torch.manual_seed(state)
        totals.append(method.step({"target": batch_of((6, 6))})[0]["tot"].item())
    assert totals[0] == totals[1] != totals[2]


def test_a_member_of_a_team_drops_what_one_process_would(monkeypatch):
    """Of four images, which two processes share."""
    whole, batch = make(), batch_of((6, 6), 4)
    whole.net.eval()
    seen = whole.positions(batch)
    for rank in range(2):
        member = make(team=Team())
        member.team = Team(rank, 2)
        monkeypatch.setattr(Team, "gather", lambda self, local, count: local)
        member.net.eval()
        part = Batch(batch.image[2 * rank : 2 * rank + 2], [None], [None], batch.rows)
        torch.testing.assert_close(member.positions(part), seen[2 * rank : 2 * rank + 2])
    assert seen.shape == (4, 4, 2, 6, 6)


def test_with_all_pieces_no_step_looks_at_a_value():
    method = make("--pieces", "all", "--optimiser", "sgd")
    with Watch():
        method.step({"target": batch_of((6, 6))})


def test_the_batch_is_four_times_as_large_to_the_network():
    assert make().images_at_once({"target": 3}) == 12


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tau", "0.4"), "--tau is 0.4; it is at least 0.5"),
        (("--tau", "1"), "--tau is 1;"),
        (("--dropout", "1"), "--dropout is 1; it is at least 0 and below 1"),
        (("--entropy_weight", "-1"), "--entropy_weight is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(flags, said):
    with pytest.raises(UserError, match=said):
        make(*flags)


@pytest.mark.parametrize("method", ["upl", "denoised"])
def test_losses_that_cannot_leave_a_pixel_out_are_refused(method):
    for losses, said in (
        ("[('GeneralizedDice', {}, 1)]", "GeneralizedDice would count the other pixels"),
        ("[('SelfEntropy', {}, 1)]", "give a loss on labels"),
    ):
        with pytest.raises(UserError, match=said):
            build(method=method, losses=losses, net=network())
