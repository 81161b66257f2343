"""Workers end with the program that started them, and leave nothing."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest

from processes.errors import UserError
from processes.pool import in_processes
from tests.tools.living import is_alive, needs_proc, wait_until

STARTER = """
import os, sys, time
from pathlib import Path
from processes.pool import in_processes
from utils import run_program

def work(path):
    Path(path + ".part").write_text(str(os.getpid()))
    Path(path + ".part").rename(path)
    time.sleep(600)

if __name__ == "__main__":
    run_program(lambda: list(in_processes(work, sys.argv[1:], 2)))
"""


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_starter(tmp_path, number):
    script, pids = tmp_path / "starter.py", [tmp_path / "1", tmp_path / "2"]
    script.write_text(STARTER)
    place = Path(tempfile.mkdtemp())  # of a short name, as the names of sockets have to be
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(place)}
    starter = subprocess.Popen([sys.executable, script, *pids], env=environment, start_new_session=True)
    try:
        wait_until(lambda: all(path.exists() for path in pids))
        starter.send_signal(number)
        assert starter.wait() == (-9 if number == signal.SIGKILL else 143)
        wait_until(lambda: not any(is_alive(int(path.read_text())) for path in pids))
        wait_until(lambda: list(place.iterdir()) == [])
    finally:
        shutil.rmtree(place, ignore_errors=True)
        for path in pids:
            if path.exists() and is_alive(int(path.read_text())):
                os.kill(int(path.read_text()), signal.SIGKILL)


def fail_at(bad, number):
    if number == bad:
        raise UserError("a bad one")
    return number


def test_a_fault_ends_the_work_and_the_next_work_begins_anew():
    with pytest.raises(UserError, match="a bad one"):
        list(in_processes(partial(fail_at, 1), range(4), 2))
    assert list(in_processes(partial(fail_at, 9), range(4), 2)) == [0, 1, 2, 3]


def test_a_temporary_folder_of_a_long_name_is_no_hindrance(tmp_path, monkeypatch):
    place = tmp_path / ("long" * 40)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)  # chosen anew
    monkeypatch.setattr(forkserver._forkserver, "_forkserver_alive_fd", None)  # started anew
    assert list(in_processes(partial(fail_at, 9), range(2), 2)) == [0, 1]
