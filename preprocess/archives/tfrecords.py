"""TFRecord files without TensorFlow: their frames, checksums, and the features of a tf.train.Example.

A frame is the length of its content (8 bytes, little endian), the masked CRC-32C of these, the content, and its CRC. An
Example is a protocol buffer; only what an Example can hold is read, and everything else refused. Formats: the
documentation of TensorFlow ("TFRecord and tf.train.Example") and of Protocol Buffers ("Encoding").
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
LISTS = {1: "bytes", 2: "float", 3: "int"}  # what a Feature may hold, by the number of the field

Feature = list[bytes] | list[float] | list[int]


def read_records(path: Path) -> Iterator[bytes]:
    """The content of each frame. Raises ValueError for a checksum that is wrong and for a frame that is cut off."""
    with path.open("rb") as file:
        left = path.stat().st_size
        while left:
            head = file.read(12)
            if len(head) < 12:
                raise ValueError("it ends within the head of a record")
            (length,) = struct.unpack("<Q", head[:8])
            _check(head[:8], head[8:])
            left -= 16 + length
            if left < 0:
                raise ValueError("it ends within a record")
            content = file.read(length)
            _check(content, file.read(4))
            yield content


def _check(content: bytes, checksum: bytes) -> None:
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if checksum != struct.pack("<I", masked):
        raise ValueError("the checksum of a record is wrong")


def read_example(content: bytes) -> dict[str, Feature]:
    """Name -> values. Raises ValueError for what is no Example."""
    found: dict[str, Feature] = {}
    for features in _fields(content, 1):
        for entry in _fields(features, 1):
            (name,), (feature,) = _fields(entry, 1), _fields(entry, 2)
            found[name.decode("utf-8")] = _feature(feature)
    return found


def _feature(content: bytes) -> Feature:
    ((number, kind, inside),) = _wire(content)
    if kind != BYTES:
        raise ValueError("it holds a feature that is none of an Example")
    values: Feature = []
    for _, kind, value in _wire(inside):
        match LISTS.get(number), kind:
            case ("bytes", 2):
                values.append(value)
            case ("float", 2) if len(value) % 4 == 0:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            case ("float", 5):
                values += struct.unpack("<f", value)
            case ("int", 0):
                values.append(_signed(value))
            case ("int", 2):
                values += map(_signed, _varints(value))
            case _:
                raise ValueError("it holds a feature that is none of an Example")
    return values


def _fields(content: bytes, number: int) -> list[bytes]:
    return [value for field, kind, value in _wire(content) if field == number and kind == BYTES]


def _wire(content: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """(field number, wire type, value) of a message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(content, at)
        elif kind in (FIXED64, FIXED32, BYTES):
            length = {FIXED64: 8, FIXED32: 4}.get(kind, 0)
            if kind == BYTES:
                length, at = _varint(content, at)
            value, at = content[at : at + length], at + length
        else:
            raise ValueError(f"it holds a field of the unknown type {kind}")
        if at > len(content):
            raise ValueError("it ends within a field")
        yield number, kind, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends within a number")
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it holds a number of more than 64 bits")


def _varints(content: bytes) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
