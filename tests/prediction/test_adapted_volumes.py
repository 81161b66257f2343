"""predict.py --adapt of a network that takes whole volumes."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import main as program
from datasets.size_table import read_size_table
from preprocess.volume_set import make_volume_set, read_spec
from processes.errors import UserError
from tests.prediction.test_predict import cohort, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Volumes, and a network that learnt to find the organ in whole ones of them."""
    root = tmp_path_factory.mktemp("volumes")
    folder = cohort(root / "volumes")
    words = ["--dest", root / "set", "--image", f"{folder}/p?_i0.nii.gz", "--patient", r"(p\d)", "--train", "4"]
    words += ["--label", f"{folder}/p?_gt.nii.gz", "--axes", "2", "1", "0", "--jobs", "1"]
    make_volume_set(read_spec(list(map(str, words))))
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
    words = ["--target_dataset", root / "set", "--target_folders", folders, "--n_class", 2, "--crop", 8, 8, 8]
    words += ["--grp_regex", r"(p\d)", "--network", "UNet3D:width=2,depth=1", "--n_epoch", 2, "--l_rate", "2e-2"]
    words += ["--target_losses", "[('DiceLoss', {}, 1)]", "--workdir", root / "run", "--steps", 4, "--cpu"]
    program.main(list(map(str, words)))
    return folder, root / "run/last.pkl"


def test_a_network_of_volumes_is_adapted_to_volumes(trained, tmp_path, capsys):
    folder, weights = trained
    words = ["--volumes", f"{folder}/p[0-2]_i0.nii.gz", "--out", tmp_path / "out", "--adapt", "--n_epoch", 2]
    run(weights, *words, "--l_rate", "1e-2", "--prior_mm3", 450)
    place = tmp_path / "out/adaptation"
    told = capsys.readouterr().out
    assert "Adapting to set: train 2 patients, val 1 patient" in told
    own, made = (json.loads((path / "set/dataset.json").read_text()) for path in (weights.parents[1], place))
    assert made["scale"] == own["scale"]  # as the network's own images were scaled, whatever is in these
    assert (made["axes"], made["orient"], made["labels"]) == (own["axes"], own["orient"], None)
    assert not list(place.glob("set/*/GT/*"))
    sizes = read_size_table(place / "sizes.csv", "dumbprednotags")
    assert {name: row.tolist() for name, row in sizes.sizes.items()} == {
        f"p{number}": [11 * 13 * 9 - 125, 125] for number in range(3)
    }
    assert json.loads((place / "run/provenance.json").read_text())["supervision"] == "none"
    assert len(pd.read_csv(place / "run/IMG_target_metrics.csv")) == 2
    before, after = (torch.load(path, weights_only=True) for path in (weights, place / "run/last.pkl"))
    assert any(not torch.equal(before["net"][name], after["net"][name]) for name in before["net"])
    assert np.prod(after["preprocessing"]["crop"]) >= 11 * 13 * 9
    masks = [nib.load(tmp_path / f"out/p{number}.nii.gz") for number in range(3)]
    for number, mask in enumerate(masks):
        assert mask.shape == (11, 13, 9)
        np.testing.assert_allclose(mask.affine, nib.load(folder / f"p{number}_i0.nii.gz").affine, atol=1e-5)
    run(weights, *words, "--l_rate", "1e-2", "--prior_mm3", 450)
    assert "0 predicted, 3 were there" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"set was made of other volumes than these; remove"):
        run(weights, "--volumes", f"{folder}/p[0-3]_i0.nii.gz", *words[2:], "--prior_mm3", 450)


@pytest.mark.parametrize(
    ("which", "flags", "words"),
    [
        ("p[01]", ["--prior_mm2", 40], "--prior_mm2 is the area of a class in a slice, and this network takes volumes"),
        ("p0", ["--prior_mm3", 450], "watches itself on the last, and there is but one"),
        ("p[01]", [], "give --prior_mm2 .*one of them; got none"),
    ],
)
def test_what_an_adaptation_to_volumes_lacks_is_told(trained, tmp_path, which, flags, words):
    folder, weights = trained
    with pytest.raises(UserError, match=words):
        run(weights, "--volumes", f"{folder}/{which}_i0.nii.gz", "--out", tmp_path / "out", "--adapt", *flags)
    assert not (tmp_path / "out").exists()


def test_a_volume_of_two_channels_stops_no_other(trained, tmp_path):
    folder, weights = trained
    (tmp_path / "new").mkdir()
    (tmp_path / "new/p0.nii.gz").write_bytes((folder / "p0_i0.nii.gz").read_bytes())
    image = nib.load(folder / "p1_i0.nii.gz")
    both = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(both, image.affine), tmp_path / "new/p1.nii.gz")
    with pytest.raises(UserError, match="another number of channels than the 1 that the network takes: p1 has 2"):
        run(weights, "--volumes", tmp_path / "new", "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.gz")] == ["p0.nii.gz"]
