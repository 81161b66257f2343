"""Dropout for networks that have none: of the channels of the map that the decoder begins with."""

from typing import Any

from torch import Tensor, nn


class WithDropout(nn.Module):
    """The network, called with what is kept of the channels of one map: that which the first decoder block reads.

    A network without an encoder of its own loses channels of the map that its classifier reads. In every other call,
    and in evaluation, the network is as it was.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.kept = net, None
        begins, self.channels = decoder_of(net)
        begins.register_forward_pre_hook(self._drop)

    def forward(self, image: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, C, …) -> logits (B, K, …). kept: (B, channels) factors of the map's channels, 0 for what is dropped."""
        self.kept = kept
        try:
            return self.net(image)
        finally:
            self.kept = None

    def _drop(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.kept is None:
            return None
        maps, *others = inputs
        return reweighted(maps, self.kept), *others


def decoder_of(net: nn.Module) -> tuple[nn.Module, int]:
    """What reads the bottleneck, or the classifier of a network without an encoder, and how many channels it reads."""
    if net.n_blocks:
        encoder = net.parts(0)
        first = next(prefix for prefix in net.parts(1) if prefix not in encoder)
        return net.get_submodule(first.removesuffix(".")), net.widths[0]
    return net.classifier, width_of(net.classifier)


def reweighted(maps: Tensor, factors: Tensor) -> Tensor:
    """Maps (B, C, …) with their channels multiplied by factors, (C,) or (B, C)."""
    return maps * factors.to(maps.dtype).view(*factors.shape, *[1] * (maps.ndim - 2))


def width_of(classifier: nn.Module) -> int:
    """The channels of the map that a classifier reads."""
    return next(part.in_channels for part in classifier.modules() if hasattr(part, "in_channels"))
