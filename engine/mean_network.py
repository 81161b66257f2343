"""The mean of the networks after the last epochs, which a run of --average_last ends with."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MeanNetwork:
    """The mean of the networks after the last `count` of `n_epoch` epochs, entry by entry (Izmailov et al., UAI 2018).

    Of fewer epochs all. Batch-norm statistics are averaged like weights, so no image has to be seen again. What is no
    fraction, as the number of batches that a norm has seen, is that of the last epoch.
    """

    def __init__(self, net: nn.Module, count: int, n_epoch: int) -> None:
        self.net, self.count, self.n_epoch = net, min(count, n_epoch), n_epoch
        self.mean: dict[str, Tensor] = {}  # of the networks so far, on their device

    def end_epoch(self, epoch: int) -> None:
        """Takes the network after this epoch, counted from 0, into the mean. After the last one it becomes the mean."""
        number = epoch + 1 - (self.n_epoch - self.count)
        if self.count == 1 or number < 1:
            return
        now = self._fractions()
        for name, value in now.items():
            self.mean[name] = value.clone() if number == 1 else self.mean[name].lerp(value, 1 / number)
        if epoch == self.n_epoch - 1:
            for name, value in now.items():
                value.copy_(self.mean[name])
            self.mean = {}

    def _fractions(self) -> dict[str, Tensor]:
        """What is averaged: the network's own tensors, by name."""
        return {name: value for name, value in self.net.state_dict().items() if value.is_floating_point()}

    def state_dict(self) -> dict[str, Tensor]:
        """The mean so far, by the names of the network's tensors; empty before it begins and after it is used."""
        return self.mean

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for the mean of other networks, or one that is not finite."""
        own = self._fractions()
        shapes = {name: value.shape for name, value in own.items()} if state else {}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError("the mean of the last epochs is of another network")
        if not all(torch.isfinite(value).all() for value in state.values()):
            raise ValueError("the mean of the last epochs is not finite")
        self.mean = {name: value.to(own[name].device, copy=True) for name, value in state.items()}
