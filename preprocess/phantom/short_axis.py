"""Cine MR across the long axis of the heart, at end-diastole and end-systole, in the five groups of ACDC."""

from dataclasses import dataclass
from functools import partial

from numpy.random import Generator

from preprocess.phantom.anatomy import TEXTURE, both, dots, one, vary
from preprocess.phantom.render import Blob, Image, Part, Sampling, Site

APEX = -46.0  # mm, stays where it is while the base comes down to it


@dataclass(frozen=True)
class Group:
    """What a disease does to the ventricles."""

    cavity: float  # mm, inner radius of the left ventricle at end-diastole
    wall: float  # mm
    contraction: float  # that radius at end-systole, relative
    right: float = 1.0  # size of the right ventricle, relative
    scar: float = 0.0  # share of the wall's thickening that one side of it lacks


def short_axis(rng: Generator, group: Group, systole: bool) -> list[Part]:
    """Ventricles below the base: right (1), myocardium of the left (2), left with its papillary muscles (3).

    The draws are the same for both moments: one patient. The left ventricle keeps its myocardium's volume.
    """
    cavity, wall = group.cavity * vary(rng, 0.08), group.wall * vary(rng, 0.1)
    squeeze, descent = group.contraction * vary(rng, 0.06), 11 * vary(rng, 0.3)
    right, side = group.right * vary(rng, 0.08), rng.choice((-1, 1), 2)
    base = 36 + rng.normal(0, 3)
    shift = 0.0
    if systole:
        length = base - APEX
        base -= descent * min(1.0, 2.5 * (1 - squeeze))
        area = ((cavity + wall) ** 2 - cavity**2) * length / (base - APEX)
        cavity, before = squeeze * cavity, wall
        wall = (area + cavity**2) ** 0.5 - cavity
        shift = group.scar * (wall - before)
        right *= 0.45 + 0.55 * squeeze
    length = base - APEX
    whole = Blob((14, 0, base), (cavity + wall, cavity + wall, length), turn=(rng.normal(0, 4), rng.normal(0, 4), 0))
    blood = Blob((14 + shift * side[0], shift * side[1], base), (cavity, cavity, length - wall), whole.turn)
    ventricle = Blob((-2 - 17 * right, -5, base), (35 * right, 42 * right, 0.88 * length), turn=(0, 0, 12))

    parts = [
        Part("fat", Blob((0, 0, 0), (165, 120, 400))),
        Part("muscle", Blob((0, 0, 0), (150, 106, 400))),
        Part("lung", Blob((84, -14, 0), (54, 84, 150)), wavy=3.0),
        Part("lung", Blob((-92, -22, 10), (46, 66, 120)), wavy=3.0),
        *dots(rng, "blood", 30, (70, 40, 60), 2.0, at=(0, -10, 0)),  # vessels of the lungs
        Part("mediastinum", Blob((-6, 6, -6), (66, 60, 80)), wavy=3.0),
        Part("liver", Blob((-48, 82, -24), (86, 44, 90)), wavy=3.0),
        *dots(rng, "blood", 10, (40, 20, 60), 3.0, at=(-50, 82, -20)),
        Part("stomach", Blob((60, 86, -14), (40, 34, 80)), wavy=3.0),
        Part("muscle", Blob((50, 62, 0), (12, 12, 400))),  # wall of the aorta
        Part("blood", Blob((50, 62, 0), (10, 10, 400)), wavy=0.5),
        Part("marrow", Blob((-26, -92, 0), (18, 7, 200))),  # sternum
        *both(rng, "marrow", (64, -84, 0), (26, 5, 60), turn=(0, 0, 24)),  # ribs
        Part("muscle", Blob(ventricle.centre, tuple(r + 3 for r in ventricle.radii), ventricle.turn)),
        Part("blood", ventricle, 1, wavy=1.5),
        *_trabeculae(rng, ventricle),
        Part("muscle", whole, 2, wavy=0.8),
        Part("blood", blood, 3, wavy=0.8),
    ]
    for angle in (-1, 1):  # papillary muscles belong to the cavity
        place = (blood.centre[0] + 0.5 * cavity, blood.centre[1] + 0.45 * angle * cavity, base - 0.5 * length)
        parts.append(Part("muscle", Blob(place, (0.16 * cavity + 1, 0.16 * cavity + 1, 17)), 3, within=blood))
    return [*parts, *_atria(ventricle, whole, cavity, base)]


def _trabeculae(rng: Generator, ventricle: Blob) -> list[Part]:
    """Strands of muscle in the right ventricle's blood, towards its tip."""
    parts = []
    for _ in range(10):
        shares = (*rng.uniform(-0.75, 0.75, 2), -rng.uniform(0.2, 0.9))
        place = tuple(c + r * s for c, r, s in zip(ventricle.centre, ventricle.radii, shares, strict=True))
        parts.append(Part("muscle", Blob(place, (1.8, 1.8, 9)), 1, within=ventricle))
    return parts


def _atria(ventricle: Blob, whole: Blob, cavity: float, base: float) -> list[Part]:
    """What covers the upper halves of the ellipsoids: fat, in it the atria and the aorta's root, without a label."""
    parts = []
    for blob in (ventricle, whole):
        reach = blob.radii[2] + 8
        place = (blob.centre[0], blob.centre[1], base + reach)
        drum = Blob(place, (blob.radii[0] + 14, blob.radii[1] + 14, reach), power=30)
        parts.append(Part("mediastinum", drum, wavy=0))
    x, y, _ = whole.centre
    parts.append(Part("blood", Blob((ventricle.centre[0] - 4, 6, base + 34), (26, 28, 30), power=4)))
    parts.append(Part("blood", Blob((x + 6, y + 10, base + 34), (cavity, 0.8 * cavity, 31), power=4)))
    return [
        *parts,
        Part("muscle", Blob((x - 14, y - 6, base + 34), (15, 15, 33), power=8)),
        Part("blood", Blob((x - 14, y - 6, base + 34), (13, 13, 33), power=8)),
    ]


def _site(first: int, name: str, frame: int, group: Group) -> Site:
    """The patients of one group, who all are at end-systole in the same frame."""
    patient = "training/patient{0:03d}/"
    scan = patient + "patient{0:03d}_frame{1:02d}"
    return Site(
        images={f"{scan}.nii.gz": Image((1,), noise=24)},
        labels=f"{scan}_gt.nii.gz",
        note=(patient + "Info.cfg", f"ED: 1\nES: {frame}\nGroup: {name}\nNbFrame: 30\n"),
        first=first,
        frames={
            1: partial(short_axis, group=group, systole=False),
            frame: partial(short_axis, group=group, systole=True),
        },
        means=one(fat=430, muscle=150, lung=50, liver=230, stomach=330, marrow=300, blood=600, mediastinum=260),
        grids={
            "full": Sampling(20, ((192, 216, 8), (224, 256, 10)), ((1.4, 1.4, 10.0), (1.4, 1.4, 10.0))),
            "small": Sampling(4, ((56, 64, 8), (64, 64, 10)), ((2.6, 2.6, 10.0), (2.6, 2.6, 10.0))),
        },
        spread=0.14,
        bias=0.25,
        protocol=0.3,
        blur=1.0,
        tilt=0,
        texture=TEXTURE,
    )


CINE = (
    _site(1, "DCM", 12, Group(cavity=33, wall=8, contraction=0.87)),
    _site(21, "HCM", 10, Group(cavity=22, wall=15, contraction=0.56)),
    _site(41, "MINF", 9, Group(cavity=27, wall=8.5, contraction=0.78, scar=0.8)),
    _site(61, "NOR", 11, Group(cavity=25, wall=8.5, contraction=0.66)),
    _site(81, "RV", 13, Group(cavity=23, wall=8.5, contraction=0.68, right=1.15)),
)
