"""How often each class is in the target's pixels, estimated from what the source network predicts there.

Both estimators hold under label shift: how often a class occurs differs between source and target, how it looks does
not. On images of another look this is an approximation, and the network's mistakes there go into the estimate. So each
comes with its spread over the target's patients (`bootstrap`), which is what sampling alone makes uncertain.

Letters: P patients, N pixels, K classes. A share of a class is that of its pixels in all pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

SETTLED, ROUNDS = 1e-8, 10_000  # change of a share at which the likelihood counts as maximal; rounds at most
SUM_TO_ONE = 1e6  # weight of that condition, beside equations of shares
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class ClassShares:
    """(K,) shares of the classes, their standard deviation over draws of patients, and the ends of a 95 % interval."""

    shares: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray


def most_likely_shares(
    probabilities: np.ndarray, source: np.ndarray, weights: np.ndarray | None = None, start: np.ndarray | None = None
) -> np.ndarray:
    """Shares (K,) of the classes under which the network's probabilities on the target are most likely.

    By expectation maximisation (Saerens, Latinne, Decaestecker, Neural Computation 2002):
        p'_k ∝ p_k π_k / q_k,  π_k ← mean p'_k
    until π stays. The likelihood Σ log Σ_k p_k π_k / q_k is concave, so its maximum is also that of MLLS (Alexandari,
    Kundaje, Shrikumar, ICML 2020), which asks for calibrated probabilities: a network that is too sure of itself gives
    a share too near to that of its masks.

    probabilities: (N, K) of pixels of the target, as the source network predicts them
    source: (K,) shares in the source that the network learnt, q; a class with 0 has no share in the target
    weights: (N,) how often each pixel counts; start: (K,) shares that are near the maximum, to be there sooner
    """
    known = source > 0
    ratios = np.divide(probabilities, source, out=np.zeros(probabilities.shape), where=known)
    weights = np.ones(len(ratios)) if weights is None else np.asarray(weights, np.float64)
    shares = np.where(known, source if start is None else start, 0.0)
    shares = shares / shares.sum()
    told = (weights > 0) & ratios.any(1)
    ratios, weights = ratios[told], weights[told] / weights[told].sum()
    for _ in range(ROUNDS):
        before = shares
        shares = before * (ratios.T @ (weights / (ratios @ before)))
        if np.abs(shares - before).max() < SETTLED:
            break
    return shares / shares.sum()


def shares_by_confusion(predicted: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Shares (K,) of the classes that explain what is predicted on the target, by the mistakes made on the source.

    Black-box shift estimation (Lipton, Wang, Smola, ICML 2018): M π = μ, where M holds the probability of each
    prediction given the class, and μ the predicted shares. Where that has no solution of shares it is solved in the
    sense of least squares, each equation divided by √μ, under π ≥ 0 and Σ π = 1.

    predicted: (K,) pixels, or shares, that are predicted as each class on the target
    confusion: (K, K) share of the source's pixels of each class (row) predicted as each class (column), of images that
        the network did not learn from (the bundle's `confusion`); a class without pixels has no share in the target
    """
    among = confusion.sum(1) > 0
    given = (confusion[among] / confusion[among].sum(1, keepdims=True)).T  # prediction x class
    target = predicted / predicted.sum()
    scale = 1 / np.sqrt(np.maximum(target, 1 / max(predicted.sum(), 1e6)))
    equations = np.vstack([given * scale[:, None], np.full((1, given.shape[1]), SUM_TO_ONE)])
    found = nnls(equations, np.append(target * scale, SUM_TO_ONE))[0]
    shares = np.zeros(len(confusion))
    shares[among] = found / found.sum()
    return shares


def bootstrap(
    estimate: Callable[[np.ndarray], np.ndarray], patients: int, draws: int = 200, seed: int = 0
) -> ClassShares:
    """The shares that an estimator finds, and how they spread if the target's patients are drawn anew.

    estimate: how often each patient counts, (P,) -> (K,) shares
    patients: P; of one patient nothing is known of the spread, and deviation and interval are NaN
    """
    shares = estimate(np.ones(patients))
    if patients < 2:
        nothing = np.full(len(shares), np.nan)
        return ClassShares(shares, nothing, nothing, nothing)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(patients, np.full(patients, 1 / patients), draws)
    found = np.array([estimate(count.astype(np.float64)) for count in counts])
    low, high = np.quantile(found, INTERVAL, axis=0)
    return ClassShares(shares, found.std(0, ddof=1), low, high)


def likelihood_of_patients(
    probabilities: np.ndarray,
    patients: np.ndarray,
    source: np.ndarray,
    pixels: np.ndarray | None = None,
    draws: int = 200,
    seed: int = 0,
) -> ClassShares:
    """`most_likely_shares` with its spread. patients: (N,) number of the patient of each pixel, from 0 on.

    pixels: (N,) how many pixels have these probabilities (default: one)
    """
    pixels = np.ones(len(patients)) if pixels is None else pixels
    near = most_likely_shares(probabilities, source, pixels)

    def estimate(times: np.ndarray) -> np.ndarray:
        return most_likely_shares(probabilities, source, times[patients] * pixels, near)

    return bootstrap(estimate, int(patients.max()) + 1, draws, seed)


def confusion_of_patients(predicted: np.ndarray, confusion: np.ndarray, draws: int = 200, seed: int = 0) -> ClassShares:
    """`shares_by_confusion` with its spread. predicted: (P, K) pixels of each patient predicted as each class."""
    return bootstrap(lambda times: shares_by_confusion(times @ predicted, confusion), len(predicted), draws, seed)
