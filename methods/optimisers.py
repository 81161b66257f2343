"""Optimisers, and the learning rate over epochs and steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from processes.errors import UserError
from utils import fits, listing

OF_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what it keeps of a parameter
NEVER_BELOW_0 = ("exp_avg_sq", "step")  # of that
MOVING = ("params", "lr", "initial_lr")  # of a group of an optimiser, what is no setting
LR_RULES = ("step", "late", "poly", "legacy")
Groups = Sequence[tuple[Sequence[nn.Parameter], float]]  # parameters, and their factor on the learning rate


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What optimisers and learning rates are told, under the names of the flags."""

    l_rate: float
    lr_rule: str
    lr_decay: float
    lr_decay_epoch: int
    poly_power: float
    poly_epochs: float
    n_epoch: int
    n_warmup: int
    flr: int
    weight_decay: float
    optimiser: str
    betas: Sequence[float]
    momentum: float


def make_optimiser(groups: Groups, learning: Learning) -> torch.optim.Optimizer | None:
    """Adam, AdamW or SGD over the groups, in one fused pass over their parameters; None where nothing learns."""
    parts = [
        {"params": list(parameters), "lr": learning.l_rate * factor, "initial_lr": learning.l_rate * factor}
        for parameters, factor in groups
        if parameters
    ]
    if not parts:
        return None
    shared = {"lr": learning.l_rate, "weight_decay": learning.weight_decay, "fused": True}
    if learning.optimiser == "sgd":
        return torch.optim.SGD(parts, momentum=learning.momentum, **shared)
    kind = torch.optim.AdamW if learning.optimiser == "adamw" else torch.optim.Adam
    return kind(parts, betas=tuple(learning.betas), **shared)


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Its state out of a checkpoint. Raises ValueError for one of other settings or other parameters.

    torch looks at the number of the parameters alone, and a moment of another shape would be added to all of them.
    """
    groups = optimiser.state_dict()["param_groups"]
    settings = [{k: v for k, v in group.items() if k not in MOVING} for group in groups]
    if [group["params"] for group in groups] != [group["params"] for group in state["param_groups"]]:
        raise ValueError("the optimiser had other parameters, or the same in another order")
    for own, saved in zip(settings, state["param_groups"], strict=True):
        if not fits(saved["lr"], float) or saved["lr"] < 0:
            raise ValueError(f"the optimiser's rate is {saved['lr']}")
        if other := [name for name, value in own.items() if name in saved and not same(saved[name], value)]:
            raise ValueError(f"the optimiser had another {', '.join(other)}")
    optimiser.load_state_dict(state)
    for group, own, before in zip(optimiser.param_groups, settings, groups, strict=True):
        group["initial_lr"] = before["initial_lr"]  # --l_rate, which a run that went astray may lower
        group.update(own)  # a setting that the checkpoint does not tell
    for parameter, moments in optimiser.state.items():
        _check_moments(parameter, moments, isinstance(optimiser, torch.optim.Adam))


def _check_moments(parameter: nn.Parameter, moments: Mapping[str, Tensor | None], of_adam: bool) -> None:
    """Raises ValueError for what an optimiser cannot keep of this parameter."""
    if of_adam and moments.keys() != OF_ADAM:
        raise ValueError(f"the optimiser keeps {listing(moments)} of a parameter, expected {listing(sorted(OF_ADAM))}")
    for name, value in moments.items():
        if value is None and not of_adam:
            continue
        if value.shape != (() if name == "step" else parameter.shape) or not value.isfinite().all():
            raise ValueError(f"the optimiser's {name} is not of its parameter")
        if (value < 0).any() and name in NEVER_BELOW_0:
            raise ValueError(f"the optimiser's {name} is below 0")


def same(first: Any, second: Any) -> bool:
    """Whether two settings are equal; a list may be a tuple."""
    first, second = (tuple(each) if isinstance(each, list) else each for each in (first, second))
    return first == second


class Rates:
    """The learning rate over a run, laid on every optimiser that follows it.

    It is smaller after a collapse that was rolled back (`rate_factor`), and by --lr_rule legacy (`halvings`).
    """

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer], learning: Learning) -> None:
        self.optimisers, self.learning = list(optimisers), learning
        self.rate_factor, self.halvings = 1.0, 0

    @property
    def now(self) -> float:
        """The rate of the first group; NaN if nothing learns."""
        return self.optimisers[0].param_groups[0]["lr"] if self.optimisers else float("nan")

    def begin_epoch(self, epoch: int, rate_factor: float) -> None:
        self.rate_factor = rate_factor
        self._lay(epoch)

    def begin_step(self, progress: float) -> None:
        """progress: epochs, the running one in part"""
        if self.learning.lr_rule == "poly":
            self._lay(progress)

    def end_epoch(self, epoch: int, best_epoch: int) -> None:
        """Is called after an epoch and its validation. `best_epoch` is the best epoch so far."""
        self.halvings += self.learning.lr_rule == "legacy" and epoch % (best_epoch + 20) == 0

    def _lay(self, progress: float) -> None:
        factor = self.rate_factor * 0.5**self.halvings
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(progress, self.learning, group["initial_lr"]) * factor


def learning_rate(progress: float, learning: Learning, initial: float) -> float:
    """The rate after `progress` epochs, by --lr_rule, after a linear warm-up over the first `n_warmup` epochs.

    step: times `lr_decay` every `lr_decay_epoch` epochs; `--flr`, or a decay of 0 as published lines write it, keeps
    it fixed. late: each time an epoch later, as published: the first slower one is number `lr_decay_epoch` + 1, counted
    from 0. poly: times (1 − progress / poly_epochs)^poly_power, step by step (Chen et al. 2018). legacy: fixed here;
    Rates.end_epoch halves it, as the published boundary loss does.
    """
    warmup = min(1.0, (int(progress) + 1) / (learning.n_warmup + 1))
    if learning.lr_rule == "poly":
        left = 1 - progress / (learning.poly_epochs or learning.n_epoch)
        return initial * warmup * max(left, 0.0) ** learning.poly_power
    fixed = learning.flr or learning.lr_decay == 0 or learning.lr_rule == "legacy"
    done = max(0, int(progress) - (learning.lr_rule == "late"))
    return initial * warmup * (1.0 if fixed else learning.lr_decay ** (done // learning.lr_decay_epoch))


def check_rates(learning: Learning) -> None:
    """Raises UserError for settings out of range."""
    if learning.poly_epochs < 0 or (learning.lr_rule == "poly" and 0 < learning.poly_epochs < learning.n_epoch):
        raise UserError(
            f"--poly_epochs is {learning.poly_epochs:g} for {learning.n_epoch} epochs: the learning rate would be 0 "
            "before the end. Give at least --n_epoch, or leave it out."
        )
    if not all(0 <= beta < 1 for beta in (*learning.betas, learning.momentum)):
        numbers = f"--betas {learning.betas} and --momentum {learning.momentum}"
        raise UserError(f"{numbers} lie between 0 and 1, 1 left out.")
