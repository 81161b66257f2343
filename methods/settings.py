"""What a method is told: a frozen dataclass whose fields are named after flags.

Every method gets `Settings`. A method that has flags of its own declares them in a subclass, each as one field:

    class Settings(Supervised.Settings):
        mixup_alpha: float = flag(0.2, "α of the Beta(α, α) that λ is drawn from")
"""

from argparse import _ArgumentGroup
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from methods.optimisers import Learning
from nets.precision import AUTOCAST


@dataclass(frozen=True, kw_only=True)
class Settings(Learning):
    """What every method is told, under the names of the flags."""

    method: str
    n_class: int
    batch_size: int
    anchor: float
    decode: str
    crop: Sequence[int] | None
    overlap: float
    channels_last: int
    precision: str
    device: str

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass at the run's precision. The losses always compute in fp32."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.split(":")[0], dtype) if dtype else nullcontext()

    def laid_out(self, image: Tensor) -> Tensor:
        """The images (B, C, W, H) or (B, C, D, W, H) in the memory layout of --channels_last."""
        if not self.channels_last:
            return image
        return image.contiguous(memory_format=torch.channels_last_3d if image.ndim == 5 else torch.channels_last)


def flag(default: Any, words: str) -> Any:
    """A field that is a flag, with its default and its line in --help. The field's type says what it takes.

    A bool is a switch that takes nothing, a Literal one of its values, a tuple several numbers of one type.
    """
    return field(default=default, metadata={"help": words})


def add_flags(group: _ArgumentGroup, kind: type[Settings]) -> None:
    """Adds the flags that a class of settings declares; the fields that it shares with every method are no such."""
    for each in fields(kind):
        if each.metadata:
            group.add_argument(f"--{each.name}", **_argument(each.type, each.default), **each.metadata)


def _argument(kind: Any, default: Any) -> dict[str, Any]:
    """How argparse reads a flag of this type."""
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return {"type": type(choices[0]), "choices": choices, "default": default}
    if get_origin(kind) is tuple:
        return {"type": get_args(kind)[0], "nargs": "+", "default": list(default)}
    return {"type": kind, "default": default}
