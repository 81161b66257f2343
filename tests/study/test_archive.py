"""An archive of a study is enough: what is made of it is what was made of the study itself."""

import shutil
import subprocess
from pathlib import Path

import pytest
from fake_runs import add_calibration
from fake_study import add_evaluation, make_study

from study.lineage import hash_now
from study.lineage import main as tell_lineage
from study.reading import open_study
from study.report import write_report
from tests.tools.checkout import ROOT

STUDY = Path("results/toy/study")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a study in it, and with what no archive takes."""
    monkeypatch.chdir(tmp_path)
    make_study(STUDY, ("noadap", "sfda", "fs"), (0, 1), patients=2)
    for run in ("seed0/noadap", "seed0/sfda"):
        add_evaluation(STUDY / run, ["Case00", "Case01"], 0.7)
        add_calibration(STUDY / run, {"last": 0.1, "last, tempered": 0.05})
    Path("sizes").mkdir()
    Path("sizes/toy.csv").write_text("val_ids,tags\n")
    for name in (
        "seed0/sfda/candidates/epoch_0005.pkl",
        "seed1/sfda/iter007/val/a.png",
        "seed1/.sfda.lock",
        ".reported",
    ):
        (STUDY / name).parent.mkdir(parents=True, exist_ok=True)
        (STUDY / name).write_text("left out")
    for name, marked in (("fs_tmp", True), ("mine_tmp", False)):
        (STUDY / "seed1" / name).mkdir()
        (STUDY / "seed1" / name / "notes").touch()
        if marked:
            (STUDY / "seed1" / name / ".of-main.py").touch()
    for run in STUDY.glob("seed*/*/provenance.json"):
        (run.parent / "last.pkl").write_text(f"weights of {run.parent}")
        (run.parent / ".made").write_text("last.pkl\n")
    return tmp_path


def pack(results):
    subprocess.run(["bash", ROOT / "make/pack.sh", "archives/toy", results, "", "sizes/toy.csv"], check=True)
    names = subprocess.check_output(["tar", "tzf", "archives/toy.tar.gz"], text=True).splitlines()
    return {name for name in names if not name.endswith("/")}


@pytest.mark.parametrize("results", [STUDY, STUDY.parent], ids=["of the study", "of all results"])
def test_all_of_a_study_is_packed_but_what_is_unfinished_or_of_single_epochs(place, results):
    every = {path for path in STUDY.rglob("*") if path.is_file()}
    left = {path for path in every if path.read_bytes() == b"left out" or "fs_tmp" in path.parts}
    assert len(left) == 6
    assert pack(results) == {*map(str, every - left), "sizes/toy.csv"}


def made(capsys):
    """What is made of a study: tables in four formats, all scores, the page, and the lineage of a cell."""
    write_report(open_study(STUDY))
    tell_lineage([str(STUDY), "--cell", "sfda,dice"])
    files = {path.name: path.read_bytes() for path in STUDY.iterdir() if path.is_file() and path.name[0] != "."}
    return files, capsys.readouterr().out


def test_the_archive_is_enough_to_make_all_of_it_again(place, monkeypatch, capsys):
    before = made(capsys)
    assert {"headline.txt", "comparisons.csv", "ranks.md", "failures.tex", "scores.csv", "report.html"} <= set(
        before[0]
    )
    pack(STUDY)
    archive, elsewhere = place / "archives/toy.tar.gz", place / "elsewhere"
    elsewhere.mkdir()
    for folder in ("results", "sizes"):
        shutil.rmtree(place / folder)
    monkeypatch.chdir(elsewhere)
    subprocess.run(["tar", "xzf", archive], check=True)
    archive.unlink()
    for name in before[0].keys() - {"study.json"}:
        (STUDY / name).unlink()
    hash_now.cache_clear()
    after = made(capsys)
    assert [name for name in before[0] if after[0].get(name) != before[0][name]] == []
    assert after == before
