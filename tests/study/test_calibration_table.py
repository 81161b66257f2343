"""The table of calibration of a study, and the reliability diagrams of single runs."""

import shutil

import numpy as np
import pytest
from fake_runs import add_calibration, add_selection, make_run, make_set

from processes.errors import UserError
from study.asking import Asked, write_asked
from study.calibration import band_words, calibration_cells, calibration_table, without_calibration
from study.reading import open_study
from tests.analysis.test_plot import assert_drawn, draw

ECE = {("noadap", 0): 0.04, ("noadap", 1): 0.06, ("sfda", 0): 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of two rows and two seeds, of which all but one run are evaluated; sfda chose an epoch."""
    root = tmp_path_factory.mktemp("calibration")
    data = make_set(root / "data/toy", n_patient=2, n_slice=2, size=(16, 16), n_class=3)
    for seed in (0, 1):
        for row in ("noadap", "sfda"):
            names = ["background", "cortex", "core"]
            run = make_run(root / f"study/seed{seed}" / row, data, n_class=3, pictures=False, class_names=names)
            if row == "sfda":
                add_selection(run, "epoch 2")
            if ece := ECE.get((row, seed)):
                networks = {"last": ece} if row == "noadap" else {"last": ece + 0.1, "chosen": ece}
                tempered = {f"{which}, tempered": error / 4 for which, error in networks.items()}
                add_calibration(run, networks | tempered, classes=(1, 2))
    write_asked(root / "study", Asked("toy", ("noadap", "sfda"), (0, 1)))
    return root / "study"


def test_the_table_holds_means_over_seeds_before_and_after_adaptation(folder):
    table = calibration_table(open_study(folder))
    assert table["row"].drop_duplicates().tolist() == ["noadap", "sfda"]
    of = table.set_index(["row", "which", "class", "region"])
    before, after = of.loc["noadap", "last", 1, "band"], of.loc["sfda", "chosen", 1, "band"]
    assert (before["cw_ece"], before["seeds"]) == (pytest.approx(0.05), 2)
    assert before["cw_ece_sd"] == pytest.approx(np.std([0.04, 0.06], ddof=1))
    assert (after["cw_ece"], after["seeds"]) == (pytest.approx(0.2), 1)
    assert np.isnan(after["cw_ece_sd"])
    assert of.loc["sfda", "last, tempered", 2, "image"]["nll"] == pytest.approx(0.3 / 4 / 2)


def test_its_words_are_of_the_network_that_counts_and_of_it_tempered(folder):
    study = open_study(folder)
    header, rows = calibration_cells(study)
    assert header[:5] == ["row", "network", "class", "region", "seeds"]
    assert [row[:5] for row in rows if row[3] == "band"] == [
        ["noadap", "last", "cortex", "band", "2"],
        ["noadap", "last", "core", "band", "2"],
        ["noadap", "last, tempered", "cortex", "band", "2"],
        ["noadap", "last, tempered", "core", "band", "2"],
        ["sfda", "chosen", "cortex", "band", "1"],
        ["sfda", "chosen", "core", "band", "1"],
        ["sfda", "chosen, tempered", "cortex", "band", "1"],
        ["sfda", "chosen, tempered", "core", "band", "1"],
    ]
    cells = {(row[0], row[1], row[3]): row[header.index("cw_ece")] for row in rows}
    assert cells["noadap", "last", "band"] == "0.050 ± 0.014"
    assert cells["sfda", "chosen", "image"] == "0.100"
    assert band_words(study) == "5 mm"
    (missing,) = without_calibration(study)
    assert missing.startswith("sfda, seed 1: not evaluated")


def test_a_broken_evaluation_stops_no_table(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "study")
    (copied / "seed0/evaluated/sfda/evaluated.json").write_text("{}")
    (copied / "seed1/evaluated/noadap/calibration.csv").write_text("which,patient\nlast,all\n")
    study = open_study(copied)
    table = calibration_table(study)
    assert (set(table["row"]), set(table["seeds"])) == ({"noadap"}, {1})
    told = " ".join(without_calibration(study))
    for words in (
        "noadap, seed 1: ",
        "sfda, seed 1: not evaluated",
        "does not tell the unit of the band, mm or pixels",
    ):
        assert words in told


def test_a_study_that_nobody_evaluated_has_an_empty_table(tmp_path):
    data = make_set(tmp_path / "data/toy", n_patient=2, n_slice=2, size=(16, 16))
    make_run(tmp_path / "study/seed0/noadap", data, n_epoch=1, pictures=False)
    write_asked(tmp_path / "study", Asked("toy", ("noadap",), (0,)))
    study = open_study(tmp_path / "study")
    assert calibration_table(study).empty
    assert calibration_cells(study)[1] == []
    assert len(without_calibration(study)) == 1


def test_reliability_diagrams_are_drawn(folder, tmp_path):
    runs = [folder / "seed0/noadap", folder / "seed0/sfda"]
    assert_drawn(draw("reliability", tmp_path / "out.png", "--runs", *runs))
    other = draw("reliability", tmp_path / "image.png", "--runs", *runs, "--region", "image", "--which", "last")
    assert_drawn(other)
    with pytest.raises(UserError, match="shows the last and the chosen network"):
        draw("reliability", tmp_path / "best.png", "--runs", *runs, "--which", "best_3d")
    with pytest.raises(UserError, match=r"evaluate the run \(again\): python -m study.evaluate --run"):
        draw("reliability", tmp_path / "none.png", "--runs", folder / "seed1/sfda")
