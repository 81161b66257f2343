"""One process at a time on a folder: refusals, kills, moves cut short, and two makes on one run."""

import errno
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import lock as folder_lock
from processes.errors import UserError
from processes.lock import clean, locked, renew
from processes.ownership import RUN, begin, note_made, visible_names
from tests.tools.checkout import copy_rules
from utils import atomic_write

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")

HOLD = """
import os, sys, time
from processes.lock import locked
from pathlib import Path
with locked(Path(sys.argv[1])):
    if "fork" in sys.argv and not os.fork():
        print(os.getpid(), flush=True)
        time.sleep(60)
    elif "fork" not in sys.argv:
        print(flush=True)
    sys.stdin.read()
"""


def start(*words, **more):
    """A process of this python, started in the repository, in a group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, **pipes | more)


def wait_for(path):
    for _ in range(60_000):  # ten minutes: the machine may be busy
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


# -- a lock in python -------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path):
    run = tmp_path / "results" / "run"
    holder = start("-c", HOLD, run, stdin=subprocess.PIPE)
    holder.stdout.readline()
    message = f"run is being worked on by process {holder.pid} on {socket.gethostname()} since 2.*kill {holder.pid}, on"
    with pytest.raises(UserError, match=message), locked(run):
        pass
    holder.communicate("")
    assert holder.returncode == 0
    assert list(run.iterdir()) == []
    with locked(run), pytest.raises(UserError, match=f"process {os.getpid()} "), locked(run):
        pass


def test_a_killed_holder_frees_its_lock_though_its_children_live(tmp_path):
    holder = start("-c", HOLD, tmp_path, "fork", stdin=subprocess.PIPE)
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    os.kill(child, 0)  # it lives
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_that_is_moved_before_the_lock_is_had_is_not_the_one_that_is_locked(tmp_path, monkeypatch):
    run, gone, flock = tmp_path / "run", tmp_path / "gone", fcntl.flock

    def move_and_lock(*args):
        if not gone.exists():
            run.rename(gone)
        flock(*args)

    monkeypatch.setattr(fcntl, "flock", move_and_lock)
    with locked(run):
        assert (run / ".lock").exists()
        assert (gone / ".lock").read_text() == ""


def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch):
    def refuse(code):
        def flock(*args):
            raise OSError(code, os.strerror(code))

        return flock

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with pytest.warns(UserWarning, match="has no locks") as told, locked(tmp_path):
        pass
    assert len(told) == 1
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(tmp_path):
        pass


def test_it_starts_without_torch():
    done = start("-c", "import sys, processes.lock; sys.exit('torch' in sys.modules)")
    assert done.wait() == 0


# -- the makefiles' commands ------------------------------------------------------------------------------------

SLOWLY = "import sys, time; from pathlib import Path; path, log = map(Path, sys.argv[1:3]); "
SLOWLY += "log.open('a').write('made\\n'); time.sleep(float(sys.argv[3])); path.mkdir(); (path / 'whole').touch()"


def command(verb, path, made, log, seconds=0.0):
    return start("-m", "processes.lock", verb, path, "--", sys.executable, "-c", SLOWLY, made, log, seconds)


@pytest.mark.parametrize(("verb", "end"), [("once", ""), ("renew", "_tmp")])
def test_of_two_at_once_one_makes_and_the_other_waits(tmp_path, verb, end):
    path, log = tmp_path / "sub" / "run", tmp_path / "log"
    words = (verb, path, path.with_name("run" + end), log, 1)
    first = command(*words)
    wait_for(log)
    second = command(*words)
    said = second.communicate()[0]
    assert (first.wait(), second.returncode) == (0, 0)
    assert f"is being worked on by process {first.pid} on" in said
    assert ("is there and is kept" if verb == "once" else "was made meanwhile") in said
    assert log.read_text() == "made\n"
    assert sorted(path.parent.rglob("*")) == [path, path / "whole"]


def test_once_keeps_and_renew_renews(tmp_path):
    path, log = tmp_path / "run", tmp_path / "log"
    (path / "old").mkdir(parents=True)
    note_made(path, ["old"])
    os.utime(path, (0, 0))
    assert command("once", path, path, log).wait() == 0
    assert not log.exists()
    assert command("renew", path, tmp_path / "run_tmp", log).wait() == 0
    assert [found.name for found in path.iterdir()] == ["whole"]
    assert path.stat().st_mtime > 1e9  # a time of today
    assert sorted(tmp_path.iterdir()) == [log, path]


def test_a_waiting_one_takes_over_from_a_killed_one(tmp_path):
    path, log = tmp_path / "run", tmp_path / "log"
    first = command("renew", path, tmp_path / "run_tmp", log, 60)
    wait_for(log)
    second = command("renew", path, tmp_path / "run_tmp", log)
    second.stdout.readline()
    os.killpg(first.pid, signal.SIGKILL)
    assert second.wait() == 0
    assert log.read_text() == "made\nmade\n"
    assert (path / "whole").exists()


def test_a_command_keeps_the_lock_when_its_starter_alone_is_killed(tmp_path):
    path, log = tmp_path / "data", tmp_path / "log"
    first = command("once", path, path, log, 1)
    wait_for(log)
    first.kill()
    second = command("once", path, path, log)
    assert second.wait() == 0
    assert log.read_text() == "made\n"


POLITE = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); print(flush=True); "
POLITE += "time.sleep(600)"


@pytest.mark.parametrize(("script", "code"), [(POLITE, 143), ("import time; print(flush=True); time.sleep(600)", 143)])
def test_sigterm_reaches_the_command_and_its_answer_comes_back(tmp_path, script, code):
    (tmp_path / "run_tmp").mkdir()
    asked = start("-m", "processes.lock", "renew", tmp_path / "run", "--", sys.executable, "-c", script)
    asked.stdout.readline()
    asked.terminate()
    assert asked.wait() == code
    assert [path.name for path in tmp_path.iterdir()] == ["run_tmp"]


def test_a_failed_command_moves_nothing_and_bad_words_are_told(tmp_path):
    (tmp_path / "run_tmp").mkdir()
    for words, code in (
        (("renew", tmp_path / "run", "--", "false"), 1),
        (("renew", tmp_path / "run", "--", "no-such-program"), 2),
        (("renew", tmp_path / "run", "--"), 2),
        (("twice", tmp_path / "run", "--", "true"), 2),
    ):
        asked = start("-m", "processes.lock", *words)
        said = asked.communicate()[0]
        assert asked.returncode == code
        assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["run_tmp"]


# -- moves cut short --------------------------------------------------------------------------------------------


def _renew_and_die(run, step):
    """Dies of SIGKILL as it comes to the given step of the move."""
    names = iter(("rename", "rename", "unlink", "unlink", "sync_folder", "_retire"))
    owners = {"rename": Path, "unlink": Path, "sync_folder": folder_lock, "_retire": folder_lock}
    steps = [next(names) for _ in range(step + 1)]
    wanted, calls = steps[-1], steps.count(steps[-1])
    whole = getattr(owners[wanted], wanted)

    def die(*args, **more):
        nonlocal calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **more)

    setattr(owners[wanted], wanted, die)
    renew(run, ["true"])


@pytest.mark.parametrize("step", range(6))
def test_a_move_killed_at_any_step_loses_nothing_and_is_repaired(tmp_path, step):
    run, made = tmp_path / "run", tmp_path / "run_tmp"
    for folder in (run, made):
        begin(folder, RUN)
        (folder / "whole").write_text(folder.name)
        note_made(folder, ["whole"])
    child = FORK.Process(target=_renew_and_die, args=(run, step))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert "run_tmp" in {path.read_text() for path in tmp_path.glob("*/whole") if path.parent in (run, made)}
    if step == 1:  # neither old nor new is in place: the old one comes back before a training is tried that may fail
        assert start("-m", "processes.lock", "renew", run, "--", "false").wait() == 1
        assert (run / "whole").read_text() == "run"
    assert start("-m", "processes.lock", "renew", run, "--", "true").wait() == 0
    assert (run / "whole").read_text() == "run_tmp"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


BACKUPS = ("run_old", "run_tmp", "run_tmp_old", "run.old", ".run.old", ".run.old-mine")


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("program", ["true", "false"])
def test_folders_of_the_user_are_not_touched_whatever_their_names(tmp_path, is_there, program):
    run = tmp_path / "run"
    for name in (*BACKUPS, "run") if is_there else BACKUPS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pkl").write_text(name)  # a copy of a run, or one moved out of the way
        (tmp_path / name / "NOTES.txt").write_text("a week of training")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="run_tmp is there, and main.py did not begin it .*NOTES.txt"):
        renew(run, [program])
    shutil.rmtree(tmp_path / "run_tmp")
    renew(run, [program])
    kept = {path: time for path, time in before.items() if "run_tmp" not in path.parts}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == kept


def test_a_new_run_takes_the_place_of_a_run_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    make = ["sh", "-c", f"mkdir {run}_tmp && echo new > {run}_tmp/last.pkl"]
    with pytest.raises(UserError, match="run is there, and main.py did not begin it"):
        renew(run, make)
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
    (run / "last.pkl").write_text("old")
    note_made(run, ["last.pkl"])
    assert renew(run, make) == 0
    assert (run / "last.pkl").read_text() == "new\n"
    (kept,) = tmp_path.glob("run_replaced-*")
    assert (kept / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file where a run belongs"):
        renew(tmp_path / "file", ["mkdir", f"{tmp_path}/file_tmp"])
    assert (tmp_path / "file").read_text() == "mine"


def test_unfinished_runs_alone_are_cleaned(tmp_path):
    for name in ("mine_tmp", "run_tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").touch()
    begin(tmp_path / "run_tmp", RUN)
    with locked(tmp_path / "run_tmp"), pytest.raises(UserError, match="is being worked on"):
        clean([tmp_path / "run"])
    clean([tmp_path / name for name in ("mine", "run", "none")])
    assert [path.name for path in tmp_path.iterdir()] == ["mine_tmp"]


def test_writers_of_one_file_have_a_part_each_and_a_dead_ones_is_written_over(tmp_path):
    path, mine = tmp_path / "table.csv", tmp_path / "table.csv.part"
    mine.write_text("mine")
    (tmp_path / ".table.csv.part-0").write_text("half a table of a killed program")
    with atomic_write(path, "w") as first:
        first.write("first")
        with atomic_write(path, "w") as second:
            second.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    with pytest.raises(KeyError), atomic_write(path, "w"):
        raise KeyError
    assert sorted(tmp_path.iterdir()) == [path, mine]
    assert mine.read_text() == "mine"


def test_a_run_that_is_a_link_is_replaced_and_what_it_shows_is_kept(tmp_path):
    elsewhere, made = tmp_path / "elsewhere", tmp_path / "run_tmp"
    for folder in (elsewhere, made):
        begin(folder, RUN)
        (folder / "whole").write_text(folder.name)
    (tmp_path / "run").symlink_to(elsewhere)
    assert start("-m", "processes.lock", "renew", tmp_path / "run", "--", "true").wait() == 0
    assert (tmp_path / "run" / "whole").read_text() == "run_tmp"
    assert (elsewhere / "whole").read_text() == "elsewhere"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "run"]


# -- two makes --------------------------------------------------------------------------------------------------

TOY = """
SET     := toy
VOLUMES :=
DATA    := data/source data/target
include make/adaptation.mk
TRN      = cesource sfda
ABL      =
INF      =
N_CLASS  = 2
NU       = [0.1,0.9]
TT_DATA  = []
include make/rules.mk
"""

# stands for python in every recipe: makes what it is asked for, slowly, every file marked with one name
PRETENDER = """#!/bin/sh
case "$1 $2" in "-m processes.lock") exec {python} -S "$@";; *) exec {python} -S pretender.py "$@";; esac
"""
PRETENDER_PY = """
import os, sys, time
from pathlib import Path
from processes.lock import locked
from processes.ownership import RUN, begin, new_name, note_made, visible_names
flag = next(word for word in ("--workdir", "--dest", "--out") if word in sys.argv)
path = Path(sys.argv[sys.argv.index(flag) + 1])
with open("log", "a") as log:
    log.write(f"{path}\\n")
if flag != "--workdir" and path.exists():
    sys.exit(f"{path} is there already")
work = path if flag == "--workdir" else new_name(path, "new")
with locked(work):
    if flag == "--workdir":
        begin(path, RUN)
    mark = work / "mark"
    if not mark.exists():
        mark.write_text(str(os.getpid()))
    for number in range(4):
        if not (work / str(number)).exists():
            time.sleep(0.005)
            (work / str(number)).write_text(mark.read_text())
    if flag == "--workdir":  # as a run does: a make that comes a moment too late makes it again, and is not refused
        note_made(work, visible_names(work))
if flag != "--workdir":
    work.rename(path)
"""


@pytest.fixture
def toy(tmp_path):
    """A folder with an experiment's makefile, whose runs and slices are four small files."""
    copy_rules(tmp_path)
    (tmp_path / "toy.make").write_text(TOY)
    (tmp_path / "pretender").write_text(PRETENDER.format(python=sys.executable))
    (tmp_path / "pretender").chmod(0o755)
    (tmp_path / "pretender.py").write_text(PRETENDER_PY)
    return tmp_path


def make(toy):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(["make", "-f", "toy.make", "CC=./pretender", "runs"], cwd=toy, **pipes)


def is_whole(folder):
    marks = {(folder / name).read_text() for name in visible_names(folder)}
    return sorted(visible_names(folder)) == ["0", "1", "2", "3", "mark"] and len(marks) == 1


def test_two_makes_at_once_ten_times(toy):
    """Every other time one of them is killed. The other ends well, and what is there is whole."""
    rng = random.Random(0)
    made = [toy / name for name in ("data/source", "data/target", "results/toy/cesource", "results/toy/sfda")]
    for is_killed in [False, True] * 5:
        first, second = make(toy), make(toy)
        if is_killed:
            time.sleep(rng.uniform(0.1, 0.5))
            os.killpg(first.pid, signal.SIGKILL)
        said = first.communicate()[0], second.communicate()[0]
        assert second.returncode == 0, said
        assert all(is_whole(folder) for folder in made), said
        if not is_killed:
            assert first.returncode == 0, said
            assert (toy / "log").read_text().count("data/") == 2, said
            assert sorted(path for folder in ("data", "results/toy") for path in (toy / folder).iterdir()) == made
        (toy / "log").unlink()
        for folder in ("data", "results", "sizes"):
            shutil.rmtree(toy / folder)
