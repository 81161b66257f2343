"""Mutates slices: each must read as nibabel, Pillow or numpy read it, or be refused in a sentence.

python -m tests.tools.fuzz_slices --mutations 10000
"""

import gzip
import io
from functools import partial

import nibabel as nib
import numpy as np
from PIL import Image

from files.decoding import read_slice
from tests.tools.fuzzing import each_kind, main, mutated

IMAGE = (np.arange(24 * 20).reshape(24, 20) % 251).astype(np.uint8)


def _nifti(array, kind=nib.Nifti1Image):
    return kind(array, np.eye(4)).to_bytes()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _png(array, mode=None):
    file, picture = io.BytesIO(), Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(file, "png")
    return file.getvalue()


SEEDS = {
    ".nii": [_nifti(IMAGE.astype(np.int16)), _nifti(IMAGE.astype(np.float32), nib.Nifti2Image)],
    ".nii.gz": [gzip.compress(_nifti(IMAGE.astype(np.int16)), 1)],
    ".npy": [_npy(IMAGE.astype(np.float32)), _npy(np.stack([IMAGE] * 3))],
    ".png": [_png(IMAGE), _png(IMAGE, "P"), _png(IMAGE.astype(np.uint16) * 200), _png(IMAGE, "RGB")],
}


def expected(path):
    """What another reader makes of the file; None where it makes nothing of it."""
    try:
        if path.name.endswith(".npy"):
            return np.load(path, allow_pickle=False)
        if path.name.endswith(".png"):
            with Image.open(path) as picture:
                array = np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
            return np.moveaxis(array, -1, 0) if array.ndim == 3 else array
        with nib.imageglobals.LoggingOutputSuppressor():
            return np.asanyarray(nib.load(path).dataobj)
    except Exception:  # noqa: BLE001  it is no more than a second opinion
        return None


def compare(path):
    """What is wrong with what was read; '' if nothing is."""
    found, other = read_slice(path), expected(path)
    if other is None:
        return ""
    other = other.squeeze() if other.ndim > 2 else other
    if path.name.endswith(".png") and other.ndim == 3 and found.ndim == 2:
        other = other[0]  # a palette of greys
    if found.shape != other.shape or not np.array_equal(found.astype(float), other.astype(float), equal_nan=True):
        return f"read as {found.dtype} {found.shape}, {other.dtype} {other.shape} by others"
    return ""


def _prepare(suffix, folder):
    path = folder / f"slice{suffix}"

    def mutate(rng):
        content = SEEDS[suffix][int(rng.integers(len(SEEDS[suffix])))]
        if suffix == ".nii.gz" and rng.random() < 0.5:  # its content, under a checksum that is right
            path.write_bytes(gzip.compress(mutated(gzip.decompress(content), rng, 352), 1))
        else:
            path.write_bytes(mutated(content, rng, {".nii": 352, ".npy": 140}.get(suffix)))

    return mutate, partial(compare, path)


KINDS = {suffix: partial(_prepare, suffix) for suffix in SEEDS}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
