"""Data sets in layouts that others hand on become a makefile by one command: what is found, named, split, refused."""

import json
import re
import subprocess
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest

from files.pairing import find_files, read_id
from files.reading import read_grid
from preprocess import new_dataset as program
from preprocess.layouts.layout import LAYOUTS, Asked
from preprocess.slice_volumes import read_spec, slice_set
from processes.errors import UserError
from tests.tools.checkout import working_folder
from tests.tools.fuzz_volumes import write_series

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
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(working_folder(tmp_path))
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


def members(card):
    """All patients of a set, sorted."""
    return sorted(name for names in card["split"].values() for name in names)


def test_regions_become_the_labels_they_are_made_of(tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    folder = nnunet_set(tmp_path / "Dataset137_BraTS", labels=labels, regions_class_order=[1, 2, 3])
    files = LAYOUTS["nnunet"](folder, Asked())
    assert files.class_names == {0: "background", 1: "whole tumor", 2: "tumor core", 3: "enhancing tumor"}
    (told,) = [note for note in files.notes if "regions overlap" in note]
    assert "whole tumor = 1+2+3, tumor core = 2+3" in told
    assert "--label_map 1:1,2:1,3:1 learns the first region" in told


def test_the_regions_of_nnunets_own_integration_test(tmp_path):
    """Dataset996_IntegrationTest_Hippocampus_regions_ignore: one label lies in a region alone, one is ignored."""
    labels = {"background": 0, "hippocampus": [1, 2], "anterior": 1, "ignore": 3}
    folder = nnunet_set(tmp_path / "Dataset996", labels=labels, channels=("MRI",), n=2, regions_class_order=[2, 1])
    files = LAYOUTS["nnunet"](folder, Asked())
    assert files.class_names == {0: "background", 1: "anterior", 2: "hippocampus"}
    assert files.ignore == 3


@pytest.mark.parametrize("flag", [("--patient", r"(\d+)"), ("--channel", "0")])
def test_what_a_layout_finds_by_itself_is_not_told(place, flag):
    for number in (101, 102):
        nnunet_set(place / f"Dataset{number}_A", n=2)
    with pytest.raises(UserError, match=f"{flag[0]} is for volumes that --source or --target name; --nnunet finds it"):
        run("--nnunet", "Dataset101_A", "--target_nnunet", "Dataset102_A", *flag)


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


# ----------------------------------------------------------------------------------------------------- Decathlon


def decathlon_task(folder, seed=0, n=3, **card):
    """A task with two images of a patient in a 4D file each, and the shadows that macOS left."""
    rng = np.random.default_rng(seed)
    for case in range(n):
        image, truth = scan(rng, (1, 2), 2)
        save(folder / f"imagesTr/prostate_{case:02}.nii.gz", image)
        save(folder / f"labelsTr/prostate_{case:02}.nii.gz", truth)
        (folder / f"imagesTr/._prostate_{case:02}.nii.gz").write_bytes(b"Mac OS X")
    told = {
        "name": "PROSTATE",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": n,
        "training": [{"image": "./imagesTr/prostate_00.nii.gz", "label": "./labelsTr/prostate_00.nii.gz"}],
    }
    (folder / "dataset.json").write_text(json.dumps(told | card))
    return folder


def test_one_command_makes_a_makefile_of_a_task_of_the_decathlon_and_a_data_set_of_nnunet(place):
    decathlon_task(place / "Task05_Prostate")
    labels = {"background": 0, "TZ": 1, "PZ": 2}
    nnunet_set(place / "Dataset102_New", labels=labels, channels=("T2",), n=2)
    run("--decathlon", "Task05_Prostate", "--contrast", "ADC", "--target_nnunet", "Dataset102_New")
    source, target = (read_spec(words) for words in words_of("prostate_new"))
    assert (source.channel, target.channel) == (1, None)
    assert (source.label_map, target.label_map) == (None, "0:0,1:2,2:1")
    assert source.class_names == target.class_names == ("background", "PZ", "TZ")
    card = slice_set(source)
    assert members(card) == ["prostate_00", "prostate_01", "prostate_02"]
    image = np.asanyarray(nib.load("Task05_Prostate/imagesTr/prostate_00.nii.gz").dataobj)[..., 1]
    cut = np.asanyarray(nib.load(next(Path("data/prostate_new_source").glob("*/IMG/prostate_00_2.nii"))).dataobj)
    assert np.corrcoef(image[..., 2].ravel(), cut.ravel())[0, 1] > 0.98  # a percentile is cut off


@pytest.mark.parametrize(
    ("card", "asked", "words"),
    [
        ({}, None, r"several images of a patient, T2, ADC: name one, as in --contrast 'T2'"),
        ({}, "T1", "--contrast T1 is none of them"),
        ({"labels": {"1": "PZ"}}, "T2", "must name the background, 0"),
        ({"labels": {"background": 0, "PZ": 1}}, "T2", "the other way round, as nnU-Net v2 does: --nnunet"),
        ({"labels": {"0": "a", "00": "b"}}, "T2", 'has one number twice, or a huge one, in "labels"'),
        ({"labels": "PZ"}, "T2", "must list its .labels. by their numbers"),
        ({"modality": {"1": "T2"}}, "T2", "from 0 without a gap"),
        ({"modality": {"0": 3}}, "T2", "the other way round|a name is a word"),
    ],
)
def test_a_broken_task_is_refused(tmp_path, card, asked, words):
    folder = decathlon_task(tmp_path / "Task05_Prostate", n=1, **card)
    with pytest.raises(UserError, match=words) as error:
        LAYOUTS["decathlon"](folder, Asked(contrast=asked))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- BIDS


def bids_set(root, subjects=("01", "02", "03"), sessions=("",), pipeline="manual", values=(1, 2), seed=0):
    """Images of two contrasts, masks, and the table that names their labels, as the examples of BIDS have them."""
    rng = np.random.default_rng(seed)
    for subject in subjects:
        for session in sessions:
            stem = f"sub-{subject}{session and f'_ses-{session}'}"
            where = f"sub-{subject}/{session and f'ses-{session}/'}anat"
            image, truth = scan(rng, values)
            save(root / f"{where}/{stem}_T2w.nii.gz", image)
            save(root / f"{where}/{stem}_acq-mprage_T1w.nii.gz", image)
            (root / f"{where}/{stem}_T2w.json").write_text("{}")
            save(root / f"derivatives/{pipeline}/{where}/{stem}_space-orig_dseg.nii.gz", truth)
    about = {"Name": "example", "BIDSVersion": "1.9.0"}
    (root / "dataset_description.json").write_text(json.dumps(about | {"DatasetType": "raw"}))
    derived = about | {"DatasetType": "derivative", "GeneratedBy": [{"Name": pipeline}]}
    (root / f"derivatives/{pipeline}/dataset_description.json").write_text(json.dumps(derived))
    table = "index\tname\tcolor\n1\tgrey matter\t#ff53bb\n2\twhite matter\t#2f8bff\n77\tcerebellum\t#00ff00\n"
    (root / f"derivatives/{pipeline}/dseg.tsv").write_text(table)
    return root


def test_one_command_makes_a_makefile_of_two_bids_data_sets(place):
    bids_set(place / "ds01", sessions=("1", "2"))
    bids_set(place / "ds02", seed=1)
    flags = ["--bids", "ds01", "--target_bids", "ds02/derivatives/manual", "--contrast", "T2w", "--name", "cord"]
    run(*flags)
    source, target = (read_spec(words) for words in words_of("cord"))
    assert source.images == {"IMG": "ds01/sub-*/**/anat/*_T2w.nii.gz"}
    assert source.group == target.group == "(sub-[A-Za-z0-9]+)"
    assert source.class_names == ("background", "grey matter", "white matter")  # and no cerebellum, which is nowhere
    cards = [slice_set(spec) for spec in (source, target)]
    names = [members(card) for card in cards]
    assert names[0] == [f"sub-0{subject}_ses-{session}" for subject in (1, 2, 3) for session in (1, 2)]
    assert names[1] == ["sub-01", "sub-02", "sub-03"]
    people = [{name.partition("_")[0] for name in cards[0]["split"][split]} for split in ("train", "val")]
    assert not people[0] & people[1]


def test_a_bids_data_set_that_leaves_something_open_says_what_to_name(tmp_path):
    root = bids_set(tmp_path / "ds")
    with pytest.raises(UserError, match=r"images of several contrasts, T1w, T2w: name one"):
        LAYOUTS["bids"](root, Asked())
    bids_set(tmp_path / "ds", pipeline="other")
    with pytest.raises(UserError, match=r"several pipelines, manual, other: name the folder of one, as .*manual"):
        LAYOUTS["bids"](root, Asked(contrast="T2w"))
    files = LAYOUTS["bids"](root / "derivatives/other", Asked(contrast="T2w"))
    assert files.label == f"{root}/derivatives/other/sub-*/**/*_dseg.nii.gz"
    broken = {"index\tname\nx\ta\n": "the index 'x'", "name\na\n": "the index ''", "index\n1\n": "a name is a word"}
    for table, words in broken.items():
        (root / "derivatives/other/dseg.tsv").write_text(table)
        with pytest.raises(UserError, match=words):
            LAYOUTS["bids"](root / "derivatives/other", Asked(contrast="T2w"))
    (root / "dataset_description.json").unlink()
    with pytest.raises(UserError, match="dataset_description.json cannot be read"):
        LAYOUTS["bids"](root, Asked())


MNI = "space-MNI152NLin2009cAsym_res-2_"


def fmriprep(root, seed=0):
    """A miniature of what fMRIPrep leaves of each scan, as the examples of BIDS have it (ds000001-fmriprep)."""
    rng = np.random.default_rng(seed)
    for subject in ("sub-10", "sub-110"):
        image, truth = scan(rng, (1, 2))
        for space in ("", MNI):
            save(root / f"{subject}/anat/{subject}_{space}desc-preproc_T1w.nii.gz", image)
            save(root / f"{subject}/anat/{subject}_{space}dseg.nii.gz", truth)
        for desc in ("aparcaseg", "aseg"):
            save(root / f"{subject}/anat/{subject}_desc-{desc}_dseg.nii.gz", truth)
        save(root / f"{subject}/anat/{subject}_desc-brain_mask.nii.gz", truth)
        save(root / f"{subject}/func/{subject}_task-rest_desc-aseg_dseg.nii.gz", truth)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "fMRIPrep", "DatasetType": "derivative"}))
    for desc, name in (("aparcaseg", "gyrus"), ("aseg", "thalamus")):
        (root / f"desc-{desc}_dseg.tsv").write_text(f"index\tname\n1\t{name}\n2\tother\n")
    return root


def test_of_what_a_pipeline_leaves_one_image_and_one_mask_a_scan_are_taken(place):
    for seed, site in enumerate(("old", "new")):
        fmriprep(place / site, seed)
    with pytest.raises(UserError, match=r"several masks of a scan, desc-aparcaseg_dseg, desc-aseg_dseg, dseg: name"):
        LAYOUTS["bids"](Path("old"), Asked())
    run("--bids", "old", "--target_bids", "new", "--masks", "desc-aseg_dseg")
    source, _ = (read_spec(words) for words in words_of("old_new"))
    assert source.class_names == ("background", "thalamus", "other")
    assert members(slice_set(source)) == ["sub-10", "sub-110"]


@pytest.mark.parametrize(
    ("asked", "image", "mask"),
    [
        ({"masks": "dseg"}, "desc-preproc_T1w", "dseg"),
        ({"contrast": "T1w", "masks": "desc-aseg_dseg"}, "desc-preproc_T1w", "desc-aseg_dseg"),
        (
            {
                "contrast": "space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w",
                "masks": "space-MNI152NLin2009cAsym_res-2_dseg",
            },
            "space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w",
            "space-MNI152NLin2009cAsym_res-2_dseg",
        ),
    ],
)
def test_the_end_of_a_name_chooses_among_a_scans_files(tmp_path, asked, image, mask):
    files = LAYOUTS["bids"](fmriprep(tmp_path / "set"), Asked(**asked))
    for pattern, called in ((files.images[0], image), (files.label, mask)):
        assert [path.name for path in find_files(pattern)] == [f"{s}_{called}.nii.gz" for s in ("sub-10", "sub-110")]
    assert files.class_names == ({0: "background", 1: "thalamus", 2: "other"} if "aseg" in mask else {})


def bids_files(root, *names):
    """A data set of these images and masks, all alike."""
    image, truth = scan(np.random.default_rng(0))
    for name in names:
        save(root / name, truth if "dseg" in name else image)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "example"}))
    return root


def found(root, pattern):
    return [path.relative_to(root).as_posix() for path in find_files(pattern)]


def test_packed_and_unpacked_files_are_one_data_set(tmp_path):
    names = ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T1w.nii", "sub-2/anat/sub-2_T1w.nii"]
    masks = ["derivatives/m/sub-1/anat/sub-1_dseg.nii", "derivatives/m/sub-2/anat/sub-2_dseg.nii.gz"]
    root = bids_files(tmp_path / "ds", *names, *masks)
    files = LAYOUTS["bids"](root, Asked())
    assert found(root, files.images[0]) == [names[0], names[2]]
    assert found(root, files.label) == masks


def test_scans_without_a_mask_or_an_image_are_left_out_and_told(tmp_path):
    names = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in (1, 2, 3)]
    masks = [f"derivatives/m/sub-{n}/anat/sub-{n}_dseg.nii.gz" for n in (1, 2, 4)]
    root = bids_files(tmp_path / "ds", *names, *masks)
    files = LAYOUTS["bids"](root, Asked())
    assert (found(root, files.images[0]), found(root, files.label)) == (names[:2], masks[:2])
    assert any("LEFT OUT: 1 of 3 scans, which have no mask: sub-3" in note for note in files.notes)
    assert any("LEFT OUT: 1 of 3 scans, which have no image: sub-4" in note for note in files.notes)
    blind = LAYOUTS["bids"](root, Asked(labels=False))
    assert (found(root, blind.images[0]), blind.label) == (names, None)
    for name in names[:2]:
        (root / name).unlink()
    with pytest.raises(UserError, match=r"No scan has an image and a mask: there are .*sub-3_T1w.* and .*sub-1_dseg"):
        LAYOUTS["bids"](root, Asked())


def test_scans_of_which_nothing_is_called_as_wanted_are_told(tmp_path):
    names = [f"sub-{n}/anat/sub-{n}_{end}.nii.gz" for n, end in ((1, "run-1_T1w"), (1, "run-2_T1w"), (2, "T1w"))]
    root = bids_files(tmp_path / "ds", *names)
    files = LAYOUTS["bids"](root, Asked(contrast="run-1_T1w"))
    assert found(root, files.images[0]) == names[:1]
    assert any("LEFT OUT: of sub-2 nothing is called run-1_T1w" in note for note in files.notes)
    (root / names[1]).unlink()
    files = LAYOUTS["bids"](root, Asked(contrast="desc-preproc_T1w"))
    assert any("nothing is called desc-preproc_T1w (--contrast): T1w, run-1_T1w is what is" in n for n in files.notes)
    assert any("called T1w, run-1_T1w are taken for the same" in note for note in LAYOUTS["bids"](root, Asked()).notes)


def test_images_of_a_pipeline_are_taken_where_it_or_they_are_named(tmp_path):
    pipeline = fmriprep(tmp_path / "ds/derivatives/fmriprep")
    raw = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in (10, 110)]
    root = bids_files(tmp_path / "ds", *raw)
    (pipeline / "dataset_description.json").unlink()  # which many pipelines do not write
    asked = {"masks": "dseg"}
    assert found(root, LAYOUTS["bids"](root, Asked(**asked)).images[0]) == raw
    for folder, contrast in ((root, "desc-preproc_T1w"), (pipeline, None)):
        files = LAYOUTS["bids"](folder, Asked(contrast=contrast, **asked))
        names = [f"sub-{n}/anat/sub-{n}_desc-preproc_T1w.nii.gz" for n in (10, 110)]
        assert found(pipeline, files.images[0]) == names
    mni = LAYOUTS["bids"](root, Asked(contrast=f"{MNI}desc-preproc_T1w"))
    assert all(MNI in name for name in found(pipeline, mni.label))  # as the images are


def test_files_that_nobody_fetched_are_told(tmp_path):
    names = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in (1, 2)]
    root = bids_files(tmp_path / "ds", *names)
    (root / names[1]).unlink()
    (root / names[1]).symlink_to("../../.git/annex/objects/nothing")
    files = LAYOUTS["bids"](root, Asked())
    assert found(root, files.images[0]) == names[:1]
    assert any("LEFT OUT: sub-2_T1w.nii.gz, links to nothing" in note for note in files.notes)
    (root / names[0]).unlink()
    with pytest.raises(UserError, match=r"sub-2_T1w.nii.gz is a link to nothing: .*datalad get"):
        LAYOUTS["bids"](root, Asked())


def test_two_labels_of_one_name_stay_two(place):
    """They were both one class at the target, and the other class was nowhere."""
    for seed, site in enumerate(("old", "new")):
        bids_set(place / site, seed=seed)
        (place / site / "derivatives/manual/dseg.tsv").write_text("index\tname\n1\tlesion\n 2\tlesion\n")
    flags = ["--bids", "old", "--target_bids", "new", "--contrast", "T2w"]
    run(*flags)
    assert not read_spec(words_of("old_new")[1]).label_map
    (place / "new/derivatives/manual/dseg.tsv").write_text("index\tname\n3\tlesion\n2\tcord\n1\tcord\n")
    with pytest.raises(UserError, match="The source calls 2 labels 'lesion', and the target has the label 3 of that"):
        run(*flags, "--name", "other")


def test_an_atlas_of_more_labels_than_most_images_have_values_is_read(place):
    for site in ("old", "new"):
        bids_set(place / site)
        path = next((place / site).glob("derivatives/manual/sub-01/anat/*"))
        truth = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 100
        save(path, truth)
    flags = ["--bids", "old", "--target_bids", "new", "--contrast", "T2w", "--label_map", "17:1,53:1"]
    table = "index\tname\n" + "".join(f"{n}\tregion {n}\n" for n in range(1, 100))
    for site in ("old", "new"):
        with pytest.raises(UserError, match=r"holds more than 64 different values, as an image does: .* \(100\)"):
            run(*flags)
        (place / site / "derivatives/manual/dseg.tsv").write_text(table)
    run(*flags)
    assert slice_set(read_spec(words_of("old_new")[0]))["n_class"] == 2


# -------------------------------------------------------------------------------------------------------- Slicer


def slicer_folder(folder, seed=0, n=3, names=("left", "right"), first_label=1):
    """Volumes, and segmentations that hold only the box round the segments, as Slicer saves them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for case in range(n):
        image, truth = scan(rng)
        truth = np.where(truth, truth + first_label - 1, 0).astype(np.uint8)
        space = {
            "space": "left-posterior-superior",
            "space directions": np.diag([1.0, 1, 3]),
            "space origin": np.zeros(3),
        }
        nrrd.write(str(folder / f"case{case}.nrrd"), image, space)
        box = truth[2:12, 3:9, 1:]
        header = space | {"space origin": np.array([2.0, 3, 3])}
        for number, name in enumerate(names):
            header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": str(number + first_label)}
        nrrd.write(str(folder / f"case{case}.seg.nrrd"), box, header)
    return folder


def test_one_command_makes_a_makefile_of_two_folders_of_slicers(place):
    slicer_folder(place / "old")
    slicer_folder(place / "new", seed=1, names=("right", "left"))
    run("--slicer", "old", "--target_slicer", "new")
    source, target = (read_spec(words) for words in words_of("old_new"))
    assert source.images == {"IMG": "old/**/*[!g].nrrd"}
    assert source.class_names == ("background", "left", "right")
    assert (source.place_labels, target.label_map) == (True, "0:0,1:2,2:1")
    slice_set(source)
    truth = scan(np.random.default_rng(0))[1]
    found = [next(Path("data/old_new_source").glob(f"*/GT/case0_{n}.nii")) for n in range(4)]
    np.testing.assert_array_equal(np.stack([np.asanyarray(nib.load(path).dataobj) for path in found], -1), truth)


def test_segments_that_are_numbered_differently_are_refused(tmp_path):
    folder = slicer_folder(tmp_path / "old", n=2)
    slicer_folder(tmp_path / "more", n=1, names=("right", "left"))
    (tmp_path / "more/case0.seg.nrrd").rename(folder / "case1.seg.nrrd")
    with pytest.raises(UserError, match="has the label 1 for 'right', and .*case0.seg.nrrd for 'left'"):
        LAYOUTS["slicer"](folder, Asked())
    (folder / "case1.nrrd").unlink()
    with pytest.raises(UserError, match="case1.seg.nrrd needs its volume next to it, .* is case0.nrrd, case0.seg"):
        LAYOUTS["slicer"](folder, Asked())
    (folder / "case0.seg.nrrd").write_bytes(b"NRRD0004\nbroken")
    (folder / "case1.seg.nrrd").unlink()
    with pytest.raises(UserError, match="case0.seg.nrrd cannot be read"):
        LAYOUTS["slicer"](folder, Asked())


def test_scenes_of_slicer_are_a_folder_a_patient(place):
    """Slicer calls a segmentation `Segmentation`, whatever the volume is called, and patients are folders then."""
    for site in ("old", "new"):
        slicer_folder(place / site, seed=site == "new", n=2)
        for case in range(2):
            patient = place / site / f"P{case}"
            patient.mkdir()
            (place / site / f"case{case}.nrrd").rename(patient / "CTChest.nrrd")
            (place / site / f"case{case}.seg.nrrd").rename(patient / "Segmentation.seg.nrrd")
    run("--slicer", "old", "--target_slicer", "new")
    source, _ = (read_spec(words) for words in words_of("old_new"))
    assert members(slice_set(source)) == ["P0", "P1"]
    (place / "old/P1/more.nrrd").write_bytes((place / "old/P1/CTChest.nrrd").read_bytes())
    with pytest.raises(UserError, match="one volume and one segmentation, .* There is CTChest.nrrd, more.nrrd"):
        LAYOUTS["slicer"](place / "old", Asked())


def scene(folder, *names):
    """A scene of Slicer's in a folder: volumes and segmentations of these names."""
    folder.mkdir(parents=True)
    space = {"space": "left-posterior-superior", "space directions": np.diag([1.0, 1, 3]), "space origin": np.zeros(3)}
    image, truth = scan(np.random.default_rng(0))
    table = {"Segment0_Name": "a", "Segment0_LabelValue": "1", "Segment1_Name": "b", "Segment1_LabelValue": "2"}
    for name in names:
        is_mask = ".seg." in name
        nrrd.write(str(folder / name), truth if is_mask else image, space | (table if is_mask else {}))


@pytest.mark.parametrize("names", [("CT.nrrd", "CT.seg.nrrd"), ("scene/CT.nrrd", "scene/Segmentation.seg.nrrd")])
def test_patients_are_the_folders_whose_names_differ(place, names):
    for patient in ("P0", "P1", "P2"):
        scene((place / "old" / patient / names[0]).parent, *(Path(name).name for name in names))
    run("--slicer", "old", "--target_slicer", "old")
    assert members(slice_set(read_spec(words_of("old")[0]))) == ["P0", "P1", "P2"]


def test_a_scene_of_several_volumes_or_segmentations_says_what_to_name(tmp_path):
    folder = tmp_path / "old"
    for patient in ("P0", "P1"):
        scene(folder / patient, "T1.nrrd", "T2.nrrd", "Segmentation.seg.nrrd", "second.seg.nrrd")
    with pytest.raises(UserError, match=r"of several segmentations --masks '\w+' takes one"):
        LAYOUTS["slicer"](folder, Asked())
    with pytest.raises(UserError, match=r"of several volumes --contrast 'T1' takes one"):
        LAYOUTS["slicer"](folder, Asked(masks="second"))
    with pytest.raises(UserError, match=r"No segmentation is called third.seg.nrrd \(--masks third\)"):
        LAYOUTS["slicer"](folder, Asked(masks="third"))
    files = LAYOUTS["slicer"](folder, Asked(masks="second", contrast="T2"))
    assert found(folder, files.images[0]) == ["P0/T2.nrrd", "P1/T2.nrrd"]
    assert found(folder, files.label) == ["P0/second.seg.nrrd", "P1/second.seg.nrrd"]
    scene(folder / "P2", "T2.nrrd")
    told = LAYOUTS["slicer"](folder, Asked(masks="second", contrast="T2")).notes
    assert any("LEFT OUT: 1 volume without a segmentation" in note and "P2/T2.nrrd" in note for note in told)


def test_a_folder_of_both_kinds_is_told_what_is_wrong(tmp_path):
    folder = tmp_path / "old"
    scene(folder, "case0.nrrd", "case0.seg.nrrd", "case1.nrrd")
    told = LAYOUTS["slicer"](folder, Asked()).notes
    assert any("LEFT OUT: 1 volume without a segmentation" in note for note in told)
    scene(folder / "P1", "CT.nrrd", "Segmentation.seg.nrrd")
    with pytest.raises(UserError, match=r"P1/Segmentation.seg.nrrd needs .*one folder has names or scenes, not both"):
        LAYOUTS["slicer"](folder, Asked())
    (folder / "P1").rename(folder / "P 1")
    scene(folder / "P 2", "CT.nrrd", "Segmentation.seg.nrrd")
    (folder / "case0.seg.nrrd").unlink()
    with pytest.raises(UserError, match=r"no names tell one patient from another.*names are letters, digits"):
        LAYOUTS["slicer"](folder, Asked())


def test_the_folder_of_one_scene_may_be_the_one_one_works_in(tmp_path, monkeypatch):
    scene(tmp_path / "P7", "CT.nrrd", "Segmentation.seg.nrrd")
    monkeypatch.chdir(tmp_path / "P7")
    files = LAYOUTS["slicer"](Path(), Asked())
    assert read_id(find_files(files.images[0])[0], re.compile(files.patient)) == "P7"


def test_segments_without_numbers_are_counted(tmp_path):
    folder = slicer_folder(tmp_path / "old", names=())
    assert LAYOUTS["slicer"](folder, Asked()).class_names == {}


# ------------------------------------------------------------------------------------------- an exported DICOM study


def dicom_study(folder, seed=0, patients=("PAT01", "PAT02", "PAT03")):
    """A folder a patient with a folder a series, as archives export them, and masks that were drawn elsewhere."""
    rng = np.random.default_rng(seed)
    for number, patient in enumerate(patients):
        image, truth = scan(rng, (1,))
        series = folder / patient / "STUDY1" / "t2_tse"
        write_series(series, image, series=f"1.2.3.{seed}.{number}")
        save(folder / patient / "prostate.nii.gz", truth, read_grid(series).affine)
    return folder


def test_one_command_makes_a_makefile_of_two_exported_dicom_studies(place):
    for seed, site in enumerate(("old", "new")):
        dicom_study(place / site, seed)
    words = ["--name", "mine"]
    for site, folder in (("source", "old"), ("target", "new")):
        words += [f"--{site}", f"{folder}/*/*/t2_tse/", f"--{site}_label", f"{folder}/*/prostate.nii.gz"]
    text = run(*words)
    assert "found by itself: old/PAT01/STUDY1/t2_tse is of PAT01" in text
    card = slice_set(read_spec(words_of("mine")[0]))
    assert members(card) == ["PAT01", "PAT02", "PAT03"]
    assert card["n_class"] == 2
