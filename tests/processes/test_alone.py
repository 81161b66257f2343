"""A function in a process of its own: what it gives and raises comes back, and nobody is left running."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes.alone import run_alone
from processes.errors import UserError
from processes.interrupt import STOP, Interrupted
from tests.tools.living import is_alive, needs_proc, wait_until

ROOT = Path(__file__).parents[2]
HERE = os.getpid()


class OddError(Exception):
    """One that pickle cannot make again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def divide(whole, part, pid):
    assert os.getpid() != pid
    if part == "odd":
        raise OddError(1, 2)
    if part == "user":
        raise UserError(f"{whole} cannot be divided by that; give a number.")
    if part == "large":
        return bytes(whole)
    if part == "function":
        return lambda: None
    if part == "left":
        sys.exit(7)
    if isinstance(part, signal.Signals):
        os.kill(os.getpid(), part)
    return whole / part


def test_what_is_returned_comes_back():
    assert run_alone(divide, 6, 4, HERE) == 1.5
    assert len(run_alone(divide, 5_000_000, "large", HERE)) == 5_000_000
    assert multiprocessing.active_children() == []


def test_an_error_of_the_user_is_the_same_error_here():
    with pytest.raises(UserError) as said:
        run_alone(divide, 6, "user", HERE)
    assert str(said.value) == "6 cannot be divided by that; give a number."
    assert not getattr(said.value, "__notes__", [])


@pytest.mark.parametrize(
    ("part", "kind", "words"),
    [
        (0, ZeroDivisionError, "division by zero"),
        ("odd", RuntimeError, "OddError: 1 and 2"),
        ("function", Exception, "lambda"),
    ],
)
def test_another_error_comes_with_its_traceback(part, kind, words):
    with pytest.raises(kind, match=words) as said:
        run_alone(divide, 6, part, HERE)
    told = "\n".join([str(said.value), *getattr(said.value, "__notes__", [])])
    assert "Traceback" in told
    assert "alone.py" in told


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(UserError, match=r"divide ran in a process of its own, which was ended by SIGKILL, most likely"):
        run_alone(divide, 6, signal.SIGKILL, HERE)
    with pytest.raises(UserError, match="which ended with exit code 7 before it had an answer"):
        run_alone(divide, 6, "left", HERE)
    assert multiprocessing.active_children() == []


def test_it_hears_no_signal_that_is_meant_for_its_starter():
    """Ctrl-C in a terminal, and a scheduler, tell both of them."""
    assert run_alone(divide, 6, signal.SIGINT, HERE) == 3.0
    assert run_alone(divide, 30, signal.SIGTERM, HERE) == 2.0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


def work_on(path):
    """Says its number, and that of a worker of its own."""
    from processes.pool import in_processes

    list(in_processes(say_number, [path + ".1", path + ".2"], 2))


def say_number(path):
    Path(path + ".part").write_text(f"{os.getpid()} {os.getppid()}")
    Path(path + ".part").rename(path)
    time.sleep(600)


def numbers(paths):
    return [int(word) for path in paths for word in path.read_text().split()]


STARTER = """
import sys
from processes.alone import run_alone
from tests.processes.test_alone import work_on
from utils import run_program

if __name__ == "__main__":
    run_program(lambda: run_alone(work_on, sys.argv[1]))
"""


@needs_proc
@pytest.mark.parametrize(
    ("number", "all_hear", "code", "said"),
    [
        (signal.SIGKILL, False, -9, []),
        (signal.SIGTERM, False, 143, []),
        (signal.SIGTERM, True, 143, []),
        (signal.SIGINT, True, 130, ["starter.py: stopped by Ctrl-C."]),
        (signal.SIGINT, False, 130, ["starter.py: stopped by Ctrl-C."]),
    ],
)
def test_nobody_is_left_running(tmp_path, number, all_hear, code, said):
    (tmp_path / "starter.py").write_text(STARTER)
    paths = [tmp_path / "number.1", tmp_path / "number.2"]
    words = [sys.executable, tmp_path / "starter.py", tmp_path / "number"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    how = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    starter = subprocess.Popen(words, env=environment, **how)
    try:
        wait_until(lambda: all(path.exists() for path in paths))
        (os.killpg if all_hear else os.kill)(starter.pid, number)
        told = starter.communicate(timeout=60)[1].splitlines()
        assert told == said or number == signal.SIGKILL  # of which python tells by itself
        assert starter.returncode == code
        wait_until(lambda: not any(is_alive(pid) for pid in numbers(paths)))
    finally:
        starter.kill()
        for pid in numbers(path for path in paths if path.exists()):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def stop_starter(pid, path):
    try:
        os.kill(pid, signal.SIGTERM)
        time.sleep(600)
    finally:
        Path(path).write_text(str(os.getpid()))


@needs_proc
def test_a_training_that_is_asked_to_stop_does_not_wait(tmp_path):
    """And what is half done is tidied away before the process ends."""
    path = tmp_path / "number"
    STOP.listen()
    try:
        with pytest.raises(Interrupted) as end:
            run_alone(stop_starter, HERE, str(path))
    finally:
        STOP.forget()
    assert end.value.exit_code == 143
    assert not is_alive(*numbers([path]))
    assert multiprocessing.active_children() == []
