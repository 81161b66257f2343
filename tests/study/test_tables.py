"""The tables of a study by hand: six patients, three seeds, one class."""

import csv
import json
import shutil

import numpy as np
import pytest
from fake_runs import add_selection, make_run, make_set
from scipy.stats import t

from analysis.run import open_run
from processes.errors import UserError
from study import report
from study.__main__ import main
from study.asking import Asked, write_asked
from study.reading import open_study
from study.report import is_reported, make_tables, write_report
from study.tables.costs import starts_of
from tests.analysis.test_report import rescore

ROWS, SEEDS = ("cesource", "noadap", "sfda", "tent", "fs"), (0, 1, 2)
PATIENTS = [f"P{n}" for n in range(6)]
OF_PATIENT = np.array([0.00, 0.02, 0.04, 0.01, 0.03, 0.02])
OF_SEED = np.array([-0.02, 0.0, 0.02])
GAIN = {"noadap": 0.0, "sfda": 0.2, "tent": -0.1, "fs": 0.4}  # of every patient and seed, and so without a spread


def dice(row, seed):
    """(6,) of the patients."""
    return 0.5 + GAIN.get(row, 0) + OF_PATIENT + OF_SEED[seed]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    data = make_set(root / "data/target", n_patient=6, n_slice=1, size=(16, 16))
    source = make_set(root / "data/source", n_patient=2, n_slice=1, size=(16, 16))
    of_target, of_source = (make_run(root / each.name, each, n_epoch=3, pictures=False) for each in (data, source))
    for seed in SEEDS:
        for row in ROWS:
            run = shutil.copytree(of_source if row == "cesource" else of_target, root / f"study/seed{seed}" / row)
            with (run / "params.txt").open("a") as file:
                start = "" if row in ("cesource", "fs") else f"{run.parent}/cesource/best_3d.pkl"
                file.write(f"seed: {seed}\nmodel_weights: {start}\n")
            if row != "cesource":
                score(run, dice(row, seed))
    write_asked(root / "study", Asked("toy", ROWS, SEEDS))
    return root / "study"


@pytest.fixture(scope="module")
def tables(made):
    return make_tables(open_study(made))


def score(run, values, which=("last", "best_3d")):
    rescore(run, {patient: {1: value} for patient, value in zip(PATIENTS, values, strict=True)}, which)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def cells(table, row, block=0):
    """Heading -> cell of a row of one of the blocks."""
    (line,) = [line for line in table.blocks[block][1] if line[0] == row]
    return dict(zip(table.header, line, strict=True))


def block_of(table, word):
    return next(n for n, (heading, _) in enumerate(table.blocks) if word in heading)


def find(table, **wanted):
    """The line of the csv with these cells."""
    (line,) = [line for line in table.lines if all(line[key] == value for key, value in wanted.items())]
    return line


def test_the_headline_is_the_mean_over_patients_and_seeds(tables):
    table = tables["headline"]
    line = find(table, row="sfda", network="chosen", score="dice", **{"class": "mean"})
    assert line["mean"] == pytest.approx(0.72)
    # patients and seeds add up without a rest: its variance is that of the patients over 6 and that of the seeds over 3
    assert line["se"] == pytest.approx(np.sqrt(OF_PATIENT.var(ddof=1) / 6 + OF_SEED.var(ddof=1) / 3))
    assert line["high"] - line["mean"] == pytest.approx(t.ppf(0.975, line["df"]) * line["se"])
    assert (line["patients"], line["seeds"], line["left_out"]) == (6, 3, 0)
    assert (line["lowest_seed"], line["highest_seed"]) == (pytest.approx(0.7), pytest.approx(0.74))
    target = block_of(table, "target")
    assert table.blocks[target][0] == "target: 6 patients, 3 seeds"
    assert cells(table, "sfda", target)["Dice, last epoch"].startswith("0.720 (0.6")
    assert cells(table, "sfda", target)["lowest, highest seed"] == "0.700, 0.740"
    assert "Dice, chosen" not in table.header  # nothing was chosen
    assert "HD95 penalised" not in table.header  # nothing was missed


def test_the_gap_is_a_ratio_of_means(tables):
    table = tables["headline"]
    target = block_of(table, "target")
    found = {row: cells(table, row, target)["gap closed"].split(" (")[0] for row in GAIN}
    assert found == {"noadap": "0 %", "sfda": "50 %", "tent": "-25 %", "fs": "100 %"}
    assert cells(table, "cesource", block_of(table, "source"))["gap closed"] == "–"


def test_a_row_that_is_worse_than_the_network_as_it_came_is_marked(tables):
    table = tables["headline"]
    assert cells(table, "tent", block_of(table, "target"))["marks"] == "worse than noadap"
    assert cells(table, "sfda", block_of(table, "target"))["marks"] == ""


def test_the_three_networks_stand_beside_each_other(folder):
    for seed in SEEDS:
        run = add_selection(folder / f"seed{seed}/sfda", "epoch 2")
        score(run, dice("sfda", seed) - 0.3, ["last"])
        score(run, dice("sfda", seed) + 0.1, ["best_3d"])
    table = make_tables(open_study(folder))["headline"]
    row = cells(table, "sfda", block_of(table, "target"))
    found = [row[f"Dice, {which}"].split(" ")[0] for which in ("last epoch", "chosen", "oracle")]
    assert found == ["0.420", "0.720", "0.820"]
    assert any("Chosen without labels" in note for note in table.notes)


def test_rows_are_tested_against_each_reference_and_corrected(tables):
    table = tables["comparisons"]
    sfda = find(table, row="sfda", reference="noadap")
    assert sfda["difference_mean"] == pytest.approx(0.2)
    # all six patients gain, which 2 of the 64 ways to give signs do
    assert (sfda["sign_flip"], sfda["smallest_p"]) == (2 / 64, 2 / 64)
    assert sfda["p_holm"] == pytest.approx(3 * 2 / 64)  # sfda, tent and fs are the family
    assert (sfda["better"], sfda["worse"]) == (6, 0)
    assert sfda["probability_better_mean"] == 1
    assert sfda["hd95_penalised_difference_mean"] == pytest.approx(-2)  # rescore: 10 (1 - Dice)
    blocks = [heading for heading, _ in table.blocks]
    assert blocks == ["Against noadap: target, a family of 3 tests", "Against sfda: target, a family of 3 tests"]
    assert cells(table, "tent", 1)["better : worse"] == "0 : 6"
    assert not any("no difference, however large" in warning for warning in table.warnings)


def test_without_a_reference_rows_are_compared_with_the_first(folder):
    write_asked(folder, Asked("toy", ("fs", "tent"), SEEDS))
    table = make_tables(open_study(folder))["comparisons"]
    assert [heading for heading, _ in table.blocks] == ["Against fs: target, a family of 1 test"]
    assert any("Asked for otherwise before in this folder: cesource, noadap" in note for note in table.notes)


def test_so_few_patients_that_no_test_can_succeed_are_told(folder):
    for run in folder.glob("seed*/*"):
        if run.name != "cesource":
            rescore(run, {"P0": {1: 0.5}, "P1": {1: 0.6}, "P2": {1: 0.7}})
    warnings = make_tables(open_study(folder))["comparisons"].warnings
    assert warnings[0].startswith("3 patients: the smallest p that a test can come to is 0.25")


def test_ranks_are_those_of_the_gains(tables):
    table = tables["ranks"]
    first = {line[0]: line[1] for line in table.blocks[0][1]}
    assert first == {"fs": "1 (1 to 1)", "sfda": "2 (2 to 2)", "noadap": "3 (3 to 3)", "tent": "4 (4 to 4)"}
    assert cells(table, "tent")["among 3"] == "0 %"
    assert "Ranked on what every row has a score of: target: 6 patients, 3 seeds." in table.notes


def test_ranks_say_on_how_few_they_rest(folder):
    shutil.rmtree(folder / "seed2/sfda")
    table = make_tables(open_study(folder))["ranks"]
    assert any(note.endswith("target: 6 patients, 2 seeds.") for note in table.notes)


def test_a_seed_that_found_nothing_has_no_distance_and_the_cell_says_so(folder):
    rescore(folder / "seed2/sfda", {patient: {1: "miss"} for patient in PATIENTS})
    table = make_tables(open_study(folder))["headline"]
    row = cells(table, "sfda", block_of(table, "target"))
    assert row["HD95 (mm)"].endswith(" (2 of 3 seeds)")
    assert "seeds" not in row["Dice, last epoch"] + row["HD95 penalised"]
    assert "seeds" not in cells(table, "tent", block_of(table, "target"))["HD95 (mm)"]


def test_failures_name_patients_and_count_what_is_missed(folder):
    run = folder / "seed1/sfda"
    values = dice("sfda", 1)
    values[4] = 0.1  # 0.53 without adaptation
    score(run, values)
    rescore(
        folder / "seed2/sfda",
        {p: {1: v if p != "P0" else "miss"} for p, v in zip(PATIENTS, dice("sfda", 2), strict=True)},
    )
    tables = make_tables(open_study(folder))
    assert "HD95 penalised" in tables["headline"].header
    table = tables["failures"]
    row = cells(table, "sfda", block_of(table, "target"))
    assert row["worst patients"].startswith("P0 0.46")  # (0.68 + 0.7 + 0) / 3
    assert "P4 0.520 (0.100)" in row["worst patients"]
    assert (row["missed"], row["false"]) == ("1", "0")
    assert row["harmed"] == "2 of 18"
    assert row["most harmed"] == "P0 -0.040, P4 -0.010"
    worst = find(table, row="sfda", patient="P0")
    assert (worst["harmed_seeds"], worst["misses"]) == (1, 1)
    tent = cells(table, "tent", block_of(table, "target"))
    assert tent["harmed"] == "18 of 18"


def test_cost_is_the_mean_over_seeds_and_tells_what_rows_start_from(folder):
    for seed in SEEDS:
        told = {"seconds": 60.0 * (seed + 1), "updates": 40, "memory_mib": 2048.0, "gpu_memory_mib": None}
        (folder / f"seed{seed}/sfda/cost.json").write_text(json.dumps(told | {"energy_joules": 7200.0}))
    (folder / "seed1/tent/cost.json").write_text('{"seconds": 60, "memory_mib": 1024}')
    table = make_tables(open_study(folder))["cost"]
    assert cells(table, "sfda")["minutes"] == "2.0"
    assert cells(table, "sfda")["energy (Wh)"] == "2.0"
    assert cells(table, "sfda")["memory (GiB)"] == "2.00"
    assert cells(table, "sfda")["GPU memory (GiB)"] == cells(table, "tent")["memory (GiB)"] == "–"
    assert find(table, row="fs")["seconds"] == pytest.approx(4.5)  # of a run of before: its three epochs
    write_asked(folder, Asked("toy", ("noadap", "sfda"), SEEDS))
    study = open_study(folder)
    assert {name: len(runs) for name, runs in starts_of(study).items()} == {"cesource": 3}
    assert cells(make_tables(study)["cost"], "cesource", 1)["runs"] == "3"


# ------------------------------------------------------------------------------------------------ what is missing


def test_what_is_missing_stands_above_every_table_and_beside_its_row(folder):
    shutil.rmtree(folder / "seed1/sfda")
    tables = make_tables(open_study(folder))
    for name, table in tables.items():
        assert any("1 of 15 runs are missing or left out" in warning for warning in table.warnings), name
        assert "sfda, seed 1: not there" in table.warnings, name
    assert "2 of 3 seeds" in cells(tables["headline"], "sfda", block_of(tables["headline"], "target"))["marks"]
    assert "(2 of 3 seeds)" in cells(tables["comparisons"], "sfda")["difference"]
    assert find(tables["comparisons"], row="sfda", reference="noadap")["difference_seeds"] == 2


def test_many_faults_leave_room_for_the_table(folder):
    for run in folder.glob("seed*/*"):
        if run.name != "noadap":
            shutil.rmtree(run)
    warnings = make_tables(open_study(folder))["headline"].warnings
    assert warnings[-1] == "… (2 more)"
    assert len(warnings) == 12


def test_one_patient_and_one_seed_have_no_interval_and_say_so(folder):
    for run in folder.glob("seed*/*"):
        if run.name != "cesource":
            rescore(run, {"P0": {1: 0.5}})
    write_asked(folder, Asked("toy", ROWS[1:], (0,)))
    tables = make_tables(open_study(folder))
    assert cells(tables["headline"], "sfda")["Dice, last epoch"] == "0.500"
    assert cells(tables["comparisons"], "sfda")["p"] == "–"
    for word in ("One patient: no interval and no test", "One seed: intervals and tests are about other patients"):
        assert any(word in warning for warning in tables["headline"].warnings)


def test_a_study_without_a_run_has_no_table(folder):
    for seed in SEEDS:
        shutil.rmtree(folder / f"seed{seed}")
    with pytest.raises(UserError, match="has no finished run: cesource, seed 0: not there"):
        make_tables(open_study(folder))


def test_a_study_scored_by_iou_compares_seeds_alone(tmp_path):
    data = make_set(tmp_path / "street", n_patient=2, n_slice=1, size=(16, 16), n_class=3)
    for seed in (0, 1):
        for row, quality in (("noadap", 0.4), ("fs", 1.0)):
            more = {"scores": "iou", "class_names": ["a", "b", "c"]}
            folder = tmp_path / f"study/seed{seed}" / row
            make_run(folder, data, quality, n_epoch=1, n_class=3, pictures=False, **more)
    write_asked(tmp_path / "study", Asked("street", ("noadap", "fs"), (0, 1)))
    study = open_study(tmp_path / "study")
    assert not study.faults
    run = open_run(tmp_path / "study/seed0/noadap")
    mean = np.nanmean([line["iou"] for line in run.classes("last") if line["class"] in (1, 2)])
    assert study.scores("noadap", "iou").to_numpy() == pytest.approx(np.full((1, 2), mean))
    tables = make_tables(study)
    assert cells(tables["headline"], "fs")["IoU, last epoch"] == "1.000"
    assert "HD95 penalised" not in tables["headline"].header
    write_report(study)


# ------------------------------------------------------------------------------------------------ files


def test_files_hold_the_tables_and_every_score(folder, capsys):
    main(["report", "--folder", str(folder)])
    said = capsys.readouterr().out
    assert "Study of toy" in said
    assert f"{folder}/cost.txt" in said
    assert "The calibration lacks 15 runs: cesource, seed 0: not evaluated" in said
    for name in ("headline", "comparisons", "ranks", "failures", "cost"):
        for suffix in ("txt", "csv", "md", "tex"):
            assert (folder / f"{name}.{suffix}").stat().st_size > 100
    with (folder / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 3 * (4 * 6 + 2)  # seeds, networks, and patients of four rows and of the source
    found = [line for line in lines if (line["row"], line["seed"], line["network"]) == ("tent", "2", "chosen")]
    assert [float(line["dice"]) for line in found] == pytest.approx(dice("tent", 2))


def test_a_report_is_made_once_and_again_when_something_changed(folder, capsys):
    write_asked(folder, Asked("toy", ("noadap", "sfda"), (0, 1)))
    main(["report", "--folder", str(folder)])
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    main(["report", "--folder", str(folder)])
    assert "nothing has changed since" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert is_reported(folder)
    score(folder / "seed0/sfda", dice("sfda", 0) + 0.01)
    assert not is_reported(folder)
    main(["report", "--folder", str(folder)])
    assert is_reported(folder)
    (folder / "ranks.md").unlink()
    assert not is_reported(folder)


def test_tables_of_rows_that_were_asked_for_before_do_not_stay(folder):
    main(["report", "--folder", str(folder)])
    others = {path: path.read_bytes() for path in folder.glob("seed*/*/*.csv")}
    (folder / "comparisons_mine.txt").write_text("a note of somebody")
    write_asked(folder, Asked("toy", ("sfda",), SEEDS))
    main(["report", "--folder", str(folder)])
    assert not [*folder.glob("comparisons.*"), *folder.glob("ranks.*")]
    assert (folder / "headline.txt").is_file()
    assert (folder / "comparisons_mine.txt").is_file()
    assert {path: path.read_bytes() for path in folder.glob("seed*/*/*.csv")} == others


def test_the_same_runs_give_the_same_bytes(folder, tmp_path):
    write_asked(folder, Asked("toy", ("noadap", "sfda"), SEEDS))
    copy = shutil.copytree(folder, tmp_path / "other/study")
    for each in (folder, copy):
        write_report(open_study(each))
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name not in (report.NOTE, report.PAGE)]
    assert len(names) > 20
    assert not [name for name in names if (folder / name).read_bytes() != (copy / name).read_bytes()]


def test_a_report_that_lacks_a_run_is_written_and_ends_with_what_it_lacks(folder):
    write_asked(folder, Asked("toy", ("noadap", "sfda"), SEEDS))
    shutil.rmtree(folder / "seed1/sfda")
    for _ in range(2):
        with pytest.raises(UserError, match=r"lacks, 1 run: sfda, seed 1: not there\. The same command makes"):
            main(["report", "--folder", str(folder)])
        assert (folder / "headline.txt").is_file()
