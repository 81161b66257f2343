"""Data sets in layouts that others hand on become a makefile by one command: what is found, named, split, refused."""

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocess import new_dataset as program
from preprocess.layouts.layout import LAYOUTS, Asked
from preprocess.slice_volumes import read_spec, slice_set
from processes.errors import UserError

ROOT = Path(__file__).parents[2]
NEEDED = ("processes", "files", "datasets", "nets", "methods", "engine", "analysis", "preprocess", "make", "*.py")
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (16, 16, 4)


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def scan(rng, labels=(1, 2), channels=None):
    """An image (X, Y, Z), or one for each channel along a last axis, and its labels, one square each."""
    truth = np.zeros(SHAPE, np.uint8)
    for place, label in enumerate(labels):
        truth[2 + 5 * place : 6 + 5 * place, 3:9, 1:] = label
    image = np.where(truth, 600 + 50 * truth.astype(int), 200) + rng.normal(0, 20, SHAPE)
    image = image if channels is None else np.stack([image, *[1000 - image] * (channels - 1)], -1)
    return image.astype(np.int16), truth


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with what a makefile needs."""
    for pattern in NEEDED:
        for path in ROOT.glob(pattern):
            (tmp_path / path.name).symlink_to(path)
    for folder in ("data", "sizes"):
        (tmp_path / folder).mkdir()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    args = program.parse_args(list(words))
    program.new_dataset(args)
    return Path(f"{args.name}.make").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- nnU-Net v2

LABELS = {"background": 0, "peripheral zone": 1, "transition zone": 2}


def nnunet_set(folder, seed=0, labels=LABELS, values=(1, 2), channels=("T2", "ADC"), n=4, parts=("Tr",), **card):
    """A data set as nnU-Net's own package writes one: cases whose names end in four digits, as those of BraTS do."""
    rng = np.random.default_rng(seed)
    for case in range(n):
        image, truth = scan(rng, values, len(channels))
        for part in parts:
            for channel in range(len(channels)):
                save(folder / f"images{part}/p_{case:04}_{channel:04}.nii.gz", image[..., channel])
        if "Tr" in parts:
            save(folder / f"labelsTr/p_{case:04}.nii.gz", truth)
    told = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels,
        "numTraining": n,
        "file_ending": ".nii.gz",
        "licence": "Whoever converted this dataset was lazy",
    }
    (folder / "dataset.json").write_text(json.dumps(told | card))
    return folder


def test_a_data_set_of_nnunet_is_read_as_it_describes_itself(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    folder = nnunet_set(tmp_path / "nnUNet_raw/Dataset101_Old")
    folds = [{"train": ["p_0000", "p_0001", "p_0002"], "val": ["p_0003"]}, {"train": ["p_0003"], "val": ["p_0001"]}]
    preprocessed = tmp_path / "nnUNet_preprocessed/Dataset101_Old"
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    files = LAYOUTS["nnunet"](folder, Asked())
    assert files.images == tuple(f"{folder}/imagesTr/*_000{channel}.nii.gz" for channel in (0, 1))
    assert files.label == f"{folder}/labelsTr/*.nii.gz"
    assert files.class_names == {0: "background", 1: "peripheral zone", 2: "transition zone"}
    assert (files.ignore, files.val, files.modality) == (None, ("p_0003",), "T2 + ADC")
    second = LAYOUTS["nnunet"](folder, Asked(fold=1))
    assert second.val == ("p_0001",)
    assert any("p_0000, p_0002 is in neither part of fold 1" in note for note in second.notes)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    assert LAYOUTS["nnunet"](Path("Dataset101_Old"), Asked()) == files


def test_one_command_makes_a_makefile_of_two_data_sets_of_nnunet(place):
    nnunet_set(place / "Dataset101_Old")
    (place / "Dataset101_Old/splits_final.json").write_text(
        json.dumps([{"train": ["p_0000", "p_0001"], "val": ["p_0002", "p_0003"]}])
    )
    other = {"background": 0, "Transition_Zone": 1, "peripheral zone": 2, "ignore": 3}
    nnunet_set(place / "Dataset102_New", seed=1, labels=other, values=(1, 2, 3))
    text = run("--nnunet", "Dataset101_Old", "--target_nnunet", "Dataset102_New")
    assert Path("old_new.make").is_file()
    assert "target labels are found by their names" in text
    source, target = (read_spec(words) for words in words_of("old_new"))
    assert source.images == {"IMG": tuple(f"Dataset101_Old/imagesTr/*_000{channel}.nii.gz" for channel in (0, 1))}
    assert source.val_list == ("p_0002", "p_0003")
    assert (source.n_class, source.class_names) == (3, ("background", "peripheral zone", "transition zone"))
    assert (target.label_map, target.ignore, target.val) == ("0:0,1:2,2:1", 3, 1)
    assert "COMMON += --ignore 255" in text
    card = slice_set(target)
    assert card["channels"] == {"IMG": 2}
    truth = np.asanyarray(nib.load("Dataset102_New/labelsTr/p_0000.nii.gz").dataobj)
    cut = [next(Path("data/old_new_target").glob(f"*/GT/p_0000_{n}.nii")) for n in range(4)]
    found = np.stack([np.asanyarray(nib.load(path).dataobj) for path in cut], -1)
    assert [int((found == k).sum()) for k in (1, 2, 255)] == [int((truth == label).sum()) for label in (2, 1, 3)]


def words_of(name):
    """What make hands to the slicer, source first: printf stands for python."""
    found = []
    for site in ("source", "target"):
        words = ["make", "-s", "-f", f"{name}.make", f"data/{name}_{site}", r"CC=printf '%s\0'"]
        done = subprocess.run(words, capture_output=True, check=True)
        told = [word.decode() for word in done.stdout.split(b"\0")[:-1]]
        found.append(told[told.index("preprocess.slice_volumes") + 1 :])
    return found


def test_regions_become_the_labels_they_are_made_of(tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    folder = nnunet_set(tmp_path / "Dataset137_BraTS", labels=labels, regions_class_order=[1, 2, 3])
    files = LAYOUTS["nnunet"](folder, Asked())
    assert files.class_names == {0: "background", 1: "whole tumor", 2: "tumor core", 3: "enhancing tumor"}
    (told,) = [note for note in files.notes if "regions overlap" in note]
    assert "whole tumor = 1+2+3, tumor core = 2+3" in told
    assert "--label_map 1:1,2:1,3:1 learns the first region" in told


def test_a_target_of_test_images_alone_has_no_labels(place):
    nnunet_set(place / "Dataset101_Old", channels=("CT",))
    nnunet_set(place / "Dataset102_New", channels=("CT",), parts=("Ts",))
    text = run("--name", "mine", "--nnunet", "Dataset101_Old", "--target_nnunet", "Dataset102_New")
    assert "imagesTs/*_0000.nii.gz" in text
    assert "labelsTr" not in text.split("--site target")[1]
    assert "--normalise window --window LOW HIGH keeps Hounsfield units" in text
    Path("mine.make").unlink()
    assert (
        "labelsTr"
        not in run(
            *("--name", "mine", "--nnunet", "Dataset101_Old", "--target_nnunet", "Dataset101_Old", "--no_target_label")
        ).split("--site target")[1]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {}}, r"must name its labels, as in .*background.*; there is {}"),
        ({"labels": {"0": "background", "1": "organ"}}, "the other way round, as the Decathlon and nnU-Net v1 do"),
        ({"labels": {"background": 0, "organ": "one"}}, "which is not so of organ"),
        ({"labels": {"background": 0, "organ": [1, True]}}, "which is not so of organ"),
        ({"labels": {"background": 0, "organ": 2}}, r"without a gap, 254 at most; there are 0, 2"),
        ({"labels": {"organ": 0, "other": 1}}, "none of them named background"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "gives one label several names"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 3}}, '"ignore" is the one above all others, 2; there is 3'),
        ({"labels": [1]}, r"there is \[1\]"),
        ({"file_ending": ".png"}, "are pictures"),
        ({"file_ending": None}, "must say how its volumes end.* there is None"),
        ({"file_ending": ".nrrd"}, "No file matches .*imagesTr/.*_0000.nrrd: dataset.json there says"),
        ({"channel_names": {"1": "T2"}}, "must name its channels by their numbers"),
        ({"channel_names": {"0": ["T2"]}}, r"a name is a word or a few, there is \['T2'\]"),
        ({"dataset": {}}, "lists its files one by one"),
    ],
)
def test_a_broken_dataset_json_is_refused_in_a_paragraph(tmp_path, change, words):
    folder = nnunet_set(tmp_path / "Dataset101_Old", channels=("T2",), n=1, **change)
    with pytest.raises(UserError, match=words) as error:
        LAYOUTS["nnunet"](folder, Asked())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "must be a list of folds"),
        ('[{"train": ["p_0000"]}]', "must be a list of folds"),
        ('[{"train": ["p_0000"], "val": [0]}]', "must be a list of folds"),
        ('[{"train": ["p_0000"], "val": ["p_0009"]}]', "names cases that are not in .*: p_0009"),
        ('[{"train": ["p_0000", "p_0001"], "val": ["p_0001"]}]', "p_0001 would train and validate"),
        ("[]", "--fold 0: .* has 0 folds"),
    ],
)
def test_a_broken_split_is_refused(tmp_path, splits, words):
    folder = nnunet_set(tmp_path / "Dataset101_Old", channels=("T2",), n=2)
    (folder / "splits_final.json").write_text(splits)
    with pytest.raises(UserError, match=words):
        LAYOUTS["nnunet"](folder, Asked())


def test_what_is_no_data_set_is_told(place):
    with pytest.raises(UserError, match=r"There is no dataset.json in nowhere \(\$nnUNet_raw is not set\)"):
        run("--nnunet", "nowhere", "--target_nnunet", "nowhere", "--name", "mine")
    nnunet_set(place / "Dataset101_Old", n=2)
    nnunet_set(place / "Dataset102_New", labels={"background": 0, "liver": 1, "spleen": 2})
    with pytest.raises(UserError, match="share no class: the source has peripheral zone, transition zone"):
        run("--nnunet", "Dataset101_Old", "--target_nnunet", "Dataset102_New")
