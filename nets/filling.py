"""Fills a network from a file of weights: a checkpoint of this program, or a published network's tensors alone.

What does not fit is refused, with both sides by name. `load_checkpoint` reads the file, and believes nothing of it.
Whoever has read the file already hands over what it holds, as `state`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nets.checkpoint_files import load_checkpoint
from nets.published_weights import adopt
from nets.weight_checks import misfits, unwrapped
from processes.errors import UserError
from utils import counted, listing

State = Mapping[str, Any] | None


def weights_for(net: nn.Module, path: Path, state: State = None) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The network's state from a file of weights, and the checkpoint around it; {} for a file of tensors alone."""
    state, ours = state or load_checkpoint(path, bare=True), net.state_dict()
    if "bare" in state:
        return adopt(net, unwrapped(state["bare"], ours), path), {}
    return unwrapped(state["net"], ours), state


def fitting_weights(
    net: nn.Module, path: Path, name: str, in_channels: int, n_class: int, state: State = None
) -> dict[str, Tensor]:
    """The state of this network from a checkpoint. Raises UserError that names both sides where they differ.

    name, in_channels, n_class: what the network was built from
    """
    (theirs, state), ours = weights_for(net, path, state), net.state_dict()
    faults = {"do not fit": misfits(theirs, ours, ours), "are foreign": [name for name in theirs if name not in ours]}
    if misfit := [f"{len(names)} {fault}, such as {listing(names, 3)}" for fault, names in faults.items() if names]:
        channels = counted(state.get("in_channels"), "channel")
        held = f"{state.get('network')} ({channels}, {state.get('n_class')} classes)"
        needed = f"{name} ({counted(in_channels, 'channel')}, {n_class} classes)"
        words = f"{path} holds weights of {held}, this run has {needed}; give the same --network and --n_class."
        if held == needed:
            words = f"{path} says that it holds weights of {held}, as this run has, and holds others."
        raise UserError(f"{words} Of the weights {'; '.join(misfit)}.")
    return theirs


def load_weights(net: nn.Module, path: Path, name: str, in_channels: int, n_class: int, state: State = None) -> None:
    """Fills the network, built from these three, from a checkpoint. Raises UserError where they differ, naming both."""
    net.load_state_dict(fitting_weights(net, path, name, in_channels, n_class, state))


def load_blocks(net: nn.Module, path: Path, blocks: int, in_channels: int, state: State = None) -> dict[str, list[str]]:
    """Fills the encoder and the first `blocks` blocks of the decoder from a checkpoint; the rest stays random.

    Returns the names of the modules that were "loaded" and "left" as they are. Raises UserError for a network without
    such parts, and for weights that do not fit, with every one of them.
    """
    theirs, ours, prefixes = weights_for(net, path, state)[0], net.state_dict(), net.parts(blocks)
    wanted = [name for name in ours if name.startswith(prefixes)]
    if wrong := misfits(theirs, ours, wanted):
        raise UserError(
            f"{path} does not fit the encoder and {blocks} decoder blocks of this network for images of {in_channels} "
            f"channels: {listing(wrong)}. Give the --network it was trained with."
        )
    net.load_state_dict({name: theirs[name] for name in wanted}, strict=False)
    left = dict.fromkeys(_module_of(net, name) for name in ours if name not in wanted)
    return {"loaded": [prefix.rstrip(".") for prefix in prefixes], "left": list(left)}


def _module_of(net: nn.Module, name: str) -> str:
    """The child of the network that an entry of its state belongs to, one of a list of them by its number."""
    child, number, *_ = name.split(".")
    return f"{child}.{number}" if isinstance(net.get_submodule(child), nn.ModuleList) else child
