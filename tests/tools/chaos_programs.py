"""Kills every program but the training, which chaos.py kills: each must end, typed again, with the same bytes.

    python -m tests.tools.chaos_programs --kills 10 --seed 7     that many of each program
    python -m tests.tools.chaos_programs --only predict

SIGKILL, SIGTERM or SIGINT hits the process or its group at a random moment of its life. Once it is gone nobody may be
left running, and what SIGTERM or SIGINT ended must have told it without a traceback. After some kills the command is
run to its end: every file below the folder must be the undisturbed run's, no more and no fewer.

Most programs are forks of this process, which has imported them, as a start costs seconds; the makes and the slicer
with two workers are started as a user starts them. A make that is killed alone leaves its recipe to work on: there the
command is typed again at once.
"""

import argparse
import contextlib
import hashlib
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import main as training
from processes import ctrl_c
from tests.conftest import write_site
from tests.fake_runs import make_run, make_set
from tests.tiny_network import train_on_volumes, write_volumes
from tests.tools.chaos import OWN, _same_bytes, _same_states, _same_tables, arguments
from utils import run_program

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
AGAIN = 1 / 3  # share of the kills after which it is killed once more before it may end
PATIENCE = 30  # seconds in which a process that was asked to end does, and the workers of one that was killed
ENDED = {number: {0, -number, 128 + number} for number in SIGNALS}  # exit codes, 0 of who was done by then
RACES = re.compile(r"import processes.ctrl_c|<frozen")  # python's own start cannot be told to be quiet about Ctrl-C


@dataclass(frozen=True)
class Program:
    """What is killed.

    prepare   fills the new folder that it then works in
    module    whose `main` reads `words`; of make there is none
    forked    else started anew
    dest      what it makes, whole or not at all, and refuses to make again
    """

    prepare: Callable[[Path], None]
    module: str
    words: Sequence[str]
    forked: bool = True
    dest: str = ""


@dataclass
class Kills:
    """What came of the kills of one program."""

    kind: str
    signals: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    wrong: list[str] = field(default_factory=list)

    def killed(self) -> int:
        return sum(self.signals[number.name] for number in SIGNALS)


# ------------------------------------------------------------------------------------------------ the programs


def _volumes(folder: Path) -> None:
    write_volumes(folder / "volumes")


def _archive(folder: Path) -> None:
    _volumes(folder)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        archive.add(folder / "volumes", "volumes")
    (folder / "a.lineage").write_text("-  a.tar.gz\n")


def _runs(folder: Path) -> None:
    data = make_set(folder / "set", n_patient=3)
    for name, quality in (("noadap", 0.5), ("sfda", 0.8), ("fs", 0.9)):
        make_run(folder / "runs" / name, data.relative_to(Path.cwd()), quality)


def _site(folder: Path) -> None:
    write_site(folder / "site", 150, 90, seed=2)


def _weights(folder: Path) -> None:
    """A network that was trained on slices of the volumes."""
    with contextlib.redirect_stdout(None):
        train_on_volumes(folder)


def _adapted(folder: Path) -> None:
    """A network, and two adaptations of it to the images that it was trained on."""
    site = write_site(Path("site"), 150, 90, seed=2)
    start = ("--network", "Dimwit", "--n_epoch", 1)
    adapting = ("--method", "sfda", "--target_losses", "[('SelfEntropy', {}, 1)]", "--model_weights", "source/last.pkl")
    with contextlib.redirect_stdout(None):
        training.main(arguments(site, Path("source"), *start))
        for rate in (1e-3, 1e-1):
            training.main(arguments(site, Path(f"rate{rate}"), *start, *adapting, "--l_rate", rate))


CHAIN = r"""
SET := tiny
VOLUMES :=
DATA := data/source data/target
include make/adaptation.mk
TRN = cesource noadap
ABL =
INF =
PLOTS = results/tiny/boxes.png
SLICE = --image IMG='volumes/p?.nii.gz' --label 'volumes/p?_gt.nii.gz' --patient '(p\d)' --val 2
G_RGX  = (p\d)_(\d+)
FOLDERS = [('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]
COMMON = --target_dataset data/target --target_folders "$(FOLDERS)" --grp_regex '$(G_RGX)' --n_class 2 --network UNet \
  --target_losses "[('CrossEntropy', {}, 1)]" --cpu
PRIOR  = --n_class 2 --constant 90
$(RD)/cesource: private OPT = --target_dataset data/source --model_weights=""
$(RD)/noadap: private OPT = $(WEIGHTS) --method noadap --saveim True
include make/rules.mk
"""


def _chain(folder: Path) -> None:
    """A checkout of its own, with two tiny sites."""
    for path in ROOT.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, folder)
        elif path.is_dir() and not path.is_symlink() and any(path.glob("*.py")) and path.name != "tests":
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tiny.make").write_text(CHAIN)
    _volumes(folder)


CHANNEL = ("--image", "IMG=volumes/p?.nii.gz", "--label", "volumes/p?_gt.nii.gz", "--patient", r"(p\d)")
SLICE = ("--dest", "set", *CHANNEL, "--val", "2", "--format", "png", "--jobs", "1")
RUNS = ("--runs", "runs/noadap", "runs/sfda", "runs/fs", "--out")
MAKE = ("-f", "tiny.make", "NET=Dimwit", "EPC=1", "DEBUG=--debug", "JOBS=2", f"CC={sys.executable}")
PROGRAMS = {
    "slicer": Program(_volumes, "preprocess.slice_volumes", SLICE, dest="set"),
    "slicer, two workers": Program(_volumes, "preprocess.slice_volumes", (*SLICE[:-1], "2"), False, "set"),
    "volume_set": Program(
        _volumes,
        "preprocess.volume_set",
        ("--dest", "set", "--image", "volumes/p?.nii.gz", *CHANNEL[2:], "--train", "3", "--jobs", "1"),
        dest="set",
    ),
    "size_priors": Program(
        _site,
        "preprocess.size_priors",
        ("make", "--data", "site", "--out", "priors/a.csv", "--n_class", "2", "--constant", "90"),
        dest="priors/a.csv",
    ),
    "shift_volumes": Program(
        _volumes,
        "preprocess.shift_volumes",
        (
            *("--image", "volumes/p?.nii.gz", "--dest", "shifted", "--acquisition", "noise"),
            "--severity",
            "2",
            "--jobs",
            "1",
        ),
        dest="shifted",
    ),
    "new_dataset": Program(
        _volumes,
        "preprocess.new_dataset",
        (
            *("--name", "mine", "--source", "volumes/p?.nii.gz", "--source_label", "volumes/p?_gt.nii.gz"),
            *("--target", "volumes/p?.nii.gz", "--patient", r"(p\d)", "--organ_mm2", "90", "--jobs", "1"),
        ),
        dest="mine.make",
    ),
    "data_report": Program(_site, "preprocess.data_report", ("--data", "site", "--out", "looked")),
    "tags": Program(
        _site,
        "preprocess.tags",
        ("page", "--data", "site", "--classes", "organ", "--out", "tags.html"),
        dest="tags.html",
    ),
    "unpack": Program(_archive, "preprocess.unpack", ("--lineage", "a.lineage", "--dest", "unpacked"), dest="unpacked"),
    "phantom": Program(
        lambda _: None, "preprocess.phantom.__main__", ("ivd", "--dest", "phantom", "--jobs", "1"), dest="phantom"
    ),
    "report": Program(_runs, "report", (*RUNS, "out/report")),
    "plot": Program(_runs, "plot", ("boxes", *RUNS, "out/boxes.png")),
    "plot colour": Program(_runs, "plot", ("colour", "--run", "runs/sfda", "--out", "out/colour")),
    "score_masks": Program(_runs, "score_masks", ("--run", "runs/sfda", "--score", "hd95")),
    "predict": Program(
        _weights,
        "predict",
        (
            *("--weights", "run/last.pkl", "--volumes", "volumes/p?.nii.gz", "--out", "out", "--device", "cpu"),
            "--entropy",
        ),
    ),
    "choose": Program(
        _adapted,
        "choose",
        ("--runs", "rate0.001", "rate0.1", "--out", "choice", "--device", "cpu", "--overwrite"),
    ),
    "make": Program(_chain, "", MAKE, forked=False),
}


# --------------------------------------------------------------------------------------------------- processes


class Started:
    """A program at work, in a session of its own, in this folder."""

    def __init__(self, program: Program, log: Path) -> None:
        if program.forked:
            with _held(signal.SIGINT, signal.SIGTERM):  # until the child can answer them
                self.child: Any = multiprocessing.get_context("fork").Process(target=_work, args=(program, log))
                self.child.start()
        else:
            start = [sys.executable, "-m", program.module] if program.module else ["make"]
            how = {"stdin": subprocess.DEVNULL, "start_new_session": True}
            if program.module:  # the makefile has modules of its own beside it
                how["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
            with log.open("a") as out:
                self.child = subprocess.Popen([*start, *program.words], stdout=out, stderr=out, **how)
        self.pid = self.child.pid

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, or None if it is still at work by then."""
        if isinstance(self.child, subprocess.Popen):
            try:
                return self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        self.child.join(seconds)
        return self.child.exitcode

    def others(self) -> list[int]:
        """Who else of its session is alive."""
        return [pid for pid, session in _sessions() if session == self.pid and pid != self.pid]

    def are_gone(self) -> bool:
        """Whether the others end before long."""
        until = time.monotonic() + PATIENCE
        while self.others() and time.monotonic() < until:
            time.sleep(0.01)
        return not self.others()

    def end(self) -> None:
        """Whoever is left."""
        for pid in [*self.others(), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()


def _sessions() -> Iterator[tuple[int, int]]:
    """Pid and session of every process that is not dead."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            yield int(path.parent.name), int(fields[3])


@contextlib.contextmanager
def _held(*numbers: int) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _work(program: Program, log: Path) -> None:
    """In the fork: what `python -m` does once it has imported."""
    os.setsid()
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    sys.argv = [program.module, *program.words]
    signal.signal(signal.SIGINT, ctrl_c.note)  # as in a program that imports it
    code: Any = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        run_program(importlib.import_module(program.module).main)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # before or behind it
        code = 128 + signal.SIGINT
    except Exception:  # noqa: BLE001  as at the end of a program: a library may have taken Ctrl-C for its own fault
        sys.excepthook(*sys.exc_info())
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


# ----------------------------------------------------------------------------------------------------- killing


class Chaos:
    """One program: its undisturbed run, and those that are to end like it."""

    def __init__(self, kind: str, root: Path, dice: random.Random) -> None:
        self.program, self.root, self.dice, self.found = PROGRAMS[kind], root, dice, Kills(kind)
        self.log, self.work, self.whole = root / "log.txt", root / "work", root / "whole"
        self.work.mkdir()
        self._enter()
        self.program.prepare(self.work)
        shutil.copytree(self.work, root / "given", symlinks=True)
        begin = time.perf_counter()
        if code := Started(self.program, self.log).wait():
            raise RuntimeError(f"{kind} ends with {code} where nobody kills it: {self._said()}")
        self.life = time.perf_counter() - begin
        self._leave(self.whole)

    def _enter(self) -> None:
        os.chdir(self.work)

    def _leave(self, name: Path) -> None:
        """The folder of the work gets another name."""
        os.chdir(self.root)
        self.work.rename(name)

    def kill(self) -> None:
        """From what was given: one or more kills, then the end, and how that compares."""
        shutil.copytree(self.root / "given", self.work, symlinks=True)
        self._enter()
        self.log.write_text("")
        while True:
            if said := self._kill_once():
                self.found.wrong.append(said)
            if self.dice.random() > AGAIN:
                break
        begun = Started(self.program, self.log)
        code = begun.wait(10 * self.life + 20 * PATIENCE)
        gone = code is not None and begun.are_gone()
        begun.end()
        if not self._has_made(code) or not gone:
            self.found.wrong.append(f"typed again it ended with {code}{'' if gone else ', not alone'}: {self._said()}")
        elif unlike := differences(self.whole, self.work):
            self.found.wrong.append("; ".join(unlike))
        else:
            self.found.ends += 1
        self._leave(self.root / "ended")
        shutil.rmtree(self.root / "ended")

    def _kill_once(self) -> str:
        """What is wrong with how it ended; '' if nothing is."""
        number, whole_group = self.dice.choice(SIGNALS), self.dice.random() < 0.5
        begin, begun = time.perf_counter(), Started(self.program, self.log)
        code = begun.wait(self.dice.uniform(0, self.life))
        if code is not None:
            self.life = min(self.life, time.perf_counter() - begin)  # the first took longer: nothing was in memory
            self.found.signals["ended before"] += 1
            return "" if self._has_made(code) else f"exit code {code} before any kill: {self._said()}"
        how = f"{number.name} of {'the group' if whole_group else 'the process'}"
        self.found.signals[number.name] += 1
        try:
            (os.killpg if whole_group else os.kill)(begun.pid, number)
        except ProcessLookupError:  # its session is not yet its own
            os.kill(begun.pid, number)
        code = begun.wait(PATIENCE)
        works_on = not self.program.module and not whole_group  # a recipe, whose make was killed alone
        if code is None and not works_on:
            begun.end()
            return f"{how}: still at work after {PATIENCE} s"
        if not works_on and not begun.are_gone():
            begun.end()
            return f"{how}: left others running"
        return self._complaint(number, code, how)

    def _complaint(self, number: int, code: int | None, how: str) -> str:
        said = self._said()
        if self.program.module and code not in ENDED[number] and not self._has_made(code):
            return f"{how}: exit code {code}: {said}"
        if number != signal.SIGKILL and "Traceback" in said and not RACES.search(said):
            return f"{how}: {said}"
        return ""

    def _has_made(self, code: int | None) -> bool:
        """Whether it ended well, or refused to make again what it had made."""
        words = (
            "is there already; remove it",
            "is there and is never overwritten",
            "is there already and is never overwritten",
        )
        return code == 0 or (code == 2 and self.program.dest != "" and any(each in self._said() for each in words))

    def _said(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-30:])


def differences(whole: Path, ended: Path) -> list[str]:
    """What sets the files below two folders apart: names, and bytes, but for times of the clock."""
    ours, theirs = ({str(path.relative_to(top)) for path in _files(top)} for top in (ended, whole))
    found = [f"{name} is {'left over' if name in ours else 'missing'}" for name in sorted(ours ^ theirs)]
    same = {".pkl": _same_states, ".gz": _same_archives}
    for name in sorted(ours & theirs):
        has_times = name.endswith(("_metrics.csv", "report.csv"))
        compare = _same_tables if has_times else same.get(Path(name).suffix, _same_bytes)
        stamped = Path(name).name in OWN or re.search(r"\.cache/[^/]*\.json$", name)  # with times and places of files
        if not stamped and not compare(whole / name, ended / name):
            found.append(f"{name} differs")
    return found


def _files(top: Path) -> Iterator[Path]:
    """All but the code that python compiled, in which times stand."""
    return (path for path in top.rglob("*") if not path.is_dir() and path.parent.name != "__pycache__")


def _same_archives(first: Path, second: Path) -> bool:
    """An archive of a make holds its files' times: the names alone; other compressed files byte by byte."""
    if not first.name.endswith(".tar.gz"):
        return _same_bytes(first, second)
    with tarfile.open(first) as one, tarfile.open(second) as other:
        return one.getnames() == other.getnames()


def campaign(kills: int, seed: int, kinds: Sequence[str] = tuple(PROGRAMS)) -> list[Kills]:
    """About that many kills of each program."""
    found, before = [], Path.cwd()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a command in the background SIGINT is ignored
    for name in {PROGRAMS[kind].module for kind in kinds if PROGRAMS[kind].forked}:
        importlib.import_module(name)
    for kind in kinds:
        digest = hashlib.sha256(f"{seed} {kind}".encode()).digest()
        with tempfile.TemporaryDirectory() as root:
            try:
                here = Chaos(kind, Path(root), random.Random(digest))
                for _ in range(2 * kills):
                    if here.found.killed() < kills:
                        here.kill()
            finally:
                os.chdir(before)
        found.append(here.found)
        print(f"{kind}: {here.found.ends} ends the same, {len(here.found.wrong)} wrong", flush=True)
    return found


def as_table(found: Sequence[Kills]) -> str:
    lines = [("program", *(number.name for number in SIGNALS), "ended before", "same ends", "wrong")]
    for each in found:
        counts = [each.signals[name] for name in lines[0][1:5]]
        lines.append((each.kind, *map(str, (*counts, each.ends, len(each.wrong)))))
    return in_columns(lines)


def in_columns(lines: Sequence[Sequence[str]]) -> str:
    """As Markdown has tables: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        [cell.ljust(widths[0]) if at == 0 else cell.rjust(widths[at]) for at, cell in enumerate(line)] for line in lines
    ]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("tests.tools.chaos_programs", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PROGRAMS, nargs="+", default=list(PROGRAMS))
    args = parser.parse_args(argv)
    found = campaign(args.kills, args.seed, args.only)
    for each in found:
        print(*(f"{each.kind}: {said}" for said in each.wrong), sep="\n", end="\n" * bool(each.wrong))
    print(as_table(found))
    sys.exit(any(each.wrong for each in found))


if __name__ == "__main__":
    main()
