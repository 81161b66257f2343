"""What losses and methods compute of logits: probabilities, proportions of the classes, entropy, divergence.

Shapes: B batch, K classes, W and H the spatial axes (any number of them).
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from processes.errors import UserError

EPS = 1e-10  # inside the logarithms of ratios: an absent class costs log(1e-10) = -23 per unit of its share


def log_probabilities(logits: Tensor) -> Tensor:
    """(B, K, …) logits -> (B, K, …): log softmax over the classes, in fp32 at least."""
    return F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)


def most_probable(scores: Tensor) -> Tensor:
    """(B, K, W, H) logits or log-probabilities -> (B, W, H) int64 class numbers, the first of equal ones."""
    return scores.max(1).indices  # the same as argmax(1), which takes ten times as long on a CPU


def fits_labels(target: Tensor, logits: Tensor) -> bool:
    """Whether a target is (B, W, H) class numbers, or (B, K, W, H) shares or maps, for logits (B, K, W, H)."""
    return target.shape in (logits.shape, logits[:, 0].shape)


def fits_bounds(bounds: Tensor, logits: Tensor) -> bool:
    """Whether bounds are (B, K, 2) for logits (B, K, W, H)."""
    return bounds.shape == (*logits.shape[:2], 2)


def one_hot(label: Tensor, n_class: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, W, H) class numbers -> (B, K, W, H) zeros and ones."""
    # Not F.one_hot, which looks at the values, and so waits for them.
    classes = torch.arange(n_class, device=label.device).view(-1, *[1] * (label.ndim - 1))
    return (label.unsqueeze(1) == classes).to(dtype)


def class_vector(values: Sequence[float] | None, idc: Sequence[int] | None, logits: Tensor, what: str) -> Tensor:
    """(K,) one value a class: `values` laid on the classes `idc`, zero elsewhere; ones where values is None."""
    n_class = logits.shape[1]
    check_idc(idc, n_class)
    chosen = list(range(n_class)) if idc is None else list(idc)
    values = [1.0] * len(chosen) if values is None else list(values)
    if min(values, default=0) < 0:
        raise UserError(f"{what}: the weights of the classes are numbers from 0 up; got {values}.")
    if len(values) == n_class and len(chosen) != n_class:
        values = [values[k] for k in chosen]
    if len(values) != len(chosen):
        raise UserError(
            f"{what}: {len(values)} weights {values} for the classes {chosen} of a network with {n_class} classes "
            "(0 is the background); give one weight a class."
        )
    vector = [0.0] * n_class
    for k, value in zip(chosen, values, strict=True):
        vector[k] = float(value)
    return constant(tuple(vector), torch.float32, logits.device)


@lru_cache(maxsize=1024)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N,) the values as a tensor on the device.

    They are copied there once, since a copy in every step would wait for the device.
    """
    with torch.inference_mode(False):
        host = torch.tensor(values, dtype=dtype)
        return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def pick(values: Tensor, idc: Sequence[int] | None) -> Tensor:
    """(B, K, …) -> (B, |idc|, …): only the classes `idc`, or all of them where it is None."""
    check_idc(idc, values.shape[1])
    return values if idc is None else values.index_select(1, constant(tuple(idc), torch.int64, values.device))


def check_idc(idc: Sequence[int] | None, n_class: int) -> None:
    """Raises UserError unless `idc` names classes, each once, or is None for all of them."""
    if idc is not None and (not idc or set(idc) - set(range(n_class)) or len(set(idc)) < len(idc)):
        raise UserError(
            f"idc is {list(idc)}; it names classes, each once, of the {n_class} that there are (--n_class), from 0, "
            "the background, on."
        )


def in_range(loss: str, parameter: str, value: float, low: float, high: float = float("inf")) -> float:
    """Returns the value. Raises UserError where it is out of range."""
    if not low <= value <= high:
        most = f" and at most {high:g}" if high < float("inf") else ""
        raise UserError(f"{loss}: '{parameter}' is at least {low:g}{most}; got {value:g}.")
    return value


def mean_proportion(probs: Tensor, power: float = 1.0) -> Tensor:
    """(B, K, W, H) -> (B, K): the share of each class in the image, its mean probability, as in the paper.

    `power` changes nothing here.
    """
    return probs.flatten(2).mean(2)


def max_normalised_proportion(probs: Tensor, power: float = 1.0) -> Tensor:
    """(B, K, W, H) -> (B, K): the share of each class in the image, as the published code measures it.

    Each pixel's vector is divided by its own largest entry and raised to `power`, then summed, then normalised
    over the classes: an uncertain pixel counts more than once, so rare classes come out larger than their mean.
    """
    relative = probs / (probs.amax(1, keepdim=True) + EPS)
    relative = relative if power == 1 else relative**power
    sizes = relative.flatten(2).sum(2)
    return sizes / sizes.sum(1, keepdim=True)


PROPORTIONS = {"soft_size": mean_proportion, "norm_soft_size": max_normalised_proportion}


PROPORTION_OF = {"mean": "soft_size", "maxnorm": "norm_soft_size"}


def prior_ratios(bounds: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, K, 2) pixels -> (B, K) ratios: the lower bound divided by its own sum, not by W·H."""
    sizes = bounds[:, :, 0].to(dtype)
    return sizes / sizes.sum(1, keepdim=True)


def entropy(log_p: Tensor, probs: Tensor, weights: Sequence[float] | None, idc: Sequence[int] | None = None) -> Tensor:
    """Scalar: −Σ ν_k p_k log p_k over images, pixels and the classes `idc`, by what these have of all pixels."""
    weight = class_vector(weights, idc, log_p, "SelfEntropy").to(log_p.dtype)
    per_class = -(probs * log_p).flatten(2).mean(2)  # b k
    mean = (per_class * weight).sum(1).mean()
    if idc is None or len(idc) == log_p.shape[1]:
        return mean
    return mean / (pick(probs, idc).flatten(2).mean(2).sum(1).mean() + EPS)


def kl_divergence(first: Tensor, second: Tensor, silent: Tensor | None = None) -> Tensor:
    """Mean over the batch of Σ_k first_k [log(first_k + ε) − log(second_k + ε)]; both (B, K) ratios.

    silent: (B,) images that cost nothing, and teach nothing
    """
    each = (first * ((first + EPS).log() - (second + EPS).log())).sum(1)
    return (each if silent is None else torch.where(silent, 0.0, each)).mean()
