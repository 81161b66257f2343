"""Volumes in every format and orientation: read, sliced, put back voxel for voxel; and what cannot be read, refused."""

import bz2
import gzip
import itertools
import locale
import re
import tracemalloc
import zlib

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from datasets.set_tables import read_rows
from files.faults import VolumeFault
from files.grids import Grid, is_direction, place, turn
from files.reading import read_grid, read_placed, read_stack, read_voxels, sha256
from preprocess.packing import read_image
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing.frames import restore
from preprocess.slicing.spec import SliceSpec
from processes.errors import UserError

SHAPE = (5, 6, 7)
AXES = [("R", "L"), ("A", "P"), ("S", "I")]
ORIENTATIONS = ["".join(codes) for order in itertools.permutations(AXES) for codes in itertools.product(*order)]
PLANES = {"axial": (2, ("L", "P")), "coronal": (1, ("L", "S")), "sagittal": (0, ("P", "S"))}


def oblique(codes, spacing=(0.7, 1.1, 2.5)):
    """A matrix whose axes run in about these directions, turned by some degrees about each axis."""
    columns = [np.eye(3)["RAS".index(c)] if c in "RAS" else -np.eye(3)["LPI".index(c)] for c in codes]
    turned = np.eye(3)
    for axis, degrees in enumerate((4, -7, 5)):
        a, (i, j) = np.deg2rad(degrees), [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = np.cos(a), -np.sin(a), np.sin(a), np.cos(a)
        turned = step @ turned
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.array(columns).T * spacing
    affine[:3, 3] = -31.5, 12.25, 107
    return affine


def write(path, voxels, affine):
    """In the format that the name's ending says; a name without one is a folder for a DICOM series."""
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(voxels, affine), path)
        return
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    if path.suffix:
        sitk.WriteImage(image, str(path))
    else:
        write_series(path, image)


def write_series(folder, image, uid="1.2.826.0.1.3680043.2.1125.1", ending="dcm", shift=lambda k: 0):
    """The slices of an image, under names that do not sort in their order. (Writing sets the locale to C.)

    shift: mm by which slice k lies further along its columns
    """
    before = locale.setlocale(locale.LC_ALL)
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    turned = [f"{number:.8g}" for column in (0, 1) for number in image.GetDirection()[column::3]]
    for k in range(image.GetSize()[2]):
        piece = image[:, :, k]
        place_of = np.add(
            image.TransformIndexToPhysicalPoint((0, 0, k)), shift(k) * np.array(image.GetDirection()[1::3])
        )
        tags = {
            "0020|000e": uid,
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{mm:.8g}" for mm in place_of),
            "0020|0037": "\\".join(turned),
            "0018|0050": f"{image.GetSpacing()[2]:.8g}",
            "0008|0060": "MR",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(k * 3) % 7}_{k}.{ending}"))
        writer.Execute(piece)
    locale.setlocale(locale.LC_ALL, before)


def labels(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.int16)


ENDINGS = [".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr", ""]


@pytest.mark.parametrize("ending", ENDINGS)
def test_geometry_and_voxels_in_every_orientation(tmp_path, ending):
    assert len(ORIENTATIONS) == 48
    voxels = labels()
    for codes in ORIENTATIONS:
        affine, path = oblique(codes), tmp_path / f"{codes}{ending}"
        write(path, voxels, affine)
        grid, stack = read_grid(path), read_stack(path, 0, is_label=True)
        if not ending and np.linalg.det(affine[:3, :3]) * np.linalg.det(np.diag([-1, -1, 1])) < 0:
            # the normal of a series follows from its rows and columns: it is read from the other end
            stack, grid = stack[..., ::-1], Grid(grid.shape, grid.affine @ flip_last(grid.shape[2]))
        assert grid.shape == SHAPE, codes
        np.testing.assert_allclose(grid.affine, affine, atol=1e-4, err_msg=codes)
        np.testing.assert_array_equal(stack, voxels, err_msg=codes)
        assert read_grid(path, directions="LPS").directions() == "LPS"


def flip_last(count):
    matrix = np.diag([1.0, 1, -1, 1])
    matrix[2, 3] = count - 1
    return matrix


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("plane", PLANES)
def test_what_is_cut_goes_back_voxel_for_voxel(tmp_path, ending, plane):
    """Through the whole slicer: patients each stored in another orientation, all cut in one plane.

    As .nii in all 48 for each plane, else each orientation in one of the three planes: what an orientation does to a
    plane is no matter of the format.
    """
    first, truth = list(PLANES).index(plane), {}
    for number, codes in enumerate(ORIENTATIONS if ending == ".nii" else ORIENTATIONS[first::3]):
        image, label = tmp_path / f"p{number:02}_{codes}_img{ending}", tmp_path / f"p{number:02}_{codes}_gt{ending}"
        write(image, labels(number) * 7 + 3, oblique(codes))
        write(label, labels(number + 100), oblique(codes))
        truth[f"p{number:02}"] = label
    slash = "" if ending else "/"
    size = ["--size", "9", "9"]
    flags = ["--dest", tmp_path / "set", "--image", f"IMG={tmp_path}/*_img{ending}{slash}", "--val", "8", *size]
    flags += ["--label", f"{tmp_path}/*_gt{ending}{slash}", "--patient", r"(p\d+)", "--plane", plane, "--jobs", "1"]
    slice_set(read_spec(list(map(str, flags))))
    rows = {}
    for row in read_rows(tmp_path / "set"):
        rows.setdefault(row["patient"], []).append(row)
    assert set(rows) == set(truth)
    for patient, path in truth.items():
        slices = {int(row["index"]): read_png(tmp_path / "set", row, "GT") for row in rows[patient]}
        volume, affine = restore(slices, rows[patient])
        np.testing.assert_array_equal(volume, read_voxels(path))
        np.testing.assert_allclose(affine, read_grid(path).affine, atol=1e-9)


def read_png(root, row, folder):
    return np.asarray(Image.open(root / row["split"] / folder / f"{row['slice']}.png"))


def test_slices_of_one_plane_look_alike_however_they_are_stored(tmp_path):
    seen = {}
    upright = labels()
    plain = np.diag([-0.7, -1.1, 2.5, 1])  # LPS
    for codes in ("LPS", "SAR", "IRP"):
        turned = turn(upright, "LPS", codes)
        path = tmp_path / f"{codes}.nii.gz"
        write(path, np.ascontiguousarray(turned), Grid(SHAPE, plain).turned(codes).affine)
        seen[codes] = read_stack(path, 1, is_label=True, directions="LPS")
    for stack in seen.values():
        np.testing.assert_array_equal(stack, np.moveaxis(upright, 1, 0))


def test_directions():
    assert all(map(is_direction, ORIENTATIONS))
    assert not any(map(is_direction, ("LPX", "LLS", "LP", "", "LRS", "lps")))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--orient", "LPX"], "as in LPS"),
        (["--plane", "axial", "--axis", "1"], "give one of them"),
        (["--plane", "axial", "--orient", "stored"], "leave one of them out"),
        (["--place_labels"], "give --label"),
    ],
)
def test_contradictions(tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        read_spec(["--dest", f"{tmp_path}/set", "--image", "IMG=x", "--patient", "(x)", "--val", "1", *flags])


# -- labels on another grid -----------------------------------------------------------------------------------------


def test_a_label_with_fewer_slices_is_placed_by_its_geometry(tmp_path):
    affine, voxels = oblique("LPS"), labels()
    voxels[..., :2] = voxels[..., 6:] = 0
    write(tmp_path / "img.nii.gz", labels(1), affine)
    shifted = affine.copy()
    shifted[:3, 3] = nib.affines.apply_affine(affine, (0, 0, 2))
    write(tmp_path / "gt.nrrd", voxels[..., 2:6], shifted)
    stack, share = read_placed(tmp_path / "gt.nrrd", 2, read_grid(tmp_path / "img.nii.gz"))
    np.testing.assert_array_equal(stack, np.moveaxis(voxels, 2, 0))
    assert share == pytest.approx(1)


def test_a_finer_label_is_placed_and_one_that_lies_elsewhere_refused(tmp_path):
    grid = Grid(SHAPE, oblique("RAS"))
    fine = Grid((10, 12, 7), grid.affine @ np.diag([0.5, 0.5, 1, 1]))
    fine.affine[:3, 3] = nib.affines.apply_affine(grid.affine, (-0.25, -0.25, 0))
    coarse = labels()
    detailed = coarse.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(place(detailed, fine, grid), coarse)
    write(tmp_path / "gt.nii", detailed, fine.affine + np.array([[0, 0, 0, 40]] * 3 + [[0] * 4]))
    with pytest.raises(VolumeFault, match="would lose"):
        read_placed(tmp_path / "gt.nii", 0, grid)


def test_the_slicer_places_labels_and_tells(tmp_path):
    for number in range(3):
        write(tmp_path / f"p{number}_img.nii.gz", labels(number), np.diag([-1.0, -1, 3, 1]))
        voxels = np.zeros((12, 12, 5), np.int16)
        voxels[4:8, 4:8, 1:4] = 1
        where = np.diag([-0.5, -0.5, 3, 1]) + np.array([[0, 0, 0, 0.25], [0, 0, 0, 0.25], [0, 0, 0, 3], [0] * 4])
        write(tmp_path / f"p{number}_gt.nrrd", voxels, where)
    flags = ["--image", f"IMG={tmp_path}/*_img.nii.gz", "--label", f"{tmp_path}/*_gt.nrrd", "--patient", r"(p\d)"]
    flags += ["--val", "1", "--jobs", "1"]
    with pytest.raises(UserError, match="does not lie on the grid"):
        slice_set(read_spec(["--dest", f"{tmp_path}/refused", *flags]))
    assert not (tmp_path / "refused").exists()
    card = slice_set(read_spec(["--dest", f"{tmp_path}/set", *flags, "--place_labels"]))
    assert set(card["placed_labels"]) == {"p0", "p1", "p2"}
    assert "shape (12, 12, 5)" in card["placed_labels"]["p0"]
    assert card["counts"]["train"]["slices_with_class"][1] == 2 * 3
    for patient, split in ((p, s) for s, names in card["split"].items() for p in names):
        mask = read_png(tmp_path / "set", {"split": split, "slice": f"{patient}_2"}, "GT")
        assert np.argwhere(mask).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


# -- series ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path):
    image = sitk.GetImageFromArray(labels().T)
    image.SetSpacing((1, 1, 3))
    write_series(tmp_path / "series", image)
    return tmp_path / "series", image


def file_of(folder, k):
    (path,) = folder.glob(f"*_{k}.dcm")
    return path


def test_reading_a_series_leaves_the_locale_as_it_was(series):
    before = locale.setlocale(locale.LC_ALL)
    read_voxels(series[0])
    assert locale.setlocale(locale.LC_ALL) == before


def test_other_files_beside_a_series_are_left_alone(series):
    folder, _ = series
    before = read_voxels(folder)
    (folder / "LICENSE").write_text("text")
    np.testing.assert_array_equal(read_voxels(folder), before)


def test_what_is_wrong_with_a_series_is_told(series, tmp_path):
    folder, image = series
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "text.dcm").write_text("text")
    for broken, says in [
        (lambda: file_of(folder, 3).unlink(), "lacks slices"),
        (lambda: write_series(folder, image, "1.2.3.4", "second.dcm"), "several DICOM series"),
    ]:
        read_grid(folder)
        broken()
        with pytest.raises(VolumeFault, match=says):
            read_grid(folder)
        write_series(folder, image)
    with pytest.raises(VolumeFault, match="no DICOM series"):
        read_grid(tmp_path / "none")


def test_two_slices_in_one_place_are_refused(series):
    folder, image = series
    twice = image[:, :, 2:3]
    write_series(folder.parent / "other", twice)
    file_of(folder.parent / "other", 0).rename(folder / "again.dcm")
    with pytest.raises(VolumeFault, match="in one place"):
        read_grid(folder)


def test_a_tilted_gantry_shears_the_grid(series):
    folder, image = series
    straight = read_grid(folder).affine
    write_series(folder, image, shift=lambda k: 0.4 * k)
    grid, voxels = read_grid(folder), read_voxels(folder)
    np.testing.assert_allclose(grid.affine[:3, 2], straight[:3, 2] + 0.4 * straight[:3, 1], atol=1e-6)
    np.testing.assert_array_equal(voxels, labels())


def test_slices_out_of_line_are_refused(series):
    folder, image = series
    write_series(folder, image, shift=lambda k: 5 * (k == 3))
    with pytest.raises(VolumeFault, match=r"in line.*5 mm"):
        read_grid(folder)


def test_one_file_with_many_frames_is_a_volume(tmp_path):
    voxels, affine = labels().astype(np.uint16), oblique("LPS")
    write(tmp_path / "frames.mha", voxels, affine)
    (tmp_path / "series").mkdir()
    before = locale.setlocale(locale.LC_ALL)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "frames.mha")), str(tmp_path / "series" / "all.dcm"))
    locale.setlocale(locale.LC_ALL, before)
    np.testing.assert_array_equal(read_voxels(tmp_path / "series"), voxels)
    np.testing.assert_allclose(read_grid(tmp_path / "series").affine, affine, atol=1e-4)


# -- files ------------------------------------------------------------------------------------------------------------


AXES_TOLD = {
    "a picture": (SHAPE[:2], False, "is one picture and no volume .*third axis"),
    "a picture as a label": (SHAPE[:2], True, "is one picture and no volume .*third axis"),
    "a series": ((*SHAPE, 3), False, "several images .*--channel N"),
    "one-hot labels": ((*SHAPE, 2), True, r"several masks or layers.*one number a voxel.*5 x 6 x 7 x 2\)"),
    "no voxels": ((5, 0, 7), False, "has no voxels"),
}


@pytest.mark.parametrize("case", AXES_TOLD)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_what_is_not_3d_gets_the_advice_that_mends_it(tmp_path, ending, case):
    shape, is_label, says = AXES_TOLD[case]
    path, voxels = tmp_path / f"a{ending}", np.zeros(shape, np.int16)
    if ending.startswith(".nii"):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    elif ending == ".mha":
        if len(shape) > 3:
            pytest.skip("channels are another field there")
        count = len(shape)
        lines = {"NDims": count, "DimSize": " ".join(map(str, shape)), "ElementSpacing": "1 " * count}
        lines |= {"TransformMatrix": " ".join(f"{x:g}" for x in np.eye(count).ravel()), "Offset": "0 " * count}
        lines |= {"ElementType": "MET_SHORT", "ElementDataFile": "LOCAL"}
        path.write_bytes("".join(f"{key} = {value}\n" for key, value in lines.items()).encode() + voxels.tobytes())
    else:
        layers = len(shape) > 3
        header = {"space": "left-posterior-superior", "space origin": [0, 0, 0]}
        header["space directions"] = np.vstack([np.full((int(layers), 3), np.nan), np.eye(3)])[: voxels.ndim]
        nrrd.write(str(path), np.moveaxis(voxels, -1, 0) if layers else voxels, header)  # as Slicer has it
    with pytest.raises(VolumeFault, match=says):
        read_grid(path, is_label=is_label)


FAR = -(2**31)  # a power of two, which float32 holds, as what marks the outside of a scan
WIDE = {
    "whole numbers far from 0": (3 * 10**9 + np.arange(210), "whole numbers of which 32 bits tell only each second"),
    "beyond 32 bits": (np.linspace(0, 1e300, 210), "beyond what 32 bits hold"),
    "a far value that is held": (np.where(np.arange(210) < 5, FAR, np.arange(210)), None),
    "fractions": (np.linspace(0, 1e9, 210) + 0.25, None),
}


@pytest.mark.parametrize("kind", WIDE)
def test_an_image_too_wide_for_a_network_is_refused_and_no_other(tmp_path, kind):
    """In 32 bits a scan of 3000000000 to 3000000209 would have two grey levels left."""
    voxels, says = WIDE[kind]
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(voxels.reshape(SHAPE), np.eye(4), dtype=voxels.dtype), path)
    for read in (lambda: read_stack(path, 2), lambda: read_image(path)):
        if says:
            with pytest.raises(VolumeFault) as raised:
                read()
            assert raised.value.fault[0] == "has grey levels too wide for a network, which computes in 32 bits"
            assert says in raised.value.fault[1]
        else:
            read()
    assert read_stack(path, 0, is_label=True).dtype == voxels.dtype  # labels keep their type


def test_a_digest_covers_every_file_of_a_volume(tmp_path):
    write(tmp_path / "a.mhd", labels(), oblique("LPS"))
    before = sha256(tmp_path / "a.mhd")
    raw = tmp_path / "a.raw"
    content = bytearray(raw.read_bytes())
    content[-1] ^= 1
    raw.write_bytes(content)
    assert sha256(tmp_path / "a.mhd") != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace(b"a.raw", b"../a.raw"), "does not lie beside it"),
        (lambda text: text.replace(b"a.raw", b"b.raw"), "b.raw is not there"),
        (lambda text: text.replace(b"DimSize = 5 6 7", b"DimSize = 5000 6000 700"), "promises more voxels"),
        (lambda text: re.sub(rb"(Spacing = )\S+", rb"\g<1>0", text), "spacing|cannot be (read|inverted)"),
        (lambda text: re.sub(rb"(Spacing = )\S+", rb"\g<1>-2", text), "spacing"),
        (lambda text: text.replace(b"MET_SHORT", b"MET_SCHORT"), "cannot be read|no numbers"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, capfd, change, says):
    path = tmp_path / "a.mhd"
    write(path, labels(), oblique("LPS"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VolumeFault, match=says):
        read_grid(path)
    assert capfd.readouterr().err == ""


def test_a_bomb_does_not_go_off(tmp_path):
    """A small .nii.gz whose stream goes on for a gigabyte behind its voxels."""
    content = nib.Nifti1Image(labels(), np.eye(4)).to_bytes()
    packer = zlib.compressobj(9, wbits=31)
    packed, zeros = (packer.compress(each) + packer.flush(zlib.Z_FULL_FLUSH) for each in (content, bytes(2**24)))
    packed += 64 * zeros  # what follows a full flush knows nothing of what came before it
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed)
    with pytest.raises(VolumeFault, match="unpacks to more"):
        read_stack(path, 0)


def nrrd_of(path, encoding, content, more=""):
    """A .nrrd of 2 x 3 x 4 int16 in this encoding, whose voxels are these bytes."""
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
    )
    path.write_bytes(f"{header}encoding: {encoding}\n{more}\n".encode() + content)
    return path


NRRD_VOXELS = np.arange(24, dtype="<i2")


@pytest.mark.parametrize("more", ["", "byte skip: 5\n", "line skip: 2\n", "line skip: 1\nbyte skip: 4\n"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bz2", "ascii"])
def test_the_voxels_of_a_nrrd_are_found(tmp_path, encoding, more):
    """Lines are skipped before what is packed, bytes in what was packed."""
    lines = int(more[11]) if "line" in more else 0
    content = b"#" * (int(more[-2]) if "byte" in more else 0)
    content += " ".join(map(str, NRRD_VOXELS)).encode() if encoding == "ascii" else NRRD_VOXELS.tobytes()
    content = {"gzip": gzip.compress, "bz2": bz2.compress}.get(encoding, bytes)(content)
    path = nrrd_of(tmp_path / "a.nrrd", encoding, b"a line\n" * lines + content, more)
    np.testing.assert_array_equal(read_stack(path, 0), NRRD_VOXELS.reshape(2, 3, 4, order="F"))


@pytest.mark.parametrize(
    ("encoding", "more", "content", "words"),
    [
        ("gzip", "", gzip.compress(bytes(2**26)), "does not unpack to the 48 bytes"),
        ("bzip2", "", bz2.compress(bytes(2**26)), "does not unpack to the 48 bytes"),
        ("gzip", "byte skip: 3000000000\n", gzip.compress(bytes(2**26)), "does not unpack to the 1048624 bytes"),
        ("raw", "line skip: 1000000000000\n", bytes(48), "more than there are"),
        ("raw", "byte skip: -2\n", bytes(48), "-2 bytes"),
        ("raw", "", bytes(47), "expected 48 bytes"),
        ("rle", "", bytes(48), "encoding 'rle' is not known"),
    ],
)
def test_a_nrrd_that_asks_for_more_than_its_voxels_is_refused(tmp_path, encoding, more, content, words):
    path = nrrd_of(tmp_path / "a.nrrd", encoding, content, more)
    tracemalloc.start()
    with pytest.raises(VolumeFault, match="cannot be read") as error:
        read_stack(path, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in error.value.fault[1]
    assert peak < 2**24


def test_a_gzip_of_several_members_and_padding_is_read(tmp_path):
    content = nib.Nifti1Image(labels(), np.eye(4)).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:300]) + gzip.compress(content[300:]) + bytes(9))
    np.testing.assert_array_equal(read_stack(path, 0), labels())


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_truncated_gzip_is_refused(tmp_path, cut):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(labels(), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(VolumeFault, match="cannot be read"):
        read_stack(path, 0)


def test_a_spec_remembers_the_plane(tmp_path):
    flags = ["--dest", f"{tmp_path}/set", "--image", "IMG=x", "--patient", "(x)", "--val", "1", "--plane", "coronal"]
    spec = read_spec(flags)
    assert isinstance(spec, SliceSpec)
    assert (spec.orient, spec.axis) == ("LPS", 1)
    assert read_spec(flags[:-2]).orient == "LPS"
    assert [read_spec([*flags, "--orient", codes]).axis for codes in ("RAS", "SAL", "PIR")] == [1, 1, 0]
    assert [(s.orient, s.axis) for s in (read_spec([*flags[:-2], "--orient", "stored"]),)] == [(None, 2)]


@pytest.mark.parametrize("first", range(12, 60, 8))
def test_a_gzip_damaged_near_its_beginning_is_a_fault_of_the_file(tmp_path, first):
    """Where the header is looked for: zlib's own error, before any voxel is read."""
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 999, (24, 20, 6)).astype(np.int16), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[first : first + 10] = bytes(byte ^ 255 for byte in content[first : first + 10])
    path.write_bytes(content)
    with pytest.raises(VolumeFault, match=r"a\.nii\.gz"):
        read_stack(path, 0)
