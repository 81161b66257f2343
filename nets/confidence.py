"""How sure a network is of its masks, and how sure it may be: soft Dice confidence, and one temperature a class.

The soft Dice confidence of a class k is what its Dice would be if the probabilities were true (arXiv:2402.10665):
    SDC_k = 2 Σ p_k [ŷ = k] / (Σ p_k + Σ [ŷ = k])      ŷ = argmax p, sums over a patient's pixels; 0 if ŷ is never k
Class-specific temperature scaling (Li et al., MICCAI 2022) divides the logits of a pixel by the temperature of the
class that is predicted there, which leaves ŷ as it is. It is fitted to images with labels: for the background the mean
probability, where it is predicted, becomes its accuracy there; for another class the mean SDC over patients becomes
the mean Dice. On images without labels the SDC at these temperatures then estimates the Dice.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from torch import Tensor

from metrics import dice
from nets.probabilities import one_hot

EXPONENTS = np.linspace(-4, 4, 17)  # of 2: the temperatures that sums are taken at; between them they are interpolated
PLAIN = int(np.flatnonzero(EXPONENTS == 0)[0])  # temperature 1: the probabilities as they are
CHUNK = 2**18  # pixels at a time
SWEEPS, STEADY = 20, 1e-9  # rounds over the classes, whose confidences depend on each other; what counts as no change


class ConfidenceTable:
    """Sums over the pixels of P patients, of which Dice and confidence at any temperature are made; memory is flat.

    counts (P, K, K) pixels of each class (row), by the class that is predicted there (column)
    mass (P, K, K, T) probability of each class (third axis) over the pixels predicted as one (second), by temperature
    """

    def __init__(self, patients: int, n_class: int, device: str | torch.device) -> None:
        self.counts = torch.zeros(patients, n_class, n_class, dtype=torch.float64, device=device)
        self.mass = torch.zeros(patients, n_class, n_class, len(EXPONENTS), dtype=torch.float64, device=device)

    def add(self, patients: Sequence[int], log_p: Tensor, truth: Tensor) -> None:
        """Adds log-probabilities (B, K, …) of images of these patients (B), and their class numbers (B, …).

        Pixels whose class number is none count nowhere.
        """
        for patient, scores, label in zip(patients, log_p.flatten(2), truth.flatten(1), strict=True):
            for part, true in zip(scores.split(CHUNK, 1), label.split(CHUNK), strict=True):
                self._add(patient, part, true)

    def _add(self, patient: int, log_p: Tensor, true: Tensor) -> None:
        """Adds (K, n) log-probabilities and (n,) class numbers."""
        n_class = len(log_p)
        actual = one_hot(true[None], n_class, torch.float64)[0]  # k n
        known = actual.sum(0)
        predicted = one_hot(log_p.max(0).indices[None], n_class, torch.float64)[0] * known
        self.counts[patient] += actual @ predicted.T
        for place, exponent in enumerate(EXPONENTS.tolist()):
            p = (log_p * 2**-exponent).softmax(0)
            self.mass[patient, :, :, place] += predicted @ p.double().T

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Fetches counts (P, K, K) and mass (P, K, K, T) from the device."""
        return self.counts.cpu().numpy(), self.mass.cpu().numpy()


# ---------------------------------------------------------------------------------------- on labelled images


def real_dice(counts: np.ndarray) -> np.ndarray:
    """(P, K, K) counts -> (P, K) Dice, NaN where a class is in neither truth nor prediction."""
    return dice(counts.diagonal(axis1=1, axis2=2), counts.sum(1), counts.sum(2))


def soft_dice(counts: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """(P, K, K) counts and mass at one temperature a class -> (P, K) soft Dice confidence; NaN where Dice is NaN."""
    predicted, own = counts.sum(1), mass.diagonal(axis1=1, axis2=2)
    confidence = soft_dice_confidence(own, mass.sum(1), predicted)
    return np.where(np.isnan(real_dice(counts)), np.nan, confidence)


def soft_dice_confidence(own: np.ndarray, total: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """SDC of any shape from the sums of p_k [ŷ = k], of p_k and of [ŷ = k]; 0 where nothing is predicted."""
    both = total + predicted
    return np.divide(2 * own, both, out=np.zeros(np.shape(both)), where=(predicted > 0) & (both > 0))


def at_temperatures(mass: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """(P, K, K, T) mass, (K,) one temperature for the pixels predicted as each class -> (P, K, K) mass there.

    A temperature that is not known (NaN) is 1.
    """
    at = np.log2(usable(temperatures))
    return np.stack([_between(mass[:, k])(at[k]) for k in range(len(at))], axis=1)


def usable(temperatures: np.ndarray) -> np.ndarray:
    """(K,) the temperatures, those that are not known (NaN) being 1."""
    return np.where(np.isnan(temperatures), 1.0, temperatures)


def fit_temperatures(counts: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits one temperature a class to counts (P, K, K) and mass (P, K, K, T), each between 1/16 and 16.

    Returns (K,) temperatures, and (K,) residuals: confidence less accuracy, or less Dice. Where no temperature brings
    them together it is the bound that comes nearest. Both are NaN for a class that is never predicted, or not scored.
    """
    n_class = counts.shape[1]
    curves = [_between(mass[:, k]) for k in range(n_class)]
    exponents, residuals = np.zeros(n_class), np.full(n_class, np.nan)
    here = np.stack([curve(0.0) for curve in curves], axis=1)
    predicted, truth = counts.sum(1), real_dice(counts)
    scored = ~np.isnan(truth)

    def of_background(exponent: float) -> float:
        return float((curves[0](exponent)[:, 0].sum() - counts[:, 0, 0].sum()) / predicted[:, 0].sum())

    def of_class(k: int) -> Callable[[float], float]:
        rest, real = here[:, :, k].sum(1) - here[:, k, k], truth[scored[:, k], k].mean()

        def gap(exponent: float) -> float:
            own = curves[k](exponent)[:, k]
            return float(soft_dice_confidence(own, rest + own, predicted[:, k])[scored[:, k]].mean() - real)

        return gap

    for sweep in range(SWEEPS):
        before = exponents.copy()
        for k in range(n_class):
            if not predicted[:, k].any() or (k and not scored[:, k].any()) or (sweep and not k):
                continue
            exponents[k], residuals[k] = _root(of_class(k) if k else of_background)
            here[:, k] = curves[k](exponents[k])
        if np.abs(exponents - before).max() < STEADY:
            break
    return np.where(np.isnan(residuals), np.nan, 2.0**exponents), residuals


def _between(values: np.ndarray) -> CubicSpline:
    """Values (…, T) as a function of the exponent of the temperature."""
    return CubicSpline(EXPONENTS, values, axis=-1)


def _root(gap: Callable[[float], float]) -> tuple[float, float]:
    """The exponent at which a gap is 0, or the bound at which it is least; and the gap there."""
    ends = [float(EXPONENTS[0]), float(EXPONENTS[-1])]
    gaps = [gap(end) for end in ends]
    if gaps[0] * gaps[1] < 0:
        exponent = float(brentq(gap, *ends))
        return exponent, gap(exponent)
    nearest = int(abs(gaps[1]) < abs(gaps[0]))
    return ends[nearest], gaps[nearest]


# -------------------------------------------------------------------------------------- on unlabelled images


def scale_by_class(log_p: Tensor, labels: Tensor, temperatures: np.ndarray) -> Tensor:
    """(B, K, …) log-probabilities at the temperatures (K,) of the classes that are predicted; their argmax stays.

    labels: (B, …) numbers of these classes
    """
    factors = torch.from_numpy(1 / usable(temperatures)).to(log_p)
    return (log_p * factors[labels.long()].unsqueeze(1)).log_softmax(1)
