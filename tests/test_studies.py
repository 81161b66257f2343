"""The study of choices: its sites, one adaptation from end to end, and its tables against hand-computed figures."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from selection.candidates import REFRESH, SOURCE
from selection.validators import VALIDATORS
from tests.studies import choices, looks, pairs, recipe_tables, recipes, regret, sites, starts
from tests.studies.records import Record

SHAPE = (1, 16, 16)


def discs(grey, root):
    """Three patients a split: a disc in a picture, darker than what is around it or brighter."""
    rng = np.random.default_rng(0)
    w, h = np.mgrid[: SHAPE[1], : SHAPE[2]]

    def patients(split):
        for number in range(3):
            label = ((w - 8) ** 2 + (h - 7 - number % 2) ** 2 < 20).astype(np.uint8)[None]
            noise = rng.integers(0, 30, SHAPE)
            yield f"{split}{number}", ((noise + label * grey + (1 - label) * (200 - grey)).astype(np.uint8), label)

    sites.write(root, {split: patients(split) for split in ("train", "val")})


@pytest.fixture
def tiny(monkeypatch):
    """A study of one pair of tiny pictures."""
    monkeypatch.setitem(sites.SITES, "bright", sites.Site(partial(discs, 150)))
    monkeypatch.setitem(sites.SITES, "dark", sites.Site(partial(discs, 50)))
    for module in (recipes, recipe_tables):
        monkeypatch.setattr(module, "PLAIN", ["bright-dark"])
    monkeypatch.setitem(choices.PAIRS, "bright-dark", pairs.Pair("bright", "dark", epochs=2, network="Dimwit"))
    monkeypatch.setattr(pairs, "ADAPT", ("--n_epoch", "2", "--keep_every", "1"))


def test_a_study_from_its_sites_to_its_tables(tiny, tmp_path, monkeypatch):
    flags = ["--out", str(tmp_path), "--pairs", "bright-dark", "--seeds", "0"]
    flags += ["--methods", "sfda", "tent", *pairs.PRIORS]
    choices.main(flags)
    record = Record.read(tmp_path / "bright-dark" / "0" / "sfda.npz")
    assert list(record.names) == [SOURCE, REFRESH, "epoch 1", "epoch 2"]
    assert record.truth.shape == (4, 3, 2)
    assert set(record.values) == set(VALIDATORS)
    table = pd.read_csv(tmp_path / "candidates.csv")
    assert len(table) == 4 * 5
    assert table.chosen.sum() == 5
    assert "| sfda_em |" in (tmp_path / "tables.md").read_text()
    assert not (tmp_path / "bright-dark" / "0" / "sfda").exists()
    monkeypatch.setattr(choices, "adapt", lambda *_: pytest.fail("made again"))
    choices.main(flags)


def test_candidates_are_scored_by_the_labels_of_validation(tiny, tmp_path):
    """The truth of the last candidate is what main.py says of its last epoch."""
    folder = sites.make_site("dark", tmp_path)
    pair = choices.PAIRS["bright-dark"]
    flags = [*pairs.common("dark", folder, pair, 0), *pairs.ADAPT]
    source = tmp_path / "source"
    choices.training.main([*flags[:-2], "--workdir", str(source), "--n_epoch", "1"])
    adaptation = ("--method", "sfda", "--target_losses", "[('SelfEntropy', {}, 1)]")
    record = choices.adapt([*flags, "--model_weights", str(source / "last.pkl"), *adaptation], tmp_path / "run")
    assert record.dice[0] == pytest.approx(pd.read_csv(source / "IMG_target_metrics.csv").val_dice_3d.iloc[-1])


def of(names, truth, consistency, place, lost=()):
    """A record of six pictures with two classes, of which the candidates `lost` find one; P is 1 in the truth."""
    shape = (len(names), 6, 2)
    values = {name: np.full(shape, np.nan) for name in VALIDATORS}
    values["cmr_ei"] = np.array(consistency)[:, None, None] * np.ones(shape)
    dice = np.array(truth)[:, None, None] * np.ones((len(names), 1, 2))
    sizes = np.array([[100, 0] if place in lost else [80, 20] for place in range(len(names))])
    evidence = {"expected": np.ones((6, 2)), "prior": np.full((6, 2), np.nan), "size": np.repeat(sizes[:, None], 6, 1)}
    gate = np.array(["class 1 is missing" * (place in lost) for place in range(len(names))])
    return Record(np.array(names), np.arange(len(names)), place, gate, dice, dice[0], values, evidence)


def test_methods_are_compared_where_all_of_them_were_tried():
    names = [SOURCE, "epoch 1", "epoch 3"]
    runs = [
        regret.Run(pair, 0, method, of(names, [0.5, 0.7, last], [0.2, 0.9, 0.3], 1))
        for pair, method, last in [
            ("ct-mr", "sfda", 0.4),
            ("ct-mr", "sfda_em", 0.6),
            ("mr-ct", "sfda", 0.8),
            ("mr-ct", "sfda_em", 0.495),
            ("discs", "sfda", 0.0),
        ]
    ]
    found = regret.by_method(runs)
    assert "2 pairs and seeds" in found
    assert "| sfda | 50.0 | 60.0 | 70.0 | 75.0 | 1 | 10.0 |" in found
    assert "| sfda_em | 50.0 | 54.8 | 70.0 | 70.0 | 0 | 0.5 |" in found
    assert regret.by_method(runs[3:]) == ""


def test_figures_of_a_summary():
    one = regret.Run("ct-mr", 0, "sfda", of([SOURCE, "epoch 1", "epoch 3"], [0.5, 0.7, 0.4], [0.2, 0.9, 0.3], 1))
    two = regret.Run("ct-mr", 1, "sfda", of([SOURCE, "epoch 2"], [0.6, 0.3], [0.1, 0.9], 0, lost=[1]))
    rows = [line.split(" | ") for line in regret.summary([one, two]).splitlines()]
    told = {row[0].strip("| "): [cell.strip(" |") for cell in row[1:]] for row in rows}
    assert told["**chosen**"] == ["0.0", "0.0", "0", "0.0", "10.0"]
    assert told["last epoch"] == ["30.0", "30.0", "2", "30.0", "-20.0"]
    assert told["cmr_ei, behind the gate"] == told["**chosen**"]  # what it would take of the second is held back
    pair = regret.by_pair([one, two]).splitlines()[-1]
    assert pair == "| ct-mr | sfda | 2 | 55.0 | 35.0 | 65.0 | 65.0 | 0.0 |"


def test_a_record_is_chosen_from_by_the_rule_as_it_is_now():
    """Whatever chose when it was made."""
    record = of([SOURCE, "epoch 1", "epoch 3"], [0.5, 0.7, 0.4], [0.2, 0.9, 0.3], 2)
    assert record.choice.place == 1
    assert "0.900" in record.choice.reason


def test_a_record_comes_back_as_it_went(tmp_path):
    record = of([SOURCE, "epoch 2"], [0.6, 0.3], [0.1, 0.9], 0)
    record.save(tmp_path / "one.npz")
    again = Record.read(tmp_path / "one.npz")
    assert list(again.gate) == list(record.gate)
    assert again.place == 0
    np.testing.assert_allclose(again.values["cmr_ei"], record.values["cmr_ei"], rtol=1e-6)
    np.testing.assert_array_equal(again.truth, record.truth)
    np.testing.assert_array_equal(again.as_is, record.as_is)


def test_patients_of_the_two_scanners_are_not_the_same():
    if not sites.REAL.is_dir():
        pytest.skip(f"{sites.REAL} is not here: the real images lie beside the repository")
    seen = [
        path.name for scanner in (sites.old_scanner(), sites.new_scanner()) for own in scanner.values() for path in own
    ]
    assert len(seen) == len(set(seen)) == 12 + 4 + 8 + 6


def test_a_third_of_the_patients_lacks_the_organ():
    change = sites.WithoutOrgan(sites.as_it_is)
    label = np.zeros((4, 2, 2), np.uint8)
    label[1] = 1
    lengths = [len(change("train", (label, label))[1]) for _ in range(6)]
    assert lengths == [4, 4, 3, 4, 4, 3]
    assert len(change("val", (label, label))[1]) == 4


def test_every_look_is_scored_and_one_is_decided_on(tiny, tmp_path, capsys):
    flags = ["--out", str(tmp_path), "--pairs", "bright-dark", "--seeds", "0", "1"]
    looks.main(flags)
    pair, mean = [line.split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert pair == mean
    *shown, decided, best = (float(cell.strip(" |")) for cell in pair)
    assert min(shown) <= decided <= best <= 100


def test_recipes_from_their_sites_to_the_tables(tiny, tmp_path, monkeypatch, capsys):
    flags = ["--recipes", "gin", "--out", str(tmp_path), "--pairs", "bright-dark", "--seeds", "0", "1"]
    recipes.main([*flags, "--company", "gin"])
    recipes.main([*flags, "--compare"])
    for recipe in ([], ["--recipe", "gin"], ["--beside", "gin"]):
        choices.main([*flags[2:], *recipe, "--methods", "sfda", "tent"])
    capsys.readouterr()
    monkeypatch.setattr(recipes, "measure", lambda *_: pytest.fail("made again"))
    recipes.main([*flags, "--company", "gin"])
    told = capsys.readouterr().out
    assert told.strip() == (tmp_path / "recipes.md").read_text().strip()
    assert told.count("| chosen of all |") == 3
    assert "2 choices" in told
    assert "start chosen beside gin: 1 pairs, 2 seeds" in told
    seen = Record.read(starts.among_file(tmp_path, "bright-dark", 1))
    assert seen.names.tolist() == [SOURCE, REFRESH, "gin", f"gin, {REFRESH}"]
    start = starts.Start.read(starts.start_file(tmp_path, "gin", "bright-dark", 1))
    assert start.shown.shape == (3, 3)
    record = Record.read(tmp_path / "recipes" / "gin" / "bright-dark" / "1" / "sfda.npz")
    place = list(record.names).index(SOURCE)
    np.testing.assert_allclose(starts.patient_points(record.truth[place]), start.found, rtol=1e-6)
    np.testing.assert_allclose(starts.patient_points(seen.truth[2]), start.found, rtol=1e-6)


@pytest.mark.parametrize("taken", [SOURCE, "gin", f"gin, {REFRESH}"])
def test_an_adaptation_begins_at_the_network_that_is_chosen(tiny, tmp_path, monkeypatch, taken):
    flags = ["--out", str(tmp_path), "--pairs", "bright-dark", "--seeds", "0"]
    recipes.main([*flags, "--recipes", "gin", "--compare"])
    monkeypatch.setattr(choices, "start_of", lambda record: taken)
    choices.main([*flags, "--beside", "gin", "--methods", "tent"])
    seen = Record.read(starts.among_file(tmp_path, "bright-dark", 0))
    begun = Record.read(tmp_path / "recipes" / "beside gin" / "bright-dark" / "0" / "tent.npz")
    own, looked_at = (record.names.tolist().index(name) for record, name in ((begun, SOURCE), (seen, taken)))
    np.testing.assert_allclose(begun.truth[own], seen.truth[looked_at], rtol=1e-6)


def test_runs_of_one_source_network_are_joined():
    """The source network counts once; the best of all of them is told by its run."""
    one = of([SOURCE, "epoch 1"], [0.5, 0.7], [0.2, 0.9], 1)
    two = of([SOURCE, "epoch 1", "epoch 3"], [0.5, 0.9, 0.1], [0.2, 0.95, 0.1], 1)
    joined = Record.joined({"sfda": one, "tent": two})
    assert joined.names.tolist() == [SOURCE, "sfda, epoch 1", "tent, epoch 1", "tent, epoch 3"]
    np.testing.assert_allclose(joined.dice, [0.5, 0.7, 0.9, 0.1, 0.5])
    assert joined.choice.place == 2
    some = joined.among({SOURCE, "sfda, epoch 1"})
    assert some.names.tolist() == [SOURCE, "sfda, epoch 1"]
    np.testing.assert_allclose(some.dice, [0.5, 0.7, 0.5])
    assert some.choice.place == 1


def test_figures_of_recipes():
    """Means over pairs and seeds, the share of the gap from the usual network as it is, and harms."""

    def start(as_is, decided, own=90, upper=80):
        shown = np.array([[as_is] * 2, [decided] * 2, [0, 0]], float)
        return starts.Start(np.full(3, float(own)), shown, 1, np.full(2, float(upper)))

    square = {
        (pairs.USUAL, "a"): [start(20, 40), start(40, 50)],
        ("gin", "a"): [start(60, 65, own=80), start(10, 35, own=70)],
    }
    usual, gin = recipe_tables.by_recipe(square, ["a"]).splitlines()[2:]
    assert usual == "| usual | 90.0 | 30.0 | 45.0 | 30.0 | 0 | 0.0 |"
    assert gin == "| gin | 75.0 | 35.0 | 50.0 | 40.0 | 1 | 5.0 |"
    assert recipe_tables.by_pair(square).splitlines()[-1] == "| a | 30.0 | 45.0 | 50.0 | 80.0 |"
