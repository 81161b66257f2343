"""Random transforms of a batch of slices or volumes, drawn and applied on the device where the batch lies.

`Augmentation` holds the ranges, `Augmentation.draw` draws one transform per image, and the `Draw` (datasets/draw.py)
applies it to the images, the label maps and the distance maps of the batch. Nothing here waits for the device.

The order is flips, then one resampling for rotation, size, crop, shift and elastic deformation together, then the
changes of datasets/appearance.py, then the other grey levels: equalisation, contrast, gamma, spread, brightness, noise,
and the clip last. A volume is flipped along all its axes and resampled within its planes (W,H), each of them alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.appearance import MIXING, OF_CLASSES, RANGES, draw_changes
from datasets.changes import Lots
from datasets.draw import Draw, sampling_grid
from datasets.presets import PRESETS
from processes.errors import UserError
from utils import nearest, read_literal

EXAMPLE = "{'rotate': 10, 'elastic': 3}"
LARGEST = {  # beyond these nothing of an image is left
    "rotate": 180.0,
    "scale": 9.0,
    "crop": 1.0,
    "shift": 1e4,
    "elastic": 1e3,
    "elastic_share": 1.0,
    "equalise": 1.0,
    "contrast": 1.0,
    "spread": 1.0,
    "brightness": 10.0,
    "offset": 1e6,
    "gamma": 4.0,
    "noise": 10.0,
    "clip": 1e6,
    **dict.fromkeys(RANGES, 1.0),
}
KINDS = ("rotate", "scale", "flip", "turn")  # of which `one_of` leaves one


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms; a range of 0 is off. Raises UserError for what is out of range.

    The defaults leave everything about where it was: a network may tell classes by their place, left from right or head
    from tail, and could not learn them from images that are flipped or turned round. Where no class has such a place,
    'flip' and large turns are for the user to name.

    flip: each spatial axis with probability 1/2
    rotate: degrees, uniform in ±rotate; rigid in pixels whatever the shape of the slice
    turn: degrees of which a random multiple is turned by, all of 0..360 equally likely; on top of `rotate`
    scale: size factor, log-uniform in 1/(1+scale)..1+scale
    one_of: an image gets one of those four that are on, or none of them, all equally likely, instead of all; its
        flip is then that of the last axis, still with probability 1/2
    crop: share of each side that is cut out at a random place inside the slice and resized to the whole
    shift: pixels, uniform in ±shift along each axis
    elastic: standard deviation in pixels of the displacements at `elastic_points` x `elastic_points` control points
        that span the slice, with bicubic interpolation between them; beyond about a third of the distance between
        two points the slice may fold over itself
    elastic_share: probability that an image is deformed
    equalise: probability that the histogram of each channel of an image is equalised over the channel's own range
    contrast: factor, uniform in 1±contrast, of images without negative values
    spread: factor, uniform in 1±spread, of the distance of the grey levels from their mean in each channel
    brightness: offset, uniform in ±brightness times the standard deviation of each channel of the image
    offset: the same in grey levels, uniform in ±offset
    either: an image gets contrast and spread or brightness and offset, each with probability 1/2, never both
    gamma: exponent 2^u, u uniform in ±gamma, of images without negative values (a z-score has no gamma)
    noise: Gaussian, its standard deviation as a share of that of each channel of the image
    clip: grey levels are cut to 0..clip

    These are probabilities that an image is changed so; the files named have the strengths and the papers:

    curves: its grey levels follow a random curve that rises (curves.py)
    label_curves: those of each class follow one of their own, up or down; where both lots fall on an image, this one
    gin: what a random convolutional network makes of it is blended in (random_convolutions.py)
    label_gin: each class has such a network of its own
    ipa: two such networks, blended place by place by a smooth field; where several lots fall, label_gin, ipa, then gin
    fourier: the amplitudes of its low frequencies are mixed with those of another image of the batch (appearance.py)
    invert: bright and dark change places (degradations.py, with all that follow)
    gradient: it becomes brighter or darker towards a place
    local_gamma: it has another gamma towards a place
    blur, sharpen: it is filtered
    low_resolution: it is resampled to fewer pixels and back
    blank: a few boxes of it hold nothing but its mean

    Those with 'label_' look at the ground truth, so every batch of the run must have it.

    The fine-tuning of Chaitanya et al. (NeurIPS 2020), for images in 0..1. The changes of grey levels, which the
    released code computes and then leaves out, are applied; each image is deformed with probability 1/2, where that
    code deforms the batch from a random image on:

        {'flip': True, 'rotate': 15, 'scale': 0.05, 'turn': 45, 'one_of': True, 'elastic': 5, 'elastic_points': 3,
        'elastic_share': 0.5, 'contrast': 0, 'gamma': 0, 'spread': 0.2, 'offset': 0.1, 'either': True}
    """

    flip: bool = False
    rotate: float = 15.0
    turn: float = 0.0
    scale: float = 0.0
    one_of: bool = False
    crop: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    elastic_points: int = 4
    elastic_share: float = 1.0
    equalise: float = 0.0
    contrast: float = 0.5
    spread: float = 0.0
    brightness: float = 0.0
    offset: float = 0.0
    either: bool = False
    gamma: float = 1.0
    noise: float = 0.0
    clip: float = 0.0
    curves: float = 0.0
    label_curves: float = 0.0
    gin: float = 0.0
    label_gin: float = 0.0
    ipa: float = 0.0
    fourier: float = 0.0
    invert: float = 0.0
    gradient: float = 0.0
    local_gamma: float = 0.0
    blur: float = 0.0
    sharpen: float = 0.0
    low_resolution: float = 0.0
    blank: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "one_of", "either"):
            if not isinstance(getattr(self, name), bool):
                raise _refusal(name, "True or False", getattr(self, name))
        points = self.elastic_points
        if isinstance(points, bool) or not isinstance(points, int) or not 2 <= points <= 64:
            raise _refusal("elastic_points", "a whole number in 2..64", points)
        for name, largest in LARGEST.items():
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= largest:
                raise _refusal(name, f"a number in 0..{largest:g}", getattr(self, name))
        if not _is_number(self.turn) or (self.turn and not (1 <= self.turn <= 360 and 360 % self.turn == 0)):
            raise _refusal("turn", "0, or degrees in 1..360 that divide 360", self.turn)

    @classmethod
    def read(cls, text: str) -> "Augmentation":
        """The ranges of an OPT string such as "{'rotate': 10, 'elastic': 3}"; what it leaves out has its default.

        A name of `PRESETS` stands for its ranges; in a dict it is the value of 'preset', and the others win over its.
        Raises UserError for what is neither, an unknown name, a wrong type or a number out of range.
        """
        ranges = _spelt_out(text)
        known = {field.name for field in fields(cls)}
        for name in ranges:
            if name not in known:
                raise UserError(f'There is no augmentation {name!r}.{nearest(str(name), known)} Example: "{EXAMPLE}".')
        return cls(**ranges)

    @property
    def mixes(self) -> bool:
        """Whether images are changed by others of their batch, so that all of it has to be there."""
        return any(getattr(self, name) for name in MIXING)

    @property
    def of_classes(self) -> list[str]:
        """Which of the ranges that are on look at the ground truth of an image."""
        return [name for name in OF_CLASSES if getattr(self, name)]

    @property
    def resizing(self) -> list[str]:
        """Which of the ranges that are on change how much of an image a class has, so that a bound on it goes wrong.

        | range                                | what becomes of the sizes in an image              | beside a bound |
        |--------------------------------------|----------------------------------------------------|----------------|
        | flip; turn by 180 or 360             | every pixel stays in the frame: the same           | may stay       |
        | grey levels: equalise … clip …       | the same                                           | may stay       |
        | scale, crop                          | grow or shrink, and classes leave the frame        | refused        |
        | elastic                              | grow or shrink here and there                      | refused        |
        | shift; rotate; turn by less than 180 | what lies at the border, or in a corner, leaves it | refused        |

        No factor on the bound would do: an organ grows by the square of the size only for as long as it stays inside,
        and where it lies is not known. A tag does not say either whether the organ is still in the frame. Volumes are
        moved within their planes, so all of this holds for them too.
        """
        names = ("rotate", "scale", "crop", "shift", "elastic", *(["turn"] if self.turn % 180 else []))
        return [name for name in names if getattr(self, name)]

    def reverses(self, n_axes: int) -> list[int]:
        """The axes of an image, counted from the last, along which the order of things may turn round."""
        flipped = [] if not self.flip else [-1] if self.one_of else list(range(-n_axes, 0))
        turned = [-2, -1] if self.turn or self.rotate > 90 else []
        return sorted({*flipped, *turned})

    def draw(self, count: int, shape: Sequence[int], generator: torch.Generator, n_class: int = 1) -> Draw:
        """One transform for each of `count` images, drawn from the generator and on its device.

        `shape` is that of an image, (C,W,H) or (C,D,W,H), or (W,H); with (W,H) the channels of an image share their
        noise. `n_class` counts the classes, background included, for what looks at them. The same ranges, count, shape
        and state of the generator draw the same transforms.
        """
        shape = (1, *shape) if len(shape) == 2 else tuple(shape)
        moves = self._draw_moves(count, shape, generator)
        greys = self._draw_greys(count, shape, generator)
        changes = draw_changes(self, Lots(count, shape, generator, n_class))  # last: seeds go on drawing the others
        return Draw(**moves, **greys, clip=self.clip or None, changes=changes)

    def _draw_moves(self, count: int, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """The flips, the grid and the size of a `Draw`, those that are on."""
        moves, applies = {}, self._draw_kinds(count, generator)
        if self.flip:
            flips = _chance(0.5, generator, count, len(shape) - 1)
            if self.one_of:
                flips[:, :-1].zero_()
            moves["flips"] = flips & applies["flip"][:, None]
        if self.scale:
            moves["size"] = (_uniform(math.log1p(self.scale), generator, count) * applies["scale"]).exp()
        if not (self.rotate or self.turn or self.scale or self.crop or self.shift or self.elastic):
            return moves
        angle = _uniform(math.radians(self.rotate), generator, count) * applies["rotate"]
        if self.turn:
            turns = torch.randint(round(360 / self.turn), (count,), generator=generator, device=generator.device)
            angle = angle + turns * math.radians(self.turn) * applies["turn"]
        displacement = self._draw_displacement(count, shape, generator)
        size, sign = moves.get("size", torch.ones_like(angle)), torch.ones_like(displacement[:, :, 0, 0])
        if self.crop:
            place = [_uniform((1 - self.crop) / 2 * side, generator, count) for side in shape[-2:]]
            displacement = displacement + torch.stack(place, dim=1)[:, :, None, None]
            moves["size"] = size = size / self.crop
        if self.flip:
            sign = 1 - 2 * moves["flips"][:, -2:].float()
            moves["flips"] = moves["flips"][:, :-2]  # the others are now in the grid
        return moves | {"grid": sampling_grid(shape, angle, size, displacement, sign)}

    def _draw_kinds(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The images that each of the `KINDS` is for, bool (B,): all, or with `one_of` those on which its lot falls."""
        if not self.one_of:
            return dict.fromkeys(KINDS, torch.ones(count, dtype=torch.bool, device=generator.device))
        on = [kind for kind in KINDS if getattr(self, kind)]
        lot = torch.randint(len(on) + 1, (count,), generator=generator, device=generator.device)
        return {kind: lot == (on.index(kind) if kind in on else -1) for kind in KINDS}

    def _draw_displacement(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Shift and elastic deformation in pixels along W and H, (B,2,W,H) or (B,2,1,1)."""
        shift = _uniform(self.shift, generator, count, 2, 1, 1)
        if not self.elastic:
            return shift
        points = _normal(self.elastic, generator, count, 2, self.elastic_points, self.elastic_points)
        if self.elastic_share < 1:
            points = points * _chance(self.elastic_share, generator, count, 1, 1, 1)
        return shift + F.interpolate(points, tuple(shape[-2:]), mode="bicubic", align_corners=True)

    def _draw_greys(self, count: int, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """The changes of the grey levels of a `Draw`, those that are on."""
        greys, each = {}, (count, *(1 for _ in shape))
        multiplied = added = torch.ones(each, dtype=torch.bool, device=generator.device)
        if self.either:
            multiplied = _chance(0.5, generator, *each)
            added = ~multiplied
        if self.equalise:
            greys["equalise"] = _chance(self.equalise, generator, *each)
        if self.contrast:
            greys["contrast"] = 1 + _uniform(self.contrast, generator, *each) * multiplied
        if self.gamma:
            greys["gamma"] = _uniform(self.gamma, generator, *each).exp2()
        if self.spread:
            greys["spread"] = 1 + _uniform(self.spread, generator, *each) * multiplied
        if self.brightness:
            greys["brightness"] = _uniform(self.brightness, generator, *each) * added
        if self.offset:
            greys["offset"] = _uniform(self.offset, generator, *each) * added
        if self.noise:
            greys["noise"] = _normal(self.noise, generator, count, *shape)
        return greys


def _uniform(reach: float, generator: torch.Generator, *shape: int) -> Tensor:
    return (2 * torch.rand(shape, generator=generator, device=generator.device) - 1) * reach


def _normal(deviation: float, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device) * deviation


def _chance(share: float, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) < share


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def spell_out(text: str) -> str:
    """An OPT string that names a preset with the ranges in its place; any other as it is."""
    ranges = _spelt_out(text)
    return text if ranges == read_literal(text) else repr(ranges)


def _spelt_out(text: str) -> dict[str, Any]:
    told = read_literal(text)
    ranges = {"preset": told} if isinstance(told, str) else told
    if not isinstance(ranges, dict):
        raise UserError(f'The augmentation is a dict of ranges, such as "{EXAMPLE}", or a name; this is {text!r}.')
    if "preset" not in ranges:
        return ranges
    if (name := ranges["preset"]) not in [*PRESETS]:
        raise UserError(f"There is no augmentation called {name!r}.{nearest(str(name), PRESETS)}")
    return PRESETS[name] | {key: value for key, value in ranges.items() if key != "preset"}


def _refusal(name: str, expected: str, value: Any) -> UserError:
    return UserError(f"The augmentation '{name}' expects {expected}, got {value!r}. Example: \"{EXAMPLE}\".")


# The two views of contrastive pre-training in Chaitanya et al., of images in 0..1: there 100 x 100 of 192 x 192 pixels.
GLOBAL_VIEW = Augmentation(flip=False, rotate=0, crop=100 / 192, contrast=0, gamma=0, spread=0.3, offset=0.3, clip=1.5)
LOCAL_VIEW = replace(GLOBAL_VIEW, crop=0)

# What a student sees whose teacher sees the image itself (Tang et al., MICCAI 2023): each pixel in its place; images
# with negative values, which have no gamma, are changed as much as others.
STRONG_VIEW = Augmentation(rotate=0, contrast=0, gamma=0, spread=0.4, brightness=0.4, noise=0.1, blank=0.5)
