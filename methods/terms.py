"""The terms of what a training minimises: each a loss of an OPT line, with its weight and its bound."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bounds import BOUNDS, Bounds
from losses import LOSSES, Loss
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
        case (str(name), dict(params), str() | None as bounds, dict() | None as options, str() | None as fn, weight):
            pass
        case (str(name), dict(params), weight):
            bounds, options, fn = None, None, None
        case _:
            weight = None
    if (
        weight is None
        or not fits(weight, float)
        or not all(isinstance(key, str) for key in {**params, **(options or {})})
    ):
        raise UserError(
            f"Cannot read the loss {item!r}: expected (name, {{params}}, bounds_name, {{bounds_params}}, fn, "
            "weight), with None where there is no bound or fn, or (name, {params}, weight); the weight is a number."
        )
    return LossSpec(name, params, bounds, options or {}, fn, float(weight))


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


@dataclass(frozen=True)
class Term:
    """One summand of what a training minimises."""

    loss: Loss
    weight: float = 1.0
    bound: Bounds | None = None  # what the loss may know of the sizes


def build_term(spec: LossSpec, n_class: int) -> Term:
    """The term that one tuple means. Raises UserError for what `build_loss` refuses, and likewise of the bound."""
    bound = None if spec.bounds is None else BOUNDS.build(spec.bounds, n_class, **spec.bounds_params)
    return Term(build_loss(spec), spec.weight, bound)


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


def check_sizes(terms: Sequence[Term], moving: Sequence[str]) -> None:
    """Tells each bound whether its loss compares ratios, and whether it measures in mm.

    moving: which parts of the augmentation change how much of an image a class has

    Raises UserError for a bound that has no ratios, and for one that augmentation would make wrong.
    """
    used = [term for term in terms if term.loss.needs_bounds and term.bound]
    for term in used:
        term.bound.with_spacing = term.loss.measures_mm
        if term.loss.compares_ratios:
            term.bound.take_as_ratios()
    if moving and (wrong := [type(term.loss).__name__ for term in used if term.bound.of_slices]):
        off = ", ".join(f"'{name}': 0" for name in moving)
        raise UserError(
            f"{listing(wrong)} compares sizes with bounds of whole slices, and the augmentation ({', '.join(moving)}) "
            "changes how much of an image a class has: it grows, shrinks, or leaves the frame, while its bound stays. "
            f'Switch these off (--augmentation "{{{off}}}"; flips, half turns and grey levels may stay), or leave '
            "--augment out."
        )
