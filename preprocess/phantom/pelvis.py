"""A male pelvis around the prostate, with and without an endorectal coil; at two scanners, and at six."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from numpy.random import Generator

from preprocess.phantom.anatomy import TEXTURE, both, dots, one, vary
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site


def pelvis(rng: Generator, coil: bool, growth: float = 1.0) -> list[Part]:
    """Transverse look at a prostate: peripheral zone (1), central gland with nodules (2), neighbours.

    With an endorectal coil the rectum is a balloon that presses the gland flat from behind. `growth` of the gland,
    relative, counts once more for its centre, which presses the peripheral zone thin.
    """
    width, depth, height = 30 * growth * vary(rng), 22 * growth * vary(rng), 20.5 * vary(rng, 0.06)
    gland = Blob((0, 0, 0), (width, depth * (0.9 if coil else 1), height), turn=(rng.normal(8, 4), 0, rng.normal(0, 4)))
    centre = Blob((rng.normal(0, 2), -0.28 * depth, 3), (0.74 * growth * width, 0.66 * growth * depth, 0.78 * height))
    swell = 20 * vary(rng, 0.15) if coil else 12 * vary(rng, 0.15)
    back = depth + swell - (6 if coil else -1)
    rectum = Blob((rng.normal(0, 3), back, 0), (swell * (1.15 if coil else 1.3), swell, 38 if coil else 150))
    full = rng.uniform(0.8, 1.25)

    parts = [
        Part("fat", Blob((0, 10, 0), (185, 118, 500))),
        *both(rng, "muscle", (72, 72, 0), (52, 26, 120), turn=(0, 0, -25)),  # gluteus
        *both(rng, "cortex", (92, -4, 12), (27, 27, 30)),  # hips
        *both(rng, "marrow", (92, -4, 12), (24, 24, 27)),
        *both(rng, "muscle", (58, 4, 0), (11, 36, 60), turn=(0, 0, 12)),  # obturator
        *both(rng, "cortex", (24, -46, -10), (27, 12, 20), turn=(0, 0, 28)),  # pubis
        *both(rng, "marrow", (24, -46, -10), (24, 9.5, 17), turn=(0, 0, 28)),
        *both(rng, "muscle", (38, 16, -14), (4, 30, 34), turn=(0, 14, -10)),  # levator
        Part("muscle", Blob((0, 0, -36), (20, 15, 15))),  # pelvic floor
        Part("bulb", Blob((0, 10, -50), (12, 11, 10))),
        Part("muscle", Blob((0, -14, 46), (40 * full, 30 * full, 31))),  # bladder
        Part("urine", Blob((0, -14, 46), (37 * full, 27 * full, 28))),
        *both(rng, "vesicle", (17, 0.9 * depth, 25), (18, 7, 7), turn=(0, -15, 15), wavy=2.0),
        *dots(rng, "vein", 14, (width + 5, depth + 5, 0.9 * height), 2.6),
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


PROSTATE = (
    Site(
        images={"BMC/Case{:02d}.nii.gz": Image((1,), noise=22)},
        labels="BMC/Case{:02d}_Segmentation.nii.gz",
        frames={1: partial(pelvis, coil=True)},
        means=one(
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
            "full": Sampling(30, ((384, 384, 20), (384, 384, 24)), ((0.4, 0.4, 3.0), (0.4, 0.4, 3.0))),
            "small": Sampling(16, ((64, 64, 12), (64, 64, 14)), ((1.6, 1.6, 5.0), (1.6, 1.6, 5.0))),
        },
        coil=((0, 30, 0), 4.0, 22.0),
        blur=0.7,
        texture=TEXTURE,
    ),
    Site(
        images={"RUNMC/Case{:02d}.nii.gz": Image((1,), noise=18)},
        labels="RUNMC/Case{:02d}_segmentation.nii.gz",
        frames={1: partial(pelvis, coil=False)},
        means=one(
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
            "full": Sampling(30, ((384, 384, 16), (384, 384, 24)), ((0.6, 0.6, 3.6), (0.6, 0.6, 4.0))),
            "small": Sampling(16, ((64, 64, 13), (64, 64, 15)), ((2.0, 2.0, 5.0), (2.0, 2.0, 5.0))),
        },
        blur=0.5,
        texture=TEXTURE,
    ),
)


# ------------------------------------------------------------------------------------------------ six scanners

BMC, RUNMC = PROSTATE
Range = tuple[float, float]


def _hospital(
    name: str,
    like: Site,
    scans: int,
    pixel: Range,
    gap: Range,
    small: float,
    noise: float,
    means: Mapping[str, float] | None = None,
    growth: float = 1.0,
    **more: object,
) -> Site:
    """A site in the layout of the release, with the coil, or without, of the one that it is like.

    scans               how many there are in full; in small there are ten
    pixel, gap, small   from and to, mm of a pixel and from slice to slice; mm of a pixel of the small phantom
    means               tissue -> its intensity, where another than at the site that it is like
    more                other fields of Site
    """
    return replace(
        like,
        images={f"{name}/Case{{:02d}}.nii.gz": Image((1,), noise=noise)},
        labels=f"{name}/Case{{:02d}}_segmentation.nii.gz",
        frames={1: partial(pelvis, coil=like is BMC, growth=growth)},
        means=like.means | one(**(means or {})),
        grids={
            "full": Sampling(scans, ((384, 384, 16), (384, 384, 24)), _corners(pixel, gap)),
            "small": Sampling(10, ((64, 64, 12), (64, 64, 14)), _corners((small, small), (5.0, 5.0))),
        },
        **more,
    )


def _corners(pixel: Range, gap: Range) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    return (pixel[0], pixel[0], gap[0]), (pixel[1], pixel[1], gap[1])


# As many scans as there are in the release; how the made-up scanners differ is made up, too. The first two are those of
# PROSTATE; then: a shading and little contrast between the zones; a soft, noisy picture of large glands; fat that is
# dark and a coil that blinds what is near; bright bone and water, small glands.
SITES = (
    _hospital("RUNMC", RUNMC, 30, (0.6, 0.6), (3.6, 4.0), 2.0, 18),
    _hospital("BMC", BMC, 30, (0.4, 0.4), (3.0, 3.0), 1.6, 22),
    _hospital("I2CVB", RUNMC, 19, (0.6, 0.8), (1.3, 3.5), 1.9, 30, {"peripheral": 380, "central": 330}, bias=0.4),
    _hospital("UCL", RUNMC, 13, (0.4, 0.6), (3.0, 3.6), 1.8, 55, {"fat": 420, "muscle": 150}, 1.15, blur=1.6),
    _hospital("BIDMC", BMC, 12, (0.3, 0.4), (2.2, 3.0), 1.6, 15, {"fat": 60}, coil=((0, 28, 0), 9.0, 14.0)),
    _hospital("HK", RUNMC, 12, (0.6, 0.6), (3.6, 3.6), 2.0, 35, {"marrow": 520, "fat": 640, "central": 240}, 0.85),
)
