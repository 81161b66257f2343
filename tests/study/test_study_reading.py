import json
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_runs import add_selection, make_run, make_set

from metrics import DISTANCES
from processes.errors import UserError
from study.asking import Asked, read_asked, write_asked
from study.reading import open_study
from tests.analysis.test_report import rescore

ROWS, SEEDS = ("noadap", "sfda"), (0, 1)
DICE = {("noadap", 0): (0.5, 0.3), ("noadap", 1): (0.6, 0.4), ("sfda", 0): (0.8, 0.7), ("sfda", 1): (0.9, 0.5)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two rows, two seeds, two patients, and two classes: the second is 0.1 worse in P0 and 0.1 better in P1."""
    root = tmp_path_factory.mktemp("study")
    data = make_set(root / "data/toy", n_patient=2, n_slice=2, size=(16, 16), n_class=3)
    whole = make_run(root / "whole", data, n_epoch=1, n_class=3, pictures=False)
    for (row, seed), (first, second) in DICE.items():
        run = shutil.copytree(whole, root / f"study/seed{seed}" / row)
        with (run / "params.txt").open("a") as file:
            file.write(f"seed: {seed}\n")
        rescore(run, {"P1": {1: second, 2: second + 0.1}, "P0": {1: first, 2: first - 0.1}})
    write_asked(root / "study", Asked("toy", ROWS, SEEDS))
    return root / "study"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "study")


def test_scores_are_patients_by_seeds(made):
    study = open_study(made)
    assert (study.rows, study.seeds, study.faults, study.asked.name) == (ROWS, SEEDS, (), "toy")
    for row in ROWS:
        table = study.scores(row, "dice")
        assert (list(table.index), list(table.columns)) == (["P0", "P1"], [0, 1])
        for seed in SEEDS:
            first, second = DICE[row, seed]
            assert np.allclose(table[seed], [first - 0.05, second + 0.05])
            assert np.allclose(study.scores(row, "dice", classes=[1])[seed], [first, second])
            assert np.allclose(study.scores(row, "hd95", "last", [1])[seed], [10 - 10 * first, 10 - 10 * second])
    assert study.images_of("sfda") == "toy"


def test_the_three_networks_are_told_apart(folder):
    run = folder / "seed1/sfda"
    add_selection(run, "source", last=0)
    scores = {"last": 0.4, "chosen": 0.6, "best_3d": 0.7}
    for which, dice in scores.items():
        rescore(run, {"P0": {1: dice, 2: dice}, "P1": {1: dice, 2: dice}}, [which])
    study = open_study(folder)
    for which, dice in scores.items():
        assert np.allclose(study.scores("sfda", "dice", which)[1], dice)
    assert np.allclose(study.scores("sfda", "dice", "chosen")[0], study.scores("sfda", "dice", "last")[0])


def test_misses_are_counted_and_penalised(folder):
    rescore(folder / "seed0/sfda", {"P0": {1: "miss", 2: 0.5}, "P1": {1: "false structure", 2: "true absence"}})
    study = open_study(folder)
    assert study.scores("sfda", "misses")[0].tolist() == [1, 0]
    assert study.scores("sfda", "false_structures")[0].tolist() == [0, 1]
    assert study.scores("sfda", "dice")[0].tolist() == [0.25, 0]
    assert np.allclose(study.scores("sfda", "hd95")[0], [5, np.nan], equal_nan=True)
    for score in DISTANCES:
        assert np.allclose(study.scores("sfda", f"{score}_penalised")[0], [27.5, 50])


def test_a_run_that_is_not_there_leaves_a_column_of_nothing(folder):
    shutil.rmtree(folder / "seed0/noadap")
    (folder / "seed1/noadap").rename(folder / "seed1/noadap_tmp")
    study = open_study(folder)
    assert study.runs.keys() == {("sfda", 0), ("sfda", 1)}
    assert study.faults == (
        "noadap, seed 0: not there",
        f"noadap, seed 1: not finished; {folder}/seed1/noadap_tmp is there",
    )
    assert study.scores("noadap", "dice").shape == (0, 2)
    shutil.rmtree(folder / "seed0/sfda")
    table = open_study(folder).scores("sfda", "dice")
    assert table[0].isna().all()
    assert table[1].notna().all()


def spoil(run, **facts):
    """A study in which one run is otherwise than the others."""
    path = run / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def retrue(run, which="*", **patients):
    """Rewrites how large the structures of a patient are; with None the patient is lost."""
    for path in run.glob(f"patients_{which}.csv"):
        table = pd.read_csv(path)
        for name, size in patients.items():
            if size is None:
                table = table[table["patient"] != name]
            else:
                table.loc[table["patient"] == name, "true"] = size
        table.to_csv(path, index=False)


def tear(path):
    """Lets a file end within its last line."""
    path.write_text(path.read_text()[: path.read_text().rindex(",")])


FAULTY = {
    "noadap, seed 1: {run}/patients_chosen.csv is missing": lambda run: (
        add_selection(run, "source", last=0) / "patients_chosen.csv"
    ),
    "noadap, seed 1: {run}/3dbestepoch.txt is missing": lambda run: run / "3dbestepoch.txt",
    "val_sizes.npy": lambda run: (run / "val_sizes.npy").write_bytes(b"torn"),
    "provenance.json is missing": lambda run: run / "provenance.json",
    "noadap, seed 1: trained with seed 3, and lies in the folder of seed 1": lambda run: (
        run / "params.txt"
    ).write_text((run / "params.txt").read_text().replace("seed: 1", "seed: 3")),
    "classes_last.csv is missing": lambda run: spoil(run, scores="iou"),
    "left out, as it was not scored on P1, as the other runs were; train it again": lambda run: retrue(run, P1=None),
    "its best_3d network is not scored on the same structures as its last one, as by P1": lambda run: retrue(
        run, "best_3d", P1=None
    ),
    "patients_last.csv cannot be read (ValueError: a line has fewer cells than the first one": lambda run: tear(
        run / "patients_last.csv"
    ),
    "left out, as its ground truth of P0 is not that of the others": lambda run: retrue(run, P0=7),
}


@pytest.mark.parametrize("told", FAULTY)
def test_a_run_that_cannot_be_compared_is_no_part_of_it_and_is_told(folder, told):
    run = folder / "seed1/noadap"
    lost = FAULTY[told](run)
    if hasattr(lost, "unlink"):
        lost.unlink()
    study = open_study(folder)
    (fault,) = study.faults
    assert told.format(run=run) in fault
    assert study.runs.keys() == DICE.keys() - {("noadap", 1)}
    assert study.scores("noadap", "dice")[1].isna().all()


def test_rows_on_other_images_are_compared_with_their_like_alone(folder):
    """The source network is scored on patients of the source."""
    for seed in SEEDS:
        run = folder / f"seed{seed}/noadap"
        spoil(run, dataset={"path": "data/source", "name": "source"})
        rescore(run, {"P7": {1: 0.5, 2: 0.5}})
    study = open_study(folder)
    assert not study.faults
    assert study.patients("noadap") == ["P7"]
    assert study.patients("sfda") == ["P0", "P1"]
    assert study.images_of("noadap") == "source"


@pytest.mark.parametrize(
    ("name", "which", "told"),
    [("dyce", "last", "'dyce'. Did you mean 'dice'"), ("dice", "best", "'best'. Did you mean 'best_3d'")],
)
def test_what_no_study_knows_is_refused(made, name, which, told):
    with pytest.raises(UserError, match="A study knows no") as caught:
        open_study(made).scores("sfda", name, which)
    assert told in str(caught.value)


def test_a_row_that_was_not_asked_for_is_refused(made):
    with pytest.raises(UserError, match="has no row 'sdfa'. Did you mean 'sfda'"):
        open_study(made).scores("sdfa", "dice")


def test_what_was_asked_for_before_is_kept(tmp_path):
    first = write_asked(tmp_path / "new/study", Asked("toy", ROWS, SEEDS))
    path = tmp_path / "new/study/study.json"
    stamp = path.stat().st_mtime_ns
    assert write_asked(path.parent, Asked("toy", ROWS, SEEDS)) == first == read_asked(path.parent)
    assert path.stat().st_mtime_ns == stamp
    second = write_asked(path.parent, Asked("toy", (*ROWS, "tent"), SEEDS))
    assert second.earlier == ({"rows": [*ROWS], "seeds": [*SEEDS]},)
    assert write_asked(path.parent, Asked("toy", (*ROWS, "tent"), SEEDS)) == second == read_asked(path.parent)


@pytest.mark.parametrize(
    ("rows", "seeds", "told"),
    [
        ((), (0,), "at least one row"),
        (("a",), (), "at least one seed"),
        (("a", "a"), (0,), "row a is named twice"),
        (("a",), (1, 1), "seed 1 is named twice"),
        (("a",), (-1,), "at least 0, not -1"),
    ],
)
def test_no_study_is_of_nothing_or_of_one_thing_twice(rows, seeds, told):
    with pytest.raises(UserError, match=told):
        Asked("toy", rows, seeds)


def test_a_folder_that_is_no_study_is_told(tmp_path):
    with pytest.raises(UserError, match="study.json is not there"):
        open_study(tmp_path)
    (tmp_path / "study.json").write_text('{"rows": "sfda"}')
    with pytest.raises(UserError, match="says name: None"):
        open_study(tmp_path)
