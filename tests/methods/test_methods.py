"""Over METHODS: what a step moves, what it may see, and what it takes to go on."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS
from torch import nn

from dataloader import Reading, open_data
from engine.arguments import get_args
from main import build_objective, demand_of
from methods.base import METHODS
from methods.optimisers import learning_rate
from nets.base import values_per_channel
from networks import build_network
from processes.errors import UserError
from tests.modes import Watch
from utils import seed_everything, settings_of

BARE = [
    "--target_dataset",
    "x",
    "--workdir",
    "x",
    "--n_class",
    "2",
    "--grp_regex",
    "x",
    "--target_folders",
    "x",
    "--target_losses",
    "x",
]
ENTROPY = "[('SelfEntropy', {}, 1)]"
UNIFORM = "[('EntKLProp', {}, 'ConstantBounds', {'values': [400, 80]}, 'soft_size', 1)]"


def make(sites, method, losses, *flags, network="UNet:nG=4"):
    """The method on a small network, and the streams that it consumes."""
    kind = METHODS[method]
    argv = f"--target_dataset {sites[1]} --workdir unused --n_class 2 --network {network} --method {method}".split()
    argv += ["--target_folders", FOLDERS, "--grp_regex", r"(Case\d+)_(\d+)", "--target_losses", losses, "--cpu"]
    argv += ["--l_rate", "1e-2", *flags] + (["--model_weights", "given"] if kind.needs_weights else [])
    argv += kind.example
    if "source" in kind.streams:
        argv += ["--source_dataset", str(sites[0])]
    if "unlabelled" in kind.streams:
        argv += ["--unlabelled_dataset", str(sites[0]), "--unlabelled_split", "train", "--warmup_start", "0"]
    args = get_args(argv)
    seed_everything(0)
    loss = build_objective(args)
    streams, _ = open_data(demand_of(args), settings_of(Reading, vars(args)), loss.bounds)
    made = kind(build_network(network, 1, 2), loss, settings_of(kind.Settings, vars(args)))
    made.meet(streams)
    return made, streams


def train(method, streams, epochs=1):
    totals = []
    for epoch in range(epochs):
        method.begin_epoch(epoch)
        # a second stream may have other batches, and more
        for step, found in enumerate(zip(*(stream.epoch(epoch) for stream in streams.values()), strict=False)):
            method.begin_step(epoch, seed=step)
            batches = {name: batch for name, (batch, _) in zip(streams, found, strict=True)}
            terms, logits = method.step(batches)
            assert set(terms) == set(method.columns)
            assert all(not term.requires_grad for term in terms.values())
            if method.segments:
                assert logits.shape == (len(batches[method.streams[0]].image), 2, 24, 20)
            totals.append(terms["tot"].item())
    return totals


def moved(method, streams, **more):
    """Names of the parameters and buffers that training changed."""
    before = copy.deepcopy(method.net.state_dict())
    train(method, streams, **more)
    return {name for name, value in method.net.state_dict().items() if not torch.equal(value, before[name])}


def losses_of(kind):
    """Losses that a method can be tried with: those of images without labels where it learns from nothing else."""
    if kind is METHODS["online"]:
        return ENTROPY
    return CROSS_ENTROPY if kind.labelled or not issubclass(kind, METHODS["sfda"]) else UNIFORM


LEARNING = [(name, losses_of(METHODS[name])) for name in METHODS if METHODS[name].streams and METHODS[name].segments]
LEARNING.append(("sfda", ENTROPY))
PRETRAINING = [(name, CROSS_ENTROPY) for name in METHODS if METHODS[name].streams and not METHODS[name].segments]


@pytest.mark.parametrize(("name", "losses"), LEARNING + PRETRAINING)
def test_the_fewest_values_that_a_batch_norm_sees_are_foreseen(sites, name, losses):
    """The last batch of an epoch is the smallest: 16 slices by 5."""
    method, streams = make(sites, name, losses, *([] if name == "contrastive_global" else ["--batch_size", "5"]))
    rows = {stream: min(map(len, found.sampler(torch.Generator()))) for stream, found in streams.items()}
    method.set_modes()
    shape = (method.images_at_once(rows), *streams["target"].slices.shape)
    foreseen = values_per_channel(method.module, shape)
    seen = {}

    def count(norm, images):
        values = images[0].numel() // images[0].shape[1]
        seen[norm] = min(values, seen.get(norm, values))

    norms = {part: part_name for part_name, part in method.module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for norm in norms:
        norm.register_forward_pre_hook(count)
    train(method, streams)
    assert foreseen == {norms[norm]: values for norm, values in seen.items() if norm.training}


@pytest.mark.parametrize(("name", "losses"), LEARNING)
def test_the_loss_falls_and_everything_moves(sites, name, losses):
    method, streams = make(sites, name, losses)
    parameters = {name for name, parameter in method.net.named_parameters() if parameter.requires_grad}
    assert parameters <= moved(method, streams)
    totals = train(method, streams, epochs=4)
    assert sum(totals[-4:]) < sum(totals[:4])


@pytest.mark.parametrize(("name", "losses"), LEARNING + PRETRAINING)
def test_state_goes_round(sites, name, losses):
    method, streams = make(sites, name, losses)
    train(method, streams)
    other, _ = make(sites, name, losses)
    other.net.load_state_dict(method.net.state_dict())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for each in (method, other):
        train(each, streams)
    assert all(torch.equal(a, b) for a, b in zip(method.net.parameters(), other.net.parameters(), strict=True))


@pytest.mark.parametrize("network", ["UNet:nG=4", "ENet", "ResidualUNet:nG=4", "Dimwit"])
def test_adaptation_runs_on_every_network(sites, network):
    method, streams = make(sites, "sfda", UNIFORM, network=network)
    assert moved(method, streams)


def test_tent_moves_batch_norm_alone(sites):
    method, streams = make(sites, "sfda", ENTROPY, "--trainable", "bn")
    norms = {f"{name}." for name, m in method.net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    changed = moved(method, streams)
    assert any(name.endswith("weight") for name in changed)
    assert all(any(name.startswith(norm) for norm in norms) for name in changed)


def test_tent_moves_the_instance_norms_of_a_network_of_volumes(sites):
    flat, _ = make(sites, "sfda", ENTROPY, "--trainable", "bn")
    net = build_network("UNet3D:width=2,depth=1", 1, 2)
    METHODS["sfda"](net, flat.loss, flat.settings)
    norms = [part for part in net.modules() if isinstance(part, nn.InstanceNorm3d)]
    learnt = {id(parameter) for norm in norms for parameter in norm.parameters()}
    assert learnt == {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
    assert len(learnt) == 2 * len(norms) > 0


def test_shot_keeps_the_classifier(sites):
    method, streams = make(sites, "sfda", UNIFORM, "--trainable", "features")
    classifier = {id(parameter) for parameter in method.net.classifier.parameters()}
    frozen = {name for name, parameter in method.net.named_parameters() if id(parameter) in classifier}
    changed = moved(method, streams)
    assert frozen
    assert not frozen & changed
    assert {name for name, _ in method.net.named_parameters()} - frozen <= changed


@pytest.mark.parametrize("flags", [("--trainable", "none"), ("--l_rate", "0")])
def test_the_control_moves_statistics_alone(sites, flags):
    method, streams = make(sites, "sfda", UNIFORM, *flags)
    changed = moved(method, streams)
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_frozen_statistics_stay(sites):
    method, streams = make(sites, "sfda", UNIFORM, "--bn_stats", "freeze")
    assert not any("running_" in name for name in moved(method, streams))


def test_refreshed_statistics_are_the_average_of_the_batches(sites):
    method, streams = make(sites, "sfda", ENTROPY, "--trainable", "none", "--bn_stats", "refresh", network="Dimwit")
    norm = next(m for m in method.net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    means = []
    norm.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean((0, 2, 3)).detach()))
    train(method, streams)
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-6)


def test_adaptation_refuses_a_loss_that_needs_ground_truth(sites):
    with pytest.raises(UserError, match="CrossEntropy needs it"):
        make(sites, "sfda", CROSS_ENTROPY)
    with pytest.raises(UserError, match="EntKLProp needs it"):
        make(sites, "sfda", "[('EntKLProp', {'curi': False}, 1)]")


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs_weights])
def test_a_method_that_adapts_refuses_random_weights(name):
    with pytest.raises(UserError, match="give --model_weights"):
        get_args([*BARE, "--method", name])


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].streams])
@pytest.mark.parametrize("rule", [("--schedule",), ("--lr_rule", "legacy")])
def test_a_learning_rate_that_follows_the_target_s_labels_is_refused_where_none_are_learnt_from(name, rule):
    argv = [*BARE, "--method", name, "--model_weights", "given", "--source_dataset", "given", *rule]
    if "target" in METHODS[name].labelled:
        assert get_args(argv).lr_rule == "legacy"
        return
    with pytest.raises(UserError, match="--schedule.* follows the best epoch, which the target's labels tell"):
        get_args(argv)


def test_the_flags_of_another_method_are_refused():
    with pytest.raises(UserError, match="unrecognized arguments: --trainable bn"):
        get_args([*BARE, "--trainable", "bn"])


def test_learning_rate_decays_by_epochs_and_warms_up(sites):
    method, _ = make(sites, "supervised", CROSS_ENTROPY)
    decaying = replace(method.settings, lr_decay=0.5, lr_decay_epoch=20)
    assert [learning_rate(epoch, decaying, 1.0) for epoch in (0, 19, 20, 40)] == [1, 1, 0.5, 0.25]
    warmed = replace(decaying, n_warmup=4)
    assert [learning_rate(epoch, warmed, 1.0) for epoch in (0, 1, 4)] == pytest.approx([0.2, 0.4, 1])
    assert learning_rate(40, replace(warmed, lr_decay=0), 1.0) == 1


def test_adamw_is_adamw(sites):
    assert isinstance(make(sites, "supervised", CROSS_ENTROPY, "--adamw")[0].optimiser, torch.optim.AdamW)


# -- optimisers and learning rates -------------------------------------------------------------------------------


def test_the_poly_rate_falls_step_by_step_to_zero(sites):
    method, _ = make(sites, "supervised", CROSS_ENTROPY, "--lr_rule", "poly", "--n_epoch", "10")
    method.begin_epoch(3)
    method.begin_step(3.5)
    assert method.moving()["lr"] == pytest.approx(1e-2 * (1 - 0.35) ** 0.9)
    method.rates.learning = replace(method.settings, poly_epochs=20)
    method.begin_step(3.5)
    assert method.moving()["lr"] == pytest.approx(1e-2 * (1 - 3.5 / 20) ** 0.9)


def test_the_published_rate_halves_after_the_first_epoch_and_at_multiples_of_the_best_plus_20(sites):
    method, _ = make(sites, "supervised", CROSS_ENTROPY, "--schedule")
    rates, best = [], 0
    for epoch in range(52):
        method.begin_epoch(epoch)
        rates.append(method.moving()["lr"] / 1e-2)
        best = 5 if epoch >= 5 else best
        method.rates.end_epoch(epoch, best)
    assert rates[0] == 1
    assert set(rates[1:26]) == {0.5}
    assert set(rates[26:51]) == {0.25}
    assert rates[51] == 0.125
    other, _ = make(sites, "supervised", CROSS_ENTROPY, "--schedule")
    other.load_state_dict(method.state_dict())
    other.begin_epoch(52)
    assert other.moving()["lr"] == pytest.approx(0.125e-2)


def test_sgd_and_betas_reach_the_optimiser(sites):
    sgd = make(sites, "supervised", CROSS_ENTROPY, "--optimiser", "sgd", "--momentum", "0.8")[0].optimiser
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.8
    adam = make(sites, "supervised", CROSS_ENTROPY, "--betas", "0.9", "0.99")[0].optimiser
    assert tuple(adam.param_groups[0]["betas"]) == (0.9, 0.99)


@pytest.mark.parametrize(
    "wrong", [("--betas", "0.9", "1"), ("--lr_rule", "poly", "--poly_epochs", "3", "--n_epoch", "4")]
)
def test_rates_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="--betas|--poly_epochs"):
        get_args([*BARE, *wrong])


@pytest.mark.parametrize(("name", "losses"), [("consistency", ENTROPY), ("prototype_alignment", UNIFORM)])
def test_no_step_looks_at_a_value(sites, name, losses):
    """Nor waits for a device; Adam's fused step is not python's to watch."""
    method, streams = make(sites, name, losses, "--optimiser", "sgd")
    method.begin_epoch(0)
    with Watch():
        for step, (batch, _) in enumerate(streams["target"].epoch(0)):
            method.begin_step(0, seed=step)
            method.step({"target": batch})
