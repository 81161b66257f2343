"""Networks out of bundles of MONAI: the same logits, nothing evaluated, used and adapted like any other."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch

import predict
from nets.checkpoint_files import load_checkpoint
from networks import build_network, network_of
from prediction import adopt
from preprocess.volume_set import main as make_volumes
from processes.errors import UserError
from tests.tiny_network import write_volumes

nets = pytest.importorskip("monai.networks.nets", reason="pip install -r tests/requirements.txt")

UNET = {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "norm": "batch"}
SEGRESNET = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "norm": ["group", {"num_groups": 4}]}
KINDS = [("UNet", UNET), ("UNet", {**UNET, "num_res_units": 0}), ("SegResNet", SEGRESNET)]
KINDS += [("BasicUNet", {"features": [4, 4, 4, 4, 4, 4]}), ("AttentionUnet", {"channels": [4, 8], "strides": [2]})]


def bundle(folder, kind="UNet", told=UNET, dims=3, wrap=None, **changed):
    """The folder of a bundle, and the network in it."""
    torch.manual_seed(0)
    told = {"spatial_dims": dims, "in_channels": 1, "out_channels": 2, **told}
    net = getattr(nets, kind)(**told).eval()
    config = {
        "imports": ["$import torch"],
        "channels": 1,
        "network_def": {"_target_": kind, **told, "in_channels": "@channels"},
    }
    config |= {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 8], "sw_batch_size": 1}}
    config |= {"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Orientationd", "axcodes": "RAS"}]}}
    config["network_def"] |= changed
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen"}}}}}
    for name, content in (("inference", config), ("metadata", metadata)):
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / f"configs/{name}.json").write_text(json.dumps(content))
    (folder / "models").mkdir()
    state = net.state_dict()
    torch.save({wrap: state} if wrap else state, folder / "models/model.pt")
    return folder, net


def adopted(folder, out):
    adopt.main(["--monai", str(folder), "--out", str(out)])
    return out


@pytest.mark.parametrize(("kind", "told"), KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_it_computes_what_monai_s_network_computes(tmp_path, kind, told, dims):
    """And the classifier, read off its input, gives the same logits."""
    folder, net = bundle(tmp_path / "there", kind, told, dims)
    weights = adopted(folder, tmp_path / "last.pkl")
    ours = network_of(load_checkpoint(weights), weights).eval()
    image = torch.randn(1, 1, *[32] * dims, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, finest = ours.with_features(image)
        torch.testing.assert_close(ours(image), net(image))
        torch.testing.assert_close(ours.classifier(finest), logits)
    assert ours.classifier is not ours.net


def test_its_labels_window_and_multiple_are_told(tmp_path):
    weights = adopted(bundle(tmp_path / "there", wrap="model")[0], tmp_path / "last.pkl")
    state = load_checkpoint(weights)
    assert state["labels"] == ["background", "spleen"]
    assert state["preprocessing"]["crop"] == [16, 16, 8]
    assert network_of(state, weights).multiple == math.prod(UNET["strides"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"channels": "$__import__('os').system('touch made')"}, "is an expression, and none is evaluated"),
        ({"norm": ["batch", {"eps": "$1e-5"}]}, "is an expression"),
        ({"channels": "@nothing"}, "refers to no entry"),
        ({"channels": "@network_def"}, "refers to no entry"),
        ({"_target_": "os.system"}, "network_def is of os.system"),
        ({"_target_": "mine.UNet"}, "network_def is of mine.UNet"),
        ({"_target_": "monai.networks.nets.Classifier"}, "network_def is of monai"),
        ({"_requires_": "@imports"}, "is an expression"),
        ({"_requires_": 1}, "_requires_"),
        ({"_mode_": "callable"}, "_mode_"),
        ({"out_channels": 1}, "out_channels"),
        ({"channels": [4, 8]}, "do not fit"),
        ({"norm": "nothing"}, "MONAI makes no UNet"),
        ({"channels": [4, 8, 16]}, "do not fit"),
    ],
)
def test_a_config_that_is_code_or_nonsense_is_refused(tmp_path, monkeypatch, changed, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        adopted(bundle(tmp_path / "there", **changed)[0], tmp_path / "last.pkl")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "last.pkl").exists()


def test_a_whole_network_in_a_pickle_is_refused(tmp_path):
    folder, net = bundle(tmp_path / "there")
    torch.save(net, folder / "models/model.pt")
    with pytest.raises(UserError, match="to load that is to run code"):
        adopted(folder, tmp_path / "last.pkl")


@pytest.mark.parametrize("part", ["net=Classifier", "net=UNet,told={'in_channels':2}", "multiple=0", "told=[1]"])
def test_a_network_that_cannot_be_is_refused(part):
    with pytest.raises(UserError, match="MonaiNet"):
        build_network(f"MonaiNet:{part}", 1, 2)


def test_it_predicts_and_adapts_like_a_set_that_was_made_likewise(tmp_path):
    """What its transforms are, a set of this program says: --like."""
    volumes = write_volumes(tmp_path / "volumes", 3)
    words = ["--dest", tmp_path / "set", "--image", f"{volumes}/p?.nii.gz", "--label", f"{volumes}/p?_gt.nii.gz"]
    words += ["--patient", r"(p\d)", "--train", 2, "--jobs", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["volume_set", *map(str, words)])
        make_volumes()
    weights = adopted(bundle(tmp_path / "there")[0], tmp_path / "last.pkl")
    words = ["--weights", weights, "--volumes", f"{volumes}/p?.nii.gz", "--device", "cpu", "--like", tmp_path / "set"]
    with pytest.raises(UserError, match="does not tell how the network's images were made"):
        predict.main(list(map(str, [*words[:-2], "--out", tmp_path / "unlike"])))
    predict.main(list(map(str, [*words, "--out", tmp_path / "out", "--adapt", "--prior_mm3", 500, "--n_epoch", 1])))
    masks = [np.asarray(nib.load(tmp_path / f"out/p{n}.nii.gz").dataobj) for n in range(3)]
    assert masks[0].shape == (20, 22, 9)
    state = load_checkpoint(tmp_path / "out/adaptation/run/last.pkl")
    before = load_checkpoint(weights)["net"]
    assert any(not torch.equal(value, state["net"][name]) for name, value in before.items())
