"""Segmentation networks: image (B,C,W,H) float -> logits (B,K,W,H), for any C, K, W and H; UNet3D takes (B,C,D,W,H).

Each is built from (in_channels, n_class, **params); all but DeepLabVGG, UNet3D and the DynamicUNets hold BatchNorm
layers; a MonaiNet may. The attribute `classifier` is its last layer: a method that keeps the class boundaries of the
source network freezes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nets.deeplab
import nets.dynamic
import nets.enet
import nets.monai_networks  # noqa: F401
from nets.base import NETWORKS, Network, batch_norms, initialise, xavier
from nets.filling import fitting_weights
from nets.instance_norm import InstanceNorm3d
from nets.norm_mixing import ITEMS, OPTION
from nets.weight_checks import within_memory
from processes.errors import UserError
from utils import read_literal


def build_network(text: str, in_channels: int, n_class: int) -> nn.Module:
    """The network of a command-line value: `UNet`, `UNet:nG=16`, `Name:a=1,b=[2,3]`.

    Raises UserError for malformed text, an unknown network or parameter, and a value that it cannot have.
    """
    make = partial(_build, text, in_channels, n_class)
    return within_memory(make, f"--network {text}", "smaller widths, as in UNet:nG=32")


def ghost_network(text: str, in_channels: int, n_class: int) -> nn.Module:
    """The network of a command-line value with shapes alone.

    Its weights take no memory, and no number is drawn from the random generator.
    """
    with torch.device("meta"):
        return _build(text, in_channels, n_class)


def network_of(state: Mapping[str, Any], weights: Path) -> nn.Module:
    """The network of a checkpoint, with its weights, which are looked at before as many of its own are made."""
    built = [state[each] for each in ("network", "in_channels", "n_class")]
    theirs = fitting_weights(ghost_network(*built), weights, *built)
    net = build_network(*built)
    net.load_state_dict(theirs)
    return net


def _build(text: str, in_channels: int, n_class: int) -> nn.Module:
    name, colon, rest = text.partition(":")
    params = _read_params(rest, text) if colon else {}
    mixes = params.pop(OPTION, False)
    net = NETWORKS.build(name.strip(), in_channels, n_class, **params)
    if not isinstance(mixes, bool):
        raise UserError(f"--network {text}: {OPTION} is True or False, not {mixes!r}.")
    if mixes and not batch_norms(net):
        raise UserError(f"{name.strip()} has no batch norm whose statistics could be mixed (--bn_mix); leave it out.")
    net.mixes = mixes
    return net


def network_class(text: str) -> type[Network]:
    """The class that such a value names. Raises UserError for an unknown one."""
    return NETWORKS[text.partition(":")[0].strip()]


def _read_params(rest: str, text: str) -> dict[str, Any]:
    form = f"'{text}' is not of the form NAME or NAME:PARAM=VALUE,PARAM=VALUE, for example UNet:nG=16"
    params: dict[str, Any] = {}
    for item in ITEMS.split(rest):
        key, _, value = (part.strip() for part in item.partition("="))
        if not key.isidentifier() or not value or value.endswith(","):
            raise UserError(f"{form}: cannot read '{item}'.")
        if key in params:
            raise UserError(f"{form}: '{key}' is given twice.")
        try:
            params[key] = read_literal(value)
        except UserError as error:
            raise UserError(f"{form}. {error}") from error
    return params


# --------------------------------------------------------------------------------------------- U-Nets


class EncoderDecoder(Network):
    """Base class: an encoder, a decoder of blocks that each take in one of the encoder's maps, a classifier.

    A subclass sets `widths`, the channels of all maps of `decode`, and implements `encode`. It implements `_block`
    unless its blocks are UpBlocks, and `_ending` if layers lie between the last block and the classifier. `encoding`
    names the children that the encoder consists of, `decoding` the lists of which each block has one entry.
    """

    encoding: tuple[str, ...] = ("encoder",)
    decoding: tuple[str, ...] = ("decoder",)
    encoder: nn.ModuleList
    decoder: nn.ModuleList

    @property
    def n_blocks(self) -> int:
        return len(self.decoder)

    @property
    def coarser(self) -> tuple[int, ...]:
        return self.widths[-2:0:-1]

    def features(self, image: Tensor) -> list[Tensor]:
        """(B, C, W, H) -> maps (B, *, w, h) of the decoder, on the padded image: from the bottleneck to the last."""
        return self.decode(self.encode(self.pad(image)))

    def decode(self, maps: Sequence[Tensor], blocks: int | None = None) -> list[Tensor]:
        decoded = [maps[-1]]
        for block in range(self.n_blocks if blocks is None else self._checked(blocks)):
            decoded.append(self._block(block, decoded[-1], maps[-2 - block]))
        return decoded + self._ending(decoded[-1], maps[0]) if blocks is None else decoded

    def parts(self, blocks: int) -> tuple[str, ...]:
        encoder = tuple(f"{name}." for name in self.encoding)
        return encoder + tuple(f"{name}.{block}." for block in range(self._checked(blocks)) for name in self.decoding)

    def _checked(self, blocks: int) -> int:
        if not 0 <= blocks <= self.n_blocks:
            raise UserError(
                f"The decoder of {type(self).__name__} has {self.n_blocks} blocks; give 0 (its encoder alone) to "
                f"{self.n_blocks} of them, not {blocks}, or take another network."
            )
        return blocks

    def _block(self, block: int, x: Tensor, skip: Tensor) -> Tensor:
        """What decoder block `block` = 0, 1, … makes of the map before it and the encoder's of twice its size."""
        return self.decoder[block](x, skip)

    def _ending(self, x: Tensor, finest: Tensor) -> list[Tensor]:
        """The map that the classifier reads, of the last block's and the encoder's finest; none if it is the former."""
        return []


def chain(levels: Iterable[nn.Module], image: Tensor, *, pooled: bool = False) -> list[Tensor]:
    """(B, C, W, H) -> maps (B, *, w, h), one per level. Each level reads the map before it, the first the image.

    pooled: whether each map is halved before the next level reads it
    """
    first, *others = levels
    maps = [first(image)]
    for level in others:
        maps.append(level(F.max_pool2d(maps[-1], 2) if pooled else maps[-1]))
    return maps


def conv_block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Convolution 3x3 without bias, batch norm, PReLU with one slope for the layer."""
    conv = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.PReLU())


def two_blocks(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Two conv_blocks, the stride on the first."""
    return nn.Sequential(conv_block(n_in, n_out, stride), conv_block(n_out, n_out))


class Residual(nn.Module):
    """x + f(x), then LeakyReLU(0.2); f has `n_conv` convolutions of which the last stays linear."""

    def __init__(self, width: int, n_conv: int) -> None:
        super().__init__()
        blocks = [conv_block(width, width) for _ in range(n_conv - 1)]
        # The bias is idle before a batch norm in training, but the published parameter count includes it.
        self.branch = nn.Sequential(*blocks, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.branch(x))


@NETWORKS.register()
class UNet(EncoderDecoder):
    """The U-Net of the published source-free experiments (Bateson et al., MICCAI 2020, MedIA 2022).

    Strided convolutions in place of pooling, a residual bridge, nearest-neighbour upsampling; widths nG, 2nG,
    4nG and 8nG. With nG=32, one channel and two classes it has 4,678,775 parameters. The published boundary loss has
    the same network with nG=64: 18,702,551.
    """

    multiple = 8
    encoding = ("encoder", "bridge")
    decoding = ("up", "decoder")
    published = ("encoder", "bridge", "up.0", "decoder.0", "up.1", "decoder.1", "up.2", "decoder.2", "classifier")

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 32) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        w1, w2, w3, w4 = nG, 2 * nG, 4 * nG, 8 * nG
        self.widths = (w4, w3, w2, w1)
        self.encoder = nn.ModuleList([two_blocks(in_channels, w1), two_blocks(w1, w2, 2), two_blocks(w2, w3, 2)])
        self.bridge = nn.Sequential(conv_block(w3, w4, 2), Residual(w4, n_conv=2), conv_block(w4, w4))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), two_blocks(w, w)) for w in (w4, w3, w2)
        )
        self.decoder = nn.ModuleList(two_blocks(below + skip, skip) for below, skip in ((w4, w3), (w3, w2), (w2, w1)))
        self.classifier = nn.Conv2d(w1, n_class, 1)
        self.apply(initialise)

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H), W and H divisible by 8 -> (B,nG,W,H), (B,2nG,W/2,H/2), (B,4nG,W/4,H/4), bridge (B,8nG,W/8,H/8)."""
        return chain((*self.encoder, self.bridge), image)

    def _block(self, block: int, x: Tensor, skip: Tensor) -> Tensor:
        return self.decoder[block](torch.cat((self.up[block](x), skip), dim=1))


@NETWORKS.register()
class ResidualUNet(EncoderDecoder):
    """FusionNet (Quan, Hildebrand, Jeong, 2016/2021): residual blocks at each level and additive skips.

    Four max-poolings, widths nG to 16nG. Differs from the paper in its activation, PReLU.
    """

    multiple = 16
    decoding = ("up", "decoder")

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 32) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        widths = [nG * 2**level for level in range(5)]
        self.widths = tuple(reversed(widths))
        pairs = list(zip([in_channels, *widths], widths, strict=False))
        self.encoder = nn.ModuleList(self._level(n_in, n_out) for n_in, n_out in pairs)
        self.up = nn.ModuleList(self._up(n_out, n_in) for n_in, n_out in reversed(pairs[1:]))
        self.decoder = nn.ModuleList(self._level(width, width) for width in reversed(widths[:-1]))
        self.classifier = nn.Conv2d(nG, n_class, 1)
        self.apply(initialise)

    @staticmethod
    def _level(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(conv_block(n_in, n_out), Residual(n_out, n_conv=3), conv_block(n_out, n_out))

    @staticmethod
    def _up(n_in: int, n_out: int) -> nn.Sequential:
        conv = nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.PReLU())

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H), W and H divisible by 16 -> five maps, (B,nG,W,H) to (B,16nG,W/16,H/16)."""
        return chain(self.encoder, image, pooled=True)

    def _block(self, block: int, x: Tensor, skip: Tensor) -> Tensor:
        return self.decoder[block](self.up[block](x) + skip)


class UpBlock(nn.Module):
    """Decoder block: upsample the map, concatenate the encoder's, convolve."""

    def __init__(self, up: nn.Module, convs: nn.Module) -> None:
        super().__init__()
        self.up, self.convs = up, convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(torch.cat((self.up(x), skip), dim=1))


def relu_block(n_in: int, n_out: int, size: int = 3, padding: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(n_in, n_out, size, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out, eps=1e-3), nn.ReLU())


def two_relu_blocks(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(relu_block(n_in, n_out), relu_block(n_out, n_out))


@NETWORKS.register()
class PooledUNet(EncoderDecoder):
    """The U-Net of the published contrastive pre-training (Chaitanya et al., NeurIPS 2020): six levels, max-pooling.

    Widths nG, 2nG, 4nG and thrice 8nG; two more convolutions, `head`, between decoder and classifier. Differs in that
    the convolutions before a batch norm have no bias, which would do nothing.

    bn_decay: how much of the running statistics a step keeps. With the published 0.99 they lag a hundred steps behind
        the weights, and a training of a few hundred steps from random weights is evaluated on those of its beginning.
    """

    multiple = 32

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 16, bn_decay: float = 0.99) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        if not isinstance(bn_decay, float) or not 0 <= bn_decay < 1:
            raise UserError(f"PooledUNet's bn_decay is a number from 0 to below 1, such as 0.99; got {bn_decay!r}.")
        levels = [nG * factor for factor in (1, 2, 4, 8, 8, 8)]
        self.widths = (*reversed(levels), nG)
        self.encoder = nn.ModuleList(two_relu_blocks(n_in, n_out) for n_in, n_out in pairwise([in_channels, *levels]))
        self.decoder = nn.ModuleList(self._up_block(below, skip) for below, skip in pairwise(reversed(levels)))
        self.decoder[-1].convs = relu_block(2 * nG, nG)  # one, at full resolution
        self.head = two_relu_blocks(nG, nG)
        self.classifier = nn.Conv2d(nG, n_class, 3, padding=1, bias=False)
        self.apply(xavier)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1 - bn_decay

    @staticmethod
    def _up_block(below: int, skip: int) -> UpBlock:
        # The 2x2 convolution keeps the size by one more row and column at the far end.
        enlarge = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.ZeroPad2d((0, 1, 0, 1)))
        up = nn.Sequential(enlarge, relu_block(below, skip, size=2, padding=0))
        return UpBlock(up, two_relu_blocks(2 * skip, skip))

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H), W and H divisible by 32 -> six maps, (B,nG,W,H) to (B,8nG,W/32,H/32)."""
        return chain(self.encoder, image, pooled=True)

    def _ending(self, x: Tensor, finest: Tensor) -> list[Tensor]:
        return [self.head(x)]


# --------------------------------------------------------------------------------------------- volumes


def volume_block(n_in: int, n_out: int, act: nn.Module, stride: int = 1) -> nn.Sequential:
    """Convolution 3x3x3 without bias, instance norm with scale and shift, activation."""
    conv = nn.Conv3d(n_in, n_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, InstanceNorm3d(n_out, affine=True), act)


def two_volume_blocks(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Two volume_blocks with PReLU, the stride on the first."""
    return nn.Sequential(volume_block(n_in, n_out, nn.PReLU(), stride), volume_block(n_out, n_out, nn.PReLU()))


class ForegroundLogit(nn.Conv3d):
    """Convolution 1x1x1 to one map f, given as the logits (0, f) of two classes: their softmax is the sigmoid of f."""

    def __init__(self, n_in: int) -> None:
        super().__init__(n_in, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,D,W,H) -> (B,2,D,W,H)."""
        f = super().forward(x)
        return torch.cat((torch.zeros_like(f), f), dim=1)


@NETWORKS.register()
class UNet3D(EncoderDecoder):
    """The 3D U-Net of the published Bayesian pseudo labels (Xu et al., MICCAI 2022, MedIA 2024).

    A stem, `depth` strided levels that each double its `width`, trilinear upsampling, and one more block, `last`, on
    stem and decoder side by side. `binary` is the published network of one output and a sigmoid (see ForegroundLogit).
    A block of the decoder sees the upsampled map first and the encoder's second, the published one the other way round:
    `from_published` turns the weights.
    """

    axes = 3
    align_corners = True
    encoding = ("stem", "encoder")
    published = ("stem", "decoder", "encoder", "last", "classifier")
    keeps_channels_last = False  # torch's instance norm gives its maps back channel by channel

    def __init__(
        self, in_channels: int, n_class: int, *, width: int = 10, depth: int = 3, binary: bool = False
    ) -> None:
        super().__init__(in_channels, n_class, width=width, depth=depth)
        if not isinstance(binary, bool) or (binary and n_class != 2):
            raise UserError(
                f"UNet3D:binary={binary!r} with n_class={n_class} cannot be: binary is True or False, and a network of "
                "one output knows two classes. Leave it out for the classes' own logits."
            )
        self.binary, self.multiple = binary, 2**depth
        levels = [width * 2**level for level in range(depth + 1)]
        self.widths = (*reversed(levels), 2 * width)
        self.stem = volume_block(in_channels, width, nn.ReLU())
        self.encoder = nn.ModuleList(two_volume_blocks(n_in, n_out, stride=2) for n_in, n_out in pairwise(levels))
        up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)  # holds nothing, so all blocks share it
        self.decoder = nn.ModuleList(
            UpBlock(up, two_volume_blocks(below + skip, skip)) for below, skip in pairwise(reversed(levels))
        )
        self.last = two_volume_blocks(2 * width, 2 * width)
        self.apply(xavier)
        self.classifier = self._head(2 * width)

    def _head(self, n_in: int) -> nn.Module:
        return ForegroundLogit(n_in).apply(xavier) if self.binary else super()._head(n_in)

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B,C,D,W,H), all divisible by m = 2**depth -> (B,width,D,W,H) to (B,m·width,D/m,W/m,H/m).

        Raises UserError for an image of which the bottleneck would hold one voxel.
        """
        size = image.shape[2:]
        if size.numel() == self.multiple**3:
            raise UserError(
                f"UNet3D halves a volume {self.n_blocks} times and normalises over what is left, which must be more "
                f"than one voxel. One of the three axes needs {self.multiple + 1} voxels or more; this volume has "
                f"{' x '.join(map(str, size))} with its padding. Take a larger --crop or a smaller depth."
            )
        return chain((self.stem, *self.encoder), image)

    def from_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        turned = dict(state)
        for block, skip in enumerate(self.widths[1:-1]):
            name = f"decoder.{block}.convs.0.0.weight"
            turned[name] = torch.cat((state[name][:, skip:], state[name][:, :skip]), dim=1)
        return turned

    def _ending(self, x: Tensor, finest: Tensor) -> list[Tensor]:
        return [self.last(torch.cat((finest, x), dim=1))]


# ------------------------------------------------------------------------------------------ smoke tests


@NETWORKS.register("Dummy")
class Dimwit(Network):
    """Two convolutions, for trying out everything around the network."""

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 8) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        conv = nn.Conv2d(in_channels, nG, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.BatchNorm2d(nG), nn.ReLU())
        self.coarser = (nG,)
        self.classifier = nn.Conv2d(nG, n_class, 1)
        self.apply(initialise)

    def features(self, image: Tensor) -> list[Tensor]:
        """The one map (B,nG,W,H), twice, so that runs with a head on a second level can be tried out too."""
        finest = self.body(image)
        return [finest, finest]
