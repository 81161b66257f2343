"""NIfTI, and whatever else nibabel reads."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import isal_zlib

from files.faults import VolumeFault
from files.formats.volume import Volume, not_3d, refusing
from files.nifti_headers import Header, mm_of
from files.volume_names import is_mixed

PLACE = ("pixdim", "form_code")  # words of nibabel's where it mends a header's geometry, which is then a guess
ZERO = "pixdim[1,2,3] should be non-zero"


def open_volume(path: Path) -> Volume:
    """Reads the header of a NIfTI or Analyze file.

    Raises VolumeFault, also if nibabel would have to mend its geometry.
    """
    if path.suffix.lower() == ".dcm":
        raise VolumeFault("is a file of DICOM (name its folder, with a / at the end: a series is a volume)", str(path))
    with refusing(path), _mending_is_told(path):
        image = _load(path)
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise VolumeFault("is no volume", str(path))
        affine = np.eye(4) if image.affine is None else np.array(image.affine, np.float64)
        affine[:3] *= mm_of(image.header) if isinstance(image.header, Header) else 1
        shape, dtype = tuple(map(int, image.shape)), image.get_data_dtype()
        files = _files_of(image, path)
    if is_vector := len(shape) > 4 and shape[3] == 1:  # numbers at each voxel, as NIfTI has them: images in a row
        shape = shape[:3] + shape[4:]
    if min(shape, default=0) < 0:
        raise not_3d(shape, path)

    def voxels() -> np.ndarray:
        found = stored()
        return found[:, :, :, 0] if is_vector else found

    def stored() -> np.ndarray:
        with refusing(path), _mending_is_told(path):
            if path.suffix.lower() == ".gz" and isinstance(image, nib.filebasedimages.SerializableImage):
                # the whole file, for its checksum: reading through nibabel stops before it
                size = int(image.dataobj.offset) + int(np.prod(shape, dtype=object)) * dtype.itemsize
                content = decompress(path.read_bytes(), size)
                return np.asanyarray(type(image).from_bytes(content).dataobj)
            return np.asanyarray(image.dataobj)

    return Volume(shape, affine, dtype, files, voxels)


def _load(path: Path) -> nib.filebasedimages.FileBasedImage:
    """What nibabel makes of the file; of a pair with one ending in capitals, `.hdr` and `.IMG`, too."""
    if is_mixed(path):  # nibabel would look for a file of another name
        raise VolumeFault("ends in capital and small letters mixed, which is not read (rename it)", str(path))
    image = nib.load(path)
    voxels = image.file_map.get("image")
    if voxels is None or not voxels.filename or Path(voxels.filename).exists():
        return image
    wanted = Path(voxels.filename).name.lower()
    if other := next((file for file in path.parent.iterdir() if file.name.lower() == wanted), None):
        voxels.filename = str(other)
        image = type(image).from_file_map(image.file_map)
    return image


def _files_of(image: nib.spatialimages.SpatialImage, path: Path) -> tuple[Path, ...]:
    """The files of a volume: of a pair the header and the voxels, the one that was named first.

    A .mat, which SPM may lay next to an Analyze pair, holds the matrix and belongs to them where it is there.
    """
    named = (Path(holder.filename) for holder in image.file_map.values() if holder.filename)
    return (path, *sorted(file for file in named if file != path and file.exists()))


class _Told(logging.Filter):
    """Keeps off the screen, and hands over, what nibabel says in this thread while it is listened to."""

    heard = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        words = getattr(self.heard, "words", None)
        if words is not None:
            words.append(record.getMessage())
        return words is None


nib.imageglobals.logger.addFilter(_Told())


@contextmanager
def _mending_is_told(path: Path) -> Iterator[None]:
    """Keeps off the screen what nibabel mends in a header, and raises a fault if it mends the geometry."""
    _Told.heard.words = words = []
    try:
        yield
    finally:
        _Told.heard.words = None
    if wrong := [said for said in words if any(part in said for part in PLACE)]:
        what = "has a header whose geometry is broken (write its spacing and place anew)"
        if ZERO in wrong[0]:
            what = (
                "states a spacing of 0 (write it into pixdim of its header: of a single slice, its thickness as the "
                "third)"
            )
        raise VolumeFault(what, f"{path} ({wrong[0]})")


def decompress(packed: bytes, size: int) -> bytes:
    """The content of a .gz that should unpack to `size` bytes.

    By ISA-L, twice as fast as zlib. Raises ValueError if it unpacks to much more, EOFError if it ends too early, and
    isal_zlib.error for a wrong checksum.
    """
    parts, room = [], size + 2**20
    while packed:
        unpacker = isal_zlib.decompressobj(wbits=31)
        parts.append(unpacker.decompress(packed, max(room, 1)))
        room -= len(parts[-1])
        if not unpacker.eof:
            if room > 0:
                raise EOFError("the compressed file ends too early")
            raise ValueError(f"it unpacks to more than the {size} bytes that its header tells of")
        packed = unpacker.unused_data.lstrip(b"\0")  # a file may be put together of several, and padded
    return parts[0] if len(parts) == 1 else b"".join(parts)
