"""The alarm of an adaptation: a class that vanishes or floods."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FAR = np.log(10)  # ten times the odds, or a tenth
LEAST = 1e-4  # of the pixels: what counts as none at all


class CollapseAlarm:
    """Compares the share of the pixels that each class is given with its prior and with its share at the start.

    A class vanishes (floods) if the odds of its share are ten times smaller (larger) than those of both. Odds, so
    that the background that floods is as far off as the organ that vanishes. Without ground truth, a loss that falls
    while this happens is the way entropy minimisation fails: one class everywhere has no entropy.
    """

    def __init__(self, prior: np.ndarray | None) -> None:
        """prior: (K,) share of each class over the training slices, None where nothing is known of it."""
        self.prior = prior
        self.start: np.ndarray | None = None

    def listen(self, counts: np.ndarray) -> list[str]:
        """What is alarming in an epoch's predictions, one sentence a class; [] if nothing is.

        counts: (steps, K) pixels predicted in each step, in their order. The first quarter of the first epoch is the
        start; the second half of an epoch is what it led to. A validation is one step.
        """
        if self.start is None:
            self.start = _shares(counts[: -(-len(counts) // 4)])
        now = _shares(counts[len(counts) // 2 :])
        references = [self.start] if self.prior is None else [self.start, self.prior]
        moved = np.array([_log_odds(now) - _log_odds(reference) for reference in references])
        alarms = []
        for k in np.flatnonzero((moved > FAR).all(0) | (moved < -FAR).all(0)):
            what = "floods" if moved[0, k] > 0 else "vanishes"
            prior = "" if self.prior is None else f", its prior is {100 * self.prior[k]:.3g} %"
            alarms.append(
                f"class {k} {what}: {100 * now[k]:.3g} % of the pixels, at the start {100 * self.start[k]:.3g} %{prior}"
            )
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"start": None if self.start is None else self.start.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start = None if state["start"] is None else np.array(state["start"])


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(0)
    return total / total.sum()


def _log_odds(share: np.ndarray) -> np.ndarray:
    share = share.clip(LEAST, 1 - LEAST)
    return np.log(share / (1 - share))


def prior_share(bounds: Sequence[np.ndarray | None], compares_ratios: Sequence[bool]) -> np.ndarray | None:
    """(K,) mean prior ratio over the slices, out of the first loss that compares ratios with one; else None.

    bounds: per loss (N, K, 2) pixels or None, as dataloader.lay_bounds lays them.
    """
    for bound, compares in zip(bounds, compares_ratios, strict=True):
        if bound is not None and compares:
            sizes = bound[:, :, 0]
            return (sizes / sizes.sum(1, keepdims=True)).mean(0)
    return None
