"""Scores of a segmentation: overlap, surface distances and volume, per patient, per class, in 3D.

Pure functions of arrays. `spacing` is always asked for, one length per axis and in the order of the axes; the
distances come in its unit (mm if it is in mm, voxels if it is all ones).

What happens when a structure is missing, for every score and in this one place:

| truth   | prediction | Dice          | HD95, ASSD                                     | NSD | counted as      |
|---------|------------|---------------|------------------------------------------------|-----|-----------------|
| present | present    | value         | value                                          | value | hit           |
| present | empty      | 0             | NaN; the volume diagonal in the penalised mean | 0   | miss            |
| absent  | present    | 0             | NaN; likewise                                  | 0   | false structure |
| absent  | absent     | NaN, left out | NaN                                            | NaN | true absence    |

The relative volume error is -1 for a miss and NaN, as nothing can be divided by, where the truth is absent.

A surface is made of voxels: those of the mask that share a face with a voxel outside it, and everything beyond
the border of the array counts as outside. Distances go from voxel centre to voxel centre, all surface voxels
weigh the same. MedPy and MONAI (without `use_subvoxels`) share this definition; DeepMind's surface-distance
does not (it weighs surface elements by their area).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

SCORES = ("dice", "hd95", "assd", "nsd", "volume_error")
DISTANCES = ("hd95", "assd")  # the scores whose missing values have a penalty


class Outcome(StrEnum):
    """The four cases of the table above."""

    HIT = "hit"
    MISS = "miss"
    FALSE_STRUCTURE = "false structure"
    TRUE_ABSENCE = "true absence"

    @classmethod
    def of(cls, predicted: int, true: int) -> "Outcome":
        """The case that these two numbers of voxels make."""
        if true:
            return cls.HIT if predicted else cls.MISS
        return cls.FALSE_STRUCTURE if predicted else cls.TRUE_ABSENCE


# ------------------------------------------------------------------------------------------------ counting


def confusion_counts(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], n_class: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Voxels per class where both label maps agree, in the prediction, and in the truth: three arrays (K,).

    The label maps have one shape, whichever, and hold 0..K-1. Raises ValueError if they do not.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    _check_shapes(prediction, truth)
    for name, labels in (("prediction", prediction), ("truth", truth)):
        _check_labels(name, labels, n_class)
    pairs = truth.ravel().astype(np.int64) * n_class + prediction.ravel().astype(np.int64)
    table = np.bincount(pairs, minlength=n_class**2).reshape(n_class, n_class)  # truth by prediction
    return table.diagonal().copy(), table.sum(axis=0), table.sum(axis=1)


def dice(intersection: ArrayLike, predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """2 I / (P + T), element by element, of voxel counts of any shape; NaN where P = T = 0."""
    return _ratio(2 * np.asarray(intersection), np.asarray(predicted) + np.asarray(true))


def relative_volume_error(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """(P - T) / T, element by element: -1 for a miss, 0.5 for half as much again; NaN where T = 0."""
    true = np.asarray(true)
    return _ratio(np.asarray(predicted) - true, true)


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    nowhere = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=nowhere, where=denominator != 0)


def _check_shapes(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"Prediction and truth differ in shape: {prediction.shape} and {truth.shape}.")


def _check_labels(name: str, labels: NDArray[Any], n_class: int) -> None:
    if labels.dtype.kind not in "biu":
        raise ValueError(f"The {name} must hold class numbers 0..{n_class - 1}; its type is {labels.dtype}.")
    if labels.size and not (labels.min() >= 0 and labels.max() < n_class):
        raise ValueError(
            f"The {name} must hold class numbers 0..{n_class - 1}; it holds {labels.min()}..{labels.max()}."
        )


# ------------------------------------------------------------------------------------------------ surfaces


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest surface voxel of the other, in the unit of the spacing.

    An empty mask has no voxel to start from (an empty array) and lies infinitely far from the other.
    """

    prediction_to_truth: NDArray[np.float64]
    truth_to_prediction: NDArray[np.float64]

    @property
    def pooled(self) -> NDArray[np.float64]:
        """Both directions in one array, so that the larger surface weighs more."""
        return np.concatenate([self.prediction_to_truth, self.truth_to_prediction])

    @property
    def defined(self) -> bool:
        """Whether both masks have a surface."""
        return self.prediction_to_truth.size > 0 and self.truth_to_prediction.size > 0


def surface_distances(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]
) -> SurfaceDistances:
    """The distances between the surfaces of two boolean masks of one shape, in 2D or 3D, both directions.

    Raises ValueError if a mask is not boolean, the shapes differ, or the spacing is not one positive length per
    axis.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    _check_shapes(prediction, truth)
    for mask in (prediction, truth):
        if mask.dtype != bool:
            raise ValueError(f"Surfaces are those of boolean masks (labels == k); this one is {mask.dtype}.")
    step = _checked_spacing(spacing, prediction.shape)
    box = _bounding_box(prediction | truth)
    prediction, truth = _surface(prediction[box]), _surface(truth[box])
    # The distance transform costs the same per voxel of the box, the tree per voxel of the surfaces. The tree
    # is far ahead where the surfaces are a small part of the box (strays blow the box up), and far behind on
    # the noise of an untrained network; they cross where about one voxel in twelve is on a surface.
    sparse = 12 * (np.count_nonzero(prediction) + np.count_nonzero(truth)) < prediction.size
    nearest = _nearest_by_tree if sparse else _nearest_by_transform
    return SurfaceDistances(nearest(prediction, truth, step), nearest(truth, prediction, step))


def _checked_spacing(spacing: Sequence[float], shape: tuple[int, ...]) -> NDArray[np.float64]:
    step = np.atleast_1d(np.asarray(spacing, dtype=np.float64))
    if step.shape != (len(shape),):
        raise ValueError(f"The spacing {spacing} must have one length per axis of the shape {shape}.")
    if not (np.isfinite(step).all() and (step > 0).all()):
        raise ValueError(f"The spacing {spacing} of the shape {shape} must be positive and finite.")
    return step


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around the mask; an empty one if the mask is."""
    sides = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        sides.append(slice(hit[0], hit[-1] + 1) if hit.size else slice(0, 0))
    return tuple(sides)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of the mask with a face neighbour outside it, or outside the array."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis, size in enumerate(mask.shape):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + size)
            inside &= padded[tuple(window)]
    return mask & ~inside


def _nearest_by_transform(
    start: NDArray[np.bool_], goal: NDArray[np.bool_], step: NDArray[np.float64]
) -> NDArray[np.float64]:
    if not goal.any():  # the transform would measure to the corner of the array
        return np.full(np.count_nonzero(start), np.inf)
    return distance_transform_edt(~goal, sampling=step)[start]


def _nearest_by_tree(
    start: NDArray[np.bool_], goal: NDArray[np.bool_], step: NDArray[np.float64]
) -> NDArray[np.float64]:
    # A tree for one query is not worth balancing. Without a goal, the distances are infinite.
    tree = cKDTree(np.argwhere(goal) * step, balanced_tree=False, compact_nodes=False)
    return tree.query(np.argwhere(start) * step)[0]


def hausdorff_95(distances: SurfaceDistances) -> float:
    """The larger of the two directed 95th percentiles (MONAI's convention, DeepMind's but for the weights).

    Percentiles interpolate linearly between the sorted distances. NaN if a mask is empty.
    """
    if not distances.defined:
        return math.nan
    directed = (distances.prediction_to_truth, distances.truth_to_prediction)
    return float(max(np.percentile(each, 95) for each in directed))


def hausdorff_95_pooled(distances: SurfaceDistances) -> float:
    """The 95th percentile of both directions pooled (MedPy's convention); NaN if a mask is empty.

    Where one surface is small or one direction good, it can lie millimetres below `hausdorff_95`.
    """
    return float(np.percentile(distances.pooled, 95)) if distances.defined else math.nan


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance: the mean of the two directed means; NaN if a mask is empty.

    So did MedPy before 0.5, and with it the metrics file that the published codes carry. MedPy from 0.5 on and
    MONAI with `symmetric=True` pool instead, which is `distances.pooled.mean()`; the two agree where
    both surfaces have as many voxels.
    """
    if not distances.defined:
        return math.nan
    return float((distances.prediction_to_truth.mean() + distances.truth_to_prediction.mean()) / 2)


def nsd(distances: SurfaceDistances, tolerance: float) -> float:
    """Normalised surface distance: the share of the surface voxels of both masks within the tolerance.

    0 if one mask is empty, NaN if both are. The tolerance has the unit of the spacing and is met by equality:
    distances on a grid often equal it, so the last bits of rounding must not decide.
    Nikolov et al., arXiv 1809.04430, with voxels in place of area elements (as MONAI without `use_subvoxels`).
    """
    if not tolerance >= 0:
        raise ValueError(f"The tolerance must be zero or positive; it is {tolerance}.")
    pooled = distances.pooled
    return float((pooled <= tolerance * (1 + 1e-9)).mean()) if pooled.size else math.nan


# ------------------------------------------------------------------------------------------------ patients


def score_patient(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    n_class: int,
    spacing: Sequence[float],
    tolerance: float,
) -> list[dict[str, Any]]:
    """All scores of one patient's volume: one row for each of the classes 1..K-1, the background left out.

    Parameters
    ----------
    prediction, truth: class numbers (S,W,H), S being the number of slices
    n_class: K
    spacing: between slices, then along W and H
    tolerance: of the NSD, in the unit of the spacing

    Returns rows with `class`, `outcome`, `dice`, `hd95`, `assd`, `nsd`, `volume_error`, `predicted` and `true`
    (voxels), and `diagonal` (of the whole volume, in the unit of the spacing). Raises ValueError as
    `confusion_counts` and `surface_distances` do.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    counts = confusion_counts(prediction, truth, n_class)
    overlap, error = dice(*counts), relative_volume_error(*counts[1:])
    diagonal = float(np.linalg.norm(_checked_spacing(spacing, truth.shape) * truth.shape))
    rows = []
    for k in range(1, n_class):
        distances = surface_distances(prediction == k, truth == k, spacing)
        predicted, true = int(counts[1][k]), int(counts[2][k])
        rows.append(
            {
                "class": k,
                "outcome": Outcome.of(predicted, true),
                "dice": float(overlap[k]),
                "hd95": hausdorff_95(distances),
                "assd": assd(distances),
                "nsd": nsd(distances, tolerance),
                "volume_error": float(error[k]),
                "predicted": predicted,
                "true": true,
                "diagonal": diagonal,
            }
        )
    return rows


def score_patients(
    patients: Mapping[str, tuple[NDArray[np.integer], NDArray[np.integer], Sequence[float]]],
    n_class: int,
    tolerance: float,
    jobs: int,
) -> list[dict[str, Any]]:
    """The rows of `score_patient` for every patient, `patient` first in each, in the order of the mapping.

    `patients` maps a name to (prediction, truth, spacing). With `jobs` above one the patients are shared out to
    as many threads; the rows are the same. Raises ValueError that names the patient.
    """
    tasks = [(name, *volumes, n_class, tolerance) for name, volumes in patients.items()]
    if min(jobs, len(tasks)) <= 1:
        scored = map(_score_named, tasks)
        return [row for rows in scored for row in rows]
    # Threads, as the tree, the transform and numpy let go of the interpreter: nothing to start, nothing to copy.
    with ThreadPoolExecutor(min(jobs, len(tasks))) as pool:
        return [row for rows in pool.map(_score_named, tasks) for row in rows]


def _score_named(task: tuple[Any, ...]) -> list[dict[str, Any]]:
    name, prediction, truth, spacing, n_class, tolerance = task
    try:
        rows = score_patient(prediction, truth, n_class, spacing, tolerance)
    except ValueError as error:
        raise ValueError(f"Patient '{name}': {error}") from error
    return [{"patient": name, **row} for row in rows]


# -------------------------------------------------------------------------------------------------- tables


def average_classes(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per patient: the mean over its classes of each score, NaN left out (NaN if nothing is left).

    The means of the distances stand once more with the penalties in, as `hd95_penalised` and
    `assd_penalised`; `misses` and `false_structures` are counted over the classes. `summarise` takes these rows
    as it takes those of one class.
    """
    patients: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    averages = []
    for name, own in patients.items():
        average: dict[str, Any] = {"patient": name, "class": "mean"}
        average |= {key: _mean(row[key] for row in own) for key in SCORES}
        average |= {f"{key}_penalised": _mean(_penalised(row, key) for row in own) for key in DISTANCES}
        average["misses"] = sum(row["outcome"] == Outcome.MISS for row in own)
        average["false_structures"] = sum(row["outcome"] == Outcome.FALSE_STRUCTURE for row in own)
        averages.append(average)
    return averages


def summarise(rows: Iterable[Mapping[str, Any]], value_key: str) -> dict[str, float]:
    """Mean over patients of one score, with what a reader needs to judge it.

    `rows` are the patients of one class, or those of `average_classes`. Returns `mean`, `sd` (with n - 1; NaN for
    fewer than two) and `n` of the values that are numbers, `misses` and `false_structures`, and
    `penalised_mean`, in which the distances of misses and false structures are the volume's diagonal; for the other
    scores, which have their value for a miss, it is the mean.
    """
    rows = list(rows)
    values = _numbers(row[value_key] for row in rows)
    return {
        "mean": _mean(values),
        "sd": float(values.std(ddof=1)) if values.size > 1 else math.nan,
        "n": values.size,
        "misses": sum(_count(row, "misses", Outcome.MISS) for row in rows),
        "false_structures": sum(_count(row, "false_structures", Outcome.FALSE_STRUCTURE) for row in rows),
        "penalised_mean": _mean(_penalised(row, value_key) for row in rows),
    }


def bootstrap_interval(
    values: Iterable[float], seed: int, level: float = 0.95, n_resample: int = 10_000
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean: the values, one a patient, drawn anew with replacement.

    NaN is left out; (NaN, NaN) for fewer than two values. With ten or twenty patients it is too narrow.
    """
    values = _numbers(values)
    if values.size < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(values.size, size=(n_resample, values.size))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _penalised(row: Mapping[str, Any], key: str) -> float:
    """The score with the volume's diagonal in place of a distance that a failure left without value."""
    if f"{key}_penalised" in row:  # an average over classes
        return row[f"{key}_penalised"]
    failed = row.get("outcome") in (Outcome.MISS, Outcome.FALSE_STRUCTURE)
    return row["diagonal"] if failed and key in DISTANCES else row[key]


def _count(row: Mapping[str, Any], key: str, outcome: Outcome) -> int:
    """How often this outcome stands behind the row: of one class, or of an average over classes."""
    return row[key] if key in row else int(row["outcome"] == outcome)


def _numbers(values: Iterable[float]) -> NDArray[np.float64]:
    values = np.array(list(values), dtype=np.float64)
    return values[~np.isnan(values)]


def _mean(values: Iterable[float]) -> float:
    values = _numbers(values)
    return float(values.mean()) if values.size else math.nan
