"""Losses forward and backward from logits, against the slow form of their formulas.

The slow form is how the published code goes about it: probabilities first, then their logarithm with 1e-10 added,
one einsum for the whole sum, one-hot ground truth, and every tensor checked on the way.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from losses import CrossEntropy, EntKLProp
from tests.benchmarks.table import Row, compare

EPS = 1e-10
SHAPES = [(24, 2, 384, 384), (22, 5, 256, 256)]
QUICK = [(2, 3, 16, 16)]


def check_simplex(probs: Tensor) -> None:
    total = probs.sum(1).float()
    if not torch.allclose(total, torch.ones_like(total)):
        raise ValueError("the probabilities of a pixel do not add up to one")


def check_values(labels: Tensor, n_class: int) -> None:
    if not {int(value) for value in torch.unique(labels.cpu())} <= set(range(n_class)):
        raise ValueError(f"the labels are not all in 0..{n_class - 1}")


def check_one_hot(mask: Tensor) -> None:
    check_simplex(mask)
    check_values(mask, 2)


def encode(label: Tensor, n_class: int, checks: bool) -> Tensor:
    """(B, W, H) class numbers -> (B, K, W, H) int32, looked at before and after."""
    if checks:
        check_values(label, n_class)
    mask = torch.stack([label == k for k in range(n_class)], 1).int()
    if checks:
        check_one_hot(mask)
    return mask


def hard(probs: Tensor, checks: bool) -> Tensor:
    """The one-hot prediction, (B, K, W, H) int32."""
    if checks:
        check_simplex(probs)
    mask = encode(probs.argmax(1), probs.shape[1], checks)
    if checks:
        check_one_hot(mask)
    return mask


def slow_ratios(probs: Tensor) -> Tensor:
    """(B, K, W, H) -> (B, K): each pixel divided by its largest entry, summed, normalised over the classes."""
    relative = (probs / (probs.max(1, keepdim=True)[0] + EPS)) ** 1
    sizes = torch.einsum("bkwh->bk", relative)
    return sizes / sizes.sum(1, keepdim=True)


def slow_cross_entropy(logits: Tensor, target: Tensor, checks: bool) -> Tensor:
    probs = torch.softmax(logits, 1)
    if checks:
        check_simplex(probs)
        check_one_hot(target)
    weighted = torch.einsum("bkwh,k->bkwh", target.float(), torch.ones(logits.shape[1], device=logits.device))
    return -torch.einsum("bkwh,bkwh->", weighted, (probs + EPS).log()) / (target.sum() + EPS)


def slow_entropy_and_prior(logits: Tensor, bounds: Tensor, checks: bool) -> Tensor:
    probs = torch.softmax(logits, 1)
    if checks:
        check_simplex(probs)
    hard_ratios = slow_ratios(hard(probs, checks))
    ratios, prior = slow_ratios(probs), bounds[:, :, 0] / bounds[:, :, 0].sum(1, keepdim=True)
    if checks and not bool(torch.isfinite(hard_ratios).all()):
        raise ValueError("the ratios of the hard prediction are not finite")
    log_ratios, log_prior = (ratios + EPS).log(), (prior + EPS).log()
    n_image = len(logits)
    divergence = (torch.einsum("bk,bk->", ratios, log_ratios) - torch.einsum("bk,bk->", ratios, log_prior)) / n_image
    weighted = torch.einsum("bkwh,k->bkwh", probs, torch.ones(logits.shape[1], device=logits.device))
    entropy = -torch.einsum("bkwh,bkwh->", weighted, (probs + EPS).log()) / (probs.sum() + EPS)
    return entropy + divergence


def backward(loss: Callable[[Tensor], Tensor], logits: Tensor) -> float:
    logits.grad = None
    total = loss(logits)
    total.backward()
    return total.item()


def pairs(shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor, Callable[..., Tensor], Callable[..., Tensor]]]:
    """Name, logits, ours, the slow form; the losses as functions of the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).mul_(3).requires_grad_()
    label = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    bounds = (1000 * torch.rand(shape[0], shape[1], 1, generator=generator) + 1).expand(-1, -1, 2)
    adaptation, supervised = EntKLProp(fn="norm_soft_size"), CrossEntropy()
    onehot = encode(label, shape[1], checks=False)
    yield "CrossEntropy", logits, partial(supervised, target=label), partial(slow_cross_entropy, target=onehot)
    yield (
        "EntKLProp",
        logits,
        lambda logits: sum(adaptation(logits, None, bounds).values()),
        partial(slow_entropy_and_prior, bounds=bounds),
    )


def measure(options: Namespace) -> Iterator[Row]:
    """Measures our losses against the slow form as it is, and without its checks (python -O)."""
    for shape in QUICK if options.quick else SHAPES:
        for name, logits, ours, slow in pairs(shape):
            references = {
                "slow form": partial(backward, partial(slow, checks=True), logits),
                "slow form, unchecked": partial(backward, partial(slow, checks=False), logits),
            }
            own, theirs = backward(ours, logits), references["slow form"]()
            note = f"differs by {abs(own - theirs) / abs(theirs):.0e} of the loss"
            yield from compare(
                "losses",
                f"{name} {'x'.join(map(str, shape))}",
                partial(backward, ours, logits),
                references,
                options.rounds,
                lambda _, note=note: note,
            )
