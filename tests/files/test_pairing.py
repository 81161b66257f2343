"""The files of a set: names in brackets and in capitals, volumes of two files, whose patient a file is."""

import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from files.faults import VolumeFault
from files.pairing import NO_VOLUME, find_files, pair, read_patients
from files.reading import read_grid, read_voxels, sha256
from files.volume_names import FILE_NAME
from prediction.volumes import digest, find_cases
from preprocess.slice_volumes import read_spec
from processes.errors import UserError

CASE = re.compile(r"(?i)(case\d+)")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names_of(pattern):
    return [path.name for path in find_files(str(pattern))]


def test_a_folder_with_brackets_in_its_name_is_that_folder(tmp_path):
    touch(tmp_path, "site [a]/sub[1]/case1.nii", "site [a]/sub[1]/case2.nii", "site a/case3.nii")
    assert names_of(tmp_path / "site [a]/sub[1]/case?.nii") == ["case1.nii", "case2.nii"]
    assert names_of(tmp_path / "site [a]/**/case[0-9].nii") == ["case1.nii", "case2.nii"]
    assert names_of(tmp_path / "site [[]a]/*/*.nii") == ["case1.nii", "case2.nii"]
    assert names_of(tmp_path / "*/sub[1]/*.nii") == ["case1.nii", "case2.nii"]  # behind a wildcard, too
    assert names_of(tmp_path / "none[a]/sub[1]/*.nii") == []


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path):
    touch(tmp_path, "scan[1].nii", "scan1.nii", "scan2.nii", "site/scan[1].nii", "site/scan1.nii")
    assert names_of(tmp_path / "scan[1].nii") == ["scan[1].nii"]
    assert names_of(tmp_path / "scan[12].nii") == ["scan1.nii", "scan2.nii"]
    assert names_of(tmp_path / "s*" / "scan[1].nii") == ["scan[1].nii"]


def test_brackets_that_match_nothing_are_explained(tmp_path):
    touch(tmp_path, "case[1]_t2.nii")
    _, faults = pair({"IMG": f"{tmp_path}/case[1]_*.nii"}, CASE)
    assert len(faults) == 1
    assert "letters to choose from" in faults[0][0]
    assert names_of(tmp_path / "case[[]1]_*.nii") == ["case[1]_t2.nii"]
    assert pair({"IMG": f"{tmp_path}/none*.nii"}, CASE)[1][0][0] == "no file matches"


@pytest.mark.parametrize("name", ["scan.Nii", "scan.Nii.Gz", "scan.nii.GZ", "scan.NII"])
def test_an_ending_in_mixed_letters_is_named_as_what_it_is(tmp_path, name):
    """It lies there, so "no such file" would be no reason; each part in one kind of letters is read."""
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)
    if name in ("scan.Nii", "scan.Nii.Gz"):
        with pytest.raises(VolumeFault) as raised:
            read_grid(tmp_path / name)
        assert raised.value.fault[0] == "ends in capital and small letters mixed, which is not read (rename it)"
    else:
        assert read_grid(tmp_path / name).shape == (4, 5, 6)


def test_pictures_are_one_fault_that_says_where_they_go(tmp_path):
    """Slices of one patient are no volumes of which there are too many."""
    touch(tmp_path, *(f"case{patient}_{number}.png" for patient in (1, 2) for number in (0, 1)))
    cases, faults = pair({"IMG": f"{tmp_path}/*.png"}, CASE)
    assert cases == []
    assert {what for what, _ in faults} == {NO_VOLUME}
    assert len(faults) == 4


def test_accents_are_one_letter_however_a_disk_spells_them(tmp_path):
    whole, apart = "caf\u00e9", "cafe\u0301"  # NFC, NFD
    touch(tmp_path, f"img/{whole}1.nii", f"gt/{apart}1.nii")
    cases, faults = pair({"IMG": f"{tmp_path}/img/{apart}*", "GT": f"{tmp_path}/gt/{whole}*"}, re.compile(FILE_NAME))
    assert ([case.patient for case in cases], faults) == ([f"{whole}1"], [])
    assert read_patients(f"{apart}1 b") == (f"{whole}1", "b")


def test_a_folder_without_its_slash_is_told(tmp_path):
    touch(tmp_path, "case1/0.dcm")
    _, faults = pair({"IMG": f"{tmp_path}/case*"}, CASE)
    assert [what for what, _ in faults] == [
        "no file matches but a folder does (that of a DICOM series is written with a / at the end)"
    ]
    assert pair({"IMG": f"{tmp_path}/case*/"}, CASE)[1] == []


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("CASE00.NII.GZ", "CASE00"),
        ("case00.nii", "case00"),
        ("Case00.Nii.gz", "Case00"),
        ("case.2.mha", "case.2"),
        ("case00.IMG", "case00"),
        ("1.2.840.7", "1.2.840.7"),
        ("case00.raw.gz", "case00"),
    ],
)
def test_the_name_of_a_file_without_its_ending(name, patient):
    assert re.search(FILE_NAME, name)[1] == patient


def test_a_name_that_is_no_id_is_told_without_the_expression(tmp_path):
    touch(tmp_path, "my scan.nii.gz")
    with pytest.raises(UserError, match=r"Nothing was predicted: a file's name is the patient's id.*my scan"):
        find_cases([f"{tmp_path}/*.nii.gz"], None, 1)


def test_patients_that_differ_only_in_capitals_are_told(tmp_path):
    touch(tmp_path, "Case1_t2.nii", "case1_t2.nii", "case2_t2.nii")
    _, faults = pair({"IMG": f"{tmp_path}/*.nii"}, CASE)
    assert [which for _, which in faults] == ["Case1 and case1"]
    assert "only in capital letters" in faults[0][0]
    assert pair({"IMG": f"{tmp_path}/case2*.nii"}, CASE)[1] == []


# -- volumes of two files -------------------------------------------------------------------------------------------


def write_pair(folder, kind, seed=0, shape=(6, 5, 4), spacing=2.0):
    """(header, voxels) of a volume in two files."""
    voxels = np.random.default_rng(seed).integers(0, 9, shape).astype(np.int16)
    if kind in ("mhd", "nhdr"):
        image = sitk.GetImageFromArray(voxels.T)
        image.SetSpacing((spacing,) * 3)
        sitk.WriteImage(image, str(folder / f"case{seed}.{kind}"), useCompression=False)
        return folder / f"case{seed}.{kind}", folder / f"case{seed}.raw"
    ending, classes = {
        "hdr": ("", nib.Nifti1Pair),
        "HDR": ("", nib.Nifti1Pair),
        "hdr.gz": (".gz", nib.Nifti1Pair),
        "analyze": ("", nib.Spm2AnalyzeImage),
    }[kind]
    names = [f"case{seed}.{part}{ending}" for part in ("hdr", "img")]
    names = [name.upper() if kind == "HDR" else name for name in names]
    nib.save(classes(voxels, np.diag([spacing] * 3 + [1])), folder / names[1])
    return [folder / name for name in names]


PAIRS = ["hdr", "HDR", "hdr.gz", "analyze", "mhd", "nhdr"]


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_is_one_volume_by_whichever_name(tmp_path, kind):
    header, voxels = write_pair(tmp_path, kind)
    np.testing.assert_array_equal(read_voxels(header), read_voxels(voxels))
    np.testing.assert_array_equal(read_grid(header).affine, read_grid(voxels).affine)
    assert sha256(header) == sha256(voxels)
    assert find_files(f"{tmp_path}/case*") == [header]
    assert find_files(f"{tmp_path}/{voxels.name}") == [voxels]
    assert [str(path) for path in find_cases([f"{tmp_path}/*"], None, 1).cases[0].paths.values()] == [str(header)]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("which", [0, 1])
def test_the_digest_of_a_pair_knows_both_files(tmp_path, kind, which):
    """As predict.py notices that a volume has changed: its header, or its voxels, named by either."""
    files = write_pair(tmp_path, kind)
    before = [digest(path) for path in files]
    other = tmp_path / "other"
    other.mkdir()
    changed = write_pair(other, kind, seed=0, spacing=2.5)[0] if which == 0 else write_pair(other, kind, seed=1)[1]
    files[which].write_bytes(changed.read_bytes())
    after = [digest(path) for path in files]
    assert None not in before + after
    assert before[0] == before[1] != after[0] == after[1]


def test_three_patients_whose_headers_are_alike_have_three_digests(tmp_path):
    pairs = [write_pair(tmp_path, "hdr", seed) for seed in range(3)]
    assert len({header.read_bytes() for header, _ in pairs}) == 1
    assert len({sha256(header) for header, _ in pairs}) == 3


def test_a_large_pair_is_read_by_its_header(tmp_path):
    """A header of 348 bytes promises more than those alone could hold."""
    header, voxels = write_pair(tmp_path, "hdr", shape=(128, 128, 40))
    assert read_voxels(header).shape == (128, 128, 40)
    voxels.write_bytes(voxels.read_bytes()[:-2])
    with pytest.raises(Exception, match="cannot be read"):
        read_voxels(header)


# -- lists of patients ----------------------------------------------------------------------------------------------

LISTS = {
    "lines": b"case00\ncase01\n",
    "crlf": b"case00\r\ncase01\r\n",
    "commas": b"case00,case01",
    "semicolons": b"case00;case01;\n",
    "quoted": b'"case00"\n"case01"\n',
    "single quotes": b"'case00', 'case01'",
    "mark": b"\xef\xbb\xbfcase00\r\ncase01",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_patients_is_read_however_it_parts_them(tmp_path, kind):
    (tmp_path / "val.txt").write_bytes(LISTS[kind])
    assert read_patients(str(tmp_path / "val.txt")) == ("case00", "case01")
    if kind not in ("mark", "lines"):
        assert read_patients(LISTS[kind].decode()) == ("case00", "case01")


@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("latin-1", r"Latin-1 \(byte 0xe9 at 3\)")]
)
def test_another_encoding_is_named(tmp_path, encoding, says):
    (tmp_path / "val.txt").write_bytes("casé00".encode(encoding))
    with pytest.raises(UserError, match=f"val.txt is .*{says}.*save it as UTF-8"):
        read_spec(["--dest", "x", "--image", "IMG=x", "--patient", "(x)", "--val_list", str(tmp_path / "val.txt")])


def test_a_long_list_is_no_name_of_a_file():
    names = tuple(f"case{number:04}" for number in range(2000))
    assert read_patients(" ".join(names)) == names
