"""Kills a training at random moments, and shows that it ends with the same bits as one that was never killed.

    make chaos                                             200 kills
    python -m tests.tools.chaos --kills 50 --seed 7 --keep FOLDER

Each kill hits a living process: SIGKILL, or SIGTERM, which the process answers by noting how far it came and which
now and then SIGKILL cuts short. A copy of what the kill left is led to its end and compared with the undisturbed run,
file by file; the killed run itself goes on and is killed again, until it ends by itself and is compared too.
"""

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import main as program
from files.run_names import COST
from nets.checkpoint_files import load_checkpoint
from tests.conftest import CROSS_ENTROPY, FOLDERS, write_site
from utils import run_program

EPOCHS = 4
HARD = 2 / 3  # share of the kills that are SIGKILL
GRACE = 1 / 4  # share of the SIGTERMs that a SIGKILL follows before long
NO_CACHE = 1 / 4  # share of the starts that find no decoded slices
ASKED = 128 + signal.SIGTERM  # exit code of a run that was asked to stop and noted how far it came
OWN = ("params.txt", "provenance.json", COST)  # they tell where and when a run was made, and how long it took
SPARE = (".*.part-*", "previous.pkl", "paused.pkl", ".lock")  # what a finished run has no more


class ChaosError(Exception):
    """A run that does not end as it should."""


def arguments(site: Path, run: Path, *more: object) -> list[str]:
    """A training that writes all that a training can: masks, distances, two checkpoints; `more` wins."""
    return [
        *("--target_dataset", str(site), "--workdir", str(run), "--target_folders", FOLDERS, "--n_class", "2"),
        *("--target_losses", CROSS_ENTROPY, "--grp_regex", r"(Case\d+)_(\d+)", "--network", "UNet:nG=4", "--cpu"),
        *("--n_epoch", str(EPOCHS), "--l_rate", "1e-2", "--augment", "--saveim", "--do_hd", "1", "--resume"),
        *map(str, more),
    ]


# ------------------------------------------------------------------------------------------------- comparing


def differences(whole: Path, run: Path) -> list[str]:
    """What sets a finished run apart from another: files, bits of tensors, arrays and masks, rows of the log."""
    files, ours = ({str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()} for top in (whole, run))
    found = [f"only one has {name}" for name in sorted(files ^ ours)]
    found += [f"{path} is left over" for top in (whole, run) for name in SPARE for path in top.rglob(name)]
    same = {".pkl": _same_states, ".csv": _same_tables}
    for name in sorted((files & ours) - {*OWN}):
        if not same.get(Path(name).suffix, _same_bytes)(whole / name, run / name):
            found.append(f"{name} differs")
    return found


def _same_bytes(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


def _same_tables(first: Path, second: Path) -> bool:
    """Cell by cell as they are written, without the clock."""
    tables = [pd.read_csv(path, dtype=str).drop(columns="seconds", errors="ignore") for path in (first, second)]
    return tables[0].equals(tables[1])


def _same_states(first: Path, second: Path) -> bool:
    return _read_once(first, first.stat().st_mtime_ns) == _bits(load_checkpoint(second))


@functools.lru_cache(maxsize=8)
def _read_once(path: Path, _: int) -> Any:
    """What a checkpoint of the undisturbed run holds, which is compared with that of many others."""
    return _bits(load_checkpoint(path))


def _bits(state: Any) -> Any:
    """The nested state with each tensor as its type, shape and bytes."""
    if isinstance(state, Tensor):
        return str(state.dtype), tuple(state.shape), state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: _bits(value) for key, value in state.items()}
    return [_bits(value) for value in state] if isinstance(state, list | tuple) else state


# --------------------------------------------------------------------------------------------------- killing


def before_call(number: int, function: Callable[..., Any], disturb: Callable[[], None]) -> Callable[..., Any]:
    """`function`, and `disturb` right before its call of this number, the first being 1."""
    calls = itertools.count(1)

    def disturbed(*args: Any, **more: Any) -> Any:
        if next(calls) == number:
            disturb()
        return function(*args, **more)

    return disturbed


def ask_to_stop(number: int = signal.SIGTERM) -> None:
    """As a scheduler does it."""
    os.kill(os.getpid(), number)


class Chaos:
    """The undisturbed run, and the processes that are to end like it."""

    def __init__(self, root: Path, seed: int, *more: object) -> None:
        self.root, self.random = root, random.Random(seed)
        self.site, self.whole, self.log = write_site(root / "site", 150, 90, seed=2), root / "whole", root / "log.txt"
        self.more = more  # flags of the training
        self.tally: Counter[str] = Counter()
        with contextlib.redirect_stdout(None):
            program.main(arguments(self.site, self.whole, *more))  # here, so that every child finds all modules loaded
        begin = time.perf_counter()
        self._finish(root / "timed")
        self.life = time.perf_counter() - begin  # of a process that trains from the start to the end
        self.compare(root / "timed")

    def kill(self, run: Path) -> bool:
        """Starts the run, or starts it again, and kills it; False if it had ended by then."""
        latest = self.life
        if self.random.random() < NO_CACHE:
            latest /= 4  # while they are decoded, more often than not
            for cache in self.site.glob("*/.cache"):
                shutil.rmtree(cache)
        child = self._start(run)
        child.join(self.random.uniform(0, latest))
        hard = self.random.random() < HARD
        grace = None if hard or self.random.random() > GRACE else self.random.uniform(0, 0.1)
        if child.is_alive():  # as long as nobody waits for it, its number is no other process's
            os.kill(child.pid, signal.SIGKILL if hard else signal.SIGTERM)
        child.join(grace)
        if child.is_alive():
            child.kill()
            child.join()
        return self._is_killed(child.exitcode, run)

    def _is_killed(self, code: int, run: Path) -> bool:
        kinds = {-signal.SIGKILL: "SIGKILL", ASKED: "SIGTERM", -signal.SIGTERM: "SIGTERM before it was listened to"}
        if code == 0:
            return False
        if code not in kinds:
            self._fail(f"{run} ended with exit code {code}")
        if code == ASKED and not any((run / name).exists() for name in ("paused.pkl", "last.pkl")):
            begun = run / "params.txt"  # written anew by every start
            if begun.exists() and begun.stat().st_mtime > self.started:
                self._fail(f"{run} was asked to stop, and noted nothing")
            code = -signal.SIGTERM
        self.tally[kinds[code]] += 1
        self.tally[f"while {self._phase(run)}"] += 1
        return True

    def end(self, run: Path) -> None:
        """Leads a killed run to its end and compares it."""
        self._finish(run)
        self.compare(run)

    def _phase(self, run: Path) -> str:
        """What the process was at, as far as its files tell."""
        if any(self.root.glob("site/*/.cache/.*.part-*")):
            return "decoding the slices"
        if any(run.rglob(".*.part-*")):
            return "writing a file"
        rows = len(next(run.glob("*_metrics.csv")).read_text().splitlines()) if (run / "last.pkl").exists() else 0
        return "starting, or in the first epoch" if not rows else "scoring" if rows > EPOCHS else "in a later epoch"

    def _start(self, run: Path) -> multiprocessing.Process:
        self.started = time.time()
        child = multiprocessing.get_context("fork").Process(target=self._train, args=(run,))
        child.start()
        return child

    def _train(self, run: Path) -> None:
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run_program(partial(program.main, arguments(self.site, run, *self.more)))

    def _finish(self, run: Path) -> None:
        child = self._start(run)
        child.join()
        if child.exitcode:
            self._fail(f"{run} ended with exit code {child.exitcode}")

    def compare(self, run: Path) -> None:
        """A run that has ended with the undisturbed one; then it goes."""
        if found := differences(self.whole, run):
            self._fail(f"{run}: {'; '.join(found)}")
        shutil.rmtree(run)
        self.tally["endings compared"] += 1

    def _fail(self, what: str) -> None:
        said = "\n".join(self.log.read_text().splitlines()[-20:])
        raise ChaosError(f"{what}\nThe last that the processes said:\n{said}")


def chaos(root: Path, kills: int, seed: int, *more: object) -> Counter[str]:
    """That many kills of a training with `more` flags; how many there were of each kind.

    Raises ChaosError at the first run that ends otherwise.
    """
    here, killed, number = Chaos(root, seed, *more), 0, 0
    while killed < kills:
        run = root / f"run{number}"
        if not here.kill(run):
            here.compare(run)
            number += 1
            continue
        killed += 1
        if run.exists():
            shutil.copytree(run, root / "copy")
        here.end(root / "copy")
        if killed % 20 == 0:
            print(f"{killed} kills, {here.tally['endings compared']} endings, all the same", flush=True)
    here.end(root / f"run{number}")
    return here.tally


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("tests.tools.chaos", description="Kill a training at random moments.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, left there")
    args = parser.parse_args(argv)
    root, begin = args.keep or Path(tempfile.mkdtemp(prefix="chaos-")), time.perf_counter()
    try:
        tally = chaos(root, args.kills, args.seed)
    except ChaosError as error:
        print(error, f"\nEverything is in {root}.", file=sys.stderr)
        raise SystemExit(1) from None
    for what, number in sorted(tally.items()):
        print(f"{number:5d} {what}")
    print(f"{args.kills} kills in {time.perf_counter() - begin:.0f} s: every run ended with the same bits")
    if not args.keep:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
