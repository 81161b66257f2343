"""Instance norms that also take an empty batch: when processes share a small batch, one of them may get no image."""

from torch import Tensor, nn


class InstanceNorm2d(nn.InstanceNorm2d):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) if len(image) else _affine(self, image)


class InstanceNorm3d(nn.InstanceNorm3d):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) if len(image) else _affine(self, image)


INSTANCE_NORMS = {2: InstanceNorm2d, 3: InstanceNorm3d}


def _affine(norm: nn.Module, image: Tensor) -> Tensor:
    """The scale and shift alone: a team expects a gradient of every parameter, if only of 0."""
    scale, shift = (part.view(-1, *[1] * (image.ndim - 2)) for part in (norm.weight, norm.bias))
    return image * scale + shift
