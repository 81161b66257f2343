"""What the probabilities of one class say against the truth, in sums: pixels are added piece by piece, none is kept.

Each class is looked at by itself: p is its probability in a pixel, y is 1 where the truth is this class and else 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of equal width, from 0 to 1: the first is [0, 1/15), the last holds 1
LEAST = 0.01  # bins of equal mass leave out pixels in which the class is no more probable than this
LOWEST, HIGHEST, FINE = math.log(LEAST / (1 - LEAST)), 20.0, 720  # logits of p, in steps of 0.034
STEP = (HIGHEST - LOWEST) / FINE

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sums:
    """Of n pixels and one class.

    log_loss  Σ −log p where y = 1, and −log(1 − p) elsewhere
    squares   Σ (p − y)²
    bins      (3, BINS) number of pixels, Σ p and Σ y in bins of equal width
    fine      (3, FINE) the same of the pixels with p > LEAST, in bins of equal width of the logit of p
    """

    log_loss: float
    squares: float
    bins: Floats
    fine: Floats

    @property
    def n(self) -> int:
        """The number of pixels."""
        return int(self.bins[0].sum())

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.log_loss + other.log_loss,
            self.squares + other.squares,
            self.bins + other.bins,
            self.fine + other.fine,
        )


NOTHING = Sums(0.0, 0.0, np.zeros((3, BINS)), np.zeros((3, FINE)))


def sums_of(log_p: NDArray[np.floating], truth: NDArray[np.integer], k: int) -> Sums:
    """The sums of class k over N pixels.

    log_p: (K, N) log-probabilities of the classes; truth: (N,) class numbers
    """
    return _sums(log_p[k].astype(np.float64), _log_of_the_others(log_p, k), truth == k)


def sums_by(
    log_p: NDArray[np.floating], truth: NDArray[np.integer], k: int, inside: NDArray[np.bool_]
) -> tuple[Sums, Sums]:
    """As `sums_of`, of the pixels inside a region, (N,) booleans, and of those outside."""
    each = log_p[k].astype(np.float64), _log_of_the_others(log_p, k), truth == k
    return tuple(_sums(*(values[where] for values in each)) for where in (inside, ~inside))


def _sums(log_yes: Floats, log_no: Floats, y: NDArray[np.bool_]) -> Sums:
    """Of pixels (n,): log p, log(1 − p), and whether the truth is the class."""
    p = np.exp(log_yes)
    at = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    seen = p > LEAST
    logit = log_yes[seen] - log_no[seen]
    fine_at = np.clip((logit - LOWEST) / STEP, 0, FINE - 1).astype(np.int64)
    return Sums(
        -float(np.where(y, log_yes, log_no).sum()),
        float(np.square(p - y).sum()),
        _counts(at, p, y, BINS),
        _counts(fine_at, p[seen], y[seen], FINE),
    )


def _log_of_the_others(log_p: NDArray[np.floating], k: int) -> Floats:
    """(N,) log(1 − p_k), exact also where p_k is so near 1 that 1 − p_k has no digit left."""
    log_yes = log_p[k].astype(np.float64)
    unlikely = log_yes < math.log(0.5)
    found = np.log1p(-np.exp(np.where(unlikely, log_yes, -np.inf)))
    found[~unlikely] = log_sum(np.delete(log_p[:, ~unlikely], k, 0))
    return found


def _counts(at: NDArray[np.int64], p: Floats, y: NDArray[np.bool_], bins: int) -> Floats:
    """(3, bins) pixels, Σ p and Σ y of pixels in these bins."""
    return np.stack([np.bincount(at, weights, bins) for weights in (None, p, y)]).astype(np.float64)


def log_sum(scores: NDArray[np.floating]) -> Floats:
    """(K, N) -> (N,) log Σ exp over the classes, in float64."""
    scores = scores.astype(np.float64)
    largest = scores.max(0)
    return largest + np.log(np.exp(scores - largest).sum(0))
