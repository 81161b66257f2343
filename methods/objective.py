"""What a training minimises: the losses of an OPT line, each with its bound and its weight, and their sum."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from losses import LOSSES, Loss
from methods.schedules import SCHEDULES, Constant, Schedule
from processes.errors import UserError
from utils import fits, listing, read_literal


@dataclass(frozen=True)
class LossSpec:
    """One tuple of `--target_losses`."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    bounds: str | None = None
    bounds_params: dict[str, Any] = field(default_factory=dict)
    fn: str | None = None
    weight: float = 1.0


def parse_losses(text: str) -> list[LossSpec]:
    """Reads `[(name, params, bounds_name, bounds_params, fn, weight), …]` or the three-field form.

    Raises UserError for anything else, with the offending tuple.
    """
    items = read_literal(text)
    if not isinstance(items, list) or not items:
        raise UserError(f"--target_losses expects a list with at least one tuple, got {text!r}.")
    return [_loss_spec(item) for item in items]


def _loss_spec(item: Any) -> LossSpec:
    match item:
        case (str(name), dict(params), str() | None as bounds, dict() | None as told, str() | None as fn, weight):
            pass
        case (str(name), dict(params), weight):
            bounds, told, fn = None, None, None
        case _:
            weight = None
    if weight is None or not fits(weight, float) or not all(isinstance(key, str) for key in {**params, **(told or {})}):
        raise UserError(
            f"Cannot read the loss {item!r}: expected (name, {{params}}, bounds_name, {{bounds_params}}, fn, "
            "weight), with None where there is no bound or fn, or (name, {params}, weight); the weight is a number."
        )
    return LossSpec(name, params, bounds, told or {}, fn, float(weight))


def build_loss(spec: LossSpec) -> Loss:
    """The module of one tuple. `fn`, where given, reaches the losses that measure sizes, and no other (as published).

    Raises UserError for a name or a parameter that is not there, of another type, or given twice, and for a loss of
    sizes without a bound.
    """
    params = dict(spec.params)
    if spec.fn is not None and LOSSES.takes(spec.name, "fn") and params.setdefault("fn", spec.fn) != spec.fn:
        raise UserError(
            f"The loss {spec.name} has two size functions, {params['fn']!r} among its parameters and {spec.fn!r} in "
            "the fifth field of its tuple; leave one of them out."
        )
    loss: Loss = LOSSES.build(spec.name, **params)
    if loss.needs_bounds and spec.bounds is None:
        raise UserError(
            f"The loss {spec.name} measures sizes and needs a bound in the third field of its tuple, for example "
            f"('{spec.name}', {{…}}, 'PredictionBounds', {{'predcol': …, 'sizefile': …}}, 'soft_size', 1)."
        )
    return loss


def made_up(losses: Iterable[Loss], n_class: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """An image that no one took and that shows every class: what each loss can be tried with.

    Logits (1, K, 4, K) with a gradient, (1, 4, K) class numbers or (1, K, 4, K) maps a loss, and bounds (1, K, 2).
    """
    logits = torch.linspace(-1, 1, 4 * n_class**2).view(1, n_class, 4, n_class).requires_grad_()
    label = torch.arange(n_class).expand(1, 4, n_class)
    targets = [torch.ones_like(logits) if loss.needs_maps else label for loss in losses]
    return logits, targets, torch.ones(1, n_class, 2)


def check_classes(losses: Sequence[Loss], n_class: int) -> None:
    """Raises UserError that lists the losses whose parameters do not fit this number of classes.

    Each is computed once, on a made-up image. So an error that would come in the first step, after the
    data were read, comes here.
    """
    logits, targets, bounds = made_up(losses, n_class)
    wrong = []
    for loss, target in zip(losses, targets, strict=True):
        try:
            loss(logits, target, bounds)
        except UserError as error:
            wrong.append(f"{type(loss).__name__}: {error}")
    if wrong:
        raise UserError(" ".join(wrong))


def check_finite(loss: "LossSum", n_class: int, n_epoch: int) -> None:
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


def check_company(losses: Sequence[Loss], n_class: int) -> None:
    """Raises UserError if every one of the losses needs another loss next to it."""
    reasons = [loss.needs_company(n_class) for loss in losses]
    if reasons and all(reasons):
        raise UserError(reasons[0])


def check_folders(losses: Sequence[Loss], are_maps: Sequence[bool]) -> None:
    """Raises UserError for a loss whose folder holds distance maps where it needs class numbers, or the reverse."""
    for loss, is_map in zip(losses, are_maps, strict=True):
        name = type(loss).__name__
        if loss.needs_maps and not is_map:
            raise UserError(
                f"{name} needs distance maps, but its folder in --target_folders gives class numbers: end the list "
                "with ('GT', dist_map_transform, False) in the place of that loss (image, ground truth, one a loss)."
            )
        if is_map and loss.needs_target and not loss.needs_maps:
            raise UserError(
                f"{name} needs class numbers, but its folder in --target_folders gives distance maps; the folders "
                "stand in the order of the losses, after the image and the ground truth."
            )


def check_ignore(losses: Sequence[Loss], ignore: int | None) -> None:
    """Raises UserError for a loss that would take the label to be ignored for a class."""
    if ignore is None:
        return
    wrong = [type(loss).__name__ for loss in losses if loss.needs_target and loss.ignores != ignore]
    if wrong:
        raise UserError(
            f"--ignore {ignore}, but {wrong[0]} does not leave these pixels out; use CrossEntropy (with "
            f"'ignore_index': {ignore}), or map the label to a class."
        )


class LossSum(nn.Module):
    """The weighted sum of the listed losses, every term under its own name.

    `forward` returns {"tot": scalar, "<loss>" or "<loss>_<term>": weighted scalar, …}; the names are `columns`. What
    a loss only shows stands next to its terms, and not in the total. The weights may follow a schedule over epochs.
    A loss that stands alone and weighs its terms itself (`own_weights`) has no other weight, as published.
    """

    def __init__(
        self, losses: Sequence[Loss], weights: Sequence[float], scheduler: str = "Constant", **params: Any
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weighs_itself = len(losses) == 1 and losses[0].own_weights
        if self.weighs_itself and weights[0] < 0:
            raise UserError(
                f"{type(losses[0]).__name__} stands alone: its weight counts for nothing but to switch it off at 0, "
                f"as {weights[0]:g} would. Its own weights are lamb_se and lamb_consprior."
            )
        self.schedule: Schedule = SCHEDULES.build(scheduler, list(weights), **params)
        self.begin_epoch(0)
        self.names: list[str] = []
        for loss in losses:
            name = type(loss).__name__
            seen = sum(other.split("#")[0] == name for other in self.names)
            self.names.append(name if not seen else f"{name}#{seen + 1}")

    @property
    def columns(self) -> list[str]:
        terms = [
            f"{name}_{term}" if term else name
            for name, loss in zip(self.names, self.losses, strict=True)
            for term in (*loss.terms, *loss.shown)
        ]
        return ["tot", *terms]

    def begin_epoch(self, epoch: int) -> None:
        """This epoch's weights."""
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

    def moving_weights(self) -> dict[str, float]:
        """This epoch's weights by "weight_<loss>", empty where they stay as they are."""
        if isinstance(self.schedule, Constant):
            return {}
        return {f"weight_{name}": weight for name, weight in zip(self.names, self.weights, strict=True)}

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
