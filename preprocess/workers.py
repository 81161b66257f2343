"""Work shared out to processes."""

import multiprocessing
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
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context(method))
    try:
        yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise UserError("A worker was killed, most likely for want of memory; try again with --jobs 1.") from error
    finally:
        pool.shutdown(cancel_futures=True)
