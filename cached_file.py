"""A file of a cache: noted when it is written, looked at before it is used."""

import random
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BLOCK = 2**20  # bytes with one checksum
SAMPLED = 8  # blocks that are compared each time; all of them where the file system tells of a change
Note = dict[str, Any]


def describe(path: Path) -> Note:
    """Size, state and checksums (CRC-32 by the block) of a file, in plain types."""
    size = path.stat().st_size
    return {"size": size, "state": _state(path), "blocks": _checksums(path, range(-(-size // BLOCK)))}


def is_as_written(path: Path, note: Note) -> bool:
    """Whether nothing points to a change: size, state, and a sample of the content."""
    try:
        if path.stat().st_size != note["size"] or _state(path) != note["state"]:
            return False
        count = len(note["blocks"])
        return _agrees(path, note, random.Random().sample(range(count), min(SAMPLED, count)))
    except OSError:
        return False


def is_whole(path: Path, note: Note) -> bool:
    """Whether the whole content is what was written, whatever its times."""
    try:
        return path.stat().st_size == note["size"] and _agrees(path, note, range(len(note["blocks"])))
    except OSError:
        return False


def _state(path: Path) -> list[int]:
    """What the file system changes with each write, and with each copy."""
    seen = path.stat()
    return [seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]


def _agrees(path: Path, note: Note, blocks: Iterable[int]) -> bool:
    blocks = list(blocks)
    return _checksums(path, blocks) == [note["blocks"][number] for number in blocks]


def _checksums(path: Path, blocks: Iterable[int]) -> list[int]:
    with path.open("rb") as file:
        found = []
        for number in blocks:
            file.seek(number * BLOCK)
            found.append(zlib.crc32(file.read(BLOCK)))
    return found
