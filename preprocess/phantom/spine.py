"""A lumbar spine, in the four images of a Dixon sequence."""

import math

from numpy.random import Generator

from preprocess.phantom.anatomy import TEXTURE, both, dots, vary
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site, Tube, Vector


def spine(rng: Generator) -> list[Part]:
    """A lumbar spine from the sacrum up: vertebrae, discs (1) with a nucleus or worn out, canal, muscles, vessels."""
    bend, lean, girth = 14 * vary(rng, 0.3), rng.uniform(-30, 0), vary(rng, 0.06)

    def column(z: float) -> float:
        return -8 - bend * math.cos((z - lean) / 75)

    def tilt(z: float) -> float:
        return math.degrees(math.atan(bend / 75 * math.sin((z - lean) / 75)))

    def tube(tissue: str, x: float, y: float, radius_mm: float) -> Part:
        return Part(tissue, Tube(tuple((x, y + column(z), z) for z in range(-180, 181, 30)), radius_mm))

    parts = [
        Part("fat", Blob((0, -20, 0), (190, 120, 500))),
        Part("muscle", Blob((0, -20, 0), (170, 98, 500))),
        Part("fat", Blob((0, -70, 0), (150, 62, 500))),  # the belly, with bowel
        *dots(rng, "bowel", 60, (rng.uniform(10, 40), 60, 150), 9.0, at=(0, -70, 0)),
        *both(rng, "fat", (3, 58, 0), (6, 24, 400)),  # between the back muscles
        tube("vessel", 11, -36, 9 * girth),  # aorta, vena cava
        tube("vessel", -13, -34, 10 * girth),
        tube("fat", 0, 26, 11),
        tube("fluid", 0, 26, 8 * girth),
        tube("cord", 0, 27, 4),
        *[tube("muscle", side * 46, 2, 21) for side in (-1, 1)],  # psoas
    ]
    z, pitch = -100 + rng.normal(0, 3), 37 * vary(rng, 0.03)
    parts.append(Part("marrow", Blob((0, column(z) + 12, z - 26), (26, 15, 25), turn=(-30, 0, 0), power=4)))
    while z < 180:
        parts += _segment(rng, (0, column(z), z), girth, tilt(z), pitch)
        middle = z + pitch / 2
        parts.append(Part("marrow", Blob((0, column(middle) + 52, middle - 8), (4, 16, 9), turn=(-20, 0, 0))))
        z, pitch = z + pitch, 0.965 * pitch
    return parts


def _segment(rng: Generator, place: Vector, girth: float, tilt: float, pitch: float) -> list[Part]:
    """A disc and the vertebra above it, `pitch` mm up to the next disc."""
    x, y, z = place
    thick, worn = 4.6 * vary(rng, 0.12), rng.uniform() < 0.2
    turn = (tilt, 0, rng.normal(0, 2))
    body = Blob((x, y, z + pitch / 2), (24 * girth, 17 * girth, pitch / 2 - 3.6), turn, power=6)
    disc = Blob(place, (25.5 * girth, 18.5 * girth, thick * (0.8 if worn else 1)), turn, power=4)
    core = Blob((x, y + 1, z), tuple(0.62 * r for r in disc.radii), turn)
    return [
        Part("cortex", Blob(body.centre, tuple(r + 1.2 for r in body.radii), turn, 6), wavy=0.5),
        Part("marrow", body, wavy=0.5),
        Part("worn" if worn else "annulus", disc, 1, wavy=0.6),
        Part("worn" if worn else "nucleus", core, 1, wavy=0.5),
    ]


DISCS = (
    Site(
        images={
            "{:02d}_wat.nii": Image((1, 0), noise=25),
            "{:02d}_fat.nii": Image((0, 1), noise=25),
            "{:02d}_inn.nii": Image((1, 1), noise=25),
            "{:02d}_opp.nii": Image((1, -1), noise=25),
        },
        labels="{:02d}_Labels.nii",
        visits=2,
        frames={1: spine},
        means={
            "fat": (60, 900),
            "muscle": (400, 40),
            "marrow": (200, 300),
            "cortex": (60, 40),
            "annulus": (560, 15),
            "nucleus": (700, 10),
            "worn": (450, 15),
            "fluid": (300, 5),
            "cord": (430, 20),
            "vessel": (500, 10),
            "bowel": (380, 80),
        },
        grids={
            "full": Sampling(16, ((36, 256, 256), (36, 256, 256)), ((2.0, 1.25, 1.25), (2.0, 1.25, 1.25))),
            "small": Sampling(16, ((24, 64, 48), (24, 64, 48)), ((3.0, 2.0, 5.0), (3.0, 2.0, 5.0))),
        },
        blur=0.7,
        texture=TEXTURE,
    ),
)
