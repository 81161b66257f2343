"""The entries of a zip whose directory holds up: python's own reader takes a damaged one for a shorter archive."""

import struct
from typing import IO
from zipfile import BadZipFile, ZipFile, ZipInfo

END, END_SIZE, LONGEST_COMMENT = b"PK\5\6", 22, 0xFFFF
LOCATOR, LOCATOR_SIZE = b"PK\6\7", 20  # just before the end, in a zip of more than 65,534 files or of 4 GB
HEADER_SIZE = 30  # before an entry's own bytes, at least


def read_entries(archive: ZipFile) -> list[ZipInfo]:
    """The files and folders of an archive that is open, in its order.

    Raises BadZipFile if there are not as many as its end states. Raises it, too, for what only damage or malice makes:
    entries without a name, folders with content, and entries that lie in one another.
    """
    entries, stated = archive.infolist(), _stated_number(archive.fp)
    if len(entries) != stated:
        raise BadZipFile(f"its end states {stated} entries, its directory lists {len(entries)}")
    if not all(entry.filename for entry in entries):
        raise BadZipFile("one of its entries has no name")
    if odd := [entry.filename for entry in entries if entry.is_dir() and entry.file_size]:
        raise BadZipFile(f"{odd[0]} is listed as a folder and holds {archive.getinfo(odd[0]).file_size} bytes")
    in_place = sorted(entries, key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in in_place[1:]), archive.start_dir]
    for entry, end in zip(in_place, ends, strict=False):
        if entry.header_offset + HEADER_SIZE + entry.compress_size > end:
            raise BadZipFile(f"{entry.filename} reaches into what lies behind it")
    return entries


def _stated_number(file: IO[bytes]) -> int:
    """How many entries the record at the end of the file states."""
    size = file.seek(0, 2)
    file.seek(max(size - END_SIZE - LONGEST_COMMENT - LOCATOR_SIZE, 0))
    tail = file.read()
    place = tail.rfind(END)
    (number,) = struct.unpack_from("<H", tail, place + 10)
    before = place - LOCATOR_SIZE
    if before >= 0 and tail[before:].startswith(LOCATOR):
        (offset,) = struct.unpack_from("<Q", tail, before + 8)
        file.seek(offset)
        (number,) = struct.unpack_from("<Q", file.read(56).ljust(56, b"\0"), 32)
    return number
