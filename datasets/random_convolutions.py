"""Random networks that change how tissues look and leave their shapes: GIN and IPA (CSDG, Ouyang et al., TMI 2022).

GIN blends an image with what a shallow random network makes of it. IPA blends two such views place by place, by a
smooth random field. With `label_gin` each class has a network of its own (SRCSM, arXiv 2512.01510).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.changes import TINY, Change, Lots, pixel_axes, regions

LAYERS, HIDDEN = 4, 2  # convolutions; channels between them
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
FIELD = 7  # control points along each axis of the field of IPA


@dataclass(frozen=True)
class RandomConvolutions(Change):
    """Views by random networks: `gin` of whole images, `label_gin` class by class, `ipa` two views blended by a field.

    An image gets one of the three; where several lots fall on it, that of the classes, else that of the field. A
    network sees the image with mean 0 and standard deviation 1 in each channel. Its four layers have kernels of size 1
    or 3, with weights and shifts from N(0,1), and leaky ReLUs between. The blend of image and view, at a random
    strength, gets the Frobenius norm of the image, then its mean and deviation. There are V networks for an image. The
    consistency loss of IPA's paper needs both views in one step: --method ipa.

    by_label: bool (B,1,(1,)1,1), the images with a network a class
    field: (B,1,(D,)W,H), the weight of the first view against the last, 1 where an image has one; None without `ipa`
    kernels: a layer each, (B,V,out,in,3,3(,3))
    shifts: a layer each, (B,V,out)
    strength: (B,V)
    """

    ranges: ClassVar[tuple[str, ...]] = ("gin", "label_gin", "ipa")
    by_label: Tensor
    field: Tensor | None
    kernels: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    strength: Tensor

    @classmethod
    def draw(cls, shares: Sequence[float], lots: Lots) -> Self:
        plain, by_label, blended = (lots.chosen(share) for share in shares)
        views = (lots.n_class if shares[1] else 1) + bool(shares[2])
        widths = [lots.shape[0], *[HIDDEN] * (LAYERS - 1), lots.shape[0]]
        kernels = tuple(_kernels(lots, views, n_out, n_in) for n_in, n_out in pairwise(widths))
        shifts = tuple(lots.normal(views, n_out) for n_out in widths[1:])
        strength = lots.uniform(0, 1, views)
        field = None
        if shares[2]:
            smooth = smooth_field(lots.normal(1, *[FIELD] * lots.axes), lots.shape[1:])
            field = torch.where(blended & ~by_label, smooth, 1)
        return cls(plain | by_label | blended, by_label, field, kernels, shifts, strength)

    def changed(self, image: Tensor, label: Tensor | None) -> Tensor:
        axes, views = pixel_axes(image), self.strength.shape[1]
        mean, deviation = image.mean(axes, keepdim=True), image.std(axes, correction=0, keepdim=True)
        scored = (image - mean) / deviation.clamp(min=TINY)
        view = self._view(scored, 0)
        n_class = views - (self.field is not None)
        region = regions(label, self.by_label, n_class)
        for k in range(1, n_class):
            view = torch.where(region == k, self._view(scored, k), view)
        if self.field is not None:
            view = torch.lerp(self._view(scored, views - 1), view, self.field)
        return mean + deviation * view

    def _view(self, image: Tensor, view: int) -> Tensor:
        """The images (b,C,(D,)W,H) blended with what that network of each makes of them, as large in Frobenius norm."""
        seen = random_network(image, [k[:, view] for k in self.kernels], [s[:, view] for s in self.shifts])
        blend = torch.lerp(image, seen, self.strength[:, view].view(-1, *(1 for _ in image.shape[1:])))
        before, after = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (image, blend))
        return blend * (before / (after + 1e-5)).view(-1, *(1 for _ in image.shape[1:]))


def random_network(image: Tensor, kernels: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
    """What a network of its own makes of each image (B,C,(D,)W,H); kernels (B,out,in,3,3(,3)), shifts (B,out)."""
    convolve = CONVOLUTIONS[image.ndim - 2]
    count, size = len(image), image.shape[2:]
    maps = image.reshape(1, -1, *size)
    for layer, (kernel, shift) in enumerate(zip(kernels, shifts, strict=True)):
        maps = maps if layer == 0 else F.leaky_relu(maps)
        maps = convolve(maps, kernel.flatten(0, 1), shift.flatten(), padding=1, groups=count)
    return maps.view(image.shape)


def _kernels(lots: Lots, views: int, n_out: int, n_in: int) -> Tensor:
    """The weights (B,V,out,in,3,3(,3)) of one layer. All of a kernel but its centre is 0 where its size is 1."""
    size = [3] * lots.axes
    weights, large = lots.normal(views, n_out, n_in, *size), lots.chance(0.5, views, 1, 1, *(1 for _ in size))
    centre = F.pad(torch.ones([1] * lots.axes, device=weights.device), (1, 1) * lots.axes) > 0
    return weights * (large | centre)


def smooth_field(points: Tensor, size: Sequence[int]) -> Tensor:
    """A cubic B-spline (B,1,(D,)W,H) with these control points (B,1,n,n(,n)), rescaled to 0..1."""
    field = points
    for axis, length in enumerate(size, 2):
        weights = spline_weights(points.shape[axis], length, points.device)
        field = (field.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    axes = pixel_axes(field)
    low, high = field.amin(axes, keepdim=True), field.amax(axes, keepdim=True)
    return (field - low) / (high - low).clamp(min=TINY)


def spline_weights(n_points: int, length: int, device: torch.device) -> Tensor:
    """(length, n_points): how much each control point of a uniform cubic B-spline counts at each pixel of an axis."""
    place = torch.linspace(1, n_points - 2, length, device=device)[:, None]
    apart = (place - torch.arange(n_points, device=device)).abs()
    near, far = 2 / 3 - apart**2 + apart**3 / 2, (2 - apart).clamp(min=0) ** 3 / 6
    return torch.where(apart < 1, near, far)
