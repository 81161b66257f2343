"""Whether tensors by name are weights, and those of a network; whether this machine can hold them."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from processes.errors import UserError
from utils import listing

OLD_FORMAT = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch before 1.6 began a file: a number that is its mark
WRAPPERS = r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\."  # what DataParallel and compile put into names


def within_memory(make: Callable[[], nn.Module], what: str, remedy: str) -> nn.Module:
    """The module that `make` makes. It is made as shapes alone first, which takes no memory and no random number.

    what: whose weights they are, in words; remedy: what to change
    Raises UserError for one whose weights this machine cannot hold.
    """
    with torch.device("meta"):
        ghost = make()
    needed = sum(each.numel() * each.element_size() for each in ghost.state_dict().values())
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"{what} has {needed / 2**30:.3g} GiB of weights, and this machine {there / 2**30:.3g} GiB of memory; give "
            f"{remedy}."
        )
    return make()


def is_old(path: Path) -> bool:
    """Whether the file is in the format of torch before 1.6; nothing of it is loaded."""
    with path.open("rb") as file:
        return OLD_FORMAT in file.read(2 * len(OLD_FORMAT))


def is_state_dict(content: object) -> bool:
    """Whether it is names and tensors alone, as `net.state_dict()` gives them."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def check_weights(path: Path, weights: Any) -> None:
    """Raises UserError unless these, out of the file, are finite real tensors by name."""
    if not is_state_dict(weights):
        raise UserError(
            f"{path}: its entry 'net' is {type(weights).__name__}, where tensors by name were expected, as "
            "net.state_dict() gives them."
        )
    if bad := [name for name, value in weights.items() if value.is_complex()]:
        raise UserError(
            f"{path}: {len(bad)} of its {len(weights)} tensors hold complex numbers, and no network here has such "
            f"weights: {listing(bad, 3)}. The file was damaged, or written by another program."
        )
    if bad := not_finite({name: _in_32_bits(value) for name, value in weights.items()}):
        raise UserError(
            f"{path}: {len(bad)} of its {len(weights)} tensors hold NaN or infinite weights: {listing(bad, 3)}. The "
            "training that wrote it went astray; train it again at a lower --l_rate."
        )
    if bad := [name for name, value in weights.items() if name.endswith("running_var") and (value < 0).any()]:
        raise UserError(
            f"{path}: {len(bad)} of its {len(weights)} tensors are variances below 0, which there are none of: "
            f"{listing(bad, 3)}. The file was damaged, or written by another program; train it again."
        )


def _in_32_bits(value: Tensor) -> Tensor:
    """As a network takes it: larger numbers become infinite."""
    return value.float() if value.is_floating_point() else value


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors, of any shape, that hold NaN or infinity. Waits once for the device."""
    names = [name for name, value in weights.items() if value.is_floating_point() or value.is_complex()]
    if not names:
        return []
    finite = torch.stack([torch.isfinite(weights[name]).all() for name in names]).tolist()
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]


def unwrapped(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under the network's own names, without the prefix that a wrapper of the network adds."""
    plain = {re.sub(WRAPPERS, "", name): value for name, value in theirs.items()}
    return plain if len(plain) == len(theirs) and not ours.keys() >= theirs.keys() else dict(theirs)


def misfits(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """The wanted weights that `theirs` lacks, or has in another shape than `ours`, or as another kind of number."""
    wrong = []
    for name in names:
        if name not in theirs:
            wrong.append(f"{name} (missing)")
        elif theirs[name].shape != ours[name].shape:
            wrong.append(f"{name} (shape {tuple(theirs[name].shape)}, not {tuple(ours[name].shape)})")
        elif _kind(theirs[name]) != _kind(ours[name]):
            wrong.append(f"{name} ({_kind(theirs[name])}, not {_kind(ours[name])})")
    return wrong


def _kind(tensor: Tensor) -> str:
    return "complex numbers" if tensor.is_complex() else "real numbers" if tensor.is_floating_point() else "integers"
