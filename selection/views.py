"""How an image is disturbed to see whether a network still says the same: each view, and how what it shows is undone.

A view changes what the scanner might have changed, and not the anatomy: noise, gamma, the side from which one looks, a
few of the network's own features. Views are drawn from a seed, so that every candidate sees the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import gcd

import torch
from torch import Tensor, nn

NOISE = 0.1  # standard deviation, as a share of an image's range of grey levels
GAMMAS = (0.7, 1.5)
DROPPED = 0.1  # of the channels that the classifier reads
MIXED = 0.55  # of an image, where it is mixed with another (Hu et al., NeurIPS 2023)
SAMPLE = 4096  # pixels of an image, about, where fewer than all will do


def same(values: Tensor) -> Tensor:
    """Values of any shape as they are."""
    return values


@dataclass(frozen=True)
class View:
    """One way to disturb: an image (B, C, …), and the logits (B, K, …) that it gives, brought back to its place."""

    image: Callable[[Tensor, torch.Generator], Tensor]
    undo: Callable[[Tensor], Tensor] = same
    drops_features: bool = False


def sampled(values: Tensor) -> Tensor:
    """(*, N) -> (*, S): about SAMPLE of the N pixels of an image, evenly spaced; all of a small image.

    The step shares no factor with N, and so none with a side: of a step that divides the width, all pixels would lie in
    the same few columns.
    """
    pixels = values.shape[-1]
    step = next(step for step in count(max(1, pixels // SAMPLE)) if gcd(step, pixels) == 1)
    return values[..., ::step]


def grey_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """The 1st and the 99th percentile of each image's channels: (B, C, …) -> two of (B, C, 1, …)."""
    flat = sampled(image.flatten(2)).float()
    low, high = torch.quantile(flat, torch.tensor([0.01, 0.99], device=flat.device), dim=2)
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    return low.view(shape), high.view(shape)


def with_noise(image: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of NOISE times the range of the image (B, C, …)."""
    low, high = grey_range(image)
    return image + NOISE * (high - low) * torch.randn(image.shape, generator=generator, device=image.device)


def with_gamma(image: Tensor, generator: torch.Generator, gamma: float) -> Tensor:
    """The image (B, C, …), its grey levels between its least and its largest raised to `gamma`."""
    flat = image.flatten(2)
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    low, high = flat.amin(2).view(shape), flat.amax(2).view(shape)
    span = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    return ((image - low) / span) ** gamma * span + low


def flipped(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images or logits (B, *, …), mirrored along their last axis."""
    return values.flip(-1)


def unchanged(image: Tensor, generator: torch.Generator) -> Tensor:
    """The image as it is."""
    return image


VIEWS = {
    "noise": View(with_noise),
    "gamma_low": View(partial(with_gamma, gamma=GAMMAS[0])),
    "gamma_high": View(partial(with_gamma, gamma=GAMMAS[1])),
    "flip": View(flipped, flipped),
    "dropout": View(unchanged, drops_features=True),
}


@contextmanager
def kept_features(net: nn.Module, keep: bool) -> Iterator[list[Tensor]]:
    """Inside it, the maps that the classifier reads are kept in the list, one after another; none without `keep`."""
    found: list[Tensor] = []
    if not keep or not hasattr(type(net), "features"):
        yield found
        return
    compute = net.features

    def kept(image: Tensor) -> list[Tensor]:
        maps = compute(image)
        found.append(maps[-1])
        return maps

    with _in_place_of_features(net, kept):
        yield found


@contextmanager
def _in_place_of_features(net: nn.Module, features: Callable[[Tensor], list[Tensor]]) -> Iterator[None]:
    net.features = features
    try:
        yield
    finally:
        del net.features  # its class has them


@contextmanager
def dropped_features(net: nn.Module, seed: int, maps: list[Tensor] | None = None) -> Iterator[None]:
    """Inside it, the classifier of the network reads its maps without a share DROPPED of their channels.

    maps: of `kept_features`; they are taken out of the list and not computed again; with none they are
    """

    def drop(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        maps, *others = inputs
        keep = torch.rand(maps.shape[:2], generator=torch.Generator().manual_seed(seed)) >= DROPPED
        keep = keep.to(maps) / (1 - DROPPED)
        return maps * keep.view(*keep.shape, *[1] * (maps.ndim - 2)), *others

    handle = net.classifier.register_forward_pre_hook(drop)
    try:
        with _in_place_of_features(net, lambda _: [maps.pop(0)]) if maps else nullcontext():
            yield
    finally:
        handle.remove()


def mixed(image: Tensor, share: float = MIXED) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Each image (B, C, …) mixed with the next of its batch, or one that is alone with its mirror image.

    Returns the mixture, of which the first has this share, and what gives values (B, *, …) of the partners.
    """
    partner = partial(torch.roll, shifts=-1, dims=0) if len(image) > 1 else flipped
    return share * image + (1 - share) * partner(image), partner
