"""Views: what they change of an image, what they leave, and that every candidate sees the same."""

import numpy as np
import pytest
import torch
from torch import nn

from networks import ghost_network
from selection.views import DROPPED, GAMMAS, MIXED, NOISE, SAMPLE, VIEWS, dropped_features, grey_range, mixed, sampled
from tests.tools.networks_here import NETWORKS_HERE

SHAPES = [(2, 1, 32, 24), (3, 2, 20, 31), (2, 1, 6, 18, 16), (1, 3, 5, 9, 33)]


def noisy(shape, seed=0):
    """Images with grey levels of their own in each image and channel."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.arange(1.0, 1 + shape[0] * shape[1]).view(*shape[:2], *[1] * (len(shape) - 2))
    return 100 * level + 7 * level * torch.rand(shape, generator=generator)


def seen(view, image, seed=0):
    return view.image(image, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", VIEWS)
def test_what_is_undone_lies_on_the_pixels_of_the_image(name, shape):
    """Each pixel has a value of its own, so what lies on another pixel has nothing to do with it."""
    image, view = noisy(shape), VIEWS[name]
    undone = view.undo(seen(view, image))
    assert undone.shape == image.shape
    assert undone.dtype == image.dtype
    for one, other in zip(image.flatten(0, 1), undone.flatten(0, 1), strict=True):
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.9


def test_a_flip_is_one_and_nothing_else():
    image = noisy((2, 1, 4, 5))
    flipped = seen(VIEWS["flip"], image)
    assert torch.equal(flipped, torch.from_numpy(image.numpy()[..., ::-1].copy()))
    assert torch.equal(VIEWS["flip"].undo(flipped), image)


@pytest.mark.parametrize("shape", [(2, 2, 160, 150), (1, 2, 20, 40, 30)])
def test_noise_has_its_deviation_in_each_image_and_channel(shape):
    image = noisy(shape)
    noise = (seen(VIEWS["noise"], image) - image).flatten(2).double()
    span = [np.percentile(one, 99) - np.percentile(one, 1) for one in image.flatten(0, 1).flatten(1)]
    deviation = NOISE * torch.tensor(span, dtype=torch.float64).view(shape[:2])
    torch.testing.assert_close(noise.std(2), deviation, rtol=0.03, atol=0)
    assert (noise.mean(2).abs() < 0.05 * deviation).all()
    assert np.corrcoef(noise.flatten(0, 1))[0, 1:].max() < 0.05  # no two channels have the same


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "gamma"), [("gamma_low", GAMMAS[0]), ("gamma_high", GAMMAS[1])])
def test_gamma_keeps_the_least_and_the_largest_grey_level(name, gamma, shape):
    image = noisy(shape) - 300
    found = seen(VIEWS[name], image).flatten(2).double()
    flat = image.flatten(2).double()
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    torch.testing.assert_close(found, ((flat - low) / (high - low)) ** gamma * (high - low) + low, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.amin(2, keepdim=True), low)
    torch.testing.assert_close(found.amax(2, keepdim=True), high)


@pytest.mark.parametrize("name", VIEWS)
def test_an_image_of_one_grey_level_stays_as_it_is(name):
    for level in (0.0, -3.5, 1e30):
        image = torch.full((2, 1, 6, 5), level)
        assert torch.equal(seen(VIEWS[name], image), image)


@pytest.mark.parametrize("name", VIEWS)
def test_the_same_seed_gives_the_same_view(name):
    image, view = noisy((2, 1, 9, 8)), VIEWS[name]
    assert torch.equal(seen(view, image, 5), seen(view, image, 5))
    assert torch.equal(seen(view, image, 5), seen(view, image, 6)) == (name != "noise")


# ------------------------------------------------------------------------------------------- grey levels


def test_the_range_is_that_of_the_percentiles():
    image = noisy((2, 3, 31, 40))
    for found, percent in zip(grey_range(image), (1, 99), strict=True):
        expected = np.percentile(image.flatten(2), percent, axis=2)
        np.testing.assert_allclose(found.numpy(), expected[..., None, None], rtol=1e-5)


@pytest.mark.parametrize("shape", [(512, 512), (512, 320), (300, 200), (16, 128, 128)])
def test_the_range_sees_every_column(shape):
    """Of large images a sample is taken; where its step divided the width, all of it lay in the same few columns."""
    for first in range(8):
        image = torch.zeros(1, 1, *shape)
        image[..., 3 + first : 11 + first] = 1  # over 1 % of the pixels, whatever the width
        low, high = grey_range(image)
        assert (low.item(), high.item()) == (0, 1)


@pytest.mark.parametrize("pixels", [1, 2, SAMPLE, 2 * SAMPLE - 1, 2 * SAMPLE, 30 * 819, 65536, 512 * 512, 30030 * 64])
def test_a_sample_is_of_about_the_size_that_it_should_have(pixels):
    found = sampled(torch.arange(pixels).expand(2, 1, pixels))
    assert min(pixels, SAMPLE / 2) <= found.shape[-1] <= 2 * SAMPLE
    assert found.unique().numel() == found.shape[-1]


# ---------------------------------------------------------------------------------------------- features


class Maps(nn.Module):
    """A network whose maps and logits are its image, each channel a class."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Identity()

    def forward(self, image):
        return self.classifier(image)


@pytest.mark.parametrize("shape", [(4, 64, 3, 2), (2, 50, 2, 3, 2)])
def test_dropped_features_are_whole_channels_and_keep_the_mean(shape):
    net, kept = Maps(), []
    for seed in range(100):
        with dropped_features(net, seed):
            maps = net(torch.ones(shape)).flatten(2)
        assert torch.equal(maps, maps[..., :1].expand_as(maps))
        kept.append(maps[..., 0])
    kept = torch.stack(kept)
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / (1 - DROPPED)]))
    assert abs((kept == 0).float().mean() - DROPPED) < 0.01
    assert abs(kept.mean() - 1) < 0.01
    assert not torch.equal(kept[0], kept[1])  # each batch loses others
    assert not torch.equal(kept[0, 0], kept[0, 1])  # and so does each image


def test_features_are_dropped_alike_for_the_same_number_and_no_longer_than_asked():
    image, net = torch.rand(2, 32, 3, 3), Maps()
    with dropped_features(net, 7):
        first, again = net(image), net(image)
    with dropped_features(net, 8):
        other = net(image)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(net(image), image)

    with pytest.raises(OSError), dropped_features(net, 7):
        raise OSError
    assert torch.equal(net(image), image)


def test_maps_of_half_the_precision_keep_it():
    image, net = torch.rand(2, 32, 3, 3, dtype=torch.bfloat16), Maps()
    with dropped_features(net, 0):
        assert net(image).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NETWORKS_HERE)
def test_every_network_can_lose_features(name):
    """Its classifier is given maps (B, *, …) first, in a forward pass too."""
    net = ghost_network(name, 3, 3).eval()
    image = torch.empty(2, 3, *[64] * net.axes, device="meta")
    shapes = []
    with dropped_features(net, 0):
        handle = net.classifier.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
        assert net(image).shape == (2, 3, *image.shape[2:])
        handle.remove()
    assert [shape[0] for shape in shapes] == [2]


# ---------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mixture_is_mostly_of_its_image(shape):
    image = noisy(shape)
    mixture, partner = mixed(image)
    other = image[[*range(1, len(image)), 0]] if len(image) > 1 else image.flip(-1)
    torch.testing.assert_close(mixture, MIXED * image + (1 - MIXED) * other)
    assert torch.equal(partner(image), other)
    labels = (image[:, :1] > image[:, :1].mean()).long()
    assert torch.equal(partner(labels), (other[:, :1] > image[:, :1].mean()).long())
