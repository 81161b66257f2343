"""What a training minimises: the weighted sum of its terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.schedules import SCHEDULES, Constant, Schedule
from methods.terms import Term, made_up
from nets.priors import BendingPrior
from nets.shape_moments import UsualShape
from processes.errors import UserError
from utils import listing


class LossSum(nn.Module):
    """The weighted sum of the listed losses, every term under its own name.

    `forward` returns {"tot": scalar, "<loss>" or "<loss>_<term>": weighted scalar, …}; the names are `columns`. What
    a loss only shows stands next to its terms, and not in the total. The weights may follow a schedule over epochs.
    A loss that stands alone and weighs its terms itself (`own_weights`) has no other weight, as published.
    """

    def __init__(self, terms: Sequence[Term], scheduler: str = "Constant", **params: Any) -> None:
        super().__init__()
        self.losses = nn.ModuleList(term.loss for term in terms)
        self.bounds = [term.bound for term in terms]
        self.weighs_itself = len(terms) == 1 and terms[0].loss.own_weights
        if self.weighs_itself and terms[0].weight < 0:
            raise UserError(
                f"{type(terms[0].loss).__name__} stands alone: its weight counts for nothing but to switch it off at "
                f"0, as {terms[0].weight:g} would. Its own weights are lamb_se and lamb_consprior."
            )
        self.schedule: Schedule = SCHEDULES.build(scheduler, [term.weight for term in terms], **params)
        self.names: list[str] = []
        for term in terms:
            name = type(term.loss).__name__
            seen = sum(other.split("#")[0] == name for other in self.names)
            self.names.append(name if not seen else f"{name}#{seen + 1}")
        self.begin_epoch(0)

    @property
    def columns(self) -> list[str]:
        terms = [
            f"{name}_{term}" if term else name
            for name, loss in zip(self.names, self.losses, strict=True)
            for term in (*loss.terms, *loss.shown)
        ]
        return ["tot", *terms]

    def begin_epoch(self, epoch: int) -> None:
        """This epoch's weights, and its prior where that is estimated anew."""
        for _, prior in self._bending:
            prior.begin_epoch(epoch)
        self.weights = self.schedule(epoch)
        if self.weighs_itself:
            self.weights = [float(self.weights[0] > 0)]

    @property
    def notes(self) -> list[str]:
        """What a reader of the log must know."""
        notes = [loss.note for loss in self.losses if loss.note]
        (name, *_), (given, *_) = self.names or [""], self.schedule(0) or [1.0]
        if self.weighs_itself and given != 1:
            notes.append(
                f"{name} stands alone, so the weight {given:g} of its tuple counts for nothing, as published; its own "
                "are lamb_se and lamb_consprior."
            )
        return list(dict.fromkeys(notes))

    def moving(self) -> dict[str, float]:
        """By "weight_<loss>" this epoch's weights, by "prior_<loss>_<class>" its factors on the prior it began with.

        Empty where they stay as they are.
        """
        factors = {
            f"prior_{name}_{k}": factor
            for name, prior in self._bending
            if prior.factors is not None
            for k, factor in enumerate(prior.factors.tolist())
        }
        if isinstance(self.schedule, Constant):
            return factors
        return {f"weight_{name}": weight for name, weight in zip(self.names, self.weights, strict=True)} | factors

    @property
    def _bending(self) -> list[tuple[str, BendingPrior | UsualShape]]:
        """The priors that are estimated anew, with the names of their losses."""
        return [(name, loss.bends) for name, loss in zip(self.names, self.losses, strict=True) if loss.bends]

    def state(self) -> dict[str, Any]:
        """What a resume needs, by loss; empty where no prior is estimated anew."""
        return {name: prior.state() for name, prior in self._bending}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for the state of other losses."""
        for name, prior in self._bending:
            prior.load_state(state[name])

    def forward(
        self, logits: Tensor, targets: Sequence[Tensor | None], bounds: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        summands: list[Tensor] = []
        for loss, name, weight, target, bound in zip(
            self.losses, self.names, self.weights, targets, bounds, strict=True
        ):
            value = loss(logits, target, bound)
            value = value if isinstance(value, dict) else {"": value}
            parts = {term: weight * part for term, part in value.items()}
            terms |= {f"{name}_{term}" if term else name: part for term, part in parts.items()}
            summands += [parts[term] for term in loss.terms]
        return {"tot": torch.stack(summands).sum(), **terms}


def check_finite(loss: LossSum, n_class: int, n_epoch: int) -> None:
    """Raises UserError unless the losses and their gradient are finite on a made-up image, in first and last epoch.

    They are not where a weight or a parameter is too large. Also, a weight must not pass 0 on its way: behind it the
    run would unlearn.
    """
    logits, targets, bounds = made_up(loss.losses, n_class)
    begun = loss.schedule(0)
    for epoch in dict.fromkeys((0, n_epoch - 1)):
        loss.begin_epoch(epoch)
        if any(first * now < 0 for first, now in zip(begun, loss.schedule(epoch), strict=True)):
            raise UserError(
                f"--scheduler takes the weights of the losses from {begun} in the first epoch to "
                f"{loss.schedule(epoch)} in epoch {epoch + 1}, past 0; give smaller steps, or fewer epochs."
            )
        terms = loss(logits, targets, [bounds] * len(targets)) if targets else {}
        wrong = [f"{name} {value:g}" for name, value in terms.items() if not torch.isfinite(value)]
        if terms and not wrong and terms["tot"].requires_grad:
            (gradient,) = torch.autograd.grad(terms["tot"], logits, allow_unused=True)
            wrong = ["its gradient"] if gradient is not None and not torch.isfinite(gradient).all() else []
        if wrong:
            raise UserError(
                f"--target_losses is not finite on a made-up image, in epoch {epoch + 1}: {listing(wrong)}. A weight "
                "or a parameter in it, or in --scheduler_params, is too large."
            )
    loss.begin_epoch(0)
