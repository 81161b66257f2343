"""What another acquisition makes of an image: named shifts at severities 1 (mild) to 5 (bad).

    shifted = acquire(volume, (1.0, 1.0, 3.0), "bias_field", severity=3, rng=np.random.default_rng(0))

Each works on grey levels 0..1, where 0 and 1 are the percentiles RANGE of the volume, and the result goes back to the
volume's own levels. Where a shift has a side (brighter or darker, which axis, where a field is strong), `rng` draws it:
patients differ, and the same seed gives the same bytes. Nothing moves the anatomy: labels stay right. A rigid motion
during the scan is drawn around the place where the patient lay for most of it.

Physics: Rician noise of magnitude images (Gudbjartsson and Patz 1995); ghosts are a modulation of the lines of k-space;
motion is k-space put together from views of several positions (Shaw et al. 2019).
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.ndimage import affine_transform, gaussian_filter, zoom

from preprocess.phantom.render import smooth_field
from processes.errors import UserError
from utils import nearest

SEVERITIES = (1, 2, 3, 4, 5)
RANGE = (0.1, 99.9)  # percentiles of a volume's grey levels that are 0 and 1 here
Acquisition = Callable[[np.ndarray, Sequence[float], float, Generator], np.ndarray]

ACQUISITIONS: dict[str, tuple[Acquisition, tuple[float, ...]]] = {}  # name -> (function, its strength at each severity)
OF_SCANNERS = ("inverted_contrast", "ghosting", "motion")  # made of tissue, air and k-space: no camera has those


@dataclass(frozen=True)
class Shift:
    """What is done to every volume."""

    acquisition: str
    severity: int
    seed: int

    def generator(self, name: str) -> Generator:
        """What draws the side of the shift for the volume of this name: alike at every severity, and for all channels.

        So it depends on no other volume, and from one severity to the next the strength alone changes.
        """
        words = [zlib.crc32(text.encode("utf-8", "surrogateescape")) for text in (self.acquisition, name)]
        return np.random.default_rng([self.seed, *words])

    def apply(self, channels: Sequence[np.ndarray], spacing_mm: Sequence[float], name: str) -> list[np.ndarray]:
        """The channels (X, Y, Z) of the volume of this name, each as `acquire` shows it, all with the same draw."""
        return [acquire(each, spacing_mm, self.acquisition, self.severity, self.generator(name)) for each in channels]


def acquisition(*strengths: float) -> Callable[[Acquisition], Acquisition]:
    """Enters a function (levels (X, Y, Z) in 0..1, spacing in mm, strength, rng) -> levels under its name."""

    def enter(shift: Acquisition) -> Acquisition:
        ACQUISITIONS[shift.__name__] = shift, strengths
        return shift

    return enter


def acquire(volume: np.ndarray, spacing_mm: Sequence[float], name: str, severity: int, rng: Generator) -> np.ndarray:
    """(X, Y, Z) grey levels -> (X, Y, Z) of the same type, as the named acquisition shows them.

    spacing_mm: along the three axes; of a picture or a single slice, (1, w, h) with X = 1
    Raises UserError for another name or severity. A flat volume comes back as it is.
    """
    if name not in ACQUISITIONS:
        raise UserError(f"There is no acquisition '{name}'.{nearest(name, ACQUISITIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"A severity is 1 (mild) to 5 (bad); got {severity}.")
    low, high = (float(level) for level in np.percentile(volume, RANGE))
    if not high > low:
        return volume.copy()
    shift, strengths = ACQUISITIONS[name]
    levels = shift((volume.astype(np.float64) - low) / (high - low), spacing_mm, strengths[severity - 1], rng)
    back = levels * (high - low) + low
    if volume.dtype.kind in "iu":
        limits = np.iinfo(volume.dtype)
        back = np.clip(np.round(back), limits.min, limits.max)
    return back.astype(volume.dtype)


# -- contrast -------------------------------------------------------------------------------------------------------


@acquisition(1.25, 1.6, 2.0, 2.6, 3.4)
def gamma(levels: np.ndarray, _: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """A power of the grey levels, `strength` or its inverse: dark tissues come together, or bright ones do."""
    power = strength ** rng.choice((-1, 1))
    return np.sign(levels) * np.abs(levels) ** power


@acquisition(0.2, 0.4, 0.6, 0.8, 1.0)
def inverted_contrast(levels: np.ndarray, _: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """Bright tissue becomes dark and dark tissue bright, as from T1 to T2; the air around the patient stays dark.

    At strength s the contrast of tissues is 1 - 2 s of what it was; it fades towards the darkest quarter of the range.
    """
    tissue = np.clip(levels / 0.25, 0, 1)  # from air to tissue without a step
    return levels + strength * tissue * (1 - 2 * levels)


@acquisition(0.1, 0.2, 0.35, 0.5, 0.7)
def intensity_scale(levels: np.ndarray, _: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """Another gain and another offset: a normalisation by the volume's own levels undoes it, a fixed one does not."""
    sign = rng.choice((-1, 1))
    return levels * math.exp(sign * strength) + 0.5 * strength * rng.uniform(-1, 1)


@acquisition(0.15, 0.3, 0.45, 0.65, 0.9)
def bias_field(levels: np.ndarray, spacing_mm: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """The slow drift of brightness that a coil leaves; `strength` is the deviation of its logarithm."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(levels.shape, spacing_mm, strict=True)]
    reach = max(float(np.ptp(axis)) for axis in axes) or 1.0
    return levels * np.exp(strength * smooth_field(rng, axes, 1.5 * reach))


# -- sharpness and noise --------------------------------------------------------------------------------------------


@acquisition(0.5, 0.9, 1.3, 1.8, 2.5)
def blur(levels: np.ndarray, spacing_mm: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """A Gaussian point spread whose deviation is `strength` times the smallest voxel length, in mm the same."""
    sigma = strength * min(spacing_mm) / np.asarray(spacing_mm, float)
    return gaussian_filter(levels, [0 if n == 1 else s for n, s in zip(levels.shape, sigma, strict=True)])


@acquisition(0.03, 0.06, 0.1, 0.15, 0.22)
def noise(levels: np.ndarray, _: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """Rician noise: the magnitude of the signal with normal noise on its real and its imaginary part."""
    real, imaginary = rng.normal(0, strength, (2, *levels.shape))
    return np.hypot(levels + real, imaginary)


@acquisition(1.5, 2.0, 3.0, 4.0, 6.0)
def resolution(levels: np.ndarray, spacing_mm: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """Slices `strength` times as thick along one axis, interpolated back; of a picture both axes are coarser."""
    flat = levels.shape[0] == 1
    axes = (1, 2) if flat else (int(rng.choice(3)),)
    factors = np.array([1 / strength if axis in axes else 1.0 for axis in range(3)])
    small = np.maximum(1, np.round(np.array(levels.shape) * factors)).astype(int)
    sigma = [0.5 * (strength - 1) if axis in axes else 0 for axis in range(3)]  # what a thick slice averages over
    coarse = zoom(
        gaussian_filter(levels, sigma), small / np.array(levels.shape), order=1, grid_mode=True, mode="nearest"
    )
    return zoom(coarse, np.array(levels.shape) / small, order=1, grid_mode=True, mode="nearest")


# -- artefacts of the scan ------------------------------------------------------------------------------------------


@acquisition(0.3, 0.6, 1.0, 1.5, 2.2)
def ghosting(levels: np.ndarray, _: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """Faint copies along one axis, of breathing or flow: every n-th line of k-space is stronger by `strength`."""
    axis = _an_axis(levels.shape, rng)
    lines = np.ones(levels.shape[axis])
    lines[:: int(rng.integers(2, 5))] += strength
    lines[0] = 1  # the middle of k-space, the mean, is as it was
    return np.abs(np.fft.ifft(np.fft.fft(levels, axis=axis) * _along(axis, lines), axis=axis))


@acquisition(0.4, 0.8, 1.5, 2.5, 4.0)
def motion(levels: np.ndarray, spacing_mm: Sequence[float], strength: float, rng: Generator) -> np.ndarray:
    """The patient moves during the scan, by `strength` voxels and degrees (deviation), for half of it.

    The middle of k-space, which shows where things lie, is of the first position, so that the labels stay right.
    """
    axis = _an_axis(levels.shape, rng)
    frequency = np.abs(np.fft.fftfreq(levels.shape[axis]))
    seen = np.fft.fft(levels, axis=axis)
    start = np.quantile(frequency, 1 / 2)
    for until in np.quantile(frequency, (2 / 3, 5 / 6, 1)):
        moved = np.fft.fft(_moved(levels, strength, rng), axis=axis)
        seen = np.where(_along(axis, (frequency > start) & (frequency <= until)), moved, seen)
        start = until
    return np.abs(np.fft.ifft(seen, axis=axis))


def _an_axis(shape: Sequence[int], rng: Generator) -> int:
    """An axis along which there is more than one voxel."""
    return int(rng.choice([axis for axis, n in enumerate(shape) if n > 1]))


def _along(axis: int, lines: np.ndarray) -> np.ndarray:
    """A value for each line of k-space across `axis`, (n,), in a shape that fits k-space: (n, 1, 1) for axis 0."""
    return lines.reshape([-1 if each == axis else 1 for each in range(3)])


def _moved(levels: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """(X, Y, Z) turned in the plane of the last two axes and shifted along them."""
    angle, (along_w, along_h) = math.radians(rng.normal(0, strength)), rng.normal(0, strength, 2)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    middle = (np.array(levels.shape) - 1) / 2
    return affine_transform(levels, turn, middle - turn @ middle + [0, along_w, along_h], order=1, mode="nearest")
