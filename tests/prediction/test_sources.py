"""Volumes as they come: a folder, a list, a table, the DICOM series of an export."""

import os
import shutil
import zlib

import nibabel as nib
import numpy as np
import pytest

import predict
from files.formats.dicom_series import find_series, is_series
from files.reading import read_grid, read_stack, sha256
from prediction.volumes import find_cases
from processes.errors import UserError
from tests.tools import fuzz_volumes

T2, ADC = "t2_tse_tra", "ep2d ADC"


def write_series(
    folder, number, description, patient="P1", study="1.2.3", date="20200101", slices=4, names="{:02}.dcm"
):
    """One series of slices that hold its number; its files get such names."""
    voxels = np.full((7, 6, slices), number, np.int16)
    tags = {"0008|103e": description, "0010|0020": patient, "0020|000d": study, "0008|0020": date}
    tags |= {"0020|0011": str(number)}
    uid = f"1.2.{zlib.crc32(f'{patient} {study}'.encode())}.{number}"
    aside = folder / f"_{number}"
    for k, path in enumerate(fuzz_volumes.write_series(aside, voxels, series=uid, tags=tags)):
        path.rename(folder / names.format(k))
    aside.rmdir()
    return uid


@pytest.fixture
def export(tmp_path):
    """PATIENT/STUDY/SERIES: two patients, the first with two studies."""
    for patient, study, date in (("P 1", "1.1", "20200101"), ("P 1", "1.2", "20210101"), ("P2", "2.1", "20200505")):
        for number, description in ((3, T2), (5, ADC)):
            folder = tmp_path / f"export/{patient}/{study}/{number}"
            folder.mkdir(parents=True)
            write_series(folder, number, description, patient, study, date)
    return tmp_path / "export"


def found(volumes, series=(), patient=None, channels=1):
    return find_cases([str(each) for each in volumes], patient, channels, series=series)


def values(found):
    """Patient -> the grey level of each of its volumes."""
    return {case.patient: [int(read_stack(path, 2).max()) for path in case.paths.values()] for case in found.cases}


def test_a_series_is_chosen_by_its_description(export):
    chosen = found([export], ["T2*"])
    assert values(chosen) == {"P_1_20200101": [3], "P_1_20210101": [3], "P2": [3]}
    assert chosen.lost == []
    assert all(path.is_dir() for case in chosen.cases for path in case.paths.values())  # each has a folder of its own


def test_several_series_are_listed_and_nothing_is_guessed(export):
    words = rf"several DICOM series of a study.*--series 'T2\*'.*'{T2}' \(MR, 4 slices, 3 times\), '{ADC}' \(MR, 4 sl"
    with pytest.raises(UserError, match=words):
        found([export])
    with pytest.raises(UserError, match=rf"'{T2}' \(MR, number 3, 4 slices\) 1\.2\.\d+\.3, '{ADC}' \(MR, number 5"):
        found([export / "P2"])
    with pytest.raises(UserError, match="--series 'flair' fits no series. There are"):
        found([export], ["flair"])


def test_channels_are_series_of_one_study(export):
    expected = {"P_1_20200101": [5, 3], "P_1_20210101": [5, 3], "P2": [5, 3]}
    assert values(found([export], ["*adc", "t2*"], channels=2)) == expected
    assert values(found([export, export], ["*adc", "t2*"], channels=2)) == expected
    with pytest.raises(UserError, match="--series is given once, or for each of the 2 channels; got 3"):
        found([export, export], ["a", "b", "c"], channels=2)


def test_series_that_lie_in_one_folder_are_told_apart(tmp_path):
    (tmp_path / "flat").mkdir()
    uids = [write_series(tmp_path / "flat", n, T2, slices=n, names=f"IM{n}{{}}") for n in (3, 5)]
    with pytest.raises(UserError, match=f"number 3, 3 slices.*{uids[0]}.*number 5, 5 slices.*{uids[1]}"):
        found([tmp_path / "flat"])
    for number, uid in zip((3, 5), uids, strict=True):
        (case,) = found([tmp_path / "flat"], [uid]).cases
        (path,) = case.paths.values()
        assert (case.patient, path) == ("P1", tmp_path / "flat" / uid)
        assert is_series(path)
        assert read_grid(path).shape == (7, 6, number)
        assert (read_stack(path, 2) == number).all()
        assert values(found([path])) == {uid: [number]}  # typed as a table of sizes shows it
    assert sha256(tmp_path / "flat" / uids[0]) != sha256(tmp_path / "flat" / uids[1])


def test_a_file_that_comes_or_goes_meanwhile_is_seen(tmp_path):
    """The files of a folder are sorted once: not longer than they stay the same."""
    (tmp_path / "flat").mkdir()
    for number in (3, 5):
        uid = write_series(tmp_path / "flat", number, T2, names=f"{number}_{{}}")
    os.utime(tmp_path / "flat", (1e9, 1e9))  # it has been so for long
    assert read_grid(tmp_path / "flat" / uid).shape == (7, 6, 4)
    last = tmp_path / "flat/5_3"
    content = last.read_bytes()
    last.unlink()
    assert read_grid(tmp_path / "flat" / uid).shape == (7, 6, 3)
    last.write_bytes(content)
    assert read_grid(tmp_path / "flat" / uid).shape == (7, 6, 4)
    last.write_bytes(content[:-1])
    with pytest.raises(Exception, match="5_3: .* are left"):
        read_grid(tmp_path / "flat" / uid)


def test_a_series_may_be_spread_over_folders(tmp_path):
    for name in ("A", "B"):
        (tmp_path / "disc" / name).mkdir(parents=True)
    uid = write_series(tmp_path / "disc", 3, T2)
    for k in range(4):
        (tmp_path / f"disc/{k:02}.dcm").rename(tmp_path / "disc" / "AB"[k % 2] / f"{k}")
    (case,) = found([tmp_path / "disc"]).cases
    assert list(case.paths.values()) == [tmp_path / "disc" / uid]
    assert read_grid(tmp_path / "disc" / uid).shape == (7, 6, 4)


def test_a_torn_file_spoils_its_own_series_alone(tmp_path):
    (tmp_path / "flat").mkdir()
    write_series(tmp_path / "flat", 3, T2, names="3_{}")
    write_series(tmp_path / "flat", 5, T2, patient="P2", names="5_{}")
    torn = tmp_path / "flat/5_3"
    torn.write_bytes(torn.read_bytes()[:-1])
    first, second = find_series(sorted((tmp_path / "flat").iterdir()))[0]
    assert read_grid(first.path).shape == (7, 6, 4)
    with pytest.raises(Exception, match="5_3: .* are left"):
        read_grid(second.path)
    content = torn.read_bytes()
    torn.unlink()
    torn.write_bytes(content[:140])  # it does not say any more of which it is
    for series in (first, second):
        with pytest.raises(Exception, match="are torn, or no slices"):
            read_grid(series.path)


def test_a_series_all_of_which_is_torn_is_told(export):
    folder = export / "P2/2.1/3"
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    chosen = found([export], ["t2*"])
    assert sorted(values(chosen)) == ["P_1_20200101", "P_1_20210101"]
    assert len([which for what, which in chosen.lost if "is torn, and of no series" in what]) == 4
    assert ("no series that --series 't2*' fits", "P2") in chosen.lost


def test_segmentations_and_folders_of_predictions_are_no_volumes(export):
    (export / "out").mkdir()
    (export / "out/.of-predict.py").touch()
    shutil.copytree(export / "P2/2.1/3", export / "out/3")
    path = export / "P2/2.1/3/00.dcm"
    made = path.read_bytes().replace(b"MR", b"SEG ", 1)
    assert find_series([path])[0]
    (export / "seg.dcm").write_bytes(made)
    assert len(found([export], ["t2*"]).cases) == 3


def test_patients_of_an_export_are_named_by_its_folders_where_a_pattern_says_so(export):
    chosen = found([export], ["t2*"], patient=r"export/(P) ?(\d)/\d(\.\d)/")
    assert [case.patient for case in chosen.cases] == ["P1.1", "P1.2", "P2.1"]


# ------------------------------------------------------------------------------------------------- files, lists


@pytest.fixture
def volumes(tmp_path):
    """Volumes of two channels of three patients, in folders, with what is no volume beside them."""
    for number in range(3):
        for channel in range(2):
            path = tmp_path / f"new/{'deep/er' if number else 'flat'}/p{number}_i{channel}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.full((4, 5, 6), 10 * number + channel, np.int16), np.eye(4)), path)
    for name in ("notes.txt", "._p0_i0.nii.gz", "p0.seg.nrrd", "deep/photo.jpg"):
        (tmp_path / "new" / name).write_bytes(b"no volume")
    return tmp_path / "new"


def test_a_folder_is_all_volumes_below_it(volumes):
    assert values(found([volumes])) == {f"p{n}_i{c}": [10 * n + c] for n in range(3) for c in range(2)}
    assert values(found([f"IMG={volumes / 'flat'}"], patient=r"_i(\d)")) == {"0": [0], "1": [1]}


@pytest.mark.parametrize("name", ["a.png", "a.TIF"])
@pytest.mark.parametrize("named", ["", "*"])
def test_pictures_are_told_to_be_no_volumes(tmp_path, name, named):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"Nothing was predicted: is a picture, where volumes are read"):
        found([f"{tmp_path}/new/{named}"])


def test_a_list_has_a_path_a_line(volumes, tmp_path, monkeypatch):
    lines = ["# T2", "", "new/flat/p0_i0.nii.gz", f"{volumes}/deep/er/p1_i0.nii.gz", "new/p9.nii.gz"]
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    for place in (tmp_path, tmp_path.parent):  # paths count from here, or from the folder of the list
        monkeypatch.chdir(place)
        chosen = found([tmp_path / "list.txt"])
        assert values(chosen) == {"p0_i0": [0], "p1_i0": [10]}
        assert [which.split(" (")[0] for _, which in chosen.lost] == ["new/p9.nii.gz"]


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_a_table_names_the_channels_of_each_patient(volumes, tmp_path, comma):
    rows = [["ADC", "Patient", "T2"], ["new/flat/p0_i0.nii.gz", "a", "new/flat/p0_i1.nii.gz"]]
    rows += [["new/deep/er/p1_i0.nii.gz", "b", ""], ["new/nope.nii", "c", "new/deep/er/p1_i0.nii.gz"]]
    (tmp_path / "cohort.csv").write_text("".join(comma.join(row) + "\n" for row in rows))
    chosen = found([tmp_path / "cohort.csv"], channels=2)
    assert values(chosen) == {"a": [0, 1]}
    told = {which: what for what, which in chosen.lost}
    assert sorted(told) == ["b", "c"]
    assert "patients without T2 volume" in told["b"]
    assert "nope.nii is not there" in told["c"]
    with pytest.raises(UserError, match="1 channels.*beside 'patient' the csv has a column for each.*got ADC, T2"):
        found([tmp_path / "cohort.csv"])


def test_a_table_may_name_folders_of_an_export(export, tmp_path):
    (tmp_path / "cohort.csv").write_text("patient,T2\nx,export/P2\ny,export/P 1/1.2/5\nz,export/P 1\n")
    chosen = found([tmp_path / "cohort.csv"], ["t2*"])
    assert values(chosen) == {"x": [3], "y": [5]}
    assert [which for _, which in chosen.lost] == ["z"]
    assert "holds 2 volumes, and one is meant" in chosen.lost[0][0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,T2\na,b.nii\n", "should have a column 'patient'.*its first line has name, T2"),
        ("", "its first line has nothing"),
        ("patient\na\n", "its first line has patient"),
        ("patient,T2\na,b.nii,c.nii\n", "2 columns, and lines of another number of cells: 2"),
        ("patient,T2\na/b,b.nii\n", r"called by letters, digits, . _ and -; got 'a/b'"),
        ("patient,T2\na,b.nii\nA,c.nii\n", "several lines of one patient"),
        ("patient,T2\na,b.nii\n", "Nothing was predicted: T2: b.nii is not there"),
        ('patient,T2\na,"b.nii\n', "is no csv"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, text, words):
    (tmp_path / "cohort.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        found([tmp_path / "cohort.csv"])


def test_a_patient_who_lacks_a_channel_stops_no_other(volumes):
    (volumes / "deep/er/p2_i1.nii.gz").unlink()
    globs = [f"{volumes}/**/p?_i{channel}.nii.gz" for channel in range(2)]
    chosen = found(globs, patient=r"(p\d)", channels=2)
    assert values(chosen) == {"p0": [0, 1], "p1": [10, 11]}
    assert [which for _, which in chosen.lost] == ["p2"]


def test_the_help_names_them(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    assert "--series" in capsys.readouterr().out
