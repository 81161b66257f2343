"""A run chooses its epoch in a process of its own: what that opens, how it is stopped, and in which runs it works."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import train_source, write_prior, write_site

import main as program
from files.run_names import CHOSEN, candidates_of
from nets.checkpoint_files import load_checkpoint
from processes.alone import run_alone
from processes.errors import UserError
from tests.tools.chaos import ASKED, ask_to_stop, differences
from tests.tools.chaos import arguments as of_chaos
from tests.tools.opened import watched

pytestmark = pytest.mark.usefixtures("quick_spawns")

NETWORK = ("--network", "Dimwit")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("choice") / "site", 150, 90, seed=2)


@pytest.fixture(scope="module")
def source(site):
    return train_source(site)


def adapting(site, source, run, *more):
    """An adaptation of two epochs, with a prior; its network is kept after each."""
    prior = write_prior(site.parent / "prior.csv", site)
    told = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    losses = f"[('EntKLProp', {{}}, 'PredictionBounds', {told}, 'norm_soft_size', 1)]"
    start = ("--method", "sfda", "--target_losses", losses, "--model_weights", source, *NETWORK)
    return of_chaos(site, run, *start, "--n_epoch", 2, "--keep_every", 1, "--augment", 0, *more)


@pytest.fixture(scope="module")
def whole(site, source):
    """A run that nothing disturbed."""
    program.main(adapting(site, source, site.parent / "whole"))
    return site.parent / "whole"


def here(function, *args):
    """In place of a process of its own."""
    return function(*args)


# -- what it gives -------------------------------------------------------------------------------------------------


def test_the_chosen_network_is_scored_as_a_run_of_it_alone(site, source, whole, tmp_path):
    start = ("--method", "noadap", "--model_weights", whole / CHOSEN, *NETWORK)
    program.main(of_chaos(site, tmp_path / "run", *start))
    scores = [pd.read_csv(path) for path in (whole / "patients_chosen.csv", tmp_path / "run" / "patients_last.csv")]
    assert scores[0].equals(scores[1])
    assert scores[0]["dice"].max() > 0.3
    masks = [{path.name: path.read_bytes() for path in folder.iterdir()}
             for folder in (whole / "chosen" / "val", tmp_path / "run" / "last_epoch" / "val")]  # fmt: skip
    assert masks[0] == masks[1]
    assert masks[0]


def test_where_it_runs_changes_no_bit_and_it_speaks_once(site, source, whole, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(program, "run_alone", here)
    program.main(adapting(site, source, tmp_path / "run"))
    assert differences(whole, tmp_path / "run") == []
    said = capfd.readouterr()
    assert said.out.count("Chosen without labels") == 1
    assert (whole / "selection.txt").read_text() in said.out
    assert "Warning" not in said.err


# -- what it opens -------------------------------------------------------------------------------------------------


def test_it_opens_images_and_copies_and_no_ground_truth(site, source, whole, tmp_path, monkeypatch):
    for cache in site.glob("*/.cache"):
        shutil.rmtree(cache)
    monkeypatch.setattr(program, "run_alone", lambda *words: run_alone(watched, tmp_path / "opened", *words))
    program.main(adapting(site, source, tmp_path / "run"))
    opened = [Path(line) for line in (tmp_path / "opened").read_text().splitlines()]
    of_site = [path.relative_to(site).parts for path in opened if path.is_relative_to(site)]
    assert ("train", "IMG") in of_site
    assert {parts[0] for parts in of_site} <= {"train", "dataset.json", "manifest.csv"}
    assert not [parts for parts in of_site if "GT" in parts]
    of_run = {path.name for path in opened if path.is_relative_to(tmp_path / "run")}
    assert {"epoch_0000.pkl", "epoch_0002.pkl"} <= of_run
    assert not {name for name in of_run if "best" in name or "last" in name or "dice" in name or "metrics" in name}


# -- asked to stop -------------------------------------------------------------------------------------------------


def test_asked_to_stop_meanwhile_it_goes_on_from_there(site, source, whole, tmp_path, monkeypatch, capsys):
    def stopped(*words):
        ask_to_stop()
        return run_alone(*words)

    with monkeypatch.context() as patch:
        patch.setattr(program, "run_alone", stopped)
        with pytest.raises(SystemExit) as end:
            program.main(adapting(site, source, tmp_path / "run"))
    assert end.value.code == ASKED
    assert "Stopped while a network was chosen; the same command goes on from there." in capsys.readouterr().out
    assert not (tmp_path / "run" / CHOSEN).exists()
    assert list(candidates_of(tmp_path / "run")) == [0, 1, 2]
    monkeypatch.setattr(program, "run_alone", here)
    program.main(adapting(site, source, tmp_path / "run"))
    assert "Every epoch is done." in capsys.readouterr().out
    assert differences(whole, tmp_path / "run") == []


def test_a_fault_of_the_choice_is_one_paragraph(site, source, tmp_path, monkeypatch):
    def lost(function, args, *more):
        shutil.rmtree(args.target_dataset / "train" / "IMG")
        return function(args, *more)

    other = shutil.copytree(site, tmp_path / "site")
    monkeypatch.setattr(program, "run_alone", lost)
    with pytest.raises(UserError, match="site/train/IMG"):
        program.main(adapting(other, source, tmp_path / "run"))


# -- in which runs -------------------------------------------------------------------------------------------------

IMAGES = "[('IMG', png_transform, False)]"
KINDS = {
    "debug": ("--debug",),
    "half precision": ("--precision", "bf16"),
    "no ground truth": ("--target_folders", IMAGES),
    "another method": ("--method", "self_training", "--target_losses", "[('CrossEntropy', {'idc': [0, 1]}, 1)]"),
    "a loss without a prior": ("--target_losses", "[('SelfEntropy', {}, 1)]"),
    "validation images alone": ("--valonly",),
    "no step at all": ("--trainable", "none"),
    "pictures": ("--scores", "iou"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_in_a_run_of(site, source, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(program, "run_alone", here)
    run = tmp_path / "run"
    program.main(adapting(site, source, run, *KINDS[kind]))
    assert load_checkpoint(run / CHOSEN)["choice"]["why"] + "\n" == (run / "selection.txt").read_text()
    assert (run / "patients_chosen.csv").exists() == (kind != "no ground truth")
    assert (run / "classes_chosen.csv").exists() == (kind == "pictures")
    assert list(candidates_of(run)) == [0]


def test_who_is_told_of_harm_is_told_what_the_chosen_network_scores(site, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "run_alone", here)
    more = ("--target_losses", "[('SelfEntropy', {}, 1)]", "--l_rate", 1)
    program.main(adapting(site.parent / "other", source, tmp_path / "run", *more))  # where there was no gap
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("This adaptation did harm")]
    scores = pd.read_csv(tmp_path / "run" / "patients_chosen.csv").groupby("patient")["dice"].mean()
    assert line.endswith(f"That of the chosen network is {scores.mean():.3f}.")


@pytest.mark.parametrize("slices", [1, 3])
def test_one_patient_is_enough(source, tmp_path, monkeypatch, slices):
    monkeypatch.setattr(program, "run_alone", here)
    site = write_site(tmp_path / "site", 150, 90, seed=3, patients=3, slices=slices)
    more = ("--target_losses", "[('SelfEntropy', {}, 1)]")
    program.main(adapting(site, source, tmp_path / "run", *more))
    assert (tmp_path / "run" / CHOSEN).exists()


def test_the_log_has_no_name_of_a_choice(site, source, tmp_path):
    with pytest.raises(UserError, match="that nothing else there is called"):
        program.main(adapting(site, source, tmp_path / "run", "--csv", "selection.csv"))
