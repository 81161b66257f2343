"""Brains with a glioma, without their skulls, as in task 1 of the Medical Segmentation Decathlon (BraTS)."""

import math

from numpy.random import Generator

from preprocess.phantom.anatomy import dots, vary
from preprocess.phantom.brain import brain_tissue, cluster, fluid, half, horns, in_ball
from preprocess.phantom.decathlon import Contents, with_tests
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site, Tube, Vector

CONTENTS = Contents("Task01_BrainTumour", "BRATS", ("background", "edema", "non-enhancing tumor", "enhancing tumour"))


def glioma(rng: Generator) -> list[Part]:
    """A brain with a tumour: oedema (1) around what takes up no contrast agent (2) and what does (3).

    Old spots in the white matter are as bright in FLAIR as the oedema, vessels as bright after contrast as the tumour.
    """
    size, load = vary(rng, 0.03), rng.uniform(0, 1)
    girth = (4.5 + 2.5 * load) * vary(rng, 0.15)
    side = int(rng.choice((-1, 1)))
    middle, reach = _point(rng, half(side, size, 16)), rng.uniform(14, 26)
    return [
        *[part for part in brain_tissue(rng, size) if part.tissue in ("grey", "white", "csf")],
        *_old_spots(rng, size, girth, load),
        *dots(rng, "vessel", 12, (46, 60, 34), 2.2),
        Part("vessel", Tube(((0, 76 * size, -10), (0, 82 * size, 30), (0, 50 * size, 66)), 3.5)),
        *_lesion(rng, half(side, size, 2), middle, reach),
        *fluid(rng, size, girth),
    ]


def _point(rng: Generator, blob: Blob) -> Vector:
    """A place anywhere in an upright ellipsoid."""
    return tuple(c + r * s for c, r, s in zip(blob.centre, blob.radii, in_ball(rng), strict=True))


def _old_spots(rng: Generator, size: float, girth: float, load: float) -> list[Part]:
    """What age leaves in the white matter: caps of the ventricles and spots, no label."""
    parts = []
    for side in (-1, 1):
        inner = half(side, size, 10)
        for tip in (horns(side, size)[0], horns(side, size)[-2]):
            cap = tuple((girth + 3 + 4 * load) * rng.uniform(0.7, 1.2, 3))
            parts.append(Part("spot", Blob(tip, cap), wavy=1.5, wavelength=9.0, within=inner))
        for _ in range(rng.poisson(2 + 8 * load)):
            radius = min(math.exp(rng.normal(1.1, 0.45)), 8.0)
            parts.append(Part("spot", Blob(_point(rng, inner), tuple(radius * rng.uniform(0.8, 1.6, 3))), within=inner))
    return parts


def _lesion(rng: Generator, inside: Blob, middle: Vector, reach: float) -> list[Part]:
    """One tumour about `reach` mm in radius without its oedema: dead within a rim, or solid with a few bright spots."""
    swollen, core = cluster(rng, middle, reach * rng.uniform(1.2, 1.9)), cluster(rng, middle, reach)
    if rng.uniform() < 0.35:
        near = Blob(middle, (0.4 * reach,) * 3)
        spots = [Blob(_point(rng, near), tuple(reach * rng.uniform(0.3, 0.5, 3))) for _ in range(2)]
        layers = [("faint", 1, 3.0, swollen), ("solid", 2, 2.0, core), ("blush", 3, 1.0, spots)]
    else:
        rim = max(4.5, 0.3 * reach)
        dead = [Blob(blob.centre, tuple(max(r - rim, 2.0) for r in blob.radii)) for blob in core]
        layers = [
            ("oedema", 1, 3.0, swollen),
            ("solid", 2, 2.0, cluster(rng, middle, 0.8 * reach)),
            (str(rng.choice(("rim", "blush"))), 3, 2.0, core),
            ("necrosis", 2, 1.0, dead),
        ]
    return [
        Part(tissue, blob, label, wavy, inside, wavelength=20.0)
        for tissue, label, wavy, blobs in layers
        for blob in blobs
    ]


GLIOMA = with_tests(
    Site(
        images={
            "FLAIR": Image((1, 0, 0, 0), noise=18, floor=1e-6),
            "T1w": Image((0, 1, 0, 0), noise=18, floor=1e-6),
            "t1gd": Image((0, 0, 1, 0), noise=20, floor=1e-6),
            "T2w": Image((0, 0, 0, 1), noise=20, floor=1e-6),
        },
        stack=f"{CONTENTS.task}/imagesTr/BRATS_{{:03d}}.nii.gz",
        labels=f"{CONTENTS.task}/labelsTr/BRATS_{{:03d}}.nii.gz",
        first=1,
        frames={1: glioma},
        means={
            "csf": (90, 150, 160, 880),
            "grey": (390, 360, 380, 480),
            "white": (320, 490, 520, 360),
            "spot": (640, 390, 410, 640),
            "oedema": (620, 350, 370, 660),
            "faint": (520, 410, 430, 560),
            "solid": (560, 330, 360, 640),
            "necrosis": (350, 230, 260, 780),
            "rim": (520, 350, 840, 540),
            "blush": (520, 350, 620, 560),
            "vessel": (180, 300, 860, 200),
        },
        grids={
            "full": Sampling(24, ((240, 240, 155), (240, 240, 155)), ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))),
            "small": Sampling(24, ((40, 40, 32), (40, 40, 32)), ((4.8, 4.8, 4.8), (4.8, 4.8, 4.8))),
        },
        stored="RAS",
        spread=0.12,
        bias=0.08,
        protocol=0.25,
        blur=0,  # else the zeros around the brain would not be zeros
        tilt=0,
    ),
    scans={"full": 16, "small": 16},
    first=485,
)
