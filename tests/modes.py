"""Modes under which every operator of torch is looked at: whether it waits for a device, and whether it draws."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Refuses what makes the host wait for a device: looking at a value, or an outcome of unknown size."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITING, func
        return func(*args, **(kwargs or {}))


class Draws(TorchDispatchMode):
    """Notes the random operators whose numbers were drawn on a device of this type: other devices draw others."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.seen = kind, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        if torch.Tag.nondeterministic_seeded in func.tags and any(each.device.type == self.kind for each in made):
            self.seen.add(func.overloadpacket.__name__)
        return result
