"""A network that follows another, step by step."""

import copy

import pytest
import torch
from torch import nn

from methods.averaging import Student, follow, frozen
from networks import build_network


def small():
    torch.manual_seed(0)
    return build_network("Dimwit:nG=3", 1, 2)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_weights_are_the_running_average_and_buffers_are_copied(decay):
    """By hand: of the weights 1, 2 and 3, from 0 on."""
    average, net = nn.BatchNorm2d(1).double(), nn.BatchNorm2d(1).double()
    nn.init.zeros_(average.weight)
    expected = 0.0
    for step in (1.0, 2.0, 3.0):
        nn.init.constant_(net.weight, step)
        net.running_mean.fill_(10 * step)
        net.num_batches_tracked += 1
        follow(average, net, decay)
        expected = decay * expected + (1 - decay) * step
        assert average.weight.item() == pytest.approx(expected, abs=1e-15)
        assert average.running_mean.item() == 10 * step
    assert average.num_batches_tracked == 3


def test_a_student_is_a_copy_and_learns_alone():
    net, image = small(), torch.rand(2, 1, 6, 5)
    pupil, before = Student(net), copy.deepcopy(net.state_dict())
    frozen(net)
    pupil.train()
    pupil(image).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pupil.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training


def test_nothing_of_the_average_is_in_the_graph():
    net, average = small(), frozen(small())
    follow(average, net, 0.5)
    assert not any(parameter.requires_grad for parameter in average.parameters())
