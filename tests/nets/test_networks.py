"""The networks: every one that is registered, then what only one of them promises."""

import copy
import functools
import inspect
import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nets import backbones
from nets.backbones import torchvision_models
from nets.base import NETWORKS, check_batch_norms
from nets.deeplab import DeepLabVGG
from nets.enet import PublishedENet, unpool
from networks import PooledUNet, ResidualUNet, UNet, UNet3D, build_network, ghost_network
from processes.errors import UserError
from tests.tools.networks_here import NETWORKS_HERE

SIZES = [(1, 1), (2, 9), (7, 1), (16, 32), (73, 47)]
ENCODERS = ["UNet", "ResidualUNet", "PooledUNet", "UNet3D"]
WITHOUT_BATCH_NORM = ("DeepLabVGG", "UNet3D", "DynamicUNet", "DynamicUNet3D", "MonaiNet", "MonaiNet3D")
every_network = pytest.mark.parametrize("name", NETWORKS_HERE)
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def small(name, in_channels=1, n_class=2, seed=0, **params):
    """A network of its own as `build` makes it, which is made once for several tests."""
    return copy.deepcopy(built(name, in_channels, n_class, seed, **params))


def build(name, in_channels=1, n_class=2, seed=0, **params):
    """The network with every width at 4, in eval mode: 1x1 maps leave nothing to normalise over."""
    keywords = [p for p in inspect.signature(NETWORKS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    least = {"depth": 2 if name == "UNet3D" else 50, "normalise": "none"}
    chosen = {p.name: least.get(p.name, 4 if type(p.default) is int else p.default) for p in keywords}
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        thin_trunks(patch)
        return NETWORKS.build(name, in_channels, n_class, **chosen | params).eval()


def thin_trunks(patch):
    """Gives DeepLab trunks of a tenth of the weights: the same layers, and maps of the same widths (test_backbones.py
    has the true ones)."""
    models, vgg = torchvision_models(), torchvision_models().vgg
    thin = {"D": [width if width in ("M", 512) else 8 for width in vgg.cfgs["D"]]}
    thin["D"][10:13] = thin["D"][14:16] = [16] * 3
    vgg = SimpleNamespace(make_layers=vgg.make_layers, cfgs=thin)
    models = SimpleNamespace(resnet50=functools.partial(models.resnet50, width_per_group=4), vgg=vgg)
    patch.setattr(backbones, "torchvision_models", lambda: models)
    patch.setattr(DeepLabVGG, "width", 32)


built = functools.cache(build)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image_for(net, batch, channels, *size, seed=1):
    """Noise of this size; a network of volumes gets a first axis of 5, for which it has to pad."""
    return noise(batch, channels, *(() if net.axes == 2 else (5,)), *size, seed=seed)


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d)]


def norms(net):
    kinds = nn.BatchNorm2d | nn.InstanceNorm2d | nn.InstanceNorm3d
    return [module for module in net.modules() if isinstance(module, kinds)]


def count(net):
    return sum(param.numel() for param in net.parameters())


# -------------------------------------------------------------------------------------- over the registry


@every_network
@pytest.mark.parametrize(("in_channels", "n_class"), [(1, 2), (3, 5), (9, 19)])
def test_logits_have_the_size_of_the_image(name, in_channels, n_class):
    net = small(name, in_channels, n_class)
    for width, height in SIZES:
        image = image_for(net, 2, in_channels, width, height)
        with torch.no_grad():
            logits = net(image)
        assert logits.shape == (2, n_class, *image.shape[2:])
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@every_network
def test_padding_repeats_the_far_edges(name):
    net = small(name, 2)
    image = image_for(net, 1, 2, 13, 22)
    margins = [(0, 0), (0, 0), *((0, -size % net.multiple) for size in image.shape[2:])]
    padded = torch.from_numpy(np.pad(image.numpy(), margins, mode="edge"))
    with torch.no_grad():
        torch.testing.assert_close(net(image), net.logits(padded)[..., :5, :13, :22], rtol=0, atol=0)


@every_network
def test_divisible_size_is_not_padded(name):
    net = small(name)
    image = noise(1, 1, *(net.multiple * times for times in (2, 3, 1)[: net.axes]))
    assert net.pad(image) is image
    with torch.no_grad():
        assert torch.equal(net(image), net.logits(image))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        *(pytest.param(*each.values, {}, marks=each.marks) for each in NETWORKS_HERE),
        ("DeepLabV2", {"align_corners": True, "layout": "caffe"}),
    ],
)
def test_logits_of_another_size_are_upsampled_once(name, params):
    net = small(name, 1, 3, **params)
    image = noise(1, 1, *(net.multiple * times for times in (1, 2, 1)[: net.axes]))
    size = [2 * length for length in image.shape[2:]]
    with torch.no_grad():
        coarse = net.classifier(net.features(image)[-1])
        how = {"mode": "bilinear" if net.axes == 2 else "trilinear", "align_corners": net.align_corners}
        torch.testing.assert_close(net(image, size), nn.functional.interpolate(coarse, size, **how))
        assert torch.equal(net(image, image.shape[2:]), net(image))
        assert net(image[..., 1:], size).shape == (1, 3, *size)  # with padding


@every_network
def test_gradient_reaches_every_parameter(name):
    net = small(name, 3, 4)
    net(image_for(net, 2, 3, 64, 80)).square().sum().backward()
    moving = {key: param for key, param in net.named_parameters() if param.requires_grad}
    assert [key for key, param in moving.items() if param.grad is None or not param.grad.any()] == []


@every_network
def test_training_step_lowers_a_loss(name):
    net = small(name, 1, 3).train()
    image = image_for(net, 2, 1, 32, 32)
    target = (image[:, 0] > 0).long()
    rate, steps = (1e-4, 4) if name.startswith("DeepLab") else (1e-3, 8)  # those two are deep
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
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
    times = (2, 1) if name == "DynamicUNet" else (1, 1, 2)  # which has to leave two pixels at the coarsest
    image = noise(1, 1, *(net.multiple * each for each in times[: net.axes]))
    logits = net(image)
    torch.testing.assert_close(logits, seen[0].expand_as(logits))  # of DeepLab it is one pixel, upsampled


@every_network
def test_batch_norm_is_there_and_follows_the_batch(name):
    net = small(name)
    batch_norms = [norm for norm in norms(net) if isinstance(norm, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in batch_norms]
    assert bool(before) == (name not in WITHOUT_BATCH_NORM)
    with torch.no_grad():
        net.train()(image_for(net, 2, 1, 32, 32))
    assert all(not torch.equal(old, norm.running_mean) for old, norm in zip(before, batch_norms, strict=True))


@every_network
def test_state_dict_carries_the_whole_network(name):
    trained, fresh = small(name, seed=0), small(name, seed=1)
    image = image_for(fresh, 2, 1, 32, 32)
    with torch.no_grad():
        trained.train()(image)  # moves the running statistics
        trained.eval()
        assert not torch.equal(trained(image), fresh(image))
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(trained(image), fresh(image))


@every_network
def test_same_seed_same_weights_and_same_training_pass(name):
    first, second, other = build(name, seed=3), build(name, seed=3), build(name, seed=4)
    same = second.state_dict()
    for key, value in first.state_dict().items():
        assert torch.equal(value, same[key]), key
    assert not torch.equal(convolutions(first)[0].weight, convolutions(other)[0].weight)
    passes = []
    for net in (first, second):
        torch.manual_seed(5)  # dropout
        passes.append(net.train()(image_for(net, 2, 1, 32, 32)))
    assert torch.equal(*passes)


@every_network
def test_deterministic_algorithms_are_enough(name):
    torch.use_deterministic_algorithms(True)
    try:
        net = small(name)
        net(image_for(net, 1, 1, 17, 17)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@every_network
def test_the_memory_layout_is_kept_where_the_network_says_so(name):
    net, lost = small(name, 3), []
    layout = torch.channels_last_3d if net.axes == 3 else torch.channels_last

    def look(part, given, made):
        if isinstance(made, torch.Tensor) and made.ndim == 2 + net.axes and min(made.shape[1:]) > 1:
            lost.append(not made.is_contiguous(memory_format=layout))

    for part in net.modules():
        part.register_forward_hook(look)
    net.to(memory_format=layout)(image_for(net, 2, 3, 64, 64).contiguous(memory_format=layout))
    assert lost
    assert net.keeps_channels_last == (not any(lost))


@every_network
def test_channels_last_and_autocast(name):
    net = small(name, 3)
    image, layout = image_for(net, 1, 3, 18, 20), torch.channels_last if net.axes == 2 else torch.channels_last_3d
    with torch.no_grad():
        plain = net(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = net(image)
        last = net.to(memory_format=layout)(image.to(memory_format=layout))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
    assert low.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; what is asked here is that nothing but rounding differs.
    assert (low.float() - plain).abs().mean() < 0.1 * plain.abs().mean()


@every_network
def test_initial_weights(name):
    net = small(name)
    for module in [*convolutions(net), *norms(net)]:
        assert module.bias is None or not module.bias.any() or name == "PublishedENet"  # whose are torch's draws
    assert all(0.8 < norm.weight.min() and norm.weight.max() < 1.2 for norm in norms(net))


@every_network
def test_impossible_sizes_are_all_named(name):
    with pytest.raises(UserError, match=r"in_channels=0 \(at least 1\), n_class=1 \(at least 2\)"):
        NETWORKS.build(name, 0, 1)


@every_network
@pytest.mark.parametrize("size", [(32, 48), (37, 45)])
def test_levels_are_logits_of_the_image_s_size(name, size):
    net = small(name, 1, 3)
    image, linear = image_for(net, 2, 1, *size), {2: "bilinear", 3: "trilinear"}[net.axes]
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
            shape = net.pad(image).shape[2:]
            padded = nn.functional.interpolate(head(level), shape, mode=linear, align_corners=net.align_corners)
            assert torch.equal(logits, padded[..., :5, : size[0], : size[1]])
    assert len(coarse) == len(heads)


@pytest.mark.parametrize("name", [*ENCODERS, "DeepLabV2"])
def test_a_head_learns_and_its_gradient_reaches_the_trunk(name):
    net = small(name, 1, 3)
    head = net.make_head(1)
    net.levels(image_for(net, 2, 1, 32, 32), [head])[1].square().sum().backward()
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


@pytest.mark.parametrize("name", [each for each in NETWORKS_HERE if not each.values[0].startswith("DeepLab")])
def test_what_has_no_backbone_says_so(name, tmp_path):
    with pytest.raises(UserError, match=r"has no pre-trained backbone; DeepLabV2 .*--backbone_weights"):
        small(name).load_backbone(tmp_path / "weights.pth")


# ------------------------------------------------------------------------------------ encoders and decoders


@every_network
def test_with_features_is_one_pass_of_both(name):
    net = small(name, 2, 3)
    image, passes = image_for(net, 2, 2, 37, 45), []
    convolutions(net)[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        logits, finest = net.with_features(image)
        assert len(passes) == 1
        assert torch.equal(logits, net(image))
        assert torch.equal(finest, net.features(image)[-1])


@every_encoder
def test_decoder_blocks_come_one_by_one(name):
    net = small(name, 2)
    image = net.pad(image_for(net, 2, 2, 50, 70))
    with torch.no_grad():
        encoded = net.encode(image)
        every = net.decode(encoded)
        assert all(torch.equal(*pair) for pair in zip(every, net.features(image), strict=True))
        for blocks in range(net.n_blocks + 1):
            some = net.decode(encoded, blocks)
            assert len(some) == blocks + 1
            assert all(torch.equal(*pair) for pair in zip(some, every, strict=False))
    # The encoder halves, from the image to the bottleneck; the decoder doubles, back to the image.
    sizes = [tuple(size // 2**level for size in image.shape[2:]) for level in range(net.n_blocks + 1)]
    assert net.multiple == 2**net.n_blocks
    assert [level.shape[2:] for level in encoded] == sizes
    assert [level.shape[2:] for level in some] == sizes[::-1]
    assert torch.equal(every[0], encoded[-1])
    assert tuple(level.shape[1] for level in every) == net.widths


@every_encoder
def test_each_decoder_block_sees_its_skip(name):
    net = small(name)
    image = net.pad(image_for(net, 1, 1, 40, 64))
    with torch.no_grad():
        encoded = net.encode(image)
        before = net.decode(encoded)
        for level in range(net.n_blocks):  # the other maps stay, so only the skip can make a difference
            changed = [skip + (place == level) for place, skip in enumerate(encoded)]
            same = [torch.equal(*pair) for pair in zip(before, net.decode(changed), strict=True)]
            untouched = net.n_blocks - level
            assert same == [True] * untouched + [False] * (len(before) - untouched)


@every_encoder
def test_parts_are_what_the_maps_depend_on(name):
    net = small(name, 1, 3)
    image = image_for(net, 2, 1, 64, 64)
    for blocks in range(net.n_blocks + 1):
        net.zero_grad()
        net.decode(net.encode(net.pad(image)), blocks)[-1].square().sum().backward()
        reached = {key for key, param in net.named_parameters() if param.grad is not None}
        assert reached == {key for key, _ in net.named_parameters() if key.startswith(net.parts(blocks))}


def test_parts_of_the_published_unet():
    net = small("UNet")
    assert net.parts(0) == ("encoder.", "bridge.")
    assert net.parts(2) == ("encoder.", "bridge.", "up.0.", "decoder.0.", "up.1.", "decoder.1.")


@every_encoder
@pytest.mark.parametrize("blocks", [-1, 6])
def test_blocks_that_are_not_there_are_refused(name, blocks):
    net = small(name)
    with pytest.raises(UserError, match=f"{name} has {net.n_blocks} blocks.* not {blocks}"):
        net.parts(blocks)
    with pytest.raises(UserError, match=f"{name} has {net.n_blocks} blocks.* not {blocks}"):
        net.decode([noise(1)], blocks)


@pytest.mark.parametrize("name", [each for each in NETWORKS_HERE if each.values[0] not in ENCODERS])
def test_what_has_no_encoder_names_those_that_have(name):
    net = small(name)
    assert (net.n_blocks, net.widths) == (0, ())
    for ask in (net.encode, net.decode, net.parts):
        with pytest.raises(UserError, match="has no encoder of its own; take " + ".*".join(ENCODERS)):
            ask(0)


# ---------------------------------------------------------------------------------------------- single ones


def test_unet_is_the_published_one():
    net = UNet(1, 2)
    assert count(net) == 4_678_775
    slopes = [module.weight.numel() for module in net.modules() if isinstance(module, nn.PReLU)]
    # Two each in three encoder levels, three upsamplings and three decoder levels; three in the bridge.
    assert slopes == [1] * 21


def test_the_published_boundary_loss_has_a_wider_unet():
    assert count(UNet(1, 2, nG=64)) == 18_702_551
    assert count(UNet(5, 2, nG=64)) == 18_704_855


def test_published_enet_has_the_published_parameters():
    net = PublishedENet(1, 4)
    assert count(net) == 463_475
    assert count(net.idle) == 5_194
    assert count(PublishedENet(1, 2)) == 460_845
    assert {module.weight.numel() for module in net.modules() if isinstance(module, nn.PReLU)} == {1}
    assert net.classifier.bias.any()  # torch's draw stays


def test_unet_parameters_follow_channels_and_classes():
    # Two more channels: 2 x 9 weights in each of the 32 first filters. Three more classes: 32 weights, 1 bias.
    assert count(UNet(3, 5)) == 4_678_775 + 2 * 9 * 32 + 3 * 33


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


def test_residual_unet_adds_its_skips():
    # Concatenation would double the input of each first decoder convolution.
    widths = [level[0][0].in_channels for level in ResidualUNet(1, 2, nG=4).decoder]
    assert widths == [32, 16, 8, 4]


def test_pooled_unet_is_the_published_one():
    # A block of kernel n from a to b channels has n·n·a·b + 2·b parameters. Encoder: 2,512 + 13,952 + 55,552 + 221,696
    # + 2 x 295,424; decoder: 2 x 508,672 + 143,744 + 36,032 + 6,720; head 2 x 2,336; classifier 9·16·4.
    net = PooledUNet(1, 4)
    assert count(net) == 884_560 + 1_203_840 + 4_672 + 576
    assert net.widths == (128, 128, 128, 64, 32, 16, 16)
    assert net.n_blocks == 5
    assert net.parts(1) == ("encoder.", "decoder.0.")
    assert all((norm.eps, norm.momentum) == (1e-3, pytest.approx(0.01)) for norm in norms(net))
    assert all(norm.momentum == pytest.approx(0.1) for norm in norms(PooledUNet(1, 4, bn_decay=0.9)))
    assert net.classifier.bias is None


def test_pooled_unet_enlarges_to_the_near_side():
    up = small("PooledUNet").decoder[-1].up
    nn.init.ones_(convolutions(up)[0].weight)
    image = torch.zeros(1, 8, 3, 3)
    image[0, 0, 1, 1] = 1  # becomes rows and columns 2 and 3; the kernel adds the next row and column to each
    with torch.no_grad():
        enlarged = up(image)[0, 0] * (1 + 1e-3) ** 0.5
    expected = torch.zeros(6, 6)
    expected[1:4, 1:4] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    torch.testing.assert_close(enlarged, expected)


def test_unet3d_is_the_published_one():
    # Two blocks from a to b channels have 27·a·b + 27·b·b + 4·b + 2 parameters. Stem 290; encoder 16,282 + 64,962 +
    # 259,522; decoder 172,962 + 43,282 + 10,842; last 21,682; classifier 21 for each output.
    net = UNet3D(1, 2)
    assert count(net) == 589_824 + 42
    assert count(UNet3D(1, 2, binary=True)) == 589_824 + 21
    assert count(UNet3D(4, 2)) == count(net) + 3 * 27 * 10
    assert net.widths == (80, 40, 20, 10, 20)
    assert net.parts(1) == ("stem.", "encoder.", "decoder.0.")


def test_unet3d_treats_its_axes_alike():
    net = small("UNet3D").double()
    for module in convolutions(net):
        nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    image = noise(1, 1, 8, 12, 16).double()
    with torch.no_grad():
        turned = net(image.permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(turned, net(image).permute(0, 1, 4, 2, 3))


def test_binary_unet3d_is_a_sigmoid():
    net, image = small("UNet3D", 2, 2, binary=True), noise(2, 2, 5, 9, 11)
    outputs = []
    handle = net.last.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        logits = net(image)
        handle.remove()
        f = nn.functional.conv3d(outputs[0], net.classifier.weight, net.classifier.bias)[:, 0, :5, :9, :11]
    assert not logits[:, 0].any()
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1], f.sigmoid())
    assert net.levels(image, [net.make_head(1)])[1].shape == (2, 2, 5, 9, 11)


@pytest.mark.parametrize(("n_class", "binary"), [(3, True), (2, 1)])
def test_binary_of_what_is_not_is_refused(n_class, binary):
    with pytest.raises(UserError, match=f"binary={binary} with n_class={n_class} cannot be"):
        UNet3D(1, n_class, binary=binary)


def test_unet3d_takes_every_volume_but_of_one_voxel_at_the_bottleneck():
    net = UNet3D(1, 2, width=1, depth=2).train()
    for size in product((1, 4, 5), repeat=3):
        if max(size) == 5:
            assert net(noise(1, 1, *size)).shape == (1, 2, *size)
        else:
            with pytest.raises(UserError, match="needs 5 voxels or more; this volume has 4 x 4 x 4 with its padding"):
                net(noise(1, 1, *size))


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
        return SimpleNamespace(told=(in_channels, n_class, a, b))

    monkeypatch.setitem(NETWORKS._entries, "taker", taker)
    assert ghost_network("taker:b=[1,2],a=-3", 1, 2).told == (1, 2, -3, [1, 2])


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
        ("UNet3D:width=0,depth=1.5", r"width=0 \(at least 1\), depth=1.5"),
    ],
)
def test_build_network_refuses(text, match):
    with pytest.raises(UserError, match=match):
        build_network(text, 1, 2)


def test_a_process_without_an_image_still_gives_gradients():
    net = build_network("UNet3D:width=2,depth=1", 1, 2)
    net(torch.empty(0, 1, 8, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# ---------------------------------------------------------------------------------- batches that are too small


def refuses(call, *args):
    try:
        call(*args)
    except (UserError, ValueError) as error:
        return re.search("one value|more than (one voxel|1 value)", str(error)) is not None
    return False


@every_network
def test_a_batch_norm_over_one_value_is_foreseen(name):
    """Just where torch, or the network itself, would refuse in the middle of an epoch; nothing of the network moves."""
    net, tried = small(name).train(), small(name).train()
    before = copy.deepcopy(net.state_dict())
    for size, batch in product([(1, 1), (8, 8), (9, 8), (16, 16), (17, 16), (32, 32), (33, 20)], (1, 2)):
        image = torch.zeros(batch, 1, *(() if net.axes == 2 else (4,)), *size)
        assert refuses(check_batch_norms, net, image.shape) == refuses(tried, image)
        assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [vars(part).keys() for part in net.modules()] == [vars(part).keys() for part in small(name).modules()]


def test_what_is_frozen_is_not_refused():
    net = small("PooledUNet").train()
    with pytest.raises(UserError, match=r"2 batch norms of the network \(encoder.5.0.1, .*1 image of 32 x 32 pixels"):
        check_batch_norms(net, (1, 1, 32, 32))
    for norm in norms(net):
        norm.eval()
    check_batch_norms(net, (1, 1, 32, 32))
