"""The pre-trained trunks and the DeepLab networks on them, beside what the tests over all networks ask."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nets.backbones import ASPP, DilatedResNet, Normalise, dilated_vgg16, load_trunk
from nets.deeplab import DeepLabV2, DeepLabVGG
from networks import build_network
from processes.errors import UserError

ROOT = Path(__file__).parents[2]
LAYOUTS = ["torchvision", "caffe"]
SHAPES = torch.device("meta")  # where no weight is drawn and nothing is computed


@pytest.fixture(scope="module", params=[*LAYOUTS, "vgg"])
def trunk(request):
    torch.manual_seed(0)
    return dilated_vgg16(3) if request.param == "vgg" else DilatedResNet(3, 50, request.param)


def count(net):
    return sum(param.numel() for param in net.parameters())


def perturbed(trunk):
    """The weights of another trunk of the same kind."""
    return {name: value + 1 for name, value in trunk.state_dict().items()}


def holds(trunk, state):
    return all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items() if name in state)


# ---------------------------------------------------------------------------------------------- pieces


def test_torchvision_waits_until_a_trunk_is_built_and_torch_s_compiler_until_something_learns():
    code = "import sys, networks\nfor name in ('UNet:nG=4', 'PublishedENet'): networks.build_network(name, 1, 2)\n"
    code += "sys.exit(not {'torchvision', 'torch._dynamo'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("branches", [4, 2])
def test_aspp_sums_its_branches(branches):
    aspp = ASPP(1, 2, branches)
    for conv in aspp.branches:
        nn.init.ones_(conv.weight)
    image = torch.zeros(1, 1, 61, 61)
    image[..., 30, 30] = 1
    with torch.no_grad():
        answer = aspp(image)[0, 1]
    expected = torch.zeros(61, 61)
    for dilation in [6, 12, 18, 24][:branches]:
        expected[30 - dilation : 31 + dilation : dilation, 30 - dilation : 31 + dilation : dilation] += 1
    assert torch.equal(answer, expected)


def test_aspp_begins_as_published():
    torch.manual_seed(0)
    weights = torch.cat([conv.weight.detach().flatten() for conv in ASPP(512, 19).branches])
    assert weights.std().item() == pytest.approx(0.01, rel=0.01)
    assert weights.mean().item() == pytest.approx(0, abs=1e-4)


def test_normalise():
    pixel = torch.tensor([1, 0, 0.5]).view(1, 3, 1, 1)
    caffe = Normalise("caffe")(pixel).flatten()
    blue_green_red = torch.tensor([127.5 - 104.00698793, -116.66876762, 255 - 122.67891434])
    torch.testing.assert_close(caffe, blue_green_red)
    imagenet = Normalise("imagenet")(pixel).flatten()
    torch.testing.assert_close(imagenet, torch.tensor([0.515 / 0.229, -0.456 / 0.224, 0.094 / 0.225]))
    assert Normalise("caffe").state_dict() == {}


# ---------------------------------------------------------------------------------------------- trunks


@pytest.mark.parametrize(
    ("layout", "size", "answer"),
    [
        ("torchvision", (33, 47), (5, 6)),
        ("torchvision", (64, 104), (8, 13)),
        ("caffe", (33, 47), (5, 7)),  # max-pooling rounds up
        ("caffe", (64, 104), (9, 14)),
    ],
)
def test_output_stride_of_resnet_is_8(layout, size, answer):
    with torch.no_grad(), SHAPES:
        maps = DilatedResNet(3, 50, layout).eval()(torch.rand(2, 3, *size))
    assert [tuple(level.shape) for level in maps] == [(2, 1024, *answer), (2, 2048, *answer)]


def test_output_stride_of_vgg_is_8():
    with torch.no_grad(), SHAPES:
        net = DeepLabVGG(3, 2)
        assert net.trunk(torch.rand(2, 3, 64, 104)).shape == (2, 512, 8, 13)
        assert net.features(torch.rand(2, 3, 33, 47))[0].shape == (2, 1024, 5, 6)


def test_parameter_counts():
    resnet_fc = 2048 * 1000 + 1000
    with SHAPES:
        assert count(DilatedResNet(3, 50, "caffe")) == 25_557_032 - resnet_fc
        assert count(DilatedResNet(3, 101, "torchvision")) == 44_549_160 - resnet_fc
        assert count(dilated_vgg16(3)) == 138_357_544 - (25088 * 4096 + 4096**2 + 4096 * 1000 + 2 * 4096 + 1000)
        assert count(DilatedResNet(1, 50, "caffe")) == 25_557_032 - resnet_fc - 2 * 64 * 49


@pytest.mark.parametrize(
    ("layout", "third", "fourth"), [("torchvision", [1] + [2] * 5, [2, 4, 4]), ("caffe", [2] * 6, [4] * 3)]
)
def test_strides_and_dilations_of_the_layouts(layout, third, fourth):
    with SHAPES:
        trunk = DilatedResNet(3, 50, layout)
    dilations = [[block.conv2.dilation[0] for block in layer] for layer in (trunk.layer3, trunk.layer4)]
    assert dilations == [third, fourth]
    assert all(block.conv2.padding == block.conv2.dilation for layer in (trunk.layer3, trunk.layer4) for block in layer)
    strides = {name: part.stride for name, part in trunk.named_modules() if getattr(part, "stride", 1) in (2, (2, 2))}
    strided = {name for name in strides if "conv" in name or "downsample" in name or "pool" in name}
    place = "layer2.0.conv1" if layout == "caffe" else "layer2.0.conv2"
    assert strided == {"conv1", "maxpool", place, "layer2.0.downsample.0"}
    assert trunk.maxpool.ceil_mode == (layout == "caffe")


def test_vgg_has_neither_pool4_nor_pool5():
    with SHAPES:
        features = dilated_vgg16(3).features
    assert [place for place, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)] == [4, 9, 16]
    dilated = [place for place, layer in enumerate(features) if isinstance(layer, nn.Conv2d) and layer.dilation[0] == 2]
    assert dilated == [24, 26, 28]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_is_frozen_but_for_its_statistics(layout):
    trunk = DilatedResNet(3, 50, layout).train()
    trunk(torch.rand(1, 3, 32, 32))
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 53
    for norm in norms:
        assert norm.running_mean.any()
        assert not norm.weight.requires_grad
        assert not norm.bias.requires_grad
    frozen = sum(param.numel() for param in trunk.parameters() if not param.requires_grad)
    assert frozen == sum(2 * norm.num_features for norm in norms)


# -------------------------------------------------------------------------------------------- networks


def test_parameter_counts_of_the_networks():
    aspp, fc = 4 * (9 * 2048 * 19 + 19), 512 * 1024 * 9 + 1024 + 1024 * 1024 * 9 + 1024
    with SHAPES:
        assert count(DeepLabV2(3, 19, depth=50)) == 23_508_032 + aspp
        assert count(DeepLabVGG(3, 19, aspp_branches=2)) == 14_714_688 + fc + 2 * (9 * 1024 * 19 + 19)


def test_learning_rates_of_backbone_and_classifier():
    with SHAPES:
        net = DeepLabV2(3, 5, depth=50)
    (backbone, slow), (classifier, fast) = net.parameter_groups()
    assert (slow, fast) == (1, 10)
    assert sum(param.numel() for param in classifier) == count(net.classifier)
    assert sum(param.numel() for param in backbone) == 23_508_032 - 53_120  # batch-norm scale and shift


def test_aspp_branches_and_corners_reach_heads_and_upsampling():
    net = build_network(
        "DeepLabV2:depth=50,aspp_branches=2,align_corners=True,layout=caffe,normalise=caffe", 3, 4
    ).eval()
    head = net.make_head(1)
    assert len(net.classifier.branches) == len(head.branches) == 2
    image = torch.rand(1, 3, 33, 41)
    with torch.no_grad():
        coarse, last = net.trunk(Normalise("caffe")(image))
        fine, auxiliary = net.levels(image, [head])
        for logits, small in ((fine, net.classifier(last)), (auxiliary, head(coarse))):
            expected = nn.functional.interpolate(small, size=(33, 41), mode="bilinear", align_corners=True)
            assert torch.equal(logits, expected)


def test_normalisation_is_part_of_the_network_but_not_of_its_weights():
    torch.manual_seed(0)
    net = DeepLabVGG(3, 2).eval()
    image = torch.rand(1, 3, 32, 32)
    plain = DeepLabVGG(3, 2, normalise="none").eval()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(image), plain(Normalise("imagenet")(image)))


@pytest.mark.parametrize(
    ("text", "in_channels", "match"),
    [
        ("DeepLabV2", 1, "normalise=imagenet is for RGB images.*have 1. Give DeepLabV2:normalise=none"),
        ("DeepLabVGG:normalise=caffe", 4, "have 4. Give DeepLabVGG:normalise=none"),
        ("DeepLabV2:depth=34,layout=tf", 3, r"depth=34 \(one of 101, 50\), layout='tf' \(one of torchvision, caffe\)"),
        ("DeepLabV2:aspp_branches=3", 3, r"aspp_branches=3 \(one of 4, 2\)"),
        ("DeepLabVGG:normalise=yes", 3, "normalise='yes'"),
        ("DeepLabVGG:depth=50", 3, "no parameter 'depth'"),
    ],
)
def test_impossible_variants_are_refused(text, in_channels, match):
    with pytest.raises(UserError, match=match):
        build_network(text, in_channels, 2)


# --------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("prefix", ["", "module.", "Scale.", "module.Scale."])
def test_weights_go_round(trunk, prefix, tmp_path):
    state = perturbed(trunk)
    head = {"fc.weight": torch.zeros(1000, 2048), "layer5.conv2d_list.0.bias": torch.zeros(19)}
    torch.save({prefix + name: value for name, value in (state | head).items()}, tmp_path / "weights.pth")
    assert not holds(trunk, state)
    load_trunk(trunk, tmp_path / "weights.pth")
    assert holds(trunk, state)


def test_weights_older_than_the_counter_of_batches(tmp_path):
    net = DeepLabV2(3, 2, depth=50)
    state = {name: value for name, value in perturbed(net.trunk).items() if "num_batches" not in name}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)  # as old as the files
    net.load_backbone(tmp_path / "weights.pth")
    assert holds(net.trunk, state)


def test_all_that_does_not_fit_is_named_and_nothing_is_loaded(trunk, tmp_path):
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    state = perturbed(trunk)
    lacking, *_, unequal = state
    del state[lacking]
    state |= {unequal: torch.zeros(7, 7), "layer9.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pth")
    match = rf"lacks {lacking}; it has besides layer9.weight; of another shape are {unequal} \(7, 7\) for \("
    with pytest.raises(UserError, match=match):
        load_trunk(trunk, tmp_path / "weights.pth")
    assert holds(trunk, before)


def test_weights_of_another_depth_or_of_another_number_of_channels_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(DilatedResNet(3, 50, "caffe").state_dict(), path)
    with pytest.raises(UserError, match=r"conv1.weight \(64, 3, 7, 7\) for \(64, 1, 7, 7\)"):
        DeepLabV2(1, 2, depth=50, normalise="none").load_backbone(path)
    with SHAPES:
        deep = DilatedResNet(3, 101, "caffe")
    with pytest.raises(UserError, match=r"lacks layer3\.6\.conv1\.weight.* more\)"):
        load_trunk(deep, path)
    torch.save(deep.state_dict(), path)
    with pytest.raises(UserError, match=r"has besides layer3\.6\.conv1\.weight"):
        load_trunk(DilatedResNet(3, 50, "caffe"), path)


class Foreign:
    """Not a plain type: to load it is to run code."""


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "do not exist. Nothing is downloaded"),
        (b"torn", "no file of tensors"),
        ({"net": Foreign()}, "no file of tensors"),
        ({"state_dict": {}}, "no state dict"),
        ([torch.zeros(1)], "no state dict"),
        ({0: torch.zeros(1)}, "no state dict"),
    ],
)
def test_files_that_hold_no_weights(content, match, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=match):
        load_trunk(nn.Linear(1, 1), path)
