"""Scores of candidates that need no label: each one function, which is all it takes to add one.

A validator is given what was measured of all candidates, and returns an array (C, P, K): of each candidate, patient and
class, higher is better, NaN where it says nothing. A patient's score is the mean over the classes that are expected in
it, a candidate's the median over patients, never a mean over pixels, of which 95 % and more are background.

    name            of which it is                                        source
    cmr_nhd         overlap with the prediction on a disturbed image      Talks et al., ECCV 2026
    cmr_ei          the same, each pixel by its confidence in both        the same
    pairwise        Dice between the predictions of all passes            Zenk et al., MedIA 2025
    mixval          the class of the larger part of a mixture of images   Hu et al., NeurIPS 2023
    ensv            Dice with the vote of all candidates                  Hu et al., NeurIPS 2024
    sdc             soft Dice of a prediction with itself                 arXiv 2402.10665
    sdc_calibrated  the same, with the source's temperatures              Li et al., MICCAI 2022
    bnm             nuclear norm of the probabilities                     Cui et al., CVPR 2020
    prior_kl        KL of the predicted sizes to the prior, negative      Bateson et al., MedIA 2022
    size            predicted size within the prior's range               the same
    edge            steepness of the image at a border, by that around it
    contrast        grey levels on both sides of a border
    one_piece       share of the largest piece
    no_holes        share of a filled class that was not a hole
    continuity      Dice between neighbouring slices
    source          Dice with the source network's prediction
    refresh         the same, with batch normalisation refreshed
    entropy         mean entropy, negative                                shown, never trusted
    infomax         entropy of the mean less mean entropy                 shown, never trusted
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from metrics import dice
from nets.probabilities import EPS
from selection.measuring import CLEAN
from selection.views import VIEWS
from utils import Registry

VALIDATORS = Registry("validator")
PASSES = (CLEAN, *VIEWS)


@dataclass(frozen=True)
class Evidence:
    """What was measured of C candidates on the images of P patients, K classes.

    sums        of `measuring`, by patient: each (C, P, *)
    masks       of each candidate, the class numbers of each of N images
    rows        of each patient, the places of its images among the N, in the order of their slices
    expected    (P, K) whether the class is expected in the patient: tags say so, or nothing says otherwise
    prior       (P, K) share of the patient's pixels that the class has by the prior; NaN where there is none
    pool        (C,) which candidates vote
    source, refresh   the places of these two candidates; None where there is none
    """

    sums: Mapping[str, np.ndarray]
    masks: Sequence[Sequence[np.ndarray]]
    rows: Sequence[Sequence[int]]
    expected: np.ndarray
    prior: np.ndarray
    pool: np.ndarray
    source: int
    refresh: int | None = None

    @property
    def n_class(self) -> int:
        return self.expected.shape[1]

    @cached_property
    def shares(self) -> np.ndarray:
        """(C, P, K) share of the patient's pixels that is predicted to be of the class."""
        return self.sums["size"] / self.sums["size"].sum(2, keepdims=True)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, element by element, of any shape; NaN where there is no whole."""
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole > 0)


def mean_of(values: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of several arrays of one shape, element by element, NaN left out; NaN where all of them are."""
    stacked = np.stack([*values])
    known = ~np.isnan(stacked)
    return ratio(np.where(known, stacked, 0).sum(0), known.sum(0))


def nothing(seen: Evidence) -> np.ndarray:
    """(C, P, K) scores that say nothing: NaN."""
    return np.full(seen.sums["size"].shape, np.nan)


def middle(values: np.ndarray) -> np.ndarray:
    """(C, P, …) -> (C, …): the median over the patients that have a value; NaN where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the median of nothing
        return np.nanmedian(values, axis=1)


def overlap(seen: Evidence, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """(C, P, K) pixels that two passes both give a class, and that either does."""
    both = seen.sums[f"both_{first}_{second}"]
    return both, seen.sums[f"size_{first}"] + seen.sums[f"size_{second}"] - both


@VALIDATORS.register()
def cmr_nhd(seen: Evidence) -> np.ndarray:
    """(C, P, K): intersection over union with the prediction on a disturbed image, mean over the views."""
    return mean_of(ratio(*overlap(seen, CLEAN, view)) for view in VIEWS)


@VALIDATORS.register()
def cmr_ei(seen: Evidence) -> np.ndarray:
    """(C, P, K): Σ √(p q) over the pixels that both give the class, by those that either does; mean over the views."""
    return mean_of(ratio(seen.sums[f"joint_{view}"], overlap(seen, CLEAN, view)[1]) for view in VIEWS)


@VALIDATORS.register()
def pairwise(seen: Evidence) -> np.ndarray:
    """(C, P, K): mean Dice of every two passes."""
    pairs = [(one, two) for place, one in enumerate(PASSES) for two in PASSES[place + 1 :]]
    return mean_of(
        dice(seen.sums[f"both_{one}_{two}"], seen.sums[f"size_{one}"], seen.sums[f"size_{two}"]) for one, two in pairs
    )


@VALIDATORS.register()
def mixval(seen: Evidence) -> np.ndarray:
    """(C, P, K): share of the pixels of a mixture with the class of its larger part.

    Pixels where both parts agree, and those where they do not, count half each.
    """
    return mean_of(ratio(seen.sums[f"{part}_hit"], seen.sums[part]) for part in ("intra", "inter"))


@VALIDATORS.register()
def ensv(seen: Evidence) -> np.ndarray:
    """(C, P, K): Dice with the class that most candidates of the pool give each pixel."""
    voters = np.flatnonzero(seen.pool)

    def vote(row: int) -> np.ndarray:
        maps = [seen.masks[c][row] for c in voters]
        counts = [sum((one == k).astype(np.uint16) for one in maps) for k in range(seen.n_class)]
        return np.argmax(counts, axis=0)

    return dice_with(seen, vote) if len(voters) else nothing(seen)


def dice_with(seen: Evidence, reference: Callable[[int], np.ndarray]) -> np.ndarray:
    """(C, P, K) Dice of every candidate's masks with a mask that is asked for by the image's place."""
    own_sizes = seen.sums["size"]
    both, sizes = np.zeros(own_sizes.shape), np.zeros(own_sizes.shape[1:])
    for patient, rows in enumerate(seen.rows):
        for row in rows:
            other = reference(row)
            sizes[patient] += np.bincount(other.ravel(), minlength=seen.n_class)
            for c, masks in enumerate(seen.masks):
                own = masks[row]
                both[c, patient] += np.bincount(own[own == other], minlength=seen.n_class)
    return dice(both, own_sizes, sizes)


@VALIDATORS.register()
def source(seen: Evidence) -> np.ndarray:
    """(C, P, K): Dice with the source network."""
    return dice_with(seen, lambda row: seen.masks[seen.source][row])


@VALIDATORS.register()
def refresh(seen: Evidence) -> np.ndarray:
    """(C, P, K): Dice with the source network whose batch normalisation was refreshed."""
    if seen.refresh is None:
        return nothing(seen)
    return dice_with(seen, lambda row: seen.masks[seen.refresh][row])


@VALIDATORS.register()
def sdc(seen: Evidence) -> np.ndarray:
    """(C, P, K): 2 Σ p_k 1[ŷ=k] / (Σ p_k + Σ 1[ŷ=k])."""
    return ratio(2 * seen.sums["sure"], seen.sums["soft"] + seen.sums["size"])


@VALIDATORS.register()
def sdc_calibrated(seen: Evidence) -> np.ndarray:
    """(C, P, K): as sdc, of probabilities at the source's temperatures; NaN where the source tells none."""
    if "sure_t" not in seen.sums:
        return nothing(seen)
    return ratio(2 * seen.sums["sure_t"], seen.sums["soft_t"] + seen.sums["size"])


@VALIDATORS.register()
def bnm(seen: Evidence) -> np.ndarray:
    """(C, P, K), the same for every class: nuclear norm of the probabilities, pixels balanced by predicted class.

    1 is the most: every class predicted, and each without doubt.
    """
    n_class = seen.n_class
    grams = [seen.sums[f"gram_{k}"] / np.maximum(_sampled(seen, k), 1)[..., None] for k in range(n_class)]
    matrix = np.sum(grams, axis=0).reshape(*seen.sums["size"].shape[:2], n_class, n_class)
    known = np.isfinite(matrix).all((2, 3))  # eigvalsh gives up on all where one is not
    squares = np.linalg.eigvalsh(np.where(known[..., None, None], matrix, 0)).clip(0)
    norm = np.where(known, np.sqrt(squares).sum(2) / n_class, np.nan)
    return np.repeat(norm[..., None], n_class, 2)


def _sampled(seen: Evidence, k: int) -> np.ndarray:
    """(C, P) how many pixels of the class were sampled: the sum of p_i p_j over all i and j is 1 for each."""
    return seen.sums[f"gram_{k}"].sum(2)


@VALIDATORS.register()
def prior_kl(seen: Evidence) -> np.ndarray:
    """(C, P, K), the same for every class: -KL of the predicted shares to the prior's."""
    terms = seen.shares * (np.log(seen.shares + EPS) - np.log(seen.prior + EPS))
    return np.repeat(-terms.sum(2)[..., None], seen.n_class, 2)


@VALIDATORS.register()
def size(seen: Evidence) -> np.ndarray:
    """(C, P, K): −|log(τ̂_k / τ_k)|, how many times too large or too small the class is by the prior."""
    return -np.abs(np.log(seen.shares + EPS) - np.log(seen.prior + EPS))


@VALIDATORS.register()
def entropy(seen: Evidence) -> np.ndarray:
    """(C, P, K), the same for every class: −mean entropy of the pixels; an empty mask has the best there is."""
    mean = seen.sums["entropy"].sum(2) / seen.sums["size"].sum(2)
    return np.repeat(-mean[..., None], seen.n_class, 2)


@VALIDATORS.register()
def infomax(seen: Evidence) -> np.ndarray:
    """(C, P, K), the same for every class: entropy of the mean prediction, less the mean entropy."""
    mean = seen.sums["soft"] / seen.sums["soft"].sum(2, keepdims=True)
    diversity = -(mean * np.log(mean + EPS)).sum(2)
    return diversity[..., None] + entropy(seen)


@VALIDATORS.register()
def edge(seen: Evidence) -> np.ndarray:
    """(C, P, K): mean steepness of the image at the border of the class, by that in the band around the border."""
    return ratio(_mean(seen, "edge"), _mean(seen, "near"))


@VALIDATORS.register()
def contrast(seen: Evidence) -> np.ndarray:
    """(C, P, K): |μ_in - μ_out| / √(σ²_in + σ²_out) of the grey levels on the two sides of the border."""
    inner, outer = _mean(seen, "in"), _mean(seen, "out")
    variance = _mean(seen, "in", 2) - inner**2 + _mean(seen, "out", 2) - outer**2
    return np.abs(inner - outer) / np.sqrt(variance.clip(EPS))


def _mean(seen: Evidence, name: str, power: int = 1) -> np.ndarray:
    return ratio(seen.sums[f"{name}_{power}"], seen.sums[f"{name}_n"])


# ------------------------------------------------------------------------------------------ shapes of masks

WITHIN_SLICES = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))  # what touches what


def _of_masks(seen: Evidence, score: Callable[[np.ndarray], float]) -> np.ndarray:
    """(C, P, K): a score of the zeros and ones (D, W, H) of each patient and class; NaN for the background.

    Slices are stacked. Where a patient has several volumes, the score is their mean.
    """
    found = nothing(seen)
    for c, masks in enumerate(seen.masks):
        for patient, rows in enumerate(seen.rows):
            parts = [masks[row] for row in rows]
            volumes = parts if parts[0].ndim == 3 else [np.stack(parts)]
            for k in range(1, seen.n_class):
                of_k = (_cut_out(volume == k) for volume in volumes)
                found[c, patient, k] = mean_of(np.array(score(mask) if mask.size else np.nan) for mask in of_k)
    return found


def _cut_out(mask: np.ndarray) -> np.ndarray:
    """The mask (D, W, H), of each slice the smallest part that holds all ones; of size 0 if there is none."""
    boxes = ndimage.find_objects(mask.any(0).astype(np.uint8))
    return mask[:, *boxes[0]] if boxes else mask[:0]


@VALIDATORS.register()
def one_piece(seen: Evidence) -> np.ndarray:
    """(C, P, K): share of the class's voxels that lies in its largest piece; voxels of a piece touch by their faces."""

    def share(mask: np.ndarray) -> float:
        pieces, _ = ndimage.label(mask)
        return float(np.bincount(pieces.ravel())[1:].max() / mask.sum())

    return _of_masks(seen, share)


@VALIDATORS.register()
def no_holes(seen: Evidence) -> np.ndarray:
    """(C, P, K): the class's voxels by those of the class with its holes filled, slice by slice."""

    def share(mask: np.ndarray) -> float:
        around = ((0, 0), (1, 1), (1, 1))
        pieces, _ = ndimage.label(~np.pad(mask, around), WITHIN_SLICES)
        return float(mask.sum() / (pieces != pieces[:, :1, :1]).sum())

    return _of_masks(seen, share)


@VALIDATORS.register()
def continuity(seen: Evidence) -> np.ndarray:
    """(C, P, K): Dice between each slice and the next, over all of the volume; NaN for a single slice."""

    def with_next(mask: np.ndarray) -> float:
        both, total = (mask[1:] & mask[:-1]).sum(), mask[1:].sum() + mask[:-1].sum()
        return float(2 * both / total) if total else np.nan

    return _of_masks(seen, with_next)
