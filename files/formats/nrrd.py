"""NRRD: .nrrd, and .nhdr with its voxels in a file next to it; the header is read by pynrrd.

The voxels are not: it unpacks whatever is there, and skips as many lines as a header asks for. Format: "NRRD" in the
documentation of Teem.
"""

import bz2
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from files.faults import VolumeFault
from files.formats.volume import Volume, affine_of, beside, mm_of, not_3d, refusing, unpacked

SUFFIXES = (".nrrd", ".nhdr")
UNPACKERS = {
    **dict.fromkeys(("gzip", "gz"), lambda: zlib.decompressobj(wbits=31)),
    **dict.fromkeys(("bzip2", "bz2"), bz2.BZ2Decompressor),
}
TEXT = ("ascii", "ASCII", "text", "txt")
SKIPPED = 2**20  # bytes before the voxels in what is compressed, at most
# to LPS
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


def open_volume(path: Path) -> Volume:
    """Reads the header of an NRRD. Raises VolumeFault."""
    with refusing(path):
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            start = file.tell()
        sizes = tuple(map(int, header["sizes"]))
        dtype = nrrd.reader._determine_datatype(header)
        named = header.get("data file", header.get("datafile"))
        source = beside(path, str(named)) if named else path
        if header["dimension"] != len(sizes) or not 3 <= len(sizes) <= 4 or min(sizes) < 0:
            raise not_3d(sizes, path)
        units = tuple(mm_of(unit, path) for unit in header.get("space units", ("",) * 3))
        affine, spatial = _affine(header, len(sizes), units, path)
    order = [*spatial, *(axis for axis in range(len(sizes)) if axis not in spatial)]

    def voxels() -> np.ndarray:
        with refusing(path):
            content = _content(source, 0 if named else start, header, math.prod(sizes) * dtype.itemsize)
            if header["encoding"] in TEXT:
                stored = np.fromstring(content, dtype, sep=" ")
            else:
                stored = np.frombuffer(content, dtype)
            return stored.reshape(sizes, order="F").transpose(order)

    files = (path, source) if named else (path,)
    return Volume(tuple(sizes[axis] for axis in order), affine, dtype, files, voxels, units)


def _content(source: Path, start: int, header: Mapping[str, Any], size: int) -> bytes:
    """The bytes of the voxels, unpacked, or their text."""
    lines, skipped = (header.get(f"{what} skip", header.get(f"{what}skip", 0)) for what in ("line", "byte"))
    if lines < 0 or skipped < -1:
        raise ValueError(f"it skips {lines} lines and {skipped} bytes")
    with source.open("rb") as file:
        file.seek(start)
        for _ in range(lines):
            if not file.readline():
                raise ValueError(f"it skips {lines} lines, more than there are")
        content = file.read()
    if unpacker := UNPACKERS.get(header["encoding"]):
        before = min(max(skipped, 0), SKIPPED)
        content = unpacked(content, before + size, unpacker())
    elif header["encoding"] not in ("raw", *TEXT):
        raise ValueError(f"the encoding '{header['encoding']}' is not known")
    content = content[len(content) - size :] if skipped == -1 else content[skipped:]
    if header["encoding"] not in TEXT and len(content) != size:
        raise ValueError(f"expected {size} bytes of voxels, there are {len(content)}")
    return content


def _affine(
    header: Mapping[str, Any], count: int, units: tuple[float, ...], path: Path
) -> tuple[np.ndarray, list[int]]:
    """The matrix, and the three axes that have a direction in space. Without a unit it is mm; no more is guessed.

    units: mm of the unit that `space units` names for each of the three axes of the space
    """
    if lacking := [name for name in ("space", "space directions", "space origin") if name not in header]:
        raise VolumeFault("does not say where it lies (save it anew, with its geometry)", f"{path} (no {lacking[0]})")
    if header["space"].lower() not in SPACES:
        raise VolumeFault("lies in a space that is not the patient's (resave it)", f"{path} ({header['space']})")
    signs = np.array(SPACES[header["space"].lower()]) * units
    origin = np.asarray(header["space origin"], np.float64)
    steps = np.asarray(header["space directions"], np.float64)
    spatial = [axis for axis in range(count) if np.isfinite(steps[axis]).all()]
    if len(spatial) != 3 or steps.shape != (count, 3) or origin.shape != (3,):
        raise VolumeFault("does not have three axes in space", f"{path} ({len(spatial)} of {count})")
    return affine_of(signs[:, None] * steps[spatial].T, signs * origin, path), spatial
