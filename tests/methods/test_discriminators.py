"""The discriminator of output-space adaptation, and the weights of networks beside the network."""

import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS
from torch import nn

from engine.arguments import get_args
from methods.base import METHODS
from methods.discriminators import FCDiscriminator
from methods.objective import LossSum
from networks import build_network
from processes.errors import UserError
from utils import settings_of


@pytest.mark.parametrize(
    ("stride", "size", "answer"),
    [(2, (32, 32), (1, 1)), (2, (63, 129), (1, 4)), (1, (6, 6), (1, 1)), (1, (9, 40), (4, 35))],
)
def test_one_logit_a_patch(stride, size, answer):
    assert FCDiscriminator(3, nF=2, stride=stride)(torch.rand(2, 3, *size)).shape == (2, 1, *answer)


def test_it_is_the_published_one():
    net = FCDiscriminator(19)
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert {(conv.kernel_size, conv.stride, conv.padding) for conv in convs} == {((4, 4), (2, 2), (1, 1))}
    # Four activations, none after the last; no normalisation.
    assert [layer.negative_slope for layer in net if isinstance(layer, nn.LeakyReLU)] == [0.2] * 4
    assert len(net) == 9
    weights = 16 * (19 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert sum(param.numel() for param in net.parameters()) == weights + 64 + 128 + 256 + 512 + 1


@pytest.mark.parametrize("stride", [1, 2])
def test_it_learns_which_site_a_prediction_is_from(stride):
    torch.manual_seed(0)
    net, images = FCDiscriminator(2, nF=4, stride=stride), torch.rand(4, 2, 32, 32)
    images[:2] *= 0.2
    site = torch.tensor([0.0, 0, 1, 1])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        logits = net(images).mean((1, 2, 3))
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, site).backward()
        optimiser.step()
    assert torch.equal((net(images).mean((1, 2, 3)) > 0).float(), site)


@pytest.mark.parametrize(
    ("stride", "size", "match"),
    [
        (2, (31, 64), "at least 32 pixels.* has 31 x 64. Give --d_stride 1"),
        (2, (64, 31), "64 x 31"),
        (1, (5, 5), "6 pixels.* 5 x 5. Give larger images"),
    ],
)
def test_small_images_are_refused(stride, size, match):
    with pytest.raises(UserError, match=match):
        FCDiscriminator(1, nF=1, stride=stride)(torch.rand(1, 1, *size))


@pytest.mark.parametrize(
    ("method", "flags", "match"),
    [
        ("adversarial", ("--d_width", "64"), "The discriminator of --method adversarial has .* GiB .* --d_width"),
        ("contrastive_global", ("--head_grid", "64"), "The head of --method contrastive_global has .* GiB .* widths"),
    ],
)
def test_networks_beside_the_network_are_counted_before_they_are_made(monkeypatch, method, flags, match):
    """On a machine of 4 MiB: 64 channels are 11 MB of weights, a grid of 64 is 268 MB."""
    argv = "--target_dataset x --source_dataset x --workdir x --n_class 2 --batch_size 8 --cpu --grp_regex (a)_(b)"
    words = [*argv.split(), "--target_folders", FOLDERS, "--target_losses", CROSS_ENTROPY, "--method", method, *flags]
    args = get_args(words)
    net, kind = build_network("UNet:nG=2", 1, 2), METHODS[method]
    monkeypatch.setattr("os.sysconf", lambda name: 2**11)
    with pytest.raises(UserError, match=match):
        kind(net, LossSum([]), settings_of(kind.Settings, vars(args)))
