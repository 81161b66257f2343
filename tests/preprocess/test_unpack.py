"""Made-up archives in the layouts of the official ones: unpacked, refused, and sliced as the makefiles slice them."""

import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datasets.files import parse_name
from datasets.set_tables import read_rows
from files.decoding import read_slice
from files.zip_entries import read_entries
from preprocess import unpack as module
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.unpack import Lineage, check_archives, md5, read_lineage, unpack
from processes.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = {"training/a/1.txt": b"one", "training/b/2.txt": b"two"}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def lineage_of(*paths):
    return Lineage({path: md5(path) for path in paths}, "Ask at the desk.")


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != module.NOTE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_nothing_left(dest):
    assert not dest.exists()
    assert not list(dest.parent.glob(f".{dest.name}.*"))


# ------------------------------------------------------------------------------------------------------ lineage


@pytest.mark.parametrize("name", ["acdc", "isles", "wmh", "msd_prostate", "brats", "prostate", "whs", "ivd"])
def test_the_lineages_of_the_repository(name):
    lineage = read_lineage(ROOT / f"data/{name}.lineage")
    assert {path.parent for path in lineage.archives} == {Path("data")}
    assert re.search(r"(Register at|[Bb]y way of) https?://\S+", lineage.origin)


def test_md5sum_reads_a_lineage_too(tmp_path):
    archive = write_zip(tmp_path / "two words.zip", FILES)
    text = f"# First line,\n#second line.\n\n{md5(archive).upper()}  {archive}\n"
    (tmp_path / "x.lineage").write_text(text)
    assert read_lineage(tmp_path / "x.lineage") == Lineage({archive: md5(archive)}, "First line, second line.")
    assert subprocess.run(["md5sum", "--quiet", "-c", tmp_path / "x.lineage"]).returncode == 0


@pytest.mark.parametrize("text", ["abc  data/a.zip\n", "# only words\n", "data/a.zip\n" + "0" * 32 + "  data/b.zip\n"])
def test_what_is_no_lineage(tmp_path, text):
    (tmp_path / "x.lineage").write_text(text)
    with pytest.raises(UserError, match="x.lineage: expected lines of an md5, two blanks and the path"):
        read_lineage(tmp_path / "x.lineage")


def test_missing_and_other_archives_are_listed_with_the_comments(tmp_path, capsys):
    good, other = (write_zip(tmp_path / f"{name}.zip", FILES) for name in ("good", "other"))
    lineage = Lineage({good: md5(good), other: "0" * 32, tmp_path / "no.zip": "1" * 32}, "Ask at the desk.")
    with pytest.raises(UserError) as error:
        unpack(lineage, tmp_path / "out", accept_checksum=True)
    error.match(rf"not there: [^;]*no.zip; archives of another md5: [^;]*other.zip \({md5(good)}, not 0+\)\.")
    error.match(r"Ask at the desk\.$")
    assert "good.zip" not in str(error.value)
    assert_nothing_left(tmp_path / "out")
    lineage = Lineage({other: "0" * 32}, "")
    with pytest.raises(UserError, match="--accept_checksum takes it as it is"):
        check_archives(lineage)
    assert unpack(lineage, tmp_path / "out", accept_checksum=True) == 2
    assert re.match("Warning: .*other.zip", capsys.readouterr().err)


def test_an_archive_without_a_known_checksum_is_noted(tmp_path):
    archive = write_zip(tmp_path / "a.zip", FILES)
    (tmp_path / "x.lineage").write_text(f"# Ask.\n-  {archive}\n")
    assert unpack(read_lineage(tmp_path / "x.lineage"), tmp_path / "out") == 2
    assert json.loads((tmp_path / "out" / module.NOTE).read_text()) == {"a.zip": md5(archive)}


# ---------------------------------------------------------------------------------------------------- unpacking


@pytest.mark.parametrize(("write", "suffix"), [(write_zip, ".zip"), (write_tar, ".tar"), (write_tar, ".tar.gz")])
def test_unpacked_without_shadows_and_what_is_skipped(tmp_path, write, suffix):
    more = {"training/a/1_4d.txt": b"4d", "orig/a/1.txt": b"", "x/orig/1.txt": b""}
    more |= {"__MACOSX/training/a/1.txt": b"", "training/a/._1.txt": b""}
    first = write(tmp_path / f"a{suffix}", FILES | more)
    second = write(tmp_path / f"b{suffix}", {"training/a/3": b"three"})
    number = unpack(lineage_of(first, second), tmp_path / "deep/out", ["*_4d.txt", "*/orig/*"])
    expected = FILES | {"training/a/3": b"three", "orig/a/1.txt": b""}
    assert (tree(tmp_path / "deep/out"), number) == (expected, 4)
    assert not list(tmp_path.glob("deep/.*"))


def test_a_zip_from_windows(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"x": b""})
    archive.write_bytes(write_zip(archive, {"training/a/1.txt": b"one"}).read_bytes().replace(b"g/a/1", b"g\\a\\1"))
    unpack(lineage_of(archive), tmp_path / "out")
    assert tree(tmp_path / "out") == {"training/a/1.txt": b"one"}


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ["../out2", "a/../../out2", "/tmp/out2", "C:/out2", "..\\out2", "\\\\host\\share\\a"])
def test_nothing_leads_out_of_the_folder(tmp_path, write, name):
    archive = write(tmp_path / "a.arc", {"a/good": b"", name: b"bad"})
    with pytest.raises(UserError, match="leads out of the folder: .*a.arc: "):
        unpack(lineage_of(archive), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_no_link_and_no_device_out_of_a_tar(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("training/a"))
        entry = tarfile.TarInfo("training/b")
        entry.type, entry.linkname = kind, "a"
        archive.addfile(entry)
    with pytest.raises(UserError, match="is a link or a special file: .*a.tar: training/b"):
        unpack(lineage_of(tmp_path / "a.tar"), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def test_no_link_out_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("training/a")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a special file: .*a.zip: training/a"):
        unpack(lineage_of(tmp_path / "a.zip"), tmp_path / "out")


def test_two_files_for_one_place(tmp_path):
    archives = [write_zip(tmp_path / f"{name}.zip", FILES) for name in "ab"]
    archives.append(write_tar(tmp_path / "c.tar", {"training/a/1.txt/x": b""}))
    with pytest.raises(UserError, match="another file stands already: [^;]*b.zip: [^;]*b.zip: [^;]*c.tar: "):
        unpack(lineage_of(*archives), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


@pytest.mark.parametrize("damage", ["torn zip", "bad zip", "torn tar", "torn gz", "locked", "none at all"])
def test_archives_that_cannot_be_read(tmp_path, damage):
    noise = np.random.default_rng(0).bytes(50_000)
    write = write_tar if damage in ("torn tar", "torn gz") else write_zip
    path = write(tmp_path / f"a.{damage[-2:]}", {"training/a": noise})
    content = bytearray(path.read_bytes())
    if damage == "locked":
        content[6] |= 1
        content[content.rindex(b"PK\1\2") + 8] |= 1
    elif damage == "bad zip":
        content[1000] ^= 255
    elif damage == "none at all":
        content = b"neither of them"
    else:
        del content[-30_000:]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.\w\w cannot be unpacked \(\w+: .*\); .* again.$"):
        unpack(lineage_of(path), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def listed(path, name, **other):
    """A zip whose directory says something else of this file than its content does."""
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in (FILES | {"training/c/3.txt": b"three"}).items():
            archive.writestr(each, content)
        for key, value in other.items():
            setattr(archive.getinfo(name), key, value)
    return path


def of_another_number(path):
    """Three files, of which the directory lists two, as its end with the number does not."""
    content = bytearray(write_zip(path, FILES).read_bytes())
    end = content.rindex(b"PK\5\6")
    content[end + 8] = content[end + 10] = 3
    path.write_bytes(content)
    return path


def of_many(path):
    """The same of a zip whose number of files stands in the record of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
        content = bytearray(write_zip(path, FILES).read_bytes())
    assert read_entries(zipfile.ZipFile(path))
    content[content.rindex(b"PK\6\6") + 32] = 3
    path.write_bytes(content)
    return path


def one_in_another(path):
    """The first file reaches over the second, with a checksum that fits."""
    whole = listed(path, "training/a/1.txt").read_bytes()
    start = whole.index(b"one")
    inner = whole[start : whole.index(b"three")]
    return listed(path, "training/a/1.txt", file_size=len(inner), compress_size=len(inner), CRC=zlib.crc32(inner))


DAMAGED = [
    (of_another_number, "states 3 entries, its directory lists 2"),
    (of_many, "states 3 entries, its directory lists 2"),
    (one_in_another, "training/a/1.txt reaches into what lies behind it"),
    (lambda path: listed(path, "training/b/2.txt", filename=""), "has no name"),
    (lambda path: listed(path, "training/b/2.txt", filename="training/b/"), "as a folder and holds 3 bytes"),
]


@pytest.mark.parametrize(("make", "told"), DAMAGED)
def test_a_zip_whose_directory_does_not_hold_up(tmp_path, make, told):
    path = make(tmp_path / "a.zip")
    with pytest.raises(UserError, match=f"a.zip cannot be unpacked .*{told}.*download it again"):
        unpack(lineage_of(path), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


@pytest.mark.parametrize("suffix", [".tar.bz2", ".zip"])
def test_damage_of_bz2_is_told_as_that_of_the_archive(tmp_path, suffix):
    noise, path = np.random.default_rng(0).bytes(250_000), tmp_path / f"a{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("a", noise)
    else:
        with tarfile.open(path, "w:bz2", compresslevel=1) as archive:  # in blocks of 100 kB
            entry = tarfile.TarInfo("a")
            entry.size = len(noise)
            archive.addfile(entry, io.BytesIO(noise))
    whole = path.read_bytes()
    for at in (len(whole) // 3, 2 * len(whole) // 3):
        path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
        with pytest.raises(UserError, match=f"a{suffix} cannot be unpacked .* download it again"):
            unpack(lineage_of(path), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def test_a_folder_that_is_there_and_patterns_that_leave_nothing(tmp_path):
    lineage = lineage_of(write_zip(tmp_path / "a.zip", FILES))
    with pytest.raises(UserError, match="no file in .*a.zip is left"):
        unpack(lineage, tmp_path / "out", ["*"])
    assert_nothing_left(tmp_path / "out")
    (tmp_path / "out_tmp").mkdir()
    (tmp_path / "out_tmp/thesis").touch()
    unpack(lineage, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert (tmp_path / "out_tmp/thesis").exists()
    with pytest.raises(UserError, match="out is there already"):
        unpack(lineage, tmp_path / "out", ["*"])
    assert tree(tmp_path / "out") == FILES


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(module, "_copy", fail)
    with pytest.raises(type(error)):
        unpack(lineage_of(write_zip(tmp_path / "a.zip", FILES)), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def test_program(tmp_path):
    archive = write_zip(tmp_path / "a.zip", FILES | {"b_4d": b"", "orig/c": b""})
    (tmp_path / "x.lineage").write_text(f"# Ask.\n{md5(archive)}  {archive}\n")
    command = [sys.executable, "-m", "preprocess.unpack", "--skip", "*_4d", "orig/*", "--lineage"]
    command += [tmp_path / "x.lineage", "--dest", tmp_path / "out"]
    settings = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    good = subprocess.run(command, **settings, check=False)
    archive.unlink()
    bad = subprocess.run([*command[:-1], tmp_path / "out2"], **settings, check=False)
    assert (good.returncode, good.stdout) == (0, f"{tmp_path}/out: 2 files out of {archive}\n")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert bad.stderr.endswith(f"not there: {archive}. Ask.\n")


# ----------------------------------------------------------------------------------------- the official layouts


def acdc(top):
    """Name -> (voxels, spacing): two phases of each patient beside the whole series, labels 0..3."""
    rng = np.random.default_rng(0)
    volumes = {}
    for patient in range(1, 6):
        shape, base = (12 + patient, 10, 3), f"{top}training/patient{patient:03}/patient{patient:03}"
        volumes[f"{base}_4d.nii.gz"] = np.ones((*shape, 2), np.int16), (1.5, 1.5, 10)
        for frame in ("01", f"{patient + 8:02}"):
            volumes[f"{base}_frame{frame}.nii.gz"] = rng.integers(0, 900, shape, np.int16), (1.5, 1.5, 10)
            truth = rng.integers(0, 4, shape, np.uint8)
            volumes[f"{base}_frame{frame}_gt.nii.gz"] = truth, (1.5, 1.5, 10)
    return volumes


def isles(top):
    rng = np.random.default_rng(0)
    volumes = {}
    kinds = {"CT": np.int32, "CT_CBF": np.uint16, "CT_CBV": np.float64, "CT_MTT": np.float64, "CT_Tmax": np.float32}
    for case in range(1, 5):
        for number, (modality, kind) in enumerate({**kinds, "CT_4DPWI": np.int16, "OT": np.uint8}.items()):
            name = f"SMIR.Brain.XX.O.{modality}.{3000 + 10 * case + number}"
            shape = (8, 8, 2, 3) if modality == "CT_4DPWI" else (8, 8, 2)
            voxels = rng.integers(0, 2 if modality == "OT" else 500, shape).astype(kind)
            volumes[f"{top}TRAINING/case_{case}/{name}/{name}.nii"] = voxels, (0.8, 0.8, 5)
    return volumes


def wmh(tops):
    rng = np.random.default_rng(0)
    volumes = {}
    for top, people in zip(tops, ((0, 2), (50, 51), (100, 101)), strict=True):
        for person in people:
            for name in ("pre/FLAIR", "pre/T1", "pre/3DT1", "orig/FLAIR", "orig/T1"):
                voxels = rng.integers(0, 900, (9, 11, 2)).astype(np.float32 if "FLAIR" in name else np.uint16)
                volumes[f"{top}/{person}/{name}.nii.gz"] = voxels, (1, 1, 3)
            volumes[f"{top}/{person}/wmh.nii.gz"] = rng.integers(0, 3, (9, 11, 2), np.uint8), (1, 1, 3)
    return volumes


ACDC = r"""--image img='{root}/**/training/patient*/patient*_frame[0-9][0-9].nii.gz'
    --label '{root}/**/training/patient*/patient*_frame[0-9][0-9]_gt.nii.gz' --label_folder gt
    --patient '(patient\d+_frame\d+)' --group '(patient\d+)' --val 4 --n_class 4 --normalise minmax --resize 16 16
    --modality MR"""
ISLES = r"""--image in_npy='{root}/**/TRAINING/case_*/SMIR.Brain.XX.O.CT.*/*.nii'
    --image in_npy='{root}/**/TRAINING/case_*/SMIR.Brain.XX.O.CT_CBF.*/*.nii'
    --image in_npy='{root}/**/TRAINING/case_*/SMIR.Brain.XX.O.CT_CBV.*/*.nii'
    --image in_npy='{root}/**/TRAINING/case_*/SMIR.Brain.XX.O.CT_MTT.*/*.nii'
    --image in_npy='{root}/**/TRAINING/case_*/SMIR.Brain.XX.O.CT_Tmax.*/*.nii'
    --label '{root}/**/TRAINING/case_*/SMIR.Brain.XX.O.OT.*/*.nii' --label_folder gt_npy --distance_maps 3d_distmap
    --patient '/(case_\d+)/' --val 1 --n_class 2 --normalise minmax --format npy --modality CT"""
WMH = r"""--image in_npy='{root}/**/pre/FLAIR.nii.gz' --image in_npy='{root}/**/pre/T1.nii.gz'
    --label '{root}/**/wmh.nii.gz' --label_folder gt_npy --distance_maps 3d_distmap
    --patient '/(Utrecht|Singapore|GE3T)/(\d+)/' --label_map 1:1,2:0 --val 2 --normalise minmax --format npy
    --resize 16 16 --modality MR"""


def unpacked_and_sliced(folder, volumes, skip, line):
    """The card of the set that the command line slices out of the archive of these volumes."""
    for name, (voxels, spacing) in volumes.items():
        path = folder / "packed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    archive = write_zip(folder / "a.zip", {name: (folder / "packed" / name).read_bytes() for name in volumes})
    unpack(lineage_of(archive), folder / "volumes", skip)
    return slice_set(read_spec(shlex.split(f"--dest {folder}/set --jobs 1 {line.format(root=folder / 'volumes')}")))


def stacked(folder, name, patient):
    """One patient's slices, in order, from whatever split."""
    paths = sorted(folder.glob(f"set/*/{name}/{patient}_*"), key=lambda path: int(path.stem.split("_")[-1]))
    return np.stack([read_slice(path) for path in paths])


@pytest.mark.parametrize("top", ["", "ACDC/database/"])
def test_acdc(tmp_path, top):
    volumes = acdc(top)
    if top:
        volumes[f"{top}testing/patient101/patient101_frame01.nii.gz"] = np.ones((9, 9, 2), np.int16), (1.5, 1.5, 10)
    card = unpacked_and_sliced(tmp_path, volumes, ["*_4d.nii.gz"], ACDC)
    homes = {name: split for split, names in card["split"].items() for name in names}
    assert {patient: sorted(n[-2:] for n in homes if n[:10] == patient) for patient in {n[:10] for n in homes}} == {
        f"patient{n:03}": ["01", f"{n + 8:02}"] for n in range(1, 6)
    }
    assert len({(name[:10], split) for name, split in homes.items()}) == 5
    assert (len(card["split"]["val"]), card["n_class"], card["images"], card["labels"]) == (4, 4, ["img"], "gt")
    image, label = (stacked(tmp_path, name, "patient002_frame10") for name in ("img", "gt"))
    assert (image.dtype, image.shape, label.shape) == (np.uint8, (3, 16, 16), (3, 16, 16))
    assert set(np.unique(label)) == {0, 1, 2, 3}
    row = next(row for row in read_rows(tmp_path / "set") if row["patient"] == "patient002_frame10")
    assert (float(row["spacing_w"]), float(row["spacing_h"])) == (1.5 * 14 / 16, 1.5 * 10 / 16)
    assert parse_name(row["slice"], r"(patient\d+_frame\d+)_(\d+)").patient == "patient002_frame10"


def to_lps(voxels):
    """Axial planes to the left and back, of a volume stored to the right and front."""
    return np.moveaxis(voxels, 2, 0)[:, ::-1, ::-1]


@pytest.mark.parametrize("top", ["", "ISLES2018_Training/"])
def test_isles(tmp_path, top):
    volumes = isles(top)
    card = unpacked_and_sliced(tmp_path, volumes, ["*CT_4DPWI*"], ISLES)
    assert sorted(name for names in card["split"].values() for name in names) == [f"case_{n}" for n in range(1, 5)]
    image, label, maps = (stacked(tmp_path, name, "case_3") for name in ("in_npy", "gt_npy", "3d_distmap"))
    assert (image.dtype, image.shape, label.dtype, maps.shape) == (np.float32, (2, 5, 8, 8), np.uint8, (2, 2, 8, 8))
    of_case = {name.split(".")[-3]: voxels for name, (voxels, _) in volumes.items() if "case_3" in name}
    for channel, modality in enumerate(("CT", "CT_CBF", "CT_CBV", "CT_MTT", "CT_Tmax")):
        voxels = to_lps(of_case[modality])
        span = voxels.max() - voxels.min()
        np.testing.assert_allclose(image[:, channel], (voxels - voxels.min()) / span, atol=1e-6)
    np.testing.assert_array_equal(label, to_lps(of_case["OT"]))
    assert (maps[:, 1][label == 0] > 0).all()


@pytest.mark.parametrize("tops", [("Utrecht", "Singapore", "GE3T"), ("Utrecht", "Singapore", "Amsterdam/GE3T")])
def test_wmh(tmp_path, tops):
    top = "training/" if "/" in tops[-1] else ""
    card = unpacked_and_sliced(tmp_path, wmh([top + site for site in tops]), ["*/orig/*"], WMH)
    names = {name for names in card["split"].values() for name in names}
    assert names == {"Utrecht0", "Utrecht2", "Singapore50", "Singapore51", "GE3T100", "GE3T101"}
    assert (len(card["sources"]), card["n_class"], len(card["split"]["val"])) == (18, 2, 2)
    image, label, maps = (stacked(tmp_path, name, "GE3T100") for name in ("in_npy", "gt_npy", "3d_distmap"))
    assert (image.shape, maps.shape) == ((2, 2, 16, 16), (2, 2, 16, 16))
    assert set(np.unique(label)) == {0, 1}


@pytest.mark.parametrize(("write", "suffix"), [(write_zip, ".zip"), (write_tar, ".tar.gz")])
def test_a_bomb_fills_no_disk(tmp_path, monkeypatch, write, suffix):
    monkeypatch.setattr(module, "SLACK", 2**20)
    bomb = write(tmp_path / f"bomb{suffix}", {"a.nii": bytes(2**27)})
    with pytest.raises(UserError, match="200 times its size"):
        unpack(lineage_of(bomb), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def test_an_archive_of_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 1)
    with pytest.raises(UserError, match="more than 1 files"):
        unpack(lineage_of(write_zip(tmp_path / "a.zip", FILES)), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_that_is_cut_or_damaged_anywhere_loses_no_file_in_silence(tmp_path, suffix):
    whole = write_tar(tmp_path / f"whole{suffix}", {f"a/{n}.txt": bytes([n]) * 700 for n in range(4)}).read_bytes()
    path = tmp_path / f"broken{suffix}"
    ends = range(0, len(whole) - 1, 512 if suffix == ".tar" else 7)
    if suffix == ".tar":
        ends = [end for end in ends if end < 4 * 1536]  # behind the files only zeros are lost
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="cannot be unpacked|is left to unpack"):
            unpack(Lineage({path: None}, ""), tmp_path / "out")
        assert_nothing_left(tmp_path / "out")
    damaged = bytearray(whole)
    damaged[1536 if suffix == ".tar" else len(whole) - 6] ^= 255  # the second header; the checksum
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(Lineage({path: None}, ""), tmp_path / "out")


@pytest.mark.parametrize("name", ["n" * 300 + ".nii", module.NOTE, f"{module.NOTE}/a.nii"])
def test_names_that_cannot_be(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", FILES | {name: b""})
    with pytest.raises(UserError, match="a.zip: "):
        unpack(lineage_of(path), tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def test_mutated_archives_are_unpacked_or_refused_in_words(tmp_path):
    rng = np.random.default_rng(0)
    for write, suffix in ((write_zip, ".zip"), (write_tar, ".tar"), (write_tar, ".tar.gz")):
        whole = write(tmp_path / f"whole{suffix}", FILES).read_bytes()
        path = tmp_path / f"mutant{suffix}"
        for number in range(150):
            broken = bytearray(whole)
            for at in rng.integers(0, len(whole), rng.integers(1, 4)):
                broken[at] = int(rng.integers(256))
            path.write_bytes(broken)
            out, said = tmp_path / f"out{number}{suffix}", ""
            try:
                unpack(Lineage({path: None}, ""), out)
            except UserError as error:
                said = str(error)
            if said:
                assert_nothing_left(out)
            assert (path.name in said) != out.exists()
