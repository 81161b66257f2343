"""The region in which a class is worth a look: what prediction or truth give it, and a band round that.

Most of an image is background that no network mistakes, and so every network looks well calibrated in all of it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTH = 5.0  # mm, or pixels where no spacing is known
CHUNK = 2**22  # pixels at a time, beside those that reach into them
ROUNDING = 1e-9  # distances on a grid often equal the width, so the last bits must not decide


def band(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The pixels of either mask, and those at most WIDTH from one of them, from centre to centre.

    Of masks of one shape, in 2D or 3D; spacing: one length an axis. Every error lies in it. It is empty where both
    masks are.
    """
    either = prediction | truth
    found = np.zeros(either.shape, bool)
    if not either.any():
        return found
    reaches = [int(WIDTH / step) + 1 for step in spacing]  # planes that lie as near, along each axis
    (first, last), *sides = [
        (max(0, places[0] - reach), min(places[-1] + 1 + reach, length))
        for places, reach, length in zip(_planes(either), reaches, either.shape, strict=True)
    ]
    across = tuple(slice(*side) for side in sides)
    at_once = max(1, CHUNK // found[(0, *across)].size)
    for start in range(first, last, at_once):  # a distance transform takes fifty bytes a pixel
        stop, before = min(start + at_once, last), max(0, start - reaches[0])
        around = either[(slice(before, stop + reaches[0]), *across)]
        if around.any():
            distance = ndimage.distance_transform_edt(~around, sampling=spacing)[start - before : stop - before]
            found[(slice(start, stop), *across)] = distance <= WIDTH * (1 + ROUNDING)
    return found


def _planes(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Per axis the numbers of the planes across it that hold a pixel."""
    axes = set(range(mask.ndim))
    return [np.flatnonzero(mask.any(axis=tuple(axes - {axis}))) for axis in range(mask.ndim)]
