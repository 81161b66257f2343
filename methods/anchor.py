"""The pull back to the network that a training started from."""

from collections.abc import Iterable

import torch
from torch import nn


class Anchor:
    """Draws parameters back to what they were when it was made, a little after each step: θ ← (1 − share) θ + share θ₀.

    So a network that adapts for long forgets what it learnt long ago, and not what it came with (ROID, Marsden et al.,
    WACV 2024; CMF, Lee and Chang, ICLR 2024). Parameters that stand still and buffers are left alone.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], share: float) -> None:
        """share: how much of the way back one step goes, 0 to 1; with 0 nothing is kept and nothing done."""
        self.share = share
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad] if share else []
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def pull(self) -> None:
        """Goes that much of the way. Never waits for the device."""
        if self.parameters:
            torch._foreach_lerp_(self.parameters, self.start, self.share)
