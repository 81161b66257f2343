"""A run that chose one of its networks without labels: what is read back of the choice."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_runs import add_columns, add_selection, make_run, make_set, save_png
from matplotlib.figure import Figure

from analysis.plots.canvas import network_words
from analysis.plots.pictures import has_entropy_of
from analysis.plots.selection import (
    FARTHEST,
    TRUSTED,
    draw_revealed,
    draw_validator,
    places_of,
    score_of,
    standardised,
    trusted,
)
from analysis.run import open_run
from analysis.selection import Candidate as Read
from analysis.selection import Selection
from files.run_names import LABELLED
from processes.errors import UserError
from report import main as report
from selection.candidates import Candidate
from selection.choosing import save
from selection.decision import Choice
from tests.analysis.test_plot import assert_drawn, draw, is_red
from tests.analysis.test_report import rescore, simple, write_classes


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


# -------------------------------------------------------------------------------------------------- reports

LAST, CHOSEN, ORACLE = (0.3, 0.4), (0.5, 0.6), (0.7, 0.8)


@pytest.fixture
def compared(data, tmp_path):
    """noadap, and a run whose last network is worse than it, whose chosen one is not."""
    for name, n_epoch in (("noadap", 1), ("sfda", 6)):
        make_run(tmp_path / "toy" / name, data, n_epoch=n_epoch, n_class=3, pictures=False)
    rescore(tmp_path / "toy/noadap", simple(0.4, 0.5))
    sfda = add_selection(tmp_path / "toy/sfda", "epoch 4", {"epoch 6": "class 1 has fallen to pieces"}, every=2)
    for which, dice in (("last", LAST), ("chosen", CHOSEN), ("best_3d", ORACLE)):
        rescore(sfda, simple(*dice), files=[which])
    (sfda / "3dbestepoch.txt").write_text("2, 0.75\n")
    return [tmp_path / "toy/noadap", sfda]


def written(runs, out, *flags):
    """The table as text, and the lines of the csv by (run, which network, class)."""
    report(["--runs", *map(str, runs), "--out", str(out / "report"), *flags])
    with (out / "report.csv").open() as file:
        lines = {(row["run"], row["chosen"], row["class"]): row for row in csv.DictReader(file)}
    return (out / "report.txt").read_text(), lines


def rows_of(text, name):
    return [re.split(r"  +", line) for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_three_networks_stand_side_by_side_and_the_chosen_one_is_the_headline(compared, tmp_path):
    text, lines = written(compared, tmp_path / "out")
    spread = "± 0.071"
    assert rows_of(text, "sfda")[0] == ["sfda", f"0.350 {spread}", f"0.550 {spread}", f"0.750 {spread}", "epoch 4"]
    assert rows_of(text, "noadap")[0][1:] == [f"0.450 {spread}"] * 3 + ["last epoch"]
    assert text.index("Last epoch (") < text.index("Headline: chosen without labels") < text.index("Oracle: best epoch")
    assert [row[2] for row in rows_of(text, "sfda")[1:]] == ["6/6", "4/6", "3/6"]
    assert [float(lines["sfda", which, "mean"]["dice_mean"]) for which in ("last", "chosen", "best_3d")] == (
        pytest.approx([0.35, 0.55, 0.75])
    )
    assert [lines["sfda", which, "mean"]["epoch"] for which in ("last", "chosen", "best_3d")] == ["5", "3", "2"]
    assert [lines["sfda", which, "mean"]["candidate"] for which in ("last", "chosen")] == ["", "epoch 4"]
    assert "Worst patient, chosen network: noadap P0 0.400; sfda P0 0.500." in text
    for words in ("Last epoch: ", "Chosen without labels: ", "Oracle: the epoch that scores best here; it reads"):
        assert f"- {words}" in text
    assert "stands there with its last epoch" in text
    only, _ = written(compared[1:], tmp_path / "only")
    assert "stands there with its last epoch" not in only
    assert "can lie above it" not in only
    assert "**0.550 ± 0.071**" in (tmp_path / "out/report.md").read_text()
    assert r"\textbf{0.550 $\pm$ 0.071}" in (tmp_path / "out/report.tex").read_text()


def test_harm_of_the_chosen_network_is_marked(compared, tmp_path):
    """The last network did harm and was not kept: the headline has no mark. Then the chosen one has it."""
    text, lines = written(compared, tmp_path / "out")
    assert [row[-1] for row in rows_of(text, "sfda")[1:]] == ["worse than noadap", "0", "0"]
    assert [lines["sfda", which, "mean"]["worse_than"] for which in ("last", "chosen")] == ["noadap", ""]
    rescore(compared[1], simple(0.3, 0.5), files=["chosen"])
    text, lines = written(compared, tmp_path / "out")
    assert [row[-1] for row in rows_of(text, "sfda")[:3]] == ["worse than noadap"] * 3
    assert lines["sfda", "chosen", "mean"]["worse_than"] == "noadap"


def test_a_run_that_stayed_with_its_source_says_so(compared, tmp_path):
    text, lines = written([compared[0], add_selection(compared[1], "source")], tmp_path / "out")
    summary, _, chosen, _ = rows_of(text, "sfda")
    assert (summary[4], chosen[2]) == ("source", "source")
    assert "a network from before the first can lie above it" in " ".join(text.split())
    assert (lines["sfda", "chosen", "mean"]["epoch"], lines["sfda", "chosen", "mean"]["candidate"]) == ("-1", "source")


def test_the_test_between_runs_is_of_the_chosen_networks(compared, tmp_path):
    rescore(compared[0], simple(*(0.1 * n for n in range(7))))
    rescore(compared[1], simple(*(0.1 * n + 0.2 for n in range(7))), files=["chosen"])
    rescore(compared[1], simple(*(0.1 * n - 0.05 for n in range(7))), files=["last"])
    text = " ".join(written(compared, tmp_path / "out")[0].split())
    assert "Patients on whom sfda is better:worse in the chosen network" in text
    assert "against noadap 7:0, p = 0.016" in text


def test_without_a_choice_there_is_no_word_of_one(compared, tmp_path):
    (compared[1] / "selection.csv").unlink()
    text, _ = written(compared, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert not re.search("chosen without|candidate|Headline|Oracle|[*]{2}0", path.read_text()), path
    assert len(rows_of(text, "sfda")) == 2


def test_draws_with_a_choice(compared, tmp_path):
    """The mean over draws of the chosen networks, which may be of other kinds; paired by draw on these."""
    draws = [tmp_path / f"{name}_1_{number}" for name in ("tent", "sfda") for number in (0, 1)]
    for number, folder in enumerate(draws):
        shutil.copytree(compared[1], folder)
        rescore(folder, simple(0.2 + 0.1 * number, 0.2 + 0.1 * number), files=["chosen"])
    add_selection(draws[1], "source")
    rescore(draws[1], simple(0.3, 0.3), files=["chosen"])
    text, lines = written(draws, tmp_path / "out", "--draws", r"_\d+$")
    assert rows_of(text, "tent_1")[0] == [
        *("tent_1", "0.350 ± 0.000", "0.250 ± 0.071", "0.750 ± 0.000", "epoch 4 / source")
    ]
    assert rows_of(text, "tent_1")[2][4] == "0.20 / 0.30"
    assert "mean Dice of the chosen network is better:worse" in text
    assert "sfda_1 than tent_1 2:0" in text
    assert {row["candidate"] for row in lines.values()} == {"", "epoch 4 / source", "epoch 4"}


def test_pictures_with_a_choice(data, tmp_path):
    facts = {"scores": "iou", "metric_axis": [0, 1, 2], "class_names": ["road", "traffic light", "train"]}
    run = make_run(tmp_path / "adapt", data, n_epoch=3, n_class=3, pictures=False, **facts)
    add_selection(run, "refresh")
    for which, light in (("last", 20), ("chosen", 60), ("best_3d", 70)):
        write_classes(run, which, light)
    text, lines = written([run], tmp_path / "out")
    assert rows_of(text, "adapt")[0] == ["adapt", "55.0", "75.0", "80.0", "refresh"]
    assert rows_of(text, "adapt")[2][2] == "refresh"
    assert lines["adapt", "chosen", "mean"]["candidate"] == "refresh"


def test_without_ground_truth_the_choice_and_its_reason_are_all_there_is(data, tmp_path):
    runs = [make_run(tmp_path / name, data, n_epoch=3, pictures=False, scored=False) for name in ("kept", "none")]
    add_selection(runs[0], "epoch 2")
    report(["--runs", *map(str, runs), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report.txt").read_text()
    assert rows_of(text, "kept")[0][-1] == "epoch 2"
    assert "- kept: Chosen without labels: epoch 2, as it ranks highest." in text
    assert "run,set,candidate,supervision" in (tmp_path / "report.csv").read_text()
    report(["--runs", str(runs[1]), "--out", str(tmp_path / "report")])
    assert "chosen" not in (tmp_path / "report.txt").read_text()
    assert "candidate" not in (tmp_path / "report.csv").read_text()


def let_labels_choose(run, *patients):
    """Lets the choice of a made-up run have been made with the labels of these patients."""
    table = pd.read_csv(run / "selection.csv", keep_default_na=False)
    table.insert(4, LABELLED, np.linspace(0, 1, len(table)))
    table.assign(labelled=json.dumps(patients)).to_csv(run / "selection.csv", index=False)


def test_what_labels_chose_stands_apart_from_what_was_chosen_without(compared, tmp_path):
    more = shutil.copytree(compared[1], tmp_path / "toy/tent")
    let_labels_choose(compared[1], "P0", "P1")
    assert open_run(compared[1]).selection.labelled == ("P0", "P1")
    only = written(compared, tmp_path / "only")[0]
    assert "hosen without labels" not in only
    assert "Headline: chosen with 2 labelled patients" in only
    text, _ = written([*compared, more], tmp_path / "both")
    assert "Headline: chosen without labels or with 2 labelled patients" in text
    assert rows_of(text, "sfda")[0][4] == "epoch 4, with 2 labelled patients"
    assert rows_of(text, "tent")[0][4] == "epoch 4"
    assert [row[-1] for row in rows_of(text, "sfda")[1:]] == ["worse than noadap", "2 labelled patients", "0"]
    assert "labelled patient" not in "".join(map(str, rows_of(text, "tent")))
    for words in (
        "- Chosen without labels: ",
        "- Chosen with labelled patients (--select_with): ",
        "- Labelled patients: ",
    ):
        assert words in text


@pytest.mark.parametrize("cell", ["{}", "[1]", "P0", '["P0"'])
def test_a_broken_list_of_the_patients_who_chose_is_named(run, cell):
    let_labels_choose(add_selection(run, "epoch 4"))
    table = pd.read_csv(run / "selection.csv", keep_default_na=False)
    table.assign(labelled=cell).to_csv(run / "selection.csv", index=False)
    with pytest.raises(UserError, match=r"selection.csv .*train the run again"):
        open_run(run).epoch("chosen")


# ------------------------------------------------------------------------------------------------- pictures


def selection_of(held=(), **scores):
    """Validator -> a score of each of the candidates, the first of which is chosen; held: the places of some."""
    count = len(next(iter(scores.values())))
    made = [
        Read(
            f"epoch {n + 1}",
            n + 1,
            "flooded" if n in held else "",
            {name: values[n] for name, values in scores.items()},
        )
        for n in range(count)
    ]
    return Selection(tuple(made), made[0], "")


def test_scores_are_standardised_by_those_that_were_not_held_back():
    made = selection_of((3,), a=[1.0, 2, 3, 1000], b=[5.0, 5, 5, 5], c=[math.nan] * 4, d=[math.nan, 7, 9, math.nan])
    found = standardised(made)
    assert list(found) == ["a", "b", "d"]
    assert found["a"] == pytest.approx((np.array([1, 2, 3, 1000]) - 2) / (2 / 3) ** 0.5)
    assert found["b"].tolist() == [0] * 4
    assert found["d"] == pytest.approx([math.nan, -1, 1, math.nan], nan_ok=True)


def test_where_all_were_held_back_they_are_the_scale():
    assert standardised(selection_of((0, 1), a=[1.0, 3]))["a"].tolist() == [-1, 1]


def test_networks_before_the_first_step_stand_left_of_the_epochs(run):
    places = places_of(open_run(add_selection(run, "refresh", every=3)))
    assert places[0] < places[1] < 0
    assert places[2:] == [3, 6]


def colours(ax, marker):
    """Where marks of this kind stand, by their colour."""
    return {
        line.get_color(): line.get_xydata().tolist()
        for line in ax.lines
        if line.get_marker() == marker and len(line.get_xdata())
    }


def test_what_a_small_chart_shows():
    """Held back crossed out, far off at the edge, the chosen one on its line; shown only in grey."""
    ax = Figure().subplots()
    made = selection_of((3,), cmr_ei=[0.0] * 4)
    draw_validator(ax, "cmr_ei", np.array([0.5, -9, 9, 1]), made, [1, 2, 3, 4])
    chosen = [colour for colour, points in colours(ax, "o").items() if points == [[1, 0.5]] and colour != TRUSTED]
    assert colours(ax, "x") == {"black": [[4, 1]]}
    assert colours(ax, "v") == {TRUSTED: [[2, -FARTHEST]]}
    assert colours(ax, "^") == {TRUSTED: [[3, FARTHEST]]}
    assert [line.get_xdata() for line in ax.lines if line.get_color() in chosen and line.get_marker() != "o"] == [
        [1] * 2
    ]
    ax = Figure().subplots()
    draw_validator(ax, "entropy", np.zeros(4), made, [1, 2, 3, 4])
    assert TRUSTED not in colours(ax, "o")


def test_the_dice_is_that_of_the_report(compared):
    read = open_run(compared[1])
    assert [score_of(read, which) for which in ("last", "chosen", "best_3d")] == pytest.approx([0.35, 0.55, 0.75])
    ax = Figure().subplots()
    draw_revealed(ax, read, places_of(read))
    points = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() in ("s", "o", "*")]
    assert points == [[[6, pytest.approx(0.35)]], [[4, pytest.approx(0.55)]], [[3, pytest.approx(0.75)]]]
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["last epoch 0.350", "chosen without labels 0.550", "oracle (reads labels) 0.750"]


@pytest.mark.parametrize("facts", [{}, {"scored": False}, {"scores": "iou"}, {"dataset": {"phantom": "small"}}])
@pytest.mark.parametrize(("chosen", "n_epoch", "last"), [("source", 1, 0), ("epoch 40", 60, 60), ("refresh", 6, 6)])
def test_runs_of_every_kind_are_drawn(data, tmp_path, facts, chosen, n_epoch, last):
    run = make_run(tmp_path / "sfda", data, n_epoch=n_epoch, pictures=False, **facts)
    if facts.get("scores") == "iou":
        add_columns(run, val_miou=0.5)
    add_selection(run, chosen, {f"epoch {last}": "class 1 is 4 times as large as the prior says"}, last=last)
    picture = draw("selection", tmp_path / "selection.png", "--run", run)
    assert_drawn(picture)
    assert is_red(picture[5]) == ("dataset" in facts)


def test_the_same_choice_is_the_same_picture(run, tmp_path):
    add_selection(run, "epoch 4")
    first, again = (draw("selection", tmp_path / f"{name}.png", "--run", run) for name in "ab")
    assert np.array_equal(first, again)


def test_validators_that_say_nothing_leave_a_picture(run, tmp_path):
    path = add_selection(run, "epoch 4") / "selection.csv"
    kept = [row.split(",")[:4] for row in path.read_text().splitlines()]
    path.write_text("\n".join(",".join(row) for row in kept))
    draw("selection", tmp_path / "selection.png", "--run", run)


def test_a_run_that_chose_nothing_has_no_such_picture(run, tmp_path):
    with pytest.raises(UserError, match="nothing was chosen. Train it with --keep_every"):
        draw("selection", tmp_path / "selection.png", "--run", run)
    assert not (tmp_path / "selection.png").exists()


@pytest.fixture
def pictured(data, tmp_path):
    """noadap, and a run whose chosen network finds nothing, as the last one does not."""
    for name, n_epoch in (("noadap", 1), ("sfda", 4)):
        make_run(tmp_path / "toy" / name, data, n_epoch=n_epoch)
    sfda = add_selection(tmp_path / "toy/sfda", "epoch 2")
    for path in (sfda / "chosen/val").glob("*.png"):
        save_png(path, np.zeros((16, 16)))
    table = pd.read_csv(sfda / "patients_chosen.csv")
    table.assign(dice=0.1, outcome="hit").to_csv(sfda / "patients_chosen.csv", index=False)
    return [tmp_path / "toy/noadap", sfda]


def test_pictures_tell_whose_labels_chose(pictured, tmp_path):
    let_labels_choose(pictured[1], "P0")
    runs = list(map(open_run, pictured))
    assert network_words("chosen", runs) == "chosen with 1 labelled patient"
    assert network_words("last", runs) == "last epoch"
    assert network_words("chosen", runs[:1]) == "chosen without labels"
    assert list(trusted(runs[1].selection)) == [LABELLED]
    assert_drawn(draw("selection", tmp_path / "selection.png", "--run", pictured[1]))


@pytest.mark.parametrize(("kind", "flags"), [("boxes", ()), ("histogram", ()), ("panel", ("--slices", 1))])
def test_pictures_are_of_the_chosen_networks_unless_told_otherwise(pictured, tmp_path, kind, flags):
    def drawn(*more):
        return draw(kind, tmp_path / "picture.png", "--runs", *pictured, *flags, *more)

    usual, chosen, last = drawn(), drawn("--which", "chosen"), drawn("--which", "last")
    assert np.array_equal(usual, chosen)
    assert not np.array_equal(usual, last)
    (pictured[1] / "selection.csv").unlink()
    assert np.array_equal(drawn(), last)


def test_entropy_is_shown_of_the_network_that_it_is_of(pictured):
    noadap, sfda = map(open_run, pictured)
    assert [has_entropy_of(noadap, "chosen"), has_entropy_of(sfda, "last")] == [True, True]
    assert not has_entropy_of(sfda, "chosen")
    assert has_entropy_of(open_run(add_selection(pictured[1], "epoch 4")), "chosen")


def test_arrays_of_epochs_hold_nothing_of_a_network_before_them(pictured, tmp_path):
    add_selection(pictured[1], "source")
    with pytest.raises(UserError, match="chose a network before its first epoch, of which val_dice.npy holds nothing"):
        draw("histogram", tmp_path / "a.png", "--runs", pictured[1], "--array", "val_dice.npy")
    draw("histogram", tmp_path / "a.png", "--runs", pictured[1], "--array", "val_dice.npy", "--which", "last")
