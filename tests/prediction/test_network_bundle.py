"""A network as a folder for others: the same network, the same masks, nothing believed of files that were changed."""

import json
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import torch

import main as program
import predict
from nets.checkpoint_files import load_checkpoint, of_a_network
from nets.network_folder import MANIFEST, WEIGHTS, write_network_folder
from networks import build_network
from prediction import bundle
from prediction.history import history_of
from processes.errors import UserError
from tests.prediction.test_predict import evaluating, trained_in

pytest.importorskip("safetensors", reason="pip install -r requirements.txt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def _without_onnx(monkeypatch):
    """Its export takes seconds, and has a test of its own."""
    monkeypatch.setattr(bundle, "PACKAGES", ("no_such_package",))


def make(run, out, *flags):
    bundle.main(list(map(str, ["--run", run, "--out", out, *flags])))
    return out


def masks_of(folder, out, *flags):
    """Name -> bytes of all that is predicted of two patients."""
    words = ["--volumes", f"{folder}/p[14]_i0.nii.gz", "--patient", r"(p\d)", "--device", "cpu", "--out", out, *flags]
    predict.main(list(map(str, [*words, "--probabilities"])))
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".gz", ".csv")
    }


# -- the same network ------------------------------------------------------------------------------------------------


NETWORKS = (("Dimwit", 3, 2), ("UNet:nG=2", 5, 1), ("UNet3D:width=2,depth=1", 2, 4))


@pytest.mark.parametrize(("network", "n_class", "channels"), NETWORKS)
def test_a_checkpoint_comes_back_bit_by_bit(tmp_path, network, n_class, channels):
    """Of networks of slices and of volumes, with batch norm and instance norm."""
    net = build_network(network, channels, n_class).state_dict()
    for tensor in net.values():
        if tensor.is_floating_point():
            tensor.normal_().abs_().mul_(1e-30)
    told = {"a": 0.1, "b": [1e-300, None, True, -0.0, "ä\u2028"], "choice": {}}
    state = {"network": network, "in_channels": channels, "n_class": n_class, "seed": 1, "epoch": 3, "identity": told}
    state |= {"labels": list("abcde"), "net": net}
    write_network_folder(tmp_path, state, {"licence": None})
    found = load_checkpoint(tmp_path / MANIFEST)
    assert found.keys() == state.keys()
    assert json.dumps([found[name] for name in found if name != "net"]) == json.dumps(
        [state[name] for name in found if name != "net"]
    )
    assert found["net"].keys() == state["net"].keys()
    for name, tensor in state["net"].items():
        assert found["net"][name].dtype == tensor.dtype
        assert found["net"][name].numpy().tobytes() == tensor.numpy().tobytes()


def test_weights_that_share_memory_or_lie_otherwise_in_it_come_back(tmp_path):
    shared = torch.randn(2, 3, 4, 5)
    net = {"a": shared, "b": shared[:1], "last": shared.to(memory_format=torch.channels_last), "n": torch.tensor(7)}
    write_network_folder(tmp_path, {"network": "Dimwit", "net": net}, {})
    found = load_checkpoint(tmp_path / MANIFEST)["net"]
    assert all(torch.equal(found[name], net[name]) for name in net)
    assert found["n"].dtype == torch.int64


@pytest.mark.parametrize("entry", [{"a": float("nan")}, {1: "a"}, {"a": {1, 2}}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(entry, tmp_path):
    with pytest.raises(UserError, match="no bundle"):
        write_network_folder(tmp_path, {"identity": entry, "net": {}}, {})
    assert not list(tmp_path.iterdir())


# -- the same masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [False, True])
def test_the_masks_are_those_of_the_checkpoint(trained, tmp_path, looks):
    """Also of one that brings grey levels to the source's, mixes batch norms, and decodes by expected Dice."""
    folder, run = trained
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run/last.pkl"
    if looks:
        state = torch.load(weights, weights_only=True)
        state["preprocessing"]["match_source"], state["identity"]["decode"] = -0.7, "dice"
        torch.save(state | {"network": state["network"] + ":bn_mix=True"}, weights)
    out = make(tmp_path / "run", tmp_path / "bundle")
    shutil.rmtree(tmp_path / "run" / "last_epoch")
    expected = masks_of(folder, tmp_path / "a", "--weights", weights)
    assert len(expected) == 5
    assert masks_of(folder, tmp_path / "b", "--bundle", out) == expected
    assert not looks or expected != masks_of(folder, tmp_path / "c", "--weights", run / "last.pkl")


# -- what is told ----------------------------------------------------------------------------------------------------


def test_the_manifest_and_the_card_tell_what_the_network_is(trained, tmp_path, capsys):
    _, run = trained
    out = make(run, tmp_path / "out", "--labels", "the organ", "--licence", "CC-BY-4.0")
    assert "model.onnx: not written: it needs the packages no_such_package" in capsys.readouterr().out
    told, state = json.loads((out / MANIFEST).read_text()), torch.load(run / "last.pkl", weights_only=True)
    assert told["labels"] == ["background", "the organ"]
    assert told["temperatures"] == state["bundle"]["numbers"]["temperatures"]
    assert told["source"] == state["bundle"]
    assert told["preprocessing"] == json.loads(json.dumps(state["preprocessing"]))
    assert [step["method"] for step in told["history"]] == ["supervised"]
    assert told["history_is_whole"]
    assert told["scores"]["classes"][0]["patients"] == 2
    card = (out / "README.md").read_text()
    assert 'license: "CC-BY-4.0"' in card
    assert "0 background, 1 the organ" in card
    assert "No label of the target chose the network." in card
    assert f"| the organ | 2 | {told['scores']['classes'][0]['dice']:.3f} |" in card


def test_the_weights_are_read_by_a_python_that_has_safetensors_alone(trained, tmp_path):
    """Not even numpy."""
    _, run = trained
    out, package = make(run, tmp_path / "out"), Path(find_spec("safetensors").origin).parents[1]
    text = f"""import json, sys
sys.path.append({str(package)!r})
from safetensors import deserialize
told = json.load(open({str(out / MANIFEST)!r}))
held = dict(deserialize(open({str(out / WEIGHTS)!r}, "rb").read()))
assert not {{"torch", "numpy"}} & set(sys.modules)
print(told["network"])
for name in sorted(held):
    print(name, held[name]["dtype"], held[name]["shape"], bytes(held[name]["data"]).hex())
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, check=True)
    net = torch.load(run / "last.pkl", weights_only=True)["net"]
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    rows = [f"{name} {kinds[t.dtype]} {list(t.shape)} {t.numpy().tobytes().hex()}" for name, t in net.items()]
    assert done.stdout.splitlines() == ["Dimwit", *sorted(rows)]


def test_the_past_is_told_as_far_as_its_files_are_the_same(trained, tmp_path):
    _, run = trained
    start = tmp_path / "source.pkl"
    state = torch.load(run / "last.pkl", weights_only=True)
    torch.save(
        state | {"choice": {"candidate": "epoch 1", "why": "Chosen: *it*", "labelled": ["p0"]}, "labelled": ["p0"]},
        start,
    )
    words = ["--method", "noadap", "--model_weights", start, "--workdir", tmp_path / "chosen"]
    program.main([*evaluating(run / "last.pkl"), *map(str, words)])
    told = json.loads((make(tmp_path / "chosen", tmp_path / "a") / MANIFEST).read_text())
    assert [step["method"] for step in told["history"]] == ["noadap", "supervised"]
    assert (told["choice"]["why"], told["labelled"]) == ("Chosen: *it*", ["p0"])
    card = (tmp_path / "a/README.md").read_text()
    assert "Chosen: \\*it\\*" in card
    assert "**Labels of 1 patient of the target chose the network**: p0." in card
    torch.save(state | {"epoch": 0}, start)
    told = json.loads((make(tmp_path / "chosen", tmp_path / "b") / MANIFEST).read_text())
    assert [step["method"] for step in told["history"]] == ["noadap"]
    assert not told["history_is_whole"]
    assert "choice" not in told


def test_the_names_of_labels_are_in_the_masks_for_slicer(trained, tmp_path):
    folder, run = trained
    out = make(run, tmp_path / "bundle", "--labels", "the organ")
    masks_of(folder, tmp_path / "a", "--bundle", out, "--segments")
    for patient in ("p1", "p4"):
        voxels, told = nrrd.read(str(tmp_path / f"a/segments/{patient}.seg.nrrd"))
        np.testing.assert_array_equal(voxels, nib.load(tmp_path / f"a/{patient}.nii.gz").dataobj)
        assert (told["Segment0_Name"], told["Segment0_LabelValue"]) == ("the organ", "1")
        assert "Segment1_Name" not in told


# -- what is refused -------------------------------------------------------------------------------------------------


def edited(manifest, **entries):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | entries))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FAULTS = {
    "torn weights": (
        lambda out: (out / WEIGHTS).write_bytes((out / WEIGHTS).read_bytes()[:-9]),
        "is not the file that",
    ),
    "one bit": (lambda out: flip(out / WEIGHTS), "another SHA-256"),
    "no weights": (lambda out: (out / WEIGHTS).unlink(), r"model.safetensors cannot be read"),
    "no manifest": (lambda out: (out / MANIFEST).unlink(), r"has no manifest.json: a bundle is"),
    "torn manifest": (
        lambda out: (out / MANIFEST).write_text((out / MANIFEST).read_text()[:-50]),
        "is torn, or no JSON",
    ),
    "a list": (lambda out: (out / MANIFEST).write_text("[1]"), "is no manifest of this program"),
    "deep": (lambda out: (out / MANIFEST).write_text("[" * 100_000), "is torn, or no JSON"),
    "NaN": (lambda out: edited(out / MANIFEST, seed=float("nan")), "is torn, or no JSON"),
    "another prior": (lambda out: edited(out / MANIFEST, licence="MIT"), "was changed since it was written"),
    "a later format": (lambda out: edited(out / MANIFEST, format=2), "has the format 2, and 1"),
    "another place": (lambda out: edited(out / MANIFEST, weights={"file": "/etc/passwd"}), "is no manifest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_torn_foreign_or_edited_is_refused(trained, tmp_path, fault):
    folder, run = trained
    harm, words = FAULTS[fault]
    harm(make(run, tmp_path / "out"))
    with pytest.raises(UserError, match=words):
        masks_of(folder, tmp_path / "masks", "--bundle", tmp_path / "out")
    assert not (tmp_path / "masks").exists()


def test_a_sealed_manifest_is_still_looked_at(trained, tmp_path):
    """Whoever writes a seal of their own is believed no more than a checkpoint is."""
    state = of_a_network(load_checkpoint(trained[1] / "last.pkl"))
    write_network_folder(tmp_path, state | {"labels": [1, 2]}, {})
    with pytest.raises(UserError, match="'labels' is list, expected a list of words"):
        load_checkpoint(tmp_path / MANIFEST)
    write_network_folder(tmp_path, state | {"net": {"a": torch.tensor([float("inf")])}}, {})
    with pytest.raises(UserError, match="NaN or infinite weights"):
        load_checkpoint(tmp_path / MANIFEST)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--labels", "a", "b"), "--labels names each of the 1 classes from 1 up once; got 2: a, b"),
        (("--licence", "a\nb"), "--licence takes words of 1 to 200 letters on one line"),
        (("--labels", " "), "--labels takes words"),
    ],
)
def test_names_that_cannot_be_are_refused(trained, tmp_path, flags, words):
    with pytest.raises(UserError, match=words):
        make(trained[1], tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_not_written_to_and_one_s_own_is_made_anew(trained, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="did not begin it"):
        make(trained[1], tmp_path / "notes")
    make(trained[1], tmp_path / "out", "--licence", "A")
    make(trained[1], tmp_path / "out", "--licence", "B")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["licence"] == "B"


@pytest.mark.parametrize("flags", [(), ("--weights", "a", "--bundle", "b")])
def test_one_network_is_named(flags, tmp_path):
    with pytest.raises(UserError, match="give one of them"):
        masks_of(tmp_path, tmp_path / "out", *flags)


def test_every_number_of_a_weight_has_its_bits(tmp_path):
    """Also a number below the smallest normal one, and a zero with a sign."""
    values = torch.tensor([1e-45, -0.0, 3.4028235e38, 0.1])
    write_network_folder(tmp_path, {"net": {"a": values}}, {})
    assert struct.pack("4f", *load_checkpoint(tmp_path / MANIFEST)["net"]["a"]) == values.numpy().tobytes()
    assert len(history_of(Path("a"), {})) == 1
