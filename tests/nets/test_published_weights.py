"""The published networks' weights in the networks of this program: both compute the same numbers."""

import math

import pytest
import torch
from conftest import CROSS_ENTROPY
from test_main import flags
from torch import nn

import main as program
from nets.checkpoint_files import load_checkpoint
from nets.filling import load_blocks, load_weights
from networks import build_network
from processes.errors import UserError

DEEPLAB = "DeepLabV2:depth=50,aspp_branches=2,layout=caffe,align_corners=True,normalise=none"


def wave(number, kind, shape):
    """Weights that depend on the place of their tensor in the published file, and stay tame through many layers."""
    steps = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + number).reshape(shape)
    if kind == "running_var":
        return 1 + steps / 2
    if len(shape) > 1:
        return steps * (2 / math.prod(shape[1:])) ** 0.5
    return 0.1 * steps + (0.8 if kind == "weight" else 0)


def picture(*shape):
    return torch.cos(torch.arange(math.prod(shape), dtype=torch.float64) * 0.37).reshape(shape)


def published_file(path, net, prefix=""):
    """A state dict in the order, and with the last words of the names, of the published network."""
    ours = net.state_dict()
    ordered = [name for part in net.published for name in ours if name.startswith(f"{part}.")]
    kinds = [(name.rpartition(".")[2], ours[name].shape) for name in ordered]
    kinds = [(kind, shape) for kind, shape in kinds if kind != "num_batches_tracked"]
    state = {f"{prefix}layer{n}.{kind}": wave(n, kind, shape) for n, (kind, shape) in enumerate(kinds)}
    torch.save(state | ({"encoder.mu_layer.weight": torch.zeros(256, 4)} if prefix else {}), path)
    return path


# The logits of the published code (models of the repositories of Kervadec, commit 171c32d, and Xu, commit 96690d1) at
# three pixels, filled by `wave`, for `picture`: of UNet(1, 3, nG=4), ENet(1, 4) and Unet3D(2, 2, 2, 1).
@pytest.mark.parametrize(
    ("network", "size", "classes", "prefix", "expected"),
    [
        ("UNet:nG=4", (2, 1, 16, 24), 3, "", [212.63541, -12812.927, 6401.9185]),
        ("PublishedENet", (2, 1, 32, 48), 4, "", [0.18398227, 0.57647389, -0.90449196]),
        ("UNet3D:width=2,depth=2,binary=True", (1, 2, 8, 12, 16), 2, "", [-0.11199329, -0.19551635, -0.069154836]),
        (
            "UNet3D:width=2,depth=2,binary=True",
            (1, 2, 8, 12, 16),
            2,
            "segmentor.",
            [-0.11199329, -0.19551635, -0.06915484],
        ),
    ],
)
def test_a_published_network_computes_what_it_computed(tmp_path, network, size, classes, prefix, expected):
    net = build_network(network, size[1], classes).double().eval()
    path = published_file(tmp_path / "weights.pt", net, prefix)
    load_weights(net, path, network, size[1], classes)
    with torch.no_grad():
        logits = net(picture(*size))[:, -1].flatten()
    assert logits[[0, logits.numel() // 3, -1]].tolist() == pytest.approx(expected, rel=1e-4)


def test_deeplab_takes_what_it_has_of_the_published_files(tmp_path):
    net = build_network(DEEPLAB, 3, 3).eval()
    trunk = [(name.rpartition(".")[2], value.shape) for name, value in net.trunk.state_dict().items()]
    trunk = [(kind, shape) for kind, shape in trunk if kind != "num_batches_tracked"]
    state = {f"Scale.part{n}.{kind}": wave(n, kind, shape) for n, (kind, shape) in enumerate(trunk)}
    for layer, width in (("layer5", 1024), ("layer6", 2048)):  # the coarser head, and the four branches of the finer
        for branch in range(4):
            for kind, shape in (("weight", (3, width, 3, 3)), ("bias", (3,))):
                state[f"Scale.{layer}.conv2d_list.{branch}.{kind}"] = wave(len(state), kind, shape)
    torch.save(state, tmp_path / "GTA2Cityscapes.pth")
    load_weights(net, tmp_path / "GTA2Cityscapes.pth", DEEPLAB, 3, 3)
    with torch.no_grad():
        logits = net(picture(1, 3, 33, 49).float())[:, -1].flatten()
    # ResNetMulti with the blocks of a ResNet-50 (Tsai et al., commit fca9ff0), upsampled with its corners aligned
    published = [761386240.0, 958940480.0, 371039040.0]
    assert logits[[0, logits.numel() // 3, -1]].tolist() == pytest.approx(published, rel=1e-4)


def test_weights_of_other_layers_are_refused_with_the_first_that_differ(tmp_path):
    path = published_file(tmp_path / "weights.pt", build_network("UNet:nG=8", 1, 2))
    with pytest.raises(
        UserError, match=r"layer0.weight \(8, 1, 3, 3\) in the place of encoder.0.0.0.weight \(4, 1, 3, 3\)"
    ):
        load_weights(build_network("UNet:nG=4", 1, 2), path, "UNet:nG=4", 1, 2)
    with pytest.raises(UserError, match="no published network is known.*PublishedENet, UNet3D and DeepLabV2"):
        load_weights(build_network("Dimwit", 1, 2), path, "Dimwit", 1, 2)


def test_tensors_alone_of_a_network_of_this_program_are_taken(tmp_path):
    net, other, wider = (build_network(name, 1, 2) for name in ("Dimwit:nG=4", "Dimwit:nG=4", "Dimwit:nG=8"))
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt", "Dimwit:nG=4", 1, 2)
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match=r"body.0.weight \(4, 1, 3, 3\) in the place of body.0.weight \(8, 1, 3, 3\)"):
        load_weights(wider, tmp_path / "weights.pt", "Dimwit:nG=8", 1, 2)


def test_blocks_are_taken_of_published_weights(tmp_path):
    net = build_network("UNet:nG=4", 1, 2)
    path = published_file(tmp_path / "weights.pt", net)
    before = net.classifier.weight.clone()
    assert load_blocks(net, path, 1, 1)["loaded"] == ["encoder", "bridge", "up.0", "decoder.0"]
    torch.testing.assert_close(net.encoder[0][0][0].weight, wave(0, "weight", (4, 1, 3, 3)).float())
    assert torch.equal(net.classifier.weight, before)


def test_a_whole_network_is_not_run(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "best.pkl")
    with pytest.raises(UserError, match="to load that is to run code.*make a file of its tensors alone"):
        load_checkpoint(tmp_path / "best.pkl")


def test_tensors_alone_are_no_run(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds tensors alone.*--method noadap"):
        load_checkpoint(tmp_path / "weights.pt")


def test_published_weights_are_scored_and_become_a_run(sites, tmp_path):
    path = published_file(tmp_path / "weights.pt", build_network("UNet:nG=4", 1, 2))
    argv = flags(sites[1], tmp_path / "run", CROSS_ENTROPY, "--network", "UNet:nG=4", "--method", "noadap")
    program.main([*argv, "--model_weights", str(path)])
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pkl")
    assert (checkpoint["network"], checkpoint["n_class"]) == ("UNet:nG=4", 2)
    torch.testing.assert_close(checkpoint["net"]["encoder.0.0.0.weight"], wave(0, "weight", (4, 1, 3, 3)).float())
