"""Work shared out to processes, which end with the one that started them, however it ends."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.util import get_temp_dir
from pathlib import Path
from tempfile import gettempdir
from typing import TypeVar

from processes.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """The results in the order of the tasks, made by `jobs` processes. Raises UserError if one of them is killed."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(work, tasks)
        return
    watched, held = multiprocessing.Pipe(duplex=False)
    how = {"initializer": end_with_starter, "initargs": (watched, get_temp_dir())}
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context(_start_method()), **how)
    try:
        yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise UserError("A worker was killed, most likely for want of memory; try again with --jobs 1.") from error
    except BaseException:
        os.write(held.fileno(), END * jobs)  # nobody waits for what is half done
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        held.close()
        watched.close()


def _start_method() -> str:
    """A fork server where there is one, and where the path of its socket is not too long for the system."""
    path = os.fsencode(Path(gettempdir(), "pymp-12345678", "listener-12345678"))
    known = "forkserver" in multiprocessing.get_all_start_methods()
    return "forkserver" if known and len(path) < SOCKET_PATH else "spawn"


SOCKET_PATH = 104  # bytes, with the 0 at the end: the least that a system allows (macOS); Linux has 108
END = b"."  # a byte for each worker


def end_with_starter(watched: Connection, folder: str | None = None) -> None:
    """In a worker: from now on the process ends at once when it is told to, or when the pipe's other end is gone.

    Ctrl-C, which a terminal sends to all of them, ends it at once, and its starter alone tells of that.

    folder: where multiprocessing keeps its sockets, if it does, which goes too if the starter could not remove it
    """

    def watch() -> None:
        if not os.read(watched.fileno(), 1) and folder:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
