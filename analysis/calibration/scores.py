"""Scores of calibration, from the sums over a class's pixels; smaller is better, but for the resolution.

nll          mean −log of the probability that the truth had: p where y = 1, 1 − p elsewhere
brier        mean (p − y)²; it is reliability − resolution + uncertainty
reliability  Σ_b n_b/n (p̄_b − ȳ_b)², over the bins
resolution   Σ_b n_b/n (ȳ_b − ȳ)², less the variance of p within bins, and with twice its covariance with y: with these
             two the three parts add up (Stephenson, Coelho and Jolliffe, Weather and Forecasting 2008; without them
             Murphy, Journal of Applied Meteorology 1973)
uncertainty  ȳ (1 − ȳ), which no network changes
cw_ece       Σ_b n_b/n |p̄_b − ȳ_b|: of a class the class-wise ECE (Kull et al., NeurIPS 2019)
ace          mean |p̄_b − ȳ_b| of the bins that hold a pixel (Barfoot et al., arXiv 2506.03942)
tace         the same of bins of equal mass over the pixels with p > LEAST (Nixon et al., CVPR workshops 2019)
"""

import numpy as np

from analysis.calibration.sums import BINS, Floats, Sums

PARTS = ("reliability", "resolution", "uncertainty")  # of the Brier score
SCORES = ("nll", "brier", *PARTS, "cw_ece", "ace", "tace")


def scores_of(sums: Sums) -> dict[str, float]:
    """Every score, NaN of no pixels. The TACE is NaN, too, where no pixel has p > LEAST."""
    n = sums.n
    if not n:
        return dict.fromkeys(SCORES, np.nan)
    share, gap = sums.bins[0] / n, gaps(sums.bins)
    brier, base = sums.squares / n, sums.bins[2].sum() / n
    known = sums.bins[0] > 0
    reliability, uncertainty = np.sum(share[known] * gap[known] ** 2), base * (1 - base)
    values = {
        "nll": sums.log_loss / n,
        "brier": brier,
        "reliability": reliability,
        "resolution": reliability + uncertainty - brier,
        "uncertainty": uncertainty,
        "cw_ece": np.sum(share[known] * gap[known]),
        "ace": gap[known].mean(),
        "tace": gaps(equal_mass(sums.fine)).mean() if sums.fine[0].any() else np.nan,
    }
    return {name: float(values[name]) for name in SCORES}


def reliability_curve(sums: Sums) -> Floats:
    """(2, BINS) mean probability and share of the class in each bin; NaN of one without a pixel."""
    return _means(sums.bins)


def gaps(bins: Floats) -> Floats:
    """(3, N) pixels, Σ p and Σ y of bins -> (N,) |p̄ − ȳ| of each; NaN of one without a pixel."""
    confidence, frequency = _means(bins)
    return np.abs(confidence - frequency)


def equal_mass(fine: Floats, bins: int = BINS) -> Floats:
    """(3, FINE) in ascending order of p -> (3, bins), which hold equally many pixels.

    Where the border of two lies within a fine bin, its pixels are shared between them, as if each were its mean. So
    fewer pixels than bins are parts of pixels.
    """
    cumulated = np.concatenate([np.zeros((3, 1)), fine[:, fine[0] > 0].cumsum(1)], axis=1)
    borders = np.linspace(0, cumulated[0, -1], bins + 1)
    return np.diff([np.interp(borders, cumulated[0], each) for each in cumulated], axis=1)


def _means(bins: Floats) -> Floats:
    """(3, N) -> (2, N) mean p and mean y of each bin."""
    return np.divide(bins[1:], bins[0], out=np.full(bins[1:].shape, np.nan), where=bins[0] > 0)
