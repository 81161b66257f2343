"""Scores of a segmentation: overlap, surface distances and volume, per patient, per class, in 3D.

Pure functions of arrays. `spacing` is always asked for, one length per axis and in the order of the axes; the
distances come in its unit (mm if it is in mm, voxels if it is all ones).

What happens when a structure is missing, for every score and in this one place:

| truth   | prediction | Dice          | HD95, ASSD, MASD                               | NSD | counted as      |
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

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

SCORES = ("dice", "hd95", "assd", "masd", "nsd", "volume_error")
SHOWN = 1e-3  # of a Dice or an IoU: the last digit that a table shows, below which two are the same
DISTANCES = ("hd95", "assd", "masd")  # the scores whose missing values have a penalty
BOUNDS = dict.fromkeys(("dice", "iou", "nsd"), (0.0, 1.0)) | {"volume_error": (-1.0, math.inf)}  # others: from 0
CHUNK = 2**16  # sums of squares at a time: what a processor's cache holds
SUMS_A_VOXEL = 1500  # that take as long, at 1 ns each, as finding one voxel's neighbour in a tree


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
        check_labels(name, labels, n_class)
    masks = [(prediction == k, truth == k) for k in range(n_class)]
    counts = [[np.count_nonzero(p & t), np.count_nonzero(p), np.count_nonzero(t)] for p, t in masks]
    intersection, predicted, true = np.array(counts, np.int64).T
    return intersection, predicted, true


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


def check_labels(name: str, labels: NDArray[Any], n_class: int) -> None:
    """Raises ValueError if the array of this name, of any shape, does not hold class numbers 0..K-1."""
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

    The distances of a direction stand in no order. An empty mask has no voxel to start from (an empty array) and
    lies infinitely far from the other.
    """

    prediction_to_truth: NDArray[np.float64]
    truth_to_prediction: NDArray[np.float64]

    @property
    def pooled(self) -> NDArray[np.float64]:
        """(N,) the distances of both directions in one array, so that the larger surface weighs more."""
        return np.concatenate([self.prediction_to_truth, self.truth_to_prediction])

    @property
    def defined(self) -> bool:
        """Whether both masks have a surface."""
        return self.prediction_to_truth.size > 0 and self.truth_to_prediction.size > 0


def surface_distances(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]
) -> SurfaceDistances:
    """The distances between the surfaces of two boolean masks of one shape, in 2D or 3D, both directions.

    Raises ValueError if a mask is not boolean or not of two or three axes, the shapes differ, or the spacing is not
    one positive length per axis.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    _check_shapes(prediction, truth)
    if prediction.ndim not in (2, 3):
        raise ValueError(f"Surfaces are those of masks (W,H) or (S,W,H); these have the shape {prediction.shape}.")
    for mask in (prediction, truth):
        if mask.dtype != bool:
            raise ValueError(f"Surfaces are those of boolean masks (labels == k); this one is {mask.dtype}.")
    step = np.append(np.ones(3 - prediction.ndim), checked_spacing(spacing, prediction.shape))
    first, second = _surface(prediction), _surface(truth)
    return SurfaceDistances(_nearest(first, second, step), _nearest(second, first, step))


def checked_spacing(spacing: Sequence[float], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The spacing as an array (n,). Raises ValueError if it is not one positive length for each of the n axes."""
    step = np.atleast_1d(np.asarray(spacing, dtype=np.float64))
    if step.shape != (len(shape),):
        raise ValueError(f"The spacing {spacing} must have one length per axis of the shape {shape}.")
    if not (np.isfinite(step).all() and (step > 0).all()):
        raise ValueError(f"The spacing {spacing} of the shape {shape} must be positive and finite.")
    return step


@dataclass(frozen=True)
class _Surface:
    """The surface voxels of a mask, cut out of the box around it; three axes, of a plane mask the first is 1 long."""

    voxels: NDArray[np.bool_]
    origin: NDArray[np.int64]  # (3,) where the box begins

    @cached_property
    def count(self) -> int:
        return int(np.count_nonzero(self.voxels))

    @cached_property
    def slabs(self) -> list[NDArray[np.int64]]:
        """Per axis, the numbers of the planes across it that hold a voxel."""
        return [np.flatnonzero(self.voxels.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]

    def turned(self, order: NDArray[np.int64]) -> "_Surface":
        """This surface with its axes in this order."""
        return _Surface(self.voxels.transpose(order), self.origin[order])

    def places(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 3) the centres of the voxels, in the unit of the spacing."""
        return (np.stack(_indices(self.voxels), 1) + self.origin) * step


def _indices(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    # ten times as fast as np.nonzero where few voxels are true
    return np.unravel_index(np.flatnonzero(mask), mask.shape)


def _surface(mask: NDArray[np.bool_]) -> _Surface:
    """The voxels of the mask, (W,H) or (S,W,H), with a face neighbour outside it, or outside the array."""
    planes = [np.flatnonzero(mask.any(axis=tuple({*range(mask.ndim)} - {axis}))) for axis in range(mask.ndim)]
    box = [slice(hit[0], hit[-1] + 1) if hit.size else slice(0, 0) for hit in planes]
    mask = mask[tuple(box)]
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis, size in enumerate(mask.shape):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + size)
            inside &= padded[tuple(window)]
    missing = 3 - mask.ndim
    voxels = (mask & ~inside).reshape((1,) * missing + mask.shape)
    return _Surface(voxels, np.array([0] * missing + [side.start for side in box]))


def _nearest(start: _Surface, goal: _Surface, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each voxel of one surface to the nearest of the other, in no order; infinite where there is no other."""
    if not (start.count and goal.count):
        return np.full(start.count, np.inf)
    short, middle, long = np.argsort([len(slabs) for slabs in goal.slabs])  # the longest costs least as the first
    sums = len(start.slabs[long]) * len(start.slabs[short]) * len(goal.slabs[short]) * len(goal.slabs[middle])
    # Planes hold for surfaces close and far, and for a class that floods the volume. Only strays all over a large
    # volume leave most of these sums without use; a tree in turn would take a hundred times longer for a voxel
    # that lies nearly as far from all of the goal.
    if sums > SUMS_A_VOXEL * (start.count + goal.count):
        return _nearest_by_tree(start, goal, step)
    order = np.array([long, short, middle])
    return _nearest_by_planes(start.turned(order), goal.turned(order), step[order])


def _nearest_by_tree(start: _Surface, goal: _Surface, step: NDArray[np.float64]) -> NDArray[np.float64]:
    # A tree for one query is not worth balancing; large leaves help where much of the goal is nearly as far.
    tree = cKDTree(goal.places(step), leafsize=64, balanced_tree=False, compact_nodes=False)
    return tree.query(start.places(step))[0]


def _nearest_by_planes(start: _Surface, goal: _Surface, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exact distance transform of the goal, axis after axis, as the squares of the axes add up.

    Along the first axis for the planes of the start alone, along the second for its rows, along the third for its
    voxels; rows and columns of the goal that hold nothing are left out. Felzenszwalb and Huttenlocher 2012 with the
    least of all parabolas in place of their envelope: the same squares, without a loop over voxels.
    """
    _, rows, columns = goal.slabs
    along = _along_first(goal.voxels.take(rows, 1).take(columns, 2))  # a' b' c', the dashes for the goal
    away = start.origin - goal.origin
    third = ((np.arange(start.voxels.shape[2])[:, None] + away[2] - columns) * step[2]) ** 2  # c c'
    planes, found = start.slabs[0], []
    n_plane, n_voxel = max(1, CHUNK // (start.voxels.shape[1] * len(columns))), max(1, CHUNK // len(columns))
    for block in np.split(planes, range(n_plane, len(planes), n_plane)):
        there = block + away[0]
        inside = there.clip(0, len(along) - 1)  # beyond the ends of the goal, the nearest is that of the end
        first = ((along[inside] + abs(there - inside)[:, None, None]) * step[0]) ** 2  # a b' c'
        voxels = start.voxels[block]
        hit = np.flatnonzero(voxels.any(axis=(0, 2)))
        second = ((hit[:, None] + away[1] - rows) * step[1]) ** 2  # b b'
        squares = _least_sums(first, second).reshape(-1, len(columns))  # ab c'
        line, c = np.divmod(np.flatnonzero(voxels[:, hit]), voxels.shape[2])
        for part in np.split(np.arange(len(c)), range(n_voxel, len(c), n_voxel)):
            found.append((squares.take(line[part], 0) + third.take(c[part], 0)).min(axis=1))
    return np.sqrt(np.concatenate(found))


def _along_first(goal: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Steps along the first axis to the nearest true voxel of the column, infinite where there is none."""
    found = np.where(goal, np.float32(0), np.float32(np.inf))
    for way in (found, found[::-1]):
        for before, plane in itertools.pairwise(way):
            np.minimum(plane, before + 1, out=plane)
    return found


def _least_sums(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(A, B', C') and (B, B') -> (A, B, C'): the least of first + second over B'."""
    least = np.full((first.shape[0], second.shape[0], first.shape[2]), np.inf)
    sums = np.empty_like(least)
    for j in range(first.shape[1]):
        np.add(first[:, j, None], second[:, j, None], out=sums)
        np.minimum(least, sums, out=least)
    return least


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
    """Average symmetric surface distance: the mean of the distances of both directions pooled; NaN if a mask is empty.

    Heimann et al., IEEE TMI 2009; Metrics Reloaded (Maier-Hein, Reinke et al., Nature Methods 2024); MedPy from 0.5 on;
    MONAI with `symmetric=True`. The larger surface weighs more, so that strays count as they are many.
    """
    return float(distances.pooled.mean()) if distances.defined else math.nan


def masd(distances: SurfaceDistances) -> float:
    """Mean average surface distance: the mean of the two directed means; NaN if a mask is empty.

    The name is that of Metrics Reloaded. MedPy before 0.5, and with it the metrics file that the published codes carry,
    call this one ASSD. The two agree where both surfaces have as many voxels.
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
    within = np.isfinite(pooled) & (pooled <= tolerance * (1 + 1e-9))  # to a surface that is not there it is infinite
    return float(within.mean()) if pooled.size else math.nan


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

    Returns rows with `class`, `outcome`, `dice`, `hd95`, `assd`, `masd`, `nsd`, `volume_error`, `predicted` and
    `true` (voxels), and `diagonal` (of the whole volume, in the unit of the spacing). Raises ValueError as
    `confusion_counts` and `surface_distances` do.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    counts = confusion_counts(prediction, truth, n_class)
    overlap, error = dice(*counts), relative_volume_error(*counts[1:])
    diagonal = float(np.linalg.norm(checked_spacing(spacing, truth.shape) * truth.shape))
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
                "masd": masd(distances),
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

    `patients` maps a name to (prediction, truth, spacing), asked for one by one. With `jobs` above one the patients
    are shared out to as many threads; the rows are the same. Raises ValueError that names the patient.
    """
    tasks = [(name, patients, n_class, tolerance) for name in patients]
    if min(jobs, len(tasks)) <= 1:
        scored = map(_score_named, tasks)
        return [row for rows in scored for row in rows]
    # Threads, as numpy and the tree let go of the interpreter: nothing to start, nothing to copy.
    with ThreadPoolExecutor(min(jobs, len(tasks))) as pool:
        return [row for rows in pool.map(_score_named, tasks) for row in rows]


def _score_named(task: tuple[Any, ...]) -> list[dict[str, Any]]:
    name, patients, n_class, tolerance = task
    prediction, truth, spacing = patients[name]
    try:
        rows = score_patient(prediction, truth, n_class, spacing, tolerance)
    except ValueError as error:
        raise ValueError(f"Patient '{name}': {error}") from error
    return [{"patient": name, **row} for row in rows]


# -------------------------------------------------------------------------------------------------- tables


def average_classes(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per patient: the mean over its classes of each score, NaN left out (NaN if nothing is left).

    The means of the distances stand once more with the penalties in, as `hd95_penalised` and
    the like; `misses` and `false_structures` are counted over the classes. `summarise` takes these rows
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
