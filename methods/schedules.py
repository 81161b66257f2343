"""Schedules of the loss weights: epoch -> one weight a loss. They keep no state, so a resume needs none.

A makefile names one with `--scheduler StealWeight --scheduler_params "{'to_steal': 0.01}"`; the weights written in
the losses are those of epoch 0. Published with the boundary loss (Kervadec et al. 2019 and 2021).
"""

from collections.abc import Sequence
from typing import Any, Protocol

from processes.errors import UserError
from utils import Registry, read_literal

SCHEDULES = Registry("scheduler", typed=True)


def read_params(text: str) -> dict[str, Any]:
    """The dict of `--scheduler_params`. Raises UserError for anything else."""
    params = read_literal(text)
    if not isinstance(params, dict) or not all(isinstance(name, str) for name in params):
        raise UserError(f"--scheduler_params expects a dict such as \"{{'to_steal': 0.01}}\", got {text!r}.")
    return params


class Schedule(Protocol):
    def __call__(self, epoch: int) -> list[float]:
        """The weights of this epoch, counted from 0."""


@SCHEDULES.register("constant", "DummyScheduler")
class Constant:
    """The weights as they are written."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)

    def __call__(self, epoch: int) -> list[float]:
        return list(self.weights)


@SCHEDULES.register("rebalance")
class StealWeight:
    """Rebalance: max(`floor`, a − e·`to_steal`) for the first of two losses, b + e·`to_steal` for the second."""

    def __init__(self, weights: Sequence[float], *, to_steal: float = 0.01, floor: float = 0.1) -> None:
        if len(weights) != 2:
            raise UserError(
                f"The scheduler StealWeight moves weight between two losses; --target_losses has {len(weights)}."
            )
        self.first, self.second = weights
        self.to_steal, self.floor = to_steal, min(floor, self.first)

    def __call__(self, epoch: int) -> list[float]:
        stolen = epoch * self.to_steal
        return [max(self.floor, self.first - stolen), self.second + stolen]


@SCHEDULES.register("increase")
class AddWeightLoss:
    """Increase: w + e·`to_add`, one summand a loss."""

    def __init__(self, weights: Sequence[float], *, to_add: Sequence[float]) -> None:
        if len(to_add) != len(weights):
            raise UserError(
                f"The scheduler AddWeightLoss takes one number a loss: to_add has {len(to_add)}, --target_losses "
                f"{len(weights)}."
            )
        self.weights, self.to_add = list(weights), list(to_add)

    def __call__(self, epoch: int) -> list[float]:
        return [weight + epoch * each for weight, each in zip(self.weights, self.to_add, strict=True)]
