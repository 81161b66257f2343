"""Whatever stops a run, at whatever moment: started again, it ends with the same bits as one never stopped."""

import inspect
import json
import multiprocessing
import operator
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_prior, write_site
from PIL import Image

import main as program
import plot
from engine import loop as training
from engine import run_folder
from engine.run_folder import CsvLog, RunFolder
from methods.base import METHODS
from methods.supervised import Supervised
from nets.checkpoint_files import load_checkpoint
from nets.enet import ENet
from processes.errors import UserError
from processes.ownership import note_made
from tests.tools import chaos as of_chaos
from tests.tools.chaos import ASKED, EPOCHS, ask_to_stop, before_call, chaos, differences
from utils import run_program

STEPS = 4  # of an epoch
SMALLEST = ("--network", "Dimwit", "--l_rate", 0.1)
STILL = ("--augmentation", "{'flip': True, 'rotate': 0}")  # leaves the sizes in an image as they are


class Crash(Exception):
    """The process is gone."""


def crash():
    raise Crash


def arguments(site, run, *more):
    """Chaos's training of the smallest network that has batch norms, which finds the organ in the last epoch."""
    return of_chaos.arguments(site, run, *SMALLEST, *more)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("resume") / "site", 150, 90, seed=2)


@pytest.fixture(scope="module")
def whole(site):
    """A run that nothing disturbed."""
    program.main(arguments(site, site.parent / "whole"))
    return site.parent / "whole"


@pytest.fixture(scope="module")
def stopped(site, whole):
    """The same run, stopped in its third epoch, after the second step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(2 * STEPS + 2, Supervised.step, ask_to_stop))
        stop(arguments(site, site.parent / "stopped"))
    return site.parent / "stopped"


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the stopped run, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "run")


def stop(argv, code=ASKED):
    with pytest.raises(SystemExit) as end:
        program.main(argv)
    assert end.value.code == code


def tear(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Turns the bits of a byte over, in the largest tensor: between the members of the zip lie bytes that mean nothing,
    and where those are depends on the length of the paths that the checkpoint tells."""
    with zipfile.ZipFile(path) as whole:
        largest = max(whole.infolist(), key=lambda member: member.file_size)
        content, stored = bytearray(path.read_bytes()), whole.read(largest)
    content[content.index(stored, largest.header_offset) + len(stored) // 2] ^= 0xFF
    path.write_bytes(content)


def bounded(site):
    """A loss with two terms and a bound."""
    prior = write_prior(site.parent / "prior.csv", site)
    bounds = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    return f"[('EntKLProp', {{}}, 'PredictionBounds', {bounds}, 'soft_size', 1)]"


# -- kills --------------------------------------------------------------------------------------------------------


def test_ten_kills_ten_identical_endings(tmp_path):
    """More of them: make chaos."""
    tally = chaos(tmp_path, 10, 0, *SMALLEST)
    assert tally["endings compared"] > 10
    assert tally["SIGKILL"] > 0
    assert tally["SIGTERM"] > 0


ENCODER, LOCAL = ["--network", "UNet:nG=2"], ["--local_blocks", 2]
CASES = {
    "augmented": [],
    "looking otherwise": ["--augmentation", "{'preset': 'slaug', 'fourier': 0.5, 'label_gin': 0.5, 'ipa': 0.3}"],
    "dropout": ["--network", "ENet:kernels=4", "--n_epoch", 2],
    "a second stream": ["--method", "adversarial", "--d_stride", 1, "--d_width", 4, "--lambda_adv", 1e-2, 1e-3],
    "updates out of several batches": ["--method", "adversarial", "--d_stride", 1, "--d_width", 4, "--iter_size", 3],
    "scheduled weights, halved rates": ["--scheduler", "StealWeight", "--schedule"],
    "batch-norm statistics of the epoch": ["--method", "sfda", "--bn_stats", "refresh", "--n_epoch", 3],
    "a pre-training": ["--method", "contrastive_global", "--n_parts", 2, *ENCODER],
    "its second stage": [
        "--method",
        "contrastive_local",
        "--strategy",
        "LD",
        "--n_parts",
        2,
        "--local_blocks",
        2,
        *ENCODER,
    ],
    "mixed pairs": ["--method", "mixup"],
    "mixed styles": ["--method", "mix_style"],
    "two views a step": ["--method", "saliency"],
    "two views that agree": ["--method", "ipa"],
    "an average, and weights of the epoch before": ["--method", "mean_teacher", "--ema", 0.5],
    "images that are remembered": ["--method", "rotta", "--memory", 3],
    "positions that drop features": ["--method", "upl", "--tau", 0.6],
    "labels that were made before the first step": ["--method", "denoised", "--most_spread", 0.2],
    "labels that are refined": ["--method", "cpr", "--most_spread", 0.2],
    "a learnt threshold": ["--method", "pseudo_label", "--threshold", "learnt", "--warmup_start", 0.3],
}


@pytest.mark.parametrize("name", CASES)
def test_asked_to_stop_in_the_middle_of_an_epoch(site, whole, tmp_path, name, monkeypatch, capsys):
    more = CASES[name]
    monkeypatch.setattr(ENet, "_dilated_stage", staticmethod(lambda _: []))  # two thirds of its layers, all alike
    if "sfda" in more:
        more = [*more, "--target_losses", bounded(site), "--model_weights", whole / "last.pkl", *STILL]
    if {"mean_teacher", "upl", "denoised", "cpr", "rotta"} & set(more):
        more = [*more, "--model_weights", whole / "last.pkl"]
    if "adversarial" in more:
        more = [*more, "--source_dataset", site]
    if "contrastive_local" in more:
        program.main(arguments(site, tmp_path / "first", *ENCODER, "--n_epoch", 1))
        more = [*more, "--model_weights", tmp_path / "first" / "last.pkl", "--load_blocks", 0]
    if "pseudo_label" in more:
        more = [*more, "--unlabelled_dataset", site, "--unlabelled_split", "val"]
    if "--scheduler" in more:
        more = [*more, "--target_losses", "[('CrossEntropy', {}, 1), ('DiceLoss', {}, 0.01)]"]
    program.main(arguments(site, tmp_path / "whole", *more))
    argv = arguments(site, tmp_path / "run", *more)
    with monkeypatch.context() as patch:
        kind = METHODS[more[1]] if "--method" in more[:1] else Supervised
        patch.setattr(kind, "step", before_call(STEPS + 2, kind.step, ask_to_stop))
        stop(argv)
    assert (tmp_path / "run" / "paused.pkl").exists()
    assert "Stopped in epoch 2, after step 2" in capsys.readouterr().out
    program.main(argv)
    assert "Going on in epoch 2, after step 2." in capsys.readouterr().out
    assert differences(tmp_path / "whole", tmp_path / "run") == []


MOMENTS = {
    "while the data are opened": (program, "open_data", 1, "Stopped in epoch 1, after step 0;", "after step 0."),
    "in an evaluation": (training, "evaluate", 2, "Stopped in epoch 2, after step 4;", "in epoch 2, after step 4."),
    "in the score of the last": (training, "evaluate", EPOCHS + 1, "", "Every epoch is done."),
    "in the score of the best": (training, "evaluate", EPOCHS + 2, "", "Every epoch is done."),
}


@pytest.mark.parametrize("when", MOMENTS)
def test_asked_to_stop_elsewhere(site, whole, tmp_path, when, monkeypatch, capsys):
    module, function, number, says, goes_on = MOMENTS[when]
    argv = arguments(site, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(module, function, before_call(number, getattr(module, function), ask_to_stop))
        stop(argv)
    assert says in capsys.readouterr().out
    program.main(argv)
    assert goes_on in capsys.readouterr().out
    assert differences(whole, tmp_path / "run") == []


def test_an_evaluation_alone_can_be_stopped(site, whole, tmp_path, monkeypatch):
    argv = arguments(site, tmp_path / "run", "--method", "noadap", "--model_weights", whole / "last.pkl")
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", before_call(1, training.evaluate, ask_to_stop))
        stop(argv)
    program.main(argv)
    assert len(pd.read_csv(tmp_path / "run" / "IMG_target_metrics.csv")) == 1


def test_ctrl_c_notes_how_far_it_came_too(site, whole, tmp_path, monkeypatch):
    argv = arguments(site, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(2, Supervised.step, partial(ask_to_stop, signal.SIGINT)))
        stop(argv, 128 + signal.SIGINT)
    (tmp_path / "run" / ".paused.pkl.part-0").write_bytes(b"a kill while another pause was written")
    program.main(argv)
    assert differences(whole, tmp_path / "run") == []


def test_a_prior_that_is_estimated_anew_goes_on_from_where_it_was(site, whole, tmp_path, monkeypatch):
    """Asked to stop in the third epoch, after two steps; and killed when the third epoch was done."""
    prior = write_prior(tmp_path / "prior.csv", site, size=150)
    told = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0.1, "dir": "both"}
    losses = f"[('EntKLProp', {{'reestimate': 0.5}}, 'PredictionBounds', {told}, 'soft_size', 1)]"
    start = (
        "--method",
        "sfda",
        "--model_weights",
        whole / "last.pkl",
        "--target_losses",
        losses,
        "--l_rate",
        3e-3,
        *STILL,
    )
    runs = [tmp_path / name for name in ("through", "asked", "killed")]
    through, asked, killed = (arguments(site, run, *start) for run in runs)
    program.main(through)
    factors = load_checkpoint(runs[0] / "last.pkl")["method"]["priors"]["EntKLProp"]["factors"].tolist()
    assert 0.25 <= factors[1] < 0.95
    log = pd.read_csv(runs[0] / "IMG_target_metrics.csv")
    assert log["prior_EntKLProp_1"].tolist()[0] == 1
    assert log["prior_EntKLProp_1"].nunique() == EPOCHS
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(2 * STEPS + 2, Supervised.step, ask_to_stop))
        stop(asked)
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(3 * STEPS + 1, Supervised.step, crash))
        with pytest.raises(Crash):
            program.main(killed)
    for argv in (asked, killed):
        program.main(argv)
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []


def test_a_shape_that_is_estimated_anew_goes_on_from_where_it_was(site, whole, tmp_path, monkeypatch):
    """Asked to stop in the second epoch, after two steps."""
    losses = "[('ShapeMoments', {}, 'ConstantBounds', {'values': [400, 80]}, None, 1)]"
    start = ("--method", "sfda", "--model_weights", whole / "last.pkl", "--target_losses", losses, *STILL)
    through, asked = (arguments(site, tmp_path / name, *start, "--l_rate", 1e-4) for name in ("through", "asked"))
    program.main(through)
    assert load_checkpoint(tmp_path / "through/last.pkl")["method"]["priors"]["ShapeMoments"]["counts"].item() > 0
    log = pd.read_csv(tmp_path / "through/IMG_target_metrics.csv")
    assert (log["tra_loss_tot"] > 0).tolist() == [epoch > 0 for epoch in range(EPOCHS)]
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(STEPS + 2, Supervised.step, ask_to_stop))
        stop(asked)
    program.main(asked)
    assert differences(tmp_path / "through", tmp_path / "asked") == []


def test_killed_between_the_two_renames_of_a_commit(site, whole, run, monkeypatch):
    """previous.pkl and last.pkl are one file then, and a rename of one to the other would do nothing."""
    argv, save = arguments(site, run), RunFolder.save

    def save_until_the_last(self, name, state):
        if name == "last.pkl" and state["epoch"] == EPOCHS - 1:
            raise Crash
        save(self, name, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_until_the_last)
        with pytest.raises(Crash):
            program.main(argv)
    assert (run / "previous.pkl").samefile(run / "last.pkl")
    program.main(argv)
    assert differences(whole, run) == []


# -- damaged files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [tear, flip])
def test_a_torn_checkpoint_falls_back_to_the_one_before(site, whole, run, damage, capsys):
    damage(run / "last.pkl")
    program.main(arguments(site, run))
    said = capsys.readouterr()
    assert "last.pkl is no checkpoint of this program or is torn" in said.err
    assert "Going on after epoch 1." in said.out
    assert differences(whole, run) == []


def test_the_one_before_survives_a_kill_right_after(site, whole, run, monkeypatch):
    """The first commit after the fall-back must not put the torn one in the place of the whole one."""
    tear(run / "last.pkl")
    argv = arguments(site, run)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_tensors", before_call(1, RunFolder.save_tensors, crash))
        with pytest.raises(Crash):
            program.main(argv)
    program.main(argv)
    assert differences(whole, run) == []


def test_the_one_before_is_kept_where_a_file_system_knows_no_links(site, whole, run, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder, before = RunFolder.__new__(RunFolder), (run / "last.pkl").read_bytes()
    folder.path, folder.torn_names, folder.identity = run, [], {}
    folder.save_last({"epoch": 1, "net": {}})
    assert (run / "previous.pkl").read_bytes() == before
    assert load_checkpoint(run / "last.pkl")["epoch"] == 1


def changed(path, *place, value):
    """Writes the checkpoint with another value at this place; `value` of the old one, if it is a function."""
    state = torch.load(path, weights_only=True)
    holder = reduce(operator.getitem, place[:-1], state)
    holder[place[-1]] = value(holder[place[-1]]) if callable(value) else value
    torch.save(state, path)


OPTIMISER = ("method", "optimiser")
STATE = (*OPTIMISER, "state", 0)
IMPOSSIBLE = {
    "a word for the epoch in which one class began": ("last", "alarms", "one_class", "since", "x"),
    "a list of halvings": ("last", "method", "halvings", []),
    "shares of three classes": ("last", "alarms", "training", "source", [0.5, 0.25, 0.25]),
    "a best epoch that is none": ("last", "best", "epoch", None),
    "a faster rate after a collapse": ("last", "caution", 2.5),
    "half of Adam's moments": ("paused", *STATE, lambda moments: {k: moments[k] for k in ("step", "exp_avg")}),
    "a step for each channel": ("paused", *STATE, "step", torch.ones(4)),
    "parameters in another order": ("paused", *OPTIMISER, "param_groups", 0, "params", lambda order: order[::-1]),
    "rows of a table": ("paused", "rows", 0, lambda rows: rows[None]),
    "rows of half slices": ("paused", "rows", 0, lambda rows: rows / 2),
    "rows of another set": ("paused", "rows", 0, lambda rows: rows + 10**6),
    "no counts of the steps": ("paused", "counts", []),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_checkpoint_that_tells_what_cannot_be_is_refused(site, run, what):
    name, *place, value = IMPOSSIBLE[what]
    changed(run / f"{name}.pkl", *place, value=value)
    with pytest.raises(UserError, match=rf"{name}.pkl does not hold the state of this run \(ValueError: "):
        program.main(arguments(site, run))


@pytest.mark.parametrize("epoch", [-1, EPOCHS, 10**30])
def test_a_checkpoint_of_an_epoch_that_the_run_does_not_have_falls_back(site, whole, run, epoch, capsys):
    changed(run / "last.pkl", "epoch", value=epoch)
    program.main(arguments(site, run))
    assert f"last.pkl is of epoch {epoch}, counted from 0, of a run of {EPOCHS}." in capsys.readouterr().err
    assert differences(whole, run) == []


def test_a_setting_that_an_older_optimiser_did_not_tell_is_the_run_s(site, whole, run):
    changed(run / "last.pkl", *OPTIMISER, "param_groups", 0, value=lambda group: group.pop("eps") and group)
    changed(run / "paused.pkl", *OPTIMISER, "param_groups", 0, value=lambda group: group.pop("eps") and group)
    program.main(arguments(site, run))
    assert differences(whole, run) == []


def test_no_whole_checkpoint_is_said(site, run):
    tear(run / "last.pkl")
    flip(run / "previous.pkl")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole \(last.pkl, previous.pkl\); remove it"):
        program.main(arguments(site, run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_torn_pause_costs_its_steps_alone(site, whole, run, capsys):
    tear(run / "paused.pkl")
    program.main(arguments(site, run))
    said = capsys.readouterr()
    assert "paused.pkl is no checkpoint of this program or is torn" in said.err
    assert "Going on after epoch 2." in said.out
    assert "after step" not in said.out
    assert differences(whole, run) == []


def test_half_a_row_of_the_log_is_cut_off(site, whole, run):
    with (run / "IMG_target_metrics.csv").open("a") as log:
        log.write("2,0.25,0.")
    program.main(arguments(site, run))
    assert differences(whole, run) == []


def test_lost_rows_of_the_log_are_said(site, run):
    log = run / "IMG_target_metrics.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="lost rows of the 2 epochs"):
        program.main(arguments(site, run))


# -- a full disk --------------------------------------------------------------------------------------------------


def test_a_full_disk_at_any_write(tmp_path):
    """tests/tools/full_disk.py, in a mount namespace where it may mount a small file system."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace (unshare -rm), which is not permitted here")
    command = ["unshare", "-rm", sys.executable, "-m", "tests.tools.full_disk", str(tmp_path / "full")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in (
        ".cache/",
        "run/provenance.json",
        "run/cost.json",
        ".npy",
        ".csv",
        "run/last.pkl",
        "run/iter",
        "run/last_epoch/",
    ):
        assert kind in done.stdout


def test_a_refused_row_leaves_the_log_whole(tmp_path):
    """Half of the row fits into the file."""
    log = CsvLog(tmp_path / "log.csv", ["epoch", "loss"], epochs_done=0)
    log.append({"epoch": 0, "loss": 0.5})
    before, limits = log.path.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append({"epoch": 1, "loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.read_text() == before


def test_a_log_of_other_columns_is_not_gone_on_with(tmp_path):
    CsvLog(tmp_path / "log.csv", ["epoch", "loss"], epochs_done=0).append({"epoch": 0, "loss": 1.0})
    CsvLog(tmp_path / "log.csv", ["epoch", "loss"], epochs_done=1)
    with pytest.raises(UserError, match="begun by another version .* columns: size"):
        CsvLog(tmp_path / "log.csv", ["epoch", "loss", "size"], epochs_done=1)


def test_without_a_cache_the_run_is_the_same(site, whole, tmp_path, capsys):
    caches = list(site.glob("*/.cache"))
    for cache in caches:
        shutil.rmtree(cache)
        cache.write_text("in the way")
    try:
        program.main(arguments(site, tmp_path / "run"))
    finally:
        for cache in caches:
            cache.unlink()
    assert capsys.readouterr().err.count("its slices are held in memory") == 2  # told once a split, train and val
    assert differences(whole, tmp_path / "run") == []


# -- other code ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def code_is_asked_for_anew(monkeypatch):
    monkeypatch.setattr(run_folder, "describe_sources", inspect.unwrap(run_folder.describe_sources))


def provenance(run):
    return json.loads((run / "provenance.json").read_text())


def test_other_code_is_told_and_both_are_kept(site, whole, run, monkeypatch, capsys):
    begun = provenance(run)
    monkeypatch.setattr(run_folder, "describe_sources", lambda: "other")
    with monkeypatch.context() as patch:  # stopped again, before the next epoch is done
        patch.setattr(Supervised, "step", before_call(1, Supervised.step, ask_to_stop))
        stop(arguments(site, run))
    assert "was begun with other code" in capsys.readouterr().err
    program.main(arguments(site, run))
    assert "other code" not in capsys.readouterr().err
    found = provenance(run)
    assert found["code"] == "other"
    assert [(part["code"], part["commit"], part["until_epoch"]) for part in found["earlier"]] == [
        (begun["code"], begun["commit"], 2)
    ]
    assert differences(whole, run) == []


def test_other_libraries_are_told_in_a_line_and_the_run_goes_on(site, whole, run, monkeypatch, capsys):
    monkeypatch.setattr(np, "__version__", "9.9")
    program.main(arguments(site, run))
    told = [line for line in capsys.readouterr().err.splitlines() if "was begun with other libraries" in line]
    assert len(told) == 1
    assert (
        f"(numpy {provenance(whole)['versions']['numpy']} -> 9.9): its numbers may differ in their last bits" in told[0]
    )
    assert provenance(run)["earlier"][0]["versions"] == provenance(whole)["versions"]
    assert differences(whole, run) == []


def test_the_same_code_is_not_told(site, run, capsys):
    program.main(arguments(site, run))
    assert "other code" not in capsys.readouterr().err
    assert provenance(run)["earlier"] == []


def test_code_is_known_by_the_modules_that_are_loaded(monkeypatch, tmp_path):
    before = run_folder.describe_sources()
    assert run_folder.describe_sources() == before
    for path in (tmp_path / "losses.py", tmp_path / "site-packages" / "other.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("first")
        monkeypatch.setitem(sys.modules, path.stem, SimpleNamespace(__file__=str(path)))
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    first = run_folder.describe_sources()
    (tmp_path / "site-packages" / "other.py").write_text("second")
    assert run_folder.describe_sources() == first != before
    (tmp_path / "losses.py").write_text("second")
    assert run_folder.describe_sources() != first


# -- a loss that is not finite --------------------------------------------------------------------------------------


def test_a_run_that_went_astray_goes_on_at_a_lower_rate_and_at_no_other(site, tmp_path, monkeypatch, capsys):
    argv = arguments(site, tmp_path / "run", "--n_epoch", 2, "--l_rate", 1e-2)
    with monkeypatch.context() as patch:
        found = iter([[], ["body.0.weight"]])
        patch.setattr(training, "not_finite", lambda state: next(found))
        with pytest.raises(UserError, match="not finite after epoch 2: .*the same command at a lower --l_rate"):
            program.main(argv)
    assert load_checkpoint(tmp_path / "run" / "last.pkl")["epoch"] == 0
    with pytest.raises(UserError, match=r"other arguments or inputs \(l_rate: 0.01 -> 0.02\)"):
        program.main([*argv, "--l_rate", "2e-2"])
    program.main([*argv, "--l_rate", "1e-3"])
    assert "From here on --l_rate is 0.001; until epoch 1 0.01." in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "run" / "IMG_target_metrics.csv").lr.tolist() == [1e-2, 1e-3]


def test_the_batch_of_a_loss_that_is_not_finite_is_kept(site, tmp_path, monkeypatch):
    """As the step saw it, augmented; and the checkpoint of the epoch before is whole."""
    argv = arguments(site, tmp_path / "run", "--target_losses", bounded(site), *STILL)
    step, seen = Supervised.step, []

    def poisoned(self, batches):
        seen.append(batches["target"])
        terms, logits = step(self, batches)
        return {name: term * (np.nan if len(seen) == STEPS + 3 else 1) for name, term in terms.items()}, logits

    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", poisoned)
        with pytest.raises(UserError, match="not finite in epoch 2, step 3: tot nan, EntKLProp_entropy nan"):
            program.main(argv)
    kept, batch = torch.load(tmp_path / "run" / "nonfinite.pkl", weights_only=True), seen[STEPS + 2]
    assert torch.equal(kept["image"], batch.image)
    assert all(torch.equal(*pair) for pair in zip(kept["targets"], batch.targets, strict=True))
    assert all(torch.equal(*pair) for pair in zip(kept["bounds"], batch.bounds, strict=True))
    assert len(kept["bounds"]) == 1
    assert list(kept["terms"]) == ["tot", "EntKLProp_entropy", "EntKLProp_prior"]
    assert np.isnan(list(kept["terms"].values())).all()
    raw = [np.asarray(Image.open(site / "train" / "IMG" / f"{name}.png")) / 255 for name in kept["names"]]
    assert not np.allclose(kept["image"][:, 0].numpy(), raw, atol=1e-3)
    assert load_checkpoint(tmp_path / "run" / "last.pkl")["epoch"] == 0
    program.main(argv)
    program.main(arguments(site, tmp_path / "whole", "--target_losses", bounded(site), *STILL))
    (tmp_path / "run" / "nonfinite.pkl").rename(tmp_path / "whole" / "nonfinite.pkl")
    note_made(tmp_path / "whole", ["nonfinite.pkl"])
    assert differences(tmp_path / "whole", tmp_path / "run") == ["only one has nonfinite.pkl"]


# -- evaluation now and then ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seldom(site):
    """Eight epochs, validated after the fourth, the seventh and the last, of a network that finds the organ."""
    program.main(of_chaos.arguments(site, site.parent / "seldom", "--n_epoch", 8, "--eval_every", 3))
    return site.parent / "seldom"


def test_only_evaluated_epochs_have_validation_cells(seldom):
    table = pd.read_csv(seldom / "IMG_target_metrics.csv")
    cells = [name for name in table if name.startswith("val_")]
    assert table.index[table[cells].notna().all(axis=1)].tolist() == [3, 6, 7]
    assert table.index[table[cells].isna().all(axis=1)].tolist() == [0, 1, 2, 4, 5]
    assert table.tra_loss_tot.notna().all()
    assert np.isfinite(np.load(seldom / "val_sizes.npy")).all((1, 2)).nonzero()[0].tolist() == [3, 6, 7]
    assert int((seldom / "3dbestepoch.txt").read_text().split(",")[0]) == table.val_dice_3d.idxmax()


@pytest.mark.parametrize("kind", ["curves", "losses", "sizes", "boxes", "gif"])
def test_seldom_evaluated_runs_are_drawn(seldom, tmp_path, kind):
    which = "--runs" if kind in ("curves", "boxes") else "--run"
    out = tmp_path / f"plot.{'gif' if kind == 'gif' else 'png'}"
    plot.main([kind, which, str(seldom), "--out", str(out)])
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert (np.ptp(picture, axis=2) > 60).sum() > 50


def test_the_curve_goes_on_between_evaluated_epochs(seldom, tmp_path):
    plot.main(["curves", "--runs", str(seldom), "--column", "val_dice_3d", "--out", str(tmp_path / "plot.png")])
    picture = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).astype(int)
    picture = picture[:, : int(0.85 * picture.shape[1])]  # without the legend
    blue = np.abs(picture - (0, 114, 178)).max(2) < 40
    columns = np.flatnonzero(blue.any(0))
    assert len(columns) > 0.4 * picture.shape[1]
    assert (np.diff(columns) == 1).all()


# -- two processes --------------------------------------------------------------------------------------------------


def _train_slowly(argv, begun, go_on):
    def wait():
        begun.set()
        go_on.wait()

    Supervised.step = before_call(2, Supervised.step, wait)
    program.main(argv)


def test_a_second_process_on_a_run_is_refused(site, whole, tmp_path, capsys):
    argv, fork = arguments(site, tmp_path / "run"), multiprocessing.get_context("fork")
    begun, go_on = fork.Event(), fork.Event()
    first = fork.Process(target=_train_slowly, args=(argv, begun, go_on))
    first.start()
    assert begun.wait(600)
    try:
        with pytest.raises(SystemExit) as end:
            run_program(partial(program.main, argv))
    finally:
        go_on.set()
        first.join()
    assert end.value.code == 2
    assert f"is being worked on by process {first.pid}" in capsys.readouterr().err
    assert first.exitcode == 0
    assert differences(whole, tmp_path / "run") == []
