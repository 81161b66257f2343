"""NRRD: .nrrd, and .nhdr with its voxels in a file beside it; read by pynrrd."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from preprocess.faults import VolumeFault
from preprocess.formats.volume import Volume, affine_of, beside, mm_of, not_3d, refusing

SUFFIXES = (".nrrd", ".nhdr")
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
    """Raises VolumeFault."""
    with refusing(path, nrrd.NRRDError, zlib.error):
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            start = file.tell()
        sizes = tuple(map(int, header["sizes"]))
        dtype = np.dtype(nrrd.reader._TYPEMAP_NRRD2NUMPY[header["type"]])  # as pynrrd will read them
        named = header.get("data file", header.get("datafile"))
        source = beside(path, str(named)) if named else path
        if header["dimension"] != len(sizes) or not 3 <= len(sizes) <= 4 or min(sizes) < 0:
            raise not_3d(sizes, path)
        affine, spatial = _affine(header, len(sizes), path)
    order = [*spatial, *(axis for axis in range(len(sizes)) if axis not in spatial)]

    def voxels() -> np.ndarray:
        with refusing(path, nrrd.NRRDError, zlib.error), path.open("rb") as file:
            file.seek(start)
            return nrrd.read_data(header, file, str(path)).transpose(order)

    files = (path, source) if named else (path,)
    return Volume(tuple(sizes[axis] for axis in order), affine, dtype, files, voxels)


def _affine(header: Mapping[str, Any], count: int, path: Path) -> tuple[np.ndarray, list[int]]:
    """The matrix, and the three axes that have a direction in space. Without a unit it is mm; no more is guessed.

    `space units` names one unit for each of the three axes of the space.
    """
    if lacking := [name for name in ("space", "space directions", "space origin") if name not in header]:
        raise VolumeFault("does not say where it lies (save it anew, with its geometry)", f"{path} (no {lacking[0]})")
    if header["space"].lower() not in SPACES:
        raise VolumeFault("lies in a space that is not the patient's (resave it)", f"{path} ({header['space']})")
    units = [mm_of(unit, path) for unit in header.get("space units", ("",) * 3)]
    signs = np.array(SPACES[header["space"].lower()]) * units
    origin = np.asarray(header["space origin"], np.float64)
    steps = np.asarray(header["space directions"], np.float64)
    spatial = [axis for axis in range(count) if np.isfinite(steps[axis]).all()]
    if len(spatial) != 3 or steps.shape != (count, 3) or origin.shape != (3,):
        raise VolumeFault("does not have three axes in space", f"{path} ({len(spatial)} of {count})")
    return affine_of(signs[:, None] * steps[spatial].T, signs * origin, path), spatial
