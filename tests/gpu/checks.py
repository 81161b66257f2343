"""A check of `make gpu`: what it is told, what it returns, and its run, in a process of its own with a time limit."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LINES = 12  # of a log that are told of a check that failed


@dataclass(frozen=True)
class Place:
    """Where a check runs. dry: tiny sizes on the CPU; folder: of this start, whose files go when it ends."""

    device: str
    dry: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Figure:
    """A row of the table. fault: why the check fails by it; empty where it does not."""

    what: str
    value: float | str
    unit: str = ""
    note: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Check:
    """One check. budget: seconds that it may take; needs: what the dry form lacks, and is skipped for."""

    name: str
    budget: float
    measure: Callable[[Place], Iterable[Figure]]
    needs: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a check. outcome: passed, failed, skipped or out of time; reason: of all but the first."""

    name: str
    outcome: str
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.outcome not in ("passed", "skipped")


def run_check(check: Check, place: Place, limit: float) -> Result:
    """Runs a check for `limit` seconds at most; whatever it does, the next one can be run."""
    if place.dry and check.needs:
        return Result(check.name, "skipped", reason=check.needs)
    begin = time.perf_counter()
    if limit <= 0:
        return Result(check.name, "out of time", reason="the checks before it took all of the time")
    # a fork knows all that is imported already, and CUDA does not survive one
    context = multiprocessing.get_context("spawn" if place.on_gpu else "fork")
    answer, log = place.folder / f"{check.name}.json", place.folder / f"{check.name}.log"
    child = context.Process(target=_measure, args=(check, place, answer, log))
    child.start()
    try:
        child.join(limit)
        late = child.is_alive()
    finally:
        _end(child)
    told: dict[str, Any] = {"seconds": time.perf_counter() - begin, "limit": limit}
    found = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {"figures": [], "error": ""}
    told["figures"] = figures = [Figure(**figure) for figure in found["figures"]]
    faults = [each for each in (found["error"], *(figure.fault for figure in figures)) if each]
    if late:
        faults = [f"ended after {limit:.0f} s: {_tail(log)}", *faults]
    elif child.exitcode:
        faults = [f"ended with exit code {child.exitcode}: {_tail(log)}", *faults]
    outcome = "out of time" if late else "failed" if faults else "passed"
    return Result(check.name, outcome, reason="; ".join(faults), **told)


def _measure(check: Check, place: Place, answer: Path, log: Path) -> None:
    """In the process: writes the figures as they come, and the error, as JSON."""
    os.setsid()  # a group of its own, so that what it starts ends with it
    found: dict[str, Any] = {"figures": [], "error": ""}
    with log.open("w", buffering=1, encoding="utf-8") as file:
        for stream in (1, 2):  # of what it starts
            os.dup2(file.fileno(), stream)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                for figure in check.measure(place):
                    found["figures"].append(asdict(figure))
                    _write(answer, found)
            except BaseException as error:  # noqa: BLE001  whatever it is, it is told, and the next check runs
                traceback.print_exc()
                found["error"] = f"{type(error).__name__}: {error}"
    _write(answer, found)


def _write(answer: Path, found: dict[str, Any]) -> None:
    whole = answer.with_suffix(".part")
    whole.write_text(json.dumps(found), encoding="utf-8")
    whole.replace(answer)


def _end(child: BaseProcess) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return " | ".join(line.strip() for line in lines[-LINES:] if line.strip())
