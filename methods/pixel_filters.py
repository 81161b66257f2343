"""Which pixels an online adaptation learns from: those that it is fairly sure of, each with its weight."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nets.probabilities import log_probabilities

SURE = 0.4  # of log K: pixels of a higher entropy are not learnt from (SAR, EATA), or count less (DeYO)
NEARLY_SURE = 0.5  # the same, as DeYO has it
FALL = 0.2  # of the probability of the class, by which a pixel that depends on its surroundings loses at least
GRID = 4  # patches along each axis


def pixel_entropy(logits: Tensor) -> Tensor:
    """(B, K, …) logits -> (B, …) −Σ p log p, natural logarithm."""
    log_p = log_probabilities(logits)
    return -(log_p.exp() * log_p).sum(1)


def sure_pixels(entropy: Tensor, n_class: int, share: float = SURE) -> Tensor:
    """(B, …) entropies -> which are below that share of log K, the highest there is with so many classes."""
    return entropy.detach() < share * math.log(n_class)


def mean_over(values: Tensor, kept: Tensor) -> Tensor:
    """The mean of the values (B, …) over the pixels that are kept, 0 without any."""
    return (values * kept).sum() / kept.sum().clamp_min(1)


def certainty_weight(entropy: Tensor, n_class: int) -> Tensor:
    """(B, …) exp(E₀ − H), E₀ = SURE · log K, without a gradient: the surer, the more a pixel counts (EATA)."""
    return (SURE * math.log(n_class) - entropy.detach()).exp()


def patch_order(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """(N,) for each pixel of an image of this size (…), row by row, the pixel that comes there when patches are mixed.

    An axis has GRID patches, or as many as it has pixels. What is left over at its far end stays.
    """
    grid = [min(GRID, n) for n in size]
    places = torch.arange(math.prod(size), device=generator.device).view(*size)
    inner = places[tuple(slice(0, n // parts * parts) for n, parts in zip(size, grid, strict=True))]
    axes = len(size)
    split = [number for n, parts in zip(size, grid, strict=True) for number in (parts, n // parts)]
    to_patches = [*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)]
    patches = inner.reshape(split).permute(to_patches)
    order = torch.randperm(math.prod(grid), generator=generator, device=generator.device)
    mixed = patches.flatten(0, axes - 1)[order].reshape(patches.shape)
    back = [to_patches.index(axis) for axis in range(2 * axes)]
    mixed = mixed.permute(back).reshape(inner.shape)
    whole = places.clone()
    whole[tuple(slice(0, n) for n in inner.shape)] = mixed
    return whole.flatten()


def reordered(image: Tensor, order: Tensor) -> Tensor:
    """(B, C, …) images with their pixels in this order (N,)."""
    return image.flatten(2)[..., order].view(image.shape)


def probability_fall(logits: Tensor, mixed: Tensor) -> Tensor:
    """(B, …) by how much the probability of the predicted class is lower in the mixed image; both (B, K, …) logits."""
    p, p_mixed = (log_probabilities(each.detach()).exp() for each in (logits, mixed))
    best, label = p.max(1, keepdim=True)
    return (best - p_mixed.gather(1, label)).squeeze(1)
