"""What this machine's GPU makes of the pipeline, in one go of at most eight minutes.

    make gpu          (python -m tests.gpu.run [--dry] [--only sync,team] [--out results/gpu.json])

Runs the checks one after the other, each in a process of its own and with a limit of its own, prints a table and
writes it as JSON. A check that fails or is too slow stops no other; the exit code is then 1. Without a GPU, and with
--dry, all that can be run on a CPU is run in tiny sizes: it shows that the checks work, and its figures mean nothing.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from processes.errors import UserError
from tests.benchmarks.table import number
from tests.gpu import runs, speed, steps
from tests.gpu.checks import Check, Figure, Place, Result, run_check
from tests.tools.checkout import ROOT
from utils import ProgramParser, atomic_write, nearest, run_program

MOST = 480.0  # s of all checks together, on a GPU
PATIENCE = 600.0  # s of each in the dry form, on a CPU that may have much else to do
MARK = "mark.gpu"


def gpu_tests() -> list[str]:
    """The files of the tests that need a GPU."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if f"pytest.{MARK}" in path.read_text(encoding="utf-8")]


def run_tests(place: Place) -> list[Figure]:
    """pytest's own verdict on them."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", *gpu_tests()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    fault = "" if done.returncode == 0 else "; ".join(failed) or f"pytest ended with exit code {done.returncode}"
    return [Figure("tests that need a GPU", lines[-1] if lines else done.stderr[-200:], fault=fault)]


# in the order in which they run: what tells whether the rest is worth its time, then the figures; 475 s of budget
CHECKS = (
    Check("defaults", 20, runs.defaults),
    Check("sync", 40, steps.sync),
    Check("methods", 45, steps.methods),
    Check("deterministic", 25, steps.deterministic),
    Check("tests", 50, run_tests, needs="the tests that need a GPU are skipped without one"),
    Check("runs", 35, runs.runs),
    Check("team", 55, runs.team),
    Check("eager", 50, speed.eager),
    Check("compiled", 70, speed.compiled, needs="a CPU takes minutes to compile a network"),
    Check("layouts", 35, speed.layouts),
    Check("adversarial", 20, speed.adversarial),
    Check("refresh", 15, speed.refresh),
    Check("augmentation", 15, speed.augmentation),
)
NAMES = [check.name for check in CHECKS]


def read_options(argv: Sequence[str] | None = None) -> Namespace:
    parser = ProgramParser("make gpu", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, also where there is a GPU")
    parser.add_argument("--only", default=",".join(NAMES), metavar="A,B", help=f"out of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"), help="default: %(default)s")
    options = parser.parse_args(argv)
    options.only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in options.only if name not in NAMES]:
        raise UserError(f"--only names {unknown[0]}, which is no check.{nearest(unknown[0], NAMES)}")
    return options


def output_of(*words: str) -> str | None:
    """The first line that a program prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), "")


def describe_machine(on_gpu: bool) -> dict[str, Any]:
    """What the figures depend on."""
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "devices": torch.cuda.device_count() if on_gpu else 0,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if on_gpu else None,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": output_of("git", "rev-parse", "HEAD"),
        "changed": bool(output_of("git", "status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def lines_of(result: Result) -> list[str]:
    """A check as lines of the table."""
    head = f"{result.name:14} {result.outcome:12} {result.seconds:5.0f} s of {result.limit:.0f}"
    lines = [head if result.outcome != "skipped" else f"{result.name:14} skipped      {result.reason}"]
    lines += [f"    {result.reason}"] if result.failed else []
    for figure in result.figures:
        value = figure.value if isinstance(figure.value, str) else number(figure.value)
        lines.append(f"    {figure.what:78} {value:>9} {figure.unit:17} {figure.note}".rstrip())
    return lines


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Returns what became of each check. Raises SystemExit with 1 if one of them failed."""
    options = read_options(argv)
    there = torch.cuda.is_available()
    dry, begin = options.dry or not there, time.perf_counter()
    machine = describe_machine(not dry)
    print(f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, commit {machine['commit']}")
    if dry:
        importlib.import_module("torch._dynamo")  # the first optimiser of a process would, and each check is a fork
        why = "--dry" if options.dry else "There is no GPU here"
        print(
            f"{why}: the dry form, in tiny sizes on the CPU. It shows that the checks work; its figures mean nothing."
        )
    results, folder = [], Path(tempfile.mkdtemp(prefix="gpu-"))
    try:
        place = Place("cpu" if dry else "cuda", dry, folder)
        for check in (check for check in CHECKS if check.name in options.only):
            left = MOST - (time.perf_counter() - begin)
            results.append(run_check(check, place, PATIENCE if dry else min(check.budget, left)))
            print(*lines_of(results[-1]), sep="\n", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    spent = time.perf_counter() - begin
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out, "w") as file:
        told = {"dry": dry, "seconds": spent, **machine, "checks": [asdict(result) for result in results]}
        file.write(json.dumps(told, indent=1) + "\n")
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in OUTCOMES}
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    print(f"\n{said} in {spent:.0f} s. Written to {options.out}.")
    if any(result.failed for result in results):
        raise SystemExit(1)
    return results


OUTCOMES = ("passed", "failed", "out of time", "skipped")

if __name__ == "__main__":
    run_program(main)
