"""Every recipe from its archive to a label map on a scanner's grid: unpack, slice, prior, train, predict."""

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocess.archives.isles import KINDS
from tests.make.test_makefiles import checkout  # noqa: F401  a fixture
from tests.preprocess.test_archives import HEART, discs, scan, volume

SHAPE = (24, 20, 8)
FLAT = (24, 20, 4)  # of what is adapted, where each slice takes time
SMOKE = ("NET=Dimwit", "EPC=1", "DEBUG=--debug", "JOBS=1", "THREADS=1")


def prostate(root):
    for site in ("BMC", "RUNMC"):
        for number in range(3):
            names = (f"Case{number:02d}{what}.nii.gz" for what in ("", "_segmentation"))
            scan(root / site, *names, (0, 1, 2), shape=FLAT)


def heart(root):
    for kind in ("mr", "ct"):
        for number in range(1001, 1004):
            names = (f"{kind}_train_{number}_{what}.nii.gz" for what in ("image", "label"))
            scan(root / f"{kind}_train", *names, HEART, shape=FLAT)


def ventricles(root):
    for number in range(1, 4):
        for frame in (1, 12):
            name = f"patient{number:03d}_frame{frame:02d}"
            scan(
                root / f"training/patient{number:03d}", f"{name}.nii.gz", f"{name}_gt.nii.gz", (0, 1, 2, 3), shape=SHAPE
            )


def strokes(root):
    for case in range(1, 5):
        for number, kind in enumerate([*KINDS, "OT"]):
            name = f"SMIR.Brain.XX.O.{kind}.{case}{number}"
            volume(root / f"TRAINING/case_{case}/{name}/{name}.nii", shape=SHAPE, image=kind != "OT")


def lesions(root):
    for site in ("Utrecht", "Singapore", "GE3T"):
        for number in (1, 2):
            for kind in ("pre/FLAIR", "pre/T1", "wmh"):
                values = (0, 1, 2)
                volume(root / site / f"{number}/{kind}.nii.gz", values, shape=SHAPE, image=kind != "wmh")


def decathlon(root, task, stem, channels, modality, classes, count):
    for number in range(count):
        volume(root / f"{task}/imagesTr/{stem}_{number:03d}.nii.gz", shape=(*SHAPE, channels), image=True)
        volume(root / f"{task}/labelsTr/{stem}_{number:03d}.nii.gz", range(len(classes)), shape=SHAPE)
        volume(root / f"{task}/imagesTs/{stem}_{number + 50:03d}.nii.gz", shape=(*SHAPE, channels), image=True)
    named = {"modality": dict(enumerate(modality)), "labels": dict(enumerate(classes))}
    (root / task / "dataset.json").write_text(json.dumps(named))


def zones(root):
    decathlon(root, "Task05_Prostate", "prostate", 2, ("T2", "ADC"), ("background", "PZ", "TZ"), 4)


def tumours(root):
    decathlon(root, "Task01_BrainTumour", "BRATS", 4, ("FLAIR", "T1w", "t1gd", "T2w"), "abcd", 4)


CHANNELS = [f"data/isles_volumes/TRAINING/case_*/SMIR.Brain.XX.O.{kind}.*/*.nii" for kind in KINDS]
# as in the makefiles for real archives, with a sixteenth of the pixels
SIXTEENTH = {
    "prostate": ["CROP=--size 96 96", "ORGAN=--constant 500", "N_VAL=1", "BATCH=4"],
    "whs": ["CROP=--plane coronal --size 64 64", "ORGANS=--constant 277 312 280 232", "N_VAL=1", "BATCH=4"],
    "ivd": ["CROP=--axis 1 --size 64 64", "DISC=--constant 36", "BATCH=4"],
}
# archive -> what fills it; make's words; the run; the volumes that it is to predict, and whose they are
RECIPES = {
    "prostate": (prostate, SIXTEENTH["prostate"], "sfda", ["data/prostate_volumes/RUNMC/Case??.nii.gz"], r"(Case\d+)"),
    "whs": (heart, SIXTEENTH["whs"], "sfda", ["data/whs_volumes/ct_train/*_image.nii.gz"], r"train_(\d+)"),
    "ivd": (discs, SIXTEENTH["ivd"], "sfda", ["data/ivd_volumes/*_inn.nii"], r"(\d+)_"),
    "acdc": (
        ventricles,
        ["CROP=--val 2"],
        "ce",
        ["data/acdc_volumes/training/*/*_frame[0-9][0-9].nii.gz"],
        r"(p.*\d)\.nii",
    ),
    "isles": (strokes, ["CROP=--val 1"], "gdl", CHANNELS, r"/(case_\d+)/"),
    "wmh": (
        lesions,
        ["CROP=--val 1 --resize 16 16"],
        "gdl",
        [f"data/wmh_volumes/*/*/pre/{kind}.nii.gz" for kind in ("FLAIR", "T1")],
        r"/(\w+)/(\d+)/pre",
    ),
    "msd_prostate": (
        zones,
        ["CROP=--val 1", "N4=", "LABELLED=1"],
        "random_1_0",
        ["data/msd_prostate_volumes/Task05_Prostate/imagesTs/*.nii.gz"],
        r"(prostate_\d+)",
    ),
    "brats": (
        tumours,
        ["SPLIT=--train 2 --val 2", "WINDOW=8 8 8"],
        "sup",
        ["data/brats_volumes/Task01_BrainTumour/imagesTs/*.nii.gz"],
        r"(BRATS_\d+)",
    ),
}


def pack(folder: Path, checkout: Path, name: str) -> None:  # noqa: F811
    """The archives that the recipe's lineage names."""
    lines = (checkout / f"data/{name}.lineage").read_text().splitlines()
    paths = [checkout / line.split()[1] for line in lines if not line.startswith("#")]
    for path in paths:
        tops = [top for top in sorted(folder.iterdir()) if len(paths) == 1 or top.name in path.stem]
        files = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*.*")))]
        if path.suffix == ".tar":
            with tarfile.open(path, "w") as archive:
                for file in files:
                    archive.add(file, file.relative_to(folder))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for file in files:
                    archive.write(file, file.relative_to(folder))


def run(checkout, *words):  # noqa: F811
    done = subprocess.run(list(map(str, words)), cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_from_the_archive_to_a_label_map(checkout, python, tmp_path, name):  # noqa: F811
    python = sys.executable if name == "acdc" else python  # one of them as it is started outside of a test
    fill, words, goal, volumes, patient = RECIPES[name]
    (tmp_path / "archive").mkdir()
    fill(tmp_path / "archive")
    pack(tmp_path / "archive", checkout, name)
    words = ["-f", f"{name}.make", f"CC={python}", "UNPACK=--accept_checksum", *words, *SMOKE]
    told = run(checkout, "make", *words, f"results/{name}/{goal}")
    assert "PHANTOM" not in told
    assert (checkout / f"data/{name}_volumes/archives.json").is_file()
    given = [word for pattern in volumes for word in ("--volumes", pattern)]
    weights = f"results/{name}/{goal}/last.pkl"
    out = f"predictions/{name}"
    run(checkout, python, "predict.py", "--weights", weights, *given, "--patient", patient, "--out", out)
    found = sorted((checkout / out).glob("*.nii.gz"))
    sources = sorted(checkout.glob(volumes[0]))
    assert len(found) == len(sources) > 0
    for mask, source in zip(found, sources, strict=True):
        image, original = nib.load(mask), nib.load(source)
        assert image.shape == original.shape[:3]
        np.testing.assert_allclose(image.affine, original.affine, atol=1e-5)
