"""A study as Slurm jobs: who waits for whom, and what each task asks of make. Slurm is a script that takes notes."""

import json
import os
import subprocess
import sys

import pytest

from tests.tools.check_makefiles import runs_made
from tests.tools.checkout import ROOT

STUDY = ROOT / "make/slurm/study.sbatch"
NOTES = """#!{python}
import json, sys
from pathlib import Path
notes = Path("{notes}")
jobs = notes.read_text().splitlines() if notes.exists() else []
notes.write_text("\\n".join([*jobs, json.dumps(sys.argv[1:])]) + "\\n")
print(len(jobs) + 1)
"""
SRUN = """#!/bin/sh
printf '%s\\n' "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch notes what it is given and numbers the jobs; srun prints what it would start."""
    for name, text in (("sbatch", NOTES), ("srun", SRUN)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.replace("{python}", sys.executable).replace("{notes}", str(tmp_path / "notes")))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return tmp_path / "notes"


def submit(*words):
    return subprocess.run([STUDY, *words], cwd=ROOT, capture_output=True, text=True)


def jobs_of(notes):
    """Each job: sbatch's flags by name, the script, its words."""
    jobs = []
    for line in notes.read_text().splitlines():
        told = json.loads(line)
        script = next(n for n, word in enumerate(told) if word.endswith(".sbatch"))
        flags = dict(word.lstrip("-").partition("=")[::2] for word in told[:script])
        jobs.append((flags, told[script], told[script + 1 :]))
    return jobs


def test_rows_wait_for_the_source_network_of_their_seed_and_the_page_for_all(slurm):
    done = submit("--gpus=1", "prostate.make", "SEEDS=0 7", "ROWS=cesource noadap sfda", "NET=Dimwit")
    assert (done.returncode, done.stderr) == (0, "")
    jobs = jobs_of(slurm)
    assert [flags["job-name"] for flags, *_ in jobs] == [
        *("study-data", "seed0-cesource", "seed0", "seed7-cesource", "seed7", "study-page")
    ]
    waits = [flags.get("dependency") for flags, *_ in jobs]
    assert waits == [None, "afterok:1", "afterok:2", "afterok:1", "afterok:4", "afterany:2:3:4:5"]
    assert [flags.get("array") for flags, *_ in jobs] == [None, "0", "0-1", "0", "0-1", None]
    assert all(flags["gpus"] == "1" for flags, *_ in jobs)
    asked = ["SEEDS=0 7", "ROWS=cesource noadap sfda", "NET=Dimwit"]
    assert jobs[0][1:] == ("make/slurm/run.sbatch", ["prostate.make", *asked, "study-data"])
    assert jobs[4][1:] == (
        "make/slurm/study.sbatch",
        ["prostate.make", "results/prostate/study", "7", "noadap sfda", *asked],
    )
    assert jobs[5][2] == ["prostate.make", *asked, "study-report"]


def test_rows_that_start_from_no_other_run_wait_for_the_data_alone(slurm):
    assert submit("acdc.make", "SEEDS=3").returncode == 0
    jobs = jobs_of(slurm)
    assert [flags.get("dependency") for flags, *_ in jobs] == [None, "afterok:1", "afterany:2"]
    assert jobs[1][0]["array"] == "0-2"


@pytest.mark.parametrize(
    ("words", "told"), [((), "names no makefile"), (("prostate.make", "ROWS=sfad"), "'sfad' is none")]
)
def test_nothing_is_submitted_of_what_cannot_be(slurm, words, told):
    done = submit(*words)
    assert done.returncode
    assert told in done.stderr
    assert not slurm.exists()


def test_a_task_makes_its_row_of_its_seed(slurm, monkeypatch):
    for name, value in (("ARRAY_TASK_ID", "1"), ("CPUS_PER_TASK", "4"), ("JOB_ID", "9")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    words = ["prostate.make", "results/prostate/study", "7", "noadap sfda", "SEEDS=0 7", "ROWS=noadap sfda"]
    done = submit(*words)
    assert done.returncode == 0
    _, *command = done.stdout.splitlines()
    assert command[:2] == ["make", "JOBS=4"]
    dry = subprocess.run([*command, "-n", f"CC={sys.executable}"], cwd=ROOT, capture_output=True, text=True, check=True)
    runs = runs_made(dry.stdout)
    assert "results/prostate/study/seed7/sfda" in runs
    assert not [run for run in runs if run.endswith("noadap")]
