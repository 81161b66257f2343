"""Labels that are whole but for rounding are those numbers, whoever reads them; what is refused shows a value."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from datasets.transforms import FolderSpec
from datasets.volumes import open_volumes
from files.labels import whole_labels
from preprocess.layouts.layout import SiteFiles
from preprocess.packing import VolumeSpec
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing.tables import describe
from preprocess.survey.sites import read_site
from preprocess.volume_set import describe as describe_volumes
from preprocess.volume_set import make_volume_set
from processes.errors import UserError
from utils import about_faulty, counted, whole

LABELS = np.random.default_rng(0).integers(0, 4, (6, 5, 4))
LPS = np.diag([-1.0, -1, 1, 1])  # as slices are cut, so that nothing is turned


def write(folder, patients=2, change=0.0):
    """Labels 0..3 as floats under an int16 header, which nibabel then scales; `change`: of one voxel."""
    for number in range(patients):
        image = nib.Nifti1Image((LABELS * 7).astype(np.int16), LPS)
        label = nib.Nifti1Image(LABELS.astype(np.float64), LPS)
        label.dataobj[0, 0, 0] += change
        label.set_data_dtype(np.int16)
        nib.save(image, folder / f"p{number}_img.nii.gz")
        nib.save(label, folder / f"p{number}_gt.nii.gz")


def slicing(folder):
    flags = ["--dest", f"{folder}/set", "--image", f"IMG={folder}/*_img.nii.gz", "--label", f"{folder}/*_gt.nii.gz"]
    return read_spec([*flags, "--patient", r"(p\d)", "--val", "1", "--jobs", "1", "--format", "npy"])


def packing(folder, **more):
    files = {"image": (f"{folder}/*_img.nii.gz",), "label": f"{folder}/*_gt.nii.gz", "patient": r"(p\d)"}
    return VolumeSpec(dest=folder / "set", **files, **more)


def test_the_files_hold_no_whole_numbers(tmp_path):
    write(tmp_path)
    stored = nib.load(tmp_path / "p0_gt.nii.gz").get_fdata()
    assert 0 < np.abs(stored - LABELS).max() < 1e-8


def test_the_slicer_reads_the_numbers_that_were_meant(tmp_path):
    write(tmp_path)
    slice_set(slicing(tmp_path))
    found = [np.load(path) for path in sorted((tmp_path / "set/train/GT").glob("*.npy"))]
    np.testing.assert_array_equal(np.stack(found, -1), LABELS)


def test_so_does_a_set_of_volumes_and_the_look_at_a_new_site(tmp_path):
    write(tmp_path)
    make_volume_set(packing(tmp_path))
    np.testing.assert_array_equal(np.load(tmp_path / "set/val/GT/p1.npy"), LABELS)
    site = read_site("source", SiteFiles((f"{tmp_path}/*_img.nii.gz",), f"{tmp_path}/*_gt.nii.gz", r"(p\d)"), 0.1)
    assert (site.faults, site.floats) == ([], 2)
    assert site.voxels == {value: 2 * int((LABELS == value).sum()) for value in range(4)}


@pytest.mark.parametrize("ending", ["nii.gz", "npy"])
def test_so_does_a_run_on_volumes_of_ones_own(tmp_path, ending):
    write(tmp_path, 1)
    for folder, kind in (("IMG", "img"), ("GT", "gt")):
        place = tmp_path / "set/val" / folder
        place.mkdir(parents=True)
        image = nib.load(tmp_path / f"p0_{kind}.nii.gz")
        if ending == "npy":
            np.save(place / "p0.npy", image.get_fdata())
        else:
            nib.save(image, place / "p0.nii.gz")
    folders = [FolderSpec("IMG", "nii_transform", False), FolderSpec("GT", "gt_transform", True)]
    opened = open_volumes(tmp_path / "set", "val", folders, 4, "(.*)", (4, 4, 4))
    (labels,) = opened.labels([0])
    np.testing.assert_array_equal(labels, LABELS)


def test_a_refusal_shows_the_value(tmp_path):
    write(tmp_path, change=0.0235)
    with pytest.raises(UserError, match=r"2 faults: holds no whole-number labels.*fractions, as [0-3]\.0235"):
        slice_set(slicing(tmp_path))
    with pytest.raises(UserError, match=r"holds no whole-number labels.*fractions, as [0-3]\.0235"):
        make_volume_set(packing(tmp_path))


@pytest.mark.parametrize("value", [1.002, 0.5, np.nan, np.inf, 1e30])
def test_what_is_no_label(value):
    with pytest.raises(ValueError, match="fractions, as|values from"):
        whole_labels(np.array([[[0, 1, value]]]))


def test_whole_numbers_and_what_is_near_them():
    np.testing.assert_array_equal(whole(np.array([0.9995, -2.0009, 7])), [1, -2, 7])
    for kept in (np.array([0.5, 1]), np.array([np.nan, 1]), np.array([1, 2], np.uint8)):
        assert whole(kept) is kept
    assert whole_labels(np.array([[[2.9995, 255.0]]])).tolist() == [[[3, 255]]]


@pytest.mark.parametrize("n_class", [None, 3])
def test_a_ground_truth_without_a_class_is_told(tmp_path, n_class):
    write(tmp_path)
    for number in range(2):
        nib.save(nib.Nifti1Image(np.zeros_like(LABELS, np.uint8), LPS), tmp_path / f"p{number}_gt.nii.gz")
    told = describe(slice_set(replace(slicing(tmp_path), n_class=n_class)))
    assert "The ground truth is 0 throughout" in told
    assert "()" not in told
    volumes = replace(packing(tmp_path), dest=tmp_path / "volumes")
    assert "The ground truth is 0 throughout" in describe_volumes(make_volume_set(volumes))


def test_a_set_with_a_class_or_without_labels_says_nothing_of_it(tmp_path):
    write(tmp_path)
    assert "throughout" not in describe(slice_set(slicing(tmp_path)))
    assert "throughout" not in describe(slice_set(replace(slicing(tmp_path), label=None, dest=tmp_path / "images")))


def test_what_is_wrong_with_many_files_is_said_once():
    advice = "holds the labels 255, outside 0..1. A 0/255 mask: write 1 for 255."
    faults = [f"/my set/GT/Case{n}_1.png {advice}" for n in range(3)] + [
        "/my set/GT/a.nii.gz is torn",
        "case7 is empty",
    ]
    told = about_faulty(faults)
    others = ", ".join(f"/my set/GT/Case{n}_1.png" for n in (1, 2))
    first = f"/my set/GT/Case0_1.png {advice.removesuffix('.')} (the same: {others})"
    assert told == f"5 faulty files: {first}; /my set/GT/a.nii.gz is torn; case7 is empty."
    assert about_faulty(faults[:1]).startswith("1 faulty file: /my set/GT/Case0_1.png holds")
    assert [counted(n, "patient") for n in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
