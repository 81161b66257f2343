"""Predictions at several batch-norm statistics: against the formulas, layer by layer, and who predicts so."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import here, write_site
from torch import nn

import choose as choosing
import main as program
from nets.base import batch_norms
from nets.checkpoint_files import load_checkpoint
from nets.norm_mixing import ALPHAS, mixed_norm, mixes_norms, mixing, weights_of
from networks import build_network, ghost_network, network_of
from processes.errors import UserError
from tests.tools.chaos import arguments


def network(text="Dimwit:nG=3", channels=1):
    """In float64, with statistics and scales that are none of those it starts with."""
    torch.manual_seed(0)
    net = build_network(text, channels, 3).double().eval()
    for norm in batch_norms(net):
        for values in (norm.running_mean, norm.weight.data, norm.bias.data):
            values.copy_(torch.randn_like(values))
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.5)
    return net


class Literal(nn.Module):
    """A batch norm at one mixture, for one image, channel by channel."""

    def __init__(self, norm, alpha):
        super().__init__()
        self.norm, self.alpha = norm, alpha

    def forward(self, maps):
        (maps,), found = maps, []
        for c, values in enumerate(maps):
            n = values.numel()
            mean = values.sum() / n
            variance = ((values - mean) ** 2).sum() / n
            mean = (1 - self.alpha) * self.norm.running_mean[c] + self.alpha * mean
            variance = (1 - self.alpha) * self.norm.running_var[c] + self.alpha * variance
            out = (values - mean) / math.sqrt(variance + self.norm.eps)
            found.append(out * self.norm.weight[c] + self.norm.bias[c])
        return torch.stack(found)[None]


def at(net, alpha, image):
    """Probabilities (K, W, H) of one image (C, W, H) at one mixture."""
    other = copy.deepcopy(net)
    for name, module in list(other.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent = other.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Literal(module, alpha))
    return other(image[None]).softmax(1)[0]


def literally(net, image):
    """p of one image: all mixtures, and the weights out of the mean entropies of the classes that are predicted."""
    found, h = [at(net, alpha, image) for alpha in ALPHAS], []
    for p in found:
        label, by_class = p.argmax(0), []
        for k in range(len(p)):
            pixels = p[:, label == k].T
            if len(pixels):
                by_class.append(np.mean([-sum(q * math.log(q) for q in pixel) for pixel in pixels.tolist()]))
        h.append(np.mean(by_class))
    s = [(max(h) - each) / (max(h) - min(h)) for each in h]
    w = [math.exp(each) / sum(map(math.exp, s)) for each in s]
    return sum(share * p for share, p in zip(w, found, strict=True))


@pytest.mark.parametrize("text", ["Dimwit:nG=3", "UNet:nG=2"])
@torch.no_grad()
def test_it_is_the_formula_image_by_image(text):
    net = network(text)
    mixes = network(f"{text},bn_mix=True")
    images = 2 * torch.randn(3, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = mixes(images)
    for image, log_p in zip(images, found, strict=True):
        wanted = literally(net, image)
        assert torch.allclose(log_p.exp(), wanted, atol=1e-9)
        assert not torch.allclose(net(image[None]).softmax(1)[0], wanted, atol=1e-3)
    assert torch.allclose(mixes(images[1:2]), found[1:2], atol=1e-9)
    assert torch.allclose(found.log_softmax(1), found, atol=1e-9)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_ends_are_the_norm_s_own_statistics_and_those_of_the_image(axes):
    norm = (nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d)(2).double()
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    maps = torch.randn(1, 2, *[5] * axes, dtype=torch.float64)
    assert torch.allclose(mixed_norm(0.0, norm, maps), norm.eval()(maps))
    assert torch.allclose(mixed_norm(1.0, norm, maps), norm.train()(maps))
    half = mixed_norm(0.5, norm.float(), maps.half())
    assert half.dtype == torch.float16


def test_the_surest_mixture_weighs_most_and_equal_ones_the_same():
    sure, less = (torch.tensor([p, 1 - p]).log().view(1, 2, 1, 1).expand(1, 2, 3, 3) for p in (0.99, 0.7))
    (first,), (second,), (third,) = weights_of(torch.stack([sure, less, less])).tolist()
    assert first == pytest.approx(math.e / (math.e + 2))
    assert second == third == pytest.approx(1 / (math.e + 2))
    assert weights_of(torch.stack([less, less])).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_training_is_as_ever():
    plain, mixes = network().train(), network("Dimwit:nG=3,bn_mix=True").train()
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(plain(image), mixes(image))
    assert all("forward" not in vars(norm) for norm in batch_norms(mixes.eval()))


def test_what_a_network_is_called():
    assert mixing("UNet", True) == "UNet:bn_mix=True"
    assert mixing("UNet:nG=8", True) == "UNet:nG=8,bn_mix=True"
    assert mixing("UNet:bn_mix=True,nG=8", False) == "UNet:nG=8"
    assert mixing("UNet:bn_mix=True", False) == mixing("UNet", False) == "UNet"
    assert mixing("X:a=[1,2], bn_mix = True", True) == "X:a=[1,2], bn_mix = True"
    assert [mixes_norms(text) for text in ("X:a=1, bn_mix = True", "X:bn_mix=False", "bn_mix", "")] == [
        True,
        *[False] * 3,
    ]
    assert ghost_network("UNet:nG=2,bn_mix=True", 1, 2).mixes
    assert not build_network("UNet:nG=2,bn_mix=False", 1, 2).mixes


def test_what_cannot_mix_is_refused():
    with pytest.raises(UserError, match="UNet3D has no batch norm"):
        build_network("UNet3D:width=2,depth=1,bn_mix=True", 1, 2)
    with pytest.raises(UserError, match="bn_mix is True or False, not 3"):
        build_network("UNet:bn_mix=3", 1, 2)


# --------------------------------------------------------------------------------------------------- in runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_site(root / "source", 200, 60, seed=1)
    write_site(root / "target", 150, 90, seed=2)
    program.main(arguments(root / "source", root / "trained", "--network", "Dimwit", "--n_epoch", 3, "--l_rate", 3e-2))
    return root


def run(world, folder, *more, method="noadap", weights="trained/last.pkl"):
    start = ("--network", "Dimwit", "--augment", 0, "--method", method, "--model_weights", world / weights)
    program.main(arguments(world / "target", folder, *start, *more))
    return load_checkpoint(folder / "last.pkl")


def test_a_run_its_network_and_who_starts_from_it_predict_so(world, tmp_path):
    plain = run(world, tmp_path / "plain", "--entmap")
    mixed = run(world, tmp_path / "mixed", "--bn_mix", "--entmap")
    assert plain["network"] == "Dimwit"
    assert mixed["network"] == "Dimwit:bn_mix=True"
    assert network_of(mixed, tmp_path / "mixed/last.pkl").mixes
    maps = {name: (tmp_path / name / "ent_map/Case04_1.png").read_bytes() for name in ("plain", "mixed")}
    assert maps["plain"] != maps["mixed"]
    chain = run(world, tmp_path / "chain", "--entmap", weights=tmp_path / "mixed/last.pkl")
    assert chain["network"] == mixed["network"]
    assert (tmp_path / "chain/ent_map/Case04_1.png").read_bytes() == maps["mixed"]
    ended = run(world, tmp_path / "ended", "--bn_mix", 0, "--entmap", weights=tmp_path / "mixed/last.pkl")
    assert ended["network"] == "Dimwit"
    assert (tmp_path / "ended/ent_map/Case04_1.png").read_bytes() == maps["plain"]


def test_a_choice_shows_each_network_as_it_predicts(world, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "run_alone", here)
    still = ("--target_losses", "[('SelfEntropy', {}, 1)]", "--l_rate", 0, "--bn_stats", "freeze", "--n_epoch", 1)
    run(world, tmp_path / "still", *still, method="sfda")
    run(world, tmp_path / "bnmix", "--bn_mix")
    table = {}
    for names in (("still", "bnmix"), ("bnmix", "still"), ("bnmix",)):
        out = tmp_path / "-".join(["of", *names])
        choosing.main(["--runs", *(str(tmp_path / name) for name in names), "--out", str(out), "--device", "cpu"])
        found = pd.read_csv(out / "selection.csv").set_index("candidate")
        table[names] = found.cmr_ei
        name = found.index[found.chosen == 1][0]
        mixes = mixes_norms(load_checkpoint(out / "chosen.pkl")["network"])
        assert mixes == (name == "bnmix" or names == ("bnmix",))
    both = table["still", "bnmix"]
    assert both["source"] == pytest.approx(both["still"], abs=1e-6)
    assert both["bnmix"] != pytest.approx(both["still"], abs=1e-4)
    assert table["bnmix", "still"]["source"] == pytest.approx(both["source"], abs=1e-6)
    assert table[("bnmix",)]["source"] == pytest.approx(both["bnmix"], abs=1e-6)
