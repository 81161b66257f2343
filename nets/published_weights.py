"""Weights of the published networks, which come as a state dict of other names, for the networks of this program.

The published codes save whole networks, `torch.save(net, path)`, and to load such a file is to run code. In their
repository, or wherever their modules can be imported, this makes a file of plain tensors, which is safe to load:

    python -c "import torch; torch.save(torch.load('best.pkl', weights_only=False).state_dict(), 'weights.pt')"

`--model_weights weights.pt` takes that file, with `--network UNet` (Bateson et al.), `UNet:nG=64` and `PublishedENet`
(Kervadec et al.), `UNet3D:binary=True,width=…,depth=…` (Xu et al.), and computes what the published network does. The
files of Tsai et al. are state dicts as they come, of `DeepLabV2:aspp_branches=2,layout=caffe,align_corners=True,
normalise=caffe`; of their coarser head, and of the branches that their network does not sum, nothing is taken.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from nets.base import Network
from processes.errors import UserError
from utils import listing

COUNTER = ".num_batches_tracked"  # of batch norms, which weights of long ago lack


def adopt(net: Network, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state of this network out of a state dict of its own, or of the published network that it is.

    Layers are told apart by their order: both declare the same ones, and `Network.published` says in which order.
    Raises UserError for weights of other layers, with the first of those that do not fit.
    """
    ours, is_own = net.state_dict(), state.keys() == net.state_dict().keys()
    if not is_own and not net.published:
        raise UserError(
            f"{path} holds tensors alone, by other names than those of {type(net).__name__}, of which no published "
            "network is known. UNet, PublishedENet, UNet3D and DeepLabV2 are published."
        )
    theirs = _taken(net, state)
    wanted = [name for name in ours if not name.endswith(COUNTER)]
    pairs = [(name, name) for name in wanted] if is_own else list(zip_longest(_published_order(net, wanted), theirs))
    wrong = [
        f"{_shown(theirs, their)} in the place of {_shown(ours, our)}"
        for our, their in pairs
        if None in (our, their) or _kind(our) != _kind(their) or ours[our].shape != theirs[their].shape
    ]
    if wrong:
        raise UserError(
            f"{path} holds tensors alone, and they are not those of {type(net).__name__}, as it is here or published, "
            f"with these widths, channels and classes: {listing(wrong, 3)}. Give the --network that they were trained "
            "with, for example UNet:nG=64."
        )
    found = {our: theirs[their] for our, their in pairs}
    return ours | (found if is_own else net.from_published(found))


def _taken(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the published layers that learn a threshold, and without others that this network lacks."""
    prefix = "segmentor."
    inner = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)} or state
    return {name: value for name, value in inner.items() if not (name.endswith(COUNTER) or net.lacks_published(name))}


def _published_order(net: Network, names: Sequence[str]) -> list[str]:
    return [name for part in net.published for name in names if name.startswith(f"{part}.")]


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _shown(state: Mapping[str, Tensor], name: str | None) -> str:
    return "nothing" if name is None else f"{name} {tuple(state[name].shape)}"
