"""Networks of MONAI (monai.networks.nets), as a bundle's `network_def` describes them.

They are built by the package monai, which a program that meets none of them does not need. Which of their layers is the
classifier is found by a look at a small image: the innermost one whose output is that of the whole network.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nets.base import NETWORKS, Network, xavier
from processes.errors import UserError
from utils import fits

INSTALL = "pip install monai==1.6.1"
KINDS = ("AttentionUnet", "BasicUNet", "DynUNet", "FlexibleUNet", "SegResNet", "SwinUNETR", "UNETR", "UNet", "VNet")
GIVEN = {"spatial_dims", "in_channels", "out_channels"}  # which the network is told anyway
EXAMPLE = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
USUAL = 32  # pixels that a network is taken to halve away of which nothing is told
LARGEST = 1024  # pixels that an image is padded to a multiple of


class _OfMonai(Network):
    """Base class.

    net        name of the class, one of KINDS
    told       its other arguments, plain values
    multiple   of which it needs images, along each axis; by default the product of its strides, where it is told any
    """

    def __init__(
        self,
        in_channels: int,
        n_class: int,
        *,
        net: str = "SegResNet",
        told: Mapping[str, Any] | None = None,
        multiple: int | None = None,
    ) -> None:
        super().__init__(in_channels, n_class)
        told = EXAMPLE if told is None and net == "SegResNet" else told or {}
        if net not in KINDS or not fits(told, Mapping[str, Any]) or GIVEN & told.keys():
            raise UserError(
                f"{type(self).__name__} is a network of MONAI, net=… one of {', '.join(KINDS)}, and told={{…}} its "
                f"arguments but for {', '.join(sorted(GIVEN))}; got net={net!r}, told={told!r}."
            )
        self.multiple = multiple_of(net, told) if multiple is None else multiple
        if not fits(self.multiple, int) or not 1 <= self.multiple <= LARGEST:
            raise UserError(f"{type(self).__name__} pads to a multiple of 1 to {LARGEST} pixels, not {multiple!r}.")
        self.net = _made(net, self.axes, in_channels, n_class, told)
        self.net.apply(xavier)
        self.last = self._last(in_channels)

    @property
    def classifier(self) -> nn.Module:
        return self.net.get_submodule(self.last)

    def _last(self, in_channels: int) -> str:
        """The name of the innermost layer whose output is that of the network, by a look at a small image."""
        ends: dict[str, Tensor] = {}
        names = {module: name for name, module in self.net.named_modules() if name}
        hooks = [
            module.register_forward_hook(lambda module, _, made: ends.__setitem__(names[module], made))
            for module in names
        ]
        device = next(self.net.parameters()).device
        was_training = self.net.training
        try:
            with torch.no_grad():
                size = [2 * self.multiple] * self.axes
                made = self.net.eval()(torch.zeros(1, in_channels, *size, device=device))
        finally:
            self.net.train(was_training)
            for hook in hooks:
                hook.remove()
        found = [name for name, end in ends.items() if end is made]
        if not isinstance(made, Tensor) or not found:
            raise UserError(f"{type(self).__name__}: what {type(self.net).__name__} computes is not one map of logits.")
        return max(found, key=lambda name: name.count("."))

    def features(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H) or (B,C,D,W,H), padded here -> the map that the classifier reads."""
        read: list[Tensor] = []

        def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            read.append(given[0])
            raise _Reached

        hook = self.classifier.register_forward_pre_hook(stop, prepend=True)
        try:
            self.net(self.pad(image))
        except _Reached:
            pass
        finally:
            hook.remove()
        return read


class _Reached(BaseException):
    """The classifier is about to read its map."""


@NETWORKS.register()
class MonaiNet(_OfMonai):
    """A network of MONAI for slices."""


@NETWORKS.register()
class MonaiNet3D(_OfMonai):
    """A network of MONAI for volumes."""

    axes = 3
    keeps_channels_last = False


def multiple_of(net: str, told: Mapping[str, Any]) -> int:
    """Of which the sides of an image are to be multiples, as far as that is told."""
    strides = told.get("strides")
    if fits(strides, Sequence[int]):
        return prod(strides)
    if net == "SegResNet":
        return 2 ** (len(told.get("blocks_down", range(4))) - 1)
    return USUAL


def _made(net: str, axes: int, in_channels: int, n_class: int, told: Mapping[str, Any]) -> nn.Module:
    """The package's network. Raises UserError where the package is not there, or refuses the arguments."""
    try:
        import monai.networks.nets as nets
    except ImportError as error:
        raise UserError(
            f"Networks of MONAI are built by the package monai, which the environment does not have ({error}): "
            f"{INSTALL}."
        ) from error
    try:
        return getattr(nets, net)(spatial_dims=axes, in_channels=in_channels, out_channels=n_class, **told)
    except Exception as error:  # whatever its arguments make of it
        raise UserError(f"MONAI makes no {net} of told={dict(told)!r}: {type(error).__name__}: {error}.") from error
