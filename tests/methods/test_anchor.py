"""The pull back to the source network, against the formula written out, and through every method that makes steps."""

import copy

import pytest
import torch
from conftest import CROSS_ENTROPY
from test_methods import BARE, LEARNING, make, train
from torch import nn

import main as program
from engine.arguments import get_args
from methods.anchor import Anchor
from methods.base import METHODS
from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError
from tests.tools.chaos import ask_to_stop, before_call, differences


def test_steps_of_gradient_descent_with_an_anchor_are_the_formula_written_out():
    """Each of them (1 − A) (θ − η g) + A θ₀, in float64."""
    generator, share, rate = torch.Generator().manual_seed(0), 0.2, 0.1
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    start = [p.detach().clone() for p in net.parameters()]
    expected = [p.clone() for p in start]
    optimiser, anchor = torch.optim.SGD(net.parameters(), rate), Anchor(net.parameters(), share)
    for _ in range(3):
        loss = net(torch.randn(5, 3, generator=generator, dtype=torch.float64)).pow(3).sum()
        optimiser.zero_grad()
        loss.backward()
        for number, parameter in enumerate(net.parameters()):
            stepped = expected[number] - rate * parameter.grad
            expected[number] = (1 - share) * stepped + share * start[number]
        optimiser.step()
        anchor.pull()
    for parameter, value in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-12)


def test_what_stands_still_has_no_anchor_and_a_share_of_0_keeps_nothing():
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    assert Anchor(net.parameters(), 0.1).parameters == [net.weight]
    assert Anchor(net.parameters(), 0.0).start == []


@pytest.mark.parametrize(("name", "losses"), LEARNING)
def test_an_anchor_of_1_keeps_the_weights_and_lets_the_statistics_move(sites, name, losses):
    """Whatever a method does in a step, it ends at the anchor."""
    method, streams = make(sites, name, losses, "--model_weights", "given", "--anchor", "1")
    before = copy.deepcopy(method.net.state_dict())
    train(method, streams)
    learnt = {name for name, _ in method.net.named_parameters()}
    after = method.net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in learnt)
    assert not all(torch.equal(after[name], before[name]) for name in after.keys() - learnt)


def test_the_stronger_the_anchor_the_nearer_the_end(sites):
    gone = []
    for share in ("0", "0.1", "0.5"):
        method, streams = make(sites, "sfda", "[('SelfEntropy', {}, 1)]", "--anchor", share)
        start = [p.detach().clone() for p in method.net.parameters()]
        train(method, streams)
        gone.append(sum((p - q).abs().sum().item() for p, q in zip(method.net.parameters(), start, strict=True)))
    assert gone[0] > gone[1] > gone[2] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        ("--anchor", "0.1"),
        ("--anchor", "0.1", "--model_weights", "given", "--load_blocks", "1"),
        ("--anchor", "1.1", "--model_weights", "given"),
        ("--anchor", "-0.1", "--model_weights", "given"),
    ],
)
def test_an_anchor_without_a_ground_is_refused(wrong):
    with pytest.raises(UserError, match="--anchor"):
        get_args([*BARE, *wrong])


def test_a_run_with_an_anchor_goes_on_with_the_same_bits(sites, tmp_path, monkeypatch):
    """It is drawn to --model_weights after a restart too, and not to where it stopped."""

    def argv(run, *more):
        flags = f"--target_dataset {sites[1]} --workdir {tmp_path / run} --n_class 2 --network Dimwit --n_epoch 2 --cpu"
        where = ["--target_folders", "[('IMG', png_transform, False), ('GT', gt_transform, False)]"]
        return [*flags.split(), *where, "--grp_regex", r"(Case\d+)_(\d+)", "--l_rate", "0.1", "--resume", *more]

    program.main(argv("source", "--target_losses", CROSS_ENTROPY))
    more = ("--method", "sfda", "--target_losses", "[('SelfEntropy', {}, 1)]", "--anchor", "0.3")
    more += ("--model_weights", str(tmp_path / "source" / "last.pkl"))
    program.main(argv("whole", *more))
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["sfda"], "step", before_call(6, METHODS["sfda"].step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(argv("stopped", *more))
    program.main(argv("stopped", *more))
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []
    assert "anchor" not in load_checkpoint(tmp_path / "whole" / "last.pkl")["method"]
