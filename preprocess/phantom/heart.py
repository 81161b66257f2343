"""A chest around the heart, in MR and in CT."""

from numpy.random import Generator

from preprocess.phantom.anatomy import TEXTURE, both, dots, one, vary
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site, Tube, Vector


def heart(rng: Generator) -> list[Part]:
    """A chest around the heart, seen from below: chambers, great vessels, lungs, liver, spine.

    The long axis of the left ventricle points to the left, forward and down. Labels as in MM-WHS.
    """
    axis = (45 + rng.normal(0, 5), 38 + rng.normal(0, 5), 0)
    size, wall = vary(rng, 0.06), 9 * vary(rng, 0.12)
    lv = (22 + rng.normal(0, 2), -8 + rng.normal(0, 2), -16 + rng.normal(0, 2))
    cavity = tuple(r * size * vary(rng, 0.05) for r in (21, 21, 38))
    top = 43 + rng.normal(0, 1.5)
    arch = (-12, -2, top), (-4, 12, top + 12), (14, 36, top + 10), (24, 58, top - 8), (24, 62, -120)
    root = (4, 6, 2), (-6, -6, 24), (-12, -6, 40), arch[0]
    ring = vary(rng, 0.08)

    parts = [
        Part("fat", Blob((0, 0, 0), (170, 115, 400))),
        Part("muscle", Blob((0, 2, 0), (155, 96, 400))),
        *both(rng, "lung", (76, 12, 10), (52, 78, 130), wavy=2.0),
        Part("fat", Blob((4, -6, -4), (60 * size, 54 * size, 70)), wavy=3.0),  # around the heart
        Part("liver", Blob((-44, 0, -84), (80, 74, 46)), wavy=2.0),
        Part("stomach", Blob((66, 18, -86), (34, 42, 36)), wavy=2.0),
        Part("cortex", Blob((0, -82, 0), (17, 7, 90))),
        Part("marrow", Blob((0, -82, 0), (14, 4.5, 88))),
        Part("cortex", Tube(((0, 80, -150), (0, 80, 150)), 20)),
        Part("marrow", Tube(((0, 80, -150), (0, 80, 150)), 17)),
        *dots(rng, "vessel", 40, (68, 30, 60), 3.0),
        Part("vessel", Tube(((-34, 4, 0), (-31, 4, 140)), 9 * ring)),  # venae cavae
        Part("vessel", Tube(((-30, 16, -20), (-26, 26, -140)), 11 * ring)),
        Part("left", Tube(arch, 11 * ring)),  # arch and descending aorta: as bright as what is labelled
        Part("right", Blob((-43, 4, -6), tuple(vary(rng) * r for r in (22, 25, 30)), turn=(0, 15, 0)), 550),
        Part("right", Blob((-4, -34, -22), tuple(vary(rng) * r for r in (42, 24, 32)), turn=(0, 25, 15)), 600),
        Part("right", Tube(((4, -40, 0), (12, -24, 26), (20, -2, 38)), 13 * ring), 850),
        Part("right", Tube(((20, -2, 38), (-36, 22, 36)), 8 * ring), 850),
        *[Part("left", Tube(((0, 34, 12), (side * 62, 48, z)), 5)) for side in (-1, 1) for z in (0, 22)],
        Part("left", Blob((0, 34, 10), tuple(vary(rng) * r for r in (33, 19, 23))), 420, wavy=1.5),
        Part("myocardium", Blob(lv, tuple(r + wall for r in cavity), axis), 205),
        Part("left", Blob(_along(lv, (-0.6, 0.55, 0.55), 4), cavity, axis), 500),
    ]
    for side in (-1, 1):  # papillary muscles belong to the blood pool
        place = (lv[0] + 5 * side + 5, lv[1] - 6, lv[2] - 8 * side - 6)
        parts.append(Part("myocardium", Blob(place, (4, 4, 9), axis), 500))
    return [*parts, Part("left", Tube(root, 17 * ring), 820)]


def _along(start: Vector, direction: Vector, length_mm: float) -> Vector:
    return tuple(s + length_mm * d for s, d in zip(start, direction, strict=True))


HEART = (
    Site(
        images={"mr_train/mr_train_{}_image.nii.gz": Image((1,), noise=25)},
        labels="mr_train/mr_train_{}_label.nii.gz",
        first=1001,
        frames={1: heart},
        slip=(1, 420, 421),
        stored="LAS",
        means=one(
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
            "full": Sampling(20, ((256, 256, 110), (256, 256, 128)), ((0.7, 0.7, 1.2), (0.7, 0.7, 1.2))),
            "small": Sampling(10, ((64, 64, 24), (64, 64, 26)), ((2.8, 2.8, 6.0), (2.8, 2.8, 6.0))),
        },
        blur=0.8,
        texture=TEXTURE,
    ),
    Site(
        images={"ct_train/ct_train_{}_image.nii.gz": Image((1,), noise=25, offset=-1000)},
        labels="ct_train/ct_train_{}_label.nii.gz",
        first=1001,
        frames={1: heart},
        stored="LAS",
        means=one(
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
            "full": Sampling(20, ((256, 256, 110), (256, 256, 128)), ((0.7, 0.7, 1.2), (0.7, 0.7, 1.2))),
            "small": Sampling(10, ((64, 64, 24), (64, 64, 26)), ((2.8, 2.8, 6.0), (2.8, 2.8, 6.0))),
        },
        spread=0.015,
        grain=0.015,
        bias=0,
        blur=0.6,
        tilt=0,
        texture=TEXTURE,
    ),
)
