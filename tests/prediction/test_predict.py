"""Volumes in, label maps out: the masks of the evaluation, on the volumes' own grids, whatever their format."""

import csv
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

import main as program
import predict
import report
from datasets.set_tables import read_rows
from files.grids import turn
from files.reading import read_grid
from prediction import inference
from prediction.model import load_model
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing.frames import restore
from preprocess.volume_set import main as make_volumes
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin
from tests.files import test_stated_geometry as stated
from tests.files.test_reading import oblique, read_png, write
from tests.tools.chaos import before_call

TURNS = ("LPS", "RAS", "SAR", "PIR", "IRA", "LSA")
TRANSFORMS = {"png": "png_transform", "nii": "nii_transform", "npy": "npy_transform"}


def cohort(folder, endings=(".nii.gz",) * 6, channels=1):
    """Six patients, each stored in another orientation: images in which the organ is bright, and its labels."""
    folder.mkdir()
    for number, (codes, ending) in enumerate(zip(TURNS, endings, strict=True)):
        rng = np.random.default_rng(number)
        truth = np.zeros((11, 13, 9), np.int16)
        truth[3:8, 4:9, 2:7] = 1
        affine = oblique(codes, (1.5, 1.2, 2.0))
        for channel in range(channels):
            image = (truth * 300 + 100 * channel + rng.normal(200, 60, truth.shape)).astype(np.int16)
            write(folder / f"p{number}_i{channel}{ending}", image, affine)
        write(folder / f"p{number}_gt{ending}", truth, affine)
    return folder


def files(folder, what):
    """A pattern of these volumes, and of no file of voxels beside its header."""
    return "|".join(f"{folder}/p?_{what}{ending}" for ending in (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr"))


def train(folder, work, *flags, form="png", losses="[('CrossEntropy', {}, 1)]", channels=1):
    """A set of slices, and a short run on it; the folder of the run."""
    words = ["--dest", work / "set", "--label", files(folder, "gt"), "--patient", r"(p\d)", "--val_list", "p1,p4"]
    for channel in range(channels):
        words += ["--image", f"IMG={files(folder, f'i{channel}')}"]
    slice_set(read_spec(list(map(str, [*words, "--format", form, "--jobs", 1, "--n_class", 2, *flags]))))
    truth = "gt_transform" if form == "png" else "nii_gt_transform"
    folders = f"[('IMG', {TRANSFORMS[form]}, False), ('GT', {truth}, False), ('GT', {truth}, False)]"
    words = ["--target_dataset", work / "set", "--target_folders", folders, "--target_losses", losses, "--n_class", 2]
    words += ["--grp_regex", r"(p\d)_(\d+)", "--network", "Dimwit", "--n_epoch", 3, "--l_rate", "2e-2", "--cpu"]
    program.main(list(map(str, [*words, "--workdir", work / "run", "--saveim", 1])))
    return work / "run"


def run(weights, *flags):
    predict.main(list(map(str, ["--weights", weights, "--patient", r"(p\d)", "--device", "cpu", *flags])))


@pytest.mark.parametrize("flag", [("--prior_mm2", "40"), ("--prior_mm3", "40"), ("--sizes", "sizes.csv")])
def test_sizes_without_an_adaptation_are_refused(tmp_path, flag):
    words = ["--weights", "none.pkl", "--volumes", "none.nii", "--out", tmp_path / "out", *flag]
    with pytest.raises(UserError, match=f"{flag[0]} is for --adapt alone"):
        predict.main(list(map(str, words)))


def test_a_device_that_is_not_here_is_refused(tmp_path):
    words = ["--weights", "none.pkl", "--volumes", "none.nii", "--out", tmp_path / "out", "--device", "cuda:99"]
    with pytest.raises(UserError, match=r"--device cuda:99: there is none of that name here\. There is cpu"):
        predict.main(list(map(str, words)))


def evaluated(work, patient):
    """The masks of the last epoch's evaluation, put back where their slices came from."""
    rows = [row for row in read_rows(work / "set") if row["patient"] == patient]
    masks = {int(row["index"]): read_png(work / "run" / "last_epoch", row, "") for row in rows}
    return restore(masks, rows)


@pytest.mark.parametrize(
    ("form", "flags"),
    [
        ("png", ["--plane", "axial", "--size", 12, 8]),
        ("png", ["--plane", "coronal", "--bits", 16, "--size", 16, 16, "--normalise", "window", "--window", 100, 700]),
        ("nii", ["--plane", "sagittal", "--resize", 10, 10, "--normalise", "zscore"]),
        ("npy", ["--plane", "axial", "--spacing", 1.7, 1.9, "--size", 9, 9, "--scope", "slice", "--clip", 0, 600]),
        ("nii", ["--axis", 2, "--size", 10, 15, "--normalise", "minmax"]),
    ],
)
def test_a_prediction_is_the_evaluation_s_mask(tmp_path, form, flags):
    folder = cohort(tmp_path / "volumes")
    weights = train(folder, tmp_path, *flags, form=form) / "last.pkl"
    run(weights, "--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out", "--batch_size", 3)
    found = 0
    for patient in ("p1", "p4"):
        image, (masks, affine) = nib.load(tmp_path / f"out/{patient}.nii.gz"), evaluated(tmp_path, patient)
        np.testing.assert_array_equal(image.dataobj, masks)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        np.testing.assert_allclose(image.affine, nib.load(folder / f"{patient}_i0.nii.gz").affine, atol=1e-5)
        found += masks.sum()
    assert found > 0


def test_masks_of_the_highest_expected_dice_are_those_of_the_evaluation(trained, tmp_path, capsys):
    """A run's decoding stands in its checkpoint; --decode says otherwise."""
    folder, weights = trained
    start = ["--method", "noadap", "--model_weights", weights, "--decode", "dice", "--workdir", tmp_path / "noadap"]
    program.main([*evaluating(weights), *map(str, start), "--saveim", "1"])
    assert not (tmp_path / "noadap/patients_expected.csv").exists()
    assert (
        "there is no patients_expected.csv: what the source's labels told is of masks of the" in capsys.readouterr().out
    )
    volumes = ["--volumes", f"{folder}/p?_i0.nii.gz"]
    run(tmp_path / "noadap/last.pkl", *volumes, "--out", tmp_path / "dice", "--batch_size", 3)
    assert expected_of(tmp_path / "dice")["p4"] == [""] * 4
    run(tmp_path / "noadap/last.pkl", *volumes, "--out", tmp_path / "argmax", "--decode", "argmax")
    run(weights, *volumes, "--out", tmp_path / "as ever")
    run(weights, *volumes, "--out", tmp_path / "asked", "--decode", "dice")
    outs = ("dice", "asked", "argmax", "as ever")
    dice, asked, argmax, ever = (np.asarray(nib.load(tmp_path / out / "p4.nii.gz").dataobj) for out in outs)
    rows = [row for row in read_rows(weights.parents[1] / "set") if row["patient"] == "p4"]
    masks = {int(row["index"]): read_png(tmp_path / "noadap/last_epoch", row, "") for row in rows}
    np.testing.assert_array_equal(dice, restore(masks, rows)[0])
    np.testing.assert_array_equal(dice, asked)
    np.testing.assert_array_equal(argmax, ever)
    assert (dice != argmax).any()
    with pytest.raises(UserError, match="decode"):
        run(weights, *volumes, "--out", tmp_path / "dice", "--decode", "argmax")


def test_channels_are_volumes_in_the_order_of_the_set(tmp_path):
    folder = cohort(tmp_path / "volumes", channels=2)
    weights = train(folder, tmp_path, "--plane", "axial", "--size", 12, 12, form="npy", channels=2) / "last.pkl"
    words = ["--volumes", f"{folder}/p?_i0.nii.gz", "--volumes", f"{folder}/p?_i1.nii.gz", "--out", tmp_path / "out"]
    run(weights, *words)
    np.testing.assert_array_equal(nib.load(tmp_path / "out/p4.nii.gz").dataobj, evaluated(tmp_path, "p4")[0])
    with pytest.raises(UserError, match="give --volumes 2 times"):
        run(weights, *words[:2], "--out", tmp_path / "other")


def test_every_format_and_what_else_is_written(tmp_path):
    endings = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr")
    folder = cohort(tmp_path / "volumes", endings)
    weights = train(folder, tmp_path, "--plane", "axial", "--size", 12, 12) / "last.pkl"
    extras = ("--probabilities", "--entropy", "--flip", "W", "H", "--largest_component")
    run(weights, "--volumes", files(folder, "i0"), "--out", tmp_path / "out", *extras)
    table = list(csv.DictReader((tmp_path / "out/volumes.csv").open()))
    for number, (row, ending) in enumerate(zip(table, endings, strict=True)):
        source = folder / f"p{number}_i0{ending}"
        grid, maps = read_grid(source), nib.load(tmp_path / f"out/p{number}.nii.gz")
        shares = np.asarray(nib.load(tmp_path / f"out/probabilities/p{number}.nii.gz").dataobj)
        entropy = np.asarray(nib.load(tmp_path / f"out/entropy/p{number}.nii.gz").dataobj)
        assert maps.shape == grid.shape == shares.shape[:3] == entropy.shape
        np.testing.assert_allclose(maps.affine, grid.affine, atol=1e-4)
        np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
        p = shares.astype(np.float64).clip(1e-30)
        np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1) / np.log(2), atol=1e-4)
        assert (row["patient"], int(row["voxels"])) == (f"p{number}", np.count_nonzero(maps.dataobj))
        assert float(row["mm3"]) == pytest.approx(int(row["voxels"]) * 1.5 * 1.2 * 2, rel=1e-4)
        assert not (np.asarray(maps.dataobj)[shares[..., 1] < 0.5]).any()


def test_volumes_of_a_volumetric_network(tmp_path, monkeypatch):
    folder = cohort(tmp_path / "volumes")
    words = ["volume_set", "--dest", tmp_path / "set", "--image", f"{folder}/p?_i0.nii.gz", "--patient", r"(p\d)"]
    words += ["--label", f"{folder}/p?_gt.nii.gz", "--axes", "2", "1", "0", "--normalise", "foreground", "--train", "4"]
    monkeypatch.setattr("sys.argv", list(map(str, [*words, "--jobs", "1"])))
    make_volumes()
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
    words = ["--target_dataset", tmp_path / "set", "--target_folders", folders, "--n_class", 2, "--crop", 8, 8, 8]
    words += [
        "--grp_regex",
        r"(p\d)",
        "--network",
        "UNet3D:width=2,depth=1",
        "--n_epoch",
        2,
        "--l_rate",
        "2e-2",
        "--cpu",
    ]
    words += ["--target_losses", "[('DiceLoss', {}, 1)]", "--workdir", tmp_path / "run", "--saveim", 1, "--steps", 4]
    program.main(list(map(str, words)))
    run(tmp_path / "run/last.pkl", "--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out", "--batch_size", 4)
    start = ["--method", "noadap", "--model_weights", tmp_path / "run/last.pkl", "--decode", "dice"]
    program.main(list(map(str, [*words, *start, "--workdir", tmp_path / "dice"])))
    weights, volumes = tmp_path / "dice/last.pkl", f"{folder}/p?_i0.nii.gz"
    run(weights, "--volumes", volumes, "--out", tmp_path / "dice_out", "--batch_size", 4)
    for evaluated_in, out in (("run", "out"), ("dice", "dice_out")):
        masks = sorted((tmp_path / evaluated_in / "last_epoch/val").glob("*.nii.gz"))
        assert len(masks) == 2
        for mask in masks:
            found = np.asarray(nib.load(tmp_path / out / mask.name).dataobj)
            turned = turn(found, TURNS[int(mask.name[1])], "LPS").transpose(2, 1, 0)
            np.testing.assert_array_equal(turned, nib.load(mask).dataobj)


# -- what is there, what fails ----------------------------------------------------------------------------------------


def trained_in(root):
    """Volumes, and a run that learnt to find the organ in axial slices of them."""
    folder = cohort(root / "volumes")
    return folder, train(folder, root, "--plane", "axial", "--size", 12, 12, "--label_map", "0:0,1:1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    folder, run = trained_in(root)
    return folder, run / "last.pkl"


def test_a_volume_that_fails_stops_no_other_and_a_rerun_skips_what_is_done(trained, tmp_path, capsys):
    folder, weights = trained
    for number in range(3):
        (tmp_path / f"p{number}.nii.gz").write_bytes((folder / f"p{number}_i0.nii.gz").read_bytes())
    good = (tmp_path / "p1.nii.gz").read_bytes()
    (tmp_path / "p1.nii.gz").write_bytes(good[:-20])
    words = ("--volumes", f"{tmp_path}/p?.nii.gz", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="1 of 3 volumes were not predicted: cannot be read: .*p1.nii.gz"):
        run(weights, *words)
    assert {path.name for path in (tmp_path / "out").glob("p*.nii.gz")} == {"p0.nii.gz", "p2.nii.gz"}
    stamp = (tmp_path / "out/p0.nii.gz").stat().st_mtime_ns
    (tmp_path / "p1.nii.gz").write_bytes(good)
    capsys.readouterr()
    run(weights, *words)
    assert "1 predicted, 2 were there" in capsys.readouterr().out
    assert (tmp_path / "out/p0.nii.gz").stat().st_mtime_ns == stamp
    other = tmp_path / "elsewhere.pkl"
    other.write_bytes(weights.read_bytes())
    run(other, *words)  # the same weights under another name
    assert "0 predicted, 3 were there" in capsys.readouterr().out
    (tmp_path / "p2.nii.gz").write_bytes(good)
    with pytest.raises(UserError, match="predictions of p2, whose volumes have changed"):
        run(weights, *words)
    (tmp_path / "p2.nii.gz").write_bytes((folder / "p2_i0.nii.gz").read_bytes())
    with pytest.raises(UserError, match="made with something else"):
        run(weights, *words, "--flip", "W")
    run(weights, *words, "--flip", "W", "--overwrite")
    assert (tmp_path / "out/p0.nii.gz").stat().st_mtime_ns != stamp


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_the_mask_of_a_volume_in_microns_lies_on_it_where_itk_reads_them(trained, tmp_path, ending, capsys):
    folder, weights = trained
    source, path = nib.load(folder / "p0_i0.nii.gz"), tmp_path / f"p0.{ending}"
    stated.write(path, np.asarray(source.dataobj), source.affine, "um")
    run(weights, "--volumes", path, "--out", tmp_path / "out")
    image, mask = (sitk.ReadImage(str(each)) for each in (path, tmp_path / "out/p0.nii.gz"))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, name)() == pytest.approx(getattr(image, name)(), rel=1e-4, abs=1e-4)
    assert max(image.GetSpacing()) > 1000  # microns, as its header has them
    (row,) = csv.DictReader((tmp_path / "out/volumes.csv").open())
    assert float(row["mm3"]) == pytest.approx(int(row["voxels"]) * 1.5 * 1.2 * 2, rel=1e-4) != 0
    assert "ITK and its viewers overlook: the mask has the numbers of the volume: p0." in capsys.readouterr().err


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--adapt", "--prior_mm2", 40)])
def test_volumes_are_not_overwritten_by_their_masks(trained, tmp_path, flags):
    folder, weights = trained
    volume = tmp_path / "p1.nii.gz"
    volume.write_bytes((folder / "p1_i0.nii.gz").read_bytes())
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"is where volumes lie.*p1.nii.gz. Name another folder"):
        run(weights, "--volumes", volume, "--out", tmp_path / "link", *flags)
    assert volume.read_bytes() == (folder / "p1_i0.nii.gz").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"p1.nii.gz", "link"}


def test_a_folder_with_an_equals_sign_is_no_name(trained, tmp_path, monkeypatch):
    folder, weights = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold=1").mkdir()
    (tmp_path / "fold=1/p1.nii.gz").write_bytes((folder / "p1_i0.nii.gz").read_bytes())
    for name, volumes in (("a", "fold=1/*.nii.gz"), ("b", "IMG=fold=1/*.nii.gz")):
        run(weights, "--volumes", volumes, "--out", name)
        assert (tmp_path / name / "p1.nii.gz").is_file()


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--adapt", "--prior_mm2", 40)])
@pytest.mark.parametrize("name", ["p1.nii.gz", "p2_manual.nii.gz", "entropy/p1.nii.gz"])
def test_a_folder_of_manual_masks_is_no_folder_of_predictions(trained, tmp_path, name, flags):
    folder, weights = trained
    mine = tmp_path / "manual" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"a week of work")
    with pytest.raises(UserError, match="manual is there, and predict.py did not begin it"):
        run(weights, "--volumes", folder / "p1_i0.nii.gz", "--out", tmp_path / "manual", "--entropy", *flags)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_flags_that_name_the_wrong_thing_say_what_is_wrong_with_it(trained, tmp_path):
    folder, weights = trained
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "empty").mkdir()
    for flags, words in (
        (("--out", tmp_path / "notes"), "notes is a file: name a folder with --out"),
        (("--out", tmp_path / "notes/here"), "notes is a file, and cannot hold here: name a folder with --out"),
        (("--out", tmp_path / "out", "--like", tmp_path / "nope"), "nope: there is no such folder"),
        (("--out", tmp_path / "out", "--like", tmp_path / "empty"), "empty: it has no dataset.json"),
        (("--out", tmp_path / "out", "--export", tmp_path / "empty"), "empty is a folder"),
    ):
        with pytest.raises(UserError, match=words):
            run(weights, "--volumes", folder / "p1_i0.nii.gz", *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes"]


def test_the_folder_of_a_run_means_what_it_chose_else_its_last(trained, tmp_path, capsys):
    folder, weights = trained
    for place, others, expected in (
        ("a", ("last.pkl",), "last.pkl"),
        ("b", ("last.pkl", "best_3d.pkl", "chosen.pkl"), "chosen.pkl"),
        ("c", ("noadap/last.pkl", "chosen/last.pkl"), "chosen/last.pkl"),
    ):
        for name in others:
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_bytes(weights.read_bytes() if name == expected else b"no checkpoint")
        run(tmp_path / place, "--volumes", folder / "p1_i0.nii.gz", "--out", tmp_path / f"{place} out")
        assert f"The network is {tmp_path / place / expected}." in capsys.readouterr().out
    with pytest.raises(UserError, match="holds none of chosen.pkl, last.pkl, chosen/last.pkl: name a checkpoint"):
        run(folder, "--volumes", folder / "p1_i0.nii.gz", "--out", tmp_path / "out")


def test_masks_of_another_origin_are_not_taken_for_predictions(trained, tmp_path):
    folder, weights = trained
    words = ("--volumes", f"{folder}/p[12]_i0.nii.gz", "--out", tmp_path)
    run(weights, "--volumes", folder / "p1_i0.nii.gz", *words[2:])
    (tmp_path / "p2.nii.gz").write_bytes(b"mine")
    for flags in ((), ("--overwrite",)):
        with pytest.raises(UserError, match=r"predict.py did not make them .*: p2.nii.gz. Move them away"):
            run(weights, *words, *flags)
    assert (tmp_path / "p2.nii.gz").read_bytes() == b"mine"
    (tmp_path / "p2.nii.gz").unlink()
    run(weights, *words, "--overwrite")


def test_the_table_of_sizes_keeps_the_patients_of_other_calls(trained, tmp_path):
    folder, weights = trained

    def table(which, *flags):
        run(weights, "--volumes", f"{folder}/p{which}_i0.nii.gz", "--out", tmp_path / "out", *flags)
        return list(csv.DictReader((tmp_path / "out/volumes.csv").open()))

    (one,) = table(4)
    two = table("[12]")
    assert [row["patient"] for row in two] == ["p1", "p2", "p4"]
    assert two[2] == one
    assert [*table("?")[1:3], one] == two
    (tmp_path / "out/p4.nii.gz").unlink()
    assert [row["patient"] for row in table(0)] == ["p0", "p1", "p2", "p3", "p5"]
    text = (tmp_path / "out/volumes.csv").read_text().replace("mm3", "mm3,remarks")
    (tmp_path / "out/volumes.csv").write_text(text)
    with pytest.raises(UserError, match="not as predict.py left it"):
        table(0, "--overwrite")
    assert (tmp_path / "out/volumes.csv").read_text() == text


def crash(*_, **__):
    raise ZeroDivisionError


def evaluating(weights):
    """The flags of a run on the images that these weights were trained on."""
    words = (weights.parent / "params.txt").read_text().splitlines()
    told = dict(line.split(": ", 1) for line in words if ": " in line)
    flags = [f"--{name}" for name in ("target_dataset", "target_folders", "target_losses", "grp_regex", "network")]
    return [*[word for flag in flags for word in (flag, told[flag[2:]])], "--n_class", "2", "--cpu"]


def expected_of(folder):
    with (folder / "volumes.csv").open() as file:
        rows = csv.DictReader(file)
        return {row["patient"]: [row[name] for name in ("expected", "low", "high", "note")] for row in rows}


def test_the_table_tells_the_dice_to_expect_and_a_line_whom_to_look_at_first(trained, tmp_path, capsys):
    """The same as the file of a run that is evaluated on these volumes, within what the grey levels are sampled by."""
    folder, weights = trained
    run(weights, "--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out")
    found, said = expected_of(tmp_path / "out"), capsys.readouterr().out
    assert [*found] == [f"p{number}" for number in range(6)]
    worst = min(found, key=lambda patient: (float(found[patient][0]), float(found[patient][1])))
    assert f"labels: {worst} {float(found[worst][0]):.2f} (from" in said
    assert all(0 <= float(low) <= float(dice) <= float(high) <= 1 for dice, low, high, _ in found.values())
    argv = [*evaluating(weights), "--workdir", str(tmp_path / "noadap"), "--method", "noadap"]
    program.main([*argv, "--model_weights", str(weights)])
    with (tmp_path / "noadap/patients_expected.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(found[row["patient"]][0]) == pytest.approx(float(row["expected"]), abs=2e-3)
            assert float(found[row["patient"]][1]) == pytest.approx(float(row["low"]), abs=0.1)


def test_what_is_expected_is_known_after_a_kill_and_in_later_calls(trained, tmp_path, monkeypatch):
    folder, weights = trained
    words = ["--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out"]
    run(weights, *words[:2], "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(predict.Outputs, "write", before_call(4, predict.Outputs.write, crash))
        with pytest.raises(ZeroDivisionError):
            run(weights, *words)
    run(weights, *words)
    run(weights, *words)
    assert expected_of(tmp_path / "out") == expected_of(tmp_path / "whole")


def test_a_table_of_before_is_gone_on_with(trained, tmp_path):
    folder, weights = trained
    run(weights, "--volumes", folder / "p1_i0.nii.gz", "--out", tmp_path / "out")
    path = tmp_path / "out/volumes.csv"
    path.write_text("".join(",".join(line.split(",")[:6]) + "\n" for line in path.read_text().splitlines()))
    run(weights, "--volumes", f"{folder}/p[12]_i0.nii.gz", "--out", tmp_path / "out")
    found = expected_of(tmp_path / "out")
    assert found["p1"] == [""] * 4
    assert float(found["p2"][0]) > 0


def test_without_a_bundle_the_cells_are_empty_and_a_line_says_why(trained, tmp_path, capsys):
    folder, weights = trained
    state = torch.load(weights, weights_only=True)
    del state["bundle"]
    torch.save(state, tmp_path / "older.pkl")
    run(tmp_path / "older.pkl", "--volumes", folder / "p1_i0.nii.gz", "--out", tmp_path / "out")
    assert expected_of(tmp_path / "out") == {"p1": [""] * 4}
    assert "cannot be told without labels: its checkpoint has no source bundle" in capsys.readouterr().out


def test_two_at_once_adapt_once(trained, tmp_path):
    folder, weights = trained
    words = ["--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out", "--adapt", "--prior_mm2", 40]
    begin(tmp_path / "out", "predict.py")
    with locked(tmp_path / "out/adaptation"), pytest.raises(UserError, match="adaptation is being worked on by"):
        run(weights, *words)


def test_the_network_is_not_exported_onto_what_is_read(trained, tmp_path):
    folder, weights = trained
    volume = folder / "p1_i0.nii.gz"
    (tmp_path / "link.onnx").symlink_to(weights)
    before = weights.read_bytes(), volume.read_bytes()
    for path in (weights, volume, tmp_path / "link.onnx"):
        with pytest.raises(UserError, match="--export .* name another"):
            run(weights, "--volumes", volume, "--out", tmp_path / "out", "--export", path)
    assert (weights.read_bytes(), volume.read_bytes()) == before


def test_a_checkpoint_that_does_not_tell_its_preprocessing(trained, tmp_path):
    folder, weights = trained
    state = torch.load(weights, weights_only=True)
    del state["preprocessing"]
    torch.save(state, tmp_path / "old.pkl")
    words = ("--volumes", f"{folder}/p1_i0.nii.gz", "--out")
    with pytest.raises(UserError, match="--like data/prostate_target"):
        run(tmp_path / "old.pkl", *words, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(tmp_path / "old.pkl", *words, tmp_path / "out", "--like", weights.parents[1] / "set")
    run(weights, *words, tmp_path / "same")
    np.testing.assert_array_equal(*(nib.load(tmp_path / f"{name}/p1.nii.gz").dataobj for name in ("out", "same")))


def test_a_card_whose_spreads_are_not_whole_is_refused(trained, tmp_path):
    _, weights = trained
    state = torch.load(weights, weights_only=True)
    (told,) = state["preprocessing"]["card"]["grey_levels"]["IMG"]
    middle = told.pop("50")
    torch.save(state, tmp_path / "less.pkl")
    with pytest.raises(UserError, match=r"grey_levels.IMG lacks percentiles, expected 1, 50, 99 of each channel"):
        load_model(tmp_path / "less.pkl", "cpu")
    told["50"] = middle[::-1]
    torch.save(state, tmp_path / "turned.pkl")
    with pytest.raises(UserError, match=r"grey_levels.IMG.50 is \[.*expected the lowest, the middle and the highest"):
        load_model(tmp_path / "turned.pkl", "cpu")


def test_original_labels(trained, tmp_path):
    folder, weights = trained
    state = torch.load(weights, weights_only=True)
    state["preprocessing"]["card"]["label_map"] = {"0": 0, "255": 1}
    torch.save(state, tmp_path / "other.pkl")
    words = ("--volumes", f"{folder}/p1_i0.nii.gz", "--out", tmp_path / "out", "--label_values", "original")
    run(tmp_path / "other.pkl", *words)
    assert set(np.unique(nib.load(tmp_path / "out/p1.nii.gz").dataobj)) == {0, 255}


@pytest.mark.parametrize(
    ("layout", "volume", "mask", "beside"),
    [
        ("nnunet", "imagesTs/p_0001_0000.nii.gz", "p_0001.nii.gz", {"dataset.json"}),
        (
            *("bids", "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz"),
            "sub-01/ses-2/anat/sub-01_ses-2_desc-predicted_dseg.nii.gz",
            {"dataset_description.json", "dseg.tsv", ".bidsignore"},
        ),
    ],
)
def test_predictions_in_the_form_of_others(trained, tmp_path, layout, volume, mask, beside):
    folder, weights = trained
    state = torch.load(weights, weights_only=True)
    state["preprocessing"]["card"] |= {"label_map": {"0": 0, "255": 1}, "class_names": ["background", "the organ"]}
    torch.save(state, tmp_path / "named.pkl")
    path = tmp_path / "in" / volume
    path.parent.mkdir(parents=True)
    path.write_bytes((folder / "p1_i0.nii.gz").read_bytes())
    run(weights, "--volumes", f"{folder}/p1_i0.nii.gz", "--out", tmp_path / "plain")
    words = ["--weights", tmp_path / "named.pkl", "--volumes", path, "--out", tmp_path / "out", "--device", "cpu"]
    predict.main(list(map(str, [*words, "--layout", layout])))
    found, plain = (nib.load(each).dataobj for each in (tmp_path / "out" / mask, tmp_path / "plain/p1.nii.gz"))
    np.testing.assert_array_equal(found, 255 * np.asarray(plain, int))
    names = {each.name for each in (tmp_path / "out").iterdir() if each.is_file()}
    tables = {"labels_itksnap.txt", "labels_slicer.ctbl"}
    assert names >= tables | beside
    assert all("the organ" in (tmp_path / "out" / name).read_text().replace("_", " ") for name in tables)
    (row,) = csv.DictReader((tmp_path / "out/volumes.csv").open())
    assert (row["label"], int(row["voxels"])) == ("255", int(np.count_nonzero(plain)))
    with pytest.raises(UserError, match=r"made with something else \(label_values, layout"):
        predict.main(list(map(str, words)))


def test_the_largest_piece_of_each_class_is_kept():
    classes = np.zeros((9, 3, 3), np.uint8)
    classes[0:2], classes[3:4], classes[5:8], classes[8, 0, 0] = 1, 1, 2, 1
    kept = inference.largest_components(classes, 3)
    assert np.count_nonzero(kept == 1) == 18
    assert np.array_equal(kept == 2, classes == 2)


# -- adapted to the very volumes, exported ----------------------------------------------------------------------------


def test_adapted_without_ground_truth(trained, tmp_path):
    folder, weights = trained
    words = ["--volumes", f"{folder}/p?_i0.nii.gz", "--out", tmp_path / "out", "--adapt", "--n_epoch", 2]
    run(weights, *words, "--l_rate", "1e-3", "--prior_mm2", 40)
    place = tmp_path / "out/adaptation"
    log = pd.read_csv(place / "run/IMG_target_metrics.csv")
    assert len(log) == 2
    assert not [name for name in log if "dice" in name or "gt" in name]
    assert np.isfinite(log[["tra_loss_tot", "val_entropy"]]).all(axis=None)
    assert not list(place.glob("set/*/GT"))
    assert [path.name for path in (place / "run").glob("patients_*")] == ["patients_expected.csv"]
    assert not list((place / "run").glob("best_3d.pkl"))
    report.main(["--runs", str(place / "run"), "--out", str(tmp_path / "report")])
    assert "no scores" in (tmp_path / "report.txt").read_text(encoding="utf-8")
    provenance = json.loads((place / "run/provenance.json").read_text())
    assert provenance["supervision"] == "none"
    before, after = (torch.load(path, weights_only=True)["net"] for path in (weights, place / "run/last.pkl"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(list((tmp_path / "out").glob("p*.nii.gz"))) == 6
    with pytest.raises(UserError, match="one of them; got none"):
        run(weights, *words[:2], "--out", tmp_path / "other", "--adapt")


def test_what_there_is_to_adapt_to_is_told_when_it_is_not_enough(trained, tmp_path):
    folder, weights = trained
    image = nib.load(folder / "p0_i0.nii.gz")
    nib.save(image.slicer[:, :, 4:5], tmp_path / "p0.nii.gz")
    (tmp_path / "p1").mkdir()
    words = ["--out", tmp_path / "out", "--adapt", "--prior_mm2", 40]
    for _ in range(2):
        with pytest.raises(UserError, match=r"but one slice, of p0. Give it more --volumes"):
            run(weights, "--volumes", tmp_path / "p0.nii.gz", *words)
    with pytest.raises(UserError, match="holds no DICOM series"):
        run(weights, "--volumes", f"{tmp_path}/p1/", "--out", tmp_path / "other", *words[2:])


def test_exported_it_gives_the_same(trained, tmp_path, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder, weights = trained
    run(weights, "--volumes", f"{folder}/p1_i0.nii.gz", "--out", tmp_path / "out", "--export", tmp_path / "net.onnx")
    assert "differ" in capsys.readouterr().out
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    model = load_model(weights, device="cpu")
    for shape in ((1, 1, 12, 12), (3, 1, 20, 16)):
        image = torch.rand(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.inference_mode():
            expected = model.net(image)
        if found.shape == expected.shape:
            np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(UserError, match="--volumes"):
        run(weights)
