"""The copies of its network that an adaptation keeps: which there are until one is chosen, and which stay.

A kill at any moment changes neither them nor the choice. The choice is made in this process; test_choice.py has it in
its own.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import write_site

import main as program
from engine.run_folder import RunFolder
from files.run_names import CANDIDATES, CHOSEN, candidate_name, candidates_of
from methods.sfda import SFDA
from nets.checkpoint_files import load_checkpoint
from nets.filling import load_weights
from networks import build_network
from processes.errors import UserError
from processes.ownership import MADE, made_by_run
from tests.tools.chaos import _bits as bits
from tests.tools.chaos import arguments as of_chaos
from tests.tools.chaos import ask_to_stop, before_call, chaos, differences

NETWORK = "Dimwit"
STEPS = 4  # of an epoch
LOSS = "[('SelfEntropy', {}, 1)]"


class Crash(Exception):
    """The process is gone."""


def crash():
    raise Crash


def copies(run):
    """The folder where the copies of a run lie as they were when one of them was to be chosen."""
    return run.parent / f"copies of {run.name}"


@pytest.fixture(scope="module", autouse=True)
def chosen_here():
    """No process of its own chooses."""

    def choose(function, args, *more):
        shutil.copytree(args.workdir / CANDIDATES, copies(args.workdir) / CANDIDATES, dirs_exist_ok=True)
        return function(args, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "run_alone", choose)
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("candidates") / "site", 150, 90, seed=2)


@pytest.fixture(scope="module")
def source(site):
    """A network to start from."""
    program.main(of_chaos(site, site.parent / "source", "--network", NETWORK, "--n_epoch", 1))
    return site.parent / "source" / "last.pkl"


def arguments(site, source, run, *more):
    """An adaptation of three epochs that keeps its network after each."""
    start = ("--method", "sfda", "--target_losses", LOSS, "--model_weights", source, "--network", NETWORK)
    return of_chaos(site, run, *start, "--n_epoch", 3, "--keep_every", 1, *more)


@pytest.fixture(scope="module")
def whole(site, source):
    """A run that nothing disturbed."""
    program.main(arguments(site, source, site.parent / "whole"))
    return site.parent / "whole"


def kept(run):
    """The bits of each copy that there was to choose from."""
    return {number: bits(load_checkpoint(path)["net"]) for number, path in candidates_of(copies(run)).items()}


# -- which there are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "epochs", "expected"), [(2, 5, [0, 2, 4, 5]), (2, 4, [0, 2, 4]), (9, 2, [0, 2])])
def test_every_n_epochs_and_the_last(site, source, tmp_path, every, epochs, expected):
    program.main(arguments(site, source, tmp_path / "run", "--keep_every", every, "--n_epoch", epochs))
    assert list(candidates_of(copies(tmp_path / "run"))) == expected
    assert [path.name for path in sorted((copies(tmp_path / "run") / CANDIDATES).iterdir())] == [
        f"epoch_{number:04d}.pkl" for number in expected
    ]
    assert list(candidates_of(tmp_path / "run")) == [0]


def test_none_is_kept_unless_asked_for(site, source, whole, tmp_path):
    """And the run is otherwise the same."""
    program.main(arguments(site, source, tmp_path / "run", "--keep_every", 0))
    assert candidates_of(tmp_path / "run") == {}
    assert not list((tmp_path / "run").glob("*chosen*"))
    assert not list((tmp_path / "run").glob("selection*"))
    last = load_checkpoint(tmp_path / "run" / "last.pkl")["net"]
    assert bits(last) == bits(load_checkpoint(whole / "last.pkl")["net"])


def test_a_copy_is_a_checkpoint_without_an_optimiser(source, whole):
    last = load_checkpoint(whole / "last.pkl")
    told = ("network", "in_channels", "n_class", "seed", "preprocessing", "identity", "bundle")
    for number, path in candidates_of(copies(whole)).items():
        copy = load_checkpoint(path)
        assert copy.keys() == {*told, "net", "epoch"}
        assert bits({name: copy[name] for name in told}) == bits({name: last[name] for name in told})
        assert copy["epoch"] == number - 1
        assert {value.dtype for value in copy["net"].values() if value.is_floating_point()} == {torch.float32}
        load_weights(build_network(NETWORK, 1, 2), path, NETWORK, 1, 2)
    of = kept(whole)
    assert of[0] == bits(load_checkpoint(source)["net"])
    assert of[3] == bits(last["net"])
    assert len({str(copy) for copy in of.values()}) == len(of) == 4


CHOICE = (CHOSEN, "selection.csv", "selection.txt")


def test_what_the_folder_is_known_to_hold(whole):
    assert {CANDIDATES, *CHOICE, "patients_chosen.csv", "chosen"} <= made_by_run(whole)
    assert kept(whole)[0] == bits(load_checkpoint(whole / candidate_name(0))["net"])
    sizes = {path.stat().st_size for path in (copies(whole) / CANDIDATES).iterdir()}
    assert max(sizes) < (whole / "last.pkl").stat().st_size


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "supervised"),
        ("--method", "noadap"),
        ("--mode", "makeim"),
        ("--method", "adversarial", "--source_dataset", "SITE"),
        ("--network", "UNet:nG=2", "--load_blocks", 0),
    ],
)
def test_what_adapts_no_trained_network_without_labels_keeps_none(site, source, tmp_path, more):
    more = [site if word == "SITE" else word for word in more]
    with pytest.raises(UserError, match=r"--keep_every 1 keeps copies of .* leave it out"):
        program.main(arguments(site, source, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_negative_number_is_refused(site, source, tmp_path):
    with pytest.raises(UserError, match="--keep_every is -1"):
        program.main(arguments(site, source, tmp_path / "run", "--keep_every", -1))


# -- kills ---------------------------------------------------------------------------------------------------------

OF_A_COMMIT = ("best_3d.pkl", "previous.pkl", "last.pkl")
AFTERWARDS = ("patients_last.csv", *CHOICE, "patients_chosen.csv")


def killed_at(site, number, is_done):
    """The folder of a run that was gone before or after the file of this number got its name."""
    return site.parent / f"{number} {'after' if is_done else 'before'}"


@pytest.fixture(scope="module")
def stages(site, source):
    """The files in the order in which they get their names. The run's folder before and after each is kept, bit by bit
    as a kill at that moment leaves it: two names of one file are that in the copy as well.
    """
    run, seen, replace = site.parent / "watched", [], Path.replace

    def noted(self, target):
        target = Path(target)
        counts = target.name in (*OF_A_COMMIT, *AFTERWARDS) or target.parent.name == CANDIDATES
        if not counts:
            return replace(self, target)
        seen.append(target.name)
        subprocess.run(["cp", "-a", run, killed_at(site, len(seen), False)], check=True)
        found = replace(self, target)
        subprocess.run(["cp", "-a", run, killed_at(site, len(seen), True)], check=True)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", noted)
        program.main(arguments(site, source, run))
    assert seen[:2] == ["epoch_0000.pkl", "best_3d.pkl"]
    assert seen.index("epoch_0002.pkl") + 2 == seen.index("last.pkl", seen.index("epoch_0002.pkl"))
    assert seen[-5:] == ["patients_last.csv", "selection.csv", "selection.txt", CHOSEN, "patients_chosen.csv"]
    return seen


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_killed_at_each_stage_of_each_commit(site, source, whole, stages, is_done):
    for number, name in enumerate(stages, 1):
        run = killed_at(site, number, is_done)
        assert (run / "patients_chosen.csv").exists() == (is_done and number == len(stages))
        program.main(arguments(site, source, run))
        assert differences(whole, run) == [], f"{name}, {number}"


def test_real_kills_at_random_moments(source, tmp_path):
    start = ("--method", "sfda", "--target_losses", LOSS, "--model_weights", source, "--network", NETWORK)
    tally = chaos(tmp_path, 8, 0, *start, "--keep_every", 1)
    assert tally["endings compared"] > 8
    assert tally["SIGKILL"] > 0


@pytest.fixture
def stopped(site, source, tmp_path):
    """A run that was stopped in its third epoch, after the second step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFDA, "step", before_call(2 * STEPS + 2, SFDA.step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(arguments(site, source, tmp_path / "run"))
    assert list(candidates_of(tmp_path / "run")) == [0, 1, 2]
    return tmp_path / "run"


def test_later_copies_and_halves_of_copies_go(site, source, whole, stopped):
    """As where last.pkl was torn: the epoch before it is the one to go on from."""
    (stopped / "last.pkl").write_bytes(b"torn")
    for name in (candidate_name(3), candidate_name(7)):
        shutil.copy(stopped / candidate_name(2), stopped / name)
    (stopped / CANDIDATES / ".epoch_0002.pkl.part-0").write_bytes(b"half")
    with pytest.MonkeyPatch.context() as patch:  # gone again at once
        patch.setattr(SFDA, "step", before_call(1, SFDA.step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(arguments(site, source, stopped))
    assert sorted(path.name for path in (stopped / CANDIDATES).iterdir()) == ["epoch_0000.pkl", "epoch_0001.pkl"]
    program.main(arguments(site, source, stopped))
    assert differences(whole, stopped) == []


def test_a_start_anew_leaves_no_copy_of_other_arguments(site, source, whole, tmp_path):
    """A run that was killed before its first epoch was done binds nobody."""
    argv = arguments(site, source, tmp_path / "run", "--seed", 1)
    for more, expected in (((), [0, 1]), (("--seed", 2), [0, 1]), (("--keep_every", 0), [])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunFolder, "save_last", before_call(1, RunFolder.save_last, crash))
            with pytest.raises(Crash):
                program.main([*argv, *map(str, more)])
        found = candidates_of(tmp_path / "run")
        assert list(found) == expected
        assert {load_checkpoint(path)["seed"] for path in found.values()} <= {more[1] if more else 1}
    program.main(arguments(site, source, tmp_path / "run"))
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("damage", ["torn", "gone", "of another epoch", "of another run"])
def test_a_copy_that_cannot_be_made_again_is_asked_for(site, source, whole, stopped, tmp_path, damage):
    path = stopped / candidate_name(1)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "gone":
        path.unlink()
    elif damage == "of another epoch":
        shutil.copy(stopped / candidate_name(2), path)
    else:
        program.main(arguments(site, source, tmp_path / "other", "--seed", 1, "--n_epoch", 1))
        shutil.copy(copies(tmp_path / "other") / candidate_name(1), path)
    with pytest.raises(UserError, match=rf"epoch_0001.pkl .* put it back, or remove the run \(rm -r {stopped}\)"):
        program.main(arguments(site, source, stopped))
    shutil.copy(copies(whole) / candidate_name(1), path)
    program.main(arguments(site, source, stopped))
    assert differences(whole, stopped) == []


def not_now(*_):
    raise AssertionError("chosen again")


def test_a_run_that_has_ended_chooses_no_more(site, source, whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    assert (run / MADE).exists()
    before = (run / CHOSEN).stat().st_mtime_ns
    monkeypatch.setattr(program, "run_alone", not_now)
    program.main(arguments(site, source, run))
    assert differences(whole, run) == []
    assert (run / CHOSEN).stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert said.count((run / "selection.txt").read_text()) == 1
    assert said.count("Chosen without labels") == 1


@pytest.mark.parametrize("damage", ["torn", "gone", "of another run"])
def test_a_lost_choice_is_made_again_from_the_same_copies(site, source, whole, tmp_path, damage):
    run = shutil.copytree(whole, tmp_path / "run")
    if damage == "torn":
        (run / CHOSEN).write_bytes((run / CHOSEN).read_bytes()[:5000])
    elif damage == "gone":
        (run / CHOSEN).unlink()
    else:
        program.main(arguments(site, source, tmp_path / "other", "--seed", 1, "--n_epoch", 1))
        shutil.copy(tmp_path / "other" / CHOSEN, run)
    with pytest.raises(UserError, match=r"epoch_0001.pkl .* put it back, or remove the run"):
        program.main(arguments(site, source, run))
    shutil.copytree(copies(whole) / CANDIDATES, run / CANDIDATES, dirs_exist_ok=True)
    program.main(arguments(site, source, run))
    assert differences(whole, run) == []


def test_a_choice_before_the_last_epoch_was_made_anew_is_none(site, source, whole, stopped):
    """As where last.pkl was torn after the choice."""
    shutil.copy(whole / CHOSEN, stopped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFDA, "step", before_call(1, SFDA.step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(arguments(site, source, stopped))
    assert not (stopped / CHOSEN).exists()


def test_what_is_chosen_is_a_checkpoint_that_says_why(whole):
    chosen, of = load_checkpoint(whole / CHOSEN), kept(whole)
    told = chosen.pop("choice")
    assert told.keys() == {"candidate", "epoch", "why"}
    assert told["why"] == (whole / "selection.txt").read_text().strip()
    assert bits(chosen["net"]) == of[told["epoch"]] or told["candidate"] == "refresh"
    first = load_checkpoint(whole / candidate_name(0))
    assert bits({name: chosen[name] for name in first if name not in ("net", "epoch")}) == bits(
        {name: first[name] for name in first if name not in ("net", "epoch")}
    )
    assert chosen.keys() == first.keys()


@pytest.mark.parametrize("every", [0, 2])
def test_the_copies_of_one_run_are_all_as_far_apart(site, source, stopped, every):
    with pytest.raises(UserError, match=rf"other arguments or inputs \(keep_every: 1 -> {every}\)"):
        program.main(arguments(site, source, stopped, "--keep_every", every))


def test_a_run_of_before_there_were_copies_is_gone_on_with(site, source, tmp_path, monkeypatch):
    """It has no such argument, and kept none."""
    save = RunFolder.save_tensors

    def without(self, name, state):
        save(self, name, state | {"identity": {k: v for k, v in state["identity"].items() if k != "keep_every"}})

    argv = [*arguments(site, source, tmp_path / "run"), "--keep_every", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_tensors", without)
        patch.setattr(SFDA, "step", before_call(STEPS + 2, SFDA.step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(argv)
    assert "keep_every" not in load_checkpoint(tmp_path / "run" / "last.pkl")["identity"]
    with pytest.raises(UserError, match="keep_every: 0 -> 1"):
        program.main([*argv, "--keep_every", "1"])
    program.main(argv)
    assert load_checkpoint(tmp_path / "run" / "last.pkl")["epoch"] == 2


def test_a_lower_rate_after_a_loss_that_was_not_finite_keeps_the_copies(site, source, stopped):
    (stopped / "nonfinite.pkl").write_bytes(b"what went astray")
    program.main(arguments(site, source, stopped, "--l_rate", 1e-3))
    assert list(candidates_of(copies(stopped))) == [0, 1, 2, 3]
    assert load_checkpoint(stopped / CHOSEN)["choice"]["candidate"] in (
        "source",
        "refresh",
        "epoch 1",
        "epoch 2",
        "epoch 3",
    )
