"""Springs that hold weights near where they began, the ones that matter more firmly (EWC, EATA)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Springs:
    """One on each weight: Σ F (θ − θ₀)². F is the mean of squared gradients, the diagonal of a Fisher matrix."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """parameters: as they are now, which is where the springs end"""
        self.parameters = list(parameters)
        self.origin = [parameter.detach().clone() for parameter in self.parameters]
        self.firmness = [torch.zeros_like(parameter) for parameter in self.origin]
        self.measured = 0  # steps that it is the mean of

    def energy(self) -> Tensor:
        """The sum, a scalar with a gradient."""
        springs = zip(self.firmness, self.parameters, self.origin, strict=True)
        return torch.stack([(f * (now - then) ** 2).sum() for f, now, then in springs]).sum()

    @torch.no_grad()
    def measure(self, scale: Tensor) -> None:
        """Takes the gradients that the parameters have now into the mean, those that are not finite as 0.

        scale: a scalar, by which they are too large
        """
        self.measured += 1
        squares = [(parameter.grad / scale).nan_to_num(0, 0, 0) ** 2 for parameter in self.parameters]
        torch._foreach_lerp_(self.firmness, squares, 1 / self.measured)

    def state_dict(self) -> dict[str, Any]:
        return {"firmness": self.firmness, "measured": self.measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError or RuntimeError for the springs of other parameters."""
        for own, saved in zip(self.firmness, state["firmness"], strict=True):
            own.copy_(saved)
        self.measured = int(state["measured"])
