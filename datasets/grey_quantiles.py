"""The distribution of a patient's grey levels in a few numbers: quantiles, of all pixels and of the body."""

from collections.abc import Callable, Sequence

import numpy as np

from datasets.slices import SliceSet
from nets.bundle import LEVELS

SAMPLE = 2**17  # pixels of a patient, about, that quantiles are taken of
LOOKED_AT = 64  # slices of a patient, at most


def grey_quantiles(levels: np.ndarray) -> np.ndarray:
    """(C, n) grey levels of a patient -> (2, C, 256) quantiles (i + 1/2) / 256 of each channel, in ascending order.

    First those of all pixels, then those of the body: of the pixels above the channel's lowest level, and NaN where
    there are none.
    """
    steps = (np.arange(LEVELS) + 0.5) / LEVELS
    found = np.full((2, len(levels), LEVELS), np.nan)
    for number, channel in enumerate(levels.astype(np.float64)):
        found[0, number] = np.quantile(channel, steps)
        body = channel[channel > channel.min()]
        if len(body):
            found[1, number] = np.quantile(body, steps)
    return np.maximum.accumulate(found, axis=-1)  # what rounding turned round


def sample_levels(slices: SliceSet, rows: Sequence[int]) -> np.ndarray:
    """(C, n) grey levels of a patient's rows as the network sees them: all pixels, or every n-th along each axis."""
    return thinned(slices.image, rows, slices.sizes[rows[0]])


def thinned(image_of: Callable[[int], np.ndarray], rows: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """(C, n) grey levels of a patient's images (C, *size), as `sample_levels` takes them."""
    rows = spread(rows, LOOKED_AT)
    step = int(np.ceil((len(rows) * np.prod(size) / SAMPLE) ** (1 / len(size))))
    thin = (slice(None), *[slice(None, None, max(step, 1))] * len(size))
    images = [image_of(row)[thin] for row in rows]
    return np.concatenate([image.reshape(len(image), -1) for image in images], axis=1)


def spread(rows: Sequence[int], most: int) -> list[int]:
    """At most so many of the rows, evenly spread over them."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int))
    return [rows[place] for place in chosen]
