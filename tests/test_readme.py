"""Every command of the README: make's are dry-run in a checkout, one's own data is tried in earnest."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_makefiles import ROOT, checkout  # noqa: F401  a fixture

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(make|python)\b", line)
]
NEW_DATASET = [line for line in COMMANDS if "new_dataset" in line or "mine.make" in line]
PREDICT = [line for line in COMMANDS if "predict.py" in line]
OWN_DATA = COMMANDS.index(next(line for line in COMMANDS if "slice_volumes" in line))


@pytest.fixture(autouse=True)
def _use_the_fixture(checkout):  # noqa: F811
    """All of these run in the copy."""


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make") and line not in NEW_DATASET])
def test_make_command(checkout, command):  # noqa: F811
    words = [word for word in shlex.split(command)[1:] if not word.startswith("CC=")]
    done = subprocess.run(["make", "-n", *words], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.replace("jobserver", "")


def write_patient(folder: Path, number: int, inside: float) -> None:
    rng = np.random.default_rng(number)
    mask = np.zeros((24, 20, 6), np.uint8)
    mask[6:16, 5:14, 1:5] = 255
    image = np.where(mask, inside, 100) + rng.normal(0, 10, mask.shape)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, array in (("t2", image.astype(np.float32)), ("mask", mask)):
        nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 3, 1])), folder / f"case{number:02d}_{suffix}.nii.gz")


def write_sites(checkout):  # noqa: F811
    for number in range(8):
        write_patient(checkout / "old", number, 300)
        write_patient(checkout / "new", number + 20, 200)


def test_one_s_own_data_in_four_commands(checkout, python):  # noqa: F811
    write_sites(checkout)
    for command in COMMANDS[OWN_DATA : OWN_DATA + 4]:
        words = shlex.split(command)
        words = [python, *words[1:]] if words[0] == "python" else [*words, f"CC={python}"]
        if words[0] == "make":
            words += ["NET=Dimwit", "EPC=1", "DEBUG=--debug", "runs"]
        done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    log = (checkout / "results/prostate/sfda/provenance.json").read_text()
    assert '"phantom": null' in log
    for command in PREDICT:
        run(checkout, python, command, ["--n_epoch", "1"] if "--adapt" in command else [])
    for folder in ("predictions", "predictions_adapted"):
        masks = sorted((checkout / folder).glob("*.nii.gz"))
        assert len(masks) == 8
        assert nib.load(masks[0]).shape == (24, 20, 6)


def test_a_makefile_of_one_s_own(checkout, python):  # noqa: F811
    """The data of the test before; nothing is trained."""
    write_sites(checkout)
    first, *others = NEW_DATASET
    run(checkout, python, first)
    for command in others:
        done = subprocess.run([*shlex.split(command), "-n"], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.replace("jobserver", "")
    assert len(others) == 2


def run(checkout, python, command, more=()):  # noqa: F811
    words = [python, *shlex.split(command)[1:], *more]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_s_own_volumes_in_one_command(checkout):  # noqa: F811
    for number in range(8):
        write_patient(checkout / "old", number, 300)
        write_patient(checkout / "new", number + 20, 200)
    (command,) = [line for line in COMMANDS if "volume_set" in line]
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = {
        split: len(list((checkout / "data/mine" / split / "IMG").iterdir())) for split in ("train", "val", "unlabelled")
    }
    assert counts == {"train": 6, "val": 2, "unlabelled": 8}
    assert np.load(checkout / "data/mine/train/GT/case00.npy").shape == (6, 20, 24)


def test_the_picture_and_the_pages_that_are_linked_exist():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).is_file(), link


def test_every_file_that_is_named_exists():
    for path in set(re.findall(r"`((?:methods/)?\w+\.(?:py|mk|make))`", README)) - {"mine.make"}:  # one to be made
        assert (ROOT / path).is_file(), path


def test_every_file_of_the_top_level_has_its_place():
    house = README.partition("## Where is what")[2].partition("\n## ")[0]
    files = {path.name for kind in ("*.py", "*.make") for path in ROOT.glob(kind)}
    assert files - {"utils.py"} <= set(re.findall(r"`([\w.]+)`", house))


def test_every_file_of_rules_is_explained():
    page = (ROOT / "docs" / "makefiles.md").read_text()
    assert {path.name for path in ROOT.glob("make/*.mk")} <= set(re.findall(r"`(?:make/)?(\w+\.mk)`", page))
