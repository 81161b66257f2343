"""A run that chose one of its networks without labels: what is read back of the choice."""

import math

import numpy as np
import pytest
from fake_runs import add_selection, make_run, make_set

from analysis.run import open_run
from processes.errors import UserError
from selection.candidates import Candidate
from selection.choosing import save
from selection.decision import Choice


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("selection") / "data/toy", n_patient=2, n_slice=2, size=(16, 16))


@pytest.fixture
def run(data, tmp_path):
    """A run of six epochs."""
    return make_run(tmp_path / "sfda", data, n_epoch=6, pictures=False)


def test_what_a_choice_wrote_down_is_read_back(run):
    candidates = [Candidate(*each, dict) for each in (("source", 0), ("refresh", 0), ("epoch 5", 5), ("epoch 6", 6))]
    scores = {"cmr_nhd": np.array([0.5, 0.25, 0.75, -1]), "sdc": np.array([math.nan, 1, 2, 3])}
    choice = Choice(2, "Chosen without labels: epoch 5.", ["", "", "", "=2, times"], scores, {"sdc": 3, "cmr_nhd": 2})
    save(run, choice, candidates, {"net": {}})
    read = open_run(run).selection
    assert (read.chosen.name, read.chosen.epoch, read.reason) == ("epoch 5", 5, choice.reason)
    assert [(one.name, one.epoch, one.gate) for one in read.candidates] == [
        *(("source", 0, ""), ("refresh", 0, ""), ("epoch 5", 5, ""), ("epoch 6", 6, "=2, times"))
    ]
    assert read.validators == ["cmr_nhd", "sdc"]
    for name, expected in scores.items():
        assert np.array_equal([one.scores[name] for one in read.candidates], expected, equal_nan=True)


@pytest.mark.parametrize(("chosen", "epoch"), [("source", -1), ("refresh", -1), ("epoch 4", 3), ("epoch 6", 5)])
def test_the_epoch_of_the_chosen_network_counts_as_the_log_does(run, chosen, epoch):
    read = open_run(add_selection(run, chosen, every=2))
    assert [read.epoch(which) for which in ("last", "chosen", "best_3d")] == [5, epoch, 5]


def test_where_nothing_was_chosen_the_last_network_stands_for_it(run):
    read = open_run(run)
    assert read.selection is None
    assert read.epoch("chosen") == read.epoch("last") == 5
    assert read.patients("chosen") == read.patients("last")


def test_scores_of_the_chosen_network_are_its_own(run):
    table = add_selection(run, "source") / "patients_chosen.csv"
    table.write_text(table.read_text().replace("Case00", "Other"))
    read = open_run(run)
    assert {row["patient"] for row in read.patients("chosen")} == {"Other", "Case01"}
    assert {row["patient"] for row in read.patients("last")} == {"Case00", "Case01"}
    table.unlink()
    with pytest.raises(UserError, match="patients_chosen.csv is missing"):
        read.patients("chosen")


def test_a_network_before_the_first_epoch_has_no_marks_of_an_epoch(run):
    """Of the last epoch, which has all these marks, an index of -1 would tell them."""
    sizes = np.load(run / "val_sizes.npy")
    sizes[-1] = [256, 0]
    np.save(run / "val_sizes.npy", sizes)
    assert open_run(run).only_class("last") == 0
    assert open_run(add_selection(run, "source")).only_class("chosen") is None
    assert open_run(add_selection(run, "epoch 6")).only_class("chosen") == 0


SPOILT = [
    (lambda text: "", "expected a row a candidate"),
    (lambda text: text.replace("gate", "door"), "expected a row a candidate"),
    (lambda text: text.splitlines()[0], "expected a row a candidate"),
    (lambda text: text.replace("epoch 4,4,1", "epoch 4,4,0"), "0 of its candidates are chosen"),
    (lambda text: text.replace("epoch 2,2,0", "epoch 2,2,1"), "2 of its candidates are chosen"),
    (lambda text: text.replace("epoch 2,2,0", "epoch 2,-2,0"), "has -2 epochs behind it"),
    (lambda text: text.replace("epoch 2,2,0", "epoch 2,two,0"), "invalid literal"),
    (lambda text: text.rsplit(",", 1)[0], "not as many cells"),
    (lambda text: text.rstrip() + ",more", "not as many cells"),
    (lambda text: text.replace("epoch 4,4,1", "epoch 9,9,1"), "names epoch 8, and the log has 0..5"),
]


@pytest.mark.parametrize(("spoil", "match"), SPOILT)
def test_a_broken_table_of_candidates_is_named(run, spoil, match):
    path = add_selection(run, "epoch 4", every=2) / "selection.csv"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=f"selection.csv .*{match}.*train the run again"):
        open_run(run).epoch("chosen")


def test_a_choice_without_its_reason_is_named(run):
    (add_selection(run, "epoch 4") / "selection.txt").unlink()
    with pytest.raises(UserError, match="selection.txt is missing"):
        open_run(run).epoch("chosen")
