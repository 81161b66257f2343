"""The threshold above which a network believes itself: fixed, or drawn from a posterior that is held to a prior."""

import math
from argparse import Namespace, _ArgumentGroup
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
        width = next(part.in_channels for part in net.classifier.modules() if hasattr(part, "in_channels"))
        self.net, self.alone = net, alone
        self.head = nn.ModuleDict({name: nn.Linear(width, DIMENSIONS) for name in learnt})

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,C,…) -> logits (B,K,…), and (B,256) of each layer, from the map that the classifier reads."""
        logits, features = self.net.with_features(image)
        pooled = (features.detach() if self.alone else features).flatten(2).mean(2)
        return logits, {name: layer(pooled) for name, layer in self.head.items()}


def add_threshold_arguments(group: _ArgumentGroup, warmup_start: float, warmup: float) -> None:
    add = group.add_argument
    add("--threshold", choices=("fixed", "learnt"), default="fixed", help="SegPL, or SegPL-VI")
    add("--threshold_value", type=float, default=0.5, help="fixed: probability from which on a class is believed")
    add("--prior_mu", type=float, default=0.7, help="learnt: mean of its prior")
    add("--prior_sd", type=float, default=0.15, help="learnt: standard deviation of its prior")
    add("--pri_mu", type=int, choices=(0, 1), default=0, help="prior mean: 0 given, 1 mean foreground probability")
    add("--pri_sd", type=int, choices=(0, 1), default=0, help="prior deviation: 0 given, 1 min(μ, 1 − μ)/2 of its mean")
    add("--post_mu", type=int, choices=(0, 1, 2), default=0, help="posterior: 0 learnt, 1 as --pri_mu 1, 2 --prior_mu")
    add("--post_sd", type=int, choices=(0, 1, 2), default=0, help="posterior: 0 learnt, 1 as --pri_sd 1, 2 --prior_sd")
    add("--straight_through", action="store_true", help="learnt: the losses on the pseudo labels move it too")
    add(
        "--threshold_moves",
        choices=("head", "network"),
        default="head",
        help="where the gradient of the KL ends: in the layers of the threshold, or in the network (published)",
    )
    add(
        "--threshold_draw",
        choices=("held", "published"),
        default="held",
        help="a draw further than two deviations from the mean of its prior: becomes that mean, or stays as it is",
    )
    add("--alpha", type=float, default=1.0, help="weight of all that is without labels, after its warm-up")
    add("--beta", type=float, default=1.0, help="weight of the losses on the pseudo labels")
    add("--kl_weight", type=float, default=0.1, help="weight of the KL of the threshold")
    add("--warmup_start", type=float, default=warmup_start, help="share of the training before α rises")
    add("--warmup", type=float, default=warmup, help="share of the training in which α rises")
    add("--temperature", type=float, default=1.0, help="of the probabilities that are compared with the threshold")
    add("--conf_lower", type=float, default=0.0, help="thresholds up to this one teach nothing")
    add(
        "--skip_empty",
        type=float,
        default=0.0,
        help="ground truth with a smaller share of foreground makes all terms of its step 0, pseudo labels their own "
        "(published 0.005); the optimiser steps on (published: it does not)",
    )


def check_settings(args: Namespace) -> None:
    """Raises UserError that lists every setting out of range."""
    limits = dict.fromkeys(
        ("prior_mu", "threshold_value", "conf_lower", "skip_empty", "warmup_start", "warmup"), (0, 1)
    )
    limits |= dict.fromkeys(("alpha", "beta", "kl_weight", "batch_u"), (0, math.inf))
    limits |= dict.fromkeys(("prior_sd", "temperature"), (LEAST, math.inf))
    wrong = [
        f"--{name} {getattr(args, name):g} ({low:g} to {high:g})"
        for name, (low, high) in limits.items()
        if not low <= getattr(args, name, low) <= high
    ]
    is_fixed = args.threshold == "fixed"
    if is_fixed and not args.conf_lower < args.threshold_value < 1:
        wrong.append(f"--threshold_value {args.threshold_value:g} (above --conf_lower {args.conf_lower:g}, below 1)")
    if args.straight_through and (is_fixed or (args.post_mu and args.post_sd)):
        wrong.append("--straight_through (only with --threshold learnt, and --post_mu 0 or --post_sd 0)")
    if is_fixed and args.threshold_draw != "held":
        wrong.append(f"--threshold_draw {args.threshold_draw} (only with --threshold learnt)")
    if wrong:
        raise UserError(f"--method {args.method} cannot have {listing(wrong)}; what it can have stands in brackets.")


def ramp_up(share: float, start: float, length: float) -> float:
    """0 before the share `start` of a training, 1 after `start` + `length`, linear between."""
    return min(max((share - start) / length, 0.0), 1.0) if length else float(share >= start)


def mean_foreground(logits: Sequence[Tensor]) -> Tensor:
    """Scalar: mean probability of the foreground over all images."""
    return 1 - torch.cat([log_probabilities(each)[:, 0] for each in logits]).exp().mean()


def deviation(log_variance: Tensor) -> Tensor:
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
