"""What no candidate may do, whatever else speaks for it: lose a class, or flood the images with one.

Both are the ends of an adaptation that has collapsed, and both are perfectly consistent: one class everywhere is the
same under every disturbance. So no score of consistency can see them.
"""

import numpy as np

from nets.probabilities import EPS
from selection.validators import Evidence, middle

FAR = np.log(10)  # times the odds of a class, by which it may differ from both the source network and the prior
EMPTY = 0.2  # share of the patients in which a class that is expected may be missing; or that of the source network


def reasons(seen: Evidence) -> list[str]:
    """For each candidate why it may not be chosen; '' where it may."""
    return [one or two for one, two in zip(_lost(seen), _far_off(seen), strict=True)]


def _lost(seen: Evidence) -> list[str]:
    """A class that is expected, missing in too many patients, and in more than with the source network."""
    missing = (seen.sums["size"] == 0) & seen.expected
    share = missing.sum(1) / np.maximum(seen.expected.sum(0), 1)  # c k
    limit = np.maximum(share[seen.source], EMPTY)
    lost = [np.flatnonzero((own > limit)[1:]) + 1 for own in share]
    return [
        f"class {which[0]} is missing in {own[which[0]]:.0%} of the patients" if len(which) else ""
        for which, own in zip(lost, share, strict=True)
    ]


def _far_off(seen: Evidence) -> list[str]:
    """A class with odds far from those of the source network, and as far from the prior's, where there is one."""
    shares = middle(np.where(seen.expected, seen.shares, np.nan))  # c k
    prior = middle(np.where(seen.expected, seen.prior, np.nan)[None])[0]
    moved = _log_odds(shares) - _log_odds(shares[seen.source])
    off = np.where(np.isnan(prior), moved, _log_odds(shares) - _log_odds(prior))
    far = np.where(moved * off > 0, np.minimum(abs(moved), abs(off)), 0) > FAR
    found = []
    for own, where in zip(shares, far, strict=True):
        which = np.flatnonzero(where[1:]) + 1
        found.append(f"class {which[0]} has {100 * own[which[0]]:.2g} % of the image" if len(which) else "")
    return found


def _log_odds(share: np.ndarray) -> np.ndarray:
    return np.log(share + EPS) - np.log(1 - share + EPS)
