"""A file of a cache: noted when it is written, looked at before it is used."""

import os
import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK = 2**20  # bytes with one checksum
SAMPLED = 8  # blocks that are compared each time; all of them where the file system tells of a change
Note = dict[str, Any]


def describe(path: Path) -> Note:
    """Notes the size, state and checksums (CRC-32 of each block) of a file, in plain types."""
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        return {"size": size, "state": _state(fd), "blocks": _checksums(fd, range(-(-size // BLOCK)))}


def is_as_written(path: Path, note: Note) -> bool:
    """Whether nothing points to a change: size, state, and a sample of the content."""
    try:
        with _opened(path) as fd:
            if os.fstat(fd).st_size != note["size"] or _state(fd) != note["state"]:
                return False
            count = len(note["blocks"])
            return _agrees(fd, note, random.Random().sample(range(count), min(SAMPLED, count)))
    except OSError:
        return False


def is_whole(path: Path, note: Note) -> bool:
    """Whether the whole content of the file is what was written. Its time stamps do not count."""
    try:
        with _opened(path) as fd:
            return holds(fd, note)
    except OSError:
        return False


def holds(fd: int, note: Note) -> bool:
    """Whether the whole content of an open file, given by its descriptor, is what was written."""
    return os.fstat(fd).st_size == note["size"] and _agrees(fd, note, range(len(note["blocks"])))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _state(fd: int) -> list[int]:
    """What the file system changes with each write, and with each copy."""
    seen = os.fstat(fd)
    return [seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]


def _agrees(fd: int, note: Note, blocks: Iterable[int]) -> bool:
    blocks = list(blocks)
    return _checksums(fd, blocks) == [note["blocks"][number] for number in blocks]


def _checksums(fd: int, blocks: Iterable[int]) -> list[int]:
    return [zlib.crc32(os.pread(fd, BLOCK, number * BLOCK)) for number in blocks]
