"""Signed distance maps of label maps, for the boundary loss (Kervadec et al. 2019, arXiv 1812.07032)."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from metrics import check_labels, checked_spacing


def signed_distance_maps(
    label: NDArray[np.integer],
    n_class: int,
    spacing: Sequence[float] | None = None,
    *,
    legacy: bool = False,
    normalise: bool = False,
) -> NDArray[np.float32]:
    """One map per class k, d_out - h/2 outside the class and h/2 - d_in inside it: (W,H) or (S,W,H) to (K,…).

    d_out is the Euclidean distance from the centre of a pixel to that of the nearest pixel of the class, and d_in to
    that of the nearest pixel outside it; h is the smallest spacing. So zero lies on the border, half way between two
    pixels, or within half a pixel of that where the spacing differs between the axes. Every pixel has the sign of its
    side. With two classes the one map is minus the other. A class that is absent has zeros, as in the published code,
    and so has one that fills the whole map, for which there the distances are undefined: without a border, the boundary
    loss has nothing to say.

    Parameters
    ----------
    label: class numbers 0..K-1
    n_class: K
    spacing: lengths along the axes, all 1 by default; the distances are in its unit
    legacy: the maps of the published code, d_out and 1 - d_in cut to whole numbers towards zero, the 1 whatever the
        spacing; they are off by half a pixel or more, and there for the published figures alone
    normalise: divides the map of each class by its largest absolute value

    The relative error is below 1e-6, and a label map gives the same bits every time. Raises ValueError if it does
    not hold class numbers 0..K-1 or the spacing is not one positive length per axis.
    """
    label = np.asarray(label)
    check_labels("label map", label, n_class)
    step = checked_spacing(np.ones(label.ndim) if spacing is None else spacing, label.shape)
    inside = np.stack([label == k for k in range(n_class)])
    present = inside.reshape(n_class, -1).any(axis=1)
    if np.count_nonzero(present) < 2:
        return np.zeros(inside.shape, np.float32)
    half = float(step.min()) / 2
    off_outside, off_inside = (0.0, 1.0) if legacy else (half, half)
    maps = np.zeros(inside.shape, np.float64 if legacy else np.float32)
    for k in np.flatnonzero(present):
        maps[k] = _distance_to(inside[k], step, exact=legacy) - off_outside
    # The nearest pixel outside a class is the nearest one of all other classes: no transform for the inside.
    maps[~present] = np.inf
    np.copyto(maps, np.inf, where=inside)
    np.copyto(maps, (off_inside - off_outside) - maps.min(axis=0), where=inside)
    maps[~present] = 0
    if legacy:
        maps = np.trunc(maps)
    if normalise:
        largest = np.abs(maps).max(axis=tuple(range(1, maps.ndim)), keepdims=True)
        np.divide(maps, largest, out=maps, where=largest > 0)
    return maps.astype(np.float32, copy=False)


def _distance_to(
    mask: NDArray[np.bool_], step: NDArray[np.float64], exact: bool
) -> NDArray[np.float32] | NDArray[np.float64]:
    """From every pixel to the nearest one of a mask that is neither empty nor full; `exact`: in float64."""
    outside = ~mask
    if exact or mask.ndim != 2 or step[0] != step[1]:
        return distance_transform_edt(outside, sampling=step)
    # Not Intel's transform, which is slower here and varies in the last bits from call to call. (Holds for the thread.)
    cv2.ipp.setUseIPP(False)
    # Only the box of the pixels that are outside, and a frame of one: where the mask is the background, that is
    # the box around the organs.
    pixels = outside.view(np.uint8)
    h, w, height, width = cv2.boundingRect(pixels)
    box = np.s_[max(w - 1, 0) : w + width + 1, max(h - 1, 0) : h + height + 1]
    distance = np.zeros(mask.shape, np.float32)
    distance[box] = cv2.distanceTransform(pixels[box], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance * np.float32(step[0])
