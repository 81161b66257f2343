"""Ctrl-C ends a program in one line. Programs import this before all else, as their other imports take seconds."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

ASKED = 130  # the exit code of who was stopped by Ctrl-C
pressed: list[int] = []  # signals of Ctrl-C that nobody has answered yet


def note(number: int, frame: FrameType | None) -> None:
    """What python does at Ctrl-C, and a note of it: a library that is being imported may take it for an error."""
    pressed.append(number)
    signal.default_int_handler(number, frame)


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ended the program, as python has it, but for Ctrl-C, and what came of it: that is no error."""
    if not issubclass(kind, KeyboardInterrupt) and not pressed:
        sys.__excepthook__(kind, error, trace)
        return
    tell()
    sys.stdout.flush()
    os._exit(ASKED)


def tell() -> None:
    """One line on the screen; of several processes one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: stopped by Ctrl-C.", file=sys.stderr, flush=True)


sys.excepthook = show_error
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # not in the main thread, which alone may set it
        signal.signal(signal.SIGINT, note)
