"""The prior of a class-ratio loss that is no fixed point: bounds that leave room, and shares that are estimated anew.

Shapes: B images, K classes, the background first.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nets.probabilities import EPS, prior_ratios

FURTHEST = 4.0  # times its start, or a part of it: where an estimate anew is cut off


def ratio_limits(bounds: Tensor, pixels: int) -> Tensor:
    """(B, K, 2) pixels of images of so many pixels -> (B, K, 2) float64: lower and upper ratio of each class.

    Sizes are divided by the pixels of the image, or by the sum of the bounds that is nearest to them: published sizes
    do not always add up to the image. The background is what the others leave, whatever its own bounds are.
    """
    limits = bounds.double()
    sums = limits.sum(1, keepdim=True)
    limits = limits / torch.full_like(sums[..., :1], pixels).clamp(sums[..., :1], sums[..., 1:]).clamp_min(EPS)
    limits[:, 0, 0], limits[:, 0, 1] = 0.0, 1.0
    return limits


@torch.no_grad()
def nearest_ratios(predicted: Tensor, limits: Tensor) -> Tensor:
    """(B, K) ratios within limits (B, K, 2) whose divergence from the predicted ones (B, K) is least.

    Both KL(predicted ‖ τ) and KL(τ ‖ predicted) are least under Σ τ = 1 at τ_k = μ · predicted_k, cut to its limits
    (Lagrange). Σ τ grows with μ, straight between the μ at which a class meets a limit, so μ is found exactly.
    Predicted ratios that are within their limits come back; of two classes the nearest limit does.
    """
    ratios = predicted.double().clamp_min(EPS)
    low, high = limits.unbind(2)
    low = low / low.sum(1, keepdim=True).clamp_min(1)

    def cut(multiples: Tensor) -> Tensor:
        """(B, M) -> (B, M, K)"""
        return (multiples.unsqueeze(2) * ratios.unsqueeze(1)).clamp(low.unsqueeze(1), high.unsqueeze(1))

    meetings = (torch.cat([low, high], 1) / ratios.repeat(1, 2)).sort(1).values
    sums = cut(meetings).sum(2)
    before = ((sums <= 1).sum(1, keepdim=True) - 1).clamp(0, meetings.shape[1] - 2)
    (m0, m1), (s0, s1) = ([each.gather(1, before + step) for step in (0, 1)] for each in (meetings, sums))
    rise = s1 - s0
    part = torch.where(rise > 0, (1 - s0) / rise.clamp_min(EPS), 0.0).clamp(0, 1)
    return cut(m0 + part * (m1 - m0)).squeeze(1).to(predicted.dtype)


class BendingPrior:
    """A prior that is estimated anew after every epoch, from what the network predicts, and is anchored to its start.

    One step of expectation maximisation (Saerens et al. 2002) an epoch: the network's probabilities are the posteriors
    under the prior that it learnt with, and their mean over the training images is the new share τ̂. Then
        τ ← (1 − a) τ_start + a τ̂,    τ_start / 4 <= τ̂ <= 4 τ_start
    A prior may differ from image to image (tags), so it is kept as a factor on each class: τ̂ is compared with the mean
    of τ_start over the images in which the class has a share. Where it has none, it gets none.
    """

    def __init__(self, rate: float) -> None:
        """rate: a, from 0 (the start, always) to 1 (no anchor)"""
        self.rate = rate
        self.factors: Tensor | None = None  # (K,) float64 on τ_start; None before the first image was seen
        self.seen: Tensor | None = None  # (2, K) float64 sums over this epoch's images: predicted, and τ_start

    def begin_epoch(self, epoch: int) -> None:
        """Takes over what the last epoch saw; before the first epoch it is as if nothing was seen."""
        if self.factors is None or self.seen is None:
            return
        predicted, start = self.seen
        found = torch.where(start > 0, predicted / start.clamp_min(EPS), 1.0).clamp(1 / FURTHEST, FURTHEST)
        self.factors = (1 - self.rate) + self.rate * found if epoch else torch.ones_like(self.factors)
        self.seen = torch.zeros_like(self.seen)

    def bend(self, ratios: Tensor, predicted: Tensor) -> Tensor:
        """(B, K) factors, for the ratios (B, K) of the start, that leave their sum at 1.

        predicted: (B, K) ratios of these images; those of a step that learns count for the next epoch
        """
        start = ratios.double()
        factors = start.new_ones(start.shape[1]) if self.factors is None else self.factors.to(start.device)
        if torch.is_grad_enabled():  # in an evaluation it is not
            found = predicted.detach().double() * (start > 0)
            before = 0 if self.seen is None else self.seen.to(start.device)
            self.factors, self.seen = factors, before + torch.stack([found.sum(0), start.sum(0)])
        return factors / (start * factors).sum(1, keepdim=True).clamp_min(EPS)

    def state(self) -> dict[str, Any]:
        """What a resume needs."""
        return {} if self.factors is None else {"factors": self.factors, "seen": self.seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for what cannot be a state of this."""
        if not state:
            self.factors = self.seen = None
            return
        factors, seen = state["factors"].double().clone(), state["seen"].double().clone()
        known = factors if self.factors is None else self.factors
        fits = factors.ndim == 1 and factors.shape == known.shape and seen.shape == (2, len(factors))
        finite = fits and bool((seen.isfinite() & (seen >= 0)).all())
        if not finite or not bool(((factors >= 1 / FURTHEST) & (factors <= FURTHEST)).all()):
            raise ValueError("the state of a prior that is estimated anew is none")
        self.factors, self.seen = factors, seen


def prior_for(
    predicted: Tensor, bounds: Tensor, pixels: int, bends: BendingPrior | None = None, over_batch: bool = False
) -> tuple[Tensor, Tensor]:
    """The prior ratios (B, K) that predicted ones (B, K) are compared with, and (B,) where they are within the bounds.

    Of bounds (B, K, 2) in pixels without room it is their ratio; otherwise the nearest ratios that they allow, and
    whoever is within them has nothing to learn. over_batch: of the means over the batch, (1, K) and (1,)
    """
    fixed = (bounds[..., 0] == bounds[..., 1]).all(1)
    prior, limits = prior_ratios(bounds, predicted.dtype), ratio_limits(bounds, pixels)
    if bends:
        middle = bounds.double().mean(2)
        factors = bends.bend(middle / middle.sum(1, keepdim=True), predicted)
        prior, limits = (prior * factors).to(prior.dtype), limits * factors.unsqueeze(2)
        limits[:, 0, 0], limits[:, 0, 1] = 0.0, 1.0
    if over_batch:
        predicted, prior, limits = (each.mean(0, keepdim=True) for each in (predicted, prior, limits))
        fixed = fixed.all().unsqueeze(0)
    allowed = ((predicted >= limits[..., 0]) & (predicted <= limits[..., 1])).all(1)
    return torch.where(fixed.unsqueeze(1), prior, nearest_ratios(predicted, limits)), allowed & ~fixed
