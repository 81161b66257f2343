"""The alarms of a run that no label tells of its harm: an adaptation that loses touch with the network it started from.

The source network, that of --model_weights before the first step, predicts the target's images once; what an epoch
predicts is compared with that, and with the prior. No ground truth is looked at.

Where the limits come from: 51 adaptations of small networks between three kinds of real microscopy, from CT to MR, and
of the hippocampus (entropy and class-ratio KL with good and bad priors, entropy alone, TENT, SHOT, learning rate 0),
517 epochs. Of those that had lost more than 0.1 of Dice, 77 % agreed with their source network by a kappa below 0.2 (at
most "slight", Landis and Koch 1977); of those that had gained more than 0.02, 8 %, all of one run. No epoch that gained
had a class at more than twice the odds of both source network and prior, or at less than half; on a set of 24 images
the first epoch of a run that went well had 4.4 times. What leaves the masks where they were and spoils their borders is
not noticed: 0.1 of Dice were lost so within one site.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils import typed

AGREEMENT = 0.2  # kappa of the predictions and the source network's, below which they have little in common
FAR, FAR_ALONE = np.log(5), np.log(10)  # times the odds of source network and prior; of the source network alone
DOUBTFUL = 2  # times the share of a class, by which prior and source network may lie apart
LEAST = 1e-4  # of the pixels: what counts as none at all
KEPT = 2**18  # pixels of an image, or voxels of a volume, that are compared at most


class CollapseAlarm:
    """Compares the share of the pixels that each class is given with its prior and with the source network's.

    A class vanishes (floods) if the odds of its share are five times smaller (larger) than those of both. Without a
    prior they must be ten times smaller (larger) than the source network's. Odds are compared, so that a background
    that floods is as far off as an organ that vanishes. Without ground truth, a loss that falls while this happens is
    the way entropy minimisation fails: one class everywhere has no entropy.
    """

    def __init__(self, prior: np.ndarray | None) -> None:
        """prior: (K,) share of each class over the training slices, None where nothing is known of it."""
        self.prior = prior
        self.source: np.ndarray | None = None

    def begin(self, counts: np.ndarray) -> None:
        """counts: (K,) pixels that the source network gives each class."""
        self.source = _shares(counts[None])

    def doubt(self) -> str:
        """One sentence where prior and source network give a class shares that lie far apart; else nothing.

        Which of them is wrong no label tells. A uniform prior is no statement about the images, and is not doubted.
        """
        if self.prior is None or np.ptp(self.prior) < LEAST:
            return ""
        pairs = np.stack([self.prior, self.source]).clip(LEAST)
        apart = pairs.max(0) / pairs.min(0)
        far = [k for k in range(1, len(apart)) if apart[k] > DOUBTFUL]
        if not far:
            return ""
        shares = [
            f"class {k} {100 * self.prior[k]:.3g} % of the pixels by the prior, {100 * self.source[k]:.3g} % by the "
            "source network"
            for k in far
        ]
        return (
            f"Prior and source network do not go together on these images: {'; '.join(shares)}. One of them is wrong "
            "for this set: look at the masks of the source network (--method noadap), and at how the prior was made."
        )

    def alarms(self, counts: np.ndarray) -> list[str]:
        """What is alarming in an epoch's predictions, one sentence a class; [] if nothing is.

        counts: (steps, K) pixels predicted in each step, in their order; the second half of an epoch is what it led
        to. A validation is one step.
        """
        now = _shares(counts[len(counts) // 2 :])
        references = [self.source] if self.prior is None else [self.source, self.prior]
        moved = np.array([_log_odds(now) - _log_odds(reference) for reference in references])
        far = FAR_ALONE if self.prior is None else FAR
        alarms = []
        for k in np.flatnonzero((moved > far).all(0) | (moved < -far).all(0)):
            what = "floods" if moved[0, k] > 0 else "vanishes"
            prior = "" if self.prior is None else f", its prior is {100 * self.prior[k]:.3g} %"
            source = f"{100 * self.source[k]:.3g} % with the source network"
            alarms.append(f"class {k} {what}: {100 * now[k]:.3g} % of the pixels, {source}{prior}")
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"source": None if self.source is None else self.source.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        (source,) = typed(state, {"source": Sequence[float] | None})
        self.source = None if source is None else np.array(source)


class SourceMaps:
    """What the source network predicts on the validation images, and what another one gives the same pixels."""

    def __init__(self, n_class: int) -> None:
        self.n_class = n_class
        self.maps: list[Tensor] = []
        self.pairs: Tensor | None = None  # (K * K,) pixels by the source network's class and the other one's

    def keep(self, number: int, labels: Tensor) -> None:
        """The source network's class numbers (B, W, H) or (B, D, W, H) of the batch of this number."""
        self.maps.append(_thinned(labels).to(torch.uint8))

    def compare(self, number: int, labels: Tensor) -> None:
        """Counts which classes another network gives the pixels of a batch. Never waits for the device.

        number: the batch's, as in `keep`; labels: the other network's class numbers (B, W, H) or (B, D, W, H)
        """
        cell = (self.maps[number].long() * self.n_class + _thinned(labels)).flatten()
        if self.pairs is None:
            self.pairs = torch.zeros(self.n_class**2, dtype=torch.int64, device=labels.device)
        self.pairs.scatter_add_(0, cell, torch.ones_like(cell))

    def take(self) -> np.ndarray | None:
        """(K, K) pixels by the source network's class and the other's, since this was asked last; None without any."""
        pairs, self.pairs = self.pairs, None
        return None if pairs is None else pairs.view(self.n_class, self.n_class).cpu().numpy()


def _thinned(labels: Tensor) -> Tensor:
    """Every n-th pixel along each axis, such that KEPT of an image are left at most."""
    axes, pixels = labels.ndim - 1, labels[0].numel()
    step = 1
    while pixels > KEPT * step**axes:
        step += 1
    return labels[(slice(None), *[slice(None, None, step)] * axes)]


def kappa(pairs: np.ndarray) -> float:
    """Agreement beyond chance (Cohen 1960) of two label maps: 1 is the same, 0 what their shares alone would give.

    pairs: (K, K) pixels by the class in the one and in the other. Two maps of one class each are the same, or have 0.
    """
    share = pairs / pairs.sum()
    observed, chance = share.trace(), float(share.sum(0) @ share.sum(1))
    return float((observed - chance) / (1 - chance)) if chance < 1 else float(observed)


def estranged(agreement: float) -> list[str]:
    """What is alarming in an agreement with the source network; NaN is not known, and no alarm."""
    if not agreement < AGREEMENT:
        return []
    return [
        "the predictions agree with the source network's little more than by chance "
        f"(kappa {agreement:.2f}; 1 would be the same, alarm below {AGREEMENT:g})"
    ]


class OneClass:
    """Notices a network that gives every pixel the same class, validation after validation."""

    def __init__(self, n_epoch: int) -> None:
        self.patience = max(5, n_epoch // 4)  # epochs; trainings may begin so
        self.n_epoch = n_epoch
        self.since: int | None = None  # the epoch in which it began
        self.has_warned = False

    def warning(self, counts: np.ndarray, epoch: int) -> str:
        """What to say after this epoch's validation, once in a run; else nothing. counts: (K,) pixels predicted."""
        predicted = np.flatnonzero(counts)
        if len(predicted) != 1:
            self.since = None
            return ""
        self.since = epoch if self.since is None else self.since
        lasted, is_last = epoch - self.since + 1, epoch == self.n_epoch - 1
        if self.has_warned or (lasted < self.patience and not is_last):
            return ""
        self.has_warned = True
        how_long = f"For {lasted} epochs the network has given" if lasted > 1 else "The network gives"
        return (
            f"{how_long} every pixel of the validation images class {predicted[0]}, and no other class is predicted. "
            "Look at the labels (data-report), the weights of the classes in the loss, --l_rate, and at what --augment "
            "does."
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"since": self.since, "told": self.has_warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.since, self.has_warned = typed(state, {"since": int | None, "told": bool})


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(0)
    return total / total.sum()


def _log_odds(share: np.ndarray) -> np.ndarray:
    share = share.clip(LEAST, 1 - LEAST)
    return np.log(share / (1 - share))


def prior_share(bounds: Sequence[np.ndarray | None], compares_ratios: Sequence[bool]) -> np.ndarray | None:
    """(K,) mean prior ratio over the slices, out of the first loss that compares ratios with one; else None.

    bounds: per loss (N, K, 2) pixels or None, as `lay_bounds` of datasets/slices.py gives them.
    """
    for bound, compares in zip(bounds, compares_ratios, strict=True):
        if bound is not None and compares:
            sizes = bound.mean(2)  # the middle, where there is room
            return (sizes / sizes.sum(1, keepdims=True)).mean(0)
    return None
