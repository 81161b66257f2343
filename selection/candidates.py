"""The networks that one is chosen from: the source network, its batch-norm refresh, and those that a run kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.grey_matching import SourceLevels
from methods.base import infer
from methods.settings import Settings
from nets.base import Network, batch_norms

SOURCE, REFRESH = "source", "refresh"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A network that can be chosen: what it is called, the epochs that it has behind it, and what gives its weights.

    levels: what the images that it sees are matched to; mixes: whether it mixes its batch-norm statistics with theirs
    """

    name: str
    epoch: int
    weights: Callable[[], Weights]
    levels: SourceLevels | None = None
    mixes: bool = False

    @property
    def share(self) -> float:
        """By how much its images are matched."""
        return self.levels.share if self.levels else 0.0


def name_of_refresh(name: str) -> str:
    """What the refresh of a source network of this name is called as a candidate."""
    return REFRESH if name == SOURCE else f"{name}, {REFRESH}"


@torch.no_grad()
def refreshed(net: Network, images: Iterable[Tensor], settings: Settings) -> Weights:
    """The weights of the network with the batch-norm statistics of these images alone (Schneider et al., NeurIPS 2020).

    images: batches (B, C, …) on the device, each in random company. A plain average over them replaces the moving one;
    nothing else of the network changes. It is left in evaluation mode, with the new statistics.
    """
    norms, mixes, net.mixes = batch_norms(net), net.mixes, False
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    for image in images:
        with settings.autocast():
            infer(net, image, settings)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
    net.mixes = mixes
    return {name: value.cpu().clone() for name, value in net.state_dict().items()}
