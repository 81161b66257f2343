"""Which pixels of a pseudo label to believe: those that stand dropout, look like their class, and are sure of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nets.probabilities import log_probabilities, one_hot

BINS = 1000  # of probabilities, in which quantiles are counted
SMOOTH = 2.0  # by which logits are divided where their spread is measured


@dataclass(frozen=True)
class Guess:
    """What a network says of B images when features are dropped, in the mean of several passes.

    label (B, …) the most probable class; confidence (B, …) its probability; spread (B, …) the standard deviation of
    its probability over the passes, at logits that are divided by SMOOTH
    """

    label: Tensor
    confidence: Tensor
    spread: Tensor

    @property
    def bin(self) -> Tensor:
        """(B, …) int64: in which of BINS equal parts of 0..1 the confidence lies."""
        return (self.confidence * BINS).long().clamp_max(BINS - 1)


class Passes:
    """Logits (B, K, …) of one pass after another; only sums of them are kept."""

    def __init__(self) -> None:
        self.count, self.sums = 0, None

    def add(self, logits: Tensor) -> None:
        plain, smooth = (log_probabilities(each).exp() for each in (logits, logits / SMOOTH))
        now = torch.stack([plain, smooth, smooth**2])
        self.sums = now if self.sums is None else self.sums + now
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """(B, K, …) probabilities, in the mean of the passes."""
        return self.sums[0] / self.count

    def guess(self) -> Guess:
        """What they say together; of one pass the spread is 0."""
        square = (self.sums[2] - self.sums[1] ** 2 / self.count).clamp_min(0) / max(self.count - 1, 1)
        confidence, label = self.mean.max(1)
        return Guess(label, confidence, square.gather(1, label.unsqueeze(1)).squeeze(1).sqrt())


def weighted_features(guess: Guess, features: Tensor, n_class: int, most: float) -> Tensor:
    """(B, K, C + 1) float64: of each image and class Σ w f over its pixels, and Σ w at the end.

    w is the confidence where the spread is below `most`, else 0; features f: (B, C, …)
    """
    weight = torch.where(guess.spread < most, guess.confidence, 0).unsqueeze(1) * one_hot(guess.label, n_class)
    flat = torch.cat([features, torch.ones_like(features[:, :1])], 1).flatten(2)
    return torch.einsum("bki,bci->bkc", weight.flatten(2).double(), flat.double())


def counted_bins(guess: Guess, n_class: int) -> Tensor:
    """(B, K, BINS) int64: how many pixels of each image and class have a confidence in each bin."""
    place = (guess.label * BINS + guess.bin).flatten(1)
    counts = torch.zeros(len(place), n_class * BINS, dtype=torch.int64, device=place.device)
    return counts.scatter_add_(1, place, torch.ones_like(place)).unflatten(1, (n_class, BINS))


def prototypes(sums: Tensor) -> Tensor:
    """(K, C + 1) of `weighted_features`, over a whole set -> (K, C) mean features; NaN for a class without weight."""
    return (sums[:, :-1] / sums[:, -1:]).float()


def quantile_bins(counts: Tensor, quantile: float) -> Tensor:
    """(K, BINS) counts -> (K,) int64: the bin of each class below which at most this share of its pixels lies."""
    return (counts.cumsum(1) <= quantile * counts.sum(1, keepdim=True)).sum(1)


def nearest(features: Tensor, prototypes: Tensor) -> Tensor:
    """Features (B, C, …), (K, C) prototypes -> (B, …) the class whose prototype is nearest, in squared distance."""
    there = prototypes.isfinite().all(1)
    known = torch.where(there.unsqueeze(1), prototypes, 0)
    product = torch.einsum("kc,bci->bki", known, features.flatten(2))
    near = 2 * product - known.square().sum(1).unsqueeze(1)  # what all classes have in common is left out
    best = torch.where(there.unsqueeze(1), near, -torch.inf).max(1).indices
    return best.unflatten(1, features.shape[2:])


def believed(guess: Guess, features: Tensor, prototypes: Tensor, bins: Tensor, most: float) -> Tensor:
    """(B, …) bool: the spread is below `most`, no prototype nearer than the label's, the confidence in `bins` or above.

    bins: (K,), the lowest of each class
    """
    sure = (guess.spread < most) & (guess.bin >= bins[guess.label])
    return sure & (nearest(features, prototypes) == guess.label)
