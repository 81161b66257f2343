import csv
import re

import numpy as np
import pytest
from fake_runs import make_run, make_set
from matplotlib.figure import Figure
from PIL import Image

import plot
from analysis.plots.draws import APART, draw_curve
from analysis.run import open_run
from analysis.tables.draws import group_draws, read_experiment
from processes.errors import UserError
from report import main
from tests.analysis.test_report import rescore, set_provenance, simple

DICE = {"random_2": (0.5, 0.3, 0.4), "contrast_2": (0.6, 0.7, 0.3), "random_8": (0.7, 0.6), "contrast_8": (0.8, 0.7)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("draws") / "data/toy", n_patient=2, n_slice=1, size=(16, 16), n_class=3)


@pytest.fixture
def add(data, tmp_path):
    """Makes a run in which both patients' Dice is `dice` in class 1, 0.1 less and more in class 2."""

    def add(name, dice, **facts):
        run = make_run(tmp_path / "toy" / name, data, n_epoch=1, n_class=3, pictures=False, **facts)
        rescore(run, {"P0": {1: dice, 2: dice - 0.1}, "P1": {1: dice, 2: dice + 0.1}})
        return run

    return add


@pytest.fixture
def runs(add):
    """Two kinds with two numbers of labelled volumes, and one run with all labels."""
    made = [add(f"{name}_{draw}", value) for name, values in DICE.items() for draw, value in enumerate(values)]
    return [*made, add("all_labels", 0.9)]


def report(runs, tmp_path, capsys, *more, pattern=r"_\d+$"):
    """The printed table, and the csv file by (experiment, block, class)."""
    main(["--runs", *map(str, runs), "--draws", pattern, "--out", str(tmp_path / "out/few"), *more])
    with (tmp_path / "out/few.csv").open() as file:
        lines = {(row["experiment"], row["chosen"], row["class"]): row for row in csv.DictReader(file)}
    return capsys.readouterr().out, lines


def words(text):
    return " ".join(text.split())


def test_mean_and_spread_over_draws_by_hand(runs, tmp_path, capsys):
    rescore(runs[0], simple(0.1, 0.1), files=["best_3d"])
    text, lines = report(runs, tmp_path, capsys)
    row = lines["random_2", "last", "mean"]
    assert (row["draws"], row["patients"], row["dice_n"]) == ("3", "2", "3")
    assert [float(row[key]) for key in ("dice_mean", "dice_sd", "hd95_mean", "hd95_sd")] == pytest.approx(
        [0.4, 0.1, 6, 1]
    )
    assert [float(dice) for dice in row["dice_of_draws"].split(" / ")] == pytest.approx([0.5, 0.3, 0.4])
    assert row["run"] == "random_2_0 / random_2_1 / random_2_2"
    assert [float(lines["contrast_8", "last", k]["dice_mean"]) for k in ("1", "2")] == pytest.approx([0.75, 0.75])
    last, best = text.split("Best epoch (chosen with target labels")
    assert re.search(r"random_2 +none +3 +0.400 ± 0.100 +0.50 / 0.30 / 0.40 +0.400 ± 0.100 .* 6.00 ± 1.00", last)
    assert re.search(r"random_2 +none +3 +0.267 ± 0.153 +0.10 / 0.30 / 0.40", best)
    assert re.search(r"all_labels +none +1 +0.900 +0.90 +0.900 +0.900 +1.00 +0 +0\n", last)
    assert lines["all_labels", "last", "mean"]["dice_sd"] == ""
    assert "***" not in text
    assert text == (tmp_path / "out/few.txt").read_text()
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".md", ".tex", ".txt"]
    assert r"0.400 $\pm$ 0.100" in (tmp_path / "out/few.tex").read_text()


def test_paired_by_draw_with_as_many_labelled_volumes(runs, tmp_path, capsys):
    """0.6, 0.7, 0.3 against 0.5, 0.3, 0.4, whatever the order; a draw that the other lacks is no pair."""
    random_2 = [runs[2], *runs[:2]]
    text, lines = report([runs[-1], *random_2, *runs[3:7], runs[8]], tmp_path, capsys)
    assert "contrast_2 than random_2 2:1; contrast_8 than random_8 1:0. random came first" in words(text)
    row = lines["contrast_2", "last", "mean"]
    assert (row["base"], row["better"], row["worse"]) == ("random_2", "2", "1")
    for key in (("contrast_2", "last", "1"), ("random_2", "last", "mean"), ("all_labels", "last", "mean")):
        assert lines[key]["base"] == lines[key]["better"] == ""


@pytest.mark.parametrize("reference", ["contrast", "contrast_2"])
def test_the_reference_is_a_kind_or_one_of_its_experiments(runs, tmp_path, capsys, reference):
    text, _ = report(runs, tmp_path, capsys, "--reference", reference)
    assert "volumes: random_2 than contrast_2 1:2; random_8 than contrast_8 0:2." in words(text)
    assert "came first" not in text


def test_seeds_are_draws_too(add, tmp_path, capsys):
    made = [add(f"{name}_seed{seed}", dice) for name, dice in (("ce", 0.4), ("gdl", 0.5)) for seed in (3, 7)]
    text, _ = report(made, tmp_path, capsys, pattern=r"_seed\d+")
    assert "gdl than ce 2:0" in words(text)
    text, _ = report([made[0], made[3]], tmp_path, capsys, pattern=r"_seed\d+")
    assert "better:worse" not in text  # no seed in common


def test_failures_of_all_draws_are_counted(add, tmp_path, capsys):
    made = [add(f"a_{draw}", 0.8) for draw in range(3)]
    rescore(made[0], {"P0": {1: "miss", 2: "miss"}, "P1": {1: "false structure", 2: "true absence"}})
    rescore(made[1], {"P0": {1: "miss", 2: 0.8}, "P1": {1: 0.8, 2: 0.8}})
    text, lines = report(made, tmp_path, capsys)
    row = lines["a", "last", "mean"]
    assert (row["misses"], row["false_structures"], row["hd95_n"]) == ("3", "1", "2")
    assert float(row["dice_mean"]) == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert float(row["hd95_penalised_mean"]) == pytest.approx((50 + (26 + 2) / 2 + 2) / 3)
    assert "2.00 ± 0.00 (n = 2)" in text
    assert "HD95 penalised: the mean" in text


def test_other_patients_are_warned_of_and_make_no_pair(runs, tmp_path, capsys):
    rescore(runs[3], {"Q": {1: 0.6, 2: 0.6}})
    text, _ = report(runs, tmp_path, capsys)
    assert "The draws of contrast_2 were not evaluated on the same patients" in text
    assert "contrast_2 than random_2 1:1;" in words(text)
    for run in runs[4:6]:
        rescore(run, {"Q": {1: 0.6, 2: 0.6}})
    text, _ = report(runs, tmp_path, capsys)
    assert "Not every experiment was evaluated on the same patients" in text
    assert "contrast_2 than" not in text


def test_marks_in_every_format(runs, tmp_path, capsys):
    for run in runs[:2]:
        set_provenance(run, '"phantom": null', '"phantom": "small"')
    set_provenance(runs[1], '"debug": false', '"debug": true')
    set_provenance(runs[1], '"supervision": "none"', '"supervision": "full"')
    _, lines = report(runs, tmp_path, capsys)
    for suffix in ("txt", "md", "tex"):
        written = words((tmp_path / f"out/few.{suffix}").read_text().replace("\\", ""))
        assert "PHANTOM: made-up images in random_2_0, random_2_1" in written
        assert "DEBUG: random_2_1 saw ten slices" in written
        assert "PHANTOM; DEBUG, PHANTOM" in written
    assert lines["random_2", "last", "mean"]["debug"] == "0 / 1 / 0"
    assert lines["random_2", "last", "mean"]["supervision"] == "none / full / none"
    assert lines["random_8", "last", "mean"]["phantom"] == "0"


def test_iou_by_hand(runs, tmp_path, capsys):
    """Of each patient and class, not of the mean Dice."""
    rescore(runs[0], {"P0": {1: 0.5, 2: 1.0}, "P1": {1: "miss", 2: "true absence"}})
    rescore(runs[1], simple(2 / 3, 2 / 3))
    text, lines = report(runs[:2], tmp_path, capsys, "--iou")
    first = ((1 / 3 + 1) / 2 + 0) / 2
    assert float(lines["random_2", "last", "mean"]["iou_mean"]) == pytest.approx((first + 1 / 2) / 2)
    assert float(lines["random_2", "last", "1"]["iou_mean"]) == pytest.approx((1 / 6 + 1 / 2) / 2)
    assert "0.417 ± 0.118" in text
    assert "IoU: Dice / (2 - Dice)" in text
    assert "IoU" not in report(runs[:2], tmp_path, capsys)[0]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--draws", "(_"], r"--draws '\(_' is no regular expression \(missing \)"),
        (
            ["--draws", r"_\d+$", "--reference", "randon_2"],
            "randon_2 is none of the experiments. Did you mean 'random_2'",
        ),
        (["--draws", "_[0-9]"], "the same draw of one experiment: contrast_0b and contrastb_0; a_1c and ac_1. Leave"),
    ],
)
def test_mistakes_are_named(add, tmp_path, more, match):
    names = ["random_2_0", "contrast_0b", "contrastb_0", "a_1c", "ac_1"]
    made = [add(name, 0.5) for name in (names if more[-1] == "_[0-9]" else names[:1])]
    with pytest.raises(UserError, match=match):
        main(["--runs", *map(str, made), "--out", str(tmp_path / "out/few"), *more])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--iou"], ["--draws", "_0"]])
def test_runs_scored_by_the_iou_of_all_images_have_neither(add, more):
    with pytest.raises(UserError, match="--draws and --iou are about scores of patients; streets_0 were"):
        main(["--runs", str(add("streets_0", 0.5, scores="iou")), *more])


# ---------------------------------------------------------------------------------------------- the chart


def draw(out, runs, *more):
    plot.main(["draws", "--runs", *map(str, runs), "--draws", r"_\d+$", "--out", str(out), *more])
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def rows_of(picture, colour):
    """The heights at which a colour stands left of the legend, from 0 at the top of the picture to 1."""
    seen = (np.abs(picture - colour) < 12).all(2)[:, : int(0.7 * picture.shape[1])]
    return np.flatnonzero(seen.any(1)) / len(picture)


def test_curves_are_drawn_and_runs_with_all_labels_are_a_level(runs, tmp_path):
    picture = draw(tmp_path / "deep/er.png", runs)
    random, contrast, level = (rows_of(picture, colour) for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)))
    assert np.ptp(level) < 0.02
    assert level.max() < contrast.min() < random.min() < random.max()
    assert np.ptp(random) > 0.1
    assert (draw(tmp_path / "again.png", runs) == picture).all()


def test_phantom_stands_on_the_chart(runs, tmp_path):
    set_provenance(runs[1], '"phantom": null', '"phantom": "small"')
    assert (np.abs(draw(tmp_path / "plot.png", runs)[5] - (176, 0, 32)) <= 1).all(1).mean() > 0.9


def test_best_epoch_is_another_chart(runs, tmp_path):
    rescore(runs[-1], simple(0.1, 0.1), files=["best_3d"])
    last, best = draw(tmp_path / "a.png", runs), draw(tmp_path / "b.png", runs, "--which", "best_3d")
    assert rows_of(best, (0, 158, 115)).min() > rows_of(last, (0, 158, 115)).max() + 0.3


def test_the_mean_runs_through_the_draws(runs):
    """At the logarithm of the number of labelled volumes, in its order; a kind of its own place beside it."""
    few, many = group_draws([open_run(run) for run in runs if run.name.startswith("random")], r"_\d+$")
    ax = Figure().subplots()
    draw_curve(ax, [read_experiment(each, "last") for each in (many, few)], APART, "black", "random")
    left, right = 1 + APART, 3 + APART
    drawn = [([left, right], [0.4, 0.65]), ([left] * 3, [0.5, 0.3, 0.4]), ([right] * 2, [0.7, 0.6])]
    for line, (x, y) in zip(ax.lines, drawn, strict=True):
        assert line.get_xdata() == pytest.approx(x)
        assert line.get_ydata() == pytest.approx(y)


def test_a_chart_needs_numbers_of_labelled_volumes(add, tmp_path):
    with pytest.raises(UserError, match="None of these experiments says how many .*: a, all_labels"):
        draw(tmp_path / "plot.png", [add("a_0", 0.5), add("all_labels", 0.5)])
    assert not (tmp_path / "plot.png").exists()


def test_draws_that_are_worse_than_their_start_are_counted(add, tmp_path, capsys):
    """Draw by draw: the third is better by less than the other two are worse."""
    runs = [add(f"noadap_{draw}", value, method="noadap") for draw, value in enumerate((0.5, 0.6, 0.3))]
    runs += [add(f"sfda_{draw}", value) for draw, value in enumerate((0.4, 0.5, 0.4))]
    text, lines = report(runs, tmp_path, capsys)
    assert text.count("worse than the start in 2 of 3 draws") == 2  # in the last and in the best epoch
    assert "Worse than noadap_0 or noadap_1: the mean Dice is lower" in words(text)
    assert lines["sfda", "last", "mean"]["worse_than"] == "noadap_0 / noadap_1 / "
