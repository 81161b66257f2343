"""What MONAI runs of a bundle: the program is the prediction, whatever is done to a volume, and so are the masks."""

import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from files.grids import turn
from files.pairing import Case
from nets.network_folder import MANIFEST
from networks import build_network
from prediction import bundle
from prediction.inference import Predicting, predict
from prediction.model import load_model
from prediction.monai_bundle import FILES, write_monai_bundle
from prediction.preparation import preparation
from prediction.torchscript import write_torchscript
from processes.errors import UserError
from tests.prediction.test_predict import run, trained_in

pytest.importorskip("safetensors", reason="pip install -r requirements.txt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("monai"))


def changed(run, path, **card):
    """The checkpoint with another card, transform of its images, or share of matched grey levels."""
    state = torch.load(run / "last.pkl", weights_only=True)
    told = state["preprocessing"]
    told["image"][1] = card.pop("transform", told["image"][1])
    told["match_source"] = card.pop("share", 0.0)
    state["network"] = card.pop("network", state["network"])
    state["identity"]["decode"] = card.pop("decode", "argmax")
    for name in [name for name in card if name in told["card"]["normalisation"]]:
        told["card"]["normalisation"][name] = card.pop(name)
    told["card"] |= card
    torch.save(state, path)
    return path


def compared(weights, folder, tmp_path, patients=("p1", "p2", "p5")):
    """How many voxels of a class there are in the masks of the program, which are those of the prediction."""
    model, found = load_model(weights, "cpu"), 0
    write_torchscript(model, tmp_path / "model.ts")
    program, prepare = torch.jit.load(tmp_path / "model.ts"), preparation(model.recipe, tmp_path)
    for patient in patients:
        path = folder / f"{patient}_i0.nii.gz"
        prepared = prepare.read(Case(patient, {"IMG": path}))
        wanted = predict(model, prepared, Predicting(probabilities=True))
        own, voxels = prepared.grid.directions(), np.asarray(nib.load(path).dataobj)
        image = torch.from_numpy(np.ascontiguousarray(turn(voxels, own, model.recipe.directions), np.float32))
        with torch.inference_mode():
            p = program(image[None, None])[0].numpy()
        p = np.stack([turn(share, model.recipe.directions, own) for share in p], axis=-1)
        np.testing.assert_allclose(p, wanted.probabilities, atol=1e-5)
        np.testing.assert_array_equal(p.argmax(-1), wanted.classes)
        found += np.count_nonzero(wanted.classes)
    return found


NII = {"format": "nii", "bits": None, "transform": "nii_transform"}
FORMS = {
    "cut": {},
    "padded by odd numbers": {"cut": {"size": [9, 16], "resize": None, "spacing": None}},
    "cut and padded": {"cut": {"size": [16, 8], "resize": None, "spacing": None}, "axis": 1},
    "whole, to a multiple": {"cut": {"size": None, "resize": None, "spacing": None}, "multiple": 4, "axis": 0},
    "window": {"kind": "window", "window": [150.0, 400.0], "bits": 16},
    "z-score, padded": {**NII, "kind": "zscore", "cut": {"size": [17, 18], "resize": None, "spacing": None}},
    "slice by slice": {**NII, "scope": "slice", "percentiles": [3, 90], "clip": [0.0, 450.0], "no_clip": True},
    "smallest to largest": {**NII, "kind": "minmax", "scope": "slice"},
    "published": {**NII, "kind": "zscore", "transform": "nii_zscore_transform", "clip": [100.5, 450.0]},
    "as they are": {**NII, "kind": "none", "transform": "nii_transform2"},
    "matched": {"share": 0.7},
    "exchanged": {**NII, "share": -1.0},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_program_is_the_prediction(trained, tmp_path, form):
    folder, run = trained
    assert compared(changed(run, tmp_path / "a.pkl", **FORMS[form]), folder, tmp_path) > 0


@pytest.mark.parametrize(("crop", "overlap", "share"), [((8, 8, 8), 0.5, 0.0), ((16, 8, 4), 0.25, -0.5)])
def test_the_program_of_a_volumetric_network(trained, tmp_path, crop, overlap, share):
    """Windows larger and smaller than a volume, axes turned."""
    folder, run = trained
    state = torch.load(run / "last.pkl", weights_only=True)
    net = build_network("UNet3D:width=2,depth=1", 1, 2)
    state |= {"network": "UNet3D:width=2,depth=1", "net": net.state_dict()}
    card = {"axes": [2, 0, 1], "scale": {"mean": 200.0, "sd": 90.0}, "orient": "RAS", "name": "a"}
    state["preprocessing"] |= {"card": card, "crop": list(crop), "overlap": overlap, "match_source": share}
    torch.save(state, tmp_path / "a.pkl")
    compared(tmp_path / "a.pkl", folder, tmp_path)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"network": "Dimwit:bn_mix=True"}, "--bn_mix"),
        ({"decode": "dice"}, "--decode dice"),
        ({"cut": {"size": None, "resize": [8, 8], "spacing": None}}, "resampled"),
        ({"centre": "labels"}, "cut round the labels"),
        ({"channel": 1}, "one channel of its volumes"),
    ],
)
def test_what_the_program_cannot_do_is_told_before_anything_is_written(trained, tmp_path, card, words):
    model = load_model(changed(trained[1], tmp_path / "a.pkl", **card), "cpu")
    with pytest.raises(UserError, match=f"{words}.*predict.py --bundle does all that"):
        write_monai_bundle(model, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_a_bundle_says_why_monai_cannot_run_it(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PACKAGES", ("no_such_package",))
    shutil.copytree(trained[1], tmp_path / "run")
    words = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    bundle.main(words)
    assert sorted(json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]) == sorted(FILES)
    changed(trained[1], tmp_path / "run/last.pkl", decode="dice")
    bundle.main(words)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["files"] == {}
    assert not any((tmp_path / "out" / name).exists() for name in FILES)
    card = (tmp_path / "out/README.md").read_text()
    assert "`configs/, models/`: not written: its masks are those of the highest expected Dice" in card
    assert "monai.bundle run" not in card


def test_monai_runs_the_bundle(trained, tmp_path, monkeypatch):
    """Volumes of every orientation; the masks lie where the volumes do."""
    monai = pytest.importorskip("monai.bundle")
    pytest.importorskip("ignite", reason="pip install pytorch-ignite")
    folder, weights = trained
    model = load_model(changed(weights, tmp_path / "a.pkl", share=0.5), "cpu")
    (tmp_path / "bundle").mkdir()
    labels = ["background", "organ"]
    write_monai_bundle(model, tmp_path / "bundle", {"name": "a", "labels": labels, "licence": None})
    (tmp_path / "volumes").mkdir()
    for path in folder.glob("p?_i0.nii.gz"):
        shutil.copy(path, tmp_path / "volumes")
    told = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    assert told["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "organ"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # MONAI adds to it
    place = {"bundle_root": str(tmp_path / "bundle"), "dataset_dir": str(tmp_path / "volumes")}
    files = {
        f"{kind}_file": f"bundle/configs/{name}.json" for kind, name in (("meta", "metadata"), ("config", "inference"))
    }
    with torch.enable_grad():
        monai.run(**place, **files, output_dir=str(tmp_path / "masks"), logging_file=False)
    torch.set_grad_enabled(True)
    run(tmp_path / "a.pkl", "--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out")
    for number in range(6):
        found, wanted = nib.load(tmp_path / f"masks/p{number}_i0.nii.gz"), nib.load(tmp_path / f"out/p{number}.nii.gz")
        np.testing.assert_array_equal(found.dataobj, wanted.dataobj)
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-5)
        assert np.count_nonzero(wanted.dataobj) > 0
