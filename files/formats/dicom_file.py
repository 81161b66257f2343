"""The bytes of a DICOM file, walked element by element before they are read: is it whole, of which series, an image?

GDCM reads the voxels. It believes each length that a file states, so four wrong bytes make it ask for gigabytes. And it
silently leaves out of a series what it cannot parse. Here a length that leads beyond the end of the file is a fault of
the file.

Source: DICOM PS3.5 (data elements, sequences, encapsulated pixel data) and PS3.10 (file format).
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
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
LETTERS = (0x0008, 0x0005)  # which letters the words of the file are written in
TOLD = {(0x0008, 0x0020): "date", (0x0008, 0x0060): "modality", (0x0008, 0x103E): "description"}
TOLD |= {(0x0010, 0x0020): "patient", (0x0020, 0x000D): "study", (0x0020, 0x0011): "number"}
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
NATIVE = {IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED}  # voxels as they are, not compressed
CODECS = {b"IR 192": "utf-8", b"GB18030": "gb18030", b"GBK": "gbk", b"IR 13": "shift_jis", b"IR 144": "iso8859_5"}
DEEPEST = 32  # sequences in sequences

Tag = tuple[int, int]


class Torn(ValueError):
    """A file is not whole. `series` is the one that it says it is of, "" where it ends before it says so."""

    def __init__(self, what: str, series: str = "") -> None:
        super().__init__(what)
        self.series = series


@dataclass(frozen=True)
class DicomFile:
    """What a whole file says of itself. `pixels` are the bytes of its voxels, 0 if it is no image.

    `native` says whether they are uncompressed. The words behind it are "" where the file does not have them.
    """

    path: Path
    series: str
    pixels: int
    native: bool
    patient: str = ""  # PatientID
    study: str = ""  # StudyInstanceUID
    date: str = ""  # of the study, as 20200131
    modality: str = ""
    number: str = ""  # of the series in its study
    description: str = ""  # of the series


def examine(path: Path) -> DicomFile | None:
    """Walks the file from end to end. Returns None if it is no DICOM, and raises Torn if it is not whole."""
    start, mark = MARK
    with path.open("rb") as file:
        head = file.read(start + 4)
        is_marked = head[start:] == mark
        if not is_marked and head[:2] not in OLD:
            return None  # unread, however large it is
        return _examine(path, head + file.read(), start + 4 if is_marked else 0)


def _examine(path: Path, content: bytes, at: int) -> DicomFile:
    """What the file says, whose elements begin at this byte. Raises Torn."""
    values: dict[Tag, bytes] = {}
    try:
        pixels, native = _read_elements(content, at, values)
    except (ValueError, struct.error) as error:
        raise Torn(str(error), _word(values, SERIES)) from error
    return DicomFile(path, _word(values, SERIES), pixels, native, **{TOLD[tag]: _word(values, tag) for tag in TOLD})


def _word(values: Mapping[Tag, bytes], tag: Tag) -> str:
    """A value as words, in the letters that the file says it is written in."""
    letters = values.get(LETTERS, b"")
    codec = next((codec for mark, codec in CODECS.items() if mark in letters), "latin-1")
    return values.get(tag, b"").rstrip(b"\0 ").decode(codec, "replace").strip()


def _read_elements(content: bytes, at: int, values: dict[Tag, bytes]) -> tuple[int, bool]:
    """Puts what the elements say into `values`. Returns the bytes of the voxels, and whether they are uncompressed.

    Raises ValueError for bytes that are no elements.
    """
    meta = _Walk(content, explicit=True)
    while content[at : at + 2] == b"\x02\x00":  # the group that says how the rest is written
        tag, at, end = meta.element(at)
        values[tag] = content[at:end]
        at = end
    syntax = _word(values, SYNTAX)
    if syntax == DEFLATED:
        content, at = _inflated(content[at:]), 0
    explicit = syntax != IMPLICIT if syntax else content[at + 4 : at + 6].isalpha()
    walk = _Walk(content, explicit, ">" if syntax == BIG_ENDIAN else "<")
    pixels = 0
    for tag, begin, end in walk.elements(at, len(content)):
        if tag in TOLD or tag in (SERIES, LETTERS):
            values[tag] = content[begin:end]
        elif tag == PIXELS:
            pixels = end - begin
            if syntax == RLE:
                _check_rle(content[begin:end])
    return pixels, syntax in NATIVE


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
