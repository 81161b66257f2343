"""The region in which a class is worth a look: what prediction or truth give it, and a band round that.

Most of an image is background that no network mistakes, and so every network looks well calibrated in all of it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTH = 5.0  # mm, or pixels where no spacing is known
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
    box = tuple(
        slice(max(0, places[0] - reach), places[-1] + 1 + reach)
        for places, reach in zip(_planes(either), (int(WIDTH / step) + 1 for step in spacing), strict=True)
    )
    distance = ndimage.distance_transform_edt(~either[box], sampling=spacing)
    found[box] = distance <= WIDTH * (1 + ROUNDING)
    return found


def _planes(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Per axis the numbers of the planes across it that hold a pixel."""
    axes = set(range(mask.ndim))
    return [np.flatnonzero(mask.any(axis=tuple(axes - {axis}))) for axis in range(mask.ndim)]
