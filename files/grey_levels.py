"""How the grey levels of a volume become the input of a network. A stack is (N, W, H), N planes of a volume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from files.faults import VolumeFault
from processes.errors import UserError
from utils import listing

FEW = 8  # values that are counted one by one
EXACT = 2**24  # up to here float32 holds every whole number


def wide_fault(image: np.ndarray) -> str:
    """What is wrong with an image of any shape whose numbers are too wide for float32; '' if nothing is.

    Networks compute in float32. Numbers are too wide if it cannot hold them, or tell whole numbers apart.
    """
    if not image.size or image.dtype.kind not in "iuf" or image.dtype.itemsize <= (4 if image.dtype.kind == "f" else 2):
        return ""
    low, high = image.min(), image.max()
    if -EXACT <= low and high <= EXACT:
        return ""
    words = f"holds grey levels from {low:.10g} to {high:.10g}"
    if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        return f"{words}, beyond what 32 bits hold; divide them first"
    if image.dtype.kind == "f" and (image != np.rint(image)).any():
        return ""  # rounded to 7 digits, as any image is
    return f"{words}, whole numbers of which 32 bits tell only each second or fewer apart; subtract or divide first"


def must_fit(image: np.ndarray, path: Path) -> None:
    """Raises VolumeFault for the image of a volume, of any shape, whose numbers are too wide for float32."""
    with np.errstate(over="ignore"):  # a far value that marks the outside, for example, is held as it is
        fault = wide_fault(image)
        is_held = not fault or bool((image.astype(np.float32) == image).all())
    if not is_held:
        raise VolumeFault("has grey levels too wide for a network, which computes in 32 bits", f"{path} ({fault})")


def histogram(stack: np.ndarray) -> tuple[int, np.ndarray]:
    """The lowest integer of a stack (N, W, H) or plane (W, H), and how often each integer from it upwards occurs."""
    low, high = int(stack.min()), int(stack.max())
    counts = np.zeros(high - low + 1, np.int64)
    for plane in stack if stack.ndim == 3 else [stack]:
        counts += count_values(plane, low, len(counts))
    return low, counts


def count_values(plane: np.ndarray, low: int, count: int) -> np.ndarray:
    """(W, H) -> (count,): how often each of the integers from `low` upwards occurs in a plane that holds no others.

    A few values are compared, ten times as fast as counting. Small integers are counted by OpenCV, twice as fast as by
    numpy; its float32 counts are whole up to 2^24.
    """
    if count <= FEW:
        others = [np.count_nonzero(plane == low + place) for place in range(1, count)]
        return np.array([plane.size - sum(others), *others])
    if plane.dtype.itemsize > 2 or plane.size >= 2**24:
        return np.bincount(plane.ravel().astype(np.int64) - low, minlength=count)
    unsigned = np.dtype(f"u{plane.dtype.itemsize}")
    shifted = (plane - plane.dtype.type(low) if low else plane).ravel("K").view(unsigned)  # also where it wraps around
    found = cv2.calcHist([np.atleast_2d(shifted)], [0], None, [count], [0, count])
    return found.ravel().astype(np.int64)


def percentiles(stack: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Percentiles (0 to 100) of all values of a stack (N, W, H) or plane (W, H), with linear interpolation as in numpy.

    Small integers are counted instead of sorted, ten times as fast.
    """
    if stack.dtype.kind == "f":
        return [float(value) for value in np.percentile(stack, percents)]
    low, counts = histogram(stack)
    upto = np.cumsum(counts)
    values = []
    for percent in percents:
        place = percent / 100 * (stack.size - 1)
        rank = int(place)
        below, above = np.searchsorted(upto, [rank, min(rank + 1, stack.size - 1)], side="right")
        values.append(float(low + below + (place - rank) * (above - below)))
    return values


@dataclass(frozen=True)
class Scale:
    """Maps a grey level to (grey level - shift) / width; `lowest` is the lowest grey level of the volume."""

    shift: float
    width: float
    lowest: float


@dataclass(frozen=True)
class Normalisation:
    """How grey levels become the network's input.

    kind        out                                                     range
    minmax      (x - min) / (max - min)                                 0..1
    percentile  (x - p_low) / (p_high - p_low), clipped                 0..1
    window      (x - low) / (high - low), clipped                       0..1
    zscore      (x - mean) / sd                                         open
    none        x                                                       open

    `no_clip` keeps the values of percentile and window that lie outside 0..1. `clip` cuts the grey levels before all
    that. `scope` says whether min, percentile, mean, … are those of the volume or of each slice.
    A flat slice becomes 0 under scope 'slice'; a flat volume is a fault.
    """

    kind: str = "percentile"
    scope: str = "volume"
    percentiles: tuple[float, float] = (1.0, 99.0)
    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    no_clip: bool = False

    KINDS = ("minmax", "percentile", "zscore", "window", "none")
    SCOPES = ("volume", "slice")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS or self.scope not in self.SCOPES:
            raise UserError(
                f"--normalise is one of {listing(self.KINDS)} and --scope one of {listing(self.SCOPES)}; "
                f"got {self.kind} and {self.scope}."
            )
        if (self.kind == "window") != (self.window is not None):
            raise UserError("--window LOW HIGH and --normalise window go together: give both or neither.")
        if self.no_clip and self.kind not in ("percentile", "window"):
            raise UserError(f"--no_clip goes with --normalise percentile or window; {self.kind} does not clip.")
        for flag, limits in (("--window", self.window), ("--clip", self.clip), ("--percentiles", self.percentiles)):
            if limits is not None and not limits[0] < limits[1]:
                raise UserError(f"{flag} takes a lower and a higher number, got {limits[0]:g} and {limits[1]:g}.")
        if self.percentiles[0] < 0 or self.percentiles[1] > 100:
            raise UserError(
                f"--percentiles lie between 0 and 100, got {self.percentiles[0]:g} and {self.percentiles[1]:g}."
            )

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Normalisation":
        """The normalisation that a set's dataset.json describes. Raises KeyError where it lacks a part."""
        limits = {name: card[name] and tuple(map(float, card[name])) for name in ("percentiles", "window", "clip")}
        known = {name: pair for name, pair in limits.items() if pair}
        return cls(card["kind"], card["scope"] or "volume", no_clip=card["no_clip"], **known)

    def clipped(self, stack: np.ndarray) -> np.ndarray:
        """(N, W, H) -> (N, W, H): the stack cut at `clip`. Integers stay integers if the limits are whole numbers."""
        if self.clip is None:
            return stack
        low, high = self.clip
        if stack.dtype.kind == "f" or not (low.is_integer() and high.is_integer()):
            return np.clip(stack.astype(np.float32, copy=False), np.float32(low), np.float32(high))
        kind = np.iinfo(stack.dtype)
        return np.clip(stack, min(max(int(low), kind.min), kind.max), min(max(int(high), kind.min), kind.max))

    def fit(self, stack: np.ndarray) -> Scale:
        """The scale of grey levels already clipped: a stack (N, W, H), or a plane (W, H) under scope 'slice'."""
        lowest = float(stack.min())
        if self.kind == "minmax":
            return Scale(lowest, float(stack.max()) - lowest, lowest)
        if self.kind == "zscore":
            mean = sum(float(plane.sum(dtype=np.float64)) for plane in stack) / stack.size
            square = sum(float(np.square(plane.astype(np.float64) - mean).sum()) for plane in stack) / stack.size
            return Scale(mean, square**0.5, lowest)
        if self.kind == "none":
            return Scale(0.0, 1.0, lowest)
        low, high = self.window or percentiles(stack, self.percentiles)
        return Scale(low, high - low, lowest)

    def apply(self, plane: np.ndarray | float, scale: Scale) -> np.ndarray:
        """(W, H) grey levels, or one, -> float32 of the same shape, under this scale."""
        levels = np.array(plane, np.float32)  # a copy, for the steps below to work in
        if scale.width == 0:
            return np.zeros_like(levels)
        levels -= np.float32(scale.shift)
        levels /= np.float32(scale.width)
        return levels if self.no_clip or self.kind in ("zscore", "none") else np.clip(levels, 0, 1, out=levels)
