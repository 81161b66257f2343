"""Curves over what runs change of sfda, by hand; and how the makefile's runs are told what is wrong."""

import shutil

import numpy as np
import pytest
from fake_runs import make_run, make_set
from matplotlib.figure import Figure

from processes.errors import UserError
from study import sensitivity
from study.__main__ import main
from study.asking import Asked
from study.page.sensitivity import read_sensitivity
from study.reading import open_study
from study.sensitivity import AXES, make_table, points_of
from tests.analysis.test_report import rescore
from tests.make.test_makefiles import dry_run, trainings

ROWS = ("noadap", "sfda", "sfda_prior_x0.5", "sfda_prior_x2", "sfda_wrong_20", "sfda_rate_x10", "sfda_patients_2")
DICE = dict(zip(ROWS, (0.3, 0.7, 0.6, 0.5, 0.65, 0.1, 0.4), strict=True))
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("sensitivity")
    data = make_set(root / "data/toy", n_patient=2, n_slice=1, size=(16, 16))
    whole = make_run(root / "whole", data, n_epoch=1, pictures=False, training_volumes=list("abcde"))
    for row, dice in DICE.items():
        for seed in SEEDS:
            run = shutil.copytree(whole, root / f"study/seed{seed}" / row)
            rescore(run, {"P0": {1: dice}, "P1": {1: dice + 0.1 * (seed + 1)}})
    return root / "study"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def study_of(folder, rows=ROWS):
    return open_study(folder, Asked("toy", rows, SEEDS))


def test_sfda_stands_among_its_changes(made):
    study = study_of(made)
    found = [points_of(study, axis) for axis in AXES]
    assert [list(points.items()) for points in found] == [
        [(0.5, "sfda_prior_x0.5"), (1, "sfda"), (2, "sfda_prior_x2")],
        [(0, "sfda"), (20, "sfda_wrong_20")],
        [(1, "sfda"), (10, "sfda_rate_x10")],
        [(2, "sfda_patients_2"), (5, "sfda")],
    ]


def test_the_table_has_a_block_an_axis_and_the_difference_to_sfda(made):
    table = make_table(study_of(made))
    assert [heading for heading, _ in table.blocks] == [axis.title for axis in AXES]
    half, base, double = table.blocks[0][1]
    assert half[:2] == ["0.5", "sfda_prior_x0.5"]
    assert half[2].startswith("0.675")  # 0.6, and 0.05 and 0.1 more in the mean of each seed's patients
    assert half[5].startswith("-0.100")
    assert (base[5], double[5][:6]) == ("", "-0.200")
    lines = [line for line in table.lines if line["run"] == "sfda_rate_x10" and line["row"] == "sfda, last epoch"]
    assert [(line["value"], line["seed"]) for line in lines] == [(10, 0), (10, 1)]
    assert [line["score"] for line in lines] == pytest.approx([0.15, 0.2])
    assert lines[0]["mean"] == pytest.approx(0.175)


def test_curves_are_drawn_with_the_network_as_it_came(made, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(sensitivity, "save", lambda figure, out: drawn.append((figure, out)))
    sensitivity.draw(study_of(made), tmp_path / "x.png")
    ((figure, out),) = drawn
    assert isinstance(figure, Figure)
    assert out == tmp_path / "x.png"
    charts = figure.axes
    assert len(charts) == 4
    chosen, last, level = charts[0].lines
    assert np.allclose(last.get_xdata(), [0.5, 1, 2])
    assert np.allclose(chosen.get_ydata(), [0.675, 0.775, 0.575])
    assert np.allclose(level.get_ydata(), 0.375)
    assert charts[0].get_xscale() == "log"
    assert charts[1].get_xscale() == "linear"


def test_files_are_written_and_what_is_missing_is_told(folder, capsys):
    shutil.rmtree(folder / "seed1/sfda_wrong_20")
    words = ["sensitivity", "--folder", str(folder), "--name", "toy", "--seeds", "0", "1", "--rows", *ROWS]
    with pytest.raises(UserError, match="lacks, 1 run: sfda_wrong_20, seed 1: not there"):
        main(words)
    assert "Sensitivity of sfda on toy" in capsys.readouterr().out
    for suffix in ("png", "txt", "csv", "md", "tex"):
        assert (folder / f"sensitivity.{suffix}").stat().st_size > 300
    assert not (folder / "study.json").exists()
    table = read_sensitivity(study_of(folder))  # as the page does
    assert len(table) == 2 * (2 * 9 - 1)  # of two networks the points and seeds, of which a run lacks


def test_without_sfda_there_is_nothing_to_compare(folder):
    for seed in SEEDS:
        shutil.rmtree(folder / f"seed{seed}/sfda")
    with pytest.raises(UserError, match="nothing to compare, for sfda, seed 0: not there"):
        make_table(study_of(folder))


def test_runs_are_told_the_table_the_column_and_the_rate():
    rows = ("sfda", "sfda_prior_x2", "sfda_wrong_10", "sfda_rate_x3", "sfda_rate_x0.1", "sfda_patients_4")
    commands, warnings = dry_run("prostate.make", "SIZE=small", *rows)
    assert not warnings
    calls = {call[call.index("--workdir") + 1]: call for call in trainings(commands)}
    told = {row: calls[f"results/prostate/{row}_tmp"] for row in rows}
    losses = {row: call[len(call) - call[::-1].index("--target_losses")] for row, call in told.items()}
    assert "'sizefile':'sizes/prostate_x2.csv'" in losses["sfda_prior_x2"]
    assert "'predcol':'dumbpredwtags_x2'" in losses["sfda_prior_x2"]
    assert "'predcol':'dumbpredwtags_wrong10','sizefile':'results/prostate/wrong_10.csv'" in losses["sfda_wrong_10"]
    rates = {row: float(call[len(call) - call[::-1].index("--l_rate")]) for row, call in told.items()}
    assert rates["sfda_rate_x3"] == pytest.approx(3 * rates["sfda"])
    assert rates["sfda_rate_x0.1"] == pytest.approx(0.1 * rates["sfda"])
    assert losses["sfda_rate_x3"] == losses["sfda"] == losses["sfda_patients_4"]
    few = told["sfda_patients_4"]
    assert few[few.index("--n_target") + 1] == "4"
    assert "size_priors scale --sizes sizes/prostate.csv --column dumbpredwtags --factors 2" in commands
    assert "--without dumbprednotags --percent 10 --draw 0 --out results/prostate/wrong_10.csv" in commands
