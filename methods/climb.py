"""A look at where the loss is higher nearby, whose gradient leads to a flat minimum (SAM, Foret et al., ICLR 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

RADIUS = 0.05  # of the neighbourhood
EPS = 1e-12


@torch.no_grad()
def climb(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Moves them by RADIUS along their gradient, nowhere if that is not finite, as in fp16 at first.

    Returns what they were.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    way = [torch.where(norm.isfinite(), RADIUS / (norm + EPS) * gradient, 0) for gradient in gradients]
    torch._foreach_add_(parameters, way)
    return before


@torch.no_grad()
def put_back(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Makes them what they were."""
    torch._foreach_copy_(parameters, before)
