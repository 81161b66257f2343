"""Adversarial adaptation: who moves in which phase, what is seen, and what the two games are."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import CROSS_ENTROPY

from methods.adversarial import SOURCE, TARGET
from methods.discriminators import entropy_map
from processes.errors import UserError
from tests.methods.test_methods import make, train

MULTI = ("--lambda_adv", "1e-2", "2e-3")


def first_batches(streams):
    return {name: next(stream.epoch(0))[0] for name, stream in streams.items()}


def gradients(module):
    return [parameter.grad for parameter in module.parameters()]


@pytest.fixture
def game(sites):
    """The method, and one batch of each stream, before any gradient."""
    method, streams = make(sites, "adversarial", CROSS_ENTROPY, *MULTI)
    method.begin_epoch(0)
    return method, first_batches(streams)


def test_the_target_shows_no_labels_and_the_source_does(game):
    _, batches = game
    assert batches["target"].targets == [None]
    assert batches["source"].targets[0] is not None


def test_the_discriminators_stand_still_while_the_segmenter_learns(game):
    method, batches = game
    method.discriminators.requires_grad_(False)
    method.learn_source(batches["source"])
    assert all(gradient is not None for gradient in gradients(method.module))
    before = [gradient.clone() for gradient in gradients(method.module)]
    method.fool(batches["target"])
    assert gradients(method.discriminators) == [None] * len(gradients(method.discriminators))
    assert not all(torch.equal(a, b) for a, b in zip(before, gradients(method.module), strict=True))


def test_the_segmenter_stands_still_while_the_discriminators_learn(game):
    method, batches = game
    seen = [
        [method.settings.view(logits).detach() for logits in method.predict_levels(batches[name])] for name in batches
    ]
    method.tell_apart(*seen)
    assert gradients(method.module) == [None] * len(gradients(method.module))
    assert all(gradient is not None for gradient in gradients(method.discriminators))


def test_after_a_step_both_have_moved(game):
    method, batches = game
    before = copy.deepcopy([*method.module.parameters(), *method.discriminators.parameters()])
    method.step(batches)
    after = [*method.module.parameters(), *method.discriminators.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.requires_grad for parameter in after)


def test_without_an_adversary_the_segmenter_learns_from_the_source_alone(sites):
    one, streams = make(sites, "adversarial", CROSS_ENTROPY, "--lambda_adv", "0", "--bn_stats", "both")
    two, _ = make(sites, "supervised", CROSS_ENTROPY)
    batches = first_batches(streams)
    for method in (one, two):
        method.begin_epoch(0)
    one.step(batches)
    two.step({"target": batches["source"]})
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_the_running_statistics_are_the_target_s(sites):
    for stats, followed in (("target", ["target"]), ("both", ["source", "target"])):
        method, streams = make(sites, "adversarial", CROSS_ENTROPY, "--bn_stats", stats)
        batches, plain = first_batches(streams), make(sites, "supervised", CROSS_ENTROPY)[0]
        method.settings = replace(method.settings, lambda_adv=[0.0])
        method.optimiser.param_groups[0]["initial_lr"] = 0.0
        for each in (method, plain):
            each.begin_epoch(0)
        method.step(batches)
        for name in followed:
            plain.predict(batches[name])
        buffers = dict(plain.net.named_buffers())
        for name, value in method.net.named_buffers():
            if "running" in name:
                assert torch.equal(value, buffers[name])


def test_the_vanilla_game_is_cross_entropy_and_the_other_least_squares(game):
    method, _ = game
    verdict = torch.tensor([[[[0.3, -1.2]]]])
    p = verdict.sigmoid()
    assert method.settings.error(verdict, SOURCE).item() == pytest.approx(-p.log().mean().item())
    assert method.settings.error(verdict, TARGET).item() == pytest.approx(-(1 - p).log().mean().item())
    method.settings = replace(method.settings, gan="ls")
    assert method.settings.error(verdict, SOURCE).item() == pytest.approx(((verdict - 1) ** 2).mean().item())


def test_a_discriminator_learns_to_tell_and_says_how_well(sites):
    method, _ = make(sites, "adversarial", CROSS_ENTROPY, "--d_l_rate", "1e-2")
    label = torch.arange(24 * 20).view(1, 24, 20) % 2
    sure = torch.stack([1 - label, label], 1).float()
    for _ in range(60):
        method.d_optimiser.zero_grad()
        terms = method.tell_apart([sure], [torch.full_like(sure, 0.5)])
        method.d_optimiser.step()
    assert terms["d1_accuracy"].item() == 1
    assert terms["d1"] < math.log(2)


def test_entropy_maps_add_up_to_the_entropy():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)
    assert torch.allclose(entropy_map(logits).sum(1), -(p * p.log()).sum(1) / math.log(3), atol=1e-6)
    assert torch.allclose(entropy_map(torch.zeros(1, 3, 2, 2)).sum(1), torch.ones(1, 2, 2))


def test_minent_lowers_the_entropy_of_the_target(sites):
    flags = ("--lambda_adv", "0", "--lambda_ent", "1", "--d_input", "entropy")
    method, streams = make(sites, "adversarial", CROSS_ENTROPY, *flags)
    batch = first_batches(streams)["target"]

    def entropy():
        return entropy_map(method.predict(batch)).sum(1).mean().item()

    method.begin_epoch(0)
    before = entropy()
    train(method, streams, epochs=2)
    assert entropy() < before
    assert "entropy" in method.columns


def test_the_game_is_played_in_fp32_under_bf16(sites):
    method, streams = make(sites, "adversarial", CROSS_ENTROPY, *MULTI, "--precision", "bf16")
    method.begin_epoch(0)
    terms, logits = method.step(first_batches(streams))
    assert logits.dtype == torch.bfloat16
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_discriminators_compute_at_the_run_s_precision(sites):
    method, streams = make(sites, "adversarial", CROSS_ENTROPY, *MULTI, "--precision", "bf16")
    seen = []
    for part in method.discriminators.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda part, given, made: seen.append(made.dtype))
    method.begin_epoch(0)
    method.step(first_batches(streams))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("flags", [MULTI, ("--gan", "ls"), ("--d_input", "entropy"), ("--iter_size", "4")])
def test_state_goes_round_in_every_game(sites, flags):
    """Also in the middle of the batches whose gradients make one update: an epoch has four batches and a half."""
    method, streams = make(sites, "adversarial", CROSS_ENTROPY, *flags)
    train(method, streams)
    method.step(first_batches(streams))
    other, _ = make(sites, "adversarial", CROSS_ENTROPY, *flags)
    other.net.load_state_dict(method.net.state_dict())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for each in (method, other):
        train(each, streams)
    for part in ("module", "discriminators"):
        ours, theirs = (getattr(each, part).state_dict() for each in (method, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_accumulated_batches_make_one_update_of_their_mean(sites):
    one, streams = make(sites, "adversarial", CROSS_ENTROPY, "--optimiser", "sgd", "--iter_size", "2", network="Dimwit")
    two, _ = make(sites, "adversarial", CROSS_ENTROPY, "--optimiser", "sgd", network="Dimwit")
    batches = first_batches(streams)
    for method in (one, two):
        method.begin_epoch(0)
    start = copy.deepcopy(one.net.classifier.weight)
    one.step(batches)
    assert torch.equal(one.net.classifier.weight, start)
    one.step(batches)
    two.step(batches)
    assert torch.allclose(one.net.classifier.weight, two.net.classifier.weight, atol=1e-7)


def test_a_level_that_the_network_lacks_is_refused(sites):
    with pytest.raises(UserError, match="ENet has 1 level"):
        make(sites, "adversarial", CROSS_ENTROPY, *MULTI, network="ENet")


@pytest.mark.parametrize("wrong", [("--iter_size", "0"), ("--lambda_adv", "-1")])
def test_flags_out_of_range_are_refused(sites, wrong):
    with pytest.raises(UserError, match=wrong[0]):
        make(sites, "adversarial", CROSS_ENTROPY, *wrong)
