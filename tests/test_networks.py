"""The networks: every one that is registered, then what only one of them promises."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS, ResidualUNet, UNet, build_network, unpool
from utils import UserError

SIZES = [(1, 1), (2, 9), (7, 1), (16, 32), (73, 47)]
every_network = pytest.mark.parametrize("name", NETWORKS)


def small(name, in_channels=1, n_class=2, seed=0, **params):
    """The network with every width at 4, in eval mode: 1x1 maps leave nothing to normalise over."""
    keywords = [p for p in inspect.signature(NETWORKS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    least = {"depth": 50, "normalise": "none"}
    chosen = {p.name: least.get(p.name, 4 if type(p.default) is int else p.default) for p in keywords}
    torch.manual_seed(seed)
    return NETWORKS.build(name, in_channels, n_class, **chosen | params).eval()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


def norms(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


# -------------------------------------------------------------------------------------- over the registry


@every_network
@pytest.mark.parametrize(("in_channels", "n_class"), [(1, 2), (3, 5), (9, 19)])
def test_logits_have_the_size_of_the_image(name, in_channels, n_class):
    net = small(name, in_channels, n_class)
    for width, height in SIZES:
        with torch.no_grad():
            logits = net(noise(2, in_channels, width, height))
        assert logits.shape == (2, n_class, width, height)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@every_network
def test_padding_repeats_the_far_edges(name):
    net = small(name, 2)
    image = noise(1, 2, 13, 22)
    margins = [(0, 0), (0, 0), (0, -13 % net.multiple), (0, -22 % net.multiple)]
    padded = torch.from_numpy(np.pad(image.numpy(), margins, mode="edge"))
    with torch.no_grad():
        torch.testing.assert_close(net(image), net.logits(padded)[..., :13, :22], rtol=0, atol=0)


@every_network
def test_divisible_size_is_not_padded(name):
    net = small(name)
    image = noise(1, 1, 2 * net.multiple, 3 * net.multiple)
    assert net.pad(image) is image
    with torch.no_grad():
        assert torch.equal(net(image), net.logits(image))


@every_network
def test_gradient_reaches_every_parameter(name):
    net = small(name, 3, 4)
    net(noise(2, 3, 32, 48)).square().sum().backward()
    moving = {key: param for key, param in net.named_parameters() if param.requires_grad}
    assert [key for key, param in moving.items() if param.grad is None or not param.grad.any()] == []


@every_network
def test_training_step_lowers_a_loss(name):
    net = small(name, 1, 3).train()
    image = noise(2, 1, 32, 32)
    target = (image[:, 0] > 0).long()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.001)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(net(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_network
def test_classifier_is_the_last_layer(name):
    net = small(name, 1, 7)
    last = convolutions(net.classifier)
    assert convolutions(net)[-len(last) :] == last
    assert {conv.out_channels for conv in last} == {7}
    seen = []
    net.classifier.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    image = noise(1, 1, net.multiple, net.multiple)
    logits = net(image)
    torch.testing.assert_close(logits, seen[0].expand_as(logits))  # of DeepLab it is one pixel, upsampled


@every_network
def test_batch_norm_is_there_and_follows_the_batch(name):
    net = small(name)
    before = [norm.running_mean.clone() for norm in norms(net)]
    assert bool(before) == (name != "DeepLabVGG")
    with torch.no_grad():
        net.train()(noise(2, 1, 32, 32))
    assert all(not torch.equal(old, norm.running_mean) for old, norm in zip(before, norms(net), strict=True))


@every_network
def test_state_dict_carries_the_whole_network(name):
    trained, fresh = small(name, seed=0), small(name, seed=1)
    image = noise(2, 1, 32, 32)
    with torch.no_grad():
        trained.train()(image)  # moves the running statistics
        trained.eval()
        assert not torch.equal(trained(image), fresh(image))
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(trained(image), fresh(image))


@every_network
def test_same_seed_same_weights_and_same_training_pass(name):
    first, second, other = small(name, seed=3), small(name, seed=3), small(name, seed=4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert not torch.equal(convolutions(first)[0].weight, convolutions(other)[0].weight)
    passes = []
    for net in (first, second):
        torch.manual_seed(5)  # dropout
        passes.append(net.train()(noise(2, 1, 32, 32)))
    assert torch.equal(*passes)


@every_network
def test_deterministic_algorithms_are_enough(name):
    torch.use_deterministic_algorithms(True)
    try:
        small(name)(noise(1, 1, 17, 17)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@every_network
def test_channels_last_and_autocast(name):
    net, image = small(name, 3), noise(1, 3, 18, 20)
    with torch.no_grad():
        plain = net(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = net(image)
        last = net.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
    assert low.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; what is asked here is that nothing but rounding differs.
    assert (low.float() - plain).abs().mean() < 0.1 * plain.abs().mean()


@every_network
def test_initial_weights(name):
    net = small(name)
    for module in [*convolutions(net), *norms(net)]:
        assert module.bias is None or not module.bias.any()
    assert all(0.8 < norm.weight.min() and norm.weight.max() < 1.2 for norm in norms(net))


@every_network
def test_impossible_sizes_are_all_named(name):
    with pytest.raises(UserError, match=r"in_channels=0 \(at least 1\), n_class=1 \(at least 2\)"):
        NETWORKS.build(name, 0, 1)


@every_network
@pytest.mark.parametrize("size", [(32, 48), (37, 45)])
def test_levels_are_logits_of_the_image_s_size(name, size):
    net, image = small(name, 1, 3), noise(2, 1, *size)
    heads = [net.make_head(level + 1) for level in range(len(net.coarser))]
    passes = []
    convolutions(net)[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        fine, *coarse = net.levels(image, heads)
        assert len(passes) == 1
        assert torch.equal(fine, net(image))
        assert torch.equal(net.levels(image, [])[0], fine)
        maps = net.features(image)
        for logits, head, level in zip(coarse, heads, maps[-2::-1], strict=False):
            padded = nn.functional.interpolate(head(level), size=net.pad(image).shape[-2:], mode="bilinear")
            assert torch.equal(logits, padded[..., : size[0], : size[1]])
    assert len(coarse) == len(heads)


@pytest.mark.parametrize("name", ["UNet", "ResidualUNet", "DeepLabV2"])
def test_a_head_learns_and_its_gradient_reaches_the_trunk(name):
    net = small(name, 1, 3)
    head = net.make_head(1)
    net.levels(noise(2, 1, 32, 32), [head])[1].square().sum().backward()
    assert all(param.grad.any() for param in head.parameters())
    assert convolutions(net)[0].weight.grad.any()
    assert all(param.grad is None for param in net.classifier.parameters())


@every_network
def test_a_level_that_is_not_there_is_refused(name):
    net = small(name)
    most = len(net.coarser) + 1
    with pytest.raises(UserError, match=f"{type(net).__name__} has {most} levels? .*--lambda_adv") as caught:
        net.make_head(most)
    assert (f"at most {most} weights" in str(caught.value)) == (most > 1)


@every_network
def test_parameter_groups_hold_every_trainable_parameter_once(name):
    net = small(name)
    next(net.parameters()).requires_grad_(False)
    grouped = [id(param) for params, _ in net.parameter_groups() for param in params]
    assert sorted(grouped) == sorted(id(param) for param in net.parameters() if param.requires_grad)
    rates = {id(param): rate for params, rate in net.parameter_groups() for param in params}
    assert {rates[id(param)] for param in net.classifier.parameters()} == {net.head_rate}


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("DeepLab")])
def test_what_has_no_backbone_says_so(name, tmp_path):
    with pytest.raises(UserError, match=r"has no pre-trained backbone; DeepLabV2 .*--backbone_weights"):
        small(name).load_backbone(tmp_path / "weights.pth")


# ---------------------------------------------------------------------------------------------- single ones


def test_unet_is_the_published_one():
    net = UNet(1, 2)
    assert sum(param.numel() for param in net.parameters()) == 4_678_775
    slopes = [module.weight.numel() for module in net.modules() if isinstance(module, nn.PReLU)]
    # Two each in three encoder levels, three upsamplings and three decoder levels; three in the bridge.
    assert slopes == [1] * 21


def test_unet_parameters_follow_channels_and_classes():
    # Two more channels: 2 x 9 weights in each of the 32 first filters. Three more classes: 32 weights, 1 bias.
    assert sum(param.numel() for param in UNet(3, 5).parameters()) == 4_678_775 + 2 * 9 * 32 + 3 * 33


def test_unet_initial_statistics():
    torch.manual_seed(0)
    net = UNet(1, 2)
    widest = max(convolutions(net), key=lambda conv: conv.weight.numel())
    n_out, n_in = widest.weight.shape[:2]
    assert widest.weight.std().item() == pytest.approx((2 / (9 * (n_in + n_out))) ** 0.5, rel=0.01)
    scales = torch.cat([norm.weight.detach() for norm in norms(net)])  # 2816 of them
    assert scales.mean().item() == pytest.approx(1, abs=0.002)
    assert scales.std().item() == pytest.approx(0.02, rel=0.06)


def test_unet_features_go_from_coarse_to_fine():
    net = small("UNet", 1, 3)
    with torch.no_grad():
        maps = net.features(noise(2, 1, 30, 41))
        assert [tuple(level.shape) for level in maps] == [
            (2, 32, 4, 6),
            (2, 16, 8, 12),
            (2, 8, 16, 24),
            (2, 4, 32, 48),
        ]
        assert torch.equal(net.classifier(maps[-1])[..., :30, :41], net(noise(2, 1, 30, 41)))


@pytest.mark.parametrize("name", ["UNet", "ResidualUNet"])
def test_each_decoder_level_sees_its_skip(name):
    net, outputs = small(name), []
    for up in net.up:  # silenced, so that only the skip can tell the two images apart
        up.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    for level in net.decoder:
        level.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    for seed in (1, 2):
        net(noise(1, 1, 32, 32, seed=seed))
    levels = len(net.decoder)
    assert len(outputs) == 2 * levels
    assert all(not torch.equal(*pair) for pair in zip(outputs[:levels], outputs[levels:], strict=True))


def test_residual_unet_adds_its_skips():
    # Concatenation would double the input of each first decoder convolution.
    widths = [level[0][0].in_channels for level in ResidualUNet(1, 2, nG=4).decoder]
    assert widths == [32, 16, 8, 4]


def test_unpool_puts_the_maxima_back():
    plane = torch.tensor([[[[1.0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0], [4, 0, 0, 5]]]])
    pooled, where = nn.functional.max_pool2d(plane, 2, return_indices=True)
    expected = plane.clone()
    expected[0, 0, 0, 0] = 0  # was not the largest of its four
    assert torch.equal(unpool(pooled, where), expected)
    image = noise(2, 3, 6, 10)
    pooled, where = nn.functional.max_pool2d(image, 2, return_indices=True)
    assert torch.equal(unpool(pooled, where), nn.functional.max_unpool2d(pooled, where, 2))


def test_enet_drops_whole_channels_in_training_only():
    net, image = small("ENet"), noise(2, 1, 32, 32)
    assert torch.equal(net(image), net(image))
    net.train()
    assert not torch.equal(net(image), net(image))


# ----------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("text", ["UNet:nG=16", " UNet : nG = 16 "])
def test_build_network_reads_parameters(text):
    net = build_network(text, 2, 3)
    assert isinstance(net, UNet)
    assert net.classifier.weight.shape == (3, 16, 1, 1)
    assert convolutions(net)[0].in_channels == 2


def test_build_network_reads_lists_and_several_parameters(monkeypatch):
    def taker(in_channels, n_class, *, a=0, b=()):
        return in_channels, n_class, a, b

    monkeypatch.setitem(NETWORKS._entries, "taker", taker)
    assert build_network("taker:b=[1,2],a=-3", 1, 2) == (1, 2, -3, [1, 2])


def test_dummy_is_dimwit():
    assert type(build_network("Dummy", 1, 2)) is NETWORKS["Dimwit"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("UNte", "no network 'UNte'. Did you mean 'UNet'.*Known: .*ENet"),
        ("", "no network ''"),
        ("UNet:ng=16", "no parameter 'ng'. Did you mean 'nG'"),
        ("UNet:in_channels=3", "no parameter 'in_channels'"),
        ("UNet:", "for example UNet:nG=16"),
        ("UNet:16", "for example UNet:nG=16: cannot read '16'"),
        ("UNet:nG=", "cannot read 'nG='"),
        ("UNet:nG=16,", "for example UNet:nG=16: cannot read 'nG=16,'"),
        ("UNet:nG=16,nG=8", "'nG' is given twice"),
        ("UNet:nG=print(1)", r"for example UNet:nG=16.*print\(1\)"),
        ("UNet:nG=0", r"UNet needs whole numbers.*nG=0 \(at least 1\)"),
        ("UNet:nG=1.5", "nG=1.5"),
        ("UNet:nG=True", "nG=True"),
        ("ENet:kernels=wide", "kernels='wide'"),
    ],
)
def test_build_network_refuses(text, match):
    with pytest.raises(UserError, match=match):
        build_network(text, 1, 2)
