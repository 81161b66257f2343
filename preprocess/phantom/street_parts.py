"""What there is in a street, each thing painted over what stands behind it."""

from itertools import pairwise

import numpy as np

from preprocess.phantom.street_scene import FAR, NEAR, Pair, Scene

# m: width, height, length
VEHICLES = {"car": (1.8, 1.45, 4.3), "truck": (2.5, 3.4, 8), "bus": (2.6, 3.1, 11), "train": (2.6, 3.5, 26)}


def sky(scene: Scene) -> None:
    """Paler towards the horizon, with clouds."""
    (width, height), high = scene.size, scene.colour("sky")
    for top, bottom in pairwise(np.linspace(0, height, 49)):
        share = min(1.0, top / scene.vanishing[1])
        band = np.array([(0, top), (width, top), (width, bottom), (0, bottom)])
        scene.draw("sky", band, (1 - share) * high + share * scene.mist)
    for middle in scene.rng.uniform((-90, 25), (90, 90), (4, 2)):
        for x, y in scene.rng.normal(middle, (12, 1.5), (6, 2)):
            scene.disc("sky", (x, y, FAR), scene.rng.uniform((8, 1), (22, 4)), scene.colour("cloud"))


def roadway(scene: Scene, edges: Pair, rails: float | None) -> None:
    """Road with markings, perhaps a zebra crossing and rails, shadows of houses; a pavement to the edge on either side.

    rails: x of their middle
    """
    rng, half, white, grey = scene.rng, scene.half, scene.colour("white"), scene.colour("road")
    scene.ground("terrain", (-400, 400), (NEAR, FAR))
    scene.ground("road", (-half, half), (NEAR, FAR), grey)
    if rails is not None:
        scene.ground("rails", (rails - 1, rails + 1), (NEAR, FAR), 0.9 * grey)
        for x in (rails - 0.7, rails + 0.6):
            scene.ground("", (x, x + 0.1), (NEAR, FAR), scene.colour("rails"))
    for z in np.arange(rng.uniform(1, 6), 80, 6):
        scene.ground("", (-0.08, 0.08), (z, z + 3), white)
    zebra = rng.uniform(8, 18) if rng.uniform() < 0.3 else FAR - 3
    for x in np.arange(0.3 - half, half - 0.5):
        scene.ground("", (x, x + 0.5), (zebra, zebra + 3), white)
    for z in np.arange(0, 100, 8):
        scene.ground("", (half * rng.uniform(0.1, 0.8), half), (z, z + 8), (1 - scene.site.shade) * grey)
    for out, edge in zip((-1, 1), edges, strict=True):
        stone = scene.colour("sidewalk")
        scene.ground("", (out * (half - 0.35), out * (half - 0.25)), (NEAR, FAR), white)
        scene.ground("sidewalk", (out * half, edge), (NEAR, FAR), stone, 0.12)
        scene.side("sidewalk", out * half, (0, 0.12), (NEAR, FAR), 0.8 * stone)


def house(scene: Scene, x: float, zs: Pair, label: str) -> None:
    """A front with storeys of windows, doors or shop windows below, often a pitched roof."""
    rng, colour, glass, out = scene.rng, scene.colour(label), scene.colour("glass"), np.sign(x)
    height = 0.8 + 3.2 * rng.integers(*scene.site.storeys, endpoint=True)
    if rng.uniform() < 0.6:
        gable = [(x + 8 * out, height, zs[0]), (x + 4 * out, height + 3, zs[0]), (x, height, zs[0])]
        scene.paint(label, gable, 0.8 * colour)
        scene.paint(label, [*gable[1:], (x, height, zs[1]), (x + 4 * out, height + 3, zs[1])], scene.colour("roof"))
    scene.box(label, (x, x + 14 * out), (0, height), zs, colour)
    every, shop = rng.uniform((2.2, 0.4), (3.4, 0.8))
    for z in np.arange(max(zs[0], 0) + 0.8, min(zs[1], 90) - 1.4, every):
        scene.side("", x, (0.3, 2.5), (z, z + shop * every), glass)
        for floor in np.arange(4.2, height - 1, 3.2):
            scene.side("", x, (floor, floor + 1.7), (z, z + 0.42 * every), glass)


def garden(scene: Scene, x: float, zs: Pair, label: str) -> None:
    """Trees on grass behind a wall, a fence, a hedge or nothing; what shows through a fence counts as fence."""
    rng, out, colour = scene.rng, np.sign(x), scene.colour(label)
    height = 0.1 if label == "terrain" else rng.uniform(1.2, 2.6)
    scene.ground("terrain", (x, x + 20 * out), zs, y=0.1)
    for z in -np.sort(-rng.uniform(*zs, rng.integers(1, 5))):
        tree(scene, x + out * rng.uniform(3, 10), z)
    scene.box(label, (x, x + 0.4 * out), (0, height), zs, 0.6 * colour if label == "fence" else colour)
    for z in np.arange(max(zs[0], NEAR), min(zs[1], 60), 0.4) if label == "fence" else ():
        scene.side("", x, (0, height), (z, z + 0.15), colour)


def tree(scene: Scene, x: float, z: float) -> None:
    """A trunk under a crown that is darker below."""
    rng, height, leaf = scene.rng, scene.rng.uniform(5, 9), scene.colour("vegetation")
    scene.panel("vegetation", (x - 0.16, x + 0.16), (0, 0.6 * height), z, scene.colour("trunk"))
    for share in np.sort(rng.uniform(0.4, 1, 16)):
        place, light = (x + rng.normal(0, 0.12 * height), share * height, z), rng.normal(0.5 + 0.6 * share, 0.06)
        scene.disc("vegetation", place, rng.uniform(0.1, 0.18, 2) * height, light * leaf)


def post(scene: Scene, x: float, z: float, label: str) -> None:
    """A pole with a lamp over the road, a traffic light, or a sign."""
    top, arm, white = scene.rng.uniform(2.6, 3.2) + 3 * (label == "pole"), x - 1.6 * np.sign(x), scene.colour("white")
    scene.panel("pole", (x - 0.11, x + 0.11), (0, top), z)
    if label == "pole":
        scene.panel("pole", (x, arm), (top - 0.15, top), z)
        scene.panel("", (arm, 0.7 * arm + 0.3 * x), (top - 0.3, top - 0.1), z, white)
    elif label == "light":
        scene.panel("light", (x - 0.28, x + 0.28), (top - 0.4, top + 1), z)
        for y, name in zip((0, 0.43, 0.86), scene.rng.permutation(["go", "stop", "rim"]), strict=True):
            scene.disc("", (x, top - 0.13 + y, z), (0.17, 0.17), scene.colour(name))
    else:
        scene.disc("sign", (x, top, z), (0.45, 0.45), scene.colour("sign"))
        scene.disc("", (x, top, z), scene.rng.uniform(0.1, 0.35, 2), white)


def person(scene: Scene, x: float, z: float, label: str = "person", y: float = 0.12) -> None:
    """From the feet at height y up."""
    tall, step = scene.rng.uniform((0.92, 0), (1.05, 0.2))
    shirt, trousers = scene.colour("shirt"), scene.colour("trousers")
    for foot in (x - step, x + step):
        hips = [(x + 0.15, y + 0.9 * tall, z), (x - 0.15, y + 0.9 * tall, z)]
        scene.paint(label, [(foot - 0.1, y, z), (foot + 0.1, y, z), *hips], trousers)
    for arm in (-0.26, 0.26):
        scene.panel(label, (x + 0.7 * arm, x + 1.2 * arm), (y + 0.8 * tall, y + 1.42 * tall), z, 0.8 * shirt)
    scene.panel(label, (x - 0.2, x + 0.2), (y + 0.8 * tall, y + 1.48 * tall), z, shirt)
    scene.disc(label, (x, y + 1.62 * tall, z), (0.13, 0.17), scene.colour("skin"))


def cycle(scene: Scene, x: float, z: float, label: str, ridden: bool = False) -> None:
    """A bicycle or motorcycle, seen aslant."""
    turn, thick = scene.rng.uniform(0.5, 1), 0.35 if label == "motorcycle" else 0.15
    if ridden:
        person(scene, x, z, "rider", 0.35)
    for wheel in (x - 0.55 * turn, x + 0.55 * turn):
        scene.disc(label, (wheel, 0.36, z), (0.36 * turn, 0.36), scene.colour("tyre"))
        scene.disc("", (wheel, 0.36, z), (0.22 * turn, 0.22), scene.colour("rim"))
    frame = (-0.5, 0.3), (0.45, 0.3), (0.6, 0.9 + thick), (0.2, 0.65 + thick), (-0.4, 0.7 + thick)
    scene.paint(label, [(x + a * turn, b, z) for a, b in frame])


def vehicle(scene: Scene, x: float, z: float, label: str) -> None:
    """From behind, or left of the middle from in front."""
    colour, glass, tyre = scene.colour(label), scene.colour("glass"), scene.colour("tyre")
    width, height, length = scene.rng.uniform(0.92, 1.08) * np.array(VEHICLES[label])
    inset, waist, start, end = (0.12, 0.6, 0.15, 0.75) if label == "car" else (0, 1, 0, 1)
    left, right, start, end = x - width / 2, x + width / 2, z + start * length, z + end * length
    scene.ground("", (left - 0.15, right + 0.15), (z - 0.3, z + length), 0.5 * scene.colour("road"), 0.01)
    for wheel in (left + 0.05, right - 0.35):
        scene.panel(label, (wheel, wheel + 0.3), (0, 0.5), z + 0.3, tyre)
    seen = scene.box(label, (left, right), (0.28, waist * height), (z, z + length), colour)
    if label == "car":
        scene.box(label, (left + inset, right - inset), (waist * height, height), (start, end), colour)
    if label != "truck" or x < 0:
        panes = (0.62 * height, 0.9 * height)
        scene.panel("", (left + inset + 0.15, right - inset - 0.15), panes, start - 0.02, glass)
        if seen is not None and label != "truck":
            scene.side("", seen + inset * np.sign(x - seen), panes, (start + 0.3, end - 0.3), glass)
    for axle in (0.18 * length, 0.8 * length) if seen is not None else ():
        scene.disc(label, (seen, 0.36, z + axle), (0.36, 0.36), tyre, along=True)
    for lamp in (left + 0.1, right - 0.4):
        scene.panel("", (lamp, lamp + 0.3), (0.6, 0.82), z - 0.02, scene.colour("front" if x < 0 else "rear"))
    scene.panel("", (x - 0.26, x + 0.26), (0.4, 0.53), z - 0.02, scene.colour("white"))
