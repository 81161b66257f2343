"""DICOM: a folder with one series, or one series in it, read by GDCM through SimpleITK.

ITK counts mm to the patient's left, back and head, and has the last axis of an array first.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from files.faults import VolumeFault
from files.formats.dicom_decoder import decode, read
from files.formats.dicom_file import DicomFile
from files.formats.dicom_series import series_of
from files.formats.volume import LPS_TO_RAS, Volume, affine_of, refusing

EVEN = 0.02  # how much the steps between the slices of a series may differ, as a share of the usual one
ROUNDED = 0.1  # mm by which a slice may lie aside all the same: many scanners write places with one digit,
APART = 0.2  # but no more than this share of a step, which a slice that lacks moves its neighbours by
UNPACKED = 8  # bytes that a stored one becomes at most: whole numbers of 8 bits with a slope are float64
sitk.ProcessObject_SetGlobalWarningDisplay(False)


class Header(NamedTuple):
    """Where a file lies in space, in mm LPS, and what it holds."""

    size: tuple[int, ...]
    pixel: int  # number of its type
    direction: tuple[float, ...]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]


def open_volume(folder: Path) -> Volume:
    """The slices in the order of their places. Their names and numbers do not count. Raises VolumeFault."""
    with refusing(folder):
        found = series_of(folder)
        files = [each.path for each in found]
        headers = [_header(file) for file in files]
        alike = {(header.size[:2], header.pixel, _rounded(header.direction)) for header in headers}
        if len(alike) > 1:
            raise VolumeFault("has slices of several sizes, types or directions", f"{folder} ({len(files)} files)")
        voxels = sum(int(np.prod(header.size, dtype=object)) for header in headers)
        stored = sum(each.pixels for each in found)
        if all(each.native for each in found) and voxels > UNPACKED * stored:
            what = "has a header that promises more voxels than the file can hold"
            raise VolumeFault(what, f"{folder} ({voxels} of {stored} bytes)")
        dtype = _dtype(headers[0], folder)
        if len(files) == 1:
            header = headers[0]
            return Volume(header.size[:3], _affine(header, folder), dtype, files, partial(_read, found, voxels, folder))
        if any(np.prod(header.size[2:]) > 1 for header in headers):
            raise VolumeFault("has several files of many slices (give each a folder of its own)", str(folder))
        places = [np.asarray(header.origin[:3]) for header in headers]
        order, step = _in_place(places, headers[0].direction, folder)
        affine = _affine(headers[order[0]], folder)
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ step
    found = [found[number] for number in order]
    files = [each.path for each in found]
    return Volume((*headers[0].size[:2], len(files)), affine, dtype, files, partial(_read, found, voxels, folder))


def _header(file: Path) -> Header:
    seen = file.stat()
    return _header_of(str(file), (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))


@lru_cache(1 << 16)
def _header_of(file: str, _: tuple[int, ...]) -> Header:
    """Read once while the file is as it was seen: a series is opened several times on its way to slices."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    parts = reader.GetSize(), reader.GetPixelID(), reader.GetDirection(), reader.GetOrigin(), reader.GetSpacing()
    return Header(*parts)


def _read(slices: Sequence[DicomFile], voxels: int, folder: Path) -> np.ndarray:
    """The voxels (X, Y, Z) of files in their order, as many as their headers tell of."""
    files = [str(each.path) for each in slices]
    with refusing(folder):
        return (read(files) if all(each.native for each in slices) else decode(files, voxels)).T


def _dtype(header: Header, folder: Path) -> np.dtype:
    name = sitk.GetPixelIDValueAsString(header.pixel)
    match = re.fullmatch(r"(8|16|32|64)-bit (?:(unsigned|signed) integer|float)", name)
    if not match:
        raise VolumeFault("holds no numbers but colours or complex values", f"{folder} ({name})")
    kind = {"unsigned": "u", "signed": "i", None: "f"}[match[2]]
    return np.dtype(f"{kind}{int(match[1]) // 8}")


def _affine(header: Header, folder: Path) -> np.ndarray:
    directions = np.reshape(header.direction, (3, 3)) * header.spacing[:3]
    return affine_of(directions, np.asarray(header.origin[:3]), folder)


def _rounded(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.round(numbers, 4) + 0.0)


def _in_place(origins: Sequence[np.ndarray], direction: Sequence[float], folder: Path) -> tuple[list[int], np.ndarray]:
    """The order of the slices along their normal, and the step from one to the next in mm (3,)."""
    normal = np.reshape(direction, (3, 3))[:, 2]
    along = np.array([origin @ normal for origin in origins])
    order = np.argsort(along, kind="stable").tolist()
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    if usual <= 0 or gaps.min() < 0.5 * usual:
        what = "has several slices in one place (give each echo, time or b-value a folder of its own)"
        raise VolumeFault(what, f"{folder} ({len(origins)} files)")
    allowed = max(EVEN * usual, min(ROUNDED, APART * usual))
    numbers = np.arange(len(along))
    line = np.polyval(np.polyfit(numbers, along[order], 1), numbers)
    odd = [f"{gap:.3g}" for gap in gaps if abs(gap - usual) > EVEN * usual]
    if odd and np.abs(along[order] - line).max() > allowed:
        what = "lacks slices: the steps between those that are there differ (copy the series again)"
        raise VolumeFault(what, f"{folder} ({', '.join(odd[:5])} mm, mostly {usual:.3g})")
    places = np.stack(origins)[order] - origins[order[0]]
    step = places[-1] / (len(places) - 1)  # not along the normal where the gantry was tilted
    in_line = np.outer(places @ normal / (step @ normal), step)
    aside = float(np.linalg.norm(places - in_line, axis=1).max())
    if aside > allowed:
        raise VolumeFault("has slices that do not lie in line", f"{folder} ({aside:.3g} mm aside)")
    return order, step
