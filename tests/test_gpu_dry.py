"""The checks of `make gpu` in their dry form, on the CPU, so that a first run on a GPU finds them working."""

import json
import math
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from processes.errors import UserError
from tests.gpu import run, steps
from tests.gpu.checks import Check, Figure, Place, run_check
from tests.modes import Draws
from tests.tools.checkout import ROOT

SKIPPED = {"tests", "compiled"}  # what nothing but a GPU can show


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(results, what is written) of all checks; two methods and one loss stand for the others, to save time."""
    out = tmp_path_factory.mktemp("gpu") / "results" / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "LEARNING", ["sfda", "adversarial"])
        patch.setattr(steps, "DRY", 1)
        results = run.main(["--dry", "--out", str(out)])
    return results, json.loads(out.read_text(encoding="utf-8"))


def test_every_check_passes_or_says_what_it_lacks(dry):
    results, _ = dry
    assert [result.name for result in results] == run.NAMES
    assert {result.name for result in results if result.outcome == "skipped"} == SKIPPED
    for result in results:
        assert result.outcome == ("skipped" if result.name in SKIPPED else "passed"), result.reason
        assert bool(result.reason) == bool(result.name in SKIPPED) == (not result.figures)


def test_all_checks_together_have_eight_minutes():
    assert sum(check.budget for check in run.CHECKS) <= run.MOST == 480


def test_every_figure_is_written_with_what_it_depends_on(dry):
    results, told = dry
    assert told["dry"] is True
    assert (told["device"], told["torch"]) == ("CPU", torch.__version__)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert told["commit"] == (head or None)
    for result, written in zip(results, told["checks"], strict=True):
        assert [figure["what"] for figure in written["figures"]] == [figure.what for figure in result.figures]
        for figure in written["figures"]:
            assert isinstance(figure["value"], str) or (math.isfinite(figure["value"]) and figure["value"] >= 0)


def test_ours_and_the_bare_step_are_both_measured(dry):
    (eager,) = [result for result in dry[0] if result.name == "eager"]
    for method in ("supervised", "sfda"):
        said = [figure.what.split(f"{method}: ")[1] for figure in eager.figures if f" {method}: " in figure.what]
        assert {"bare step", "ours", "ours against the bare step", "outside the step"} < {*said}
        assert {"peak memory, bare step", "peak memory, ours"} < {*said}


def test_the_tests_that_need_a_gpu_are_found():
    files = run.gpu_tests()
    assert {"tests/engine/test_loop.py", "tests/datasets/test_augmentation.py"} <= {*files}
    assert "tests/test_gpu_dry.py" not in files


@pytest.fixture
def place(tmp_path):
    return Place("cpu", True, tmp_path)


def breaks(place):
    yield Figure("before", 1.0)
    raise ValueError("broken on purpose")


def never_ends(place):
    yield Figure("before", 1.0)
    child = subprocess.Popen(["sleep", "600"])
    (place.folder / "child.txt").write_text(str(child.pid))
    time.sleep(600)


def dies(place):
    print("last words", flush=True)
    os._exit(3)


def differs(place):
    return [Figure("alike", 0.0), Figure("apart", 1.0, fault="apart by 1")]


@pytest.mark.parametrize(
    ("measure", "outcome", "reason", "figures"),
    [
        (breaks, "failed", "ValueError: broken on purpose", ["before"]),
        (dies, "failed", "exit code 3: last words", []),
        (differs, "failed", "apart by 1", ["alike", "apart"]),
    ],
)
def test_a_check_that_fails_keeps_its_figures_and_says_why(place, measure, outcome, reason, figures):
    result = run_check(Check("one", 60, measure), place, 60)
    assert (result.outcome, result.failed) == (outcome, True)
    assert reason in result.reason
    assert [figure.what for figure in result.figures] == figures


def test_a_check_that_is_too_slow_ends_with_all_that_it_started(place):
    result = run_check(Check("slow", 60, never_ends), place, 5)
    assert (result.outcome, [figure.what for figure in result.figures]) == ("out of time", ["before"])
    state = Path(f"/proc/{(place.folder / 'child.txt').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    late = run_check(Check("late", 60, never_ends), place, 0)
    assert (late.outcome, late.failed, late.seconds) == ("out of time", True, 0)


def test_one_failure_stops_no_other_check_and_is_the_exit_code(tmp_path, monkeypatch, capsys):
    checks = (Check("first", 60, breaks), Check("second", 60, lambda place: [Figure("alike", 0.0)]))
    monkeypatch.setattr(run, "CHECKS", checks)
    monkeypatch.setattr(run, "NAMES", ["first", "second"])
    with pytest.raises(SystemExit) as end:
        run.main(["--dry", "--out", str(tmp_path / "gpu.json")])
    assert end.value.code == 1
    told = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [check["outcome"] for check in told["checks"]] == ["failed", "passed"]
    assert "1 passed, 1 failed" in capsys.readouterr().out


def test_an_unknown_check_is_an_error():
    with pytest.raises(UserError, match="--only names sink, .*'sync'"):
        run.main(["--only", "sink"])


@pytest.mark.parametrize(("gap", "fails"), [(0.0, False), (0.004, False), (0.006, True), (math.nan, True)])
def test_a_loss_apart_from_the_cpu_s_is_a_fault(place, monkeypatch, gap, fails):
    found = iter([np.array([[0.5, 0.2]]), np.array([[0.5 + gap, 0.2]])])
    monkeypatch.setattr(steps, "an_epoch", lambda *_: next(found))
    assert bool(steps.against_the_cpu(place, "sfda").fault) == fails


def test_a_step_that_looks_at_a_value_is_a_fault(place):
    def looks():
        with steps.no_waiting(place):
            return Figure("a value", torch.ones(1).item())

    figure = steps.attempt("looks", looks)
    assert figure.value == "failed"
    assert "_local_scalar_dense" in figure.fault


def test_draws_are_noted_by_the_device_that_makes_them():
    with Draws("cpu") as here, Draws("meta") as elsewhere:
        torch.rand(3) + torch.ones(3).bernoulli_(0.5)
        torch.empty(3, device="meta").normal_()
    assert here.seen == {"rand", "bernoulli_"}
    assert elsewhere.seen == {"normal_"}


def test_make_gpu_starts_it():
    told = subprocess.run(["make", "-n", "gpu", "CC=python"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "python -m tests.gpu.run"
    shown = subprocess.run(["sed", "-n", "1,7s/^# //p", "Makefile"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "make gpu" in shown
    assert "make help" in shown
