"""The mean of the last epochs' networks: against sums in float64, in a run, after a stop and a roll-back."""

import pytest
import torch
from conftest import write_site
from torch import nn

import main as program
from engine.mean_network import MeanNetwork
from files.run_names import CHOSEN, candidates_of
from methods.base import METHODS
from nets.checkpoint_files import load_checkpoint
from tests.tools.chaos import EPOCHS, arguments, ask_to_stop, before_call, differences

pytestmark = pytest.mark.usefixtures("quick_spawns")

SMALLEST = ("--network", "Dimwit", "--l_rate", 0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("mean") / "site", 150, 90, seed=2)


@pytest.fixture(scope="module")
def source(site):
    program.main(arguments(site, site.parent / "source", *SMALLEST, "--n_epoch", 2))
    return site.parent / "source" / "last.pkl"


def adapting(site, source, run, *more):
    losses = ("--target_losses", "[('SelfEntropy', {}, 1)]", "--augmentation", "{'flip': True, 'rotate': 0}")
    start = ("--method", "sfda", "--model_weights", source)
    return arguments(site, run, *SMALLEST, *start, *losses, *more)


@pytest.mark.parametrize(("count", "averaged"), [(1, 1), (2, 2), (3, 3), (9, 4)])
def test_the_mean_is_the_sum_by_the_number(count, averaged):
    """Of weights and of batch-norm statistics; the number of batches is the last one."""
    net, generator, seen = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.Generator().manual_seed(0), []
    mean = MeanNetwork(net, count, n_epoch=4)
    for epoch in range(4):
        for value in net.state_dict().values():
            value.copy_(10 * torch.randn(value.shape, generator=generator))
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        mean.end_epoch(epoch)
        if epoch < 3:
            assert all(torch.equal(value, seen[-1][name]) for name, value in net.state_dict().items())
    assert mean.state_dict() == {}
    for name, value in net.state_dict().items():
        last = [each[name].double() for each in seen[-averaged:]]
        expected = sum(last) / averaged if value.is_floating_point() else last[-1]
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_state_of_another_network_is_refused():
    mean = MeanNetwork(nn.Linear(2, 3), 2, 4)
    for state in ({"weight": torch.ones(3, 2)}, {"weight": torch.ones(3, 1), "bias": torch.ones(3)}):
        with pytest.raises(ValueError, match="is of another network"):
            mean.load_state_dict(state)
    with pytest.raises(ValueError, match="not finite"):
        mean.load_state_dict({"weight": torch.ones(3, 2), "bias": torch.tensor([1, torch.nan, 1])})


def test_a_run_ends_with_the_mean_of_the_networks_that_it_kept(site, source, tmp_path, monkeypatch):
    """The epochs before are the bits of a run without; the last candidate is the mean."""
    monkeypatch.setattr("engine.candidates.Candidates.end", lambda self: None)
    more = ("--keep_every", 1, "--n_epoch", 3)
    program.main(adapting(site, source, tmp_path / "plain", *more))
    program.main(adapting(site, source, tmp_path / "mean", *more, "--average_last", 2))
    plain, mean = (candidates_of(tmp_path / run) for run in ("plain", "mean"))
    nets = {number: load_checkpoint(path)["net"] for number, path in plain.items()}
    for number in (0, 1, 2):
        kept = load_checkpoint(mean[number])["net"]
        assert all(torch.equal(kept[name], value) for name, value in nets[number].items())
    last, ended = load_checkpoint(mean[3])["net"], load_checkpoint(tmp_path / "mean" / "last.pkl")
    for name, value in last.items():
        assert torch.equal(value, ended["net"][name])
        if value.is_floating_point():
            torch.testing.assert_close(value, (nets[2][name] + nets[3][name]) / 2)
    assert not all(torch.equal(value, nets[3][name]) for name, value in last.items())
    assert ended["mean"] == {}
    assert (tmp_path / "mean" / CHOSEN).exists()


def test_a_run_that_is_stopped_goes_on_to_the_same_mean(site, source, tmp_path, monkeypatch):
    argv = [adapting(site, source, tmp_path / run, "--average_last", 3) for run in ("whole", "stopped")]
    program.main(argv[0])
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["sfda"], "step", before_call(4 * (EPOCHS - 1) + 2, METHODS["sfda"].step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(argv[1])
    assert load_checkpoint(tmp_path / "stopped" / "paused.pkl")["mean"]
    program.main(argv[1])
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []
    assert "mean" not in load_checkpoint(tmp_path / "whole" / "best_3d.pkl")


def test_an_epoch_that_is_rolled_back_counts_as_the_one_before(site, source, tmp_path, monkeypatch):
    """Two of the same, then: the mean is that one."""
    seen = []

    def alarmed(self, trained, epoch):
        seen.append({name: value.clone() for name, value in self.method.net.state_dict().items()})
        return [] if epoch == 0 else ["it is worse"]

    monkeypatch.setattr("engine.watching.Watch.alarms", alarmed)
    monkeypatch.setattr("engine.watching.Watch.forget", lambda self, epoch: None)
    more = ("--on_collapse", "rollback", "--n_epoch", 2, "--average_last", 2)
    program.main(adapting(site, source, tmp_path / "run", *more))
    net = load_checkpoint(tmp_path / "run" / "last.pkl")["net"]
    assert all(torch.equal(net[name], value) for name, value in seen[0].items())
