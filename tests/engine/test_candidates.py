"""The copies of its network that an adaptation keeps: which there are, and that a kill at any moment changes none."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_site

import main as program
from engine.run_folder import RunFolder
from files.run_names import CANDIDATES, candidate_name, candidates_of
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
    return {number: bits(load_checkpoint(path)["net"]) for number, path in candidates_of(run).items()}


# -- which there are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "epochs", "expected"), [(2, 5, [0, 2, 4, 5]), (2, 4, [0, 2, 4]), (9, 2, [0, 2])])
def test_every_n_epochs_and_the_last(site, source, tmp_path, every, epochs, expected):
    program.main(arguments(site, source, tmp_path / "run", "--keep_every", every, "--n_epoch", epochs))
    assert list(candidates_of(tmp_path / "run")) == expected
    assert [path.name for path in sorted((tmp_path / "run" / CANDIDATES).iterdir())] == [
        f"epoch_{number:04d}.pkl" for number in expected
    ]


def test_none_is_kept_unless_asked_for(site, source, whole, tmp_path):
    """And the run is otherwise the same."""
    program.main(arguments(site, source, tmp_path / "run", "--keep_every", 0))
    assert candidates_of(tmp_path / "run") == {}
    last = load_checkpoint(tmp_path / "run" / "last.pkl")["net"]
    assert bits(last) == bits(load_checkpoint(whole / "last.pkl")["net"])


def test_a_copy_is_a_checkpoint_without_an_optimiser(source, whole):
    last = load_checkpoint(whole / "last.pkl")
    told = ("network", "in_channels", "n_class", "seed", "preprocessing", "identity")
    for number, path in candidates_of(whole).items():
        copy = load_checkpoint(path)
        assert copy.keys() == {*told, "net", "epoch"}
        assert {name: copy[name] for name in told} == {name: last[name] for name in told}
        assert copy["epoch"] == number - 1
        assert {value.dtype for value in copy["net"].values() if value.is_floating_point()} == {torch.float32}
        load_weights(build_network(NETWORK, 1, 2), path, NETWORK, 1, 2)
    of = kept(whole)
    assert of[0] == bits(load_checkpoint(source)["net"])
    assert of[3] == bits(last["net"])
    assert len({str(copy) for copy in of.values()}) == len(of) == 4


def test_what_the_folder_is_known_to_hold(whole):
    assert CANDIDATES in made_by_run(whole)
    assert sum(path.stat().st_size for path in (whole / CANDIDATES).iterdir()) < 4 * (whole / "last.pkl").stat().st_size


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


def crash_at(number, is_done, seen):
    """`Path.replace`, gone before or after its call of this number that ends in a file of a commit."""
    replace = Path.replace

    def until(self, target):
        target = Path(target)
        counts = target.name in OF_A_COMMIT or target.parent.name == CANDIDATES
        seen.extend([target.name] * counts)
        here = counts and len(seen) == number
        if here and not is_done:
            raise Crash
        found = replace(self, target)
        if here:
            raise Crash
        return found

    return until


@pytest.fixture(scope="module")
def stages(site, source):
    """The files in the order in which they get their names."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", crash_at(-1, False, seen))
        program.main(arguments(site, source, site.parent / "watched"))
    assert seen[:2] == ["epoch_0000.pkl", "best_3d.pkl"]
    assert seen.index("epoch_0002.pkl") + 2 == seen.index("last.pkl", seen.index("epoch_0002.pkl"))
    return seen


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_killed_at_each_stage_of_each_commit(site, source, whole, stages, tmp_path, is_done):
    for number in range(1, len(stages) + 1):
        argv = arguments(site, source, tmp_path / str(number))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", crash_at(number, is_done, []))
            with pytest.raises(Crash):
                program.main(argv)
        program.main(argv)
        assert differences(whole, tmp_path / str(number)) == [], f"{stages[number - 1]}, {number}"


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
        shutil.copy(tmp_path / "other" / candidate_name(1), path)
    with pytest.raises(UserError, match=rf"epoch_0001.pkl .* put it back, or remove the run \(rm -r {stopped}\)"):
        program.main(arguments(site, source, stopped))
    shutil.copy(whole / candidate_name(1), path)
    program.main(arguments(site, source, stopped))
    assert differences(whole, stopped) == []


def test_a_run_that_has_ended_needs_no_copy_any_more(site, source, whole, tmp_path):
    """Once one is chosen the others may go."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / candidate_name(2)).unlink()
    assert (run / MADE).exists()
    program.main(arguments(site, source, run))
    assert list(candidates_of(run)) == [0, 1, 3]


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
    assert list(candidates_of(stopped)) == [0, 1, 2, 3]
