"""What no candidate may do, whatever else speaks for it: lose a class, flood the image, fall to pieces.

Each rule compares with the source network, with the prior, or with both. It is meant to catch collapses, of which
every consistency score is full of praise.
"""

import numpy as np

from selection.validators import Evidence, one_piece

WIDE = 3.0  # times the prior's size, or its part, that a median patient may have
EMPTY = 0.2  # share of the patients in which a class that is expected may be missing
PIECES = 0.5  # of the source network's share of the largest piece, below which a class has fallen to pieces


def reasons(seen: Evidence) -> list[str]:
    """For each candidate why it may not be chosen; '' where it may. Where all fail, none is left out for its size."""
    by_size, others = _sizes(seen), _empties(seen, _pieces(seen, [""] * len(seen.masks)))
    found = [one or two for one, two in zip(by_size, others, strict=True)]
    return others if all(found) else found


def _sizes(seen: Evidence) -> list[str]:
    """Out of the range of the prior in a median patient."""
    found = []
    with np.errstate(invalid="ignore", divide="ignore"):
        times = seen.shares / np.where(seen.expected, seen.prior, np.nan)
    for own in times:
        words = ""
        for k in range(1, seen.n_class):
            known = own[np.isfinite(own[:, k]), k]
            middle = float(np.median(known)) if len(known) else 1.0
            if not words and not 1 / WIDE <= middle <= WIDE:
                words = f"class {k} is {middle:.2g} times as large as the prior says"
        found.append(words)
    return found


def _empties(seen: Evidence, before: list[str]) -> list[str]:
    """A class that is expected, missing in too many patients, and in more than with the source network."""
    missing = (seen.sums["size"] == 0) & seen.expected
    share = missing.sum(1) / np.maximum(seen.expected.sum(0), 1)  # c k
    limit = np.maximum(share[seen.source], EMPTY)
    found = []
    for words, own in zip(before, share, strict=True):
        lost = [k for k in range(1, seen.n_class) if own[k] > limit[k]]
        found.append(words or (f"class {lost[0]} is missing in {own[lost[0]]:.0%} of the patients" if lost else ""))
    return found


def _pieces(seen: Evidence, before: list[str]) -> list[str]:
    """A class whose largest piece has less than half the share that it has with the source network."""
    share = one_piece(seen)
    middle = np.array([[_median(own[:, k]) for k in range(seen.n_class)] for own in share])
    found = []
    for words, own in zip(before, middle, strict=True):
        broken = [k for k in range(1, seen.n_class) if own[k] < PIECES * middle[seen.source, k]]
        found.append(words or (f"class {broken[0]} has fallen to pieces" if broken else ""))
    return found


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else np.nan
