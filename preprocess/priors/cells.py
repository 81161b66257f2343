"""What a network says of many pixels, in little memory: pixels that it says nearly the same of are one cell.

Letters: N pixels, M cells, K classes.
"""

from dataclasses import dataclass

import numpy as np

STEP = 0.5  # width of a cell, in powers of two of a class's probability by the largest one
LEAST = 20.0  # powers of two below the largest: less likely than that is one and the same
MOST = 2**16  # cells; where there are more, they are made twice as wide
CHUNK = 2**20  # pixels at a time
HASHES = np.random.default_rng(0).integers(1, 2**62, 257, dtype=np.int64) * 2 + 1  # of the patient, and of each class


@dataclass(frozen=True)
class CellTable:
    """Cells of pixels: mean probabilities (M, K), the number (M,) of their patient, and how many pixels each holds.

    Within a cell the mean is exact, so what is linear in the probabilities is too.
    """

    probabilities: np.ndarray
    patients: np.ndarray
    pixels: np.ndarray


class Cells:
    """Gathers the probabilities of pixels, image by image. What it holds follows from these alone."""

    def __init__(self) -> None:
        self.step = STEP
        self.parts: list[tuple[np.ndarray, ...]] = []  # sums (M, K) of probabilities, patients (M,), pixels (M,)
        self.held = 0

    def add(self, patient: int, probabilities: np.ndarray) -> None:
        """Adds the probabilities (N, K) of pixels of a patient, who has a number from 0 on."""
        for begin in range(0, len(probabilities), CHUNK):
            some = probabilities[begin : begin + CHUNK].astype(np.float64)
            part = _merged(some, np.full(len(some), patient), np.ones(len(some)), self.step)
            self.parts.append(part)
            self.held += len(part[2])
            if self.held > 2 * MOST:
                self._merge()

    def _merge(self) -> None:
        """Makes one table of the parts, of cells so wide that there are not too many."""
        whole = tuple(np.concatenate(column) for column in zip(*self.parts, strict=True))
        whole = _merged(*whole, self.step)
        while len(whole[2]) > MOST and self.step < LEAST:
            self.step *= 2
            whole = _merged(*whole, self.step)
        self.parts, self.held = [whole], len(whole[2])

    def table(self) -> CellTable:
        """All that was added."""
        self._merge()
        ((sums, patients, pixels),) = self.parts
        return CellTable(sums / pixels[:, None], patients, pixels)


def _merged(sums: np.ndarray, patients: np.ndarray, pixels: np.ndarray, step: float) -> tuple[np.ndarray, ...]:
    """The same with one row for all those of one patient whose probabilities lie in the same steps."""
    with np.errstate(divide="ignore"):
        depths = -np.log2(sums / sums.max(1, keepdims=True))
    levels = (np.minimum(depths, LEAST) / step).astype(np.int64)
    with np.errstate(over="ignore"):  # a hash
        keys = levels @ HASHES[1 : 1 + levels.shape[1]] + patients * HASHES[0]
    _, first, at = np.unique(keys, return_index=True, return_inverse=True)
    merged = np.stack([np.bincount(at, column, len(first)) for column in sums.T], 1)
    return merged, patients[first], np.bincount(at, pixels, len(first))
