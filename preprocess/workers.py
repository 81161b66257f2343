"""Work shared out to processes."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from utils import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """The results in the order of the tasks, made by `jobs` processes. Raises UserError if one of them is killed."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(work, tasks)
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    # Ctrl-C, which a terminal sends to all of them, ends the workers at once, and this process alone tells of it
    at_once = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context(method), **at_once)
    try:
        yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise UserError("A worker was killed, most likely for want of memory; try again with --jobs 1.") from error
    finally:
        pool.shutdown(cancel_futures=True)
