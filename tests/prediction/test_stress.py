"""Stress test of a network: shifts that are made in memory, what they do to a network that can be computed by hand."""

import json
import shutil
import subprocess
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, write_site
from PIL import Image
from scipy.ndimage import gaussian_filter

import main as training
from analysis.stress import UNDISTURBED, StressTable, by_loss, stress_text
from datasets.slices import open_slices
from datasets.transforms import FolderSpec
from datasets.volumes import open_volumes
from files.grey_levels import Normalisation
from metrics import confusion_counts, dice
from nets.checkpoint_files import load_checkpoint, save_checkpoint
from prediction import stress
from prediction.shifted import HELD, Levels, levels_of, order_of, shift_set
from preprocess import shift_volumes, slice_volumes, volume_set
from preprocess.shifts.acquisitions import ACQUISITIONS, OF_SCANNERS, Shift
from processes.errors import UserError
from tests.tools.chaos import arguments as of_chaos
from tests.tools.checkout import ROOT

PERCENTILE = {"kind": "percentile", "scope": "volume", "percentiles": [1, 99], "window": None, "clip": None}
CARD = {"name": "mine", "split_unit": "patient", "normalisation": PERCENTILE | {"no_clip": False}}
MILD = ("--shifts", "noise", "blur", "--severities", "1", "4")


def threshold_at(file, level):
    """Makes the checkpoint of a Dimwit one that calls organ what is brighter than the level, 0 to 1."""
    state = load_checkpoint(file)
    net = {name: torch.zeros_like(value) for name, value in state["net"].items()}
    net["body.0.weight"][:, :, 1, 1] = 1
    for name in ("body.1.weight", "body.1.running_var"):
        net[name] += 1
    net["classifier.weight"][1] = 100 / len(net["body.0.weight"])
    net["classifier.bias"][1] = -100 * level
    save_checkpoint(file, state | {"net": net})


def trained(site, run, *more, level=0.5):
    training.main(of_chaos(site, run, "--network", "Dimwit", "--n_epoch", 1, "--augment", 0, *more))
    threshold_at(run / "last.pkl", level)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A threshold on a site whose card tells no normalisation."""
    root = tmp_path_factory.mktemp("stress")
    return trained(write_site(root / "site", 200, 60, 1), root / "run")


def stressed(weights, out, *more):
    stress.main(["--weights", str(weights), "--out", str(out), "--device", "cpu", *map(str, more)])
    return pd.read_csv(out / "stress.csv")


@pytest.fixture(scope="module")
def mild(run, tmp_path_factory):
    """The folder of a stress test of the run with MILD, which no test changes."""
    out = tmp_path_factory.mktemp("mild") / "out"
    stressed(run, out, *MILD)
    return out


def mean_dice(table, shift, severity):
    return table[(table["shift"] == shift) & (table["severity"] == severity)]["dice"].mean()


# -- what it finds ----------------------------------------------------------------------------------------------------


def test_a_threshold_falls_where_the_contrast_turns_round_and_stands_mild_noise(run, tmp_path):
    table = stressed(run, tmp_path / "out", "--shifts", "inverted_contrast", "noise", "--severities", 1, 5)
    assert mean_dice(table, "undisturbed", 0) == 1
    assert mean_dice(table, "noise", 1) > 0.99
    assert mean_dice(table, "noise", 1) > mean_dice(table, "noise", 5)
    assert mean_dice(table, "inverted_contrast", 1) > 0.9
    assert mean_dice(table, "inverted_contrast", 5) < 0.1


@pytest.mark.parametrize("shift", ["bias_field", "gamma", "motion"])
def test_a_row_is_what_one_computes_by_hand(run, tmp_path, shift):
    """Out of the files: the slices of a patient as one volume, shifted, cut to 8 bits, compared with a threshold."""
    table = stressed(run, tmp_path / "out", "--shifts", shift, "--severities", 4, "--seed", 3)
    site = run.parent / "site"
    for patient in ("Case04", "Case05"):
        files = sorted(site.glob(f"val/IMG/{patient}_*.png"))
        volume = np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float32)
        truth = np.stack([np.asarray(Image.open(site / "val/GT" / file.name)) for file in files])
        (shifted,) = Shift(shift, 4, 3).apply([volume], (1, 1, 1), patient)
        predicted = (np.rint(shifted.clip(0, 255)) > 127.5).astype(np.uint8)
        (row,) = table[(table["patient"] == patient) & (table["shift"] == shift)].to_dict("records")
        assert row["dice"] == pytest.approx(dice(*confusion_counts(predicted, truth, 2))[1])
        assert row["predicted"] == predicted.sum()
    assert 0 < mean_dice(table, shift, 4) < 1


def test_undisturbed_images_have_the_scores_of_the_run(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, 1)
    training.main(of_chaos(site, tmp_path / "run", "--n_epoch", 2, "--augment", 0))
    table = stressed(tmp_path / "run", tmp_path / "out", "--shifts", "blur", "--severities", 1)
    own = pd.read_csv(tmp_path / "run" / "patients_last.csv")
    undisturbed = table[table["shift"] == "undisturbed"].reset_index(drop=True)
    pd.testing.assert_frame_equal(undisturbed[own.columns], own)
    assert list(table.columns) == ["shift", "severity", *own.columns]


def test_a_normalisation_by_the_volume_undoes_another_gain(run, tmp_path):
    """And without one, 8 bits are what they are."""
    words = ("--shifts", "intensity_scale", "--severities", 5, "--seed", 5)  # which dims both patients
    strict = shutil.copytree(run, tmp_path / "run")
    threshold_at(strict / "last.pkl", 0.65)
    table = stressed(strict, tmp_path / "fixed", *words)
    assert mean_dice(table, "undisturbed", 0) > 0.99
    assert mean_dice(table, "intensity_scale", 5) < 0.8
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    (site / "dataset.json").write_text(json.dumps(CARD))
    table = stressed(strict, tmp_path / "normalised", *words, "--target_dataset", site)
    assert mean_dice(table, "intensity_scale", 5) > 0.99


def test_three_classes(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, 1)
    for file in site.glob("*/GT/*.png"):
        mask = np.array(Image.open(file))
        mask[12:] *= 2
        Image.fromarray(mask).save(file)
    losses = CROSS_ENTROPY.replace("[0, 1]", "[0, 1, 2]").replace("[1, 1]", "[1, 1, 1]")
    more = ("--n_class", 3, "--target_losses", losses, "--metric_axis", 1, 2)
    table = stressed(trained(site, tmp_path / "run", *more), tmp_path / "out", *MILD)
    assert len(table) == 5 * 2 * 2
    assert set(table["class"]) == {1, 2}


def test_pictures_are_shifted_one_by_one_and_as_a_camera_can(run, tmp_path):
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    pictures = trained(site, tmp_path / "run", "--scores", "iou")
    table = stressed(pictures, tmp_path / "out", "--severities", 2)
    assert set(table["shift"]) == {"undisturbed", *ACQUISITIONS} - set(OF_SCANNERS)
    assert table["hd95_vox"].isna().all()
    for name in OF_SCANNERS:
        with pytest.raises(UserError, match=f"{name} is made of what a scanner measures"):
            stressed(pictures, tmp_path / "out", "--shifts", name)
    for file in site.glob("val/*/Case04_3.png"):
        file.unlink()
    less = stressed(pictures, tmp_path / "less", "--severities", 2)
    other = table["patient"] == "Case05"  # and of Case04 every picture that is left is as it was
    assert table[other].reset_index(drop=True).equals(less[less["patient"] == "Case05"].reset_index(drop=True))


def test_volumes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        truth = np.zeros((9, 12, 10), np.uint8)
        truth[2:7, 3:9, 2:8] = 1
        channels = np.stack([300.0 * truth + rng.normal(100, 20, truth.shape), 500 - 200.0 * truth])
        for folder, array in (("IMG", channels.astype(np.float32)), ("GT", truth)):
            place = tmp_path / "site" / ("val" if number > 1 else "train") / folder
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"Case{number:02d}.npy", array)
    card = {"name": "site", "scale": {"mean": 200.0, "sd": 150.0}, "normalisation": {"kind": "zscore", "scope": "set"}}
    (tmp_path / "site" / "dataset.json").write_text(json.dumps(card))
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]"
    more = ("--network", "UNet3D:width=2,depth=1", "--crop", 8, 9, 8, "--steps", 2, "--n_epoch", 1, "--do_hd", 0)
    words = ("--target_folders", folders, "--grp_regex", r"(Case\d+)", "--augment", 0, "--saveim", 0, *more)
    training.main(of_chaos(tmp_path / "site", tmp_path / "run", *words))
    table = stressed(tmp_path / "run", tmp_path / "out", *MILD)
    assert len(table) == 5 * 2
    own = pd.read_csv(tmp_path / "run" / "patients_last.csv")
    pd.testing.assert_frame_equal(table[:2][own.columns], own)

    opened = stress.open_test(tmp_path / "run" / "last.pkl", {}, {"workdir": tmp_path, "device": "cpu"})
    shifted = shift_set(opened.val.slices, Shift("gamma", 3, 0), pictures=False)
    stored = np.load(tmp_path / "site/val/IMG/Case03.npy")
    expected = np.stack(Shift("gamma", 3, 0).apply(stored, (1, 1, 1), "Case03"))
    np.testing.assert_allclose(shifted.image(1), (expected - 200) / 150, rtol=1e-5)
    assert (shifted.labels([1])[0] == np.load(tmp_path / "site/val/GT/Case03.npy")).all()


# -- how it is kept ---------------------------------------------------------------------------------------------------


def content(out):
    return {name: (out / name).read_bytes() for name in (stress.TABLE, stress.PICTURE, stress.NOTE)}


def test_the_order_and_the_company_change_nothing(run, mild, tmp_path):
    for words in (("blur", "--severities", 4), ("noise", "--severities", 4, 1), ("blur", "--severities", 1)):
        stressed(run, tmp_path / "in parts", "--shifts", *words)
    assert content(mild) == content(tmp_path / "in parts")
    stressed(run, tmp_path / "other seed", *MILD, "--seed", 1)
    assert content(tmp_path / "other seed")[stress.TABLE] != content(mild)[stress.TABLE]


def test_a_patient_s_rows_do_not_depend_on_the_others(run, mild, tmp_path):
    whole = pd.read_csv(mild / stress.TABLE)
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    for file in site.glob("val/*/Case04_*.png"):
        file.unlink()
    alone = stressed(run, tmp_path / "alone", *MILD, "--target_dataset", site)
    assert set(alone["patient"]) == {"Case05"}
    assert whole[whole["patient"] == "Case05"].reset_index(drop=True).equals(alone)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_is_finished_is_kept_when_it_is_stopped(run, mild, tmp_path, monkeypatch, after):
    done, real = [], stress.evaluate

    def stopped(*args, **more):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **more)

    monkeypatch.setattr(stress, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        stressed(run, tmp_path / "killed", *MILD)
    assert not (tmp_path / "killed" / ".lock").exists()
    monkeypatch.setattr(stress, "evaluate", lambda *args, **more: done.append(1) or real(*args, **more))
    stressed(run, tmp_path / "killed", *MILD)
    assert len(done) == 5
    assert content(tmp_path / "killed") == content(mild)


@pytest.mark.parametrize("lost", ["a patient", "a patient's name"])
def test_rows_that_lack_are_found_anew(run, mild, tmp_path, lost):
    shutil.copytree(mild, tmp_path / "out")
    before, file = content(tmp_path / "out"), tmp_path / "out" / stress.TABLE
    lines = file.read_text().splitlines(keepends=True)
    lines[3:4] = [] if lost == "a patient" else [lines[3].replace("Case", "Else")]
    file.write_text("".join(lines))
    stressed(run, tmp_path / "out", *MILD)
    assert content(tmp_path / "out") == before


def test_a_table_that_is_none_is_told(run, mild, tmp_path):
    shutil.copytree(mild, tmp_path / "out")
    (tmp_path / "out" / stress.TABLE).write_text("shift,severity\nblur,1\n")
    with pytest.raises(UserError, match=r"stress\.csv cannot be read .* remove it, and its shifts are predicted anew"):
        stressed(run, tmp_path / "out", *MILD)


def test_another_network_begins_anew_if_it_may(run, mild, tmp_path):
    first = pd.read_csv(shutil.copytree(mild, tmp_path / "out") / stress.TABLE)
    other = shutil.copytree(run, tmp_path / "run")
    threshold_at(other / "last.pkl", 0.7)
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds a stress test of something else \(sha256;"):
        stressed(other, tmp_path / "out", *MILD)
    assert content(tmp_path / "out") == before
    anew = stressed(other, tmp_path / "out", "--shifts", "blur", "--severities", 4, "--overwrite")
    assert set(anew["shift"]) == {"undisturbed", "blur"}
    assert mean_dice(anew, "blur", 4) != mean_dice(first, "blur", 4)


def test_no_more_than_two_patients_are_held_and_each_is_shifted_once(run, monkeypatch):
    opened = stress.open_test(run / "last.pkl", {}, {"workdir": run, "device": "cpu"})
    shifted = shift_set(opened.val.slices, Shift("noise", 2, 0), pictures=False)
    (plane,) = [plane for spec, plane in shifted.planes.items() if spec.folder == "IMG"]
    names, apply = [], Shift.apply
    monkeypatch.setattr(Shift, "apply", lambda *words: names.append(words[3]) or apply(*words))
    many = replace(plane.stacks[0], name="again")
    plane.stacks = [*plane.stacks, many]
    plane.homes |= {row + 1000: (len(plane.stacks) - 1, place) for place, row in enumerate(many.rows)}
    rows = [*shifted.order.tolist(), *(row + 1000 for row in many.rows)]
    for start in range(0, len(rows), 3):
        plane.gather(torch.tensor(rows[start : start + 3]))
        assert len(plane.held) <= HELD
    assert names == ["Case04", "Case05", "again"]


# -- as volumes are shifted -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Float volumes, stored in the order that sets have."""
    root = tmp_path_factory.mktemp("volumes")
    (root / "old").mkdir()
    for number in range(3):
        rng, truth = np.random.default_rng(number), np.zeros((14, 12, 9), np.uint8)
        truth[3:9, 4:9, 2:7] = 1
        image = gaussian_filter(300.0 * truth + rng.gamma(2, 100, truth.shape), 0.6)
        for name, voxels in ((f"p{number}", image.astype(np.float32)), (f"p{number}_gt", truth)):
            nib.Nifti1Image(voxels, np.diag([-1.5, -1.2, 2, 1])).to_filename(root / "old" / f"{name}.nii.gz")
    return root


SLICED = ("--format", "npy", "--normalise", "minmax", "--val", 1, "--plane")
WAYS = {plane: (*SLICED, plane) for plane in ("axial", "coronal", "sagittal")}
WAYS["volumes"] = ("--normalise", "none", "--axes", 2, 0, 1, "--train", 2)


def made(volumes, way, images, dest):
    """A set of the images in one of the ways, opened."""
    flag = "" if way == "volumes" else "IMG="
    words = [*WAYS[way], "--image", f"{flag}{volumes / images}/p?.nii.gz", "--label", f"{volumes}/old/p?_gt.nii.gz"]
    words += ["--dest", dest, "--patient", r"(p\d)", "--jobs", 1]
    words = list(map(str, words))
    if way == "volumes":
        volume_set.make_volume_set(volume_set.read_spec(words))
    else:
        slice_volumes.slice_set(slice_volumes.read_spec(words))
    folders = [FolderSpec("IMG", "nii_transform"), FolderSpec("GT", "nii_gt_transform")]
    if way == "volumes":
        return open_volumes(dest, "val", folders, 2, r"(p\d)", (4, 4, 4))
    return open_slices(dest, "val", folders, 2, r"(p\d)_(\d+)")


@pytest.mark.parametrize("way", WAYS)
def test_a_set_is_shifted_as_if_it_were_made_of_shifted_volumes(volumes, tmp_path, way):
    """But for rounding, as nothing is cut off the grey levels here."""
    plain = made(volumes, way, "old", tmp_path / "plain")
    for name in ACQUISITIONS:
        if not (volumes / name).exists():
            words = ["--image", f"{volumes}/old/p?.nii.gz", "--dest", str(volumes / name), "--acquisition", name]
            shift_volumes.main([*words, "--severity", "4", "--seed", "2"])
        expected = made(volumes, way, name, tmp_path / name)
        shifted = shift_set(plain, Shift(name, 4, 2), pictures=False)
        found, wanted, before = (
            np.stack([each.image(row) for row in range(len(each))]) for each in (shifted, expected, plain)
        )
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=1e-4 * scale)
        assert np.abs(found - before).max() > 1e-3 * scale or name == "intensity_scale"


# -- grey levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["percentile", "minmax", "zscore"])
@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_a_normalisation_is_done_again(kind, scope):
    """An image of other gain and offset comes back as it was; also where the set was cut since."""
    rng, how = np.random.default_rng(0), Normalisation(kind, scope, no_clip=kind == "percentile")
    image = rng.gamma(2, 100, (4, 12, 10)).astype(np.float32)
    scale = how.fit(image)
    before = np.stack([how.apply(p, how.fit(p) if scope == "slice" else scale) for p in image])[:, 2:9, 1:]
    again = Levels(how, None, False).again(before, 3 * before - 7)
    np.testing.assert_allclose(again, before, atol=2e-5)


def test_levels_that_a_set_cannot_hold_are_cut():
    stack = np.array([[[-40.0, 3.4], [200.6, 400]]])
    assert levels_of({}, 255).again(stack, stack).tolist() == [[[0, 3], [201, 255]]]
    assert levels_of({}).again(stack, stack) == pytest.approx(stack)
    window = CARD | {"normalisation": PERCENTILE | {"kind": "window", "window": [0, 1], "no_clip": False}}
    assert levels_of(window).again(stack, stack).max() == 1
    assert levels_of({"normalisation": {"kind": "foreground", "scope": "set"}}).how is None


@pytest.mark.parametrize("card", [{}, {"axis": "z"}, {"axis": 7}, {"axes": [0, 0, 1]}, {"axes": "zyx"}])
def test_a_card_that_tells_no_axes_leaves_them_as_they_are(card):
    assert order_of(card) == (0, 1, 2)


# -- what it says -----------------------------------------------------------------------------------------------------


def made_up(dices):
    """A table of two patients with these Dice, by shift and severity."""
    columns = "shift severity patient class outcome dice hd95_mm assd_mm masd_mm nsd volume_error predicted true"
    rows = {
        kind: [[name, "1", "hit", str(value), *["1"] * 7, "9"] for name, value in zip("ab", pair, strict=True)]
        for kind, pair in dices.items()
    }
    return StressTable([*columns.split(), "diagonal_mm"], rows)


def test_the_worst_shift_comes_first_with_what_it_lost():
    table = made_up({UNDISTURBED: (0.8, 0.9), ("blur", 1): (0.7, 0.8), ("gamma", 1): (0.9, 0.9), ("gamma", 3): (0, 1)})
    assert list(by_loss(table, [1])) == ["gamma", "blur"]
    lines = stress_text(table, [1], "title", ["PHANTOM"]).splitlines()
    assert "*** PHANTOM ***" in lines
    assert any("mean over 2 patients" in line and line.endswith("Undisturbed: 0.850.") for line in lines)
    assert [line.split() for line in lines[-2:]] == [
        ["gamma", "0.900", "+0.050", "0.500", "-0.350"],
        ["blur", "0.750", "-0.100", "–"],
    ]


def test_a_phantom_is_told(run, tmp_path, capsys):
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    (site / "dataset.json").write_text(json.dumps(CARD | {"phantom": "small"}))
    stressed(run, tmp_path / "out", *MILD, "--target_dataset", site)
    assert "PHANTOM: made-up images" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / stress.PICTURE).convert("RGB").getpixel((5, 5)) == (176, 0, 32)


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "--shifts gama": "there is no shift 'gama'. Did you mean 'gamma'",
    "--severities 0": "--severities are 1 (mild) to 5 (bad); got 0",
    "--seed -1": "--seed is at least 0",
    "--target_dataset nowhere": "nowhere",
    "--target_folders [('IMG',png_transform,False)]": "is read without ground truth",
    "--target_folders IMG": "--target_folders lists the image and its ground truth",
    "--grp_regex (": "grp_regex",
    "--weights nothing.pkl": "nothing.pkl do not exist",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_told_and_nothing_is_written(run, tmp_path, words):
    with pytest.raises(UserError) as told:
        stressed(run, tmp_path / "out", *words.split(" ", 1))
    assert REFUSED[words] in str(told.value)
    assert not (tmp_path / "out").exists()


def test_images_of_other_channels_are_refused(run, tmp_path):
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    for file in site.glob("val/IMG/*.png"):
        np.save(file.with_suffix(".npy"), np.stack([np.asarray(Image.open(file))] * 2))
        file.unlink()
    with pytest.raises(UserError, match="takes images of 1 channels, and those of .*/val have 2"):
        stressed(run, tmp_path / "out", "--target_dataset", site)


def test_a_folder_of_somebody_else_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / stress.TABLE).write_text("mine")
    with pytest.raises(UserError, match=r"prediction\.stress did not begin it"):
        stressed(run, tmp_path / "out", *MILD)
    assert (tmp_path / "out" / stress.TABLE).read_text() == "mine"


def test_a_fault_is_one_paragraph_and_exit_code_2(run, tmp_path, python):
    words = ["-m", "prediction.stress", "--weights", run, "--out", tmp_path / "out", "--shifts", "gama"]
    done = subprocess.run([python, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
