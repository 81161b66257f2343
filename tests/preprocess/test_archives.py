"""Miniature archives in the official layouts: packed, unpacked, and sliced by the script of each."""

import json
import zipfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from datasets.set_tables import read_card, read_rows
from files.decoding import read_slice
from files.pairing import find_files
from preprocess.archives import acdc, isles, ivdm3seg, layout, mmwhs, msd, nci_isbi, promise12, saml, wmh
from preprocess.archives.layout import slice_archive
from preprocess.slicing.frames import restore
from preprocess.unpack import Lineage, unpack
from processes.errors import UserError
from tests.files.test_reading import read_png, write

SHAPE = (8, 9, 5)
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])
RAS = np.diag([1.0, 1.0, 2.0, 1.0])


def volume(path, values=(0, 1), shape=SHAPE, affine=LPS, image=False):
    """A file at the path: labels that hold all the values, or an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    voxels = rng.integers(0, 900, shape) if image else rng.choice(values, shape)
    voxels = voxels.astype(np.int16)
    if not image:
        voxels.flat[: len(values)] = values
    write(path, voxels, affine)


def scan(folder, image, label, values=(0, 1), **more):
    volume(folder / image, image=True, **more)
    volume(folder / label, values, **more)


@pytest.fixture
def unpacked(tmp_path):
    """What `fill` writes below a folder, packed into a zip and unpacked again."""

    def make(fill):
        fill(tmp_path / "official")
        packed = tmp_path / "archive.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((tmp_path / "official").rglob("*")):
                archive.write(path, path.relative_to(tmp_path / "official"))
        unpack(Lineage({packed: None}, ""), tmp_path / "volumes")
        return tmp_path / "volumes"

    return make


def run(archive, volumes, *words):
    dest = volumes.parent / "set"
    more = ["--jobs", "1"] + ([] if "--val" in words or "--val_list" in words else ["--val", "1"])
    slice_archive(archive, ["--volumes", str(volumes), "--dest", str(dest), *more, *map(str, words)])
    return dest, read_card(dest)


def patients(card):
    return sorted(name for names in card["split"].values() for name in names)


# -- prostate ---------------------------------------------------------------------------------------------------------


def test_saml_whatever_its_capitals(unpacked):
    def fill(root):
        scan(root / "BMC", "Case00.nii.gz", "Case00_segmentation.nii.gz", (0, 1, 2))
        scan(root / "BMC", "Case05.nii.gz", "Case05_Segmentation.nii.gz", (0, 1))
        scan(root / "RUNMC", "Case00.nii.gz", "Case00_segmentation.nii.gz")

    dest, card = run(saml, unpacked(fill), "--site", "BMC")
    assert patients(card) == ["Case00", "Case05"]
    assert (card["n_class"], card["site"], card["label_map"]) == (2, "BMC", {"1": 1, "2": 1})
    assert read_png(dest, read_rows(dest)[0], "GT").max() == 1


def test_saml_below_a_folder_and_a_site_that_is_not_there(unpacked):
    volumes = unpacked(lambda root: scan(root / "SAML/bmc", "Case00.nii.gz", "Case00_segmentation.nii.gz"))
    assert "/SAML/bmc/" in saml.flags(SimpleNamespace(volumes=volumes, site="BMC"))[1]
    with pytest.raises(UserError, match="no folder HK; it has SAML, bmc"):
        saml.flags(SimpleNamespace(volumes=volumes, site="HK"))


@pytest.mark.parametrize("folder", ["training_data", "PROMISE12/TrainingData_Part1"])
def test_promise12(unpacked, folder):
    def fill(root):
        for number in range(2):
            scan(root / folder, f"Case{number:02d}.mhd", f"Case{number:02d}_segmentation.mhd")
        volume(root / "test_data/Case30.mhd", image=True)

    volumes = unpacked(fill)
    _, card = run(promise12, volumes)
    assert patients(card) == ["Case00", "Case01"]
    words = promise12.flags(SimpleNamespace(volumes=volumes, test_data=True))
    assert "--label" not in words
    assert [path.stem for path in find_files(words[1].removeprefix("IMG="))] == ["Case30"]


def test_nci_isbi_places_corrected_labels_on_series(unpacked):
    def fill(root):
        for number in (6, 55, 82):
            name = f"ProstateDx-01-{number:04d}"
            volume(root / "PROSTATE-DIAGNOSIS" / name / "study/series", image=True)
        labels = root / "NCI-ISBI/Training"
        volume(labels / "ProstateDx-01-0006.nrrd", (0, 1))
        volume(labels / "ProstateDx-01-0006_corrected_label.nrrd", (0, 1, 2))
        fewer = LPS.copy()
        fewer[2, 3] = 4
        volume(labels / "ProstateDx-01-0055_truth.nrrd", (0, 1, 2), (8, 9, 3), fewer)
        volume(labels / "ProstateDx-01-0082.nrrd", (0, 1, 2), (16, 18, 5), LPS * [[0.5, 0.5, 1, 1]] * 1.0)
        volume(labels / "Prostate3T-01-0001.nrrd", (0, 1, 2))

    dest, card = run(nci_isbi, unpacked(fill), "--site", "BMC")
    assert patients(card) == ["ProstateDx-01-0006", "ProstateDx-01-0055", "ProstateDx-01-0082"]
    assert set(card["placed_labels"]) == {"ProstateDx-01-0055", "ProstateDx-01-0082"}
    used = {each["patient"]: each["path"] for each in card["sources"] if each["role"] == "GT"}
    assert used["ProstateDx-01-0006"].endswith("_corrected_label.nrrd")
    rows = [row for row in read_rows(dest) if row["patient"] == "ProstateDx-01-0055"]
    assert [read_png(dest, row, "GT").any() for row in rows] == [False, False, True, True, True]


def test_nci_isbi_tells_of_patients_without_one_series(unpacked):
    volumes = unpacked(lambda root: volume(root / "labels/Prostate3T-01-0001.nrrd"))
    with pytest.raises(UserError, match=r"Prostate3T-01-0001 \(0\)"):
        nci_isbi.flags(SimpleNamespace(volumes=volumes, site="RUNMC", zones=False))


# -- heart ------------------------------------------------------------------------------------------------------------

HEART = (0, 205, 420, 500, 550, 600, 820, 850)


@pytest.mark.parametrize(
    "folders", [("ct_train", "ct_train"), ("ct_train1", "ct_train2"), ("a/ct_train1", "a/ct_train2")]
)
def test_mmwhs(unpacked, folders):
    def fill(root):
        for number, folder in enumerate(folders, 1001):
            values = (*HEART, 421) if number == 1001 else HEART
            scan(root / folder, f"ct_train_{number}_image.nii.gz", f"ct_train_{number}_label.nii.gz", values)
        scan(root / "mr_train", "mr_train_1001_image.nii.gz", "mr_train_1001_label.nii.gz", HEART)

    volumes = unpacked(fill)
    dest, card = run(mmwhs, volumes, "--modality", "CT", "--plane", "coronal")
    assert (patients(card), card["n_class"], card["axis"], card["orient"]) == (["1001", "1002"], 5, 1, "LPS")
    assert card["counts"]["train"]["slices_with_class"][1:] != [0] * 4
    shown = {int(k) for row in read_rows(dest) for k in np.unique(read_png(dest, row, "GT"))}
    assert shown == {0, 1, 2, 3, 4}
    assert "850:7" in " ".join(mmwhs.flags(SimpleNamespace(volumes=volumes, modality="MR", structures=7)))


def test_mmwhs_cut_round_the_heart(unpacked):
    """The published crop, centred on what is labelled: the heart lies in the middle wherever it lay; noted as a use."""

    def fill(root):
        for number, (x, z) in enumerate([(2, 3), (11, 9)], 1001):
            volume(root / f"mr_train/mr_train_{number}_image.nii.gz", image=True, shape=(16, 9, 14))
            heart = np.zeros((16, 9, 14), np.int16)
            heart[x : x + 4, 3:6, z : z + 4] = 500
            write(root / f"mr_train/mr_train_{number}_label.nii.gz", heart, LPS)

    words = ("--modality", "MR", "--plane", "coronal", "--size", "8", "8", "--centre", "labels")
    dest, card = run(mmwhs, unpacked(fill), *words)
    assert "labelled" in card["uses_labels"]
    rows = {}
    for row in read_rows(dest):
        rows.setdefault(row["patient"], []).append(row)
    for own in rows.values():
        masks = {int(row["index"]): read_png(dest, row, "GT") for row in own}
        assert np.argwhere(masks[4] == 3).min(0).tolist() == [2, 2]
        assert (masks[4] == 3).sum() == 16
        back, _ = restore(masks, own)
        assert (back == 3).sum() == 48


def test_acdc_frames_of_a_patient_stay_together(unpacked):
    def fill(root):
        for number, (first, second) in enumerate([(1, 12), (4, 9), (1, 10)], 1):
            folder = root / f"database/training/patient{number:03d}"
            for frame in (first, second):
                name = f"patient{number:03d}_frame{frame:02d}"
                scan(folder, f"{name}.nii.gz", f"{name}_gt.nii.gz", (0, 1, 2, 3))
            (folder / "Info.cfg").write_text(f"ED: {first}\nES: {second}\nGroup: NOR\n")

    volumes = unpacked(fill)
    _, card = run(acdc, volumes, "--val", "2")
    (val,) = {name.partition("_")[0] for name in card["split"]["val"]}
    assert val not in {name.partition("_")[0] for name in card["split"]["train"]}
    frames = acdc.find_frames(volumes, "ED")
    assert sorted(frame.rpartition("_")[2] for frame in frames) == ["frame01", "frame01", "frame04"]
    (volumes / "database/training/patient002/Info.cfg").write_text("Group: NOR\n")
    with pytest.raises(UserError, match="of patient002"):
        acdc.find_frames(volumes, "ED")


def test_acdc_one_moment(unpacked):
    def fill(root):
        for number in (1, 2):
            for frame in (1, 9):
                name = f"patient{number:03d}_frame{frame:02d}"
                scan(root / f"training/patient{number:03d}", f"{name}.nii.gz", f"{name}_gt.nii.gz", (0, 1, 2, 3))
            (root / f"training/patient{number:03d}/Info.cfg").write_text("ED: 1\nES: 9\n")

    _, card = run(acdc, unpacked(fill), "--frames", "ES")
    assert patients(card) == ["patient001_frame09", "patient002_frame09"]


# -- spine ------------------------------------------------------------------------------------------------------------


def discs(root):
    root.mkdir(exist_ok=True)
    shifted = LPS.copy()
    shifted[0, 3] = 3
    for number in range(1, 7):
        for kind in ("fat", "inn", "opp", "wat"):
            volume(root / f"{number:02d}_{kind}.nii", image=True, shape=(6, 9, 8))
        where = shifted if number == 6 else LPS
        labels = np.zeros((6, 9, 8), np.int16)
        labels[3:5, 2:6, 2:6] = number
        write(root / f"{number:02d}_Labels.nii", labels, where)


def test_ivdm3seg_pairs_stay_together_and_the_label_off_its_grid_is_placed(unpacked):
    volumes = unpacked(discs)
    dest, card = run(ivdm3seg, volumes, "--val", "2", "--axis", "1", "--images", "wat", "fat")
    assert card["split"] == {"train": ["01", "02", "03", "04"], "val": ["05", "06"]}
    assert set(card["placed_labels"]) == {"06"}
    assert {path.name for path in (dest / "train").iterdir()} == {"Wat", "Fat", "GT"}
    assert card["n_class"] == 2
    for count in (1, 3, 0, 6):
        with pytest.raises(UserError, match="scanned twice"):
            ivdm3seg.flags(SimpleNamespace(volumes=volumes, images=["wat"], val=count))


# -- brain ------------------------------------------------------------------------------------------------------------


def test_isles_channels_in_their_order(unpacked):
    def fill(root):
        for case in (1, 2):
            for number, kind in enumerate([*isles.KINDS, "CT_4DPWI", "OT"]):
                name = f"SMIR.Brain.XX.O.{kind}.{case}{number}"
                volume(root / f"TRAINING/case_{case}/{name}/{name}.nii", image=kind != "OT")

    dest, card = run(isles, unpacked(fill), "--format", "npy", "--normalise", "none")
    assert (card["channels"], patients(card)) == ({"in_npy": 5}, ["case_1", "case_2"])
    row = next(row for row in read_rows(dest) if row["patient"] == "case_1" and row["index"] == "2")
    pixels = read_slice(dest / row["split"] / "in_npy" / f"{row['slice']}.npy")
    for channel, path in zip(pixels, row["source"].split(";"), strict=True):
        np.testing.assert_array_equal(channel, np.asarray(nib.load(path).dataobj)[..., 2])
    assert [path.split(".O.")[1].split(".")[0] for path in row["source"].split(";")] == list(isles.KINDS)


@pytest.mark.parametrize("prefix", ["", "training/"])
def test_wmh(unpacked, prefix):
    sites = ("Utrecht", "Singapore", "Amsterdam/GE3T" if prefix else "GE3T")

    def fill(root):
        for site in sites:
            for kind in ("pre/FLAIR", "pre/T1", "orig/FLAIR"):
                volume(root / f"{prefix}{site}/50/{kind}.nii.gz", image=True)
            volume(root / f"{prefix}{site}/50/wmh.nii.gz", (0, 1, 2))
        if prefix:
            volume(root / "test/Utrecht/7/wmh.nii.gz")

    _, card = run(wmh, unpacked(fill), "--format", "npy")
    assert patients(card) == ["GE3T50", "Singapore50", "Utrecht50"]
    assert (card["label_map"], card["channels"]) == ({"0": 0, "1": 1, "2": 0}, {"in_npy": 2})


# -- decathlon --------------------------------------------------------------------------------------------------------


def prostates(root):
    task = root / "Task05_Prostate"
    for number in (0, 4):
        volume(task / f"imagesTr/prostate_{number:02d}.nii.gz", shape=(*SHAPE, 2), affine=RAS, image=True)
        volume(task / f"labelsTr/prostate_{number:02d}.nii.gz", (0, 1, 2), affine=RAS)
        (task / f"imagesTr/._prostate_{number:02d}.nii.gz").write_bytes(b"\0\5\26\7")
    contents = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    (task / "dataset.json").write_text(json.dumps(contents))


def test_msd_channels_by_name(unpacked, capsys):
    volumes = unpacked(prostates)
    dest, card = run(
        msd, volumes, "--task", "Task05_Prostate", "--image_channel", "ADC", "--normalise", "none", "--format", "npy"
    )
    assert "1 PZ, 2 TZ" in capsys.readouterr().out
    assert (patients(card), card["channel"], card["n_class"]) == (["00", "04"], 1, 3)
    row = read_rows(dest)[0]
    pixels = read_slice(dest / row["split"] / "IMG" / f"{row['slice']}.npy")
    np.testing.assert_array_equal(pixels, np.asarray(nib.load(row["source"]).dataobj)[..., 0, 1])


@pytest.mark.parametrize("name", [None, "T1"])
def test_msd_asks_for_a_channel(unpacked, name):
    volumes = unpacked(prostates)
    with pytest.raises(UserError, match="T2, ADC"):
        msd.flags(SimpleNamespace(volumes=volumes, task="Task05_Prostate", image_channel=name))
    (volumes / "Task05_Prostate/dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the contents"):
        msd.flags(SimpleNamespace(volumes=volumes, task="Task05_Prostate", image_channel="T2"))


# -- what all share ---------------------------------------------------------------------------------------------------


def test_another_layout_is_told(tmp_path):
    (tmp_path / "volumes").mkdir()
    with pytest.raises(UserError, match="does not look like this archive: expected one of"):
        run(promise12, tmp_path / "volumes")
    with pytest.raises(UserError, match="is no folder"):
        run(promise12, tmp_path / "nowhere")
    with pytest.raises(UserError, match="to choose the files by hand"):
        run(promise12, tmp_path / "volumes", "--image", "IMG=x")
    assert not (tmp_path / "set").exists()


def test_flags_of_the_slicer_stand_behind_and_win(unpacked):
    volumes = unpacked(lambda root: [scan(root, f"Case0{n}.mhd", f"Case0{n}_segmentation.mhd") for n in range(2)])
    _, card = run(promise12, volumes, "--label_map", "0:1,1:0", "--site", "X", "--normalise", "minmax")
    assert (card["label_map"], card["site"], card["normalisation"]["kind"]) == ({"0": 1, "1": 0}, "X", "minmax")


def test_every_script_tells_its_layout():
    for archive in (acdc, isles, ivdm3seg, mmwhs, msd, nci_isbi, promise12, saml, wmh):
        assert "Layout: " in archive.__doc__
        assert "Oddities: " in archive.__doc__
        assert f"python -m {archive.__name__} --volumes" in archive.__doc__
    assert layout.__doc__
