"""A mask's header is its image's: every reader puts both in one place, as it understands that place."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from datasets.transforms import parse_folders
from datasets.volumes import open_volumes
from engine.run_folder import write_volumes
from files.nifti_headers import from_text, header_at, states_no_place, to_text, turned, unsheared, write_nifti
from files.reading import read_grid, read_header
from tests.files.test_reading import ORIENTATIONS, SHAPE, oblique, write, write_series

SHEAR = np.eye(4)
SHEAR[0, 1], SHEAR[1, 2] = 0.1, -0.05
MOVED = np.eye(4)
MOVED[:3, 3] = 5, -4, 2
STYLES = {  # name -> sform, its code, qform, its code; of the matrix that a scanner wrote
    "no codes": (np.eye(4), 0, np.eye(4), 0),
    "sform only": (np.eye(4), 2, np.eye(4), 0),
    "qform only": (np.eye(4), 0, np.eye(4), 1),
    "both": (np.eye(4), 1, np.eye(4), 1),
    "sheared": (SHEAR, 1, np.eye(4), 1),
    "two places": (MOVED, 2, np.eye(4), 1),
    "two places, qform in talairach space": (MOVED, 1, np.eye(4), 3),
}


def put(path, voxels, affine, style, unit="mm", kind=nib.Nifti1Image):
    """A NIfTI in one of the styles."""
    sform, s_code, qform, q_code = STYLES[style]
    affine = np.diag([*[{"mm": 1, "micron": 1e3, "unknown": 1}[unit]] * 3, 1]) @ affine
    image = kind(voxels, affine)
    image.set_qform(qform @ affine, q_code)
    image.set_sform(sform @ affine, s_code)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)


def itk_grid(path):
    """Size, and the (4, 4) matrix to mm, as ITK reads a file or the folder of a DICOM series."""
    if path.is_dir():
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        image = sitk.ReadImage(files)
    else:
        image = sitk.ReadImage(str(path))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return image.GetSize(), matrix


def assert_on_one_grid(mask, image):
    """As ITK reads them, which knows no NIfTI-2, and where nibabel reads both, as it does."""
    is_nifti = image.name.endswith((".nii", ".nii.gz"))
    if not (is_nifti and isinstance(nib.load(image), nib.Nifti2Image)):
        (size, there), (wanted, where) = itk_grid(mask), itk_grid(image)
        assert size == wanted
        np.testing.assert_allclose(there, where, atol=2e-4)
    if is_nifti:
        own, theirs = nib.load(mask), nib.load(image)
        assert own.shape == theirs.shape
        np.testing.assert_array_equal(own.affine, theirs.affine)
        for form in ("get_qform", "get_sform"):
            np.testing.assert_array_equal(getattr(own, form)(), getattr(theirs, form)())
        for name in ("qform_code", "sform_code", "xyzt_units"):
            assert own.header[name] == theirs.header[name]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("style", "unit"), [*itertools.product(STYLES, ("mm", "micron")), ("both", "unknown")])
def test_a_mask_lies_on_its_nifti_for_itk_and_nibabel_alike(tmp_path, style, unit, kind):
    for number, codes in enumerate(ORIENTATIONS[:: 5 if unit == "mm" else 16]):
        image, mask = tmp_path / f"{number}.nii", tmp_path / f"mask{number}.nii.gz"
        put(image, np.zeros(SHAPE, np.float32), oblique(codes), style, unit, kind)
        write_nifti(mask, np.ones(SHAPE, np.uint8), read_header(image))
        assert_on_one_grid(mask, image)
        assert isinstance(nib.load(mask), kind)
        assert nib.load(mask).get_data_dtype() == np.uint8


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ""])
def test_a_mask_lies_on_an_image_of_another_format(tmp_path, ending):
    for codes in ORIENTATIONS[::3]:
        image, mask = tmp_path / f"{codes}{ending}", tmp_path / f"mask_{codes}.nii.gz"
        write(image, np.zeros(SHAPE, np.int16), oblique(codes))
        write_nifti(mask, np.ones(SHAPE, np.uint8), read_header(image))
        assert_on_one_grid(mask, image)
        np.testing.assert_allclose(nib.load(mask).affine, read_grid(image).affine, atol=2e-5)


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage])
def test_a_mask_of_analyze_states_no_more_place_than_its_image(tmp_path, kind):
    """Each reader has its guess of where that lies; only SPM's .mat beside it, which nibabel writes, is a statement."""
    nib.save(kind(np.zeros((6, 5, 4), np.int16), np.diag([-1, 2, 3, 1])), tmp_path / "a.hdr")
    (tmp_path / "a.mat").unlink(missing_ok=True)
    header = read_header(tmp_path / "a.hdr")
    assert states_no_place(header)
    write_nifti(tmp_path / "mask.nii.gz", np.zeros((6, 5, 4), np.uint8), header)
    assert_on_one_grid(tmp_path / "mask.nii.gz", tmp_path / "a.hdr")
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(tmp_path / "a.hdr").affine)


def test_of_a_sheared_grid_the_qform_keeps_the_planes():
    affine = oblique("LPS")
    affine[:3, 2] += 0.4 * affine[:3, 1]
    header = header_at(affine)
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), unsheared(affine), atol=1e-5)
    np.testing.assert_allclose(header.get_qform()[:3, :2], affine[:3, :2], atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_a_header_is_turned_in_both_its_places(tmp_path, style):
    """Voxel by voxel: where either form puts a voxel, it puts it under its new number too."""
    put(tmp_path / "a.nii", np.zeros(SHAPE), oblique("SAR"), style)
    old = read_header(tmp_path / "a.nii")
    voxels = np.array([[0, 0, 1, 0], [0, -1, 0, SHAPE[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    new = turned(old, voxels)
    np.testing.assert_allclose(new.get_best_affine(), old.get_best_affine() @ voxels, atol=1e-4)
    if style != "no codes":
        np.testing.assert_allclose(new.get_sform(), old.get_sform() @ voxels, atol=1e-4)
        np.testing.assert_allclose(new.get_qform(), old.get_qform() @ voxels, atol=1e-4)
        assert [new[name] for name in ("qform_code", "sform_code")] == [
            old[name] for name in ("qform_code", "sform_code")
        ]
    again = from_text(to_text(new))
    assert again == new


@pytest.mark.parametrize("ending", [".img", ".nii"])
def test_a_pair_of_files_and_a_fourth_axis_leave_the_place_alone(tmp_path, ending):
    kind = nib.Nifti1Pair if ending == ".img" else nib.Nifti1Image
    put(tmp_path / f"a{ending}", np.zeros((*SHAPE, 1)), oblique("PIR"), "two places", kind=kind)
    mask = tmp_path / "mask.nii.gz"
    write_nifti(mask, np.ones(SHAPE, np.uint8), read_header(tmp_path / f"a{ending}"))
    own, theirs = nib.load(mask), nib.load(tmp_path / f"a{ending}")
    assert isinstance(own, nib.Nifti1Image)
    np.testing.assert_array_equal(own.get_qform(), theirs.get_qform())
    np.testing.assert_array_equal(own.get_sform(), theirs.get_sform())
    np.testing.assert_array_equal(own.dataobj, 1)


def test_a_tilted_gantry_has_the_planes_of_itk_and_the_steps_of_its_slices(tmp_path):
    image = sitk.GetImageFromArray(np.zeros(SHAPE[::-1], np.int16))
    image.SetSpacing((0.7, 1.1, 2.5))
    write_series(tmp_path / "series", image, shift=lambda k: 0.4 * k)
    write_nifti(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), read_header(tmp_path / "series"))
    assert_on_one_grid(tmp_path / "mask.nii.gz", tmp_path / "series")
    np.testing.assert_allclose(
        nib.load(tmp_path / "mask.nii.gz").affine, read_grid(tmp_path / "series").affine, atol=1e-5
    )


@pytest.mark.parametrize("style", STYLES)
def test_masks_of_a_volumetric_run_lie_on_the_set_s_images(tmp_path, style):
    put(make(tmp_path / "set/train/IMG") / "a.nii", np.random.default_rng(0).random(SHAPE), oblique("ASL"), style)
    folders = parse_folders("[('IMG', nii_transform, False)]", 0)
    for _ in range(2):  # read, and out of the cache
        volumes = open_volumes(tmp_path / "set", "train", folders, 2, "(.)", (4, 4, 4))
        write_volumes(tmp_path / "masks", volumes.names, [np.ones(SHAPE, np.uint8)], volumes.headers)
        assert_on_one_grid(tmp_path / "masks/a.nii.gz", tmp_path / "set/train/IMG/a.nii")


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
