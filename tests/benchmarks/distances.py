"""Signed distance maps of a slice, against the slow form: two transforms of SciPy for each class."""

from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from datasets.distance_maps import signed_distance_maps
from tests.benchmarks.losses import check_one_hot, encode
from tests.benchmarks.table import Row, compare


def slow_maps(label: NDArray[np.uint8], n_class: int, checks: bool) -> NDArray[np.float64]:
    """As the published code goes about it, in float64 throughout, with the border at zero."""
    onehot = encode(torch.from_numpy(label)[None], n_class, checks)
    if checks:
        check_one_hot(onehot)
    onehot = onehot[0].numpy()
    maps = np.zeros(onehot.shape)
    for k, mask in enumerate(onehot.astype(bool)):
        if mask.any():
            maps[k] = (distance_transform_edt(~mask) - 0.5) * ~mask - (distance_transform_edt(mask) - 0.5) * mask
    return maps


def draw_label(size: int, n_class: int) -> NDArray[np.uint8]:
    """Overlapping discs, the larger ones beneath, on background."""
    w, h = np.mgrid[:size, :size] / size
    label = np.zeros((size, size), np.uint8)
    for k in range(1, n_class):
        label[(w - 0.4 - 0.05 * k) ** 2 + (h - 0.5) ** 2 < (0.3 / k) ** 2] = k
    return label


def measure(options: Namespace) -> Iterator[Row]:
    size = 48 if options.quick else 256
    for n_class in (2, 4):
        label = draw_label(size, n_class)
        references = {
            "slow form": partial(slow_maps, label, n_class, True),
            "slow form, unchecked": partial(slow_maps, label, n_class, False),
        }
        gap = np.abs(signed_distance_maps(label, n_class) - slow_maps(label, n_class, True)).max()
        yield from compare(
            "distance maps",
            f"{size}x{size}, K={n_class}",
            partial(signed_distance_maps, label, n_class),
            references,
            10 * options.rounds,
            lambda _, gap=gap: f"differs by {gap:.0e} pixels",
        )
