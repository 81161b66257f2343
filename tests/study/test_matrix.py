"""Every site as source and as target, by hand: means, what adaptation adds, what it forgets, what is missing."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_study import make_run, write_scores

from processes.errors import UserError
from study.__main__ import main
from study.matrix import make_table, open_matrix, write_matrix
from tests.tools.check_makefiles import runs_made
from tests.tools.checkout import ROOT

SITES = ("A", "B", "C")
PATIENTS = {site: [f"{site}{n}" for n in range(3)] for site in SITES}
EASE = np.array([-0.1, 0.0, 0.1])  # of the patients, who have it in every run
OWN = {"A": 0.8, "B": 0.7, "C": 0.6}  # of a source network on its own patients
ACROSS, GAIN, LOST = 0.4, {"A": 0.1, "B": 0.2, "C": 0.3}, 0.05  # on others; by the target; on its own, once adapted


def add(folder, site, mean):
    """A finished run of one epoch, scored on the patients of a site."""
    make_run(folder, PATIENTS[site], mean + EASE, 1, 0)
    facts = folder / "provenance.json"
    facts.write_text(facts.read_text().replace('"toy"', f'"{site}"'))
    for which in ("last", "best_3d"):
        write_scores(folder, which, PATIENTS[site], mean + EASE)


@pytest.fixture
def folder(tmp_path):
    for source in SITES:
        for target in SITES:
            runs = tmp_path / "matrix" / source / target / "seed0"
            if source == target:
                add(runs / "noadap", source, OWN[source])
            else:
                add(runs / "noadap", target, ACROSS)
                add(runs / "sfda", target, ACROSS + GAIN[target])
                add(runs / "sfda_back", source, OWN[source] - LOST)
    return tmp_path / "matrix"


def opened(folder):
    return open_matrix(folder, "toy", SITES, ("noadap", "sfda"), (0,))


def test_a_line_a_source_and_a_column_a_target(folder):
    report = write_matrix(opened(folder))
    assert report.header == ["source", *SITES, "others", "forgets"]
    before, after, gain = (block for _, block in report.blocks)
    assert before[0] == ["A", "0.800", "0.400", "0.400", "0.400", "–"]
    assert before[-1] == ["other sources", "0.400", "0.400", "0.400", "0.400", "–"]
    assert after[0] == ["A", "–", "0.600", "0.700", "0.650", "0.050"]
    assert after[-1] == ["other sources", "0.500", "0.600", "0.700", "0.600", "0.050"]
    assert gain[1] == ["B", "+0.100", "–", "+0.300", "+0.200", "–"]
    assert gain[-1] == ["other sources", "+0.100", "+0.200", "+0.300", "+0.200", "–"]
    assert (folder / "matrix.png").stat().st_size > 5000


def test_the_csv_has_intervals_and_no_gain_of_the_network_as_it_came(folder):
    write_matrix(opened(folder))
    table = pd.read_csv(folder / "matrix.csv").set_index(["source", "target", "row"])
    assert len(table) == 3 * 3 + 6
    line = table.loc[("A", "C", "sfda")]
    assert [line[name] for name in ("mean", "gain", "forgotten")] == pytest.approx([0.7, 0.3, 0.05])
    assert line["gain_low"] == pytest.approx(0.3)  # all patients gain the same
    assert line["mean_low"] < 0.7 < line["mean_high"]
    assert np.isnan(table.loc[("A", "C", "noadap")]["gain"])


def test_what_is_missing_is_named_and_left_out(folder, capsys):
    (folder / "A/C/seed0/sfda").rename(folder / "A/C/seed0/sfda_tmp")
    words = ["matrix", "--folder", str(folder), "--name", "toy", "--sites", *SITES, "--rows", "noadap", "sfda"]
    with pytest.raises(UserError, match="1 run: A to C, sfda, seed 0: not finished"):
        main([*words, "--seeds", "0"])
    assert "1 run missing or left out" in capsys.readouterr().out
    report = make_table(opened(folder))
    assert report.blocks[1][1][0] == ["A", "–", "0.600", "–", "0.600", "0.050"]


def test_one_site_or_no_run_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="at least two different sites; named are: A"):
        open_matrix(folder, "toy", ["A"], ["noadap"], [0])
    with pytest.raises(UserError, match="has no finished run: A to A, noadap, seed 0: not there"):
        open_matrix(tmp_path / "nothing", "toy", SITES, ["noadap"], [0])


def dry(*words):
    """What make would do for a matrix."""
    command = ["make", "-n", "-f", "sites.make", f"CC={sys.executable}", "matrix", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_make_trains_a_source_network_once_and_starts_every_pair_from_it():
    done = dry("SITES=BMC HK", "ROWS=noadap sfda", "SEEDS=0 3")
    assert (done.returncode, done.stderr) == (0, "")
    runs = runs_made(done.stdout)
    wanted = []
    for source in ("BMC", "HK"):
        for target in ("BMC", "HK"):
            names = ("cesource", "noadap") if source == target else ("noadap", "sfda", "sfda_back")
            wanted += [f"results/sites/matrix/{source}/{target}/seed{n}/{name}" for n in (0, 3) for name in names]
    assert sorted(runs) == sorted(wanted)
    line = runs["results/sites/matrix/HK/BMC/seed3/sfda"]
    assert "--model_weights results/sites/matrix/HK/HK/seed3/cesource/best_3d.pkl" in line
    assert "--target_dataset data/sites/BMC" in line
    assert "sizes/sites_BMC.csv" in line
    assert "--seed 3" in line
    back = runs["results/sites/matrix/HK/BMC/seed3/sfda_back"]
    assert back.rindex("--target_dataset data/sites/HK") > back.index("--target_dataset data/sites/BMC")
    assert "--model_weights results/sites/matrix/HK/BMC/seed3/sfda/chosen.pkl" in back


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("SITES=BMC", "two different folders"),
        ("SITES=BMC BMC", "two different folders"),
        ("SITES=BMC $$(id)", "two different folders"),
        ("ROWS=noadap sfad", "'sfad' is none"),
        ("ROWS=sfda", "begin with noadap"),
        ("SEEDS=0 x", "SEEDS are different whole numbers"),
    ],
)
def test_make_refuses_what_is_no_matrix(word, told):
    done = dry(word)
    assert done.returncode
    (line,) = done.stderr.splitlines()
    assert told in line
