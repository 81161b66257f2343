"""Alignment to prototypes: the loss and the prior against their formulas, what stands still, what is refused."""

import math

import pytest
import torch
from test_methods import ENTROPY, UNIFORM, make, moved, train

from methods.prototype_alignment import alignment, posterior
from nets.probabilities import EPS
from processes.errors import UserError

K, N, C, T = 3, 7, 5, 0.1


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def literally(features, prototypes, prior):
    """Both halves, and the mean of s over the pixels, in loops."""
    f, mu, pi = features.tolist(), prototypes.tolist(), prior.tolist()
    close = [[dot(m, x) / T for x in f] for m in mu]
    cost = [[1 - dot(m, x) / math.sqrt(dot(m, m) * dot(x, x)) for x in f] for m in mu]
    pixels, means = 0.0, [0.0] * K
    for i in range(N):
        weights = [math.exp(close[k][i]) * (pi[k] + EPS) for k in range(K)]
        s = [weight / sum(weights) for weight in weights]
        pixels += sum(cost[k][i] * s[k] for k in range(K)) / N
        means = [mean + each / N for mean, each in zip(means, s, strict=True)]
    classes = 0.0
    for k in range(K):
        weights = [math.exp(each) for each in close[k]]
        classes += pi[k] * sum(cost[k][i] * weights[i] / sum(weights) for i in range(N))
    return pixels / 2, classes / 2, means


def test_it_is_the_formula():
    features, prototypes, prior = drawn(N, C), drawn(K, C, seed=1), torch.tensor([0.7, 0.3, 0.0]).double()
    pixels, classes, means = literally(features, prototypes, prior)
    found = alignment(features, prototypes, prior, T)
    assert [each.item() for each in found] == [pytest.approx(pixels), pytest.approx(classes)]
    assert posterior(prototypes @ features.T, prior, T).mean(1).tolist() == pytest.approx(means)


def test_the_gradient_is_right():
    prior = torch.tensor([0.5, 0.3, 0.2]).double()
    features = drawn(N, C).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(alignment(x, drawn(K, C, seed=1), prior, 1.0)), features)


def aligned(sites, losses=UNIFORM, *flags, network="UNet:nG=4"):
    return make(sites, "prototype_alignment", losses, *flags, network=network)


def test_a_step_is_the_loss_of_what_the_classifier_reads(sites):
    """Of a network that pads its images: the padding counts nowhere."""
    method, streams = aligned(sites, UNIFORM, "--prior_rate", "0", network="ResidualUNet:nG=2")
    batch, _ = next(streams["target"].epoch(0))
    method.begin_epoch(0)
    logits, terms = method.learn(batch)
    rows = method.net.classifier.weight.flatten(1)
    features = method.net.with_features(batch.image)[1]
    assert features.shape[2:] == (32, 32)
    flat = features[:, :, :24, :20].permute(0, 2, 3, 1).reshape(-1, rows.shape[1])
    wanted = alignment(flat, rows, torch.tensor([400 / 480, 80 / 480]), 0.1)
    assert terms["pixels"].item() == pytest.approx(wanted[0].item(), rel=1e-4)
    assert terms["prototypes"].item() == pytest.approx(wanted[1].item(), rel=1e-4)
    assert terms["tot"].item() == pytest.approx(sum(wanted).item(), rel=1e-4)
    bias = method.net.classifier.bias.view(1, -1, 1, 1)
    scores = torch.einsum("kc,bcwh->bkwh", rows, features)[:, :, :24, :20] + bias
    assert torch.allclose(logits, scores, atol=1e-4)


def test_the_prior_begins_as_told_or_uniform_and_follows_what_is_predicted(sites):
    for losses, begun in ((UNIFORM, [400 / 480, 80 / 480]), (ENTROPY, [0.5, 0.5])):
        method, streams = aligned(sites, losses, "--prior_rate", "0.25")
        batch, _ = next(streams["target"].epoch(0))
        start = method.begun_at(batch)
        assert start.tolist() == pytest.approx(begun)
        features, rows = drawn(9, 4).float(), drawn(2, 4, seed=1).float()
        prior = start
        for _ in range(2):
            seen = posterior(rows @ features.T, prior, 0.1).mean(1)
            prior = 0.75 * prior + 0.25 * seen
            assert method.follow(features, rows, start).tolist() == pytest.approx(prior.tolist(), rel=1e-4)


def test_a_class_that_a_batch_is_told_not_to_have_keeps_its_drift(sites):
    method, _ = aligned(sites, UNIFORM, "--prior_rate", "0.5")
    prior = method.follow(drawn(9, 4).float(), drawn(2, 4, seed=1).float(), torch.tensor([1.0, 0.0]))
    assert method.drift[1].item() == 1
    assert prior.isfinite().all()


@pytest.mark.parametrize("trainable", ["features", "bn"])
def test_the_classifier_stands_still(sites, trainable):
    method, streams = aligned(sites, UNIFORM, "--trainable", trainable, "--weight_decay", "0.1")
    classifier = {name for name, _ in method.net.named_parameters() if name.startswith("classifier")}
    changed = moved(method, streams)
    assert not classifier & changed
    assert any(name.endswith("weight") for name in changed)


def test_a_drift_that_cannot_be_is_refused(sites):
    method, streams = aligned(sites)
    train(method, streams)
    assert (method.drift != 1).any()
    for wrong in (torch.ones(3), torch.tensor([1.0, float("nan")]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match="drift of a class prior is none"):
            method.load_state_dict(method.state_dict() | {"drift": wrong})


def test_networks_without_prototypes_and_numbers_out_of_range_are_refused(sites):
    for network in ("ENet", "PooledUNet:nG=2"):
        with pytest.raises(UserError, match="no convolution of one pixel with a row a class"):
            aligned(sites, UNIFORM, network=network)
    for flags in (("--temperature", "0"), ("--prior_rate", "1.5")):
        with pytest.raises(UserError, match="--temperature is above 0, and --prior_rate from 0 to 1"):
            aligned(sites, UNIFORM, *flags)
