"""A network that follows another: its weights are the running average of what the other's were, step by step.

Such a teacher changes slowly, so one bad step of the network that learns does not change what it is taught next
(Tarvainen and Valpola, NeurIPS 2017).
"""

import copy

import torch
from torch import Tensor, nn


class Student(nn.Module):
    """A copy of a network that learns in its place, called as the network is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.student = copy.deepcopy(net)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, …) -> logits (B, K, …)."""
        return self.student(image)


def frozen(net: nn.Module) -> nn.Module:
    """The network itself, in evaluation mode, with weights that no gradient reaches."""
    return net.requires_grad_(False).eval()


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, decay: float, buffers: bool = True) -> None:
    """Moves each weight of `average` towards that of the network: θ ← decay · θ + (1 − decay) · θ_net.

    Buffers, such as the statistics of batch norms, become those of the network, unless `average` keeps its own. Never
    waits for the device.
    """
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for own, other in zip(average.buffers(), net.buffers(), strict=True) if buffers else ():
        own.copy_(other)
