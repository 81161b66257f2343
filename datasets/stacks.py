"""Slices put together to the volume that they are from: each plane lies at its number, so a gap stays a gap."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from utils import counted, doubled, listing

EMPTY = 16  # empty planes for each slice, at most: beyond that the numbers of a patient are none of planes
COUNTED = ("patient", "class", "outcome", "dice", "volume_error", "predicted", "true")  # scores that need no distance


def are_places(numbers: Sequence[int]) -> bool:
    """Whether these numbers of one patient's slices can say where its planes lie: each once, and not far apart."""
    return len(set(numbers)) == len(numbers) and max(numbers) - min(numbers) < (EMPTY + 1) * len(numbers)


def stack(planes: Sequence[np.ndarray], numbers: Sequence[int]) -> np.ndarray:
    """Stacks planes (W, H) to (D, W, H) at their numbers, with zeros where a number lacks.

    The planes follow each other if the numbers are no places.

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


def constant_step(numbers: Sequence[int]) -> int:
    """The constant step by which three or more numbers go up; 1 if the step is not constant."""
    steps = {later - earlier for earlier, later in pairwise(sorted(numbers))}
    return steps.pop() if len(numbers) > 2 and len(steps) == 1 else 1


def placeless(patients: Mapping[str, Sequence[int]]) -> list[str]:
    """The patients whose slices have numbers that are no places."""
    return [patient for patient, numbers in patients.items() if not are_places(numbers)]


def about_places(
    patients: Mapping[str, Sequence[int]], contradicted: Iterable[str] = (), whole: bool = True
) -> list[str]:
    """A line each on what is to be known of distances between these slices, by the numbers of each patient's.

    contradicted: patients of whose slices manifest.csv tells other places
    whole: whether all slices of a volume should be there, so that a gap is worth a word
    """
    lost, denied, everyone = placeless(patients), sorted(contradicted), counted(len(patients), "patient")
    lines = []
    if lost:
        shown = [f"{patient} ({listing(doubled(patients[patient]) or patients[patient], 4)})" for patient in lost]
        lines.append(
            f"The slices of {len(lost)} of {everyone} have no numbers of planes, each once and close together (see "
            f"--grp_regex), so no distance is measured there: {listing(shown, 6)}."
        )
    if denied:
        lines.append(
            f"The slices of {len(denied)} of {everyone} have numbers that are not their places by manifest.csv (index, "
            f"affine), so no distance is measured there: {listing(denied, 6)}. Name them by their index (see "
            "--grp_regex), or mend the table."
        )
    placed = {patient: each for patient, each in patients.items() if patient not in {*lost, *denied}}
    return lines + (about_gaps(placed) if whole else [])


def about_gaps(patients: Mapping[str, Sequence[int]]) -> list[str]:
    """A line on slices that lack between others, and one on numbers that go up by a constant step."""
    steps = {patient: step for patient, each in patients.items() if (step := constant_step(each)) > 1}
    gapped = {patient: lost for patient, each in patients.items() if patient not in steps and (lost := gaps(each))}
    lines, everyone = [], counted(len(patients), "patient")
    if steps:
        shown = [f"{patient} (by {step})" for patient, step in steps.items()]
        lines.append(
            f"The slices of {len(steps)} of {everyone} are numbered in steps, {listing(shown, 6)}: each lies at its "
            "number, neighbours as many slice spacings apart. Where the spacing is that from one stored slice to the "
            "next, distances across slices come out as many times too large: number them 0, 1, 2, …"
        )
    if gapped:
        shown = [f"{patient} ({len(lost)}, {_longest(lost)} in a row)" for patient, lost in gapped.items()]
        lines.append(
            f"Slices lack between others in {len(gapped)} of {everyone}, {listing(shown, 6)}: each slice lies at "
            "its number, and distances keep the gaps."
        )
    return lines


def _longest(numbers: Sequence[int]) -> int:
    """The length of the longest run of ascending numbers without a gap."""
    return max(Counter(number - place for place, number in enumerate(numbers)).values())


def without_distances(rows: Iterable[Mapping[str, Any]], patients: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of scores, those of these patients with NaN for all that depends on where planes lie."""
    chosen = set(patients)
    return [
        {key: np.nan if row["patient"] in chosen and key not in COUNTED else value for key, value in row.items()}
        for row in rows
    ]
