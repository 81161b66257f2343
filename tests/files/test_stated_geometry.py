"""What a header states is what is read: units of length, volumes of two files, two places of one image."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from datasets.set_tables import read_rows
from datasets.volume_files import read_volume
from files.faults import VolumeFault
from files.formats import files_of
from files.reading import read_grid, read_stack
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing.tables import describe
from processes.errors import UserError

SHAPE = (6, 5, 4)
MM = np.diag([-0.5, -0.75, 3.0, 1]) + np.array([[0, 0, 0, 10.0], [0, 0, 0, -20], [0, 0, 0, 30], [0] * 4])
UNITS = {"mm": 1, "um": 1e-3, "m": 1e3}  # mm
NIFTI = {"mm": "mm", "um": "micron", "m": "meter"}


def disc(seed=0):
    """An image and its label (X, Y, Z)."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 1:4, 1:3] = 1
    return (100 * label + np.random.default_rng(seed).integers(0, 50, SHAPE)).astype(np.int16), label


def in_unit(affine, unit):
    """The matrix as a header in this unit holds it."""
    return np.diag([1 / UNITS[unit]] * 3 + [1]) @ affine


def write(path, voxels, affine, unit="mm"):
    if path.suffix in (".nii", ".gz", ".hdr"):
        kind = nib.Nifti1Pair if path.suffix == ".hdr" else nib.Nifti1Image
        image = kind(voxels, in_unit(affine, unit))
        image.header.set_xyzt_units(NIFTI[unit])
        nib.save(image, path)
        return path
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1, -1, 1, 1]) @ in_unit(affine, unit)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    head, line = path.read_bytes(), f'space units: "{unit}" "{unit}" "{unit}"\nkinds:'
    if path.suffix in (".nrrd", ".nhdr"):
        path.write_bytes(head.replace(b"kinds:", line.encode(), 1))
    else:
        path.write_bytes(head.replace(b"DimSize", f"DistanceUnits = {unit}\nDimSize".encode(), 1))
    return path


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "hdr", "nrrd", "nhdr", "mhd", "mha"])
def test_every_unit_becomes_mm(tmp_path, ending, unit):
    path = write(tmp_path / f"a.{ending}", disc()[0], MM, unit)
    np.testing.assert_allclose(read_grid(path).affine, MM, rtol=1e-6)
    np.testing.assert_allclose(read_volume(path)[1], MM, rtol=1e-6)


def test_a_header_without_a_unit_means_mm(tmp_path):
    nib.save(nib.Nifti1Image(disc()[0], MM), tmp_path / "a.nii")
    assert int(nib.load(tmp_path / "a.nii").header["xyzt_units"]) == 0
    np.testing.assert_allclose(read_grid(tmp_path / "a.nii").affine, MM)


def test_further_axes_of_one_voxel_are_none(tmp_path):
    voxels = disc()[0]
    for axes in range(1, 4):
        nib.save(nib.Nifti1Image(voxels.reshape(*SHAPE, *[1] * axes), MM), tmp_path / "a.nii")
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[0], voxels[None])
        assert read_grid(tmp_path / "a.nii").shape == SHAPE


def test_numbers_at_each_voxel_are_images_in_a_row(tmp_path):
    """As NIfTI lays vectors out: (X, Y, Z, 1, C)."""
    voxels = np.stack([disc(seed)[0] for seed in range(3)], -1)
    nib.save(nib.Nifti1Image(voxels[:, :, :, None], MM), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[0], np.moveaxis(voxels, -1, 0))
    assert read_grid(tmp_path / "a.nii", channel=2).shape == SHAPE
    np.testing.assert_array_equal(read_stack(tmp_path / "a.nii", 0, channel=2), voxels[..., 2])
    with pytest.raises(VolumeFault, match=r"pick one, --channel N.*6 x 5 x 4 x 3"):
        read_grid(tmp_path / "a.nii")


def test_a_single_slice_without_a_thickness_is_told_what_it_lacks(tmp_path):
    content = bytearray(nib.Nifti1Image(disc()[0][:, :, :1], MM).to_bytes())
    content[76 + 12 : 76 + 16] = bytes(4)  # pixdim[3]
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(VolumeFault, match="spacing of 0 .*pixdim.*of a single slice, its thickness as the third"):
        read_grid(tmp_path / "a.nii")


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_unit_that_is_none_is_refused(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", disc()[0], MM)
    path.write_bytes(path.read_bytes().replace(b'"mm"', b'"ft"').replace(b"DistanceUnits = mm", b"DistanceUnits = ft"))
    with pytest.raises(VolumeFault, match=r"unit of length.*in mm.*'ft'"):
        read_grid(path)


@pytest.mark.parametrize("line", [b"Offset\x1c= ", b"Offset =\x1f"])
def test_a_header_with_a_control_character_is_refused(tmp_path, line):
    """ITK does not know such a key or number, and would lay the volume at 0."""
    path = write(tmp_path / "a.mha", disc()[0], MM)
    path.write_bytes(path.read_bytes().replace(b"Offset = ", line))
    with pytest.raises(VolumeFault, match="its header holds a control character, in 'Offset"):
        read_grid(path)


def slicing(folder, *more, ending="nii", dest="set"):
    flags = ["--dest", f"{folder}/{dest}", "--image", f"IMG={folder}/p?_img.{ending}", "--patient", r"(p\d)"]
    return read_spec([*flags, "--label", f"{folder}/p?_gt.{ending}", "--val", "1", "--jobs", "1", *more])


def test_the_manifest_is_in_mm_and_volumes_of_a_microscope_are_read(tmp_path):
    """Voxels of a twentieth of a micron: their matrix is small all over, and can be inverted."""
    tiny = np.diag([1e-4, 1e-4, 1e-4, 1]) @ MM
    for number in range(2):
        image, label = disc(number)
        write(tmp_path / f"p{number}_img.nii", image, tiny, "um")
        write(tmp_path / f"p{number}_gt.nii", label, tiny)
    slice_set(slicing(tmp_path))
    row = read_rows(tmp_path / "set")[0]
    assert [float(row[f"spacing_{axis}"]) for axis in ("w", "h", "slice")] == pytest.approx([5e-5, 7.5e-5, 3e-4])


def test_fine_volumes_are_not_within_the_usual_tolerance_of_each_other(tmp_path):
    """0.1 mm are 200 of these voxels: half of one may a label be aside."""
    tiny = np.diag([1e-3, 1e-3, 1e-3, 1]) @ MM
    for number in range(2):
        image, label = disc(number)
        write(tmp_path / f"p{number}_img.nii", image, tiny, "um")
        write(tmp_path / f"p{number}_gt.nii", label, tiny + np.array([[0, 0, 0, 1e-3 * number]] + [[0] * 4] * 3), "um")
    with pytest.raises(UserError, match=r"1 fault: does not lie on the grid.*p1_gt.nii \(0.001 mm apart, 0.00025"):
        slice_set(slicing(tmp_path))


def two_channels(folder, voxels=None, coded=True):
    """The faults of slicing two images a patient, the second of them written like that."""
    for number in range(2):
        write(folder / f"p{number}_t1.nii", disc()[0], MM)
        path = write(folder / f"p{number}_t2.nii", disc(1)[0] if voxels is None else voxels, MM)
        if not coded:
            content = bytearray(path.read_bytes())
            content[252:256] = bytes(4)  # qform_code and sform_code
            path.write_bytes(content)
    flags = ["--dest", f"{folder}/set", "--patient", r"(p\d)", "--val", "1", "--jobs", "1", "--format", "npy"]
    flags += ["--image", f"A={folder}/p?_t1.nii", "--image", f"A={folder}/p?_t2.nii"]
    with pytest.raises(UserError) as told:
        slice_set(read_spec(flags))
    return str(told.value)


def test_a_second_channel_that_lies_elsewhere_is_told_from_one_that_states_no_place(tmp_path):
    told = two_channels(tmp_path, coded=False)
    assert "states no place (its qform and sform have code 0)" in told
    assert "A[0] and A[1] do not lie on one grid (make sure" in told
    assert "p0_t2.nii" in told
    assert "resample" not in told
    told = two_channels(tmp_path, voxels=disc()[0][1:])
    assert "does not lie on the grid of its A[0] volume (resample one" in told
    assert "p0_t2.nii (shape (5, 5, 4), not (6, 5, 4))" in told


@pytest.mark.parametrize(("header", "voxels"), [("hdr", "IMG"), ("HDR", "img"), ("hdr", "Img")])
def test_pairs_of_mixed_capitals_are_read(tmp_path, header, voxels):
    image = np.arange(40**3, dtype=np.int32).reshape(40, 40, 40)
    nib.save(nib.Nifti1Pair(image, MM), tmp_path / "a.hdr")
    for name, ending in (("a.hdr", header), ("a.img", voxels)):
        (tmp_path / name).rename(tmp_path / f"a.{ending}")
    for name in (f"a.{header}", f"a.{voxels}"):
        np.testing.assert_array_equal(read_stack(tmp_path / name, 0), image)
    assert sorted(path.name for path in files_of(tmp_path / f"a.{voxels}")) == sorted([f"a.{header}", f"a.{voxels}"])


def place_twice(path, aside):
    """Gives the header of a file a qform that lies mm aside of its sform."""
    image = nib.load(path, mmap=False)
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
    image.set_sform(image.affine, 1)
    image.set_qform(nib.affines.from_matvec(np.eye(3), (0, aside, 0)) @ image.affine, 1)
    nib.save(image, path)


@pytest.mark.parametrize("which", ["gt", "img"])
def test_labels_are_not_placed_by_one_of_two_places(tmp_path, which):
    """By the sform the label lies two voxels aside; a qform somewhere else says that it may not."""
    aside = MM @ np.array([[1, 0, 0, 2], *np.eye(4)[1:]])
    for number in range(2):
        voxels, label = disc(number)
        write(tmp_path / f"p{number}_img.nii", voxels, MM)
        write(tmp_path / f"p{number}_gt.nii", label, aside)
        place_twice(tmp_path / f"p{number}_{which}.nii", aside=0)
    assert "Labels were placed" in describe(slice_set(slicing(tmp_path, "--place_labels", dest="one")))
    place_twice(tmp_path / f"p1_{which}.nii", aside=9)
    with pytest.raises(UserError, match=rf"states two places, sform and qform, .*p1_{which}.nii \(9 mm apart"):
        slice_set(slicing(tmp_path, "--place_labels"))


def test_labels_that_are_placed_are_told_on_the_screen(tmp_path):
    for number in range(2):
        voxels, label = disc(number)
        write(tmp_path / f"p{number}_img.nii", voxels, MM)
        write(tmp_path / f"p{number}_gt.nii", label[1:], MM @ np.array([[1, 0, 0, 1], *np.eye(4)[1:]]))
    told = describe(slice_set(slicing(tmp_path, "--place_labels")))
    assert "Labels were placed on the grids of their images: p0 (shape (5, 5, 4)" in told
