"""Windows over an image: nothing left out, no seams, and what one window says where one is enough."""

import itertools
import math

import pytest
import torch
from torch import nn

from nets.sliding_window import gaussian, sliding_window, starts
from processes.errors import UserError


def points(image):
    """A network that sees one voxel at a time: logits (B, 2, …) out of the first channel."""
    return torch.cat([image[:, :1], -image[:, :1]], 1)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_every_place_is_covered_and_neighbours_overlap(overlap):
    for window, more in itertools.product(range(1, 9), range(40)):
        size = window + more
        at = starts(size, window, overlap)
        gaps = [b - a for a, b in itertools.pairwise(at)]
        assert (at[0], at[-1] + window) == (0, size)
        assert all(0 < gap <= max(math.ceil(window * (1 - overlap)), 1) for gap in gaps)


def test_windows_do_not_multiply():
    assert starts(16, 8, 0.5) == [0, 4, 8]
    assert starts(17, 8, 0) == [0, 4, 9]
    assert starts(8, 8, 0.5) == [0]


@pytest.mark.parametrize("size", [(23,), (9, 14), (7, 10, 13)])
@pytest.mark.parametrize(("overlap", "batch"), [(0, 1), (0.5, 3), (0.8, 7)])
def test_tiling_leaves_no_trace(size, overlap, batch):
    image = torch.randn(2, 3, *size)
    found = sliding_window(points, image, [4] * len(size), overlap, batch)
    torch.testing.assert_close(found, points(image).log_softmax(1))
    torch.testing.assert_close(found.log_softmax(1), found)


def test_a_constant_stays_constant():
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    found = sliding_window(lambda _: logits, torch.zeros(1, 1, 11, 9), (4, 4))
    torch.testing.assert_close(found.exp()[0, 1], torch.full((11, 9), 0.75))


def test_the_mean_is_weighted_by_closeness_to_the_middle():
    """Two windows of 8 over 12 voxels, the first sure of class 0, the second of class 1."""
    calls = iter((50.0, -50.0))
    found = sliding_window(lambda x: points(torch.full_like(x, next(calls))), torch.zeros(1, 1, 12), (8,), 0.5)
    weight = torch.exp(-0.5 * (torch.arange(8) - 3.5) ** 2)
    expected = torch.cat([torch.zeros(4), weight[:4] / (weight[:4] + weight[4:]), torch.ones(4)])
    torch.testing.assert_close(found[0, 1].exp(), expected)
    assert found.isfinite().all()


def test_weights_in_closed_form():
    weight = gaussian((16, 9, 1))
    assert weight.shape == (16, 9, 1)
    assert weight[7, 4, 0] == pytest.approx(math.exp(-0.5 * 0.5**2 / 4))
    assert weight[0, 4, 0] == pytest.approx(math.exp(-0.5 * 7.5**2 / 4))
    assert gaussian((64, 64, 64)).min() > math.exp(-24)


def test_one_window_is_the_network_itself():
    net = nn.Conv3d(2, 3, 3, padding=1)
    image = torch.randn(1, 2, 6, 5, 4)
    with torch.inference_mode():
        assert torch.equal(sliding_window(net, image, (6, 5, 4)), net(image).log_softmax(1))


def test_a_small_image_is_padded_with_its_border_and_cut_back():
    seen = []
    image = torch.arange(12.0).view(1, 1, 3, 4)
    found = sliding_window(lambda x: seen.append(x) or points(x), image, (5, 4))
    assert torch.equal(found, points(image).log_softmax(1))
    assert torch.equal(seen[0][0, 0, 3:], image[0, 0, 2:].expand(2, 4))


def test_no_image_costs_one_call_and_tells_the_classes():
    net = nn.Sequential(nn.Conv3d(2, 3, 1), nn.InstanceNorm3d(3))
    assert sliding_window(net, torch.zeros(0, 2, 9, 8, 7), (4, 4, 4)).shape == (0, 3, 9, 8, 7)


@pytest.mark.parametrize("overlap", [-0.1, 1])
def test_an_overlap_that_is_none_is_refused(overlap):
    with pytest.raises(UserError, match="share of a window"):
        sliding_window(points, torch.zeros(1, 1, 8), (4,), overlap)
