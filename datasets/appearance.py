"""Changes of how images look that leave where everything lies: what a source network may learn so that it transfers.

A change is a class below `Change`; the order here is that in which they are applied, all before the grey levels of
datasets/draw.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from datasets.changes import Change, Lots
from datasets.curves import Curves
from datasets.degradations import Blanks, Blur, Gradient, Inversion, LocalGamma, LowResolution, Sharpening
from datasets.random_convolutions import RandomConvolutions

COARSE = 0.05  # cycles a pixel: what is coarser than 20 pixels


@dataclass(frozen=True)
class AmplitudeMix(Change):
    """`fourier`: the amplitudes of low frequencies mixed with those of another image of the batch, the phases kept.

    As in FedDG (Liu et al., CVPR 2021), with the low frequencies of FDA (Yang and Soatto, CVPR 2020): those of at most
    0.05 cycles a pixel along each axis.

    strength: (B,1,(1,)1,1), how much of the other's amplitude
    other: (B,), its row; the batch has to be there as a whole
    """

    ranges: ClassVar[tuple[str, ...]] = ("fourier",)
    mixes: ClassVar[bool] = True
    strength: Tensor
    other: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        return cls(lots.chosen(shares[0]), lots.each(0, 1), lots.uniform(0, 1).argsort())

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        size = image.shape[2:]
        axes = tuple(range(2, image.ndim))
        found = torch.fft.rfftn(image, dim=axes)
        amplitude = found.abs()
        wanted = torch.lerp(amplitude, amplitude[self.other], self.strength)
        factor = torch.where(_is_coarse(size, image.device), wanted / amplitude.clamp(min=1e-20), 1)
        return torch.fft.irfftn(found * factor, s=size, dim=axes)


def _is_coarse(size: Sequence[int], device: torch.device) -> Tensor:
    """Bool ((D,)W,H/2+1): which frequencies of `rfftn` are low along every axis."""
    every = [torch.fft.fftfreq(length, device=device) for length in size[:-1]]
    every.append(torch.fft.rfftfreq(size[-1], device=device))
    low = [each.abs() <= COARSE for each in every]
    coarse = low[0]
    for each in low[1:]:
        coarse = coarse[..., None] & each
    return coarse


CHANGES: tuple[type[Change], ...] = (
    AmplitudeMix,
    Curves,
    RandomConvolutions,
    Inversion,
    Gradient,
    LocalGamma,
    Blur,
    Sharpening,
    LowResolution,
    Blanks,
)
RANGES = tuple(name for kind in CHANGES for name in kind.ranges)
MIXING = tuple(name for kind in CHANGES if kind.mixes for name in kind.ranges)
OF_CLASSES = tuple(name for name in RANGES if name.startswith("label_"))  # those that look at labels


def draw_changes(ranges: Any, lots: Lots) -> tuple[Change, ...]:
    """Those changes whose ranges are on, each drawn for all images; `ranges` has an attribute for each of `RANGES`."""
    shares = {kind: [getattr(ranges, name) for name in kind.ranges] for kind in CHANGES}
    return tuple(kind.draw(each, lots) for kind, each in shares.items() if any(each))
