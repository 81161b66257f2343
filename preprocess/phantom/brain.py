"""A head around the brain: CT perfusion of a stroke (ISLES 2018), MR of an ageing brain's white matter (WMH 2017)."""

import math

from numpy.random import Generator

from preprocess.phantom.anatomy import both, dots, vary
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site, Tube, Vector


def half(side: int, size: float, depth_mm: float) -> Blob:
    """One side of the brain, `depth_mm` below its surface: where a lesion may be."""
    return Blob((side * 34 * size, 0, 12), (33 * size - depth_mm, 82 * size - depth_mm, 58 - depth_mm))


def horns(side: int, size: float) -> tuple[Vector, ...]:
    """The lateral ventricle of one side, from its frontal to its occipital horn."""
    chain = (7, -35, 4), (9, -22, 14), (13, 0, 21), (17, 20, 19), (25, 33, 7), (23, 52, 2)
    return tuple((side * x * size, y * size, z) for x, y, z in chain)


def _skull(size: float) -> list[Part]:
    """Neck and scalp, bone in its layers, the fluid around the brain."""
    neck = (0, 22, -60), (0, 34, -200)
    parts = [
        Part("fat", Tube(neck, 62), wavy=2.0),
        Part("fat", Blob((0, 2, -14), (85 * size, 104 * size, 112))),
        Part("muscle", Tube(neck, 56), wavy=2.0),
        Part("muscle", Blob((0, -10, -84), (60, 80, 36)), wavy=3.0),
    ]
    layers = ("muscle", 4), ("bone", 6), ("marrow", 9), ("bone", 12), ("csf", 15)
    return parts + [Part(tissue, _skull_layer(size, depth_mm), wavy=0.5) for tissue, depth_mm in layers]


def _skull_layer(size: float, depth_mm: float) -> Blob:
    return Blob((0, 2, 10), (85 * size - depth_mm, 104 * size - depth_mm, 88 - depth_mm))


def brain_tissue(rng: Generator, size: float) -> list[Part]:
    """Folded grey over white matter with deep nuclei, cut off below; there the cerebellum, the stem, the face."""
    surface = Blob((0, 0, 12), (68 * size, 84 * size, 60))
    inner = Blob((0, 0, 13), (59 * size, 74 * size, 49))
    return [
        Part("grey", surface, wavy=2.2, wavelength=16.0),
        Part("white", inner, wavy=4.5, wavelength=18.0, within=surface),
        Part("grey", Blob((0, -62, 22), (5, 26, 46)), wavy=1.5, wavelength=14.0),  # the halves' inner faces
        Part("grey", Blob((0, 62, 26), (5, 28, 42)), wavy=1.5, wavelength=14.0),
        Part("grey", Blob((0, 0, 52), (5, 60, 22)), wavy=1.5, wavelength=14.0),
        Part("white", Blob((0, -2, 24), (14, 42, 5))),  # corpus callosum
        *both(rng, "grey", (38 * size, -4, 4), (5, 24, 16)),  # insula
        *both(rng, "grey", (15, -20, 8), (6, 13, 13)),  # caudate, putamen, thalamus
        *both(rng, "grey", (26, -4, 2), (6, 17, 12), turn=(0, 0, -8)),
        *both(rng, "grey", (11, 16, 6), (9, 14, 11), turn=(0, 0, -15)),
        Part("csf", Blob((0, 2, -46), (80, 100, 20), power=8), wavy=0.5, within=_skull_layer(size, 15)),
        *both(rng, "grey", (40 * size, -12, -30), (25 * size, 42, 22), wavy=2.0, wavelength=14.0),  # temporal lobes
        *both(rng, "white", (39 * size, -11, -29), (16 * size, 31, 13), wavy=2.5, wavelength=14.0),
        Part("grey", Blob((0, 50, -42), (52 * size, 34, 24)), wavy=1.5, wavelength=10.0),  # cerebellum
        *both(rng, "white", (20, 48, -42), (22, 19, 13), wavy=3.0, wavelength=10.0),
        Part("white", Tube(((0, 12, -16), (0, 20, -50), (0, 32, -110)), 12)),
        Part("muscle", Blob((0, -56, -64), (52, 56, 36)), wavy=2.0),  # the face
        *both(rng, "bone", (36, 18, -54), (26, 9, 9), turn=(0, 0, 30)),
        *both(rng, "air", (12, -74, -62), (9, 20, 22)),
        *both(rng, "fat", (33, -76, -40), (17, 22, 15)),
        *both(rng, "eye", (33, -86, -40), (12, 12, 12)),
    ]


def fluid(rng: Generator, size: float, girth: float) -> list[Part]:
    """Ventricles of `girth` mm and the great fissures: painted over everything else in the brain."""
    return [
        *[Part("csf", Tube(horns(side, size), girth), wavy=0.8, wavelength=12.0) for side in (-1, 1)],
        Part("csf", Blob((0, 6, 2), (0.5 * girth, 13, 9))),
        Part("csf", Blob((0, -66, 22), (1.3, 26, 50)), wavy=0.4),
        Part("csf", Blob((0, 68, 26), (1.3, 28, 46)), wavy=0.4),
        Part("csf", Blob((0, 0, 60), (1.3, 60, 24)), wavy=0.4),
        *both(rng, "csf", (54 * size, -12, 2), (14, 3, 8), turn=(0, 0, 20)),  # Sylvian fissures
    ]


def stroke(rng: Generator) -> list[Part]:
    """A brain with one artery blocked: the infarct's core (1) in a larger region that is late but alive, no label.

    A quarter of the cores are a few millimetres wide. A fifth of the brains hold an old scar too: dark, but not late.
    """
    size, side = vary(rng, 0.03), int(rng.choice((-1, 1)))
    reach = rng.uniform(5, 8) if rng.uniform() < 0.25 else rng.uniform(10, 25)
    middle = (side * rng.uniform(28, 50) * size, rng.uniform(-34, 40), rng.uniform(-2, 3))
    parts = _skull(size) + brain_tissue(rng, size)
    for _ in range(rng.integers(3, 8)):  # late by nature, in a healthy brain too
        other = int(rng.choice((-1, 1)))
        place = (other * rng.uniform(15, 55), rng.uniform(-70, 70), rng.uniform(-20, 30))
        parts.append(Part("slow", Blob(place, tuple(rng.uniform(6, 14, 3))), within=half(other, size, 8)))
    if rng.uniform() < 0.2:
        place = (-side * rng.uniform(20, 44), rng.uniform(-40, 50), rng.uniform(-8, 8))
        parts.append(Part("scar", Blob(place, tuple(rng.uniform(5, 11, 3))), within=half(-side, size, 1)))
    for blob in cluster(rng, middle, 1.25 * reach + rng.uniform(8, 16)):
        for tissue, depth in (("late", 1), ("late_white", 9)):
            parts.append(Part(tissue, blob, wavy=3.0, wavelength=20.0, within=half(side, size, depth)))
    for blob in cluster(rng, middle, reach):
        parts.append(Part("core", blob, 1, wavy=1.2, wavelength=14.0, within=half(side, size, 1)))
    parts += fluid(rng, size, 5.0 * vary(rng, 0.25))
    parts += dots(rng, "vessel", 16, (50, 66, 30), 1.8)
    return [*parts, Part("vessel", Tube(((0, 84 * size, -20), (0, 86 * size, 40)), 4))]


def cluster(rng: Generator, middle: Vector, reach: float) -> list[Blob]:
    """Overlapping ellipsoids that make one ragged region, about `reach` mm in radius."""
    blobs = [Blob(middle, tuple(reach * rng.uniform(0.7, 1, 3)))]
    for _ in range(rng.integers(2, 5)):
        place = tuple(m + 0.6 * reach * rng.normal() for m in middle)
        blobs.append(Blob(place, tuple(reach * rng.uniform(0.35, 0.75, 3))))
    return blobs


def ageing(rng: Generator) -> list[Part]:
    """A brain with hyperintense white matter (1): rims and caps of the ventricles, spots in the depth, each in a haze.

    From a few spots to large parts of the white matter. A fifth of the brains hold an infarct too (2).
    """
    size, load = vary(rng, 0.03), min(math.exp(rng.normal(-0.2, 0.6)), 2.5)
    girth = (5.5 + 1.5 * load) * vary(rng, 0.15)
    haze, spots = [], []
    for side in (-1, 1):
        inner = half(side, size, 11)
        chain = horns(side, size)
        rim = girth + rng.uniform(0.2, 1.2) + 1.2 * load
        haze.append(Part("haze", Tube(chain, rim + 3), wavy=2.0, wavelength=10.0, within=inner))
        spots.append(Part("spot", Tube(chain, rim), 1, wavy=2.2, wavelength=9.0, within=inner))
        for tip in (chain[0], chain[-2], chain[-1]):
            cap = Blob(tip, tuple((girth + 3 + 2 * load) * rng.uniform(0.7, 1.2, 3)))
            spots.append(Part("spot", cap, 1, wavy=1.5, wavelength=9.0, within=inner))
        for _ in range(rng.poisson(10 + 14 * load)):
            radius = min(math.exp(rng.normal(0.75, 0.45)), 7.0)
            place = tuple(c + 0.95 * r * s for c, r, s in zip(inner.centre, inner.radii, in_ball(rng), strict=True))
            spot = Blob(place, tuple(radius * rng.uniform(0.8, 1.6, 3)))
            haze.append(Part("haze", Blob(place, tuple(r + 1.5 for r in spot.radii)), within=inner))
            spots.append(Part("spot", spot, 1, wavy=0.6, wavelength=8.0, within=inner))
    parts = _skull(size) + brain_tissue(rng, size) + haze + spots
    if rng.uniform() < 0.2:
        side = int(rng.choice((-1, 1)))
        place = (side * rng.uniform(38, 52), rng.uniform(-40, 50), rng.uniform(0, 30))
        rim = Blob(place, tuple(rng.uniform(9, 16, 3)))
        parts.append(Part("infarct", rim, 2, wavy=2.0, wavelength=12.0, within=half(side, size, 1)))
        parts.append(Part("csf", Blob(place, tuple(0.6 * r for r in rim.radii)), 2))
    return parts + fluid(rng, size, girth)


def in_ball(rng: Generator) -> Vector:
    """A point of the unit ball."""
    direction = rng.normal(size=3)
    return tuple(direction / max(math.sqrt(direction @ direction), 1e-6) * rng.uniform() ** (1 / 3))


def _perfusion(image: str, number: int) -> str:
    name = f"SMIR.Brain.XX.O.{image}.{number}{{0:03d}}"
    return f"TRAINING/case_{{0}}/{name}/{name}.nii"


STROKE = (
    Site(
        images={
            _perfusion("CT", 345): Image((1, 0, 0, 0, 0), noise=3, dtype="int32"),
            _perfusion("CT_CBF", 346): Image((0, 1, 0, 0, 0), noise=5, dtype="uint16", floor=4),
            _perfusion("CT_CBV", 347): Image((0, 0, 1, 0, 0), noise=4, dtype="uint16", floor=4),
            _perfusion("CT_MTT", 348): Image((0, 0, 0, 1, 0), noise=1.1, dtype="float64", floor=0.8),
            _perfusion("CT_Tmax", 349): Image((0, 0, 0, 0, 1), noise=1.0, dtype="float64", floor=0.4),
        },
        labels=_perfusion("OT", 350),
        first=1,
        frames={1: stroke},
        means={  # CT in HU, flow in ml/100 g/min, volume in 0.1 ml/100 g, mean transit time and Tmax in s
            "fat": (10, 0, 0, 0, 0),
            "muscle": (50, 0, 0, 0, 0),
            "bone": (900, 0, 0, 0, 0),
            "marrow": (500, 0, 0, 0, 0),
            "air": (0, 0, 0, 0, 0),
            "eye": (15, 0, 0, 0, 0),
            "csf": (8, 2, 2, 0.5, 0.2),
            "grey": (38, 62, 42, 4.2, 1.6),
            "white": (30, 26, 22, 5.2, 2.2),
            "late": (36, 34, 43, 8, 5.5),
            "late_white": (29, 16, 22, 9, 6),
            "slow": (30, 24, 22, 6.2, 3.6),
            "core": (26, 9, 12, 11.5, 9),
            "scar": (20, 9, 10, 6, 2.5),
            "vessel": (45, 110, 90, 3.5, 1),
        },
        grids={
            "full": Sampling(94, ((256, 256, 2), (256, 256, 22)), ((0.85, 0.85, 5.0), (0.85, 0.85, 5.0))),
            "small": Sampling(40, ((64, 64, 6), (64, 64, 10)), ((3.2, 3.2, 5.0), (3.2, 3.2, 5.0))),
        },
        spread=0.05,
        grain=0.12,
        bias=0,
        blur=2.0,
        tilt=0,
    ),
)


def _white_matter(
    scanner: str,
    first: int,
    grids: dict[str, Sampling],
    means: dict[str, tuple[float, float]],
    noise: float,
    blur: float,
) -> Site:
    """One scanner; a tissue's means are those in FLAIR and in T1."""
    return Site(
        images={
            f"{scanner}/{{}}/pre/FLAIR.nii.gz": Image((1, 0), noise=noise, dtype="float32"),
            f"{scanner}/{{}}/pre/T1.nii.gz": Image((0, 1), noise=noise, dtype="uint16"),
        },
        labels=f"{scanner}/{{}}/wmh.nii.gz",
        first=first,
        frames={1: ageing},
        means=means,
        grids=grids,
        spread=0.035,
        bias=0.12,
        blur=blur,
    )


def _fixed(scans: int, shape: tuple[int, int, int], spacing_mm: Vector) -> Sampling:
    return Sampling(scans, (shape, shape), (spacing_mm, spacing_mm))


WHITE_MATTER = (
    _white_matter(
        "Utrecht",
        first=0,
        grids={
            "full": _fixed(20, (240, 240, 48), (0.96, 0.95, 3.0)),
            "small": _fixed(10, (64, 64, 16), (3.1, 3.1, 6.0)),
        },
        means={
            "fat": (260, 800),
            "muscle": (170, 330),
            "bone": (40, 60),
            "marrow": (150, 500),
            "air": (10, 10),
            "eye": (60, 150),
            "csf": (70, 140),
            "grey": (330, 380),
            "white": (265, 540),
            "haze": (320, 510),
            "spot": (460, 430),
            "infarct": (430, 300),
        },
        noise=18,
        blur=0.8,
    ),
    _white_matter(
        "Singapore",
        first=50,
        grids={
            "full": _fixed(20, (232, 256, 48), (1.0, 1.0, 3.0)),
            "small": _fixed(10, (58, 64, 16), (3.2, 3.2, 6.0)),
        },
        means={
            "fat": (620, 900),
            "muscle": (260, 380),
            "bone": (50, 60),
            "marrow": (300, 600),
            "air": (12, 10),
            "eye": (90, 170),
            "csf": (110, 160),
            "grey": (470, 430),
            "white": (390, 650),
            "haze": (460, 610),
            "spot": (640, 520),
            "infarct": (610, 340),
        },
        noise=30,
        blur=0.9,
    ),
    _white_matter(
        "GE3T",
        first=100,
        grids={
            "full": _fixed(20, (132, 256, 83), (1.2, 0.98, 3.0)),
            "small": _fixed(10, (44, 64, 16), (3.6, 3.1, 6.0)),
        },
        means={
            "fat": (180, 500),
            "muscle": (120, 240),
            "bone": (30, 40),
            "marrow": (90, 300),
            "air": (8, 8),
            "eye": (30, 90),
            "csf": (40, 90),
            "grey": (210, 260),
            "white": (175, 360),
            "haze": (205, 340),
            "spot": (300, 290),
            "infarct": (280, 200),
        },
        noise=12,
        blur=1.1,
    ),
)
