"""One size a class, estimated without the target's ground truth: from knowledge, or from the source's labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.priors.measuring import Slices, measure_slices
from processes.errors import UserError
from utils import listing


@dataclass(frozen=True)
class Published:
    """Pixels of each foreground class in a slice that shows it, and the pixels of that slice."""

    sizes: tuple[float, ...]
    area: int
    source: str


# "anatomical knowledge" of the target's organs, coarse on purpose: too large by a factor of 0.8 to 1.8
PUBLISHED = {
    "prostate": Published((8000,), 385**2, "Bateson et al. 2022, prostate"),
    "ivd": Published((579,), 256**2, "Bateson et al. 2022, discs, transverse"),
    "ivd_sagittal": Published((900,), 256**2, "Bateson et al. 2022, discs, sagittal"),
    "whs": Published((4428, 4996, 4487, 3706), 256**2, "Bateson et al. 2022, heart: Myo, LA, LV, AA"),
}


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the sizes are estimated from, under the names of the flags: one of them, with `extent_mm` and a folder."""

    constant: Sequence[float] | None = None
    constant_mm2: Sequence[float] | None = None
    constant_mm3: Sequence[float] | None = None
    extent_mm: Sequence[float] | None = None
    published: str | None = None
    source_mean: Path | None = None
    source_folder: str | None = None


@dataclass(frozen=True)
class Estimate:
    """One size per slice and foreground class, (N, K-1) pixels, how it was come by and what it had to see."""

    pixels: np.ndarray
    words: str
    supervision: str = "none"


def estimate_sizes(knowledge: Knowledge, n_class: int, folder: str, slices: Slices) -> Estimate:
    """The sizes in these slices by what is known. Raises UserError for flags that do not fit together.

    folder: of the target's labels; the source's have the same name unless `source_folder` tells another
    """
    ones = np.ones((len(slices.names), 1))
    if knowledge.source_mean is not None:
        return _mean_of_source(knowledge.source_mean, knowledge.source_folder or folder, n_class, slices)
    if knowledge.published is not None:
        return _published(PUBLISHED[knowledge.published], n_class, slices)
    if knowledge.constant is not None:
        sizes = _one_a_class("--constant", knowledge.constant, n_class)
        return Estimate(ones * sizes, f"constant {in_words(sizes)} pixels")
    if slices.axes == 3:
        if knowledge.constant_mm2 is not None or knowledge.extent_mm is not None:
            raise UserError(f"{slices.root} is a set of volumes: give --constant_mm3 alone, not an area or an extent.")
        areas = _one_a_class("--constant_mm3", knowledge.constant_mm3, n_class)
        words = f"constant {in_words(areas)} mm3"
    elif knowledge.constant_mm2 is not None:
        areas = _one_a_class("--constant_mm2", knowledge.constant_mm2, n_class)
        words = f"constant {in_words(areas)} mm2"
    else:
        volumes = _one_a_class("--constant_mm3", knowledge.constant_mm3, n_class)
        extents, shape = ball_diameter_mm(volumes), "the diameter of a ball"
        if knowledge.extent_mm is not None:
            extents, shape = _one_a_class("--extent_mm", knowledge.extent_mm, n_class), "given"
        areas = volumes / extents
        words = f"constant {in_words(volumes)} mm3 over {in_words(extents)} mm ({shape})"
    return Estimate(areas / slices.pixel_mm()[:, None], words)


def _published(constants: Published, n_class: int, slices: Slices) -> Estimate:
    """The published constants: of slices of that size as they are, of others by their share of the field of view."""
    sizes = _one_a_class("--published", constants.sizes, n_class)
    same = slices.area == constants.area
    pixels = np.where(same[:, None], sizes, sizes * slices.area[:, None] / constants.area)
    words = f"published constant {in_words(sizes)} of {constants.area} pixels ({constants.source})"
    if not same.all():
        words += ", in slices of another size the same share of the slice, taken to be the same field of view"
    return Estimate(pixels, words)


def ball_diameter_mm(volume_mm3: np.ndarray) -> np.ndarray:
    """d = (6 V / π)^(1/3), what an organ of that volume spans through the slices when nothing else is known."""
    return np.cbrt(6 * volume_mm3 / np.pi)


def _one_a_class(flag: str, values: Sequence[float], n_class: int) -> np.ndarray:
    if len(values) != n_class - 1 or not all(0 < value < np.inf for value in values):
        raise UserError(
            f"{flag} expects one number above 0 for each class but the background, {n_class - 1} with --n_class "
            f"{n_class}; got {in_words(values)}."
        )
    return np.array(values, dtype=np.float64)


def in_words(numbers: Sequence[float] | np.ndarray) -> str:
    """Numbers (N,) of six digits at most, with blanks between them."""
    return " ".join(f"{number:.6g}" for number in numbers)


def _mean_of_source(root: Path, folder: str, n_class: int, slices: Slices) -> Estimate:
    """Mean size of each class over the source's training slices that show it.

    In mm2 where both sets have a manifest, otherwise as a share of the slice.
    """
    source = measure_slices(root, folder, n_class, ("train",))
    in_mm = source.spacing is not None and slices.spacing is not None
    unit = source.pixel_mm() if in_mm else 1 / source.area
    shown = source.counts > 0
    absent = [k for k in range(1, n_class) if not shown[:, k].any()]
    if absent:
        raise UserError(f"{root}: no training label shows class {listing(absent)}; its mean size is unknown.")
    means = (source.counts * unit[:, None]).sum(axis=0)[1:] / shown.sum(axis=0)[1:]
    back = slices.pixel_mm() if in_mm else 1 / slices.area
    measure = f"mm{slices.axes}" if in_mm else "of the slice"
    words = f"mean of the labelled slices of {root}: {in_words(means)} {measure}"
    return Estimate(means / back[:, None], words, "source labels")
