"""A change of the grey levels of some images of a batch, and the lots that it is drawn with."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

TINY = 1e-6  # below it a range or a deviation of grey levels counts as none


@dataclass(frozen=True)
class Lots:
    """Random numbers for B images, from one generator and on its device.

    count: B; shape: (C,W,H) or (C,D,W,H) of an image; n_class: K, background included
    """

    count: int
    shape: tuple[int, ...]
    generator: torch.Generator
    n_class: int = 1

    @property
    def axes(self) -> int:
        """2 for slices, 3 for volumes."""
        return len(self.shape) - 1

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape), uniform in low..high."""
        device = self.generator.device
        return torch.rand(self.count, *shape, generator=self.generator, device=device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), of mean 0 and standard deviation 1."""
        return torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device)

    def chance(self, share: float, *shape: int) -> Tensor:
        """Bool (B, *shape), true with this probability."""
        return self.uniform(0, 1, *shape) < share

    def each(self, low: float, high: float) -> Tensor:
        """A number for each image, uniform in low..high, to broadcast over it: (B,1,(1,)1,1)."""
        return self.uniform(low, high, *(1 for _ in self.shape))

    def chosen(self, share: float) -> Tensor:
        """Which images are meant, with this probability each, to broadcast over them: bool (B,1,(1,)1,1)."""
        return self.each(0, 1) < share


@dataclass(frozen=True)
class Change:
    """Base class: one change of grey levels, drawn for all images of a batch, of which it leaves most as they are.

    A subclass names the `ranges` of an `Augmentation` that it answers to, each a probability, and implements `draw` and
    `changed`. Its tensors have one row an image. Nothing may wait for the device.

    chosen: bool (B,1,(1,)1,1), the images that are changed
    """

    ranges: ClassVar[tuple[str, ...]]
    mixes: ClassVar[bool] = False  # whether an image is changed by others of its batch
    chosen: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        """A change for each image; `shares` are the values of the `ranges`, in their order."""
        raise NotImplementedError

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        """All images (b,C,(D,)W,H) as they look changed; label: their class numbers (b,(D,)W,H), where known."""
        raise NotImplementedError

    def __call__(self, image: Tensor, part: slice = slice(None), label: Tensor | None = None) -> Tensor:
        """The images (b,C,(D,)W,H) of these rows, the chosen ones changed."""
        rows = self.of(part)
        return torch.where(rows.chosen, rows.changed(image, label), image)

    def of(self, part: slice) -> Self:
        """The change of these images alone."""
        return replace(self, **{each.name: _rows(getattr(self, each.name), part) for each in fields(self)})


def _rows(value: Any, part: slice) -> Any:
    if isinstance(value, tuple):
        return tuple(each[part] for each in value)
    return None if value is None else value[part]


def pixel_axes(image: Tensor) -> tuple[int, ...]:
    """The axes of the pixels of images (B,C,(D,)W,H)."""
    return tuple(range(2, image.ndim))


def grey_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest grey level of each channel of each image, (B,C,(1,)1,1)."""
    axes = pixel_axes(image)
    return image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)


def regions(label: Tensor | None, by_label: Tensor, n_class: int) -> Tensor:
    """The class of each pixel (b,1,(D,)W,H) in the images of `by_label`, else 0; 0 too where a label is no class."""
    if label is None or n_class == 1:
        return torch.zeros_like(by_label, dtype=torch.int64)
    label = label[:, None]
    return torch.where(by_label & (label < n_class), label, 0)
