"""A street scene in the making: the camera, the picture, and its labels in the same outlines.

Everything is in metres: x right of the middle of the street, y up, z ahead of the camera.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from preprocess.archives.streets import CLASSES

Pair = Sequence[float]  # of two, from and to


def palette(text: str) -> dict[str, np.ndarray]:
    """Material -> (N,3) colours, of 'material rrggbb rrggbb; material …'."""
    words = (part.split() for part in text.split(";"))
    return {name: np.array([list(bytes.fromhex(colour)) for colour in colours]) for name, *colours in words}


VOID = {"bonnet": 1, "margin": 3, "rails": 10}  # ego vehicle, out of roi, rail track
IDS = VOID | {name: label for label, name, _ in CLASSES}
COLOURS = palette("""
    road 68645f 78726c; rails 54504c; white e4ded0 ecece6; sidewalk bab0a0 aaa49c; terrain 969646 768c3e;
    vegetation 466e28 60802c 34602c; trunk 68543e; building d6be96 be7858 e2d6c4 a8968c cea078 96a4b0;
    roof 965c46 6e6460; glass 40546c 54687c; wall baaa8c a06850 96928c; fence 545c54 a48054 c4c8c4;
    pole 5a5c5a 7c7870; light 282a26; go 28dc6e; stop fa3c1e; sign ce2c28 2c54b0 ecbe28;
    sky 5490d6; horizon c4d8e8; cloud f0f2f4; bonnet 3c1e1e 282c3c;
    skin d6a888 805a42; shirt b43c32 324678 e6e1d2 3c3c3c 6e8c5a c8a03c; trousers 323850 46403a 242428;
    car a01e1e 224088 dcdcde 282a2e 8c9296 3c5a46; truck e4e2da c8be9c b06032; bus dc9628 ecc846;
    train c83c50 d25a6e; motorcycle 8c1e1e 202428; bicycle 323c5a 782828 282828; tyre 1c1c1c; rim 6e6e6e;
    front faf0c8; rear e11e1e
""")
NEAR, FAR = 1.2, 220.0  # m, what the camera sees
ROUND = np.linspace(0, 2 * np.pi, 16, endpoint=False)
COS, SIN = np.cos(ROUND).tolist(), np.sin(ROUND).tolist()


@dataclass(frozen=True)
class Site:
    """Where pictures are taken, what is there, and what the camera makes of it."""

    files: tuple[str, str]  # of image and labels, for a {place} and {number}
    shape: dict[str, tuple[int, int]]  # size of the cohort -> width, height
    pictures: dict[str, int]  # place, as split/city -> number of pictures in a small cohort
    focal: float  # of the width
    eye: float  # m, height of the camera
    road: Pair  # m, half its width
    storeys: tuple[int, int]
    lots: dict[str, float]  # what lines the street, and how often
    traffic: dict[str, float]  # what is in a lane, and how often
    bonnet: float  # of the height
    colours: dict[str, np.ndarray] = field(default_factory=dict)
    shade: float = 0.1  # how much darker it is there
    haze: float = 900.0  # m
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    gamma: float = 1.0
    noise: float = 0.01
    blur: float = 0.0  # of the width
    margin: float = 0.0  # of the width


class Scene:
    """The camera, the picture in twice its size (for smooth edges) and the labels.

    What is painted with label "" only adds to the picture; without a colour it gets that of its label.
    """

    def __init__(self, site: Site, size: str, rng: Generator) -> None:
        self.site, self.rng, self.colours = site, rng, COLOURS | site.colours
        width, height = self.size = site.shape[size]
        self.half = rng.uniform(*site.road)  # m, half the width of the road
        self.eye = np.array([self.half * rng.uniform(0.2, 0.5), site.eye * rng.uniform(0.9, 1.1), 0])
        self.focal = site.focal * width * rng.uniform(0.9, 1.1)
        self.lens = self.focal * np.array([1, -1])  # rows of a picture run down
        self.vanishing = np.array([width * rng.uniform(0.4, 0.6), height * rng.uniform(0.42, 0.5)])
        self.mist = self.colour("horizon")
        self._camera = [each.tolist() for each in (self.eye, self.vanishing, self.lens)]
        self._mist = self.mist.tolist()
        self.labels, self.picture = Image.new("L", self.size), Image.new("RGB", (2 * width, 2 * height))
        self.pens = ImageDraw.Draw(self.labels), ImageDraw.Draw(self.picture)

    def colour(self, material: str) -> np.ndarray:
        """(3,) one of the material's colours here, a little lighter or darker."""
        colours = self.colours[material]
        return colours[self.rng.integers(len(colours))] * self.rng.normal(1, 0.05)

    def draw(self, label: str, points: np.ndarray, colour: np.ndarray) -> None:
        """Draws a polygon (N, 2) in pixels."""
        self._draw(label, points.ravel().tolist(), colour.tolist())

    def _draw(self, label: str, points: list[float], colour: list[float]) -> None:
        """Draws a polygon, x and y by turns. Numbers of python: for a few, arrays take several times as long."""
        if label:
            self.pens[0].polygon(points, fill=IDS[label])
        red, green, blue = (min(max(round(each), 0), 255) for each in colour)
        self.pens[1].polygon([2 * each for each in points], fill=(red, green, blue))

    def paint(self, label: str, corners: Sequence[Sequence[float]], colour: np.ndarray | None = None) -> None:
        """Paints a polygon in space; distance fades it."""
        colour = self.colour(label) if colour is None else colour
        (left, below, _), (right, down), (across, upwards) = self._camera
        depths = [max(float(z), NEAR) for _, _, z in corners]
        seen = math.exp(-sum(depths) / len(depths) / self.site.haze)
        points = []
        for (x, y, _), z in zip(corners, depths, strict=True):
            points += (right + across * (float(x) - left) / z, down + upwards * (float(y) - below) / z)
        fades = zip(colour.tolist(), self._mist, strict=True)
        self._draw(label, points, [seen * own + (1 - seen) * mist for own, mist in fades])

    def panel(self, label: str, xs: Pair, ys: Pair, z: float, colour: np.ndarray | None = None) -> None:
        """Paints a rectangle that faces the camera."""
        self.paint(label, [(xs[0], ys[0], z), (xs[1], ys[0], z), (xs[1], ys[1], z), (xs[0], ys[1], z)], colour)

    def side(self, label: str, x: float, ys: Pair, zs: Pair, colour: np.ndarray) -> None:
        """Paints a rectangle along the street; what faces left is in the shade."""
        light = 1 - self.site.shade * (x > self.eye[0])
        self.paint(label, [(x, ys[0], zs[0]), (x, ys[0], zs[1]), (x, ys[1], zs[1]), (x, ys[1], zs[0])], light * colour)

    def ground(self, label: str, xs: Pair, zs: Pair, colour: np.ndarray | None = None, y: float = 0.0) -> None:
        """Paints a level strip, in pieces, since each fades by its own distance."""
        colour = self.colour(label) if colour is None else colour
        near, far = max(zs[0], NEAR), min(zs[1], FAR)
        for a, b in pairwise(np.geomspace(near, far, 2 + int(8 * np.log10(far / near))).tolist()):
            self.paint(label, [(xs[0], y, a), (xs[1], y, a), (xs[1], y, b), (xs[0], y, b)], colour)

    def disc(self, label: str, centre: Sequence[float], radii: Pair, colour: np.ndarray, along: bool = False) -> None:
        """Paints an ellipse that faces the camera, or lies `along` the street."""
        (x, y, z), (wide, high) = map(float, centre), map(float, radii)
        edge = [(wide * cos, y + high * sin) for cos, sin in zip(COS, SIN, strict=True)]
        self.paint(label, [(x, up, z + out) if along else (x + out, up, z) for out, up in edge], colour)

    def box(self, label: str, xs: Pair, ys: Pair, zs: Pair, colour: np.ndarray) -> float | None:
        """Paints the faces of a box that the camera sees. Returns the x of its side."""
        low, high = min(xs), max(xs)
        seen = low if low > self.eye[0] else high if high < self.eye[0] else None
        if ys[1] < self.eye[1]:
            self.ground(label, (low, high), zs, 1.15 * colour, ys[1])
        if seen is not None:
            self.side(label, seen, ys, zs, colour)
        if zs[0] > NEAR:
            self.panel(label, (low, high), ys, zs[0], 0.85 * colour)
        return seen
