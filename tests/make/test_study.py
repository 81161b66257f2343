"""`make study` as its users type it: refused, planned, killed, typed again, with a run that fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import write_site
from PIL import Image

from files.run_names import EXPECTED
from tests.tools.chaos import _bits as bits
from tests.tools.checkout import ROOT, copy_files, tracked

MAKEFILE = r"""
SET     := toy
VOLUMES :=
DATA    := data/toy_source data/toy_target
include make/adaptation.mk
ABL     += broken
N_CLASS = 2
G_RGX   = (Case\d+)_(\d+)
TT_DATA = [('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]
PRIOR   = --n_class 2 --constant 80
# neither look nor choice, which start processes of their own
MATCH   =
KEEP    =
$(RD)/broken: private OPT = $(START) --method sfda $(call sfda_loss,no_such_column)
include make/rules.mk
"""
TYPED = ("NET=Dimwit", "EPC=1", "SEEDS=0 1", "ROWS=noadap sfda")
RUNS = [f"seed{seed}/{row}" for seed in (0, 1) for row in ("cesource", "noadap", "sfda")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository's files with a makefile on two small sites."""
    root = copy_files(tracked(), tmp_path_factory.mktemp("study"))
    (root / "toy.make").write_text(MAKEFILE)
    write_site(root / "data/toy_source", inside=200, outside=60, seed=1)
    write_site(root / "data/toy_target", inside=150, outside=90, seed=2)
    return root


def command(python, *words):
    return ["make", "-f", "toy.make", f"CC={python}", "JOBS=1", *words]


def make(checkout, python, *words):
    return subprocess.run(command(python, *words), cwd=checkout, capture_output=True, text=True)


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    ("ROWS=noadap sdfa",): "ROWS names runs, and 'sdfa' is none; they are: cesource noadap",
    ("ROWS=",): "ROWS names no run; they are: cesource noadap",
    ("SEEDS=0 0",): "SEEDS are different whole numbers, as SEEDS='0 1 2'; they are '0 0'",
    ("SEEDS=0 x",): "SEEDS are different whole numbers",
    ("SEEDS=0;1",): "SEEDS are different whole numbers",
    ("SEEDS=",): "SEEDS are different whole numbers",
    (
        "AGAINST=nodap",
        "ROWS=noadap sfda",
    ): "AGAINST names rows of the study, and 'nodap' is none; they are: noadap sfda",
    ("sensitivity", "RATES_X=0.1x"): "RATES_X are numbers above 0",
    ("sensitivity", "FACTORS=0 2"): "FACTORS are numbers above 0",
    ("sensitivity", "WRONG=101"): "WRONG are per cent",
    ("sensitivity", "PATIENTS=0"): "PATIENTS are numbers of patients",
    ("SEED=3",): "A study has several seeds: SEEDS='3' in place of SEED=3",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_no_study_can_be_of_is_refused_at_once(checkout, words):
    done = make(checkout, sys.executable, "study", *words)
    assert done.returncode == 2
    assert REFUSED[words] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / "results").exists()


def test_lists_stand_for_their_runs(checkout, python):
    done = make(checkout, python, "study-plan", "ROWS=TRN tent", "SEEDS=4", "SOURCE_RUN=cesource")
    assert done.returncode == 0, done.stderr
    assert (
        ": 7 rows (cesource noadap sfda_lr0 sfda SFDA_TrueSize fs tent) x 1 seed (4). To be trained: 7 runs"
        in done.stdout
    )
    assert not (checkout / "results").exists()


def test_n_tells_how_many_runs_and_writes_nothing(checkout, python):
    done = make(checkout, python, "study", "-n", *TYPED)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert (
        "2 rows (noadap sfda) x 2 seeds (0 1). To be trained: 6 runs, 2 of them to start from; how long" in done.stdout
    )
    made = re.findall(
        r"renew (results/toy/study/\S+) --\s+\S+\s+main\.py .*--seed (\d)", done.stdout.replace("\\\n", " ")
    )
    assert made == [(f"results/toy/study/{run}", run[4]) for run in RUNS]
    assert done.stdout.rstrip().endswith("-m study report --folder results/toy/study")
    assert not (checkout / "results").exists()


def test_a_typed_launcher_wraps_every_run(checkout, python):
    done = make(checkout, python, "study", "-n", "LAUNCH=srun --gpus=1", "NPROC=2", "TRN=cesource fs", *TYPED[:3])
    lines = [line for line in done.stdout.splitlines() if " main.py " in line]
    assert len(lines) == 4
    assert all("-- srun --gpus=1 " in line and "--nproc_per_node=2" in line for line in lines)


def test_a_study_that_is_killed_and_typed_again_ends_whole_and_then_does_nothing(checkout, python):
    study, words = checkout / "results/toy/study", command(python, "-j2", "study", *TYPED)
    with subprocess.Popen(words, cwd=checkout, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        for line in first.stdout:
            if re.match("Study: [1-3] of 6 runs done", line):
                break
        os.killpg(first.pid, signal.SIGKILL)
    assert not (study / "headline.txt").exists()
    again = make(checkout, python, "-j2", "study", *TYPED)
    assert again.returncode == 0, again.stderr
    planned = int(re.search(r"To be trained: (\d) runs", again.stdout)[1])
    assert 0 < planned < 6
    assert f"Study: {planned} of {planned} runs done." in again.stdout
    for run in RUNS:
        assert (study / run / "patients_last.csv").is_file(), run
        assert f"seed: {run[4]}\n" in (study / run / "params.txt").read_text()
    weights = [(study / f"seed{seed}/sfda/params.txt").read_text() for seed in (0, 1)]
    assert ["seed0/cesource/best_3d.pkl" in weights[0], "seed1/cesource/best_3d.pkl" in weights[1]] == [True, True]
    for name in ("headline.txt", "comparisons.csv", "calibration.md", "ranks.tex", "report.html", "study.json"):
        assert (study / name).stat().st_size > 100, name
    assert not list(study.glob("seed*/*_tmp"))

    before = snapshot(study)
    nothing = make(checkout, python, "study", *TYPED)
    assert nothing.returncode == 0
    assert "x 2 seeds (0 1). Every run is there." in nothing.stdout
    assert "nothing has changed since" in nothing.stdout
    assert "main.py" not in nothing.stdout
    assert snapshot(study) == before


def test_the_archive_of_a_study_makes_its_tables_and_its_page_again(checkout, python, tmp_path):
    """After the study above, without its images and its makefile."""
    study, words = "results/toy/study", ("study-pack", *TYPED)
    for said in ("pack.sh", "Every run is there"):
        done = make(checkout, python, *words)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    (archive,) = (checkout / "archives").iterdir()
    assert archive.name.endswith("-toy-study.tar.gz")
    subprocess.run(["tar", "xzf", archive], cwd=tmp_path, check=True)
    made = json.loads((checkout / study / ".reported").read_text())["files"]
    assert {"headline.tex", "scores.csv", "report.html"} < set(made)
    for name in made:
        (tmp_path / study / name).unlink()
    command = [sys.executable, "-m", "study", "report", "--folder", study]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    each = {name: [(place / study / name).read_bytes() for place in (checkout, tmp_path)] for name in made}
    assert [name for name, (first, second) in each.items() if first != second] == []


def test_a_run_that_fails_stops_no_other_and_is_told_on_every_table(checkout, python):
    """After the study above."""
    study = checkout / "results/toy/study"
    failed = make(checkout, python, "study", *TYPED[:2], "SEEDS=0", "ROWS=broken entropy noadap")
    assert failed.returncode == 2
    assert "no_such_column" in failed.stderr
    assert "what it lacks, 1 run: broken, seed 0: not there. The same command makes" in failed.stderr
    assert (study / "seed0/entropy/patients_last.csv").is_file()
    table = (study / "headline.txt").read_text()
    assert "1 of 3 runs are missing or left out" in table
    assert re.findall(r"^(\w+)  +\w", table, re.MULTILINE) == ["row", "entropy", "noadap"]
    assert "Asked for otherwise before in this folder: noadap, sfda with 2 seeds" in table


def test_sensitivity_trains_beside_the_study_and_leaves_it_as_it_was(checkout, python):
    """After the study above: its source network and its sfda are not trained again."""
    study = checkout / "results/toy/study"
    asked = (study / "study.json").read_bytes()
    few = ("FACTORS=2", "WRONG=50", "RATES_X=", "PATIENTS=2")
    done = make(checkout, python, "sensitivity", *TYPED[:2], "SEEDS=0", *few)
    assert done.returncode == 0, done.stderr
    assert "To be trained: 3 runs;" in done.stdout
    for row, table in (
        ("sfda_prior_x2", "sizes/toy_x2.csv"),
        ("sfda_wrong_50", "results/toy/study/seed0/wrong_50.csv"),
    ):
        assert f"'sizefile':'{table}'" in (study / f"seed0/{row}/params.txt").read_text()
    told = json.loads((study / "seed0/sfda_patients_2/provenance.json").read_text())
    assert len(told["training_volumes"]) == 2
    text = (study / "sensitivity.txt").read_text()
    assert re.findall(r"^(\S+) +(sfda\S*)", text, re.MULTILINE) == [
        ("1", "sfda"),
        ("2", "sfda_prior_x2"),
        ("0", "sfda"),
        ("50", "sfda_wrong_50"),
        ("2", "sfda_patients_2"),
        ("4", "sfda"),
    ]
    assert (study / "sensitivity.png").stat().st_size > 1000
    assert (study / "study.json").read_bytes() == asked


def test_with_the_target_s_labels_wiped_all_but_the_scores_is_the_same(checkout, python):
    """Weights, the look, the choice and its reasons, what is expected; of a study that asks for no image-level tag."""
    words = ("study", "NET=Dimwit", "EPC=2", "SEEDS=0", "ROWS=noadap sfda", "COLUMN=dumbprednotags", "MATCH=auto")
    words = (*words, "KEEP=--keep_every 1")
    (checkout / "wiped.make").write_text(MAKEFILE.replace("toy_target", "wiped_target").replace(":= toy", ":= wiped"))
    shutil.copytree(checkout / "data/toy_target", checkout / "data/wiped_target")
    for path in checkout.glob("data/wiped_target/*/GT/*.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    seen = []
    for name, more in (("toy", ("RD=results/labelled",)), ("wiped", ("RD=results/wiped",))):
        done = subprocess.run(
            ["make", "-f", f"{name}.make", f"CC={python}", *words, *more], cwd=checkout, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        seed = checkout / more[0].removeprefix("RD=") / "study/seed0"
        seen.append(
            {
                "weights": [bits(torch.load(seed / run / "last.pkl")["net"]) for run in ("cesource", "noadap", "sfda")],
                "look": torch.load(seed / "sfda/last.pkl")["network"],
                "choice": [(seed / "sfda" / file).read_bytes() for file in ("selection.csv", "selection.txt")],
                "chosen": bits(torch.load(seed / "sfda/chosen.pkl")["net"]),
                "expected": (seed / "sfda" / EXPECTED).read_bytes(),
                "scores": (seed / "sfda/patients_chosen.csv").read_bytes(),
            }
        )
    labelled, wiped = seen
    assert [key for key in labelled if labelled[key] != wiped[key]] == ["scores"]


def test_sensitivity_without_sfda_is_refused(checkout):
    done = subprocess.run(["make", "-f", "acdc.make", "sensitivity"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2
    assert "sensitivity is of the run sfda, which this makefile has not" in done.stderr


@pytest.mark.parametrize("makefile", ["ivd", "gta5", "acdc", "msd_prostate"])
def test_every_kind_of_makefile_has_a_study(makefile, python):
    words = ["make", "-n", "-f", f"{makefile}.make", f"CC={python}", "SEEDS=3", "study"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d+ rows \(.*\) x 1 seed \(3\)\. To be trained: \d+ runs", done.stdout)
    assert f"--workdir results/{makefile}/study/seed3/" in done.stdout
