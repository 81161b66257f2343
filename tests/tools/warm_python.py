"""A python that has imported the large libraries, for tests that start many programs: each is a fork of it.

    with warm_python(folder) as python:                  the path of a command that takes a program's words
        subprocess.run([python, "main.py", …])           as [sys.executable, "main.py", …], two to four seconds earlier

The libraries alone are warm: a program's own modules are read from where it lies. The command passes on its words,
folder, environment, open files, blocked signals, and the signals that come, and ends with the program's exit code; when
it is killed, so is the program. What such a program spawns is as quick to start. What is about processes (kills, locks
handed on, limits, import times, -O) takes the real python.
"""

import atexit
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import secrets
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

CLIENT = Path(__file__).with_name("warm_client.py")
LIBRARIES = (
    *("torch", "torch._dynamo", "torch.utils.data", "torch.nn.parallel", "numpy.random", "pandas", "nibabel", "tqdm"),
    *("scipy.ndimage", "scipy.spatial", "scipy.stats", "cv2", "isal.igzip", "PIL.Image", "matplotlib.figure"),
    *("matplotlib.backends.backend_agg", "concurrent.futures.process", "multiprocessing.util"),
)
LARGEST = 1 << 20  # bytes of a program's words and environment
MOST = 64  # open files that are passed on


def own_lock() -> None:
    """Gives a fork a lock of tqdm's of its own: one that is killed while it holds the shared one stops all others."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


@contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """The command, in `folder`, while its server runs; the server ends with whoever started it."""
    command = folder / "python"
    name = secrets.token_hex(8)
    words = [sys.executable, "-I", "-S", str(CLIENT), sys.executable, name]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0{name}")  # in no folder, whose name could be too long
        door.listen(64)
        start = [sys.executable, __file__, str(door.fileno()), str(folder / "compiled"), str(command)]
        server = subprocess.Popen(start, stdin=subprocess.PIPE, pass_fds=[door.fileno()])
    try:
        yield command
    finally:
        server.stdin.close()
        server.wait()


class Server:
    """Forks a child for each program that is asked for, and tells whoever asked how it ended."""

    def __init__(self, door: socket.socket) -> None:
        self.door, self.events = door, selectors.DefaultSelector()
        self.events.register(door, selectors.EVENT_READ, self.begin)
        self.events.register(0, selectors.EVENT_READ, None)  # closed by the starter's end

    def serve(self) -> Callable[[], None] | None:
        """In a child: its program. In the server: None, once the starter is gone."""
        while True:
            key, _ = self.events.select()[0]  # one at a time: it may end what another one is about
            if key.data is None:
                return None
            if program := key.data(key.fileobj):
                return program

    def begin(self, door: socket.socket) -> Callable[[], None] | None:
        asker, _ = door.accept()
        told, streams, _, _ = socket.recv_fds(asker, LARGEST, MOST)
        while not told.endswith(b"\n"):
            if not (more := asker.recv(LARGEST)):
                break
            told += more
        if len(streams) >= 3 and told.endswith(b"\n"):
            if not (child := os.fork()):
                self.forget(asker)
                return prepare(json.loads(told), streams)
            self.watch(child, asker)
        for stream in streams:
            os.close(stream)
        return None

    def watch(self, child: int, asker: socket.socket) -> None:
        watched = os.pidfd_open(child)

        def end(_: int) -> None:
            self.events.unregister(watched)
            os.close(watched)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(OSError, KeyError):
                self.events.unregister(asker)
            with suppress(OSError), asker:
                asker.sendall(f"{code}\n".encode())

        def hear(_: socket.socket) -> None:
            numbers = asker.recv(16)
            for number in numbers or [signal.SIGKILL]:
                signal.pidfd_send_signal(watched, number)
            if not numbers:
                self.events.unregister(asker)

        self.events.register(watched, selectors.EVENT_READ, end)
        self.events.register(asker, selectors.EVENT_READ, hear)

    def forget(self, asker: socket.socket) -> None:
        """In a child: nothing of the server's stays open."""
        open_ones = [key.fileobj for key in self.events.get_map().values()]
        for each in (self.events, asker, *open_ones):
            if isinstance(each, int):
                os.close(each)
            else:
                each.close()


def take(files: list[int], numbers: list[int]) -> None:
    """Gives these open files these numbers. First they go above both, so that none is lost to another's number."""
    above = max(*files, *numbers) + 1
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, above) for each in files]
    for each in files:
        os.close(each)
    for each, number in zip(moved, numbers, strict=True):
        os.dup2(each, number)
        os.close(each)


def prepare(told: dict, files: list[int]) -> Callable[[], None]:
    """The program that is asked for, after this process has taken its files, folder, environment and words."""
    take(files, told["files"])
    signal.pthread_sigmask(signal.SIG_SETMASK, told["blocked"])
    multiprocessing.set_executable(sys.argv[3])
    code = told["environment"].get("PYTHONIOENCODING") or sys.stdout.encoding
    sys.stdin = open(0, encoding=code, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=code, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=code, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(os.fsencode(told["folder"]))
    os.environ.clear()
    os.environ.update(told["environment"])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    kind, *words = told["words"]
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *words[1:]], ""
        return lambda: exec(words[0], vars(__import__("__main__")))  # noqa: S102  as python does
    if kind == "-m":
        sys.argv, sys.path[0] = words, str(Path.cwd())
        return lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    sys.argv, sys.path[0] = [kind, *words], str(Path(kind).resolve().parent)
    return lambda: runpy.run_path(str(Path(kind).absolute()), run_name="__main__")


def main() -> Callable[[], None] | None:
    os.register_at_fork(after_in_child=own_lock)
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[2], False  # of the programs' own modules
    gc.freeze()  # no collection of a child copies their pages
    return Server(socket.socket(fileno=int(sys.argv[1]))).serve()


def run(program: Callable[[], None]) -> NoReturn:
    """Ends as python does, but for the tidying of its memory, which takes most of a second."""
    code = 0
    try:
        program()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  as at the end of every program
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code)


if __name__ == "__main__" and (program := main()):
    run(program)
