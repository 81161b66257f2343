"""Trunks that others trained on ImageNet, dilated to output stride 8, and the classifier of DeepLab.

The modules are torchvision's under torchvision's names, so that weight files fit; torchvision is imported when the
first of them is built. Nothing is downloaded.
"""

import re
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from processes.errors import UserError
from utils import listing


def torchvision_models() -> ModuleType:
    """`torchvision.models`, also where torchvision's compiled operators cannot be loaded."""
    try:
        from torchvision import models
    except RuntimeError:
        # torchvision built for another torch (one with CUDA, the other without) has no operators, yet its import
        # describes the output of these two, and fails. No classification network calls them: declared is enough.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import models
    return models


STATISTICS = {  # mean and scale of red, green, blue
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255), (1 / 255, 1 / 255, 1 / 255)),
}


class Normalise(nn.Module):
    """RGB (B,3,W,H) in 0..1 -> the image that a pre-trained trunk expects.

    "imagenet": minus mean, over standard deviation, of ImageNet's channels (torchvision's weights).
    "caffe":    times 255, minus the mean, channels in the order BGR (the published DeepLab and AdaptSegNet weights).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        mean, sd = STATISTICS[kind]
        self.bgr = kind == "caffe"
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(sd).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        normal = (image - self.mean) / self.sd
        return normal.flip(1) if self.bgr else normal


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel 3x3 convolutions dilated by 6, 12, 18 and 24, summed."""

    def __init__(self, n_in: int, n_class: int, branches: int = 4) -> None:
        """`branches`: how many of the four there are."""
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(n_in, n_class, 3, padding=dilation, dilation=dilation) for dilation in (6, 12, 18, 24)[:branches]
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,W,H) -> (B,K,W,H)."""
        return sum(branch(x) for branch in self.branches)


def he_normal(module: nn.Module) -> None:
    """For `apply`: convolutions as torchvision's trunks begin, every bias 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------- trunks


class DilatedResNet(nn.Sequential):
    """ResNet-50 or -101 with layer3 and layer4 dilated in place of strided, batch-norm scale and shift frozen.

    Layout "torchvision" is its ResNet v1.5 with `replace_stride_with_dilation`: the stride of layer2 on a 3x3
    convolution, the first block of layer3 and layer4 dilated like the layer before. Layout "caffe" is the published
    one (He et al., CVPR 2016; Chen et al., TPAMI 2018): the stride on a 1x1 convolution, max-pooling that rounds up,
    every block of layer3 dilated by 2, of layer4 by 4. Names and shapes of the weights are the same.
    """

    def __init__(self, in_channels: int, depth: int, layout: str) -> None:
        build = getattr(torchvision_models(), f"resnet{depth}")
        net = build(weights=None, replace_stride_with_dilation=[False, True, True])
        if in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            he_normal(net.conv1)
        if layout == "caffe":
            _follow_caffe(net)
        super().__init__(OrderedDict(net.named_children()))
        del self.avgpool, self.fc
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B,C,W,H) -> layer3 (B,1024,w,h) and layer4 (B,2048,w,h), w and h about an eighth of W and H."""
        *first, layer4 = self
        x = image
        for part in first:
            x = part(x)
        return [x, layer4(x)]


def _follow_caffe(net: nn.Module) -> None:
    net.maxpool.ceil_mode = True
    strided = net.layer2[0]
    strided.conv1.stride, strided.conv2.stride = (2, 2), (1, 1)
    for layer, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for block in layer:
            _dilate(block.conv2, dilation)


def _dilate(conv: nn.Conv2d, dilation: int) -> None:
    conv.dilation = conv.padding = (dilation, dilation)


def dilated_vgg16(in_channels: int) -> nn.Sequential:
    """VGG-16 up to conv5_3, without pool4 and pool5, conv5 dilated by 2: (B,C,W,H) -> (B,512,W/8,H/8)."""
    vgg = torchvision_models().vgg
    features = vgg.make_layers(vgg.cfgs["D"][:-1])
    pool4 = max(place for place, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d))
    features[pool4] = nn.Identity()  # the layers after it keep their names
    for layer in features[pool4:]:
        if isinstance(layer, nn.Conv2d):
            _dilate(layer, 2)
    if in_channels != 3:
        features[0] = nn.Conv2d(in_channels, features[0].out_channels, 3, padding=1)
    return nn.Sequential(OrderedDict(features=features)).apply(he_normal)


# --------------------------------------------------------------------------------------------- weights

# The classifiers of torchvision's ResNet and VGG, and of AdaptSegNet's files.
CLASSIFIERS = ("fc.", "classifier.", "layer5.", "layer6.")


def load_trunk(trunk: nn.Module, path: Path) -> None:
    """Fills the trunk from a state dict with torchvision's names; of the file's classifier nothing is read.

    The names may stand under the prefixes `module.` and `Scale.`, as DataParallel and AdaptSegNet's files have them.
    Raises UserError that lists what is missing, foreign or of another shape.
    """
    ours = trunk.state_dict()
    theirs = {re.sub(r"^((module|Scale)\.)+", "", name): value for name, value in _read_state(path).items()}
    theirs = {name: value for name, value in theirs.items() if not name.startswith(CLASSIFIERS)}
    # Files older than the counter of batches have none, and only an average over all batches reads it.
    missing = [name for name in ours if name not in theirs and not name.endswith("num_batches_tracked")]
    foreign = [name for name in theirs if name not in ours]
    unequal = [
        f"{name} {tuple(theirs[name].shape)} for {tuple(value.shape)}"
        for name, value in ours.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    faults = {"it lacks": missing, "it has besides": foreign, "of another shape are": unequal}
    if any(faults.values()):
        listed = "; ".join(f"{fault} {listing(names)}" for fault, names in faults.items() if names)
        raise UserError(
            f"The weights {path} are not of this backbone: {listed}. Take a file of the same depth and number of "
            "channels (torchvision's state dict), or change the network."
        )
    trunk.load_state_dict(theirs, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"The backbone weights {path} do not exist. Nothing is downloaded: put the file there."
        ) from error
    except Exception as error:  # torch.load raises anything on a torn file
        raise UserError(f"{path} is no file of tensors, or it is torn ({type(error).__name__}).") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(
            f"{path} is no state dict, that is, tensors by name, as torch.save(net.state_dict()) writes it."
        )
    return state
