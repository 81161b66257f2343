"""Estimated shares of the classes, laid on the slices of a set: columns of a size csv, with the ends of their interval.

Letters: N slices, K classes.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from datasets.size_table import HIGH, LOW
from preprocess.priors.label_shift import ClassShares
from utils import listing

FAR = 4  # times the source's share, or a part of it: which no estimate is to be believed without a reason
BY_NETWORK = "source network"  # what had to be seen


def columns_of(
    name: str, estimate: ClassShares, area: np.ndarray, tags: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """(N, K) pixels of each class: the column of this name, and the ends of its interval where that is known.

    Without tags every slice gets the same shares. With tags (N, K-1) the pixels of a class are spread evenly over those
    slices that show it, by their area (N,). In the ends of the interval the background is what the others leave.
    """
    foreground = spread(estimate.shares, area, tags)
    columns = {name: _whole(np.where(foreground > 0, np.maximum(np.rint(foreground), 1), 0), area)}
    if np.isfinite(estimate.low).all():
        low, high = (np.rint(spread(ends, area, tags)) for ends in (estimate.low, estimate.high))
        low, high = np.minimum(low, columns[name][:, 1:]), np.maximum(high, columns[name][:, 1:])
        for end, own, other in ((LOW, low, high), (HIGH, high, low)):
            rest = np.maximum(area - other.sum(1), 0)
            columns[name + end] = np.concatenate([rest[:, None], own], 1)
    return columns


def spread(shares: np.ndarray, area: np.ndarray, tags: np.ndarray | None) -> np.ndarray:
    """(K,) shares of all pixels -> (N, K-1) pixels of the foreground classes; 1e-6 of a slice at least where shown."""
    shown = np.ones((len(area), len(shares) - 1)) if tags is None else tags.astype(np.float64)
    seen = area @ shown  # pixels of the slices that show each class
    among = np.divide(shares[1:] * area.sum(), seen, out=np.zeros(len(seen)), where=seen > 0)
    return area[:, None] * np.maximum(among, 1e-6) * shown


def _whole(foreground: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(N, K-1) -> (N, K) with the background, which keeps a pixel: what is too much is taken from all classes alike."""
    total = foreground.sum(1)
    factor = np.where(total >= area, (area - 1) / np.maximum(total, 1), 1.0)[:, None]
    kept = np.floor(foreground * factor)
    return np.concatenate([(area - kept.sum(1))[:, None], kept], 1)


def in_table(estimates: Mapping[str, ClassShares], source: np.ndarray) -> Iterator[str]:
    """Lines for a reader: of each estimator the share of each class, and its interval over draws of patients.

    source: (K,) shares of the source's images
    """
    yield "share of the training images, 95 % interval over draws of patients, share of the source's images"
    yield f"{'':6}  class     share  {'interval':<20}   source"
    far = []
    for name, each in estimates.items():
        for k, share in enumerate(each.shares):
            interval = f"{each.low[k]:.5f} to {each.high[k]:.5f}" if np.isfinite(each.low[k]) else "of one patient none"
            yield f"{name if k == 0 else '':6}  {k:>5}  {share:>8.5f}  {interval:<20}  {source[k]:>7.5f}"
            if k and not source[k] / FAR <= share <= source[k] * FAR:
                far.append(f"{name} of class {k}")
    if far:
        yield (
            f"More than {FAR} times the source's share, or less than a quarter of it: {listing(far)}. Where no anatomy "
            "explains that, the estimate says more of the network's mistakes than of these images: take another prior."
        )
