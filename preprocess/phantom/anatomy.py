"""What every body region is built with. Sizes and places (mm) are drawn for every patient."""

from numpy.random import Generator

from preprocess.phantom.render import Blob, Part, Vector


def vary(rng: Generator, share: float = 0.1) -> float:
    """A factor around 1 for a size, never further off than two `share`."""
    return 1 + share * min(max(rng.normal(), -2), 2)


def both(
    rng: Generator,
    tissue: str,
    centre: Vector,
    radii: Vector,
    turn: Vector = (0, 0, 0),
    wavy: float = 1.0,
    wavelength: float | None = None,
) -> list[Part]:
    """A structure and its mirror image, neither quite in its place."""
    parts = []
    for side in (1, -1):
        place = (side * centre[0] + rng.normal(), centre[1] + rng.normal(), centre[2] + rng.normal())
        shape = Blob(place, radii, (turn[0], side * turn[1], side * turn[2]))
        parts.append(Part(tissue, shape, wavy=wavy, wavelength=wavelength))
    return parts


def dots(rng: Generator, tissue: str, count: int, reach: Vector, size: float, at: Vector = (0, 0, 0)) -> list[Part]:
    """Small vessels scattered on an elliptic ring in the transverse plane."""
    parts = []
    for _ in range(count):
        x, y = rng.normal(size=2)
        scale = 1 / max((x * x + y * y) ** 0.5, 1e-3)
        place = (at[0] + reach[0] * x * scale, at[1] + reach[1] * y * scale, at[2] + reach[2] * rng.uniform(-1, 1))
        parts.append(Part(tissue, Blob(place, (size, size, 2 * size)), wavy=0))
    return parts


def one(**means: float) -> dict[str, tuple[float, ...]]:
    """Intensities for a site with one tissue channel."""
    return {tissue: (mean,) for tissue, mean in means.items()}


TEXTURE = {"air": 0, "urine": 0.3, "balloon": 0.5, "central": 1.6, "marrow": 1.3, "lung": 1.5, "muscle": 1.0}
