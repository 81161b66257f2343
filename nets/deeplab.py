"""DeepLab networks on trunks that others trained on ImageNet (see `backbones.py`)."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nets.backbones import ASPP, DilatedResNet, Normalise, dilated_vgg16, he_normal, load_trunk
from nets.base import NETWORKS, Network, trainable
from processes.errors import UserError
from utils import listing

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
    published = ("trunk", "classifier")

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

    def lacks_published(self, name: str) -> bool:
        branch = re.search(r"\blayer6\.conv2d_list\.(\d+)", name)
        return "layer5." in name or (branch is not None and int(branch[1]) >= self.aspp_branches)

    def _head(self, n_in: int) -> nn.Module:
        return ASPP(n_in, self.n_class, self.aspp_branches)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(trainable(self.trunk), 1.0), (trainable(self.classifier), self.head_rate)]


@NETWORKS.register()
class DeepLabVGG(Pretrained):
    """The VGG-16 of AdaptSegNet (Tsai et al., CVPR 2018), one level, one learning rate, output stride 8.

    fc6 and fc7 are 3x3 convolutions of 1024 channels dilated by 4, and the classifier is ASPP. (In DeepLab-LargeFOV
    fc6 is dilated by 12, and fc7 and the classifier are 1x1.) Keywords as in DeepLabV2.
    """

    multiple = 8
    width = 1024  # channels of fc6 and of fc7

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
        fc6, fc7 = (nn.Conv2d(n_in, self.width, 3, padding=4, dilation=4) for n_in in (512, self.width))
        self.fc = nn.Sequential(fc6, nn.ReLU(), fc7, nn.ReLU()).apply(he_normal)
        self.classifier = ASPP(self.width, n_class, aspp_branches)

    def features(self, image: Tensor) -> list[Tensor]:
        """The map of fc7 alone, (B,1024,W'/8,H'/8) of the padded image."""
        return [self.fc(self.trunk(self.normalise(self.pad(image))))]
