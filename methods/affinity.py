"""How alike the neighbouring cells of a map are, learnt from labels, and probabilities that walk to cells alike.

The affinity of two cells is exp(−mean_c |g_c − g'_c|), where g is what a convolution of size 1, a batch norm and a ReLU
make of the features of a cell (AffinityNet, Ahn and Kwak, CVPR 2018). It learns from pairs that are less than a radius
apart: to be 1 where both are of one class and 0 where they are of two,
    L = ¼ mean_bg −log a + ¼ mean_fg −log a + ½ mean_two −log(1 − a)
over pairs of the background, pairs of one class of the foreground, pairs of two classes. In a step of the walk each
cell takes the mean of its neighbours' probabilities and its own, weighted by a², its own by 1.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.base import CONVOLUTIONS, LINEAR, POOLS
from nets.probabilities import most_probable

CELLS = 32  # along each axis of a map, at most
GAIN = 4  # of the first weights
SMALL = 1e-5  # inside logarithms, and added to numbers of pairs
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Affinity(nn.Module):
    """Of maps (B, C, …) with `axes` axes of cells."""

    def __init__(self, channels: int, axes: int, radius: int) -> None:
        super().__init__()
        self.reduce = CONVOLUTIONS[axes](channels, channels, 1, bias=False)
        nn.init.xavier_uniform_(self.reduce.weight, gain=GAIN)
        self.norm = NORMS[axes](channels)
        self.offsets = neighbours(radius, axes)

    def forward(self, cells: Tensor) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], Tensor]]:
        """For each offset where one end of the pairs lies, where the other does, and their affinities (B, …)."""
        seen = self.norm(self.reduce(cells)).relu()
        for offset in self.offsets:
            if all(abs(step) < size for step, size in zip(offset, cells.shape[2:], strict=True)):
                one, other = ends(offset, cells.shape[2:])
                yield one, other, (-(seen[one] - seen[other]).abs().mean(1)).exp()

    def loss(self, cells: Tensor, label: Tensor, n_class: int) -> Tensor:
        """Scalar, of maps (B, C, …) and labels (B, …), n_class for a cell without one."""
        costs, counts = cells.new_zeros(3), cells.new_zeros(3)
        for one, other, affinity in self(cells):
            first, second = label[one[1:]], label[other[1:]]
            known, same = (first < n_class) & (second < n_class), first == second
            kinds = torch.stack([known & same & (first == 0), known & same & (first > 0), known & ~same])
            alike, apart = -(affinity + SMALL).log(), -(1 + SMALL - affinity).log()
            cost = torch.stack([alike, alike, apart])
            costs = costs + (kinds * cost).flatten(1).sum(1)
            counts = counts + kinds.flatten(1).sum(1)
        background, foreground, two = costs / (counts + SMALL)
        return background / 4 + foreground / 4 + two / 2

    @torch.no_grad()
    def walk(self, cells: Tensor, probs: Tensor, steps: int) -> Tensor:
        """The probabilities (B, K, …) of the cells after so many steps; they still add up to 1."""
        pairs = [(one, other, (affinity**2).unsqueeze(1)) for one, other, affinity in self(cells)]

        def gathered(values: Tensor) -> Tensor:
            total = values.clone()
            for one, other, weight in pairs:
                total[one] += weight * values[other]
                total[other] += weight * values[one]
            return total

        weights = gathered(torch.ones_like(probs[:, :1]))
        for _ in range(steps):
            probs = gathered(probs) / weights
        return probs


def neighbours(radius: int, axes: int) -> list[tuple[int, ...]]:
    """Steps from a cell to those that are less than the radius away, each pair of cells once."""
    reach = range(1 - radius, radius)
    steps = [step for step in product(reach, repeat=axes) if 0 < sum(n * n for n in step) < radius**2]
    return [step for step in steps if step > (0,) * axes]


def ends(offset: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where in maps (B, C, …) of this size (…) one end of the pairs lies, and where the other."""
    whole = (slice(None), slice(None))
    one = tuple(slice(max(0, -step), n - max(0, step)) for step, n in zip(offset, size, strict=True))
    other = tuple(slice(max(0, step), n - max(0, -step)) for step, n in zip(offset, size, strict=True))
    return whole + one, whole + other


def to_cells(maps: Tensor) -> Tensor:
    """Maps (B, C, …) in means over cells, at most CELLS along each axis."""
    axes = maps.ndim - 2
    return POOLS[axes](maps, [min(CELLS, n) for n in maps.shape[2:]])


def label_of_cells(label: Tensor, n_class: int) -> Tensor:
    """(B, …) labels, n_class for a pixel without one -> (B, …) of the cells: the class that most of a cell is.

    A cell less than half of which has a label has none.
    """
    shares = to_cells(torch.stack([(label == k).float() for k in range(n_class)], 1))
    return torch.where(shares.sum(1) >= 0.5, most_probable(shares), n_class)


def to_pixels(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Maps of cells (B, K, …) at the size (…) of the image."""
    return F.interpolate(cells, tuple(size), mode=LINEAR[cells.ndim - 2], align_corners=False)
