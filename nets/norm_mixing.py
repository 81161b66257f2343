"""Batch-norm statistics between the source's and an image's own: predictions at several mixtures, averaged (InTEnt).

For α in ALPHAS each batch norm has the mean (1 − α) μ_s + α μ_t and the variance (1 − α) σ²_s + α σ²_t, where s is what
it learnt and t the image that it sees. The surer a mixture is, the more its prediction counts (`weights_of`). Nothing
is learnt. Dong et al., CVPR workshops 2024 (arXiv 2402.09604).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nets.probabilities import EPS, log_probabilities, most_probable, one_hot

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
OPTION = "bn_mix"  # of a network that predicts so, behind its name: UNet:nG=8,bn_mix=True
ITEMS = re.compile(r",(?=\s*\w+\s*=)")  # what parts the parameters of a network, not the commas within a list


def mixed_prediction(predict: Callable[[], Tensor], norms: Sequence[_BatchNorm]) -> Tensor:
    """(B, K, …) float32 log of the weighted mean of the probabilities; a further log_softmax leaves it unchanged.

    predict: a pass in evaluation mode, (B, K, …) logits
    """
    found = []
    for alpha in ALPHAS:
        with standing_in(norms, partial(mixed_norm, alpha)):
            found.append(log_probabilities(predict()))
    log_p = torch.stack(found)
    weights = weights_of(log_p)
    mean = (log_p.exp() * weights.view(*weights.shape, *[1] * (log_p.ndim - 2))).sum(0)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def weights_of(log_p: Tensor) -> Tensor:
    """(A, B, K, …) log-probabilities at A mixtures -> (A, B) weights: softmax over the mixtures of s.

    h is the mean, over the classes that are predicted in the image, of the mean entropy of their pixels; s is -h, of
    which the least becomes 0 and the largest 1.
    """
    h = torch.stack([_entropy_by_class(each) for each in log_p])
    low, high = h.amin(0), h.amax(0)
    return ((high - h) / (high - low).clamp_min(EPS)).softmax(0)


def _entropy_by_class(log_p: Tensor) -> Tensor:
    """(B, K, …) -> (B,)"""
    entropy = -(log_p.exp() * log_p).sum(1, keepdim=True).flatten(2)  # b 1 i
    members = one_hot(most_probable(log_p), log_p.shape[1]).flatten(2)  # b k i
    counts = members.sum(2)
    return ((members * entropy).sum(2) / counts.clamp_min(1)).sum(1) / (counts > 0).sum(1)


@contextmanager
def standing_in(norms: Sequence[_BatchNorm], forward: Callable[[_BatchNorm, Tensor], Tensor]) -> Iterator[None]:
    """In this block the norms do what `forward` does with each and the maps that it reads. One may lie in another."""
    around = [vars(norm).get("forward") for norm in norms]
    for norm in norms:
        norm.forward = partial(forward, norm)
    try:
        yield
    finally:
        for norm, before in zip(norms, around, strict=True):
            del norm.forward  # its class has it
            if before:
                norm.forward = before


def mixed_norm(alpha: float, norm: _BatchNorm, maps: Tensor) -> Tensor:
    """(B, C, …) -> (B, C, …): normalised by a mixture of the statistics that the norm learnt and of each image's."""
    wide = widened(maps)
    own = torch.var_mean(wide, tuple(range(2, maps.ndim)), correction=0)
    variance, mean = (
        torch.lerp(learnt.expand_as(each), each, alpha)
        for learnt, each in zip((norm.running_var, norm.running_mean), own, strict=True)
    )
    return normalised(norm, wide, mean, variance).to(maps.dtype)


def widened(maps: Tensor) -> Tensor:
    """In float32 at least."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def normalised(norm: _BatchNorm, maps: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(B, C, …) by these statistics, (B, C) or (C,), with the norm's scale and shift."""
    scale = norm.weight / (variance + norm.eps).sqrt()
    shift = norm.bias - mean * scale
    scale, shift = (each.view(*each.shape, *[1] * (maps.ndim - 2)) for each in (scale, shift))
    return maps * scale + shift


# ------------------------------------------------------------------------------------------- as it is called


def mixes_norms(network: str) -> bool:
    """Whether a network of this name, as --network takes it, predicts so."""
    return any(
        name.strip() == OPTION and value.strip() == "True"
        for name, _, value in (item.partition("=") for item in ITEMS.split(network.partition(":")[2]))
    )


def mixing(network: str, mixes: bool) -> str:
    """What the same network is called that predicts so, or does not."""
    if mixes_norms(network) == mixes:
        return network
    name, _, rest = network.partition(":")
    items = [item for item in ITEMS.split(rest) if item and item.partition("=")[0].strip() != OPTION]
    return ":".join([name, *filter(None, [",".join([*items, *[f"{OPTION}=True"] * mixes])])])
