"""Ctrl-C ends a program in one line. Programs import this before all else, as their other imports take seconds."""

import os
import sys
from pathlib import Path
from types import TracebackType

ASKED = 130  # the exit code of who was stopped by Ctrl-C


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ended the program, as python has it, but for Ctrl-C: that is no error."""
    if not issubclass(kind, KeyboardInterrupt):
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
