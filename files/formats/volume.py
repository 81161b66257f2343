"""What every format makes of a file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from files.faults import VolumeFault
from files.foreign import in_words
from processes.errors import UserError

PACKED = 1100  # deflate makes nothing smaller than by this factor: what promises more has no bytes behind it
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# A unit of length, as headers write it in small letters -> mm. A header that names none has always meant mm.
MM = {
    **dict.fromkeys(("", "?", "unknown", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers"), 1e-3),  # both mu
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
}


@dataclass(frozen=True)
class Volume:
    """A volume whose header was read.

    shape   of the voxels, further axes (moments, channels) last
    affine  (4, 4) from voxel numbers along the first three axes to mm, RAS+ as nibabel has it
    dtype   of the voxels as stored
    files   that it consists of, the one that was named first
    voxels  reads them; it may raise what reading raises, see `refusing`
    units   mm of a unit of the header along each axis of space, where ITK, and its viewers, take the numbers for mm
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    files: Sequence[Path]
    voxels: Callable[[], np.ndarray]
    units: tuple[float, float, float] = (1.0, 1.0, 1.0)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turns whatever a broken file makes its reader raise into a fault of this file."""
    try:
        yield
    except (VolumeFault, UserError):
        raise
    except Exception as error:
        raise VolumeFault("cannot be read", f"{path} ({in_words(error)})") from error


def unpacked(packed: bytes, size: int, unpacker: Any) -> bytes:
    """The content of compressed bytes that should be `size` long, by a decompressor object of zlib or bz2.

    Raises ValueError if it is longer, which is found out before it is unpacked, or ends too early; and what the
    decompressor raises.
    """
    content = unpacker.decompress(packed, size + 1)
    if len(content) > size or not unpacker.eof:
        raise ValueError(f"it does not unpack to the {size} bytes that its header tells of")
    return content


def mm_of(unit: str, path: Path) -> float:
    """How many mm a unit of length is. Raises VolumeFault for a word that is none."""
    if unit.strip().lower() not in MM:
        raise VolumeFault("states a unit of length that is not known (save it in mm)", f"{path} ('{unit}')")
    return MM[unit.strip().lower()]


def not_3d(shape: Sequence[int], path: Path, is_label: bool = False) -> VolumeFault:
    """The fault of a volume whose axes are not three, with what mends it."""
    shown = f"{path} ({' x '.join(map(str, shape))})"
    if len(shape) < 3:
        what = "is one picture and no volume (give it a third axis of one voxel, or lay it into a set as a slice)"
    elif 0 in shape or min(shape) < 0:
        what = "has no voxels"
    elif is_label:
        what = "holds several masks or layers, and a label map has one number a voxel (make one, by np.argmax)"
    else:
        what = "is not 3D but holds several images (pick one, --channel N of the slicer; or save it as its own file)"
    return VolumeFault(what, shown)


def affine_of(directions: np.ndarray, origin: np.ndarray, path: Path) -> np.ndarray:
    """(4, 4) RAS+ out of the steps (mm) along the axes, one a column, and the place of the first voxel, both in LPS."""
    lengths = np.linalg.norm(directions, axis=0)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        shown = " ".join(f"{length:g}" for length in lengths)
        raise VolumeFault("has a spacing that is not above 0", f"{path} ({shown})")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, origin
    return LPS_TO_RAS @ affine


def beside(path: Path, name: str) -> Path:
    """The file of voxels that a header names. Raises VolumeFault where it is not there, or leads to another folder."""
    if Path(name).name != name:
        raise VolumeFault("names a file of voxels that does not lie beside it", f"{path} ({name})")
    if not path.with_name(name).is_file():
        raise VolumeFault("lacks its file of voxels", f"{path} ({name} is not there)")
    return path.with_name(name)
