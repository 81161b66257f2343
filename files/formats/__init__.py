"""The file formats of volumes, one a file; `open_volume` looks at a path and picks one."""

from pathlib import Path
from types import ModuleType

import numpy as np

from files.faults import VolumeFault
from files.formats import dicom, meta_image, nifti, nrrd
from files.formats.dicom_series import is_series
from files.formats.volume import PACKED, Volume
from files.volume_names import header_of, is_of_pair

FORMATS = {suffix: kind for kind in (meta_image, nrrd) for suffix in kind.SUFFIXES}  # nibabel opens all others


def format_of(path: Path) -> ModuleType:
    """The module of this folder that reads the file, or the DICOM series that the path names."""
    return dicom if path.is_dir() or is_series(path) else FORMATS.get(header_of(path).suffix.lower(), nifti)


def files_of(path: Path) -> list[Path]:
    """All files that a volume consists of, in the order of their names; a file of another kind alone.

    Raises VolumeFault for a volume of several that cannot be opened.
    """
    is_several = path.is_dir() or is_series(path) or is_of_pair(path) or path.suffix.lower() in FORMATS
    return sorted(open_volume(path).files) if is_several else [path]


def open_volume(path: Path) -> Volume:
    """Reads the header, wherever it lies.

    Raises VolumeFault if there is none, or one that promises more than its files can hold.
    """
    volume = format_of(path).open_volume(header_of(path))
    promised = int(np.prod(volume.shape, dtype=object)) * volume.dtype.itemsize
    there = sum(file.stat().st_size for file in volume.files)
    if not 0 <= promised <= there * PACKED:
        what = "has a header that promises more voxels than the file can hold"
        raise VolumeFault(what, f"{path} ({' x '.join(map(str, volume.shape))} of {there} bytes)")
    if volume.dtype.kind not in "iuf":
        raise VolumeFault("holds no numbers but colours or complex values", f"{path} ({volume.dtype})")
    return volume
