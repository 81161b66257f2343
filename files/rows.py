"""A cached .npy read where it lies, row by row, without its pages mapped.

Of a file that somebody cuts while its pages are mapped, the system ends the process (SIGBUS), without a word. What is
read comes short instead, which can be told; and it is as fast.
"""

import math
import os
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np

from files import cached as cached_file
from processes.errors import UserError
from utils import ONE_AT_A_TIME


class StoredRows:
    """The array (N, …) in a file of a cache. The file stays open, even if its name is removed.

    note: what cached_file.describe told of the file when it was written
    """

    def __init__(self, path: Path, note: cached_file.Note) -> None:
        self.path, self.note = path, note
        self.fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.fd)
        with open(self.fd, "rb", closefd=False) as file:
            np.lib.format.read_magic(file)
            with ONE_AT_A_TIME:
                self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()
        self.written = note["state"][0]  # ns

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Puts these rows, in their order, into `out`, (B, …) of the array's type.

        Raises UserError where the file is not what it was: cut short, or written to.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()  # what lies one after another is read at once
        for begin, end in pairwise([*begins, len(rows)]):
            self._fill(out[begin:end], self.start + int(rows[begin]) * size)
        written = os.fstat(self.fd).st_mtime_ns
        if written != self.written:  # or somebody set the time of the file, and left what is in it
            if not cached_file.holds(self.fd, self.note):
                raise self._changed()
            self.written = written

    def _fill(self, out: np.ndarray, at: int) -> None:
        left = memoryview(out.reshape(-1).view(np.uint8))
        while left:
            count = os.preadv(self.fd, [left], at)
            if not count:
                raise self._changed()
            left, at = left[count:], at + count

    def _changed(self) -> UserError:
        return UserError(
            f"{self.path} was cut or written to while it was in use, by another program or on a full disk: nothing of "
            "it can be trusted. Start again: it is made anew, and with --resume a run goes on where it was."
        )
