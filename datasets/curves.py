"""Random curves of grey levels: one for an image, or one for each class in it (SLAug, Su et al., AAAI 2023).

A curve is a cubic Bezier curve from the lowest grey level to the highest, with two random control points; it only
rises, or, reversed, only falls. Then the levels are stretched and shifted at random and cut to the range of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from datasets.changes import TINY, Change, Lots, grey_range, regions

CELLS = 256  # of the table that a curve is looked up in, straight lines between: as fine as 8-bit grey levels
POINTS = 4 * CELLS  # of a curve that are computed for it
KEPT = 0.01  # of the range: what is darker is air, and no curve of a class changes it
TAILS = (0.2, 0.8)  # the shift cuts these shares of a region at most


@dataclass(frozen=True)
class Curves(Change):
    """Curves of the grey levels of each channel: `curves` of whole images, `label_curves` class by class.

    An image gets one of the two: where both lots fall on it, that of the classes. A curve spans the grey levels of its
    region; scale and shift are parts of the range of the image, for which the released code has 0..1. Of a whole image
    the curve rises; that of the background falls, and those of the other classes do either, as in the released code.

    by_label: bool (B,1,(1,)1,1), the images with a curve a class
    points: (B,C,K,2,2), the control points, x and y in 0..1
    falls: bool (B,C,K)
    scale, shift: (B,C,K)
    """

    ranges: ClassVar[tuple[str, ...]] = ("curves", "label_curves")
    by_label: Tensor
    points: Tensor
    falls: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        whole, by_label = (lots.chosen(share) for share in shares)
        each = (lots.shape[0], lots.n_class if shares[1] else 1)
        points, falls = lots.uniform(0, 1, *each, 2, 2), lots.chance(0.5, *each)
        falls = falls & by_label.flatten(1)[..., None]
        falls[..., 0] = by_label.flatten(1)
        scale, shift = 1 + 0.1 * lots.normal(*each), 0.5 * lots.normal(*each)
        return cls(whole | by_label, by_label, points, falls, scale.clamp(0.9, 1.1), shift)

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        n_class, flat = self.falls.shape[-1], image.flatten(2)
        region = regions(label, self.by_label, n_class).flatten(2).expand(flat.shape)
        low, high = (end.flatten(1)[..., None] for end in grey_range(image))
        lowest, highest = _region_ranges(flat, region, low, high, n_class)
        step = CELLS / (highest - lowest).clamp(min=TINY)
        place = ((flat - _of_pixel(lowest, region)) * _of_pixel(step, region)).clamp(0, CELLS)
        cell = place.long().clamp(max=CELLS - 1)
        at = region * (CELLS + 1) + cell
        levels = self._levels(lowest, highest, at, low, high).flatten(2)
        looked_up = torch.lerp(levels.gather(2, at), levels.gather(2, at + 1), place - cell).view_as(image)
        dark, light = grey_range(image)
        return torch.where(self.by_label & (image <= dark + KEPT * (light - dark)), image, looked_up)

    def _levels(self, lowest: Tensor, highest: Tensor, at: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The table (b,C,K,CELLS+1) of new grey levels from the lowest of each region to its highest.

        at: (b,C,P), where in the flat table each pixel is looked up
        """
        rising = bezier_table(self.points)
        curve = torch.where(self.falls[..., None], 1 - rising, rising)
        share = lowest[..., None] + (highest - lowest)[..., None] * curve - low[..., None]
        share = share / (high - low).clamp(min=TINY)[..., None]
        few, most = share.gather(3, _tails(at, share)).sort(dim=-1).values.unbind(-1)
        shift = torch.maximum(torch.minimum(self.shift, 1 - most), -few)
        moved = (share * self.scale[..., None] + shift[..., None]).clamp(0, 1)
        return low[..., None] + (high - low)[..., None] * moved


def bezier_table(points: Tensor) -> Tensor:
    """The values (…,CELLS+1) at 0, 1/CELLS, …, 1 of the curves with the control points (0,0), these (…,2,2) and (1,1).

    Within a cell of the curve itself: at x a value lies between those of the curve at x - 1/CELLS and x + 1/CELLS.
    """
    t = torch.linspace(0, 1, POINTS + 1, device=points.device)
    first, second = (points[..., n, :, None] for n in (0, 1))
    x, y = (3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3).unbind(-2)
    grid = torch.linspace(0, 1, CELLS + 1, device=points.device).expand(*x.shape[:-1], -1).contiguous()
    after = torch.searchsorted(x.contiguous(), grid).clamp(1, POINTS)
    left, right = x.gather(-1, after - 1), x.gather(-1, after)
    share = ((grid - left) / (right - left).clamp(min=1e-9)).clamp(0, 1)
    return torch.lerp(y.gather(-1, after - 1), y.gather(-1, after), share)


def _region_ranges(flat: Tensor, region: Tensor, low: Tensor, high: Tensor, n_class: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest grey level (b,C,K) of each region of the images (b,C,P); high and low of one that lacks."""
    if n_class == 1:
        return low, high
    inside = [region == k for k in range(n_class)]
    lowest = [torch.where(each, flat, high).amin(2) for each in inside]
    highest = [torch.where(each, flat, low).amax(2) for each in inside]
    return torch.stack(lowest, -1), torch.stack(highest, -1)


def _of_pixel(values: Tensor, region: Tensor) -> Tensor:
    """The value of each pixel's region (b,C,P), of (b,C,K)."""
    return values if values.shape[-1] == 1 else values.gather(2, region)


def _tails(at: Tensor, table: Tensor) -> Tensor:
    """In which cells (b,C,K,2) of a table (b,C,K,N) the `TAILS` of the pixels of each region lie; at: (b,C,P)."""
    counts = torch.zeros_like(table, dtype=torch.int32).flatten(2)  # whole numbers, whose sums are the same everywhere
    counts = counts.scatter_add_(2, at, torch.ones_like(at, dtype=torch.int32))
    counted = counts.view_as(table).cumsum(3)
    return torch.stack([(counted < share * counted[..., -1:]).sum(3) for share in TAILS], dim=3).clamp(max=CELLS)
