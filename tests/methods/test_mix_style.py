"""Styles of maps, mixed between images: the formula written out in float64, and a network that is as it was without."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import methods.mix_style as module
from datasets.streams import Batch
from networks import build_network
from processes.errors import UserError
from tests.methods.test_pseudo_label import build, images
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"


def make(*flags, network="UNet:nG=2", n_class=2):
    torch.manual_seed(0)
    net = build_network(network, 1, n_class)
    return build(*flags, method="mix_style", losses=CROSS_ENTROPY, net=net, n_class=n_class)


def batch_of(shape=(16, 24), n_class=2):
    image, label = images(4, 1, shape, n_class)
    return Batch(image, [label], [None], torch.arange(4))


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5)])
def test_a_map_takes_on_the_mixed_mean_and_deviation_of_two_images(shape):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, *shape, generator=generator) * 3 + torch.arange(3.0).view(3, 1, *[1] * len(shape))
    order, share = torch.tensor([2, 0, 1]), torch.tensor([0.0, 0.3, 1.0])
    found, expected = module.mixed(maps, module.Mixing(order, share)), torch.empty_like(maps, dtype=torch.float64)
    for b in range(3):
        for c in range(2):
            own, other = maps[b, c].double(), maps[order[b], c].double()
            deviation, of_other = ((each.var(correction=0) + 1e-6).sqrt() for each in (own, other))
            lam = float(share[b])
            width, middle = lam * deviation + (1 - lam) * of_other, lam * own.mean() + (1 - lam) * other.mean()
            expected[b, c] = (own - own.mean()) / deviation * width + middle
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], maps[2], rtol=1e-5, atol=1e-5)
    assert found.to(torch.bfloat16).dtype == module.mixed(maps.bfloat16(), module.Mixing(order, share)).dtype


def test_no_gradient_flows_through_a_style():
    maps = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module.mixed(maps, module.Mixing(torch.tensor([1, 0]), torch.zeros(2)))[0].sum().backward()
    deviations = (maps.detach().var((2, 3), correction=0) + 1e-6).sqrt().flatten()
    torch.testing.assert_close(maps.grad[0], torch.full((1, 4, 4), float(deviations[1] / deviations[0])))
    assert not maps.grad[1].any()


def test_a_step_learns_from_mixed_maps_and_the_network_is_as_it_was_without():
    method, batch = make("--style_share", "1", "--style_alpha", "5"), batch_of()
    before, twin = copy.deepcopy(method.net), copy.deepcopy(method.net)
    terms, _ = method.step({"target": batch})
    plain = F.cross_entropy(before(batch.image), batch.targets[0])
    assert terms["tot"].item() != pytest.approx(plain.item(), rel=1e-4)
    mixings = method.mixings(4, torch.device("cpu"))
    assert None not in mixings
    for block, mixing in zip(twin.encoder, mixings, strict=False):
        block.register_forward_hook(lambda _, __, maps, mixing=mixing: module.mixed(maps, mixing))
    assert terms["tot"].item() == pytest.approx(F.cross_entropy(twin(batch.image), batch.targets[0]).item(), rel=1e-5)
    method.net.eval()
    again = build_network("UNet:nG=2", 1, 2)
    again.load_state_dict(method.net.state_dict())
    torch.testing.assert_close(again.eval()(batch.image), method.net(batch.image))


def test_how_often_and_how_much_is_mixed():
    method, kept = make("--style_share", "0.3"), []
    for seed in range(200):
        method.step_seed = seed
        mixings = method.mixings(8, torch.device("cpu"))
        assert all(sorted(mixing.order.tolist()) == list(range(8)) for mixing in mixings if mixing)
        kept += mixings
    mixed = torch.stack([mixing.share for mixing in kept if mixing])
    assert 0.23 < len(mixed) / len(kept) < 0.37
    assert mixed.mean().item() == pytest.approx(0.5, abs=0.06)
    assert ((mixed < 0.1) | (mixed > 0.9)).float().mean() > 0.7  # Beta(0.1, 0.1) has nearly all at its ends


@pytest.mark.parametrize(
    ("network", "kinds"), [("UNet:nG=2", [nn.Sequential] * 2), ("Dimwit", [nn.BatchNorm2d]), ("ENet:kernels=4", None)]
)
def test_which_maps_are_mixed(network, kinds):
    blocks = module.first_blocks(build_network(network, 1, 2))
    assert [type(block) for block in blocks] == (kinds or [nn.BatchNorm2d] * 2)
    make(network=network).step({"target": batch_of()})


def test_no_step_looks_at_a_value():
    method, batch = make("--optimiser", "sgd"), batch_of()
    with Watch():
        method.step({"target": batch})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--style_share", "1.5"), "--style_share is 1.5"),
        (("--style_alpha", "0"), "--style_alpha is 0"),
        (("--batch_size", "1"), "2 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        make(*flags)


def test_a_network_without_norms_or_encoder_is_refused():
    net = nn.Conv2d(1, 2, 1)
    net.n_blocks = 0
    with pytest.raises(UserError, match="has neither"):
        module.first_blocks(net)
