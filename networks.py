"""Segmentation networks: image (B,C,W,H) float -> logits (B,K,W,H), for any C, K, W and H.

Each is built from (in_channels, n_class, **params); all but DeepLabVGG hold BatchNorm layers. The attribute
`classifier` is its last layer: a method that keeps the class boundaries of the source network freezes it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import ASPP, DilatedResNet, Normalise, dilated_vgg16, he_normal, load_trunk
from utils import Registry, UserError, listing, read_literal

NETWORKS = Registry("network")


def build_network(text: str, in_channels: int, n_class: int) -> nn.Module:
    """The network of a command-line value: `UNet`, `UNet:nG=16`, `Name:a=1,b=[2,3]`.

    Raises UserError for malformed text, an unknown network or parameter, and a value that it cannot have.
    """
    name, colon, rest = text.partition(":")
    params = _read_params(rest, text) if colon else {}
    return NETWORKS.build(name.strip(), in_channels, n_class, **params)


def _read_params(rest: str, text: str) -> dict[str, Any]:
    form = f"'{text}' is not of the form NAME or NAME:PARAM=VALUE,PARAM=VALUE, for example UNet:nG=16"
    params: dict[str, Any] = {}
    for item in re.split(r",(?=\s*\w+\s*=)", rest):  # not at the commas within a list
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


# ------------------------------------------------------------------------------------------ shared pieces


class Network(nn.Module):
    """Base class: `forward` is `logits` on an image padded to a multiple of `multiple`, cropped back.

    The padding repeats the last row and column, at the far end of each axis, so pixel (0,0) stays where it is.
    A subclass implements `features`. Its `coarser` are the channels of the maps before the classifier's that heads
    of their own can classify, the nearest first; `head_rate` is the learning-rate factor of such a head.
    """

    multiple: int = 1
    align_corners: bool = False
    coarser: tuple[int, ...] = ()
    head_rate: float = 1.0
    classifier: nn.Module

    def __init__(self, in_channels: int, n_class: int, **widths: int) -> None:
        super().__init__()
        least = {"in_channels": 1, "n_class": 2} | dict.fromkeys(widths, 1)  # background is a class
        given: dict[str, Any] = {"in_channels": in_channels, "n_class": n_class} | widths
        wrong = [
            f"{key}={given[key]!r} (at least {least[key]})"
            for key in given
            if isinstance(given[key], bool) or not isinstance(given[key], int) or given[key] < least[key]
        ]
        if wrong:
            raise UserError(f"{type(self).__name__} needs whole numbers; it cannot have {listing(wrong)}.")
        self.n_class = n_class

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,W,H) -> (B,K,W,H)."""
        width, height = image.shape[-2:]
        return self.logits(self.pad(image))[..., :width, :height]

    def pad(self, image: Tensor) -> Tensor:
        """(B,C,W,H) -> (B,C,W',H'), the next multiples; an image that fits comes back itself."""
        right, below = (-size % self.multiple for size in image.shape[-2:])
        return F.pad(image, (0, below, 0, right), mode="replicate") if right or below else image

    def features(self, image: Tensor) -> list[Tensor]:
        """Maps (B,*,w,h) of the padded image, coarse to fine; the classifier reads the last."""
        raise NotImplementedError

    def logits(self, image: Tensor) -> Tensor:
        """(B,C,W,H) -> (B,K,W,H), W and H divisible by `multiple`."""
        return self._classify(image, [self.classifier])[0]

    def levels(self, image: Tensor, heads: Sequence[nn.Module]) -> list[Tensor]:
        """Logits (B,K,W,H) of the classifier, then those of head 1, 2, … on coarser and coarser maps; one pass."""
        width, height = image.shape[-2:]
        return [logits[..., :width, :height] for logits in self._classify(self.pad(image), [self.classifier, *heads])]

    def _classify(self, image: Tensor, classifiers: Sequence[nn.Module]) -> list[Tensor]:
        """Logits (B,K,W,H) of each classifier on a map of its own, the finest first; W, H as in `logits`."""
        maps = self.features(image)[::-1][: len(classifiers)]
        return [
            self._upsample(classify(level), image.shape[-2:]) for classify, level in zip(classifiers, maps, strict=True)
        ]

    def _upsample(self, logits: Tensor, size: torch.Size) -> Tensor:
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)

    def make_head(self, level: int) -> nn.Module:
        """A fresh classifier of the map that lies `level` = 1, 2, … before the classifier's own, for `levels`.

        Raises UserError where the network has no such map.
        """
        most = 1 + len(self.coarser)
        if not 1 <= level < most:
            raise UserError(
                f"{type(self).__name__} has {most} level{'s' if most > 1 else ''} of logits, not {level + 1}. "
                f"Give --lambda_adv {f'at most {most} weights' if most > 1 else 'one weight'}, or take another network."
            )
        return self._head(self.coarser[level - 1])

    def _head(self, n_in: int) -> nn.Module:
        head = nn.Conv2d(n_in, self.n_class, 1)
        initialise(head)
        return head

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """The parameters that require a gradient, in groups, each with its learning-rate factor."""
        return [(_trainable(self), 1.0)]

    def load_backbone(self, path: Path) -> None:
        """Fills the pre-trained part from a state dict. Raises UserError where there is none or it does not fit."""
        raise UserError(
            f"{type(self).__name__} has no pre-trained backbone; DeepLabV2 and DeepLabVGG have one. "
            f"Leave {path} (--backbone_weights) out, or change the network."
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def initialise(module: nn.Module) -> None:
    """For `apply`: Xavier-normal convolutions, batch-norm weights from N(1, 0.02), every bias 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


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


# --------------------------------------------------------------------------------------------- U-Nets


@NETWORKS.register()
class UNet(Network):
    """The U-Net of the published source-free experiments (Bateson et al., MICCAI 2020, MedIA 2022).

    Strided convolutions in place of pooling, a residual bridge, nearest-neighbour upsampling; widths nG, 2nG,
    4nG and 8nG. With nG=32, one channel and two classes it has 4,678,775 parameters.
    """

    multiple = 8

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 32) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        w1, w2, w3, w4 = nG, 2 * nG, 4 * nG, 8 * nG
        self.coarser = (w2, w3)
        self.encoder = nn.ModuleList([two_blocks(in_channels, w1), two_blocks(w1, w2, 2), two_blocks(w2, w3, 2)])
        self.bridge = nn.Sequential(conv_block(w3, w4, 2), Residual(w4, n_conv=2), conv_block(w4, w4))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), two_blocks(w, w)) for w in (w4, w3, w2)
        )
        self.decoder = nn.ModuleList(two_blocks(below + skip, skip) for below, skip in ((w4, w3), (w3, w2), (w2, w1)))
        self.classifier = nn.Conv2d(w1, n_class, 1)
        self.apply(initialise)

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps that the decoder makes, coarse to fine, of the padded image (B,C,W',H').

        Bridge (B,8nG,W'/8,H'/8), then (B,4nG,W'/4,H'/4), (B,2nG,W'/2,H'/2) and (B,nG,W',H').
        """
        x = self.pad(image)
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        maps = [self.bridge(x)]
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            maps.append(level(torch.cat((up(maps[-1]), skip), dim=1)))
        return maps


@NETWORKS.register()
class ResidualUNet(Network):
    """FusionNet (Quan, Hildebrand, Jeong, 2016/2021): residual blocks at each level and additive skips.

    Four max-poolings, widths nG to 16nG. Differs from the paper in its activation, PReLU.
    """

    multiple = 16

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 32) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        widths = [nG * 2**level for level in range(5)]
        self.coarser = tuple(widths[1:-1])
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

    def features(self, image: Tensor) -> list[Tensor]:
        """As UNet's, five of them: (B,16nG,W'/16,H'/16) to (B,nG,W',H')."""
        x = self.encoder[0](self.pad(image))
        skips = []
        for level in self.encoder[1:]:
            skips.append(x)
            x = level(F.max_pool2d(x, 2))
        maps = [x]
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            maps.append(level(up(maps[-1]) + skip))
        return maps


# ------------------------------------------------------------------------------------------------ ENet


def _activation(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width))


class _Bottleneck(nn.Module):
    """x + f(x), then PReLU; f = narrow to a quarter, `middle` (3x3 if None), widen, drop whole channels."""

    def __init__(
        self, n_in: int, n_out: int, dropout: float, *, step: int = 1, middle: nn.Module | None = None
    ) -> None:
        super().__init__()
        inner = self.inner(n_out)
        self.branch = nn.Sequential(
            nn.Conv2d(n_in, inner, step, step, bias=False),
            _activation(inner),
            middle or nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            _activation(inner),
            nn.Conv2d(inner, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.Dropout2d(dropout),
        )
        self.act = nn.PReLU(n_out)

    @staticmethod
    def inner(n_out: int) -> int:
        return max(1, n_out // 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.branch(x))


class _Down(_Bottleneck):
    """Halves W and H: the main path is max-pooled and gets zero channels; hands on where its maxima were."""

    def __init__(self, n_in: int, n_out: int, dropout: float) -> None:
        super().__init__(n_in, n_out, dropout, step=2)
        self.extra = n_out - n_in

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, where = F.max_pool2d(x, 2, return_indices=True)
        main = F.pad(pooled, (0, 0, 0, 0, 0, self.extra))
        return self.act(main + self.branch(x)), where


class _Up(_Bottleneck):
    """Doubles W and H: the main path puts each value back where the maximum was, zeros elsewhere."""

    def __init__(self, n_in: int, n_out: int, dropout: float) -> None:
        inner = self.inner(n_out)
        deconv = nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=False)
        super().__init__(n_in, n_out, dropout, middle=deconv)
        self.main = nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        return self.act(unpool(self.main(x), where) + self.branch(x))


def unpool(x: Tensor, where: Tensor) -> Tensor:
    """(B,C,W,H), places in the larger plane -> (B,C,2W,2H).

    Torch's own max-unpooling raises under deterministic algorithms; a scatter to distinct places does not.
    """
    batch, channels, width, height = x.shape
    plane = x.new_zeros(batch, channels, 4 * width * height)
    return plane.scatter(2, where.flatten(2), x.flatten(2)).view(batch, channels, 2 * width, 2 * height)


class _Initial(nn.Module):
    """Halves W and H: strided convolution beside the max-pooled image.

    Without room for the image's own channels (C >= width) the convolution is all there is.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.with_image = in_channels < width
        n_conv = width - in_channels if self.with_image else width
        self.conv = nn.Conv2d(in_channels, n_conv, 3, stride=2, padding=1, bias=False)
        self.act = _activation(width)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        return self.act(torch.cat((x, F.max_pool2d(image, 2)), dim=1) if self.with_image else x)


@NETWORKS.register()
class ENet(Network):
    """ENet (Paszke, Chaurasia, Kim, Culurciello, 2016); `kernels` is the width at half resolution, 16 there.

    PReLU has a slope per channel, as in the paper.
    """

    multiple = 8

    def __init__(self, in_channels: int, n_class: int, *, kernels: int = 16) -> None:
        super().__init__(in_channels, n_class, kernels=kernels)
        half, quarter, eighth = kernels, 4 * kernels, 8 * kernels
        self.initial = _Initial(in_channels, half)
        self.down1 = _Down(half, quarter, 0.01)
        self.stage1 = nn.Sequential(*(_Bottleneck(quarter, quarter, 0.01) for _ in range(4)))
        self.down2 = _Down(quarter, eighth, 0.1)
        self.stage23 = nn.Sequential(*self._dilated_stage(eighth), *self._dilated_stage(eighth))
        self.up4 = _Up(eighth, quarter, 0.1)
        self.stage4 = nn.Sequential(*(_Bottleneck(quarter, quarter, 0.1) for _ in range(2)))
        self.up5 = _Up(quarter, half, 0.1)
        self.stage5 = _Bottleneck(half, half, 0.1)
        self.classifier = nn.ConvTranspose2d(half, n_class, 2, stride=2)
        self.apply(initialise)

    @staticmethod
    def _dilated_stage(width: int) -> list[nn.Module]:
        """Bottlenecks 1 to 8 of the paper's stage 2: regular or 5x1 + 1x5, and dilated by 2, 4, 8, 16."""
        inner = _Bottleneck.inner(width)
        layers: list[nn.Module] = []
        for dilation in (2, 4, 8, 16):
            asymmetric = nn.Sequential(
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False),
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
            )
            dilated = nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False)
            first = asymmetric if dilation in (4, 16) else None
            layers += [_Bottleneck(width, width, 0.1, middle=middle) for middle in (first, dilated)]
        return layers

    def features(self, image: Tensor) -> list[Tensor]:
        """The last map alone, (B,kernels,W'/2,H'/2) of the padded image."""
        x, where_half = self.down1(self.initial(self.pad(image)))
        x, where_quarter = self.down2(self.stage1(x))
        x = self.stage4(self.up4(self.stage23(x), where_quarter))
        return [self.stage5(self.up5(x, where_half))]


# --------------------------------------------------------------------------------------------- DeepLab

CHOICES = {
    "depth": (101, 50),
    "layout": ("torchvision", "caffe"),
    "aspp_branches": (4, 2),
    "align_corners": (False, True),
    "normalise": ("imagenet", "caffe", "none"),
}


class Pretrained(Network):
    """Base class: a classifier on a `trunk` that can be filled with weights learnt on ImageNet."""

    trunk: nn.Module

    def __init__(self, in_channels: int, n_class: int, *, normalise: str, align_corners: bool, **others: Any) -> None:
        """Raises UserError for a keyword whose value is none of CHOICES, and for a normalisation of other than RGB."""
        super().__init__(in_channels, n_class)
        name, given = type(self).__name__, {"normalise": normalise, "align_corners": align_corners} | others
        wrong = [
            f"{key}={value!r} (one of {listing(CHOICES[key])})"
            for key, value in given.items()
            if value not in CHOICES[key]
        ]
        if wrong:
            raise UserError(f"{name} comes in a few variants; it cannot have {listing(wrong)}.")
        if in_channels != 3 and normalise != "none":
            raise UserError(
                f"normalise={normalise} is for RGB images of three channels; these have {in_channels}. "
                f"Give {name}:normalise=none."
            )
        self.align_corners = align_corners
        self.normalise = nn.Identity() if normalise == "none" else Normalise(normalise)

    def load_backbone(self, path: Path) -> None:
        load_trunk(self.trunk, path)


@NETWORKS.register()
class DeepLabV2(Pretrained):
    """DeepLab-v2 on a ResNet (Chen et al., TPAMI 2018) as AdaptSegNet trains it (Tsai et al., CVPR 2018).

    Output stride 8. Batch-norm scale and shift are frozen, the statistics follow the batches. The published network is
    depth=101, layout=caffe, align_corners=True, normalise=caffe; its figures were made with aspp_branches=2, a bug
    that summed two of the four. `normalise` says what becomes of an RGB image in 0..1 (see `Normalise`); with
    normalise=none it may have any number of channels, but a pre-trained trunk is loaded for three only.
    """

    coarser = (1024,)
    head_rate = 10.0

    def __init__(
        self,
        in_channels: int,
        n_class: int,
        *,
        depth: int = 101,
        layout: str = "torchvision",
        aspp_branches: int = 4,
        align_corners: bool = False,
        normalise: str = "imagenet",
    ) -> None:
        variant = {"depth": depth, "layout": layout, "aspp_branches": aspp_branches}
        super().__init__(in_channels, n_class, normalise=normalise, align_corners=align_corners, **variant)
        self.aspp_branches = aspp_branches
        self.trunk = DilatedResNet(in_channels, depth, layout)
        self.classifier = self._head(2048)

    def features(self, image: Tensor) -> list[Tensor]:
        """layer3 (B,1024,w,h) and layer4 (B,2048,w,h), w and h about an eighth of W and H."""
        return self.trunk(self.normalise(image))

    def _head(self, n_in: int) -> nn.Module:
        return ASPP(n_in, self.n_class, self.aspp_branches)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(_trainable(self.trunk), 1.0), (_trainable(self.classifier), self.head_rate)]


@NETWORKS.register()
class DeepLabVGG(Pretrained):
    """The VGG-16 of AdaptSegNet (Tsai et al., CVPR 2018), one level, one learning rate, output stride 8.

    fc6 and fc7 are 3x3 convolutions of 1024 channels dilated by 4, and the classifier is ASPP. (In DeepLab-LargeFOV
    fc6 is dilated by 12, and fc7 and the classifier are 1x1.) Keywords as in DeepLabV2.
    """

    multiple = 8

    def __init__(
        self,
        in_channels: int,
        n_class: int,
        *,
        aspp_branches: int = 4,
        align_corners: bool = False,
        normalise: str = "imagenet",
    ) -> None:
        variant = {"aspp_branches": aspp_branches}
        super().__init__(in_channels, n_class, normalise=normalise, align_corners=align_corners, **variant)
        self.trunk = dilated_vgg16(in_channels)
        fc6, fc7 = (nn.Conv2d(n_in, 1024, 3, padding=4, dilation=4) for n_in in (512, 1024))
        self.fc = nn.Sequential(fc6, nn.ReLU(), fc7, nn.ReLU()).apply(he_normal)
        self.classifier = ASPP(1024, n_class, aspp_branches)

    def features(self, image: Tensor) -> list[Tensor]:
        """The map of fc7 alone, (B,1024,W'/8,H'/8) of the padded image."""
        return [self.fc(self.trunk(self.normalise(self.pad(image))))]


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
