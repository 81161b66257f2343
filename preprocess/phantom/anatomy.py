"""What is where (mm) and how bright each site sees it. Sizes and places are drawn anew for every patient."""

import math
from functools import partial

from numpy.random import Generator

from preprocess.phantom.render import Blob, Grid, Part, Site, Tube, Vector


def pelvis(rng: Generator, coil: bool) -> list[Part]:
    """Transverse look at a prostate: peripheral zone (1), central gland with nodules (2), neighbours.

    With an endorectal coil the rectum is a balloon that presses the gland flat from behind.
    """
    width, depth, height = 30 * _vary(rng), 22 * _vary(rng), 20.5 * _vary(rng, 0.06)
    gland = Blob((0, 0, 0), (width, depth * (0.9 if coil else 1), height), turn=(rng.normal(8, 4), 0, rng.normal(0, 4)))
    centre = Blob((rng.normal(0, 2), -0.28 * depth, 3), (0.74 * width, 0.66 * depth, 0.78 * height))
    swell = 20 * _vary(rng, 0.15) if coil else 12 * _vary(rng, 0.15)
    back = depth + swell - (6 if coil else -1)
    rectum = Blob((rng.normal(0, 3), back, 0), (swell * (1.15 if coil else 1.3), swell, 38 if coil else 150))
    full = rng.uniform(0.8, 1.25)

    parts = [
        Part("fat", Blob((0, 10, 0), (185, 118, 500))),
        *_both(rng, "muscle", (72, 72, 0), (52, 26, 120), turn=(0, 0, -25)),  # gluteus
        *_both(rng, "cortex", (92, -4, 12), (27, 27, 30)),  # hips
        *_both(rng, "marrow", (92, -4, 12), (24, 24, 27)),
        *_both(rng, "muscle", (58, 4, 0), (11, 36, 60), turn=(0, 0, 12)),  # obturator
        *_both(rng, "cortex", (24, -46, -10), (27, 12, 20), turn=(0, 0, 28)),  # pubis
        *_both(rng, "marrow", (24, -46, -10), (24, 9.5, 17), turn=(0, 0, 28)),
        *_both(rng, "muscle", (38, 16, -14), (4, 30, 34), turn=(0, 14, -10)),  # levator
        Part("muscle", Blob((0, 0, -36), (20, 15, 15))),  # pelvic floor
        Part("bulb", Blob((0, 10, -50), (12, 11, 10))),
        Part("muscle", Blob((0, -14, 46), (40 * full, 30 * full, 31))),  # bladder
        Part("urine", Blob((0, -14, 46), (37 * full, 27 * full, 28))),
        *_both(rng, "vesicle", (17, 0.9 * depth, 25), (18, 7, 7), turn=(0, -15, 15), wavy=2.0),
        *_dots(rng, "vein", 14, (width + 5, depth + 5, 0.9 * height), 2.6),
        Part("capsule", Blob(gland.centre, tuple(r + 1.3 for r in gland.radii), gland.turn), wavy=0),
        Part("peripheral", gland, 1, wavy=1.2),
        Part("central", centre, 2, wavy=1.2, within=gland),
    ]
    for _ in range(rng.integers(3, 8)):
        place = tuple(c + r * rng.uniform(-0.55, 0.55) for c, r in zip(centre.centre, centre.radii, strict=True))
        kind = ("stromal", "glandular")[rng.integers(2)]
        parts.append(Part(kind, Blob(place, tuple(rng.uniform(3, 7, 3))), 2, within=centre))
    parts.append(Part("muscle", Blob((0, -0.9 * depth, 2), (9, 4, 12)), 2, within=gland))  # fibromuscular stroma
    wall = Blob(rectum.centre, tuple(r + 3 for r in rectum.radii))
    return [*parts, Part("wall", wall), Part("balloon" if coil else "stool", rectum)]


def heart(rng: Generator) -> list[Part]:
    """A chest around the heart, seen from below: chambers, great vessels, lungs, liver, spine.

    The long axis of the left ventricle points to the left, forward and down. Labels as in MM-WHS.
    """
    axis = (45 + rng.normal(0, 5), 38 + rng.normal(0, 5), 0)
    size, wall = _vary(rng, 0.06), 9 * _vary(rng, 0.12)
    lv = (22 + rng.normal(0, 2), -8 + rng.normal(0, 2), -16 + rng.normal(0, 2))
    cavity = tuple(r * size * _vary(rng, 0.05) for r in (21, 21, 38))
    top = 43 + rng.normal(0, 1.5)
    arch = (-12, -2, top), (-4, 12, top + 12), (14, 36, top + 10), (24, 58, top - 8), (24, 62, -120)
    root = (4, 6, 2), (-6, -6, 24), (-12, -6, 40), arch[0]
    ring = _vary(rng, 0.08)

    parts = [
        Part("fat", Blob((0, 0, 0), (170, 115, 400))),
        Part("muscle", Blob((0, 2, 0), (155, 96, 400))),
        *_both(rng, "lung", (76, 12, 10), (52, 78, 130), wavy=2.0),
        Part("fat", Blob((4, -6, -4), (60 * size, 54 * size, 70)), wavy=3.0),  # around the heart
        Part("liver", Blob((-44, 0, -84), (80, 74, 46)), wavy=2.0),
        Part("stomach", Blob((66, 18, -86), (34, 42, 36)), wavy=2.0),
        Part("cortex", Blob((0, -82, 0), (17, 7, 90))),
        Part("marrow", Blob((0, -82, 0), (14, 4.5, 88))),
        Part("cortex", Tube(((0, 80, -150), (0, 80, 150)), 20)),
        Part("marrow", Tube(((0, 80, -150), (0, 80, 150)), 17)),
        *_dots(rng, "vessel", 40, (68, 30, 60), 3.0),
        Part("vessel", Tube(((-34, 4, 0), (-31, 4, 140)), 9 * ring)),  # venae cavae
        Part("vessel", Tube(((-30, 16, -20), (-26, 26, -140)), 11 * ring)),
        Part("left", Tube(arch, 11 * ring)),  # arch and descending aorta: as bright as what is labelled
        Part("right", Blob((-43, 4, -6), tuple(_vary(rng) * r for r in (22, 25, 30)), turn=(0, 15, 0)), 550),
        Part("right", Blob((-4, -34, -22), tuple(_vary(rng) * r for r in (42, 24, 32)), turn=(0, 25, 15)), 600),
        Part("right", Tube(((4, -40, 0), (12, -24, 26), (20, -2, 38)), 13 * ring), 850),
        Part("right", Tube(((20, -2, 38), (-36, 22, 36)), 8 * ring), 850),
        *[Part("left", Tube(((0, 34, 12), (side * 62, 48, z)), 5)) for side in (-1, 1) for z in (0, 22)],
        Part("left", Blob((0, 34, 10), tuple(_vary(rng) * r for r in (33, 19, 23))), 420, wavy=1.5),
        Part("myocardium", Blob(lv, tuple(r + wall for r in cavity), axis), 205),
        Part("left", Blob(_along(lv, (-0.6, 0.55, 0.55), 4), cavity, axis), 500),
    ]
    for side in (-1, 1):  # papillary muscles belong to the blood pool
        place = (lv[0] + 5 * side + 5, lv[1] - 6, lv[2] - 8 * side - 6)
        parts.append(Part("myocardium", Blob(place, (4, 4, 9), axis), 500))
    return [*parts, Part("left", Tube(root, 17 * ring), 820)]


def spine(rng: Generator) -> list[Part]:
    """A lumbar spine from the sacrum up: vertebrae, discs (1) with a nucleus or worn out, canal, muscles, vessels."""
    bend, lean, girth = 14 * _vary(rng, 0.3), rng.uniform(-30, 0), _vary(rng, 0.06)

    def column(z: float) -> float:
        return -8 - bend * math.cos((z - lean) / 75)

    def tilt(z: float) -> float:
        return math.degrees(math.atan(bend / 75 * math.sin((z - lean) / 75)))

    def tube(tissue: str, x: float, y: float, radius: float) -> Part:
        return Part(tissue, Tube(tuple((x, y + column(z), z) for z in range(-180, 181, 30)), radius))

    parts = [
        Part("fat", Blob((0, -20, 0), (190, 120, 500))),
        Part("muscle", Blob((0, -20, 0), (170, 98, 500))),
        Part("fat", Blob((0, -70, 0), (150, 62, 500))),  # the belly, with bowel
        *_dots(rng, "bowel", 60, (rng.uniform(10, 40), 60, 150), 9.0, at=(0, -70, 0)),
        *_both(rng, "fat", (3, 58, 0), (6, 24, 400)),  # between the back muscles
        tube("vessel", 11, -36, 9 * girth),  # aorta, vena cava
        tube("vessel", -13, -34, 10 * girth),
        tube("fat", 0, 26, 11),
        tube("fluid", 0, 26, 8 * girth),
        tube("cord", 0, 27, 4),
        *[tube("muscle", side * 46, 2, 21) for side in (-1, 1)],  # psoas
    ]
    z, pitch = -100 + rng.normal(0, 3), 37 * _vary(rng, 0.03)
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
    thick, worn = 4.6 * _vary(rng, 0.12), rng.uniform() < 0.2
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


def _vary(rng: Generator, share: float = 0.1) -> float:
    """A factor around 1 for a size, never further off than two `share`."""
    return 1 + share * min(max(rng.normal(), -2), 2)


def _both(
    rng: Generator, tissue: str, centre: Vector, radii: Vector, turn: Vector = (0, 0, 0), wavy: float = 1.0
) -> list[Part]:
    """A structure and its mirror image, neither quite in its place."""
    parts = []
    for side in (1, -1):
        place = (side * centre[0] + rng.normal(), centre[1] + rng.normal(), centre[2] + rng.normal())
        parts.append(Part(tissue, Blob(place, radii, (turn[0], side * turn[1], side * turn[2])), wavy=wavy))
    return parts


def _dots(rng: Generator, tissue: str, count: int, reach: Vector, size: float, at: Vector = (0, 0, 0)) -> list[Part]:
    """Small vessels scattered on an elliptic ring in the transverse plane."""
    parts = []
    for _ in range(count):
        x, y = rng.normal(size=2)
        scale = 1 / max((x * x + y * y) ** 0.5, 1e-3)
        place = (at[0] + reach[0] * x * scale, at[1] + reach[1] * y * scale, at[2] + reach[2] * rng.uniform(-1, 1))
        parts.append(Part(tissue, Blob(place, (size, size, 2 * size)), wavy=0))
    return parts


def _along(start: Vector, direction: Vector, length: float) -> Vector:
    return tuple(s + length * d for s, d in zip(start, direction, strict=True))


def _one(**means: float) -> dict[str, tuple[float, ...]]:
    return {tissue: (mean,) for tissue, mean in means.items()}


TEXTURE = {"air": 0, "urine": 0.3, "balloon": 0.5, "central": 1.6, "marrow": 1.3, "lung": 1.5, "muscle": 1.0}

PROSTATE = (
    Site(
        images={"BMC/Case{:02d}.nii.gz": (1,)},
        labels="BMC/Case{:02d}_Segmentation.nii.gz",
        anatomy=partial(pelvis, coil=True),
        means=_one(
            fat=230,
            muscle=90,
            cortex=40,
            marrow=170,
            bulb=300,
            urine=420,
            vesicle=330,
            vein=320,
            capsule=130,
            peripheral=400,
            central=300,
            stromal=220,
            glandular=380,
            wall=150,
            balloon=20,
        ),
        grids={
            "full": Grid(30, ((384, 384, 20), (384, 384, 24)), ((0.4, 0.4, 3.0), (0.4, 0.4, 3.0))),
            "small": Grid(16, ((64, 64, 12), (64, 64, 14)), ((1.6, 1.6, 5.0), (1.6, 1.6, 5.0))),
        },
        coil=((0, 30, 0), 4.0, 22.0),
        noise=22,
        blur=0.7,
        texture=TEXTURE,
    ),
    Site(
        images={"RUNMC/Case{:02d}.nii.gz": (1,)},
        labels="RUNMC/Case{:02d}_segmentation.nii.gz",
        anatomy=partial(pelvis, coil=False),
        means=_one(
            fat=200,
            muscle=90,
            cortex=50,
            marrow=180,
            bulb=380,
            urine=780,
            vesicle=420,
            vein=480,
            capsule=100,
            peripheral=520,
            central=360,
            stromal=290,
            glandular=450,
            wall=160,
            stool=200,
        ),
        grids={
            "full": Grid(30, ((384, 384, 16), (384, 384, 24)), ((0.6, 0.6, 3.6), (0.6, 0.6, 4.0))),
            "small": Grid(16, ((64, 64, 13), (64, 64, 15)), ((2.0, 2.0, 5.0), (2.0, 2.0, 5.0))),
        },
        noise=18,
        blur=0.5,
        texture=TEXTURE,
    ),
)

HEART = (
    Site(
        images={"mr_train/mr_train_{}_image.nii.gz": (1,)},
        labels="mr_train/mr_train_{}_label.nii.gz",
        first=1001,
        anatomy=heart,
        slip=(1, 420, 421),
        stored="LAS",
        means=_one(
            fat=420,
            muscle=180,
            lung=50,
            liver=250,
            stomach=200,
            cortex=60,
            marrow=300,
            vessel=520,
            left=620,
            right=580,
            myocardium=270,
        ),
        grids={
            "full": Grid(20, ((256, 256, 110), (256, 256, 128)), ((0.7, 0.7, 1.2), (0.7, 0.7, 1.2))),
            "small": Grid(10, ((64, 64, 24), (64, 64, 26)), ((2.8, 2.8, 6.0), (2.8, 2.8, 6.0))),
        },
        noise=25,
        blur=0.8,
        texture=TEXTURE,
    ),
    Site(
        images={"ct_train/ct_train_{}_image.nii.gz": (1,)},
        labels="ct_train/ct_train_{}_label.nii.gz",
        first=1001,
        anatomy=heart,
        stored="LAS",
        means=_one(
            fat=900,
            muscle=1050,
            lung=180,
            liver=1090,
            stomach=1040,
            cortex=1600,
            marrow=1220,
            vessel=1180,
            left=1400,
            right=1240,
            myocardium=1090,
        ),
        grids={
            "full": Grid(20, ((256, 256, 110), (256, 256, 128)), ((0.7, 0.7, 1.2), (0.7, 0.7, 1.2))),
            "small": Grid(10, ((64, 64, 24), (64, 64, 26)), ((2.8, 2.8, 6.0), (2.8, 2.8, 6.0))),
        },
        spread=0.015,
        grain=0.015,
        noise=25,
        bias=0,
        blur=0.6,
        offset=-1000,
        tilt=0,
        texture=TEXTURE,
    ),
)

DISCS = (
    Site(
        images={
            "{:02d}_wat.nii": (1, 0),
            "{:02d}_fat.nii": (0, 1),
            "{:02d}_inn.nii": (1, 1),
            "{:02d}_opp.nii": (1, -1),
        },
        labels="{:02d}_Labels.nii",
        visits=2,
        anatomy=spine,
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
            "full": Grid(16, ((36, 256, 256), (36, 256, 256)), ((2.0, 1.25, 1.25), (2.0, 1.25, 1.25))),
            "small": Grid(16, ((24, 64, 48), (24, 64, 48)), ((3.0, 2.0, 5.0), (3.0, 2.0, 5.0))),
        },
        noise=25,
        blur=0.7,
        texture=TEXTURE,
    ),
)

COHORTS = {"prostate": PROSTATE, "whs": HEART, "ivd": DISCS}
