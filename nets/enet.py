"""ENet, of its paper and of the published boundary loss: (B,C,W,H) -> (B,K,W,H)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.base import NETWORKS, Network, initialise


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
    """Halves W and H: a strided convolution, and next to it the max-pooled image.

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
    keeps_channels_last = False  # the first layer joins maps to the pooled image, whose one channel has no layout

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


# ------------------------------------------------------------------------------- that of the boundary loss


def _block(n_in: int, n_out: int, size: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution with bias that keeps W and H, batch norm, PReLU with one slope for the layer."""
    conv = nn.Conv2d(n_in, n_out, size, padding=size // 2 * dilation, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.PReLU())


def _cross(width: int) -> nn.Sequential:
    """A 5x1 and a 1x5 convolution with bias, batch norm, PReLU."""
    convs = nn.Conv2d(width, width, (5, 1), padding=(2, 0)), nn.Conv2d(width, width, (1, 5), padding=(0, 2))
    return nn.Sequential(*convs, nn.BatchNorm2d(width), nn.PReLU())


def _xavier_weights(module: nn.Module) -> None:
    """For `apply`: as `initialise`, but biases stay as torch draws them."""
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm2d) and not module.weight.is_meta:
        nn.init.normal_(module.weight, 1.0, 0.02)


class _Branch(nn.Sequential):
    """`first`, `middle`, then widened to n_out, batch norm, PReLU, single values dropped."""

    def __init__(self, first: nn.Module, middle: nn.Module, inner: int, n_out: int, dropout: float) -> None:
        super().__init__(first, middle, _block(inner, n_out), nn.Dropout(dropout))


class _Sum(nn.Module):
    """PReLU of shortcut(x) + f(x); the branch f is a quarter as wide as x."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        dropout: float,
        *,
        middle: nn.Module | None = None,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inner = max(1, n_in // 4)
        self.branch = _Branch(_block(n_in, inner), middle or _block(inner, inner, 3), inner, n_out, dropout)
        self.act = nn.PReLU()
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.branch(x))


class _Halved(nn.Module):
    """Halves W and H: adds the branch to the max-pooled map with channels of zeros; hands on where its maxima were."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        inner, self.extra = max(1, n_in // 4), n_out - n_in
        first = nn.Sequential(nn.Conv2d(n_in, inner, 2, 2), nn.BatchNorm2d(inner), nn.PReLU())
        self.branch = _Branch(first, _block(inner, inner, 3), inner, n_out, 0.01)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, where = F.max_pool2d(x, 2, return_indices=True)
        return self.act(F.pad(pooled, (0, 0, 0, 0, 0, self.extra)) + self.branch(x)), where


@NETWORKS.register()
class PublishedENet(Network):
    """What the published boundary loss calls ENet (Kervadec et al., MIDL 2019, MedIA 2021).

    Unlike ENet it has biases, one PReLU slope a layer and one more PReLU in each branch. Its branches are a quarter as
    wide as their input, and dropout drops single values. Its decoder sees the encoder's maps as well as its own, and
    upsamples to the nearest pixel at its end. Published for one channel and `kernels` 16; with four classes it has
    463,475 parameters, of which 5,194 (`idle`) are never used, as published.
    """

    multiple = 8
    keeps_channels_last = False  # as of ENet
    published = (
        *("conv", "down1", "stage1", "down2", "stage2", "stage3", "narrow.branch", "narrow.shortcut", "narrow.act"),
        *("up4", "idle.0", "act4", "stage4", "up5", "idle.1", "stage5", "act5", "up", "idle.2", "idle.3", "classifier"),
    )

    def __init__(self, in_channels: int, n_class: int, *, kernels: int = 16) -> None:
        super().__init__(in_channels, n_class, kernels=kernels)
        half, quarter, eighth = kernels, 4 * kernels, 8 * kernels
        self.with_image = in_channels < half
        self.conv = nn.Conv2d(in_channels, half - in_channels if self.with_image else half, 3, stride=2, padding=1)
        self.down1 = _Halved(half, quarter)
        self.stage1 = nn.Sequential(*(_Sum(quarter, quarter, 0.01) for _ in range(4)))
        self.down2 = _Halved(quarter, eighth)
        self.stage2 = nn.Sequential(*self._dilated_stage(eighth))
        self.stage3 = nn.Sequential(*self._dilated_stage(eighth)[:-1])
        widest = _block(eighth // 4, eighth // 4, 3, dilation=16)
        self.narrow = _Sum(eighth, quarter, 0.01, middle=widest, shortcut=nn.Conv2d(eighth, quarter, 3, padding=1))
        self.up4, self.act4 = self._decoded(eighth, quarter), nn.PReLU()
        narrower = _Sum(quarter, half, 0.1, shortcut=_block(quarter, half))
        self.stage4 = nn.Sequential(_Sum(quarter, quarter, 0.1), narrower)
        self.up5, self.stage5, self.act5 = self._decoded(2 * half, half), _Sum(half, half, 0.1), nn.PReLU()
        plain = [nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.PReLU()]
        self.up = nn.Sequential(*plain, *copy.deepcopy(plain))
        unused = [nn.Conv2d(width, n_class, 3, padding=1) for width in (eighth, half)]
        self.idle = nn.ModuleList([nn.PReLU(), nn.PReLU(), *unused])
        self.classifier = nn.Conv2d(half, n_class, 1)
        self.apply(_xavier_weights)
        self.idle.requires_grad_(False)

    @staticmethod
    def _dilated_stage(width: int) -> list[nn.Module]:
        """Bottlenecks 1 to 8: 3x3 or 5x1 + 1x5, and dilated by 2, 4, 8, 16."""
        inner = max(1, width // 4)
        layers: list[nn.Module] = []
        for dilation in (2, 4, 8, 16):
            layers.append(_Sum(width, width, 0.1, middle=_cross(inner) if dilation in (4, 16) else None))
            layers.append(_Sum(width, width, 0.01, middle=_block(inner, inner, 3, dilation)))
        return layers

    @staticmethod
    def _decoded(n_in: int, n_out: int) -> nn.Module:
        inner = max(1, n_in // 4)
        return _Branch(_block(n_in, inner, 3), _block(inner, inner, 3), inner, n_out, 0.01)

    def features(self, image: Tensor) -> list[Tensor]:
        """The last map alone, (B,kernels,W',H') of the padded image."""
        image = self.pad(image)
        first = self.conv(image)
        first = torch.cat((first, F.max_pool2d(image, 2)), dim=1) if self.with_image else first
        x, where_half = self.down1(first)
        skip = self.stage1(x)
        x, where_quarter = self.down2(skip)
        x = unpool(self.narrow(self.stage3(self.stage2(x))), where_quarter)
        x = self.stage4(self.act4(x + self.up4(torch.cat((x, skip), dim=1))))
        x = unpool(x, where_half)
        x = self.act5(x + self.stage5(self.up5(torch.cat((x, first), dim=1))))
        return [self.up(F.interpolate(x, scale_factor=2))]
