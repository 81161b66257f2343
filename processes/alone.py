"""One function in a process of its own, which starts anew and ends with the one that started it.

What the function opens, holds and computes on is no part of this process, and nothing of this one is known there.
"""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from processes.errors import UserError
from processes.interrupt import STOP
from processes.pool import end_with_starter

Result = TypeVar("Result")
LOOK = 0.1  # seconds until somebody looks again whether this process was asked to stop
TIDYING = 10  # seconds that the process gets to end by itself, after its answer and once it is asked to
END = signal.SIGUSR1  # by which it is asked, as Ctrl-C would


def run_alone(function: Callable[..., Result], *args: Any) -> Result:
    """What the function returns for these arguments, called in a process of its own (spawned, no copy of this one).

    Function, arguments and what is returned are pickled. Standard output and error are those of this process.

    Raises what the function raises: a UserError as it is, others with their traceback there as a note. Raises UserError
    if the process is killed, and Interrupted if this one is asked to stop meanwhile. Whatever comes, the process is
    over then, and so is what it started by `in_processes` or `run_alone`.
    """
    spawn = multiprocessing.get_context("spawn")
    watched, held = spawn.Pipe(duplex=False)
    answers, answer = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_answer, args=(answer, watched, function, args))
    try:
        with _signals_blocked():
            child.start()
        answer.close()  # so that the end of the child is the end of its answers
        while not wait([answers], LOOK):
            STOP.check()
        try:
            answered = answers.recv_bytes()
        except (EOFError, OSError):  # the answer ended before it began, or in the middle
            child.join()
            raise UserError(_how_it_ended(function, child.exitcode)) from None
        child.join(TIDYING)
    finally:
        if child.pid is not None:
            _end(child)
        for end in (watched, held, answers, answer):
            end.close()
    error, result = pickle.loads(answered)
    if error is not None:
        raise error
    return result


def _end(child: BaseProcess) -> None:
    """Ends the process, after it has tidied away what is half done, if that does not take long."""
    if child.is_alive():
        os.kill(child.pid, END)
        child.join(TIDYING)
    child.kill()
    child.join()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started meanwhile never hears of Ctrl-C, or of a scheduler: its starter does, and asks it to end."""
    resource_tracker.ensure_running()  # it would unblock them when it is started for the child
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(answer: Connection, watched: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In the process: sends (what was raised or None, what was returned or None), pickled."""
    end_with_starter(watched)
    with suppress(KeyboardInterrupt):
        signal.signal(END, signal.default_int_handler)
        try:
            sent = pickle.dumps((None, function(*args)))
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised again in the starter
            sent = _pickled(error)
        answer.send_bytes(sent)


def _pickled(error: Exception) -> bytes:
    """(error, None); of one that cannot be pickled, or not be made again, its traceback as a RuntimeError."""
    if not isinstance(error, UserError):
        error.add_note(f"In the process of its own:\n{traceback.format_exc()}")
    try:
        sent = pickle.dumps((error, None))
        pickle.loads(sent)
    except Exception:  # noqa: BLE001  an error may have any constructor
        sent = pickle.dumps((RuntimeError("".join(traceback.format_exception(error))), None))
    return sent


def _how_it_ended(function: Callable[..., Any], code: int | None) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    if code is not None and code < 0:
        return (
            f"{name} ran in a process of its own, which was ended by {signal.Signals(-code).name}, most likely for "
            "want of memory: close what else needs memory, and try again."
        )
    return f"{name} ran in a process of its own, which ended with exit code {code} before it had an answer."
