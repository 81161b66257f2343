"""Whether the labels of a set tell two classes apart by where they lie, which a flip turns into each other."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from datasets.augmentation import Augmentation
from datasets.slices import SliceSet

LEAST = 8  # labels that show a class, or both of a pair, for a word on it
SURE = 0.95  # share of them in which the order is the same
LOOKED_AT = {2: 100, 3: 20}  # labels of slices, of volumes; spread over the set
NAMES = ("D", "W", "H")


def told_by_place(labels: Iterable[np.ndarray], n_class: int) -> dict[int, tuple[int, int, float]]:
    """Axis, counted from the last (-1 is H) -> two classes, the first of which lies before the other, and how often.

    Of the pair with the steadiest order along each axis, in the labels that show both; where no label shows both, each
    label that shows the one is compared with each that shows the other. The background is nowhere in particular.

    labels: class numbers (W, H) or (D, W, H), of any sizes; what is no class counts nowhere
    """
    places = np.array([centres(label, n_class) for label in labels])  # n k axes
    found: dict[int, tuple[int, int, float]] = {}
    if not len(places):
        return found
    for axis in range(-places.shape[2], 0):
        for one, other in combinations(range(1, n_class), 2):
            share = _share_before(places[:, one, axis], places[:, other, axis])
            pair = (one, other, share) if share >= 0.5 else (other, one, 1 - share)
            if pair[2] >= max(SURE, found.get(axis, (0, 0, 0))[2]):
                found[axis] = pair
    return found


def centres(label: np.ndarray, n_class: int) -> np.ndarray:
    """(K, axes) mean place of each class as a share of the length of each axis, NaN where the class is not there."""
    values = np.asarray(label).astype(np.int64, copy=False).ravel().clip(0, n_class)
    counts = np.bincount(values, minlength=n_class + 1)[:n_class]
    grids = np.meshgrid(*[(np.arange(side) + 0.5) / side for side in label.shape], indexing="ij", sparse=True)
    sums = [
        np.bincount(values, weights=np.broadcast_to(grid, label.shape).ravel(), minlength=n_class + 1)[:n_class]
        for grid in grids
    ]
    return np.divide(sums, counts, out=np.full((len(sums), n_class), np.nan), where=counts > 0).T


def _share_before(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How often ours is the smaller; 1/2 where that cannot be told. (N,) places each, NaN where there is none."""
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    if both.sum() >= LEAST:
        before, after = ours[both] < theirs[both], ours[both] > theirs[both]
    else:
        ours, theirs = ours[~np.isnan(ours)], theirs[~np.isnan(theirs)]
        if both.any() or min(len(ours), len(theirs)) < LEAST:
            return 0.5
        before, after = ours[:, None] < theirs, ours[:, None] > theirs
    return 0.5 + (before.mean() - after.mean()) / 2


def warn_of_flips(slices: SliceSet, augmentation: Augmentation, n_class: int) -> str:
    """One sentence on what the augmentation turns into something else; '' where it does not, or nothing is known."""
    n_axes = len(slices.shape) - 1
    if n_class < 3 or not slices.has_truth or not (reversed_axes := augmentation.reverses(n_axes)):
        return ""
    rows = np.unique(np.linspace(0, len(slices) - 1, LOOKED_AT[n_axes]).astype(int)).tolist()
    found = told_by_place((slices.labels([row])[0] for row in rows), n_class)
    told = [
        f"class {one} lies before class {other} along {NAMES[axis]} in {100 * share:.0f} % of the labels looked at"
        for axis, (one, other, share) in found.items()
        if axis in reversed_axes
    ]
    if not told:
        return ""
    return (
        f"In {slices.root / slices.split} {'; '.join(told)}, and the augmentation flips or turns that round: each then "
        "lies where the other was. If that is how they are told apart, they cannot be learnt; leave 'flip' and large "
        "turns out of --augmentation."
    )
