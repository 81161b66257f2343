"""Networks that tell the predictions of two sites apart, and the settings of a training against them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.settings import Settings, flag
from nets.base import batch_norms
from nets.probabilities import log_probabilities
from nets.weight_checks import within_memory
from processes.errors import UserError


class FCDiscriminator(nn.Sequential):
    """The fully convolutional discriminator of AdaptSegNet (Tsai et al., CVPR 2018), without its last upsampling.

    Five convolutions 4x4, nF, 2nF, 4nF, 8nF channels and 1, LeakyReLU(0.2) between them. Stride 2 is the published
    one; the published source-free experiments on medical images hold the same network with stride 1.
    """

    def __init__(self, n_channels: int, nF: int = 64, stride: int = 2) -> None:
        layers: list[nn.Module] = []
        widths = [n_channels, nF, 2 * nF, 4 * nF, 8 * nF]
        for n_in, n_out in pairwise(widths):
            layers += [nn.Conv2d(n_in, n_out, 4, stride, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, stride, padding=1))
        self.stride = stride
        self.least = {1: 6, 2: 32}[stride]

    def forward(self, maps: Tensor) -> Tensor:
        """(B,K,W,H) -> (B,1,w,h), one logit a patch: w = W/32 rounded down with stride 2, W-5 with stride 1.

        Raises UserError for maps too small for five convolutions.
        """
        width, height = maps.shape[-2:]
        if min(width, height) < self.least:
            raise UserError(
                f"The discriminator with stride {self.stride} needs at least {self.least} pixels along each axis, and "
                f"an image has {width} x {height}. Give {'--d_stride 1' if self.stride == 2 else 'larger images'}."
            )
        return super().forward(maps)


class Levels(nn.Module):
    """The segmentation network and its heads on coarser maps, called as one."""

    def __init__(self, net: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.net, self.heads = net, nn.ModuleList(heads)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H) -> logits (B,K,W,H) of each level, the network's own first."""
        return self.net.levels(image, self.heads)


WIDEST = 1024  # channels of the first layer; the last but one has eight times as many


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(Settings):
    """What a training against discriminators is told."""

    lambda_adv: tuple[float, ...] = flag((1e-3,), "λ_adv of each level, the network's own first")
    lambda_seg: float = flag(0.1, "weight of the losses on the source at the coarser levels")
    lambda_ent: float = flag(0.0, "weight of the target's entropy (MinEnt)")
    d_input: Literal["softmax", "entropy"] = flag("softmax", "what discriminators see")
    gan: Literal["vanilla", "ls"] = flag("vanilla", "cross-entropy or least squares")
    d_l_rate: float = flag(1e-4, "learning rate of the discriminators (Adam, betas 0.9, 0.99)")
    d_width: int = flag(64, "channels of the discriminators' first layer")
    d_stride: Literal[1, 2] = flag(2, "of the discriminators' convolutions")
    bn_stats: Literal["target", "both"] = flag(
        "target", "whose images the running statistics of the batch norms follow (published: both)"
    )
    iter_size: int = flag(1, "batches whose gradients make one update")

    def discriminators(self) -> nn.ModuleList:
        """One for each level. Raises UserError for more than this machine can hold."""

        def make() -> nn.ModuleList:
            return nn.ModuleList(FCDiscriminator(self.n_class, self.d_width, self.d_stride) for _ in self.lambda_adv)

        return within_memory(make, f"The discriminator of --method {self.method}", "a smaller --d_width")

    def view(self, logits: Tensor) -> Tensor:
        """(B, K, W, H) logits -> (B, K, W, H): what a discriminator sees of a prediction, in fp32."""
        return log_probabilities(logits).exp() if self.d_input == "softmax" else entropy_map(logits)

    def error(self, verdict: Tensor, truth: float) -> Tensor:
        """Scalar: how far a discriminator's map (B,1,w,h) is from saying `truth` everywhere."""
        goal = torch.full_like(verdict, truth)
        return (F.binary_cross_entropy_with_logits if self.gan == "vanilla" else F.mse_loss)(verdict, goal)


def check_settings(settings: AdversarialSettings) -> None:
    """Raises UserError for a setting out of range."""
    for name, low in {"iter_size": 1, "d_width": 1, "lambda_seg": 0, "lambda_ent": 0, "d_l_rate": 0}.items():
        if getattr(settings, name) < low:
            raise UserError(f"--{name} is {getattr(settings, name):g}; it must be at least {low}.")
    if settings.d_width > WIDEST:
        raise UserError(f"--d_width is {settings.d_width}; it must be at most {WIDEST}.")
    if settings.crop:
        raise UserError(
            f"--method {settings.method} judges the maps of slices, and --crop makes a run of volumes; leave it out, "
            "or take another method (sfda, self_training)."
        )
    if min(settings.lambda_adv) < 0:
        raise UserError(f"--lambda_adv has one weight a level, none of them below 0; got {settings.lambda_adv}.")


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """In this block batch norms see images and do not remember them: evaluation uses the target's statistics."""
    norms = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in batch_norms(module)]
    for norm, *_ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, seen in norms:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen)  # by which a plain average divides


def entropy_map(logits: Tensor) -> Tensor:
    """(B, K, W, H) logits -> (B, K, W, H): −p log p / log K. Over the classes it adds up to the entropy, at most 1."""
    log_p = log_probabilities(logits)
    return -(log_p.exp() * log_p) / math.log(logits.shape[1])
