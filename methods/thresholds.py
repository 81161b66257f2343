"""The threshold above which a network believes itself: fixed, or drawn from a posterior that is held to a prior."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from methods.feature_dropout import width_of
from methods.objective import LossSum
from methods.settings import Settings, flag
from nets.probabilities import log_probabilities, one_hot
from processes.errors import UserError
from utils import listing

DIMENSIONS = 256  # of the latent threshold
SOFTNESS = 0.1  # s of the straight-through comparison, a difference of probabilities
LEAST = 1e-3  # of a deviation, which as 0 has no KL, and of a temperature


class Gaussian(NamedTuple):
    """Independent normal distributions; the two broadcast."""

    mean: Tensor
    sd: Tensor

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self ‖ other) of each distribution, in closed form, of the broadcast shape of both.

        As published, no gradient goes through the logarithm of the other's deviation.
        """
        distance = (self.sd**2 + (self.mean - other.mean) ** 2) / (2 * other.sd**2)
        return torch.log(other.sd.detach() / self.sd) + distance - 0.5


class WithThreshold(nn.Module):
    """The network and the linear layers that predict its threshold, called as one."""

    def __init__(self, net: nn.Module, learnt: Sequence[str], alone: bool) -> None:
        """learnt: which of "mean" and "log_variance" have a layer; alone: whether no gradient leaves the layers."""
        super().__init__()
        width = width_of(net.classifier)
        self.net, self.alone = net, alone
        self.head = nn.ModuleDict({name: nn.Linear(width, DIMENSIONS) for name in learnt})

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,C,…) -> logits (B,K,…), and (B,256) of each layer, from the map that the classifier reads."""
        logits, features = self.net.with_features(image)
        pooled = (features.detach() if self.alone else features).flatten(2).mean(2)
        return logits, {name: layer(pooled) for name, layer in self.head.items()}


@dataclass(frozen=True, kw_only=True)
class ThresholdSettings(Settings):
    """What pseudo labels are told: of the threshold, its prior and its posterior, and of what is learnt from them."""

    threshold: Literal["fixed", "learnt"] = flag("fixed", "SegPL, or SegPL-VI")
    threshold_value: float = flag(0.5, "fixed: probability from which on a class is believed")
    prior_mu: float = flag(0.7, "learnt: mean of its prior")
    prior_sd: float = flag(0.15, "learnt: standard deviation of its prior")
    pri_mu: Literal[0, 1] = flag(0, "prior mean: 0 given, 1 mean foreground probability")
    pri_sd: Literal[0, 1] = flag(0, "prior deviation: 0 given, 1 min(μ, 1 − μ)/2 of its mean")
    post_mu: Literal[0, 1, 2] = flag(0, "posterior: 0 learnt, 1 as --pri_mu 1, 2 --prior_mu")
    post_sd: Literal[0, 1, 2] = flag(0, "posterior: 0 learnt, 1 as --pri_sd 1, 2 --prior_sd")
    straight_through: bool = flag(False, "learnt: the losses on the pseudo labels move it too")
    threshold_moves: Literal["head", "network"] = flag(
        "head", "where the gradient of the KL ends: in the layers of the threshold, or in the network (published)"
    )
    threshold_draw: Literal["held", "published"] = flag(
        "held", "a draw further than two deviations from the mean of its prior: becomes that mean, or stays as it is"
    )
    alpha: float = flag(1.0, "weight of all that is without labels, after its warm-up")
    beta: float = flag(1.0, "weight of the losses on the pseudo labels")
    kl_weight: float = flag(0.1, "weight of the KL of the threshold")
    warmup_start: float = flag(0.0, "share of the training before α rises")
    warmup: float = flag(0.0, "share of the training in which α rises")
    temperature: float = flag(1.0, "of the probabilities that are compared with the threshold")
    conf_lower: float = flag(0.0, "thresholds up to this one teach nothing")
    skip_empty: float = flag(
        0.0,
        "ground truth with a smaller share of foreground makes all terms of its step 0, pseudo labels their own "
        "(published 0.005); the optimiser steps on (published: it does not)",
    )

    @property
    def predicts_nothing(self) -> bool:
        """Whether no layer predicts anything of the posterior."""
        return self.post_mu > 0 and self.post_sd > 0

    def prior(self, confidence: Tensor) -> Gaussian:
        """Two scalars: as given, or from the mean foreground probability."""
        mean = confidence if self.pri_mu else torch.full_like(confidence, self.prior_mu)
        return Gaussian(mean, spread(mean) if self.pri_sd else torch.full_like(mean, self.prior_sd))

    def posterior(self, confidence: Tensor, head: Mapping[str, Tensor], count: int) -> Gaussian:
        """(count, 256) posterior of the threshold: from the head, from the confidence, or as the prior is given."""
        by_flags = Gaussian(*(torch.full_like(confidence, value) for value in (self.prior_mu, self.prior_sd)))
        mean = head["mean"].float().relu() if self.post_mu == 0 else (confidence, by_flags.mean)[self.post_mu - 1]
        sd = sd_of(head["log_variance"]) if self.post_sd == 0 else (spread(mean), by_flags.sd)[self.post_sd - 1]
        return Gaussian(mean.expand(count, DIMENSIONS), sd.expand(count, DIMENSIONS))


def check_settings(settings: ThresholdSettings) -> None:
    """Raises UserError that lists every setting out of range."""
    limits = dict.fromkeys(
        ("prior_mu", "threshold_value", "conf_lower", "skip_empty", "warmup_start", "warmup"), (0, 1)
    )
    limits |= dict.fromkeys(("alpha", "beta", "kl_weight", "batch_u"), (0, math.inf))
    limits |= dict.fromkeys(("prior_sd", "temperature"), (LEAST, math.inf))
    wrong = [
        f"--{name} {getattr(settings, name):g} ({low:g} to {high:g})"
        for name, (low, high) in limits.items()
        if not low <= getattr(settings, name, low) <= high
    ]
    is_fixed = settings.threshold == "fixed"
    if is_fixed and not settings.conf_lower < settings.threshold_value < 1:
        wrong.append(
            f"--threshold_value {settings.threshold_value:g} (above --conf_lower {settings.conf_lower:g}, below 1)"
        )
    if settings.straight_through and (is_fixed or settings.predicts_nothing):
        wrong.append("--straight_through (only with --threshold learnt, and --post_mu 0 or --post_sd 0)")
    if is_fixed and settings.threshold_draw != "held":
        wrong.append(f"--threshold_draw {settings.threshold_draw} (only with --threshold learnt)")
    if wrong:
        raise UserError(
            f"--method {settings.method} cannot have {listing(wrong)}; what it can have stands in brackets."
        )


def ramp_up(share: float, start: float, length: float) -> float:
    """0 before the share `start` of a training, 1 after `start` + `length`, linear between."""
    return min(max((share - start) / length, 0.0), 1.0) if length else float(share >= start)


def mean_foreground(logits: Sequence[Tensor]) -> Tensor:
    """Scalar: mean probability of the foreground over all images."""
    return 1 - torch.cat([log_probabilities(each)[:, 0] for each in logits]).exp().mean()


def sd_of(log_variance: Tensor) -> Tensor:
    """The standard deviation of each logarithm of a variance, of any shape, in fp32."""
    return (log_variance.float() / 2).exp()


def spread(mean: Tensor) -> Tensor:
    """The deviation that keeps mean ± 2 sd within 0..1, of the shape of `mean`."""
    return (torch.minimum(mean, 1 - mean) / 2).clamp_min(LEAST)


def pseudo_label(probs: Tensor, threshold: Tensor) -> Tensor:
    """(B,K,…) -> (B,…) int64: the most probable class of the foreground where it exceeds the threshold, else 0."""
    confidence, best = probs[:, 1:].max(1)
    return torch.where(confidence > threshold, best + 1, 0)


def straight_through(probs: Tensor, threshold: Tensor) -> Tensor:
    """(B,K,…) shares: those of `pseudo_label`, with the gradient by the threshold that a soft comparison has."""
    confidence, best = probs[:, 1:].max(1, keepdim=True)
    believed = torch.sigmoid((confidence - threshold) / SOFTNESS)
    foreground = one_hot(best.squeeze(1), probs.shape[1] - 1, probs.dtype)
    soft = torch.cat([1 - believed, believed * foreground], 1)
    return one_hot(pseudo_label(probs, threshold), probs.shape[1], probs.dtype) + (soft - soft.detach())


def check_losses(loss: LossSum, settings: ThresholdSettings, sized: bool) -> None:
    """Raises UserError for losses that cannot learn from pseudo labels; `sized`: whether bounds are there for them."""
    reasons = {
        "distance maps": [part.needs_maps for part in loss.losses],
        "sizes of images without labels": [part.needs_bounds and not sized for part in loss.losses],
        "class numbers, where --straight_through gives shares": [
            part.needs_target and not part.takes_shares and settings.straight_through for part in loss.losses
        ],
    }
    wrong = [
        f"{type(part).__name__} needs {reason}"
        for reason, found in reasons.items()
        for part, is_wrong in zip(loss.losses, found, strict=True)
        if is_wrong
    ]
    if wrong:
        raise UserError(
            f"--method {settings.method} computes the same losses on its pseudo labels, and {listing(wrong)}. Take "
            "CrossEntropy and DiceLoss, as in [('DiceLoss', {'idc': [1], 'smooth': 1}, 0.5), ('CrossEntropy', "
            "{'idc': [0, 1]}, 0.5)]."
        )
