"""A program has the same words, folder, environment, streams, signals and end by the warm python as by the real one."""

import os
import select
import signal
import subprocess
import sys

import pytest

TELLS = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["MARK"], sys.path[0], __name__, __file__, sys.stdin.read())
print(len(sys.modules) > 1000, "main" in sys.modules, file=sys.stderr)
"""
ENDS = {
    "sys.exit(3)": 3,
    "sys.exit('gone')": 1,
    "sys.exit()": 0,
    "1 / 0": 1,
    "os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "sys.stdout.close()": 0,
}
WAITS = "import signal, time, sys, os\n{}\nprint(os.getpid(), flush=True)\ntime.sleep(60)"


def run(*words, **how):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, **how)


@pytest.mark.parametrize("words", [("program.py",), ("-m", "program")], ids=str)
def test_a_program_is_told_the_same(python, tmp_path, words):
    (tmp_path / "program.py").write_text(TELLS)
    how = {"cwd": tmp_path, "env": os.environ | {"MARK": "a\nb é"}, "input": "given"}
    warm, real = (run(each, *words, "--a", "b c", **how) for each in (python, sys.executable))
    assert (warm.returncode, warm.stdout) == (0, real.stdout)
    assert (warm.stderr, real.stderr) == ("True False\n", "False False\n")


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_the_same(python, tmp_path, end):
    (tmp_path / "program.py").write_text(f"import atexit, os, signal, sys\natexit.register(print, 'bye')\n{end}\n")
    warm, real = (run(each, tmp_path / "program.py") for each in (python, sys.executable))
    assert (warm.returncode, warm.stdout) == (real.returncode, real.stdout)
    assert ENDS[end] == warm.returncode
    assert warm.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_a_flag_of_python_s_own_takes_the_real_one(python, tmp_path):
    (tmp_path / "program.py").write_text("import sys; print(sys.flags.optimize, 'torch' in sys.modules)")
    assert run(python, "-O", tmp_path / "program.py").stdout == "1 False\n"
    assert run(python, "-c", "import sys; print('torch' in sys.modules)").stdout == "False\n"


@pytest.fixture
def waiting(python, tmp_path, request):
    """(what was started, the descriptor of the program itself), once it waits."""
    (tmp_path / "program.py").write_text(WAITS.format(request.param))
    with subprocess.Popen([python, tmp_path / "program.py"], stdout=subprocess.PIPE) as started:
        program = os.pidfd_open(int(started.stdout.readline()))
        yield started, program
        os.close(program)


ANSWER = "signal.signal(signal.SIG{}, lambda *_: sys.exit(7))"


@pytest.mark.parametrize(
    ("waiting", "number", "code"),
    [
        (ANSWER.format("INT"), signal.SIGINT, 7),
        (ANSWER.format("TERM"), signal.SIGTERM, 7),
        ("", signal.SIGTERM, -signal.SIGTERM),
    ],
    indirect=["waiting"],
)
def test_a_signal_reaches_the_program(waiting, number, code):
    started, program = waiting
    started.send_signal(number)
    assert started.wait() == code
    assert select.select([program], [], [])[0] == [program]  # it has ended


@pytest.mark.parametrize("waiting", [""], indirect=True)
def test_a_kill_ends_the_program_too(waiting):
    started, program = waiting
    started.kill()
    assert select.select([program], [], [])[0] == [program]
