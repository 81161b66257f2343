"""--select_with: few labelled patients choose. Who they are, that nobody else's label is opened, and who is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import all_here, train_source, write_prior, write_site
from PIL import Image

import choose
import main as program
from files.run_names import CHOSEN, LABELLED
from nets.checkpoint_files import load_checkpoint
from processes.alone import run_alone
from processes.errors import UserError
from processes.interrupt import Interrupted
from report import main as report
from tests.tools.chaos import _bits as bits
from tests.tools.chaos import arguments as of_chaos
from tests.tools.chaos import differences
from tests.tools.opened import watched

pytestmark = pytest.mark.usefixtures("quick_spawns")

NETWORK = ("--network", "Dimwit")
IMAGES = "[('IMG', png_transform, False)]"
PAIR = "[('IMG', png_transform, False), ('GT', gt_transform, False)]"
WHO = ["Case00", "Case02"]  # of four, as the generator draws them
SIZE = (24, 20)


@pytest.fixture(scope="module", autouse=True)
def chosen_here():
    with all_here(program, choose):
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = write_site(tmp_path_factory.mktemp("few") / "site", 150, 90, seed=2)
    write_prior(made.parent / "prior.csv", made)
    return made


@pytest.fixture(scope="module")
def source(site):
    return train_source(site)


def adapt(site, source, run, *more):
    """An adaptation of three epochs, with a prior; its network is kept after each."""
    prior = source.parents[1] / "prior.csv"
    told = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    losses = f"[('EntKLProp', {{}}, 'PredictionBounds', {told}, 'norm_soft_size', 1)]"
    start = ("--method", "sfda", "--target_losses", losses, "--model_weights", source, *NETWORK)
    kept = ("--n_epoch", 3, "--keep_every", 1, "--augment", 0)
    program.main(of_chaos(site, run, *start, *kept, *more))
    return run


@pytest.fixture(scope="module")
def whole(site, source):
    """A run that nothing disturbed, in which two patients choose."""
    return adapt(site, source, site.parent / "whole", "--select_with", 2)


def table_of(folder):
    return pd.read_csv(folder / "selection.csv", keep_default_na=False).set_index("candidate")


# -- what chooses --------------------------------------------------------------------------------------------------


def test_the_highest_dice_on_these_patients_chooses(site, source, whole, tmp_path):
    table = table_of(whole)
    assert set(table["labelled"].map(json.loads).map(tuple)) == {tuple(WHO)}
    passes = table[(table["gate"] == "") | (table["epoch"] == 0)][LABELLED].astype(float)
    assert table.index[table["chosen"] == 1].tolist() == [passes.idxmax()]
    assert passes.nunique() > 1
    for name, weights in (("source", source), (passes.idxmax(), whole / CHOSEN)):
        start = ("--method", "noadap", "--model_weights", weights, *NETWORK, "--ontrain")
        program.main(of_chaos(site, tmp_path / name, *start))
        scores = pd.read_csv(tmp_path / name / "patients_last.csv").set_index("patient")["dice"]
        assert passes[name] == pytest.approx(scores[WHO].mean(), rel=1e-5)


@pytest.mark.parametrize("draw", range(5))
def test_another_draw_may_be_of_others(site, source, tmp_path, draw):
    adapt(site, source, tmp_path / "run", "--select_with", 1, "--draw", draw)
    everybody = [f"Case{number:02d}" for number in range(4)]
    (who,) = json.loads(table_of(tmp_path / "run")["labelled"].iloc[0])
    assert who == np.random.default_rng(draw).permutation(everybody)[0]


# -- who is told ---------------------------------------------------------------------------------------------------


def test_everything_that_is_written_tells_whose_labels_chose(site, source, tmp_path, capsys):
    run = adapt(site, source, tmp_path / "sfda", "--select_with", 2)
    said = capsys.readouterr().out
    reason = (run / "selection.txt").read_text()
    assert reason.startswith("Chosen with 2 labelled patients (Case00, Case02): ")
    assert "A network will be chosen with 2 labelled patients: Case00, Case02." in said
    assert reason in said
    state = load_checkpoint(run / CHOSEN)
    assert state["choice"]["labelled"] == state["labelled"] == WHO
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["labelled"] == {"chooses": WHO, "chose_the_start": []}
    assert facts["supervision"].endswith("labels of 2 patients for choosing")
    program.main(of_chaos(site, tmp_path / "chosen", "--method", "noadap", "--model_weights", run / CHOSEN, *NETWORK))
    facts = json.loads((tmp_path / "chosen" / "provenance.json").read_text())
    assert facts["labelled"] == {"chooses": [], "chose_the_start": WHO}
    assert facts["supervision"].endswith("labels of 2 patients for the choice of its weights")
    assert load_checkpoint(tmp_path / "chosen" / "last.pkl")["labelled"] == WHO
    report(["--runs", str(run), str(tmp_path / "chosen"), "--out", str(tmp_path / "report")])
    for kind in ("txt", "md", "tex"):
        text = (tmp_path / f"report.{kind}").read_text()
        assert "hosen without labels" not in text
        assert "chosen with 2 labelled patients" in text
        assert text.count("2 labelled patients") >= 4  # the heading, the column, and both runs
    assert "labels of 2 patients" in (tmp_path / "report.csv").read_text()


# -- that no step, and no other's label, has a part in it -----------------------------------------------------------


def test_the_training_is_that_of_a_run_that_chooses_without_labels(site, source, whole, tmp_path):
    run = adapt(site, source, tmp_path / "run")
    one, other = (load_checkpoint(each / "last.pkl") for each in (whole, run))
    for name in ("net", "method", "best", "alarms"):
        assert bits(one[name]) == bits(other[name])
    assert "labelled" not in other
    assert LABELLED not in table_of(run)
    assert "labelled" not in table_of(run)
    assert "labels" not in json.loads((run / "provenance.json").read_text())["supervision"]


@pytest.mark.parametrize("variant", ["wiped", "at random", "absent"])
def test_no_other_patient_s_label_moves_it(site, source, whole, tmp_path, variant):
    other = shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns(".cache"))
    rng = np.random.default_rng(0)
    for label in other.glob("*/GT/*.png"):
        if label.parts[-3] == "train" and label.name[:6] in WHO:
            continue
        if variant == "absent":
            label.unlink()
        else:
            noise = rng.random(SIZE) < (0.5 if variant == "at random" else 0)
            Image.fromarray(noise.astype(np.uint8)).save(label)
    blind = ("--target_folders", IMAGES, "--select_folders", PAIR) if variant == "absent" else ()
    run = adapt(site, source, tmp_path / "run", "--target_dataset", other, "--select_with", 2, *blind)
    for name in ("selection.csv", "selection.txt"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    for name in (CHOSEN, "last.pkl"):
        assert bits(load_checkpoint(run / name)["net"]) == bits(load_checkpoint(whole / name)["net"])


def test_its_process_opens_the_labels_of_these_patients_alone(site, source, whole, tmp_path, monkeypatch):
    for cache in site.glob("*/.cache"):
        shutil.rmtree(cache)
    monkeypatch.setattr(program, "run_alone", lambda *words: run_alone(watched, tmp_path / "opened", *words))
    run = adapt(site, source, tmp_path / "run", "--select_with", 2)
    opened = [Path(line) for line in (tmp_path / "opened").read_text().splitlines()]
    labels = {path.name[:6] for path in opened if path.is_relative_to(site) and path.parent.name == "GT"}
    assert labels == set(WHO)
    assert not [path for path in opened if path.is_relative_to(site) and "labels" in path.name]  # of the cache
    assert (run / "selection.csv").read_bytes() == (whole / "selection.csv").read_bytes()


def test_stopped_while_it_chooses_it_chooses_the_same(site, source, whole, tmp_path, monkeypatch):
    def stopped(*words):
        raise Interrupted(2)

    with monkeypatch.context() as patch:
        patch.setattr(program, "run_alone", stopped)
        with pytest.raises(SystemExit):
            adapt(site, source, tmp_path / "run", "--select_with", 2)
    adapt(site, source, tmp_path / "run", "--select_with", 2)
    assert differences(whole, tmp_path / "run") == []


def test_volumes_of_which_few_have_labels(tmp_path):
    """The folder of labels holds those of two patients alone, as of somebody who had no time for more."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for case in range(count):
            voxels = rng.normal(0, 0.3, (9, 8, 10)).astype(np.float32)
            truth = np.zeros(voxels.shape, np.uint8)
            truth[3:6, 2:6, 3:7], truth[6:8, 2:6, 3:7] = 1, 2
            for folder, array in (("IMG", voxels + 2 * truth), ("GT", truth)):
                path = tmp_path / "site" / split / folder / f"{split}_{case}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)
    (tmp_path / "site" / "train" / "GT" / "train_1.npy").unlink()
    images = "[('IMG', nii_transform, False)]"
    labels = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
    net = ("--network", "UNet3D:width=2,depth=1", "--crop", 8, 8, 8, "--steps", 2, "--n_class", 3, "--n_epoch", 2)
    entropy = "[('SelfEntropy', {}, 1)]"
    shared = ("--grp_regex", r"\w+_\d+", "--target_folders", images, "--val_target_folders", labels, *net)
    first = ("--target_folders", labels, "--target_losses", "[('CrossEntropy', {}, 1)]", "--augment", 0)
    other = shutil.copytree(tmp_path / "site", tmp_path / "other")
    (other / "train" / "IMG" / "train_1.npy").unlink()
    program.main(of_chaos(other, tmp_path / "net", *shared, *first))
    kept = ("--keep_every", 1, "--method", "sfda", "--target_losses", entropy, "--model_weights")
    adapted = (*kept, tmp_path / "net" / "last.pkl", "--augment", 0, "--select_with", 2, "--saveim", 0)
    program.main(of_chaos(tmp_path / "site", tmp_path / "run", *shared, *adapted))
    reason = (tmp_path / "run" / "selection.txt").read_text()
    assert reason.startswith("Chosen with 2 labelled patients (train_0, train_2): ")
    assert table_of(tmp_path / "run")[LABELLED].astype(float).between(0, 1).all()
    with pytest.raises(UserError, match=r"of the 3 patients in \S+/train 2 have labels .*\(train_0, train_2\)"):
        program.main(of_chaos(tmp_path / "site", tmp_path / "more", *shared, *adapted, "--select_with", 3))


# -- what is refused -----------------------------------------------------------------------------------------------

REFUSED = {
    ("--select_with", 2, "--keep_every", 0): "there are none: give --keep_every 5",
    ("--select_with", 5): r"of the 4 patients in \S+/train 4 have labels .*\(Case00, Case01, Case02, Case03\)",
    ("--select_with", 1, "--target_folders", IMAGES): "its images alone. Name the labels .* --select_folders",
    ("--select_with", 1, "--target_folders", IMAGES, "--select_folders", PAIR.replace("GT", "No")): "0 have labels",
    ("--select_with", 1, "--ontrain"): "on patients who chose",
    ("--select_with", 1, "--valonly"): "on patients who chose",
    ("--select_with", -1): "--select_with is -1; it must be at least 0",
}


@pytest.mark.parametrize("flags", REFUSED, ids=str)
def test_what_makes_no_sense_is_refused_before_anything_is_written(site, source, tmp_path, flags):
    with pytest.raises(UserError, match=REFUSED[flags]):
        adapt(site, source, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_all_patients_of_the_training_may_choose(site, source, tmp_path):
    adapt(site, source, tmp_path / "run", "--select_with", 4)
    assert "Chosen with 4 labelled patients" in (tmp_path / "run" / "selection.txt").read_text()


def test_a_run_of_three_epochs_goes_on_with_the_number_it_began_with(site, source, whole):
    with pytest.raises(UserError, match="select_with: 2 -> 1"):
        adapt(site, source, whole, "--select_with", 1)


# -- among runs ----------------------------------------------------------------------------------------------------


def choose_of(out, *runs, more=()):
    choose.main(["--runs", *map(str, runs), "--out", str(out), "--device", "cpu", *map(str, more)])
    return out


def test_the_choice_among_runs_with_labels(site, source, whole, tmp_path):
    tent = adapt(site, source, tmp_path / "tent", "--trainable", "bn", "--l_rate", 0.1)
    table = table_of(choose_of(tmp_path / "out", whole, tent, more=("--select_with", 2)))
    assert table[LABELLED].astype(float).idxmax() in table.index[table["chosen"] == 1] or table["gate"].any()
    assert load_checkpoint(tmp_path / "out" / CHOSEN)["labelled"] == WHO
    assert (
        (tmp_path / "out" / "selection.txt").read_text().startswith("Chosen with 2 labelled patients (Case00, Case02)")
    )
    for more in ((), ("--select_with", 1), ("--select_with", 2, "--draw", 1)):
        with pytest.raises(UserError, match=r"whole chose its network with 2 labelled patients .* --select_with 2"):
            choose_of(tmp_path / "hidden", whole, tent, more=more)
    assert not (tmp_path / "hidden").exists()


def test_of_a_single_run_the_choice_is_its_own_unless_labels_are_new(site, source, whole, tmp_path):
    for more in ((), ("--select_with", 2)):
        out = choose_of(tmp_path / str(len(more)), whole, more=more)
        assert (out / CHOSEN).read_bytes() == (whole / CHOSEN).read_bytes()
    blind = adapt(site, source, tmp_path / "run")
    out = choose_of(tmp_path / "new", blind, more=("--select_with", 1))
    assert "Chosen with 1 labelled patient (" in (out / "selection.txt").read_text()
