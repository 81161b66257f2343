"""Batch norms whose statistics follow slowly, against the formula written out."""

import copy

import pytest
import torch
from torch import nn

from nets.norm_following import following_norm
from nets.norm_mixing import standing_in


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm2d(3), (2, 3, 4, 5)), (nn.BatchNorm3d(3), (1, 3, 2, 3, 4))])
def test_two_batches_are_the_formula_written_out(norm, shape):
    norm = norm.double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, variance = [0.5, -1.0, 2.0], [1.0, 4.0, 0.25]
    norm.running_mean.copy_(torch.tensor(mean))
    norm.running_var.copy_(torch.tensor(variance))
    for _ in range(2):
        maps = 3 * torch.randn(shape, dtype=torch.float64) + 1
        found = following_norm(0.1, norm, maps)
        for c in range(3):
            values = maps[:, c].flatten().tolist()
            own = sum(values) / len(values)
            spread = sum((value - own) ** 2 for value in values) / len(values)
            mean[c], variance[c] = 0.9 * mean[c] + 0.1 * own, 0.9 * variance[c] + 0.1 * spread
            expected = (maps[:, c] - mean[c]) / (variance[c] + norm.eps) ** 0.5 * norm.weight[c] + norm.bias[c]
            torch.testing.assert_close(found[:, c], expected)
        assert norm.running_mean.tolist() == pytest.approx(mean)
        assert norm.running_var.tolist() == pytest.approx(variance)


def test_a_share_of_none_is_a_norm_in_evaluation_and_of_all_one_in_training():
    norm, maps = nn.BatchNorm2d(2).eval(), torch.randn(4, 2, 5, 6)
    norm.running_mean.fill_(0.3)
    torch.testing.assert_close(following_norm(0.0, norm, maps), norm(maps))
    other = copy.deepcopy(norm).train()
    torch.testing.assert_close(following_norm(1.0, norm, maps), other(maps))


def test_the_gradient_flows_through_the_share_and_stops_at_the_past():
    norm = nn.BatchNorm2d(2).double()
    maps = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def fresh(each):
        norm.reset_running_stats()
        return following_norm(0.3, norm, each)

    assert torch.autograd.gradcheck(fresh, maps)
    following_norm(0.3, norm, maps).sum().backward()
    following_norm(0.3, norm, maps).sum().backward()  # the graph of the first is gone
    assert not norm.running_mean.requires_grad


def test_a_block_of_other_norms_in_another_leaves_that_one_as_it_was():
    """A network that mixes its statistics, in evaluation, within RoTTA's norms."""
    norm, maps = nn.BatchNorm2d(1).eval(), torch.ones(1, 1, 2, 2)
    with standing_in([norm], lambda own, seen: seen + 1):
        with standing_in([norm], lambda own, seen: seen + 2):
            assert norm(maps).mean() == 3
        assert norm(maps).mean() == 2
    assert norm(maps).mean().item() == pytest.approx(1, abs=1e-4)
    assert "forward" not in vars(norm)


def test_half_precision_is_summed_up_in_float32():
    norm, maps = nn.BatchNorm2d(1), torch.full((2, 1, 64, 64), 300.0).half()
    found = following_norm(0.5, norm, maps)
    assert found.dtype == torch.float16
    assert found.isfinite().all()
    assert norm.running_mean.item() == pytest.approx(150)
