"""The zones of the prostate in T2 and ADC, from many scanners, as in task 5 of the Medical Segmentation Decathlon."""

from numpy.random import Generator

from preprocess.phantom.anatomy import TEXTURE
from preprocess.phantom.decathlon import Contents, with_tests
from preprocess.phantom.pelvis import pelvis
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site

CONTENTS = Contents("Task05_Prostate", "PROSTATE", ("background", "PZ", "TZ"))


def zones(rng: Generator) -> list[Part]:
    """A pelvis whose prostate is anything from young to much enlarged; in most peripheral zones (1) lies a tumour.

    A tumour is as dark as the transition zone (2): only its place tells them apart.
    """
    parts = pelvis(rng, coil=False, growth=rng.uniform(0.85, 1.2))
    gland = next(part.shape for part in parts if part.tissue == "peripheral")
    where = next(number for number, part in enumerate(parts) if part.tissue == "central")
    tumours = []
    for _ in range(rng.integers(0, 4)):
        x, z = rng.uniform(-0.75, 0.75), rng.uniform(-0.6, 0.6)
        y = 0.85 * (1 - x * x - 0.3 * z * z) ** 0.5
        place = tuple(radius * share for radius, share in zip(gland.radii, (x, y, z), strict=True))
        tumours.append(Part("tumour", Blob(place, tuple(rng.uniform(4, 9, 3))), 1, within=gland))
    return [*parts[:where], *tumours, *parts[where:]]


ZONES = with_tests(
    Site(
        images={"T2": Image((1, 0), noise=24), "ADC": Image((0, 1), noise=110)},
        stack=f"{CONTENTS.task}/imagesTr/prostate_{{:02d}}.nii.gz",
        labels=f"{CONTENTS.task}/labelsTr/prostate_{{:02d}}.nii.gz",
        numbers=(
            *(0, 1, 2, 4, 6, 7, 10, 13, 14, 16, 17, 18, 20, 21, 24, 25, 28, 29, 31, 32, 34, 35),
            *(37, 38, 39, 40, 41, 42, 43, 44, 46, 47),
        ),
        frames={1: zones},
        means={  # T2, and ADC in 1e-6 mm2/s
            "fat": (270, 250),
            "muscle": (90, 1150),
            "cortex": (50, 200),
            "marrow": (190, 400),
            "bulb": (380, 1500),
            "urine": (780, 2900),
            "vesicle": (430, 1700),
            "vein": (480, 1600),
            "capsule": (110, 1100),
            "peripheral": (480, 1650),
            "central": (320, 1300),
            "stromal": (240, 1100),
            "glandular": (440, 1550),
            "tumour": (290, 950),
            "wall": (160, 1200),
            "stool": (200, 700),
        },
        grids={
            "full": Sampling(32, ((320, 320, 20), (320, 320, 20)), ((0.6, 0.6, 4.0), (0.6, 0.6, 4.0))),
            "small": Sampling(18, ((64, 64, 10), (64, 64, 12)), ((2.0, 2.0, 6.0), (2.0, 2.0, 6.0))),
        },
        stored="RAS",
        spread=0.14,
        bias=0.25,
        protocol=0.3,
        blur=0.6,
        texture=TEXTURE,
    ),
    scans={"full": 16, "small": 4},
    numbers=(3, 5, 8, 9, 11, 12, 15, 19, 22, 23, 26, 27, 30, 33, 36, 45),
)
