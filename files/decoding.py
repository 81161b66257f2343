"""Files of arrays, decoded without believing them: a header that claims more than its file can hold costs no memory,
and whatever is wrong with a file is one sentence that names it."""

import gzip
import io
import logging
import math
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, UnidentifiedImageError

from files.foreign import Refused, reading
from files.listing import SUFFIXES
from utils import ONE_AT_A_TIME, load_npy

DEFLATED = 1032  # times as large as its file can content be that was compressed by zlib, at most
SLACK = 2**16  # bytes behind the voxels that a header tells of, at most
NIFTI1, NIFTI2 = 348, 540  # bytes of a header
QUIET = logging.getLogger("slices.headers")  # what nibabel says apart from what it raises
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False
OTHER_KINDS = {
    "c": "complex values",
    "V": "records, such as colours of three numbers each",
    "O": "python objects",
    **dict.fromkeys("US", "text"),
    **dict.fromkeys("mM", "dates or times"),
}


def read_slice(path: Path, is_image: bool = True) -> np.ndarray:
    """The array in a slice file: (W, H), or (C, W, H) for several channels; singleton axes are dropped.

    is_image: a palette stands for its colours, and transparency for something to be refused; where it is not, for
        ground truth, the numbers count as they are stored

    Raises UserError for a suffix that is not known, a file that cannot be read, and one that holds no numbers.
    """
    name = path.name.lower()
    with reading(path, "make it again from its volume"):
        if name.endswith(".npy"):
            array = _read_npy(path.read_bytes())
        elif name.endswith(".png"):
            array = _read_png(path.read_bytes(), is_image)
        elif name.endswith((".nii", ".nii.gz")):
            array = _read_nifti(path)
        else:
            raise Refused(f"is no slice; those are {', '.join(SUFFIXES)}")
        must_be_numbers(array.dtype)
        return array.squeeze() if array.ndim > 2 else array


def must_be_numbers(dtype: np.dtype) -> None:
    """Raises Refused for arrays of anything but one real number a pixel."""
    if dtype.kind not in "biuf":
        raise Refused(f"holds {OTHER_KINDS.get(dtype.kind, 'no numbers')} ({dtype}), not one real number a pixel")


# ------------------------------------------------------------------------------------------------- npy, png


def _read_npy(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version in ((1, 0), (2, 0)):  # others are of arrays of records
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with ONE_AT_A_TIME:
            shape, _, dtype = read(file)
        must_be_numbers(dtype)
        if math.prod(shape) * dtype.itemsize > len(content) - file.tell():
            raise Refused(f"promises {' x '.join(map(str, shape))} numbers, more than its {len(content):,} bytes hold")
    return load_npy(io.BytesIO(content))


def _read_png(content: bytes, is_image: bool) -> np.ndarray:
    """The array of a .png: (W, H), or (C, W, H). A .png that holds a JPEG is read too."""
    depth, is_grey = _check_png(content)
    with open_picture(content) as picture:
        array = _pixels(picture, is_image)
    if not is_image and is_grey and depth in (2, 4):  # Pillow spreads the grey levels of few bits over 0..255
        array = array // (255 // (2**depth - 1))
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array


def open_picture(content: bytes) -> Image.Image:
    """A .png out of its bytes, or a JPEG of that name. Out of a file Pillow takes the memory that a chunk claims.

    Raises Refused as `_check_png` does, and UnidentifiedImageError, in words, for what is neither.
    """
    _check_png(content)
    try:
        return Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError("it is no png") from error


def _check_png(content: bytes) -> tuple[int, bool]:
    """The bits per channel, and whether there are neither colours nor opacity; (8, True) if the file is no png.

    Raises Refused for a picture too large for its file, and for colours of 16 bits, which Pillow cuts to 8.
    """
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 26:
        return 8, True
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    channels = {2: 3, 4: 2, 6: 4}.get(kind, 1)
    if width * height * channels * depth / 8 > DEFLATED * len(content):
        raise Refused(f"promises {width} x {height} pixels, more than its {len(content):,} bytes can hold")
    if depth == 16 and channels > 1:
        raise Refused("has several channels of 16 bits, of which 8 would be read; write it as .npy, (C, W, H)")
    return depth, kind == 0


def _pixels(picture: Image.Image, is_image: bool) -> np.ndarray:
    """(rows, columns) or (rows, columns, C); of an image a palette becomes what it stands for, opacity goes."""
    is_palette = picture.mode == "P"
    if is_palette and not is_image:
        return np.asarray(picture)
    if picture.has_transparency_data:
        picture = _opaque(picture)
    if is_palette:
        colours = np.asarray(picture.convert("RGB"))
        return colours[..., 0] if (colours == colours[..., :1]).all() else colours
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode not in ("1", "L", "RGB"):
        raise Refused(f"is a picture of the kind {picture.mode}; those that are read are grey or RGB")
    return np.asarray(picture)


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture without its opacity, which says nothing where it is full. Raises Refused where it is not."""
    whole = picture.convert("RGBA")
    clear = int((np.asarray(whole)[..., 3] < 255).sum())
    if clear:
        raise Refused(f"is transparent in {clear} of its pixels; lay it on a background, and write it without alpha")
    if picture.mode in ("LA", "RGBA", "PA", "P"):
        return picture.convert("L") if picture.mode == "LA" else whole.convert("RGB")
    return picture


# ------------------------------------------------------------------------------------------------- NIfTI


def _read_nifti(path: Path) -> np.ndarray:
    """The array of a .nii or .nii.gz as its header scales it, mapped where it can be."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            header, end = _header(file.read(NIFTI2))
            _check_end(end, path.stat().st_size, 1)
            return np.asanyarray(nib.arrayproxy.ArrayProxy(file, header))
    content = path.read_bytes()
    with gzip.open(io.BytesIO(content)) as file:
        head = file.read(NIFTI2)
        header, end = _header(head)
        _check_end(end, len(content), DEFLATED)
        whole = head + file.read(max(end - len(head), 0))
        behind = file.read(SLACK + 1)  # up to the end of the stream, where its checksum is compared
    if len(behind) > SLACK:
        raise Refused("goes on far behind the voxels that its header tells of")
    return np.asanyarray(nib.arrayproxy.ArrayProxy(io.BytesIO(whole), header))


def _header(head: bytes) -> tuple[nib.Nifti1Header, int]:
    """The header of a NIfTI, read from its first bytes, and the position after its last voxel."""
    second = NIFTI2 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    kind, length = (nib.Nifti2Header, NIFTI2) if second else (nib.Nifti1Header, NIFTI1)
    if len(head) < length:
        raise Refused(f"cannot be read (its header ends after {len(head)} bytes); make it again from its volume")
    header = kind(head[:length], check=False)
    header.check_fix(QUIET)
    dtype = header.get_data_dtype()
    must_be_numbers(dtype)
    return header, int(header.get_data_offset()) + math.prod(map(int, header.get_data_shape())) * dtype.itemsize


def _check_end(end: int, size: int, ratio: int) -> None:
    if end > size * ratio:
        raise Refused(f"promises {end:,} bytes of voxels, more than its {size:,} bytes can hold")
