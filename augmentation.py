"""Random transforms of a batch of slices, drawn and applied on the device where the batch lies.

`Augmentation` holds the ranges, `Augmentation.draw` draws one transform per image, and the `Draw` applies it to
the images, the label maps and the distance maps of the batch. Nothing here waits for the device.

The order is flips, then one resampling for rotation, size, shift and elastic deformation together, then the grey
levels: contrast, gamma, brightness, noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import UserError, nearest, read_literal

EXAMPLE = "{'rotate': 10, 'elastic': 3}"
LARGEST = {  # beyond these nothing of an image is left
    "rotate": 180.0,
    "scale": 9.0,
    "shift": 1e4,
    "elastic": 1e3,
    "contrast": 1.0,
    "brightness": 10.0,
    "gamma": 4.0,
    "noise": 10.0,
}


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms; a range of 0 is off. Raises UserError for what is out of range.

    flip: each spatial axis with probability 1/2
    rotate: degrees, uniform in ±rotate; rigid in pixels whatever the shape of the slice
    scale: size factor, log-uniform in 1/(1+scale)..1+scale
    shift: pixels, uniform in ±shift along each axis
    elastic: standard deviation in pixels of the displacements at `elastic_points` x `elastic_points` control points
        that span the slice, with bicubic interpolation between them; beyond about a third of the distance between
        two points the slice may fold over itself
    contrast: factor, uniform in 1±contrast, of images without negative values
    brightness: offset, uniform in ±brightness times the standard deviation of each channel of the image
    gamma: exponent 2^u, u uniform in ±gamma, of images without negative values (a z-score has no gamma)
    noise: Gaussian, its standard deviation as a share of that of each channel of the image
    """

    flip: bool = True
    rotate: float = 45.0
    scale: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    elastic_points: int = 4
    contrast: float = 0.5
    brightness: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise _refusal("flip", "True or False", self.flip)
        points = self.elastic_points
        if isinstance(points, bool) or not isinstance(points, int) or not 2 <= points <= 64:
            raise _refusal("elastic_points", "a whole number in 2..64", points)
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
                raise _refusal(name, f"a number in 0..{largest:g}", value)

    @classmethod
    def read(cls, text: str) -> "Augmentation":
        """The ranges of an OPT string such as "{'rotate': 10, 'elastic': 3}"; what it leaves out has its default.

        Raises UserError for what is no dict, an unknown name, a wrong type or a number out of range.
        """
        ranges = read_literal(text)
        if not isinstance(ranges, dict):
            raise UserError(f'The augmentation is a dict of ranges, such as "{EXAMPLE}"; this is {text!r}.')
        known = {field.name for field in fields(cls)}
        for name in ranges:
            if name not in known:
                raise UserError(f'There is no augmentation {name!r}.{nearest(str(name), known)} Example: "{EXAMPLE}".')
        return cls(**ranges)

    def draw(self, count: int, shape: Sequence[int], generator: torch.Generator) -> "Draw":
        """One transform for each of `count` images, drawn from the generator and on its device.

        `shape` is that of an image, (C,W,H), or (W,H); with (W,H) the channels of an image share their noise.
        The same ranges, count, shape and state of the generator draw the same transforms.
        """
        flips = size = grid = contrast = gamma = brightness = noise = None
        if self.flip:
            flips = torch.rand(count, 2, generator=generator, device=generator.device) < 0.5
        if self.scale:
            size = _uniform(math.log1p(self.scale), generator, count).exp()
        if self.rotate or self.scale or self.shift or self.elastic:
            angle = _uniform(math.radians(self.rotate), generator, count)
            offset = self._draw_offset(count, shape, generator)
            sign = torch.ones_like(offset[:, :, 0, 0]) if flips is None else 1 - 2 * flips.float()
            grid = sampling_grid(shape, angle, torch.ones_like(angle) if size is None else size, offset, sign)
            flips = None  # now in the grid
        if self.contrast:
            contrast = 1 + _uniform(self.contrast, generator, count, 1, 1, 1)
        if self.gamma:
            gamma = _uniform(self.gamma, generator, count, 1, 1, 1).exp2()
        if self.brightness:
            brightness = _uniform(self.brightness, generator, count, 1, 1, 1)
        if self.noise:
            noise = _normal(self.noise, generator, count, *(1, *shape)[-3:])
        return Draw(flips, grid, size, contrast, gamma, brightness, noise)

    def _draw_offset(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Shift and elastic deformation in pixels along W and H, (B,2,W,H) or (B,2,1,1)."""
        shift = _uniform(self.shift, generator, count, 2, 1, 1)
        if not self.elastic:
            return shift
        points = _normal(self.elastic, generator, count, 2, self.elastic_points, self.elastic_points)
        return shift + F.interpolate(points, tuple(shape[-2:]), mode="bicubic", align_corners=True)


def _uniform(reach: float, generator: torch.Generator, *shape: int) -> Tensor:
    return (2 * torch.rand(shape, generator=generator, device=generator.device) - 1) * reach


def _normal(deviation: float, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device) * deviation


def _refusal(name: str, expected: str, value: Any) -> UserError:
    return UserError(f"The augmentation '{name}' expects {expected}, got {value!r}. Example: \"{EXAMPLE}\".")


def sampling_grid(shape: Sequence[int], angle: Tensor, size: Tensor, offset: Tensor, sign: Tensor) -> Tensor:
    """Where each pixel of the result is read in the image, as `grid_sample` wants it: (B,W,H,2), float32.

    Seen from the centre of the slice and in pixels, the pixel p is read at sign (R(-angle) p / size + offset).

    shape: (W,H), or longer with W and H at the end
    angle: radians (B,) by which things turn, from W towards H as with `torch.rot90`
    size: factor (B,) by which things grow
    offset: pixels (B,2,W,H) along W and H, or of a shape that broadcasts to it
    sign: (B,2), -1 along an axis that is flipped, else 1
    """
    W, H = shape[-2:]
    w = torch.arange(W, device=angle.device)[:, None] - (W - 1) / 2
    h = torch.arange(H, device=angle.device) - (H - 1) / 2
    cos, sin = (angle.cos() / size)[:, None, None], (angle.sin() / size)[:, None, None]
    to_w, to_h = sign[:, 0, None, None] * (2 / W), sign[:, 1, None, None] * (2 / H)  # an image spans -1..1
    # Written out, since affine_grid multiplies matrices, and in TF32 those would be a fraction of a pixel off.
    along_w = (to_w * offset[:, 0] + to_w * cos * w) + to_w * sin * h
    along_h = (to_h * offset[:, 1] + to_h * cos * h) - to_h * sin * w
    return torch.stack((along_h, along_w), dim=-1)  # grid_sample's x runs along the last axis


@dataclass(frozen=True)
class Draw:
    """The transforms of B images; None is off.

    The methods take a whole batch, or the rows `part` of it: a rank that holds a part of the batch draws for all
    of it and gets the very rows that one process would. None of them changes its argument.

    flips: bool (B,2), along W and H; None also where the grid flips
    grid: float32 (B,W,H,2), of `sampling_grid`
    size: factor (B,) by which things grow, already in the grid
    contrast, gamma, brightness: (B,1,1,1)
    noise: (B,C,W,H) or (B,1,W,H), in standard deviations of the image
    """

    flips: Tensor | None = None
    grid: Tensor | None = None
    size: Tensor | None = None
    contrast: Tensor | None = None
    gamma: Tensor | None = None
    brightness: Tensor | None = None
    noise: Tensor | None = None

    def image(self, image: Tensor, part: slice = slice(None)) -> Tensor:
        """The images (b,C,W,H) float32, bilinear; beyond its border an image goes on with its border pixels."""
        image = self._moved(image, part, "bilinear", "border")
        if self.contrast is not None or self.gamma is not None:
            changed = image if self.contrast is None else image * self.contrast[part]
            changed = changed if self.gamma is None else changed ** self.gamma[part]
            image = torch.where(image.amin((1, 2, 3), keepdim=True) >= 0, changed, image)
        if self.brightness is None and self.noise is None:
            return image
        deviation = image.std((2, 3), correction=0, keepdim=True)
        if self.brightness is not None:
            image = image + self.brightness[part] * deviation
        return image if self.noise is None else image + self.noise[part] * deviation

    def label(self, label: Tensor, part: slice = slice(None), beyond: int = 0) -> Tensor:
        """The label maps (b,W,H) int64, from the nearest pixel; over its border a map goes on with `beyond`."""
        if self.grid is None:
            return self._flipped(label[:, None], part)[:, 0]
        return self._moved((label[:, None] - beyond).float(), part, "nearest", "zeros")[:, 0].long() + beyond

    def distance(self, maps: Tensor, part: slice = slice(None)) -> Tensor:
        """The distance maps (b,K,W,H) float32, bilinear, times the size factor of each image.

        Up to the rounding of the grid they are those of the moved label maps for flips, rotations, shifts and
        sizes; an elastic deformation stretches distances unevenly, which is left out. What comes in over the
        border is taken for more of the border pixel's class, as in the image, whereas the label map has
        background there, or no class.
        """
        moved = self._moved(maps, part, "bilinear", "border")
        return moved if self.size is None else moved * self.size[part, None, None, None]

    def _moved(self, maps: Tensor, part: slice, mode: str, beyond: str) -> Tensor:
        flipped = self._flipped(maps, part)
        if self.grid is None:
            return flipped
        return F.grid_sample(flipped, self.grid[part], mode=mode, padding_mode=beyond, align_corners=False)

    def _flipped(self, maps: Tensor, part: slice) -> Tensor:
        # Without a grid, whose rounding would mix each pixel with a trace of its neighbour.
        if self.flips is None:
            return maps
        for axis in (0, 1):
            turned = self.flips[part, axis, None, None, None]
            maps = torch.where(turned, maps.flip(axis + 2), maps)
        return maps
