"""The file formats of volumes, one a file; `open_volume` looks at a path and picks one."""

from pathlib import Path

import numpy as np

from preprocess.faults import VolumeFault
from preprocess.formats import dicom, meta_image, nifti, nrrd
from preprocess.formats.volume import Volume

FORMATS = {suffix: kind for kind in (meta_image, nrrd) for suffix in kind.SUFFIXES}  # nibabel opens all others
PACKED = 1100  # deflate makes nothing smaller than by this factor: a header that promises more has no voxels behind it


def open_volume(path: Path) -> Volume:
    """Reads the header. Raises VolumeFault if there is none, or one that promises more than its files can hold."""
    kind = dicom if path.is_dir() else FORMATS.get(path.suffix.lower(), nifti)
    volume = kind.open_volume(path)
    promised = int(np.prod(volume.shape, dtype=object)) * volume.dtype.itemsize
    there = sum(file.stat().st_size for file in volume.files)
    if not 0 <= promised <= there * PACKED:
        what = "has a header that promises more voxels than the file can hold"
        raise VolumeFault(what, f"{path} ({' x '.join(map(str, volume.shape))} of {there} bytes)")
    if volume.dtype.kind not in "iuf":
        raise VolumeFault("holds no numbers but colours or complex values", f"{path} ({volume.dtype})")
    return volume
