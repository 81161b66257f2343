"""Volumes -> a set of volumes: nothing lost, everything in its place, every fault named."""

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from datasets.set_tables import read_card
from datasets.transforms import FolderSpec
from datasets.volumes import WholeStream, open_volumes
from preprocess.packing import VolumeSpec
from preprocess.volume_set import assign_splits, describe, main, make_volume_set, read_spec
from processes.errors import UserError

OBLIQUE = np.array([[0, 0.2, 2.9, 11], [-1.5, 0, 0.1, -7], [0, -1.4, 0.3, 5], [0, 0, 0, 1.0]])
FOLDERS = [FolderSpec("IMG", "nii_transform"), FolderSpec("GT", "nii_gt_transform")]


def save(path, voxels, affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def archive(folder, labelled=4, tests=2, size=(6, 5, 4), channels=2, top=3, seed=0):
    """Labelled and test scans in the layout of the Decathlon, each with a shadow file."""
    rng = np.random.default_rng(seed)
    for number in range(labelled + tests):
        part = "Tr" if number < labelled else "Ts"
        shape = (*size, channels) if channels else size
        save(folder / f"images{part}/BRATS_{number:03}.nii.gz", rng.integers(0, 3000, shape).astype(np.int16))
        (folder / f"images{part}/._BRATS_{number:03}.nii.gz").write_bytes(b"shadow")
        if part == "Tr":
            label = rng.integers(0, top + 1, size).astype(np.uint8)
            label.flat[0] = top
            save(folder / f"labelsTr/BRATS_{number:03}.nii.gz", label)
    return folder


def spec_of(folder, dest, **changes):
    settings = {
        "image": (f"{folder}/imagesTr/*.nii.gz",),
        "label": f"{folder}/labelsTr/*.nii.gz",
        "unlabelled": (f"{folder}/imagesTs/*.nii.gz",),
        "patient": r"(BRATS_\d+)",
        "label_map": "1-3:1",
        "train": 2,
        "orient": None,  # what is expected here follows from the order of the voxels in the file
    }
    return VolumeSpec(dest, **(settings | changes))


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_refused(spec, *words):
    with pytest.raises(UserError) as error:
        make_volume_set(spec)
    for word in words:
        assert word in str(error.value)
    assert not spec.dest.exists()
    assert not list(spec.dest.parent.glob(f".{spec.dest.name}.*"))


# -- what is written -----------------------------------------------------------------------------------------


def test_layout_values_and_card(tmp_path):
    source = archive(tmp_path / "V")
    card = make_volume_set(spec_of(source, tmp_path / "set", axes=(2, 1, 0), phantom="small"))
    cases = {"train": (0, 1), "val": (2, 3), "unlabelled": (4, 5)}
    files = [f"{s}/IMG/BRATS_00{n}.npy" for s in cases for n in cases[s]]
    files += [f"{s}/GT/BRATS_00{n}.npy" for s in ("train", "val") for n in cases[s]]
    assert tree(tmp_path / "set") == sorted([*files, "dataset.json", "manifest.csv"])
    image, raw = np.load(tmp_path / "set/val/IMG/BRATS_002.npy"), voxels(source / "imagesTr/BRATS_002.nii.gz")
    assert image.dtype == np.int16
    assert np.array_equal(image, raw.transpose(3, 2, 1, 0))
    label, raw = np.load(tmp_path / "set/val/GT/BRATS_002.npy"), voxels(source / "labelsTr/BRATS_002.nii.gz")
    assert label.dtype == np.uint8
    assert np.array_equal(label, (raw > 0).T)
    assert read_card(tmp_path / "set") == json.loads(json.dumps(card))
    assert (card["volumetric"], card["n_class"], card["size"], card["phantom"]) == (True, 2, [4, 5, 6], "small")
    assert card["split"]["train"] == ["BRATS_000", "BRATS_001"]
    assert card["counts"]["unlabelled"] == {"patients": 2, "volumes": 2, "volumes_with_class": None}
    assert card["counts"]["val"]["volumes_with_class"] == [2, 2]
    assert "train 2 patients, val 2 patients, unlabelled 2 patients; 2 classes" in describe(card)


def moved_labels(source, dest):
    """The same images; each label turned round in its volume, so that it lies elsewhere."""
    shutil.copytree(source, dest)
    for path in dest.glob("labelsTr/BRATS_*"):
        save(path, np.ascontiguousarray(voxels(path)[::-1, ::-1]))
    return dest


def test_by_default_the_scale_is_that_of_the_whole_training_images_and_no_label_moves_it(tmp_path):
    source = archive(tmp_path / "V")
    for number in range(2):  # padding is no tissue
        image = voxels(source / f"imagesTr/BRATS_00{number}.nii.gz").copy()
        image[:2] = -7
        save(source / f"imagesTr/BRATS_00{number}.nii.gz", image)
    card = make_volume_set(spec_of(source, tmp_path / "set"))
    seen = np.concatenate([voxels(source / f"imagesTr/BRATS_00{n}.nii.gz")[2:].ravel() for n in range(2)])
    assert card["scale"] == pytest.approx({"mean": seen.mean(), "sd": seen.std()})
    moved = make_volume_set(spec_of(moved_labels(source, tmp_path / "M"), tmp_path / "moved"))
    assert (moved["scale"], moved["uses_labels"]) == (card["scale"], None)
    alone = make_volume_set(spec_of(source, tmp_path / "alone", label=None, label_map=None))
    assert (alone["scale"], alone["split"]) == (card["scale"], card["split"])


def test_a_set_of_images_alone(tmp_path):
    source = archive(tmp_path / "V")
    card = make_volume_set(spec_of(source, tmp_path / "set", label=None, label_map=None))
    home = {"train": (0, 1), "val": (2, 3), "unlabelled": (4, 5)}
    files = [f"{split}/IMG/BRATS_00{n}.npy" for split in home for n in home[split]]
    assert tree(tmp_path / "set") == sorted([*files, "dataset.json", "manifest.csv"])
    assert (card["n_class"], card["labels"], card["counts"]["train"]["volumes_with_class"]) == (None, None, None)
    assert "; no labels, 2 channels" in describe(card)
    assert len(open_volumes(tmp_path / "set", "train", FOLDERS[:1], 2, r"BRATS_\d+", (4, 4, 4))) == 2


def test_a_target_takes_the_scale_of_the_source(tmp_path):
    old, new = archive(tmp_path / "old"), archive(tmp_path / "new", seed=1)
    source = make_volume_set(spec_of(old, tmp_path / "source", normalise="foreground"))
    settings = {"label": None, "label_map": None, "scale_of": tmp_path / "source"}
    target = make_volume_set(spec_of(new, tmp_path / "target", **settings))
    assert (target["scale"], target["uses_labels"]) == (source["scale"], None)
    assert target["normalisation"] == {"kind": "as", "of": "source", "scope": "set"}
    own = make_volume_set(spec_of(old, tmp_path / "own", **settings))
    assert own["uses_labels"].startswith("scaled as source, which holds some of the same volumes: grey levels are")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match="--scale_of .*plain: expected a set .* there is no dataset.json"):
        make_volume_set(spec_of(new, tmp_path / "x", **settings | {"scale_of": tmp_path / "plain"}))


def test_the_scale_of_the_foreground_is_a_use_of_labels(tmp_path):
    source = archive(tmp_path / "V")
    card = make_volume_set(spec_of(source, tmp_path / "set", normalise="foreground"))
    assert card["uses_labels"] == "grey levels are scaled by those inside the labels of the training images"
    assert f"Labels shaped its images: {card['uses_labels']}." in describe(card)
    inside = np.concatenate(
        [voxels(source / f"imagesTr/BRATS_00{n}.nii.gz")[voxels(source / f"labelsTr/BRATS_00{n}.nii.gz") > 0].ravel()
         for n in range(2)]
    )  # fmt: skip
    assert card["scale"] == pytest.approx({"mean": inside.mean(), "sd": inside.std()})
    train = open_volumes(tmp_path / "set", "train", FOLDERS, 2, r"BRATS_\d+", (4, 4, 4))
    seen = torch.cat(
        [batch.image[0][:, truth[0] > 0].ravel() for batch, truth in WholeStream(train, torch.device("cpu")).epoch(0)]
    )
    assert seen.mean().item() == pytest.approx(0, abs=1e-5)
    assert seen.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert make_volume_set(spec_of(source, tmp_path / "raw", normalise="none"))["scale"] is None


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_a_voxel_stays_where_it_was(tmp_path, axes):
    source = archive(tmp_path / "V", labelled=2, tests=1)
    make_volume_set(spec_of(source, tmp_path / "set", axes=axes, train=1))
    for split, part, name in (("val", "Tr", "BRATS_001"), ("unlabelled", "Ts", "BRATS_002")):
        folders = FOLDERS if split == "val" else FOLDERS[:1]
        volumes = open_volumes(tmp_path / "set", split, folders, 2, r"BRATS_\d+", (4, 4, 4))
        header = nib.load(source / f"images{part}/{name}.nii.gz")
        stored = np.array([3, 2, 1])
        new = stored[list(axes)]
        assert np.allclose(volumes.headers[name].get_best_affine() @ [*new, 1], header.affine @ [*stored, 1])
        assert np.load(tmp_path / f"set/{split}/IMG/{name}.npy")[(1, *new)] == header.dataobj[(*stored, 1)]
        zooms = np.array(header.header.get_zooms()[:3])[list(axes)]
        assert np.allclose(volumes.spacing[name], zooms)


def test_the_manifest_names_the_source(tmp_path):
    source = archive(tmp_path / "V")
    make_volume_set(spec_of(source, tmp_path / "set"))
    with (tmp_path / "set/manifest.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["BRATS_005"]["split"] == "unlabelled"
    assert rows["BRATS_000"]["source"].endswith("imagesTr/BRATS_000.nii.gz")
    content = (source / "imagesTr/BRATS_000.nii.gz").read_bytes()
    assert rows["BRATS_000"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_channels_are_chosen_or_put_together(tmp_path):
    source = archive(tmp_path / "V", channels=3)
    make_volume_set(spec_of(source, tmp_path / "set", channels=(2, 0)))
    raw = voxels(source / "imagesTr/BRATS_000.nii.gz")
    assert np.array_equal(np.load(tmp_path / "set/train/IMG/BRATS_000.npy"), np.moveaxis(raw, -1, 0)[[2, 0]])
    single = archive(tmp_path / "S", channels=0, tests=0)
    twice = (f"{single}/imagesTr/*.nii.gz", f"{single}/labelsTr/*.nii.gz")
    card = make_volume_set(spec_of(single, tmp_path / "two", image=twice, unlabelled=()))
    image = np.load(tmp_path / "two/train/IMG/BRATS_001.npy")
    assert np.array_equal(image, [voxels(single / f"{part}/BRATS_001.nii.gz") for part in ("imagesTr", "labelsTr")])
    assert card["channels"] == {"IMG": 2}


def test_patients_that_are_left_lose_their_labels(tmp_path):
    source = archive(tmp_path / "V")
    card = make_volume_set(spec_of(source, tmp_path / "set", train=1, val=1))
    assert card["split"]["unlabelled"] == ["BRATS_002", "BRATS_003", "BRATS_004", "BRATS_005"]
    assert not (tmp_path / "set/unlabelled/GT").exists()
    assert not any("labelsTr/BRATS_002" in source["path"] for source in card["sources"])


def test_a_seed_draws_other_patients_and_the_same_ones_again():
    names = [f"P{number}" for number in range(30)]
    spec = {seed: VolumeSpec(Path("x"), ("a",), "b", "(c)", train=8, seed=seed) for seed in (None, 1, 2)}
    drawn = {seed: {n for n, split in assign_splits(names, spec[seed]).items() if split == "train"} for seed in spec}
    assert drawn[None] == set(sorted(names)[:8])
    assert len({frozenset(members) for members in drawn.values()}) == 3
    assert assign_splits(names[::-1], spec[1]) == assign_splits(names, spec[1])


def test_the_command_line_makes_the_same_set(tmp_path, monkeypatch, capsys):
    source = archive(tmp_path / "V", labelled=3, tests=1)
    flags = [*("--image", f"{source}/imagesTr/*.nii.gz"), *("--label", f"{source}/labelsTr/*.nii.gz")]
    flags += [*("--unlabelled", f"{source}/imagesTs/*.nii.gz"), *("--patient", r"(BRATS_\d+)"), *("--axes", *"210")]
    flags += [*("--train", "1"), *("--val", "1"), *("--channels", *"01"), *("--jobs", "1")]
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(sys, "argv", ["volume_set", "--dest", str(tmp_path / "a/set"), *flags])
    main()
    assert "set: train 1 patient, val 1 patient, unlabelled 2 patients; 4 classes" in capsys.readouterr().out
    spec = read_spec(["--dest", str(tmp_path / "set"), *flags])
    assert make_volume_set(spec)["scale"] == read_card(tmp_path / "a/set")["scale"]
    assert contents(tmp_path / "a/set") == contents(tmp_path / "set")
    with pytest.raises(UserError, match="is there already"):
        make_volume_set(spec)


def contents(folder):
    return {path: (folder / path).read_bytes() for path in tree(folder) if path.endswith(".npy")}


# -- faults --------------------------------------------------------------------------------------------------


def test_all_volumes_at_fault_are_listed_and_nothing_is_left(tmp_path):
    source = archive(tmp_path / "V", labelled=7, tests=2)
    image = np.ones((6, 5, 4, 2), np.float32)
    save(source / "imagesTr/BRATS_000.nii.gz", np.full_like(image, np.nan))
    save(source / "imagesTr/BRATS_001.nii.gz", image[1:])
    save(source / "imagesTr/BRATS_002.nii.gz", image, OBLIQUE + np.eye(4, k=3))
    save(source / "labelsTr/BRATS_003.nii.gz", np.full((6, 5, 4), 7, np.uint8))
    save(source / "labelsTr/BRATS_004.nii.gz", np.full((6, 5, 4), 0.5, np.float32))
    damaged = source / "imagesTs/BRATS_007.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert_refused(
        spec_of(source, tmp_path / "set"),
        "6 faults",
        "NaN or infinite: ",
        "BRATS_000.nii.gz (240 of 240)",
        "BRATS_001.nii.gz (shape (6, 5, 4), not (5, 5, 4))",
        "BRATS_002.nii.gz (1 mm apart",
        "BRATS_003.nii.gz (7)",
        "BRATS_004.nii.gz (fractions, as 0.5)",
        "BRATS_007.nii.gz (ImageFileError",
    )


def test_channels_that_differ(tmp_path):
    source = archive(tmp_path / "V")
    save(source / "imagesTr/BRATS_003.nii.gz", np.ones((6, 5, 4), np.int16))
    assert_refused(spec_of(source, tmp_path / "set"), "usual 2 (choose some with --channels): BRATS_003 1")
    assert_refused(spec_of(source, tmp_path / "set", channels=(0, 1)), "no channel 1", "BRATS_003.nii.gz has 1")
    make_volume_set(spec_of(source, tmp_path / "set", channels=(0,)))


def test_partners_by_patient(tmp_path):
    source = archive(tmp_path / "V")
    (source / "labelsTr/BRATS_001.nii.gz").unlink()
    (source / "imagesTr/BRATS_002.nii.gz").unlink()
    words = "patients without GT volume", "BRATS_001", "patients without IMG volume", "BRATS_002"
    assert_refused(spec_of(source, tmp_path / "set"), *words)
    same = (f"{source}/imagesTr/*.nii.gz",)
    assert_refused(spec_of(source, tmp_path / "set", unlabelled=same), "both with --image and with --unlabelled")


def test_labels_with_a_gap_and_foreground_without_spread(tmp_path):
    source = archive(tmp_path / "V", top=1)
    save(source / "labelsTr/BRATS_000.nii.gz", np.full((6, 5, 4), 255, np.uint8))
    assert_refused(spec_of(source, tmp_path / "set", label_map=None), "0, 1, 255: give --label_map, perhaps 255:2")
    for number in range(2):
        save(source / f"labelsTr/BRATS_00{number}.nii.gz", np.zeros((6, 5, 4), np.uint8))
    inside = spec_of(source, tmp_path / "set", normalise="foreground")
    assert_refused(inside, "0 grey levels inside the labels of the 2 training patients")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": (0, 0, 1)}, "each of 0 1 2 once"),
        ({"train": 0}, "--train is the number"),
        ({"train": 4}, "--train 4 and --val 1 are more than the 4"),
        ({"val": 3}, "--train 2 and --val 3 are more than the 4"),
        ({"label_map": "1-3"}, "cannot read '1-3'"),
        ({"unlabelled": ("a", "b")}, "as often as --image"),
        ({"channels": (-1,)}, "count from 0"),
        ({"tolerance": float("nan")}, "--tolerance is mm, from 0 up, got nan"),
        ({"label": None}, "--label_map says what labels become: it goes with --label"),
        ({"label": None, "label_map": None, "normalise": "foreground"}, "looks inside labels: give --label"),
        ({"scale_of": Path("x"), "normalise": "none"}, "--scale_of takes the place of --normalise"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, message):
    source = archive(tmp_path / "V")
    with pytest.raises(UserError, match=message):
        make_volume_set(spec_of(source, tmp_path / "set", **changes))
