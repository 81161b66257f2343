"""From a list of painted parts to a volume as a scanner would give it: one renderer for every cohort.

Anatomy lives in millimetres, x to the patient's left, y to the back, z to the head, the organ near the origin.
Everything is drawn from numpy Generators in float64 and rounded at the end: the same voxels everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

Vector = tuple[float, float, float]
Axes = list[np.ndarray]
MARGIN = 1.3  # how far beyond its radii a part is looked for, as a factor, …
SLACK = 10.0  # … and in mm: the warp and the wavy boundary push it outwards


@dataclass(frozen=True)
class Blob:
    """An ellipsoid, or with a higher even `power` a drum whose flat ends are those of its third axis."""

    centre: Vector
    radii: Vector
    turn: Vector = (0.0, 0.0, 0.0)  # degrees about x, then y, then z
    power: int = 2

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in mm."""
        reach = np.asarray(self.radii) if not any(self.turn) else np.full(3, max(self.radii))
        return np.asarray(self.centre) - reach, np.asarray(self.centre) + reach

    def level(self, points: np.ndarray) -> np.ndarray:
        """(3,X,Y,Z) mm -> (X,Y,Z): roughly the depth below the surface in mm, negative outside."""
        offset = points - np.reshape(self.centre, (3, 1, 1, 1))
        if any(self.turn):
            offset = np.einsum("ab,bxyz->axyz", _rotation(self.turn), offset)
        scaled = (offset / np.reshape(self.radii, (3, 1, 1, 1))) ** 2
        half = self.power // 2
        radius = ((scaled[0] + scaled[1]) ** half + scaled[2] ** half) ** (1 / self.power)
        return (1 - radius) * np.prod(self.radii) ** (1 / 3)


@dataclass(frozen=True)
class Tube:
    """A vessel: everything within `radius` mm of a chain of points."""

    chain: tuple[Vector, ...]
    radius: float

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in mm."""
        return np.min(self.chain, axis=0) - self.radius, np.max(self.chain, axis=0) + self.radius

    def level(self, points: np.ndarray) -> np.ndarray:
        """(3,X,Y,Z) mm -> (X,Y,Z): depth below the surface in mm, negative outside."""
        nearest = np.full(points.shape[1:], np.inf)
        for start, end in zip(self.chain, self.chain[1:], strict=False):
            along = np.subtract(end, start)
            offset = points - np.reshape(start, (3, 1, 1, 1))
            share = np.clip(np.einsum("a,axyz->xyz", along, offset) / (along @ along), 0, 1)
            squared = ((offset - along.reshape(3, 1, 1, 1) * share) ** 2).sum(0)
            nearest = np.minimum(nearest, squared)
        return self.radius - np.sqrt(nearest)


@dataclass(frozen=True)
class Part:
    """One structure, painted over what was painted before it."""

    tissue: str
    shape: Blob | Tube
    label: int = 0
    wavy: float = 1.0  # mm, how far the boundary wanders from the analytic shape
    within: Blob | None = None  # painted only inside this one
    wavelength: float | None = None  # mm, of that wandering; None: half the part's width, 25 at least


Anatomy = Callable[[Generator], list[Part]]


@dataclass(frozen=True)
class Image:
    """One of the files that a scan consists of: how it sees the tissue channels, and how it is stored."""

    weights: tuple[float, ...]  # of the tissue channels; the magnitude of the sum is kept
    noise: float  # sd
    offset: float = 0.0  # added at the end
    dtype: str = "int16"
    floor: float = 0.0  # a weaker signal is stored as 0: perfusion maps show tissue only


@dataclass(frozen=True)
class Sampling:
    """How a site samples space. Shapes and spacings are drawn between two corners, the same for both if fixed."""

    scans: int
    shape: tuple[tuple[int, int, int], tuple[int, int, int]]
    spacing: tuple[Vector, Vector]  # mm


@dataclass(frozen=True)
class Site:
    """A scanner: what it calls its files, how it sees each tissue, what it adds."""

    images: dict[str, Image]  # file name, with places for the numbers of the scan and the frame
    labels: str | None  # None: those of a test, which are kept back
    grids: dict[str, Sampling]
    means: dict[str, tuple[float, ...]]  # tissue -> one intensity a channel
    frames: dict[int, Anatomy]  # number of a frame -> what is where in it; one frame unless it is a cine
    stack: str | None = None  # the one 4D file that holds the images instead, (X,Y,Z,C)
    stored: str = "LPS"  # direction in which each array axis runs
    first: int = 0  # number of the first scan
    numbers: tuple[int, ...] | None = None  # of the scans, where they do not go on from the first one by one
    visits: int = 1  # consecutive scans of one subject
    spread: float = 0.06  # patient-to-patient sd of a tissue's intensity, relative
    grain: float = 0.08  # texture sd, relative
    bias: float = 0.15  # sd of the log gain
    protocol: float = 0.0  # sd of the logs of an image's gain, gamma and noise: a cohort of many scanners
    blur: float = 0.5  # sd of the point spread in mm
    coil: tuple[Vector, float, float] | None = None  # place, gain at the place, mm over which it decays
    tilt: float = 3.0  # sd in degrees of the volume's obliqueness
    slip: tuple[int, int, int] | None = None  # (scan, label, what is written for it in that scan's last plane)
    texture: dict[str, float] = field(default_factory=dict)  # tissue -> factor on the grain
    note: tuple[str, str] | None = None  # file name and content of a text that lies next to each scan

    def number(self, scan: int) -> int:
        """What a scan, counted from 0, is called."""
        return self.numbers[scan] if self.numbers else self.first + scan


def render(site: Site, size: str, key: tuple[int, ...], scan: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Renders one scan: ({file name: (X,Y,Z[,C]) image or (X,Y,Z) int16 labels}, affine (4,4)).

    `key` seeds the site.
    """
    subject, visit = divmod(scan, site.visits)
    session = np.random.default_rng([*key, subject, 1 + visit])
    grid = site.grids[size]
    shape = session.integers(*grid.shape, endpoint=True)
    spacing_mm = np.round(session.uniform(*grid.spacing), 3)
    shift = session.uniform(-2.5, 2.5, 3)
    axes = [(np.arange(n) - (n - 1) / 2) * step - move for n, step, move in zip(shape, spacing_mm, shift, strict=True)]

    flips = [axis for axis, (ours, theirs) in enumerate(zip("LPS", site.stored, strict=True)) if ours != theirs]
    volumes = {}
    for frame, anatomy in site.frames.items():
        body = np.random.default_rng([*key, subject, 0])
        tissues, labels = _paint(site, anatomy, body, session, axes, spacing_mm)
        if site.slip and site.slip[0] == scan:
            _, right, wrong = site.slip
            plane = labels[..., np.flatnonzero((labels == right).any((0, 1)))[-1]]
            plane[plane == right] = wrong
        files = _acquire(site, session, tissues, axes, spacing_mm)
        if site.stack:
            files = {site.stack: np.stack(list(files.values()), -1)}
        if site.labels:
            files[site.labels] = labels
        for name, volume in files.items():
            volumes[name.format(site.number(scan), frame)] = np.flip(volume, flips)
    return volumes, _affine(site, session, shape, spacing_mm)


def smooth_field(rng: Generator, axes: Axes, wavelength_mm: float, modes: int = 8) -> np.ndarray:
    """(X,Y,Z) random waves, `wavelength_mm` and longer, mean 0, sd 1. Draws the same numbers on every grid."""
    waves = 2 * np.pi / wavelength_mm * rng.uniform(0.3, 1, (3, modes, 1))
    phases = rng.uniform(0, 2 * np.pi, (3, modes, 1))
    rows = [np.cos(wave * axis + phase) for wave, phase, axis in zip(waves, phases, axes, strict=True)]
    return np.einsum("mx,my,mz->xyz", *rows, optimize=True) * np.sqrt(8 / modes)


def _paint(
    site: Site, anatomy: Anatomy, body: Generator, session: Generator, axes: Axes, spacing_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tissue intensities (C,X,Y,Z) and labels (X,Y,Z)."""
    means = {name: np.asarray(mean) * _near(body, site.spread) for name, mean in site.means.items()}
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    for component in points:
        component += 2.0 * smooth_field(body, axes, 120.0)
    shape = points.shape[1:]
    canvas = np.zeros((len(next(iter(means.values()))), *shape))
    labels = np.zeros(shape, np.int16)
    grain = _grain(session, shape, spacing_mm)
    for part in anatomy(body):
        box = _inside(part.shape, axes)
        level = part.shape.level(points[:, *box])
        low, high = part.shape.box()
        wavelength = part.wavelength or max(25.0, min(high - low) / 2)
        level += part.wavy * smooth_field(body, [axis[cut] for axis, cut in zip(axes, box, strict=True)], wavelength)
        if part.within:
            level = np.minimum(level, part.within.level(points[:, *box]))
        share = np.clip(0.5 + level / np.median(spacing_mm), 0, 1)  # partial volume over one voxel
        rough = 1 + site.grain * site.texture.get(part.tissue, 1.0) * grain[box]
        for channel, mean in zip(canvas, means[part.tissue], strict=True):
            channel[box] += share * (mean * rough - channel[box])
        labels[box][level > 0] = part.label
    return canvas, labels


def _acquire(
    site: Site, rng: Generator, tissues: np.ndarray, axes: Axes, spacing_mm: np.ndarray
) -> dict[str, np.ndarray]:
    """Point spread, coil sensitivity, Rician noise: what the scanner makes of the tissues."""
    blurred = np.stack([gaussian_filter(channel, site.blur / spacing_mm) for channel in tissues])
    gain = np.exp(site.bias * smooth_field(rng, axes, 180.0))
    if site.coil:
        place, peak, decay = site.coil
        x, y, z = np.meshgrid(*(axis - at for axis, at in zip(axes, place, strict=True)), indexing="ij", sparse=True)
        gain = gain * (1 + peak * np.exp(-np.sqrt(x**2 + y**2 + z**2) / decay))
    images = {}
    for name, image in site.images.items():
        signal, noise = _scanner(site, rng, gain * np.tensordot(image.weights, blurred, 1), image.noise)
        real, imaginary = rng.normal(0, noise, (2, *signal.shape))
        seen = np.where(np.abs(signal) < image.floor, 0, np.hypot(signal + real, imaginary) + image.offset)
        decimals = 0 if np.issubdtype(image.dtype, np.integer) else 3
        images[name] = np.round(seen, decimals).astype(image.dtype)
    return images


def _scanner(site: Site, rng: Generator, signal: np.ndarray, noise: float) -> tuple[np.ndarray, float]:
    """The signal and the sd of its noise as this scan's settings have them. Draws nothing where all are alike."""
    if not site.protocol:
        return signal, noise
    gain, gamma, louder = np.exp(site.protocol * np.clip(rng.normal(size=3), -2, 2))
    peak = signal.max()
    return gain * peak * (signal / peak) ** gamma, louder * noise


def _grain(rng: Generator, shape: tuple[int, ...], spacing_mm: np.ndarray) -> np.ndarray:
    """(X,Y,Z) texture, sd 1: half of it as fine as 1.2 mm, half 3 mm."""
    fine, coarse = (gaussian_filter(rng.normal(size=shape), mm / spacing_mm) for mm in (1.2, 3.0))
    return (fine / fine.std() + coarse / coarse.std()) / np.sqrt(2)


def _inside(shape: Blob | Tube, axes: Axes) -> tuple[slice, ...]:
    """The voxels that the shape can reach."""
    low, high = shape.box()
    centre, half = (low + high) / 2, (high - low) / 2 * MARGIN + SLACK
    return tuple(
        slice(*np.searchsorted(axis, [middle - reach, middle + reach]))
        for axis, middle, reach in zip(axes, centre, half, strict=True)
    )


def _near(rng: Generator, spread: float) -> float:
    """A factor around 1, never further off than two `spread`."""
    return float(1 + spread * np.clip(rng.normal(), -2, 2))


def _rotation(turn: Vector) -> np.ndarray:
    """(3,3) turn by three angles in degrees, about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(turn)):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[one, one] = step[two, two] = np.cos(angle)
        step[two, one] = np.sin(angle)
        step[one, two] = -step[two, one]
        matrix = step @ matrix
    return matrix


def _affine(site: Site, rng: Generator, shape: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(4,4) voxel -> mm (RAS+), slightly oblique, the volume's middle near the scanner's."""
    signs = [1 if direction in "RAS" else -1 for direction in site.stored]
    affine = np.eye(4)
    affine[:3, :3] = _rotation(tuple(rng.normal(0, site.tilt, 3))) @ np.diag(signs * spacing_mm)
    affine[:3, 3] = rng.normal(0, 20, 3) - affine[:3, :3] @ ((shape - 1) / 2)
    return affine
