"""Slices put together to the volume that they are from: each plane lies at its number, so a gap stays a gap."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from utils import doubled, listing

EMPTY = 16  # empty planes for each slice, at most: beyond that the numbers of a patient are none of planes
COUNTED = ("patient", "class", "outcome", "dice", "volume_error", "predicted", "true")  # scores that need no distance


def are_places(numbers: Sequence[int]) -> bool:
    """Whether these numbers of one patient's slices can say where its planes lie: each once, and not far apart."""
    return len(set(numbers)) == len(numbers) and max(numbers) - min(numbers) < (EMPTY + 1) * len(numbers)


def stack(planes: Sequence[np.ndarray], numbers: Sequence[int]) -> np.ndarray:
    """(D, W, H) of the planes (W, H) at their numbers, zeros where a number lacks; one after another if they are none.

    numbers: in ascending order
    """
    first, last = numbers[0], numbers[-1]
    if last - first + 1 == len(planes) or not are_places(numbers):
        return np.stack(planes)
    volume = np.zeros((last - first + 1, *planes[0].shape), planes[0].dtype)
    volume[np.array(numbers) - first] = planes
    return volume


def numbers_of(patients: Sequence[str], numbers: Sequence[int]) -> dict[str, list[int]]:
    """The numbers of each patient's slices."""
    found: dict[str, list[int]] = {}
    for patient, number in zip(patients, numbers, strict=True):
        found.setdefault(patient, []).append(number)
    return found


def gaps(numbers: Sequence[int]) -> list[int]:
    """The numbers that lack between the first and the last."""
    return sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))


def placeless(patients: Mapping[str, Sequence[int]]) -> list[str]:
    """The patients whose slices have numbers that are no places."""
    return [patient for patient, numbers in patients.items() if not are_places(numbers)]


def about_placeless(patients: Mapping[str, Sequence[int]]) -> str:
    """One line on them; '' if there are none."""
    lost = placeless(patients)
    if not lost:
        return ""
    shown = [f"{patient} ({listing(doubled(patients[patient]) or patients[patient], 4)})" for patient in lost]
    return (
        f"The slices of {len(lost)} of {len(patients)} patients have no numbers of planes, each once and close "
        f"together (see --grp_regex), so no distance is measured there: {listing(shown, 6)}."
    )


def without_distances(rows: Iterable[Mapping[str, Any]], patients: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of scores, those of these patients with NaN for all that depends on where planes lie."""
    chosen = set(patients)
    return [
        {key: np.nan if row["patient"] in chosen and key not in COUNTED else value for key, value in row.items()}
        for row in rows
    ]
