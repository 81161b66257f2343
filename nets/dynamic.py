"""The U-Nets of nnU-Net v2, plain and with a residual encoder, as its plans describe them.

They are built by the package dynamic-network-architectures, of which nnU-Net's own networks are, and then taken apart
into the pieces that every network here has. The heads of deep supervision are left out. A program that meets no such
network does not need the package.
"""

from collections.abc import Mapping, Sequence
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor, nn

from nets.base import CONVOLUTIONS, MOST, NETWORKS, WIDEST, Network, xavier
from nets.instance_norm import INSTANCE_NORMS
from processes.errors import UserError
from utils import fits, listing

INSTALL = "pip install dynamic-network-architectures==0.4.4"
LARGEST = 15  # voxels of a kernel along an axis
ALIASES = ("conv", "norm", "nonlin", "dropout")  # second names of a block's layers, whose first are in `all_modules`
OURS = {"encoder.": "encoder.", "decoder.transpconvs.": "up.", "decoder.stages.": "decoder."}  # by nnU-Net's names
HEADS = "decoder.seg_layers."


class _DynamicUNet(Network):
    """Base class: stages that each halve what they are told to, transposed convolutions back up, all with skips.

    widths         channels of each stage, the finest first
    strides        of each stage along each axis; those of the first are 1
    kernels        sizes along each axis, of each stage
    convs          convolutions of each stage of the encoder; with `residual` its blocks of two convolutions
    decoder_convs  convolutions of each stage of the decoder, the coarsest first

    Instance norms, no batch norms: --bn_stats has nothing to do, --trainable bn means their scale and shift.
    """

    keeps_channels_last = False  # torch's instance norm gives its maps back channel by channel

    def __init__(self, in_channels: int, n_class: int, **shape: Any) -> None:
        super().__init__(in_channels, n_class)
        self._check(shape)
        self.coarser = tuple(shape["widths"][1:-1])
        self.multiples = tuple(map(prod, zip(*shape["strides"], strict=True)))
        self.multiple = lcm(*self.multiples)
        whole = _unet(self.axes, in_channels, n_class, **shape)
        self.encoder, self.up, self.decoder = whole.encoder, whole.decoder.transpconvs, whole.decoder.stages
        self.apply(_without_aliases)
        self.apply(xavier)
        self.classifier = self._head(shape["widths"][0])

    def _check(self, shape: Mapping[str, Any]) -> None:
        """Raises UserError for parameters that are no network's."""
        stages = len(shape["widths"]) if fits(shape["widths"], Sequence[int]) else 0
        per_axis = {name: shape[name] for name in ("strides", "kernels")}
        counts = {"convs": (shape["convs"], stages), "decoder_convs": (shape["decoder_convs"], stages - 1)}
        wrong = [] if 2 <= stages <= MOST["depth"] else [f"widths={shape['widths']!r}"]
        wrong += [] if wrong or all(1 <= each <= WIDEST for each in shape["widths"]) else [f"widths={shape['widths']}"]
        wrong += [f"{name}={each!r}" for name, each in per_axis.items() if not _is_by_axis(each, stages, self.axes)]
        wrong += (
            [] if wrong or all(n % 2 for each in shape["kernels"] for n in each) else [f"kernels={shape['kernels']}"]
        )
        wrong += [f"{name}={each!r}" for name, (each, count) in counts.items() if not _is_count(each, count)]
        wrong += [] if isinstance(shape["residual"], bool) else [f"residual={shape['residual']!r}"]
        if wrong:
            raise UserError(
                f"{type(self).__name__} needs for each of its 2 to {MOST['depth']} stages a width, a stride and a "
                f"kernel of {self.axes} whole numbers (odd, up to {LARGEST}), convs from 1 up, and one decoder_convs "
                f"fewer; residual is True or False. It cannot have {listing(wrong)}."
            )

    def _missing(self, image: Tensor) -> list[int]:
        """An image of which one pixel would be left at its coarsest, where nothing can be normalised, has two."""
        missing = super()._missing(image)
        if all(
            size + more == least for size, more, least in zip(image.shape[2:], missing, self.multiples, strict=True)
        ):
            missing[-1] += self.multiples[-1]
        return missing

    def features(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H), or (B,C,D,W,H), padded here -> the maps of the decoder, bottleneck to last."""
        skips = self.encoder(self.pad(image))
        maps = [skips[-1]]
        for up, convs, skip in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            maps.append(convs(torch.cat((up(maps[-1]), skip), dim=1)))
        return maps


@NETWORKS.register()
class DynamicUNet(_DynamicUNet):
    """The network of an nnU-Net configuration 2d."""

    def __init__(
        self,
        in_channels: int,
        n_class: int,
        *,
        widths: Sequence[int] = (4, 8, 8),
        strides: Sequence[Sequence[int]] = ((1, 1), (2, 2), (2, 2)),
        kernels: Sequence[Sequence[int]] = ((3, 3), (3, 3), (3, 3)),
        convs: Sequence[int] = (2, 2, 2),
        decoder_convs: Sequence[int] = (2, 2),
        residual: bool = False,
    ) -> None:
        shape = {"widths": widths, "strides": strides, "kernels": kernels, "convs": convs}
        super().__init__(in_channels, n_class, decoder_convs=decoder_convs, residual=residual, **shape)


@NETWORKS.register()
class DynamicUNet3D(_DynamicUNet):
    """The network of an nnU-Net configuration 3d_fullres or 3d_lowres."""

    axes = 3

    def __init__(
        self,
        in_channels: int,
        n_class: int,
        *,
        widths: Sequence[int] = (4, 8, 8),
        strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels: Sequence[Sequence[int]] = ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        convs: Sequence[int] = (2, 2, 2),
        decoder_convs: Sequence[int] = (2, 2),
        residual: bool = False,
    ) -> None:
        shape = {"widths": widths, "strides": strides, "kernels": kernels, "convs": convs}
        super().__init__(in_channels, n_class, decoder_convs=decoder_convs, residual=residual, **shape)


def own_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of nnU-Net's network under the names of the one here, without those that it has not.

    Its state dict names most layers twice or thrice.
    """
    last = max((name.split(".")[2] for name in theirs if name.startswith(HEADS)), key=int, default="")
    found = {}
    for name, value in theirs.items():
        for prefix, own in {**OURS, f"{HEADS}{last}.": "classifier."}.items():
            if name.startswith(prefix) and not any(f".{alias}." in name for alias in ALIASES):
                found[own + name.removeprefix(prefix)] = value
    return found


def _unet(axes: int, in_channels: int, n_class: int, **shape: Any) -> nn.Module:
    """The package's network. Raises UserError where the package is not there."""
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    except ImportError as error:
        raise UserError(
            "Networks of nnU-Net are built by the package dynamic-network-architectures, which the environment does "
            f"not have ({error}): {INSTALL}."
        ) from error
    kind, convs = (
        (PlainConvUNet, "n_conv_per_stage") if not shape["residual"] else (ResidualEncoderUNet, "n_blocks_per_stage")
    )
    return kind(
        input_channels=in_channels,
        n_stages=len(shape["widths"]),
        features_per_stage=list(shape["widths"]),
        conv_op=CONVOLUTIONS[axes],
        kernel_sizes=[list(each) for each in shape["kernels"]],
        strides=[list(each) for each in shape["strides"]],
        num_classes=n_class,
        n_conv_per_stage_decoder=list(shape["decoder_convs"]),
        conv_bias=True,
        norm_op=INSTANCE_NORMS[axes],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **{convs: list(shape["convs"])},
    )


def _without_aliases(module: nn.Module) -> None:
    """For `apply`: a layer has one name, so that a state dict holds each tensor once."""
    if isinstance(getattr(module, "all_modules", None), nn.Sequential):
        for alias in ALIASES:
            if alias in module._modules:
                delattr(module, alias)


def _is_by_axis(value: Any, stages: int, axes: int) -> bool:
    is_list = fits(value, Sequence[Sequence[int]]) and len(value) == stages
    return is_list and all(len(each) == axes and all(1 <= n <= LARGEST for n in each) for each in value)


def _is_count(value: Any, count: int) -> bool:
    return fits(value, Sequence[int]) and len(value) == count and all(1 <= each <= 99 for each in value)
