"""HD95, ASSD and NSD of two masks, against the libraries that compute them."""

import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from metrics import SurfaceDistances, assd, hausdorff_95, hausdorff_95_pooled, nsd, surface_distances
from tests.benchmarks.table import Row, compare

TOLERANCE = 2.0  # mm, of the NSD
RADIUS = 30.0  # mm, of an organ
VOLUMES = {"384x384x24": ((24, 384, 384), (3.6, 0.625, 0.625)), "256x256x160": ((160, 256, 256), (1.0, 1.0, 1.0))}
QUICK = {"80x80x20": ((20, 80, 80), (3.6, 2.5, 2.5))}
MODULES = {"medpy": "medpy.metric.binary", "monai": "monai.metrics", "surface_distance": "surface_distance"}

Mask = NDArray[np.bool_]
Grid = tuple[tuple[int, ...], tuple[float, ...]]  # shape and spacing


def distance(grid: Grid, centre: tuple[float, ...]) -> NDArray[np.float64]:
    """From every voxel to a point, in mm; `centre` in parts of the volume."""
    axes = np.ogrid[tuple(slice(n) for n in grid[0])]
    parts = zip(axes, centre, *grid, strict=True)
    return np.sqrt(sum(((axis - middle * n) * step) ** 2 for axis, middle, n, step in parts))


def organ(grid: Grid, seed: int, centre: tuple[float, ...] = (0.5, 0.5, 0.5)) -> Mask:
    """A ball with dents and bumps of some 2 mm."""
    noise = np.random.default_rng(seed).standard_normal(grid[0], np.float32)
    bumps = gaussian_filter(noise, [4 / step for step in grid[1]])
    return distance(grid, centre) + 2 * bumps / bumps.std() < RADIUS


def corner(grid: Grid) -> tuple[float, ...]:
    """The middle of an organ in the first corner of the volume."""
    return tuple(min(1.1 * RADIUS / (n * step), 0.5) for n, step in zip(*grid, strict=True))


def opposite(grid: Grid) -> tuple[Mask, Mask]:
    near = corner(grid)
    return organ(grid, 1, near), organ(grid, 0, tuple(1 - part for part in near))


def strays(grid: Grid, share: float) -> Mask:
    """Specks of two or three voxels all over the volume."""
    noise = gaussian_filter(np.random.default_rng(2).standard_normal(grid[0], np.float32), 1.0)
    return noise > np.quantile(noise[:: grid[0][0] // 8], 1 - share)


def untrained(grid: Grid) -> Mask:
    """Half of the volume, in patches."""
    return gaussian_filter(np.random.default_rng(3).standard_normal(grid[0], np.float32), 2.0) > 0


PAIRS: dict[str, Callable[[Grid], tuple[Mask, Mask]]] = {
    "close": lambda grid: (organ(grid, 1, (0.5, 0.51, 0.5)), organ(grid, 0)),
    "one stray far off": lambda grid: (organ(grid, 1) | (distance(grid, (0.03,) * 3) < 6), organ(grid, 0)),
    "opposite corners": opposite,
    "strays all over": lambda grid: (organ(grid, 1) | strays(grid, 0.003), organ(grid, 0)),
    "flooded": lambda grid: (np.ones(grid[0], bool), organ(grid, 0)),
    "untrained": lambda grid: (untrained(grid), organ(grid, 0)),
}


def is_installed(module: str) -> bool:
    """Imports it, so that no timing does."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


class Scores:
    """What each way of scoring found, for the comparison of the numbers."""

    def __init__(self, prediction: Mask, truth: Mask, spacing: tuple[float, ...]) -> None:
        self.masks, self.spacing = (prediction, truth), spacing
        self.distances: SurfaceDistances | None = None
        self.found: dict[str, tuple[float, float]] = {}  # HD95 and ASSD, mm

    def ours(self) -> None:
        self.distances = surface_distances(*self.masks, self.spacing)
        hausdorff_95(self.distances), assd(self.distances), nsd(self.distances, TOLERANCE)

    def medpy(self) -> None:
        from medpy.metric import binary

        self.found["medpy"] = (binary.hd95(*self.masks, self.spacing), binary.assd(*self.masks, self.spacing))

    def monai(self) -> None:
        from monai import metrics

        pair = [torch.from_numpy(mask)[None, None].float() for mask in self.masks]
        options = {"include_background": True, "spacing": list(self.spacing)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.found["monai"] = (
                metrics.compute_hausdorff_distance(*pair, percentile=95, **options).item(),
                metrics.compute_average_surface_distance(*pair, symmetric=True, **options).item(),
            )
            metrics.compute_surface_dice(*pair, [TOLERANCE], **options)

    def surface_distance(self) -> None:
        import surface_distance

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found = surface_distance.compute_surface_distances(*self.masks[::-1], self.spacing)
        surface_distance.compute_robust_hausdorff(found, 95)
        surface_distance.compute_average_surface_distance(found)
        surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE)

    def note(self, name: str) -> str:
        """How far ours are from a package that shares the definition, each by its own convention of HD95."""
        if name not in self.found:
            return "another definition"
        convention = hausdorff_95_pooled if name == "medpy" else hausdorff_95
        own = convention(self.distances), assd(self.distances)
        return f"differs by {np.abs(np.subtract(own, self.found[name])).max():.0e} mm"


def measure(options: Namespace) -> Iterator[Row]:
    """HD95 + ASSD + NSD of ours and of the packages; MedPy has no NSD and is timed without."""
    installed = {package: is_installed(module) for package, module in MODULES.items()}
    for volume, grid in (QUICK if options.quick else VOLUMES).items():
        for name, make in PAIRS.items():
            scores = Scores(*make(grid), grid[1])
            references = {package: getattr(scores, package) if there else None for package, there in installed.items()}
            yield from compare("surfaces", f"{volume} {name}", scores.ours, references, options.rounds, scores.note)
