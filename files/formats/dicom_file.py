"""The bytes of a DICOM file, walked element by element before they are read: is it whole, of which series, an image?

GDCM reads the voxels. It believes each length that a file states, so four wrong bytes make it ask for gigabytes. And it
silently leaves out of a series what it cannot parse. Here a length that leads beyond the end of the file is a fault of
the file.

Source: DICOM PS3.5 (data elements, sequences, encapsulated pixel data) and PS3.10 (file format).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from files.formats.volume import PACKED

MARK = 128, b"DICM"
OLD = b"\x02\x00", b"\x08\x00"  # the groups that a file without the mark begins with
SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
SHORT |= {b"ST", b"TM", b"UI", b"UL", b"US"}  # kinds of values, of 16-bit lengths
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # 32-bit lengths
UNDEFINED = 0xFFFFFFFF
ITEM, END_OF_ITEM, END_OF_SEQUENCE = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
SYNTAX, SERIES, PIXELS = (0x0002, 0x0010), (0x0020, 0x000E), (0x7FE0, 0x0010)
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
NATIVE = {IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED}  # voxels as they are, not compressed
DEEPEST = 32  # sequences in sequences

Tag = tuple[int, int]


@dataclass(frozen=True)
class DicomFile:
    """What a whole file says of itself. `pixels` are the bytes of its voxels, 0 if it is no image.

    `native` says whether they are uncompressed.
    """

    path: Path
    series: str
    pixels: int
    native: bool


def examine(path: Path) -> DicomFile | None:
    """Walks the file from end to end. Returns None if it is no DICOM, and raises ValueError if it is torn."""
    content = path.read_bytes()
    start, mark = MARK
    if content[start : start + 4] == mark:
        return _examine(path, content, start + 4)
    return _examine(path, content, 0) if content[:2] in OLD else None


def _examine(path: Path, content: bytes, at: int) -> DicomFile:
    meta = _Walk(content, explicit=True)
    values = {}
    while content[at : at + 2] == b"\x02\x00":  # the group that says how the rest is written
        tag, at, end = meta.element(at)
        values[tag] = content[at:end]
        at = end
    syntax = values.get(SYNTAX, b"").rstrip(b"\0 ").decode("ascii", "replace")
    if syntax == DEFLATED:
        content, at = _inflated(content[at:]), 0
    explicit = syntax != IMPLICIT if syntax else content[at + 4 : at + 6].isalpha()
    walk = _Walk(content, explicit, ">" if syntax == BIG_ENDIAN else "<")
    series, pixels = "", 0
    for tag, begin, end in walk.elements(at, len(content)):
        if tag == SERIES:
            series = content[begin:end].rstrip(b"\0 ").decode("ascii", "replace")
        elif tag == PIXELS:
            pixels = end - begin
            if syntax == RLE:
                _check_rle(content[begin:end])
    return DicomFile(path, series, pixels, syntax in NATIVE)


def _check_rle(items: bytes) -> None:
    """Raises ValueError for a frame of no segments: GDCM divides by their number, which ends the process.

    items: a table of where frames begin, then a frame each, and what closes them (PS3.5, annex G)
    """
    at = 8 + struct.unpack_from("<I", items, 4)[0]
    while items[at : at + 4] == struct.pack("<HH", *ITEM):
        (length,) = struct.unpack_from("<I", items, at + 4)
        segments = struct.unpack_from("<I", items, at + 8)[0] if length >= 64 else 0
        if not 1 <= segments <= 15:
            raise ValueError(f"a frame in it has {segments} segments, not 1 to 15")
        at += 8 + length


def _inflated(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=-15)
    try:
        content = unpacker.decompress(packed, PACKED * len(packed))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("its compressed part ends too early")
    return content


@dataclass(frozen=True)
class _Walk:
    """Goes over the elements of some bytes. Every method raises ValueError where a length leads beyond their end."""

    content: bytes
    explicit: bool  # whether the kind of a value stands next to its tag
    order: str = "<"

    def elements(self, at: int, end: int, depth: int = 0) -> Iterator[tuple[Tag, int, int]]:
        """(tag, where its value begins, and ends) of each, to the end or to what closes an item."""
        while at < end:
            if not any(self.content[at : min(at + 8, end)]) and not any(self.content[at:end]):
                return  # padding
            tag, at, stop = self.element(at, end, depth)
            yield tag, at, stop
            if tag == END_OF_ITEM:
                return
            at = stop

    def element(self, at: int, end: int | None = None, depth: int = 0) -> tuple[Tag, int, int]:
        """(tag, where its value begins, and ends) of the one that begins here, all that is in it walked too."""
        end = len(self.content) if end is None else end
        tag, kind, length, at = self._head(at, end)
        if length == UNDEFINED:
            walk = replace(self, explicit=False) if kind == b"UN" else self  # of an unknown kind, no kinds stand in it
            stop = walk._sequence(at, end, depth, nested=tag != PIXELS)
        elif length > end - at:
            raise ValueError(f"element {tag[0]:04x},{tag[1]:04x} states {length} bytes, {end - at} are left")
        else:
            stop = at + length
            item = struct.pack(f"{self.order}HH", *ITEM)
            if tag != PIXELS and (kind == b"SQ" or (kind is None and self.content[at : at + 4] == item)):
                self._sequence(at, stop, depth, closed=True)
        return tag, at, stop

    def _head(self, at: int, end: int) -> tuple[Tag, bytes | None, int, int]:
        """Tag, kind (None where it is not stated), length, and where the value begins."""
        if end - at < 8:
            raise ValueError(f"it ends within an element, {end - at} bytes after its beginning")
        tag = struct.unpack_from(f"{self.order}HH", self.content, at)
        kind = self.content[at + 4 : at + 6]
        if tag[0] == 0xFFFE or not self.explicit:
            return tag, None, struct.unpack_from(f"{self.order}I", self.content, at + 4)[0], at + 8
        if kind not in SHORT | LONG:
            raise ValueError(f"element {tag[0]:04x},{tag[1]:04x} does not say what kind of value it has")
        if kind not in LONG:
            return tag, kind, struct.unpack_from(f"{self.order}H", self.content, at + 6)[0], at + 8
        if end - at < 12:
            raise ValueError(f"it ends within an element, {end - at} bytes after its beginning")
        return tag, kind, struct.unpack_from(f"{self.order}I", self.content, at + 8)[0], at + 12

    def _sequence(self, at: int, end: int, depth: int, nested: bool = True, closed: bool = False) -> int:
        """Where the items end that begin here. `nested`: they hold elements, no bytes; `closed`: `end` is their end."""
        if depth > DEEPEST:
            raise ValueError(f"its sequences lie more than {DEEPEST} deep in one another")
        while not (closed and at == end):
            tag, _, length, at = self._head(at, end)
            if tag == END_OF_SEQUENCE:
                return at
            if tag != ITEM or (length == UNDEFINED and not nested):
                raise ValueError("a sequence in it holds what is no item")
            if length != UNDEFINED and length > end - at:
                raise ValueError(f"an item states {length} bytes, {end - at} are left")
            stop = end if length == UNDEFINED else at + length
            if not nested:
                at = stop
                continue
            inside = list(self.elements(at, stop, depth + 1))
            if length == UNDEFINED:
                if not inside or inside[-1][0] != END_OF_ITEM:
                    raise ValueError("an item in it is not closed")
                stop = inside[-1][2]
            at = stop
        return end
