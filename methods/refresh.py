"""The batch-norm statistics of a set in place of those that a network came with (Schneider et al., NeurIPS 2020)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nets.base import batch_norms


@torch.no_grad()
def refresh(net: nn.Module, see: Callable[[Tensor], Any], images: Iterable[Tensor]) -> None:
    """Gives the batch norms of a network in evaluation mode the mean statistics of these batches (b, C, …).

    see: shows the network a batch. All else of the network stays; one without batch norms is shown nothing.
    """
    norms = batch_norms(net)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for image in images if norms else ():
        see(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
