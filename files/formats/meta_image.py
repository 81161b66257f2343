"""MetaImage: .mha, and .mhd with its voxels in a file next to it (.raw, .zraw).

Read here and not by ITK, whose parser of these headers ends the whole process at some broken ones. Format: "MetaIO" in
the documentation of ITK.
"""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from files.faults import VolumeFault
from files.formats.volume import Volume, affine_of, beside, mm_of, not_3d, refusing, unpacked

SUFFIXES = (".mhd", ".mha")
LONGEST = 2**16  # bytes of a header
TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}


def open_volume(path: Path) -> Volume:
    """Reads the header of a MetaImage. Raises VolumeFault."""
    with refusing(path):
        fields, end = _read_fields(path)
        count = int(fields["ndims"])
        shape = tuple(map(int, fields["dimsize"].split()))
        if count != len(shape):
            raise ValueError(f"NDims is {count}, DimSize {fields['dimsize']}")
        if not 3 <= count <= 4 or min(shape) < 0:
            raise not_3d(shape, path)
        channels = int(fields.get("elementnumberofchannels", 1))
        dtype = _dtype(fields, path)
        mm = mm_of(fields.get("distanceunits", ""), path)
        affine = _affine(fields, count, mm, path)
        inside = fields["elementdatafile"].lower() == "local"
        source = path if inside else beside(path, fields["elementdatafile"])
    whole = (channels, *shape) if channels > 1 else shape
    files = (path,) if inside else (path, source)

    def voxels() -> np.ndarray:
        with refusing(path):
            stored = np.frombuffer(_content(source, end if inside else None, fields, whole, dtype), dtype)
            array = stored.reshape(whole, order="F")
            return np.moveaxis(array, 0, -1) if channels > 1 else array

    last = whole[1:] + whole[:1] if channels > 1 else whole
    return Volume(last, affine, dtype, files, voxels, (mm,) * 3)


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Key (small letters) -> value, and where the header ends; ElementDataFile is its last line."""
    fields = {}
    with path.open("rb") as file:
        while file.tell() < LONGEST and (line := file.readline(LONGEST)):
            text = line.decode("ascii").replace("\t", " ").strip("\r\n")
            if not text.isprintable():  # python takes some of them for blanks, ITK for letters
                raise ValueError(f"its header holds a control character, in {text!r}")
            key, equals, value = text.partition("=")
            key = key.strip().lower()
            if not equals or key in fields:
                raise ValueError(f"expected lines 'key = value', each key once, got '{text.strip()}'")
            fields[key] = value.strip()
            if key == "elementdatafile":
                return fields, file.tell()
    raise ValueError("its header does not end in ElementDataFile")


def _dtype(fields: Mapping[str, str], path: Path) -> np.dtype:
    if fields["elementtype"] not in TYPES:
        raise VolumeFault("holds no numbers but colours or complex values", f"{path} ({fields['elementtype']})")
    big = _is_true(fields, "binarydatabyteordermsb") or _is_true(fields, "elementbyteordermsb")
    return np.dtype(TYPES[fields["elementtype"]]).newbyteorder(">" if big else "<")


def _affine(fields: Mapping[str, str], count: int, mm: float, path: Path) -> np.ndarray:
    """A row of TransformMatrix is the direction of an axis. Nothing that is left out is guessed but mm.

    mm: of a unit of length
    """

    def numbers(names: tuple[str, ...], *shape: int) -> np.ndarray:
        given = [fields[name.lower()].split() for name in names if name.lower() in fields]
        if len(given) != 1:
            raise ValueError(f"expected one line {' or '.join(names)}, there are {len(given)}")
        values = np.array(given[0], np.float64)
        if values.size != math.prod(shape) or not np.isfinite(values).all():
            raise ValueError(f"{names[0]} should be {math.prod(shape)} numbers")
        return values.reshape(shape)

    spacing = mm * numbers(("ElementSpacing",) if "elementspacing" in fields else ("ElementSize",), count)
    turned = numbers(("TransformMatrix", "Rotation", "Orientation"), count, count)
    origin = mm * numbers(("Offset", "Position", "Origin"), count)
    if not (spacing[:3] > 0).all():
        raise VolumeFault("has a spacing that is not above 0", f"{path} ({' '.join(f'{mm:g}' for mm in spacing)})")
    return affine_of(turned[:3, :3].T * spacing[:3], origin[:3], path)


def _content(
    source: Path, start: int | None, fields: Mapping[str, str], shape: tuple[int, ...], dtype: np.dtype
) -> bytes:
    """The bytes of the voxels, unpacked."""
    if not _is_true(fields, "binarydata", default=True):
        raise ValueError("its voxels are text: write it with BinaryData = True")
    size, skipped = math.prod(shape) * dtype.itemsize, int(fields.get("headersize", 0))
    with source.open("rb") as file:
        file.seek(start or 0)
        content = file.read()
    if _is_true(fields, "compresseddata"):
        content = unpacked(content, size, zlib.decompressobj(wbits=47))  # zlib or gzip
    elif skipped:
        content = content[len(content) - size if skipped == -1 else skipped :]
    if len(content) != size:
        raise ValueError(f"expected {size} bytes of voxels, there are {len(content)}")
    return content


def _is_true(fields: Mapping[str, str], name: str, default: bool = False) -> bool:
    return fields[name].lower() in ("true", "t", "1") if name in fields else default
