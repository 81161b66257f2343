"""Headers of NIfTI files: where a mask lies is where its image lies, for whoever reads the two.

A header may state two places, its sform and its qform, each with a code, 0 for none. nibabel and FSL go by the sform
where it has a code; ITK, and with it SimpleITK, 3D Slicer and ITK-SNAP, by the qform in many cases, and by a guess of
its own where there is neither (each reader has another). A mask with a matrix alone would lie elsewhere for one of
them. So it gets all that its image's header says of place: both forms, both codes, and the unit of length.

Source: nifti1.h and nifti2.h of the NIfTI data format working group (https://nifti.nimh.nih.gov).
"""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from utils import atomic_write

Header = nib.Nifti1Header  # or its subclass of NIfTI-2
KEPT = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
KEPT = (*KEPT, "srow_x", "srow_y", "srow_z", "xyzt_units", "pixdim")
MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units, its lowest three bits: metre, mm, micron; no other number says a unit


def header_at(affine: np.ndarray, qform: np.ndarray | None = None, codes: tuple[int, int] = (1, 1)) -> Header:
    """The header of a volume that (4, 4) matrices from voxel numbers to mm place.

    A qform knows no shear: without one given it is the grid without it, as ITK has it where it reads the slices of a
    tilted gantry. `codes`: of qform and sform; of a volume that has neither, both become 1.
    """
    header = nib.Nifti1Header()
    q_code, s_code = codes if any(codes) else (1, 1)
    header.set_qform(unsheared(affine if qform is None else qform), q_code)
    header.set_sform(affine, s_code)
    header.set_xyzt_units("mm")
    return header


def unsheared(affine: np.ndarray) -> np.ndarray:
    """A copy of the (4, 4) matrix with axes at right angles.

    The first axis stays as it is; the second stays in the plane of the first two.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    rotation, upper = np.linalg.qr(affine[:3, :3] / lengths)
    out = affine.copy()
    out[:3, :3] = rotation * np.sign(np.diag(upper)) * lengths
    return out


def turned(header: Header, voxels: np.ndarray) -> Header:
    """The header of the same volume with its axes reordered or flipped.

    voxels: (4, 4) matrix from the new voxel numbers to those that the header is of
    """
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not any(codes):
        out = header_at(header.get_best_affine() @ voxels)
        out["xyzt_units"] = header["xyzt_units"]
        return out
    out, sform = header.copy(), header.get_sform() @ voxels
    out.set_qform(header.get_qform() @ voxels if codes[0] else unsheared(sform), codes[0])
    out.set_sform(sform, codes[1])
    return out


def mm_of(header: Header) -> float:
    """How many mm one unit of the header's matrices is; 1 where it does not say."""
    return MM.get(int(header["xyzt_units"]) & 7, 1.0)


def qform_in_mm(header: Header) -> np.ndarray:
    """The (4, 4) matrix of the header's qform, from voxel numbers to mm."""
    mm = mm_of(header)
    return np.diag([mm, mm, mm, 1]) @ header.get_qform()


def states_no_place(header: Header) -> bool:
    """Whether a volume says nothing of where its axes run, so that every reader guesses differently."""
    return not (header["qform_code"] or header["sform_code"])


def to_text(header: Header) -> str:
    """The header as hexadecimal digits."""
    return header.as_byteswapped("<").binaryblock.hex()


def from_text(text: str) -> Header:
    """The header that these hexadecimal digits stand for."""
    block = bytes.fromhex(text)
    kind = nib.Nifti1Header if len(block) == nib.Nifti1Header.template_dtype.itemsize else nib.Nifti2Header
    return kind(block, "<", check=False)


def write_nifti(path: Path, voxels: np.ndarray, header: Header) -> None:
    """Writes voxels (X, Y, Z, further axes) as a .nii.gz that lies where the header says; the same bytes each time.

    The file gets its name only when it is whole.
    """
    with atomic_write(path) as file:
        file.write(_packed(voxels, header))


def _packed(voxels: np.ndarray, header: Header) -> bytes:
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    own = kind.header_class()
    for name in KEPT:
        own[name] = header[name]
    own["pixdim"][4:] = 1
    own.set_data_dtype(voxels.dtype)
    return gzip.compress(kind(voxels, None, own).to_bytes(), compresslevel=1, mtime=0)
