"""DICOM: a folder with one series, read by GDCM through SimpleITK.

ITK counts mm to the patient's left, back and head, and has the last axis of an array first.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from preprocess.faults import VolumeFault
from preprocess.formats.volume import LPS_TO_RAS, Volume, affine_of, refusing

EVEN = 0.02  # how much the steps between the slices of a series may differ, as a share of the usual one
sitk.ProcessObject_SetGlobalWarningDisplay(False)


def open_volume(folder: Path) -> Volume:
    """The slices in the order of their places, whatever their names and numbers say. Raises VolumeFault."""
    with refusing(folder, RuntimeError):
        files = _only_series(folder)
        headers = [_header(file) for file in files]
        first = headers[0]
        alike = {(header.GetSize()[:2], header.GetPixelID(), _rounded(header.GetDirection())) for header in headers}
        if len(alike) > 1:
            raise VolumeFault("has slices of several sizes, types or directions", f"{folder} ({len(files)} files)")
        affine = _affine(first, folder)
        dtype = _dtype(first, folder)
    if len(files) == 1:
        return Volume(first.GetSize()[:3], affine, dtype, files, lambda: _read(first, folder))
    order, step = _in_place([np.asarray(header.GetOrigin()[:3]) for header in headers], first.GetDirection(), folder)
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ step
    affine[:3, 3] = LPS_TO_RAS[:3, :3] @ np.asarray(headers[order[0]].GetOrigin()[:3])
    files = [files[number] for number in order]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(list(map(str, files)))
    return Volume((*first.GetSize()[:2], len(files)), affine, dtype, files, lambda: _read(reader, folder))


def _only_series(folder: Path) -> list[Path]:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) == 1:
        return list(map(Path, sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])))
    what = "holds several DICOM series (give each a folder of its own)" if series else "holds no DICOM series"
    raise VolumeFault(what, f"{folder} ({len(series)})" if series else str(folder))


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def _read(reader: sitk.ImageFileReader | sitk.ImageSeriesReader, folder: Path) -> np.ndarray:
    with refusing(folder, RuntimeError):
        return sitk.GetArrayFromImage(reader.Execute()).T


def _dtype(header: sitk.ImageFileReader, folder: Path) -> np.dtype:
    name = sitk.GetPixelIDValueAsString(header.GetPixelID())
    match = re.fullmatch(r"(8|16|32|64)-bit (?:(unsigned|signed) integer|float)", name)
    if not match:
        raise VolumeFault("holds no numbers but colours or complex values", f"{folder} ({name})")
    kind = {"unsigned": "u", "signed": "i", None: "f"}[match[2]]
    return np.dtype(f"{kind}{int(match[1]) // 8}")


def _affine(header: sitk.ImageFileReader, folder: Path) -> np.ndarray:
    directions = np.reshape(header.GetDirection(), (3, 3)) * header.GetSpacing()[:3]
    return affine_of(directions, np.asarray(header.GetOrigin()[:3]), folder)


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
        raise VolumeFault("has several slices in one place", f"{folder} ({len(origins)} files)")
    if odd := [f"{gap:.3g}" for gap in gaps if abs(gap - usual) > EVEN * usual]:
        what = "lacks slices: the steps between those that are there differ"
        raise VolumeFault(what, f"{folder} ({', '.join(odd[:5])} mm, mostly {usual:.3g})")
    places = np.stack(origins)[order] - origins[order[0]]
    step = places[-1] / (len(places) - 1)  # not along the normal where the gantry was tilted
    in_line = np.outer(places @ normal / (step @ normal), step)
    aside = float(np.linalg.norm(places - in_line, axis=1).max())
    if aside > EVEN * usual:
        raise VolumeFault("has slices that do not lie in line", f"{folder} ({aside:.3g} mm aside)")
    return order, step
