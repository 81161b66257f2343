"""The Dice that may be expected of a mask without labels, and an interval for it, by what the source's labels taught.

The score of a class k in a patient is its soft Dice confidence at the source's temperatures (nets/confidence.py). A
curve turns it into a Dice: the isotonic regression of Dice on score over labelled validation images of the source, as
they are and as other acquisitions show them. What is left is the residual. An interval holds LEVEL of the residuals of
patients that the curve was not fitted to (split-conformal, Lei et al., JASA 2018), in units of 1 + d: d says how far
the grey levels of a patient lie from the source's, in units of the distance at which the source's own patients lie.

So the interval is calibrated on the source and its disturbed images. A shift unlike those may be worse than it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from nets.bundle import KNOTS, Bundle
from nets.confidence import scale_by_class, soft_dice_confidence
from nets.probabilities import EPS
from processes.quoting import visible

LEVEL = 0.9  # of the patients should lie within their interval
TIMES = 2.0  # a class so many times larger than the source's large ones, or smaller than its small ones, is unlike them
NEEDED = ("temperatures", "dice_curve", "dice_residuals", "grey_quantiles", "grey_distance")  # of a bundle


# ---------------------------------------------------------------------------------------------- one patient


class ConfidenceSums:
    """Sums over the pixels of P patients, of which their scores are made; memory is flat, and no label is asked for.

    own (P, K) probability of a class over the pixels where it is predicted, total (P, K) the same over all pixels,
    predicted (P, K) pixels where it is predicted; probabilities are those at the temperatures (K,)
    """

    def __init__(self, patients: int, temperatures: np.ndarray, device: str | torch.device) -> None:
        self.temperatures = temperatures
        shape = (patients, len(temperatures))
        self.own, self.total, self.predicted = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in "123")

    def add(self, patients: Sequence[int], log_p: Tensor) -> None:
        """Adds log-probabilities (B, K, …) of images of these patients (B)."""
        labels = log_p.max(1).indices
        p = scale_by_class(log_p, labels, self.temperatures).exp_()
        at = torch.tensor(patients, device=log_p.device)
        for k in range(p.shape[1]):
            mask, p_k = (labels == k).flatten(1), p[:, k].flatten(1)
            self.own[:, k].index_add_(0, at, (p_k * mask).sum(1, dtype=torch.float64))
            self.total[:, k].index_add_(0, at, p_k.sum(1, dtype=torch.float64))
            self.predicted[:, k].index_add_(0, at, mask.sum(1, dtype=torch.float64))

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(P, K) scores, 0 where a class is not predicted, and (P, K) pixels where it is."""
        own, total, predicted = (sums.cpu().numpy() for sums in (self.own, self.total, self.predicted))
        return soft_dice_confidence(own, total, predicted), predicted


def grey_distances(quantiles: np.ndarray, of_source: np.ndarray) -> np.ndarray:
    """(P, C, 256) quantiles of patients, and (C, 256) of the source -> (P, C) their mean distance.

    It is the Wasserstein distance of the two distributions, in grey levels as the network sees them.
    """
    return np.abs(quantiles - of_source).mean(-1)


def grey_distance(quantiles: np.ndarray, of_source: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """(P, C, 256) quantiles of patients -> (P,) mean over channels of their distance from the source's, by the usual.

    usual: (C,) mean distance of the source's own patients. A channel is left out whose levels, or whose usual distance,
    are not known; without any the distance is 0.
    """
    by_channel = grey_distances(quantiles, of_source) / np.maximum(usual, EPS)
    known = np.isfinite(by_channel)
    return np.where(known, by_channel, 0).sum(1) / np.maximum(known.sum(1), 1)


@dataclass(frozen=True)
class Estimate:
    """Of P patients and F foreground classes the Dice that is expected, (P, F) each, and what it is made of.

    low, high   LEVEL of the patients should lie between
    score       soft Dice confidence at the source's temperatures
    distance    (P,) of the grey levels from the source's; 1 is usual there
    notes       P lists of F texts: what is odd about a mask, or ''
    """

    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray
    score: np.ndarray
    distance: np.ndarray
    notes: Sequence[Sequence[str]]


EMPTY = "not found: Dice is 0 if the patient has it"
UNKNOWN = "the source's validation images tell nothing of it"
LARGE, SMALL = "much larger than in the source", "much smaller than in the source"


@dataclass(frozen=True)
class ExpectedDice:
    """What a source bundle tells of how good masks are; F foreground classes, C channels.

    curve       (F, 2, KNOTS) scores in ascending order, and the Dice that each is worth; NaN of a class without one
    residuals   (F, 2) the lowest and the highest usual Dice less the expected, by 1 + distance; NaN: anything
    quantiles   (C, 256) grey levels of the source; usual: (C,) distance of its own patients from them
    sizes       volume -> (F, 2) the small and the large ones of the source, by "voxels" and "mm3", as far as known
    """

    temperatures: np.ndarray
    curve: np.ndarray
    residuals: np.ndarray
    quantiles: np.ndarray
    usual: np.ndarray
    sizes: dict[str, np.ndarray]

    def distance(self, quantiles: np.ndarray) -> np.ndarray:
        """(P, C, 256) quantiles of the grey levels of patients -> (P,) their distances from the source."""
        return grey_distance(quantiles, self.quantiles, self.usual)

    def estimate(
        self, scores: np.ndarray, predicted: np.ndarray, distance: np.ndarray, mm3: np.ndarray | None = None
    ) -> Estimate:
        """Scores and predicted voxels (P, K) of masks, distances (P,), volumes (P, K) if known -> what is expected.

        Dice is 0 where a class is not predicted, if the patient has it. Where it is far larger or smaller than in the
        source, or no residual is known, the interval reaches to 0 or over everything: no confidence sees a flood.
        """
        scores, predicted = scores[:, 1:], predicted[:, 1:]
        expected = np.stack([at_score(curve, s) for curve, s in zip(self.curve, scores.T, strict=True)], 1)
        reach = (1 + distance)[:, None, None] * self.residuals
        low, high = np.clip(expected + reach[..., 0].clip(max=0), 0, 1), np.clip(expected + reach[..., 1].clip(0), 0, 1)
        low, high = np.where(np.isnan(low), 0, low), np.where(np.isnan(high), 1, high)
        known, volumes = ("mm3", mm3[:, 1:]) if mm3 is not None and "mm3" in self.sizes else ("voxels", predicted)
        small, large = np.moveaxis(self.sizes.get(known, np.full((predicted.shape[1], 2), np.nan)), 1, 0)
        is_large, is_small, empty = volumes > TIMES * large, volumes < small / TIMES, predicted == 0
        low = np.where(is_large | is_small, 0, low)
        texts = np.select([empty, np.isnan(expected), is_large, is_small], [EMPTY, UNKNOWN, LARGE, SMALL], "")
        expected, low, high = (np.where(empty, 0, values) for values in (expected, low, high))
        return Estimate(expected, low, high, scores, distance, texts.tolist())


def at_score(curve: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The Dice that scores of any shape are worth by a curve (2, KNOTS).

    Straight between its knots, from its first down to Dice 0 at score 0, and from its last up to Dice 1 at score 1: an
    adapted network is surer than the source's ever was, and its patients keep their order. All NaN where the curve is.
    """
    if np.isnan(curve).any():
        return np.full(scores.shape, np.nan)
    top = [] if curve[0, -1] >= 1 else [1.0]
    x, y = ([0.0, *knots, *top] for knots in curve)
    return np.interp(scores, x, y)


def expected_dice(bundle: Bundle | None) -> ExpectedDice | str:
    """What the bundle tells of how good masks are; or in words why it tells nothing."""
    if bundle is None:
        return "its checkpoint has no source bundle: it is of an older version, or was not trained here on labels"
    if missing := [name for name in NEEDED if getattr(bundle, name) is None]:
        why = bundle.manifest.get(missing[0], {}).get("left_out", "it was trained by an older version")
        return f"its source bundle has no {missing[0]}: {why}"
    sizes = {}
    for unit in ("voxels", "mm3"):
        small, large = (bundle.statistic(f"volume_{unit}", which) for which in ("q05", "q95"))
        sizes |= {} if small is None or large is None else {unit: np.stack([small, large], 1)}
    return ExpectedDice(*(getattr(bundle, name) for name in NEEDED), sizes)


FEW = 5  # patients that are named


def first_to_look_at(patients: Sequence[str], expected: np.ndarray, low: np.ndarray) -> str:
    """A line that names the patients whose masks should be looked at first.

    It is the least expected Dice (P, F), mean over classes, that comes first, of equal ones the lowest low end (P, F).
    """
    known = ~np.isnan(expected)
    counts = np.maximum(known.sum(1), 1)
    means, lows = (np.where(known, values, 0).sum(1) / counts for values in (expected, low))
    order = sorted(np.flatnonzero(known.any(1)).tolist(), key=lambda place: (means[place], lows[place]))
    if not order:
        return "Of no patient's mask it can be told without labels how good it is."
    told = [f"{visible(patients[place])} {means[place]:.2f} (from {lows[place]:.2f})" for place in order[:FEW]]
    more = f", and {len(order) - FEW} more" if len(order) > FEW else ""
    return f"Look at these first, by the Dice that is expected without labels: {', '.join(told)}{more}."


# ------------------------------------------------------------------------------------- labelled images


def fit_curve(scores: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """(N,) scores and Dice of one class -> (2, KNOTS) of its curve: at quantiles of the scores, the isotonic Dice.

    All NaN where there is no score.
    """
    if not len(scores):
        return np.full((2, KNOTS), np.nan)
    x, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rising = isotonic_regression(np.bincount(at, dice) / counts, weights=counts).x
    knots = np.quantile(scores, np.linspace(0, 1, KNOTS))
    return np.maximum.accumulate([knots, np.interp(knots, x, rising)], axis=1)  # what rounding turned round


def usual_residuals(scores: np.ndarray, dice: np.ndarray, distance: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """(2,) the lowest and the highest usual residual Dice - expected, by 1 + distance; of (N,) images each.

    The residuals of a patient are those from the curve of all others. Between the two lie LEVEL of the residuals, as
    many at either end beyond, counted as split-conformal prediction does. NaN where there are too few to tell an end,
    or one patient alone.
    """
    residuals = np.full(len(scores), np.nan)
    for patient in np.unique(patients):
        own = patients == patient
        if not own.all():
            residuals[own] = (dice[own] - at_score(fit_curve(scores[~own], dice[~own]), scores[own])) / (
                1 + distance[own]
            )
    ordered = np.sort(residuals[~np.isnan(residuals)])
    rank = floor(round((1 - LEVEL) / 2 * (len(ordered) + 1), 9))  # of binary fractions 2 may be 1.9999
    return np.array([ordered[rank - 1], ordered[-rank]]) if rank else np.full(2, np.nan)
