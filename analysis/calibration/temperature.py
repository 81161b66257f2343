"""One temperature for all logits, fitted to labels: of the truth, or such as a network gives itself (PseudoCal)."""

import numpy as np
from numpy.typing import NDArray

from analysis.calibration.sums import Floats, log_sum

LEAST, MOST = 1 / 16, 16.0  # a temperature beyond says that the pixels cannot tell it
STEPS = 40  # halvings of the interval: the last is far below the digits that are shown


def fit_temperature(log_p: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The T in [LEAST, MOST] of the least mean −log softmax(log_p / T) of the labels (Guo et al., ICML 2017).

    log_p: (K, N) log-probabilities, or logits, of N > 0 pixels; labels: (N,) class numbers

    In 1 / T the mean is convex, so its slope rises, and the T where that is 0 is found by halving.
    """
    scores = log_p.astype(np.float64)
    mean_of_labels = np.take_along_axis(scores, labels[None].astype(np.int64), 0).mean()

    def slope(log_t: float) -> float:
        p = np.exp(tempered(scores, np.exp(log_t)))
        return float((p * scores).sum(0).mean() - mean_of_labels)

    low, high = np.log(LEAST), np.log(MOST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def tempered(log_p: NDArray[np.floating], temperature: float) -> Floats:
    """(K, N) log-probabilities, or logits -> (K, N) log-probabilities at this temperature; their order stays."""
    scores = log_p.astype(np.float64) / temperature
    return scores - log_sum(scores)
