"""What one draw of an `Augmentation` does to the images, the label maps and the distance maps of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.changes import Change


def sampling_grid(shape: Sequence[int], angle: Tensor, size: Tensor, displacement: Tensor, sign: Tensor) -> Tensor:
    """Where each pixel of the result is read in the image, as `grid_sample` wants it: (B,W,H,2), float32.

    Seen from the centre of the slice and in pixels, the pixel p is read at sign (R(-angle) p / size + displacement).

    shape: (W,H), or longer with W and H at the end
    angle: radians (B,) by which things turn, from W towards H as with `torch.rot90`
    size: factor (B,) by which things grow
    displacement: pixels (B,2,W,H) along W and H, or of a shape that broadcasts to it
    sign: (B,2), -1 along an axis that is flipped, else 1
    """
    W, H = shape[-2:]
    w = torch.arange(W, device=angle.device)[:, None] - (W - 1) / 2
    h = torch.arange(H, device=angle.device) - (H - 1) / 2
    cos, sin = (angle.cos() / size)[:, None, None], (angle.sin() / size)[:, None, None]
    to_w, to_h = sign[:, 0, None, None] * (2 / W), sign[:, 1, None, None] * (2 / H)  # an image spans -1..1
    # Written out, since affine_grid multiplies matrices, and in TF32 those would be a fraction of a pixel off.
    along_w = (to_w * displacement[:, 0] + to_w * cos * w) + to_w * sin * h
    along_h = (to_h * displacement[:, 1] + to_h * cos * h) - to_h * sin * w
    return torch.stack((along_h, along_w), dim=-1)  # grid_sample's x runs along the last axis


@dataclass(frozen=True)
class Draw:
    """The transforms of B images; None is off.

    The methods take a whole batch, or the rows `part` of it: a rank that holds a part of the batch draws for all
    of it and gets the very rows that one process would. None of them changes its argument.

    flips: bool (B,n), along the first n of the axes (D,)W,H; without W and H where the grid flips
    grid: float32 (B,W,H,2), of `sampling_grid`
    size: factor (B,) by which things grow, already in the grid
    equalise: bool (B,1,(1,)1,1)
    contrast, gamma, spread, brightness, offset: (B,1,(1,)1,1)
    noise: (B,C,(D,)W,H) or (B,1,W,H), in standard deviations of the image
    clip: highest grey level, the same for all images
    changes: those of datasets/appearance.py, in the order in which they are applied
    """

    flips: Tensor | None = None
    grid: Tensor | None = None
    size: Tensor | None = None
    equalise: Tensor | None = None
    contrast: Tensor | None = None
    gamma: Tensor | None = None
    spread: Tensor | None = None
    brightness: Tensor | None = None
    offset: Tensor | None = None
    noise: Tensor | None = None
    clip: float | None = None
    changes: tuple[Change, ...] = ()

    def image(self, image: Tensor, part: slice = slice(None), label: Tensor | None = None) -> Tensor:
        """The images (b,C,(D,)W,H) float32, bilinear; beyond its border an image goes on with its border pixels.

        label: their class numbers (b,(D,)W,H), moved, for changes that look at them
        """
        image = self._moved(image, part, "bilinear", "border")
        for change in self.changes if len(image) else ():  # of a team that shares few images one may have none
            image = change(image, part, label)
        if self.equalise is not None:
            image = torch.where(self.equalise[part], equalised(image), image)
        nonnegative = image.amin(tuple(range(1, image.ndim)), keepdim=True) >= 0
        if self.contrast is not None or self.gamma is not None:
            changed = image if self.contrast is None else image * self.contrast[part]
            changed = changed if self.gamma is None else changed ** self.gamma[part]
            image = torch.where(nonnegative, changed, image)
        image = self._rescaled(image, part)
        return image if self.clip is None else image.clamp(0, self.clip)

    def _rescaled(self, image: Tensor, part: slice) -> Tensor:
        """The images with what goes by the mean and the standard deviation of each of their channels."""
        pixels = tuple(range(2, image.ndim))
        if self.spread is not None:
            mean = image.mean(pixels, keepdim=True)
            image = mean + (image - mean) * self.spread[part]
        if self.offset is not None:
            image = image + self.offset[part]
        if self.brightness is None and self.noise is None:
            return image
        deviation = image.std(pixels, correction=0, keepdim=True)
        if self.brightness is not None:
            image = image + self.brightness[part] * deviation
        return image if self.noise is None else image + self.noise[part] * deviation

    def label(self, label: Tensor, part: slice = slice(None), beyond: int = 0) -> Tensor:
        """The label maps (b,(D,)W,H) int64, from the nearest pixel; over its border a map goes on with `beyond`."""
        if self.grid is None:
            return self._flipped(label[:, None], part)[:, 0]
        return self._moved((label[:, None] - beyond).float(), part, "nearest", "zeros")[:, 0].long() + beyond

    def distance(self, maps: Tensor, part: slice = slice(None)) -> Tensor:
        """The distance maps (b,K,(D,)W,H) float32, bilinear, times the size factor of each image.

        Up to the rounding of the grid they are those of the moved label maps for flips, rotations, shifts and
        sizes; an elastic deformation stretches distances unevenly, which is left out, and so is that a volume does
        not grow along D. What comes in over the border is taken for more of the border pixel's class, as in the
        image, whereas the label map has background there, or no class.
        """
        moved = self._moved(maps, part, "bilinear", "border")
        return moved if self.size is None else moved * _each(self.size[part], moved)

    def _moved(self, maps: Tensor, part: slice, mode: str, beyond: str) -> Tensor:
        flipped = self._flipped(maps, part)
        if self.grid is None:
            return flipped
        planes = flipped.flatten(1, -3)  # of a volume, those of all channels
        moved = F.grid_sample(planes, self.grid[part], mode=mode, padding_mode=beyond, align_corners=False)
        return moved.reshape(maps.shape)

    def _flipped(self, maps: Tensor, part: slice) -> Tensor:
        # Without a grid, whose rounding would mix each pixel with a trace of its neighbour.
        if self.flips is None:
            return maps
        for axis, turned in enumerate(self.flips[part].unbind(1), 2):
            maps = torch.where(_each(turned, maps), maps.flip(axis), maps)
        return maps


def _each(values: Tensor, maps: Tensor) -> Tensor:
    """One value per image (b,), to broadcast over its maps (b,...)."""
    return values.view(-1, *(1 for _ in maps.shape[1:]))


def equalised(image: Tensor) -> Tensor:
    """The images (B,C,...) with the histogram of each channel equalised over the range of that channel.

    There is a bin for each grey level that occurs, so the order of the levels stays and equal ones stay equal.
    """
    levels, place = image.flatten(2).sort(dim=-1)
    rank = torch.searchsorted(levels, levels, right=True)  # the cumulative histogram
    lowest, count = rank[..., :1], levels.shape[-1]
    share = (rank - lowest) / (count - lowest).clamp(min=1)  # 0 throughout for a constant channel
    even = torch.lerp(levels[..., :1], levels[..., -1:], share)
    return even.scatter(-1, place, even).reshape(image.shape)
