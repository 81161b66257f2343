"""Asked to stop (SIGTERM of a scheduler, Ctrl-C), a run stops between two steps, where it can note how far it came."""

import os
import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The process was asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stop:
    """Remembers the signal until somebody looks."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.number: int | None = None
        self.before: dict[int, Any] = {}

    def listen(self, leads: bool = True) -> None:
        """From now on the signals are only noted; a second Ctrl-C ends the process at once.

        Of several processes the first one decides: the others would stop at other steps, in the middle of what
        they do together. They end when it has ended.
        """
        for number in self.SIGNALS:
            self.before[number] = signal.signal(number, self._note if leads else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A second SIGTERM is the same request: a scheduler, make and torchrun each pass theirs on within a millisecond.
        if self.number == number == signal.SIGINT:
            os._exit(128 + number)
        self.number = number

    def forget(self) -> None:
        """As if nothing had been asked, and the signals do again what they did before."""
        self.number = None
        while self.before:
            signal.signal(*self.before.popitem())

    def check(self) -> None:
        """Raises Interrupted if the process was asked to stop."""
        if self.number is not None:
            raise Interrupted(self.number)


STOP = Stop()  # signals belong to the process, and so does this
