"""What scanners and their filters do to an image: fields, blurs, low resolutions, blanks, as of nnU-Net and BigAug.

nnU-Net is its trainer with the strongest augmentation (DA5, Isensee et al., Nature Methods 2021, code of 2024), BigAug
Zhang et al., TMI 2020. Filters and resolutions of volumes are those of their planes (W,H).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.changes import TINY, Change, Lots, grey_range, pixel_axes

BLUR = (0.25, 1.5)  # pixels: standard deviation of a Gaussian
REACH = 5  # pixels: half of its kernel
RECTANGLES = 5


@dataclass(frozen=True)
class Inversion(Change):
    """`invert`: what was bright is dark; the range of each channel stays."""

    ranges: ClassVar[tuple[str, ...]] = ("invert",)

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        return cls(lots.chosen(shares[0]))

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        low, high = grey_range(image)
        return low + high - image


@dataclass(frozen=True)
class Spot(Change):
    """Base class: something that is strongest at one place in or beside the image, and falls off as a Gaussian does.

    centre: (B,axes), in sides of the image: 0 and 1 are its ends
    width: (B,axes), standard deviation of the Gaussian along each axis, in sides of the image
    strength: (B,1,(1,)1,1)
    """

    centre: Tensor
    width: Tensor
    strength: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        chosen, centre = lots.chosen(shares[0]), lots.uniform(-0.5, 1.5, lots.axes)
        width = lots.uniform(math.log(1 / 6), 0, lots.axes).exp()
        return cls(chosen, centre, width, cls.strengths(lots))

    @staticmethod
    def strengths(lots: Lots) -> Tensor:
        """Of each image (B,1,(1,)1,1)."""
        raise NotImplementedError

    def spot(self, size: Sequence[int]) -> Tensor:
        """(b,1,(D,)W,H): 1 where it is strongest in the image."""
        spot = torch.ones_like(self.strength)
        for axis, length in enumerate(size):
            place = (torch.arange(length, device=spot.device) + 0.5) / length
            apart = (place - self.centre[:, axis, None]) / self.width[:, axis, None]
            shape = [1] * len(size)
            shape[axis] = length
            spot = spot * (-(apart**2) / 2).exp().view(-1, 1, *shape)
        return spot / spot.amax(pixel_axes(spot), keepdim=True)


@dataclass(frozen=True)
class Gradient(Spot):
    """`gradient`: grey levels rise or fall towards a place, by 1 to 5 standard deviations of the channel (nnU-Net)."""

    ranges: ClassVar[tuple[str, ...]] = ("gradient",)

    @staticmethod
    def strengths(lots: Lots) -> Tensor:
        return lots.each(1, 5) * (1 - 2 * lots.chosen(0.5).float())

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        deviation = image.std(pixel_axes(image), correction=0, keepdim=True)
        return image + self.strength * deviation * self.spot(image.shape[2:])


@dataclass(frozen=True)
class LocalGamma(Spot):
    """`local_gamma`: towards a place the share of the range is raised to 0.01..0.8, or to 1.5..4 (nnU-Net)."""

    ranges: ClassVar[tuple[str, ...]] = ("local_gamma",)

    @staticmethod
    def strengths(lots: Lots) -> Tensor:
        return torch.where(lots.chosen(0.5), lots.each(0.01, 0.8), lots.each(1.5, 4))

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        low, high = grey_range(image)
        share = ((image - low) / (high - low).clamp(min=TINY)).clamp(0, 1)
        return low + (high - low) * torch.lerp(share, share**self.strength, self.spot(image.shape[2:]))


@dataclass(frozen=True)
class Blur(Change):
    """`blur`: a Gaussian filter, of a standard deviation of 0.25 to 1.5 pixels (BigAug).

    deviation: pixels (B,1,(1,)1,1)
    """

    ranges: ClassVar[tuple[str, ...]] = ("blur",)
    deviation: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        return cls(lots.chosen(shares[0]), lots.each(*BLUR))

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        return blurred(image, self.deviation)


@dataclass(frozen=True)
class Sharpening(Change):
    """`sharpen`: the image, blurred, plus 10 to 30 times what another blur takes of it, cut to its range (BigAug).

    first, second: pixels (B,1,(1,)1,1), standard deviations of the two blurs
    strength: (B,1,(1,)1,1)
    """

    ranges: ClassVar[tuple[str, ...]] = ("sharpen",)
    first: Tensor
    second: Tensor
    strength: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        return cls(lots.chosen(shares[0]), lots.each(*BLUR), lots.each(*BLUR), lots.each(10, 30))

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        smooth = blurred(image, self.first)
        sharp = smooth + self.strength * (smooth - blurred(smooth, self.second))
        low, high = grey_range(image)
        return torch.minimum(torch.maximum(sharp, low), high)


def blurred(image: Tensor, deviation: Tensor) -> Tensor:
    """The images (b,C,(D,)W,H) after a Gaussian filter along W and H; deviation: pixels (b,1,(1,)1,1)."""
    apart = torch.arange(-REACH, REACH + 1, device=image.device)
    kernel = (-(apart**2) / (2 * deviation.flatten(1) ** 2)).exp()
    kernel = kernel / kernel.sum(1, keepdim=True)
    planes = image.flatten(1, -3)
    count = planes.shape[0] * planes.shape[1]
    weight = kernel.repeat_interleave(planes.shape[1], dim=0)[:, None]
    maps = planes.reshape(1, count, *planes.shape[2:])
    maps = F.conv2d(F.pad(maps, (0, 0, REACH, REACH), mode="replicate"), weight[..., None], groups=count)
    maps = F.conv2d(F.pad(maps, (REACH, REACH, 0, 0), mode="replicate"), weight[:, :, None], groups=count)
    return maps.view(image.shape)


@dataclass(frozen=True)
class LowResolution(Change):
    """`low_resolution`: every pixel of a grid of 0.25 to 1 times as many along W and H, and straight lines between.

    nnU-Net draws a cubic through them.

    zoom: (B,)
    """

    ranges: ClassVar[tuple[str, ...]] = ("low_resolution",)
    zoom: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        return cls(lots.chosen(shares[0]), lots.uniform(0.25, 1))

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        planes = image.flatten(1, -3)
        return self._coarse(self._coarse(planes, 2), 3).view(image.shape)

    def _coarse(self, planes: Tensor, axis: int) -> Tensor:
        """The planes (b,n,W,H) at low resolution along one of their axes."""
        length, zoom = planes.shape[axis], self.zoom[:, None]
        place = (torch.arange(length, device=planes.device) + 0.5) * zoom - 0.5  # in pixels of the coarse grid
        before = place.floor()
        found = []
        for pixel in (before, before + 1):
            nearest = ((pixel + 0.5) / zoom - 0.5).round().long().clamp(0, length - 1)
            found.append(planes.gather(axis, _along(nearest, axis).expand_as(planes)))
        return torch.lerp(*found, _along(place - before, axis))


def _along(values: Tensor, axis: int) -> Tensor:
    """(b,length) as (b,1,length,1) or (b,1,1,length)."""
    return values[:, None, :, None] if axis == 2 else values[:, None, None]


@dataclass(frozen=True)
class Blanks(Change):
    """`blank`: 1 to 5 boxes of a tenth to a third of each side hold the mean of each channel (nnU-Net).

    start, side: (B,5,axes), in sides of the image
    count: (B,), how many of the boxes are there
    """

    ranges: ClassVar[tuple[str, ...]] = ("blank",)
    start: Tensor
    side: Tensor
    count: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        chosen, side = lots.chosen(shares[0]), lots.uniform(1 / 10, 1 / 3, RECTANGLES, lots.axes)
        start = lots.uniform(0, 1, RECTANGLES, lots.axes) * (1 - side)
        return cls(chosen, start, side, 1 + (RECTANGLES * lots.uniform(0, 1)).floor())

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        inside = torch.zeros_like(self.chosen)
        for box in range(RECTANGLES):
            there = self.chosen & (self.count > box).view_as(self.chosen)
            for axis, length in enumerate(image.shape[2:]):
                place = ((torch.arange(length, device=image.device) + 0.5) / length).view(
                    -1, *[1] * (image.ndim - 3 - axis)
                )
                start, side = (each[:, box, axis].view_as(self.chosen) for each in (self.start, self.side))
                there = there & (place >= start) & (place < start + side)
            inside = inside | there
        return torch.where(inside, image.mean(pixel_axes(image), keepdim=True), image)
