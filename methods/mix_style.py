"""A source network that transfers: images exchange the styles of its first maps (MixStyle, Zhou et al., ICLR 2021).

In a map f of an image the mean μ and the deviation σ of each channel over the pixels are taken for its style. After
each of the first two blocks of the encoder, with probability p, every image takes on a mixed one,
    (f − μ) / σ · (λ σ + (1 − λ) σ') + λ μ + (1 − λ) μ',         λ ~ Beta(α, α)
where μ' and σ' are those of another image of the batch. No gradient flows through a style. What is trained so is an
ordinary network: nothing is mixed in evaluation.

Of a network without an encoder of its own, the first two norm layers are followed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from datasets.streams import Batch
from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import flag
from methods.supervised import Supervised
from processes.errors import UserError
from processes.team import ALONE, Team

BLOCKS = 2  # after which styles are mixed
NOTHING = (None,) * BLOCKS  # is mixed
LEAST = 1e-6  # added to a variance


class Mixing(NamedTuple):
    """How the styles of B images are mixed after one block.

    order: (B,) int64, whose style each image takes; share: (B,) λ, how much of its own it keeps
    """

    order: Tensor
    share: Tensor


@METHODS.register()
class MixStyle(Supervised):
    """Supervised learning by a network whose first maps exchange their styles."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Supervised.Settings):
        style_share: float = flag(0.5, "probability that the styles of a batch are mixed after a block")
        style_alpha: float = flag(0.1, "α of the Beta(α, α) that an image's share of its own style is drawn from")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        check_settings(settings)
        super().__init__(net, loss, settings, team, WithStyles(net, team))

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        count = len(batch.rows)
        with self.settings.autocast():
            logits = self.model(self.settings.laid_out(batch.image), self.mixings(count, batch.image.device))
        logits = self.team.gather(logits, count)
        return logits, self.loss(logits, batch.targets, batch.bounds)

    def mixings(self, count: int, device: torch.device) -> list[Mixing | None]:
        """Of each block, for a batch of `count` images; None where nothing is mixed."""
        rng, settings, found = np.random.default_rng(self.step_seed), self.settings, []
        for _ in range(BLOCKS):
            share = rng.beta(settings.style_alpha, settings.style_alpha, count).astype(np.float32)
            is_mixed, order = rng.random() < settings.style_share, rng.permutation(count)
            drawn = (torch.from_numpy(each).to(device, non_blocking=True) for each in (order, share))
            found.append(Mixing(*drawn) if is_mixed else None)
        return found


class WithStyles(nn.Module):
    """The network, called with how the styles of its first maps are mixed; called without, it is as it was."""

    def __init__(self, net: nn.Module, team: Team = ALONE) -> None:
        super().__init__()
        self.net, self.team, self.mixings = net, team, NOTHING
        for number, block in enumerate(first_blocks(net)):
            block.register_forward_hook(partial(self._mix, number))

    def forward(self, image: Tensor, mixings: Sequence[Mixing | None] = NOTHING) -> Tensor:
        """Images (b, C, …) of this process -> logits (b, K, …). mixings: of the whole batch, one a block."""
        self.mixings = mixings
        try:
            return self.net(image)
        finally:
            self.mixings = NOTHING

    def _mix(self, number: int, block: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor | None:
        mixing = self.mixings[number]
        return None if mixing is None else mixed(maps, mixing, self.team)


def mixed(maps: Tensor, mixing: Mixing, team: Team = ALONE) -> Tensor:
    """The maps (b, C, …) of this process with mixed styles; mixing: of the whole batch."""
    axes, count = tuple(range(2, maps.ndim)), len(mixing.order)
    own = maps.detach().float()
    style = torch.stack([own.mean(axes), (own.var(axes, correction=0) + LEAST).sqrt()], 1)  # (b, 2, C)
    share = team.share(count)
    others = team.gather(style, count)[mixing.order][share]
    blend = torch.lerp(others, style, mixing.share[share, None, None])
    (mean, deviation), (new_mean, new_deviation) = (
        each.view(*each.shape, *[1] * len(axes)).unbind(1) for each in (style, blend)
    )
    return ((maps.float() - mean) / deviation * new_deviation + new_mean).to(maps.dtype)


def first_blocks(net: nn.Module) -> list[nn.Module]:
    """The modules after whose maps styles are mixed. Raises UserError where there is none."""
    blocks = net.encoder if net.n_blocks else [part for part in net.modules() if isinstance(part, _NormBase)]
    found = list(blocks)[:BLOCKS]
    if not found:
        raise UserError(
            f"--method mix_style mixes maps of an encoder or of norm layers, and {type(net).__name__} has neither: "
            "take UNet, or --method supervised."
        )
    return found


def check_settings(settings: MixStyle.Settings) -> None:
    """Raises UserError for a number out of range."""
    if settings.batch_size < 2:
        raise UserError("--method mix_style mixes images of a batch: give --batch_size 2 or more.")
    if not 0 <= settings.style_share <= 1:
        raise UserError(f"--style_share is {settings.style_share:g}; it lies between 0 and 1.")
    if settings.style_alpha <= 0:
        raise UserError(f"--style_alpha is {settings.style_alpha:g}; give a number above 0, or --method supervised.")
