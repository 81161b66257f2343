"""Images and scores on grids of another spacing, as nnU-Net v2 makes them of each other.

A volume is resampled along all axes at once by a spline, its border continued. Where one axis is much coarser than the
others (more than three times, in the old grid or in the new one) its planes are resampled one by one, and along that
axis each takes the nearest plane. Scores go the same way back, by a spline of another order.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import map_coordinates
from skimage.transform import resize

COARSE = 3  # times the finest spacing, above which an axis is taken apart


def new_shape(shape: Sequence[int], old_mm: Sequence[float], new_mm: Sequence[float]) -> tuple[int, ...]:
    """Voxels along each axis of what has so many at the old spacing."""
    return tuple(round(old / new * count) for count, old, new in zip(shape, old_mm, new_mm, strict=True))


def coarse_axis(old_mm: Sequence[float], new_mm: Sequence[float]) -> int | None:
    """The axis that is resampled on its own; None where there is none, or several."""
    for spacing in (old_mm, new_mm):
        if max(spacing) / min(spacing) > COARSE:
            axes = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
            return axes[0] if len(axes) == 1 else None
    return None


def resample(
    channels: np.ndarray, shape: Sequence[int], old_mm: Sequence[float], new_mm: Sequence[float], order: int
) -> np.ndarray:
    """(C, D, W, H) float32 -> (C, *shape) float32, by a spline of this order (0 to 5)."""
    if channels.shape[1:] == tuple(shape):
        return channels
    axis = coarse_axis(old_mm, new_mm)
    make = _whole if axis is None else _by_planes
    made = [make(channel.astype(np.float64), tuple(shape), order, axis) for channel in channels]
    return np.stack(made).astype(np.float32)


def _whole(volume: np.ndarray, shape: tuple[int, ...], order: int, _: int | None) -> np.ndarray:
    return resize(volume, shape, order, mode="edge", anti_aliasing=False)


def _by_planes(volume: np.ndarray, shape: tuple[int, ...], order: int, axis: int) -> np.ndarray:
    planes = np.moveaxis(volume, axis, 0)
    within = tuple(count for place, count in enumerate(shape) if place != axis)
    resized = np.stack([_whole(plane, within, order, None) for plane in planes])
    places = (np.arange(shape[axis]) + 0.5) * (len(planes) / shape[axis]) - 0.5
    nearest = map_coordinates(np.arange(len(planes)), [places], order=0, mode="nearest")
    return np.moveaxis(resized[nearest], 0, axis)
