"""One scan, however its voxels are stored and whatever its header is like: one mask in the scanner's frame.

The network here is none that was trained: what it says of a pixel depends on where the pixel lies and on which sides
its neighbours lie, so that a turn that is wrong anywhere shows.
"""

import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import predict
import prediction.model
from files.grids import Grid, turn
from files.reading import read_voxels
from prediction.familiar import unlike_training
from preprocess.data_report import main as report_data
from preprocess.packing import VolumeSpec
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing.tables import describe
from preprocess.volume_set import describe as describe_volumes
from preprocess.volume_set import make_volume_set
from preprocess.volume_set import read_spec as read_volume_spec
from processes.errors import UserError
from tests.files.test_nifti_headers import STYLES, assert_on_one_grid, put
from tests.files.test_reading import ORIENTATIONS, SHAPE, oblique, write

SCAN = Grid(SHAPE, oblique("LPS"))
K = 3


class Uneven(nn.Module):
    """(B, 1, *size) grey levels -> (B, K, *size): classes by place and by the neighbours on one side of each axis."""

    def forward(self, image):
        value, axes = image[:, 0], range(1, image.ndim - 1)
        for axis in axes:
            value = value + 0.37 * axis * torch.roll(image[:, 0], axis, axis)
            place = torch.arange(image.shape[axis + 1], dtype=torch.float32)
            value = value + 0.21 * axis * place.view([-1 if each == axis else 1 for each in range(value.ndim)])
        wanted = value.mul(2).floor().remainder(K).long()
        return nn.functional.one_hot(wanted, K).movedim(-1, 1).float() * 20


class Bright(nn.Module):
    """Class 1 where the image is brighter than one half."""

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), 40 * (image - 0.5)], 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hundreds of small files, none of which has to outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Makes a checkpoint with this card, of which the network is `net`."""

    def make(card, net, crop=None, n_class=K, **identity):
        monkeypatch.setattr(prediction.model, "network_of", lambda *_: net)
        told = {"card": json.loads(json.dumps(card)), "image": ["IMG", "nii_transform"], "crop": crop, "overlap": 0.5}
        state = {"network": "none", "in_channels": 1, "n_class": n_class, "net": {}, "preprocessing": told}
        torch.save(state | {"identity": identity}, tmp_path / "net.pkl")
        return tmp_path / "net.pkl"

    return make


def scan(seed=0):
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def store(folder, codes, ending, style="both", unit="mm", seed=0):
    """The scan in this order of voxels, as <codes>-<style>-<unit><ending>."""
    path = folder / f"{codes}-{style.replace(' ', '_').replace(',', '')}-{unit}{ending}"
    voxels, affine = np.ascontiguousarray(turn(scan(seed), "LPS", codes)), SCAN.turned(codes).affine
    put(path, voxels, affine, style, unit) if ending == ".nii.gz" else write(path, voxels, affine)
    return path


def cohort(folder, orders=("PIR", "LAS", "RSA"), labels=False):
    """Patients who are stored in these orders."""
    folder.mkdir()
    for number, codes in enumerate(orders):
        store(folder, codes, ".nii.gz", seed=number).rename(folder / f"p{number}_img.nii.gz")
        if labels:
            truth = np.zeros(SHAPE, np.int16)
            truth[1:3, 1:4, 2:5] = 1
            voxels = np.ascontiguousarray(turn(truth, "LPS", codes))
            put(folder / f"p{number}_gt.nii.gz", voxels, SCAN.turned(codes).affine, "both")
    return folder


def cut(folder, dest, *flags):
    words = ["--dest", dest, "--image", f"IMG={folder}/*_img.nii.gz", "--patient", r"(p\d)", "--val_list", "p1"]
    words += ["--format", "nii", "--normalise", "minmax", "--jobs", "1", *flags]
    return slice_set(read_spec(list(map(str, words))))


def run(weights, volumes, out, *flags):
    predict.main(list(map(str, ["--weights", weights, "--volumes", volumes, "--out", out, "--device", "cpu", *flags])))


def assert_one_mask(out, folder):
    """Every mask in the scanner's frame is the first one; each lies where its image lies."""
    masks = sorted(out.glob("*.nii.gz"))
    expected = None
    for path in masks:
        (image,) = [
            each
            for each in folder.iterdir()
            if each.name.split(".")[0] == path.name.split(".")[0] and (each.suffix != ".raw")
        ]
        mask = turn(np.asarray(nib.load(path).dataobj), path.name[:3], "LPS")
        expected = mask if expected is None else expected
        np.testing.assert_array_equal(mask, expected, err_msg=path.name)
        assert_on_one_grid(path, image)
    assert np.bincount(expected.ravel(), minlength=K).min() > 5
    return len(masks), expected


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_one_scan_in_48_orders_and_every_style_of_header_has_one_mask(tmp_path, network, plane):
    card = cut(cohort(tmp_path / "volumes"), tmp_path / "set", "--plane", plane, "--size", 8, 6)
    weights, folder = network(card, Uneven()), tmp_path / "stored"
    folder.mkdir()
    styles = [(style, "mm") for style in STYLES if style != "no codes"] + [("both", "micron")]
    for number, (style, unit) in enumerate(styles if plane == "axial" else [("both", "mm")]):
        for codes in ORIENTATIONS if style == "both" and unit == "mm" else ORIENTATIONS[number % 3 :: 3]:
            store(folder, codes, ".nii.gz", style, unit)
    run(weights, f"{folder}/*.nii.gz", tmp_path / "out")
    count, _ = assert_one_mask(tmp_path / "out", folder)
    assert count == 48 + 16 * (len(styles) - 1 if plane == "axial" else 0)


def test_one_scan_in_48_orders_and_other_formats_has_one_mask(tmp_path, network):
    card = cut(cohort(tmp_path / "volumes"), tmp_path / "set", "--plane", "coronal", "--resize", 7, 9)
    weights, expected = network(card, Uneven()), []
    for ending in (".nrrd", ".mha", ".mhd"):
        folder = tmp_path / ending[1:]
        folder.mkdir()
        for codes in ORIENTATIONS:
            store(folder, codes, ending)
        run(weights, f"{folder}/*{ending}", tmp_path / f"out{ending}")
        count, mask = assert_one_mask(tmp_path / f"out{ending}", folder)
        assert count == 48
        expected.append(mask)
    np.testing.assert_array_equal(expected[0], expected[1])
    np.testing.assert_array_equal(expected[0], expected[2])


def test_a_dicom_series_has_the_same_mask(tmp_path, network):
    card = cut(cohort(tmp_path / "volumes"), tmp_path / "set")
    weights, folder = network(card, Uneven()), tmp_path / "series"
    folder.mkdir()
    for codes in ("LPS", "PSL", "LIP", "RAS"):
        store(folder, codes, "")
    run(weights, f"{folder}/*/", tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("*.nii.gz")):
        codes = "".join(nib.aff2axcodes(nib.load(path).affine))
        mask = turn(np.asarray(nib.load(path).dataobj), codes, "LPS")
        store(tmp_path, "LPS", ".nii.gz")
        assert_on_one_grid(path, folder / path.name.removesuffix(".nii.gz"))
        if not (tmp_path / "whole").exists():
            run(weights, f"{tmp_path}/LPS-*.nii.gz", tmp_path / "whole")
        (whole,) = (tmp_path / "whole").glob("*.nii.gz")
        np.testing.assert_array_equal(mask, nib.load(whole).dataobj, err_msg=path.name)


def test_a_network_of_volumes_sees_them_in_its_own_directions(tmp_path, network):
    volumes = cohort(tmp_path / "volumes")
    images = (f"{volumes}/*_img.nii.gz",)
    card = make_volume_set(
        VolumeSpec(tmp_path / "set", images, None, r"(p\d)", axes=(2, 1, 0), normalise="none", jobs=1)
    )
    assert card["geometry"]["directions"] == "SPL"
    assert card["stored_as"] == {"PIR": ["p0"], "LAS": ["p1"], "RSA": ["p2"]}
    weights, folder = network(card, Uneven(), [8, 8, 8]), tmp_path / "stored"
    folder.mkdir()
    for codes in ORIENTATIONS:
        store(folder, codes, ".nii.gz", "two places")
        store(folder, codes, ".nrrd")
    run(weights, f"{folder}/*", tmp_path / "out")
    count, _ = assert_one_mask(tmp_path / "out", folder)
    assert count == 96


# -- what the card tells ----------------------------------------------------------------------------------------------


def test_volumes_that_are_cut_as_they_are_stored_tell_how_that_is(tmp_path, network):
    card = cut(cohort(tmp_path / "volumes", ("PIR",) * 3), tmp_path / "set", "--orient", "stored", "--axis", 2)
    assert (card["orient"], card["geometry"]["directions"]) == (None, "PIR")
    weights, folder = network(card, Uneven()), tmp_path / "stored"
    folder.mkdir()
    for codes in ORIENTATIONS[::5]:
        store(folder, codes, ".nii.gz")
    run(weights, f"{folder}/*", tmp_path / "out")
    assert_one_mask(tmp_path / "out", folder)


def older(card):
    """The card as it was before it told what is in it of the volumes."""
    return {
        name: value for name, value in card.items() if name not in ("geometry", "grey_levels", "stored_as", "centre")
    }


def test_a_checkpoint_that_does_not_tell_directions_is_refused_or_proved(tmp_path, network):
    card = cut(cohort(tmp_path / "volumes", ("PIR",) * 3), tmp_path / "set", "--orient", "stored")
    folder = tmp_path / "stored"
    folder.mkdir()
    for codes in ("PIR", "LPS"):
        store(folder, codes, ".nii.gz")
    weights = network(older(card), Uneven())
    with pytest.raises(UserError, match="does not tell in which directions .* Give --orient"):
        run(weights, f"{folder}/*", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(weights, f"{folder}/*", tmp_path / "told", "--orient", "PIR")
    run(weights, f"{folder}/PIR*", tmp_path / "as_stored", "--orient", "stored")
    (tmp_path / "set/dataset.json").write_text(json.dumps(older(card)))
    weights = network(older(card), Uneven(), target_dataset=str(tmp_path / "set"))
    run(weights, f"{folder}/*", tmp_path / "proved")
    _, expected = assert_one_mask(tmp_path / "told", folder)
    for out in ("as_stored", "proved"):
        np.testing.assert_array_equal(assert_one_mask(tmp_path / out, folder)[1], expected)
    with pytest.raises(UserError, match="axes ran to PIR; leave --orient out"):
        run(weights, f"{folder}/*", tmp_path / "out", "--orient", "LPS")
    (tmp_path / "set/dataset.json").write_text(json.dumps(older(card) | {"site": "another"}))
    with pytest.raises(UserError, match="does not tell in which directions"):
        run(weights, f"{folder}/*", tmp_path / "out")


def test_a_network_of_mixed_slices_has_no_directions(tmp_path, network):
    card = cut(cohort(tmp_path / "volumes"), tmp_path / "set", "--orient", "stored", "--resize", 6, 6)
    with pytest.raises(UserError, match=r"stored in several, 1 .*Give --orient"):
        run(network(card, Uneven()), f"{tmp_path}/volumes/*_img.nii.gz", tmp_path / "out")


def test_a_volume_without_directions_is_told(tmp_path, network, capsys):
    card = cut(cohort(tmp_path / "volumes"), tmp_path / "set")
    (tmp_path / "new").mkdir()
    image = store(tmp_path / "new", "LAS", ".nii.gz", "no codes")
    run(network(card, Uneven()), image, tmp_path / "out")
    assert "no directions in the header" in capsys.readouterr().err
    assert_on_one_grid(next((tmp_path / "out").glob("LAS*.nii.gz")), image)


@pytest.mark.parametrize("make", [lambda *where: describe(cut(*where)), lambda *where: describe_volumes(stack(*where))])
def test_a_set_of_volumes_without_directions_says_so(tmp_path, make):
    folder = cohort(tmp_path / "volumes")
    assert "No directions" not in make(folder, tmp_path / "set")
    store(folder, "LAS", ".nii.gz", "no codes", seed=1).rename(folder / "p1_img.nii.gz")
    assert "No directions in the headers (qform and sform have code 0)" in (told := make(folder, tmp_path / "other"))
    assert told.endswith(": p1.")


# -- cut round the labels ---------------------------------------------------------------------------------------------


def test_an_organ_outside_the_middle_is_found_by_a_network_whose_slices_were_cut_round_it(tmp_path, network, capsys):
    folder = cohort(tmp_path / "volumes", labels=True)
    flags = ("--label", f"{folder}/*_gt.nii.gz", "--centre", "labels", "--size", 4, 4, "--n_class", 2)
    card = cut(folder, tmp_path / "set", *flags)
    assert card["centre"] == "labels"
    organ = np.zeros((24, 24, 5), np.int16)
    organ[1:4, 19:23, 1:4] = 1
    (tmp_path / "new").mkdir()
    nib.save(nib.Nifti1Image(organ * 500, np.diag([-0.7, -1.1, 2.5, 1])), tmp_path / "new/corner.nii.gz")
    for told in (card, older(card) | {"uses_labels": "slices are cut round all that is labelled"}):
        out = tmp_path / f"out{len(told)}"
        run(network(told, Bright(), n_class=2), f"{tmp_path}/new/*", out)
        np.testing.assert_array_equal(read_voxels(out / "corner.nii.gz"), organ)
        assert "cut round the labels" in capsys.readouterr().err
    with pytest.raises(UserError, match="an organ may be lost"):
        run(network(card, Bright(), n_class=2), f"{tmp_path}/new/*", tmp_path / "adapted", "--adapt", "--prior_mm2", 9)


# -- unlike the training ----------------------------------------------------------------------------------------------


def test_what_is_unlike_the_training_is_told_in_a_line_each(tmp_path, network, capsys):
    card = cut(cohort(tmp_path / "volumes"), tmp_path / "set")
    weights, folder = network(card, Uneven()), tmp_path / "new"
    folder.mkdir()
    alike = nib.load(store(folder, "SAL", ".nii.gz", seed=5))
    run(weights, f"{folder}/*", tmp_path / "alike")
    assert capsys.readouterr().err.count("Note: ") == 0
    nib.save(nib.Nifti1Image(np.asarray(alike.dataobj), alike.affine @ np.diag([1, 2, 1, 1])), folder / "wide.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(alike.dataobj) * 30.0, alike.affine), folder / "loud.nii.gz")
    run(weights, f"{folder}/*", tmp_path / "out")
    told = [line for line in capsys.readouterr().err.splitlines() if "Note: " in line]
    assert len(told) == 2
    assert [line.split(": ")[2].split()[0] for line in told] == ["loud", "wide"]
    assert "trained on 1.1 to 1.1" in told[1]


@pytest.mark.parametrize(
    ("how", "levels", "is_far"),
    [
        ({"kind": "window"}, [0, 50, 100], False),
        ({"kind": "window"}, [-40, 50, 100], False),
        ({"kind": "window"}, [1000, 1050, 1100], True),
        ({"kind": "percentile"}, [1000, 1050, 1100], False),
        ({"kind": "percentile", "clip": [0, 9]}, [1000, 1050, 1100], True),
        ({"kind": "percentile"}, [0, 500, 1200], True),
        ({"kind": "zscore", "scope": "volume"}, [0, 5, 9], True),
        ({"kind": "zscore", "scope": "set"}, [0, 500, 900], True),
        ({}, [0, 50, 100], False),
    ],
)
def test_grey_levels_are_far_where_normalising_leaves_them_so(how, levels, is_far):
    told = {"1": [-10, 0, 10], "50": [40, 50, 60], "99": [90, 100, 110]}
    card = {"normalisation": how, "grey_levels": {"IMG": [told]}}
    found = unlike_training(card, "IMG", "p", (1, 1, 1), [levels])
    if len(how) == 1:  # an older card has the kind alone
        assert unlike_training(card | {"normalisation": how["kind"]}, "IMG", "p", (1, 1, 1), [levels]) == found
    assert bool(found) == is_far


# -- sets that are stored in several orders ---------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--orient", "stored", "--resize", "6", "6")])
def test_a_set_of_several_orders_says_so(tmp_path, monkeypatch, capsys, flags):
    card = cut(cohort(tmp_path / "volumes", ("PIR", "LAS", "LAS", "RSA")), tmp_path / "set", *flags)
    line = describe(card).splitlines()[-1]
    assert "several orders of voxels, 2 in LAS; PIR: p0, RSA: p3" in line
    assert ("all were turned to LPS" in line) == (not flags)
    assert ("--plane axial" in line) == bool(flags)
    monkeypatch.setattr("sys.argv", ["x", "--data", f"{tmp_path}/set", "--out", f"{tmp_path}/report"])
    report_data()
    lines = [each for each in capsys.readouterr().out.splitlines() if "several orders of voxels" in each]
    assert len(lines) == 1
    assert ("2 in LAS" in lines[0]) == (not flags)


def test_slices_of_one_plane_are_the_same_whatever_the_order(tmp_path):
    orders = ORIENTATIONS[::7]
    folder = tmp_path / "volumes"
    folder.mkdir()
    for number, codes in enumerate(orders):
        store(folder, codes, ".nii.gz").rename(folder / f"p{number}_img.nii.gz")
    cut(folder, tmp_path / "set")
    for index in range(SHAPE[2]):
        pixels = [np.asarray(nib.load(path).dataobj) for path in tmp_path.glob(f"set/*/IMG/p*_{index}.nii")]
        assert len(pixels) == len(orders)
        for each in pixels[1:]:
            np.testing.assert_array_equal(each, pixels[0])


def test_flags_of_a_set_of_volumes():
    words = ["--dest", "d", "--image", "i", "--patient", "(p)", "--train", "1"]
    assert read_volume_spec(words).orient == "LPS"
    assert read_volume_spec([*words, "--orient", "stored"]).orient is None
    with pytest.raises(UserError, match="as in LPS"):
        read_volume_spec([*words, "--orient", "up"])


def stack(folder, dest):
    return make_volume_set(VolumeSpec(dest, (f"{folder}/*_img.nii.gz",), None, r"(p\d)", jobs=1))


def make_volumes(folder, dest):
    return make_volume_set(VolumeSpec(dest, (f"{folder}/*_img.nii.gz",), f"{folder}/*_gt.nii.gz", r"(p\d)", jobs=1))


def cut_labelled(folder, dest, *flags):
    return cut(folder, dest, "--label", f"{folder}/*_gt.nii.gz", *flags)


def cut_placed(folder, dest):
    return cut_labelled(folder, dest, "--place_labels")


@pytest.mark.parametrize("make", [cut_labelled, cut_placed, make_volumes])
def test_a_label_on_the_other_place_of_its_image_is_refused_with_the_reason(tmp_path, make):
    """A registration moved the sform; the label was drawn in a viewer that reads the qform."""
    folder = cohort(tmp_path / "volumes", labels=True)
    for number, codes in enumerate(("PIR", "LAS", "RSA")):
        store(folder, codes, ".nii.gz", "two places", seed=number).rename(folder / f"p{number}_img.nii.gz")
    with pytest.raises(UserError, match=r"two places, sform and qform.*p0_img.nii.gz \(6.71 mm apart\)"):
        make(folder, tmp_path / "set")
    cut(folder, tmp_path / "images")


@pytest.mark.parametrize("make", [cut_labelled, cut_placed, make_volumes])
@pytest.mark.parametrize("which", ["img", "gt"])
def test_where_one_of_image_and_label_states_no_place_nothing_is_moved_by_a_guess(tmp_path, make, which):
    folder = cohort(tmp_path / "volumes", labels=True)
    for path in folder.glob(f"*_{which}.nii.gz"):
        image = nib.load(path)
        put(path, np.asanyarray(image.dataobj), image.affine, "no codes")
    with pytest.raises(UserError, match=rf"states no place .*write the header of the other.*p0_{which}.nii.gz \("):
        make(folder, tmp_path / "set")


def test_a_label_of_a_volume_too_oblique_for_directions_is_cut_as_it_is_stored(tmp_path):
    """Each of its axes runs as much to the left as to the back and to the head."""
    folder = cohort(tmp_path / "volumes", labels=True)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 1, 1], [1, -1, 1], [1, 1, -1]]
    for path in folder.iterdir():
        put(path, np.zeros((4, 4, 4), np.int16) + np.arange(4, dtype=np.int16) % 2, affine, "both")
    with pytest.raises(UserError, match="--orient stored leaves them as they are"):
        cut_labelled(folder, tmp_path / "set")
    cut_labelled(folder, tmp_path / "set", "--orient", "stored")
