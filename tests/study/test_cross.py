"""Source networks and what adapts them, by hand: means, gains, shares of the gap; and how make asks for each once."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_study import make_run, write_scores

from processes.errors import UserError
from study.__main__ import main
from study.cross import make_table, open_cross, write_cross
from tests.tools.check_makefiles import runs_made
from tests.tools.checkout import ROOT

SOURCES, ROWS = ("cesource", "cesource_gin"), ("noadap", "sfda")
PATIENTS = {site: [f"{site}{n}" for n in range(4)] for site in ("source", "target")}
EASE = np.array([-0.1, -0.05, 0.05, 0.1])  # of the patients, who have it in every run
OWN = {"cesource": 0.9, "cesource_gin": 0.88}
VALUE = {("cesource", "noadap"): 0.4, ("cesource", "sfda"): 0.6, ("cesource_gin", "noadap"): 0.5}
VALUE |= {("cesource_gin", "sfda"): 0.76}
FULL = 0.8


def add(folder, site, mean, best=None):
    """A finished run of one epoch, scored on the patients of a site."""
    make_run(folder, PATIENTS[site], mean + EASE, 1, 0)
    facts = folder / "provenance.json"
    facts.write_text(facts.read_text().replace('"toy"', f'"{site}"'))
    write_scores(folder, "last", PATIENTS[site], mean + EASE)
    write_scores(folder, "best_3d", PATIENTS[site], (best or mean) + EASE)


@pytest.fixture
def folder(tmp_path):
    trained = tmp_path / "cross/sources/seed0"
    for source, own in OWN.items():
        add(trained / source, "source", own - 0.1, own)  # the last epoch is worse
        for row in ROWS:
            add(tmp_path / "cross" / source / "seed0" / row, "target", VALUE[source, row])
    add(trained / "fs", "target", FULL)
    return tmp_path / "cross"


def opened(folder):
    return open_cross(folder, "toy", SOURCES, ROWS, (0,))


def test_a_line_a_source_and_a_column_a_row(folder):
    report = write_cross(opened(folder))
    assert report.header == ["source", "on its own site", *ROWS]
    value, gain, closed = (block for _, block in report.blocks)
    assert value == [["cesource", "0.900", "0.400", "0.600"], ["cesource_gin", "0.880", "0.500", "0.760"]]
    assert gain == [["cesource", "0.900", "+0.000", "+0.200"], ["cesource_gin", "0.880", "+0.100", "+0.360"]]
    assert closed == [["cesource", "0.900", "0 %", "50 %"], ["cesource_gin", "0.880", "25 %", "90 %"]]
    assert (folder / "cross.png").stat().st_size > 5000
    table = pd.read_csv(folder / "cross.csv").set_index(["source", "row"])
    assert table.loc[("cesource_gin", "sfda"), ["mean", "gain", "closed"]].tolist() == pytest.approx([0.76, 0.36, 0.9])


def test_as_published_the_source_starts_from_its_last_epoch(folder):
    table = make_table(open_cross(folder, "toy", SOURCES, ROWS, (0,), start="last"))
    assert [line[1] for line in table.blocks[0][1]] == ["0.800", "0.780"]


def test_what_is_missing_is_named_and_left_out(folder, capsys):
    for run in ("cesource_gin/seed0/sfda", "sources/seed0/fs"):
        (folder / run).rename(folder / f"{run}_tmp")
    words = ["cross", "--folder", str(folder), "--name", "toy", "--rows", *ROWS, "--sources", *SOURCES, "--seeds", "0"]
    with pytest.raises(
        UserError, match="2 runs: fs, seed 0: not finished.*from cesource_gin, sfda, seed 0: not finished"
    ):
        main(words)
    assert "2 runs missing or left out" in capsys.readouterr().out
    value, _, closed = (block for _, block in make_table(opened(folder)).blocks)
    assert value[1] == ["cesource_gin", "0.880", "0.500", "–"]
    assert [line[2:] for line in closed] == [["–", "–"]] * 2


def test_names_given_twice_and_empty_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="sfda is named twice"):
        open_cross(folder, "toy", SOURCES, ("noadap", "sfda", "sfda"), (0,))
    with pytest.raises(UserError, match="has no finished run: cesource, seed 0: not there"):
        open_cross(tmp_path / "nothing", "toy", SOURCES, ROWS, (0,))


def dry(*words):
    """What make would do for a cross table."""
    command = ["make", "-n", "-f", "prostate.make", f"CC={sys.executable}", "SIZE=small", "cross", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_make_trains_each_source_once_and_starts_every_row_from_it():
    done = dry("SOURCES=cesource cesource_gin", "ROWS=noadap sfda chosen", "SEEDS=0 7")
    assert (done.returncode, done.stderr) == (0, "")
    runs = runs_made(done.stdout)
    folders = {
        "sources": ["cesource", "cesource_gin", "fs"],
        **{each: ["noadap", "sfda", "chosen"] for each in SOURCES},
    }
    assert set(runs) == {
        f"results/prostate/cross/{folder}/seed{seed}/{run}"
        for folder, names in folders.items()
        for seed in (0, 7)
        for run in names
    }
    line = runs["results/prostate/cross/cesource_gin/seed7/sfda"]
    assert "--model_weights results/prostate/cross/sources/seed7/cesource_gin/best_3d.pkl" in line
    assert "--seed 7" in line
    assert "choose.py --runs results/prostate/cross/cesource/seed0/sfda --out" in done.stdout
    assert "--start best_3d" in done.stdout


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("ROWS=noadap sfad", "'sfad' is none"),
        ("SOURCES=cesource sfda", "'sfda' is none"),
        ("ROWS=noadap chosen", "ROWS names none of"),
        ("SEEDS=0 0", "SEEDS are different whole numbers"),
    ],
)
def test_make_refuses_what_is_no_cross_table(word, told):
    done = dry(word)
    assert done.returncode
    (line,) = done.stderr.splitlines()
    assert told in line
