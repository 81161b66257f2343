"""Ctrl-C is no error: one line, exit code 130, wherever a program is."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from processes.pool import in_processes
from utils import run_program

ROOT = Path(__file__).parents[2]


def stop_here():
    raise KeyboardInterrupt


def test_a_program_is_stopped_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    with pytest.raises(SystemExit) as end:
        run_program(stop_here)
    assert end.value.code == 130
    assert capsys.readouterr().err == "predict.py: stopped by Ctrl-C.\n"


def test_so_it_is_while_it_still_imports():
    done = subprocess.run(
        [sys.executable, "-c", "import processes.ctrl_c; import sys; sys.argv = ['plot.py']; raise KeyboardInterrupt"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (130, "plot.py: stopped by Ctrl-C.\n")


@pytest.mark.parametrize("after", ["raise AttributeError('half a module')", "import utils; utils.run_program(print)"])
def test_so_it_is_where_a_library_takes_it_for_its_own_fault(after):
    taken = "try:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    words = f"import processes.ctrl_c, signal, sys\nsys.argv = ['plot.py']\n{taken}{after}"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "plot.py: stopped by Ctrl-C.\n")


def test_too_little_memory_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    with pytest.raises(SystemExit) as end:
        run_program(lambda: np.zeros(2**50))
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("predict.py: The memory does not suffice: Unable to allocate")
    assert told.count("\n") == 1


def test_other_errors_are_shown_as_ever():
    done = subprocess.run(
        [sys.executable, "-c", "import processes.ctrl_c; 1 / 0"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ZeroDivisionError")


def programs():
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("preprocess/**/*.py"), *ROOT.glob("tests/benchmarks/*.py")]):
        source = path.read_text(encoding="utf-8")
        if "run_program(main" in source and "__main__" in source:
            yield path.relative_to(ROOT), source


def test_every_program_is_ready_for_it_before_its_other_imports():
    found = dict(programs())
    assert len(found) > 12
    late = [
        path
        for path, source in found.items()
        if next(ast.unparse(n) for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom))
        != "import processes.ctrl_c"
    ]
    assert late == []


def handler(_):
    return os.getpid(), signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_workers_say_nothing_of_it():
    """The terminal sends it to them too: they end as the system ends them, without python's words."""
    (first, *quiet), (second, *as_quiet) = in_processes(handler, [0, 1], 2)
    assert os.getpid() not in (first, second)
    assert quiet == as_quiet == [True]
