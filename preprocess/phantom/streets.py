"""Made-up street scenes in the official layouts of GTA5 and Cityscapes: a game's sunny town, cities under clouds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from preprocess.archives.streets import PALETTE, TRAIN_IDS, colourise
from preprocess.phantom.street_parts import VEHICLES, cycle, garden, house, person, post, roadway, sky, tree, vehicle
from preprocess.phantom.street_scene import IDS, Scene, Site, palette
from processes.pool import in_processes

Item = tuple[float, Callable[[], None]]  # distance of a thing, what paints it
Job = tuple[int, str, int]  # site, place, number of the picture there
TRAMS = 0.15  # share of the streets
KERB = {"pole": 0.2, "light": 0.12, "sign": 0.2, "vegetation": 0.18, "bicycle": 0.12, "": 0.18}
ROUGH = {"vegetation": 0.22, "terrain": 0.12, "sky": 0.01}  # texture, relative; 0.04 elsewhere


def street(site: Site, size: str, rng: Generator) -> Scene:
    """A street of its own, painted from far to near, over the bonnet of the car that the camera is in."""
    scene = Scene(site, size, rng)
    edges = scene.half * np.array((-1, 1)) + rng.uniform((-5, 2.2), (-2.2, 5))
    rails = -0.45 * scene.half if rng.uniform() < TRAMS else None
    sky(scene)
    roadway(scene, edges, rails)
    _paint([item for x in edges * rng.uniform(1, 1.6, 2) for item in _lots(scene, x)])
    _paint([item for x in edges for item in _pavement(scene, x)] + _traffic(scene, rails))
    turn = np.linspace(0, np.pi, 32)
    bonnet = np.stack([0.5 + 0.6 * np.cos(turn), 1 - site.bonnet * np.sin(turn)], -1) * scene.size
    scene.draw("bonnet", bonnet, scene.colour("bonnet"))
    width, height = scene.size
    scene.pens[0].rectangle((0, 0, width - 1, height - 1), outline=IDS["margin"], width=round(site.margin * width))
    return scene


def _paint(items: list[Item]) -> None:
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()


def _drawn(rng: Generator, shares: dict[str, float]) -> str:
    return list(shares)[rng.choice(len(shares), p=np.array(list(shares.values())) / sum(shares.values()))]


def _lots(scene: Scene, x: float) -> list[Item]:
    """What lines one side of the street."""
    items, z = [], -scene.rng.uniform(0, 5)
    while z < 160:
        length, label = scene.rng.uniform(7, 18), _drawn(scene.rng, scene.site.lots)
        build = house if label == "building" else garden
        items.append((z, partial(build, scene, x, (z, z + length), label)))
        z += length
    return items


def _pavement(scene: Scene, x: float) -> list[Item]:
    """What stands at one kerb, and who walks there."""
    rng, kerb = scene.rng, np.sign(x) * (scene.half + 0.5)
    items = []
    for z in np.arange(rng.uniform(5, 10), 70, rng.uniform(5, 9)):
        label = _drawn(rng, KERB)
        if label == "vegetation":
            items.append((z, partial(tree, scene, kerb, z)))
        elif label:
            items.append((z, partial(cycle if label == "bicycle" else post, scene, kerb, z, label)))
    for z in np.exp(rng.uniform(np.log(5), np.log(30), rng.poisson(5))):
        items.append((z, partial(person, scene, kerb + rng.uniform() * (x - kerb), z)))
    return items


def _traffic(scene: Scene, rails: float | None) -> list[Item]:
    """What drives in the two lanes, and parks next to them."""
    rng, half, items = scene.rng, scene.half, []
    for x, start in ((1.2 - half, 4), (-0.45 * half, 9), (0.45 * half, 9), (half - 1.2, 5)):
        z = rng.uniform(start, 3 * start)
        while z < 80:
            label = _drawn(rng, {"train": 0.4, "": 0.6} if x == rails else scene.site.traffic)
            if label in VEHICLES:
                items.append((z, partial(vehicle, scene, x, z, label)))
            elif label:
                items.append((z, partial(cycle, scene, x, z, label, ridden=abs(x) < 0.5 * half)))
            z += VEHICLES.get(label, (0, 0, 4))[2] + rng.uniform(2, 9)
    return items


def photograph(scene: Scene) -> Image.Image:
    """What the site's camera makes of the scene: texture, blur, colours and noise."""
    site, rng, (width, height) = scene.site, scene.rng, scene.size
    rough = np.full(256, 0.04)
    rough[[IDS[name] for name in ROUGH]] = list(ROUGH.values())
    grain = np.zeros((height, width))
    for rows in (14, 40, 110):
        coarse = Image.fromarray(rng.normal(size=(rows, rows * width // height)).astype(np.float32))
        grain += np.asarray(coarse.resize(scene.size, Image.Resampling.BICUBIC))
    tone = np.asarray(scene.picture.reduce(2)) / 255 * (1 + rough[np.asarray(scene.labels)] * grain)[..., None]
    tone = gaussian_filter(tone, (site.blur * width, site.blur * width, 0))
    grey = tone.mean(-1, keepdims=True)
    tone = (grey + site.saturation * (tone - grey)) * site.tint * rng.normal(1, 0.07)
    tone = np.clip(tone, 0, 1) ** site.gamma + rng.normal(0, site.noise, tone.shape)
    return Image.fromarray(np.rint(255 * np.clip(tone, 0, 1)).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------ the sites

GAME = Site(
    files=("GTA5/images/{number:05d}.png", "GTA5/labels/{number:05d}.png"),
    shape={"small": (256, 144), "full": (1914, 1052)},
    pictures={"": 60},
    focal=0.75,
    eye=1.9,
    road=(5.5, 8.5),
    storeys=(2, 8),
    lots={"building": 0.5, "wall": 0.12, "fence": 0.1, "vegetation": 0.1, "terrain": 0.18},
    traffic={"car": 0.36, "truck": 0.08, "bus": 0.06, "motorcycle": 0.08, "bicycle": 0.06, "": 0.36},
    bonnet=0.04,
    shade=0.35,
    saturation=1.15,
)
CITIES = Site(
    files=(
        "leftImg8bit/{place}_{number:06d}_000019_leftImg8bit.png",
        "gtFine/{place}_{number:06d}_000019_gtFine_labelIds.png",
    ),
    shape={"small": (256, 128), "full": (2048, 1024)},
    pictures={"train/aachen": 14, "train/bremen": 13, "train/ulm": 13, "val/frankfurt": 6, "val/lindau": 6},
    focal=1.0,
    eye=1.4,
    road=(4.5, 7),
    storeys=(3, 5),
    lots={"building": 0.56, "wall": 0.08, "fence": 0.08, "vegetation": 0.14, "terrain": 0.14},
    traffic={"car": 0.44, "truck": 0.04, "bus": 0.04, "motorcycle": 0.04, "bicycle": 0.1, "": 0.34},
    bonnet=0.1,
    colours=palette("sky ced6de; horizon e8eaea; cloud dce0e4; bonnet 222426"),
    haze=400,
    tint=(0.88, 0.98, 0.92),
    saturation=0.5,
    gamma=1.4,
    noise=0.02,
    blur=0.0012,
    margin=0.004,
)
SITES = (GAME, CITIES)


def write_picture(job: Job, folder: Path, size: str, seed: int) -> None:
    """Writes one picture, and its labels where the archive has them."""
    which, place, number = job
    image, target = _files(job)
    scene = street(SITES[which], size, np.random.default_rng([seed, *image.encode()]))
    labels, (width, height) = scene.labels, scene.size
    if not place:  # GTA5 has its labels in colours for the eye, …
        labels.putpalette(colourise(TRAIN_IDS, PALETTE).ravel().tolist())
        if number % 25 == 7:  # … and a few that differ in size from their image
            labels = labels.resize((width // 2, height // 2), Image.Resampling.NEAREST)
    photograph(scene).save(folder / image)
    labels.save(folder / target)


def _files(job: Job) -> list[str]:
    """Image and labels below the folder of the cohort."""
    which, place, number = job
    return [name.format(place=f"{place}/{Path(place).name}", number=number) for name in SITES[which].files]


def make_streets(folder: Path, size: str, seed: int, jobs: int) -> int:
    """Writes GTA5, leftImg8bit and gtFine below `folder` and returns the number of pictures. `size`: small or full."""
    work: list[Job] = []
    for which, site in enumerate(SITES):
        for place, pictures in site.pictures.items():
            last = pictures if size == "small" else pictures // 2  # a large picture takes seconds
            work += [(which, place, number) for number in range(1, last + 1)]
    for path in {(folder / name).parent for job in work for name in _files(job)}:
        path.mkdir(parents=True)
    write = partial(write_picture, folder=folder, size=size, seed=seed)
    for _ in tqdm(in_processes(write, work, jobs), "phantom streets", len(work), unit="picture", disable=None):
        pass
    return len(work)
