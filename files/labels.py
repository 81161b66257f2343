"""Labels: which class number each becomes."""

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from files.faults import VolumeFault
from files.grey_levels import histogram
from processes.errors import UserError
from utils import ROUNDING, listing, whole

MAX_LABEL_RANGE = 2**20  # a wider range of values is an image that was given as a label


@dataclass(frozen=True)
class LabelMap:
    """Label -> class; labels not in `classes` have the class `others`, or none. 0 is background by default."""

    classes: dict[int, int]
    others: int | None = None

    def numbers(self) -> set[int]:
        return {0, *self.classes.values(), *(() if self.others is None else (self.others,))}

    def class_of(self, label: int) -> int | None:
        return self.classes.get(label, 0 if label == 0 else self.others)


def parse_label_map(text: str, others: int | None = None) -> LabelMap:
    """The label map of '41-50:1' or '500:3,421:2'. Raises UserError; the classes must be 0..K-1 without a gap."""
    classes: dict[int, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*:\s*(\d+)\s*", part)
        if not match:
            raise UserError(
                f"--label_map '{text}': cannot read '{part}'; write LABEL:CLASS or FIRST-LAST:CLASS, as 41-50:1,255:2."
            )
        first, last, number = int(match[1]), int(match[2] or match[1]), int(match[3])
        if not 0 <= last - first < MAX_LABEL_RANGE:
            raise UserError(f"--label_map '{text}': the labels {first}-{last} run backwards or are too many.")
        for label in range(first, last + 1):
            if classes.setdefault(label, number) != number:
                raise UserError(f"--label_map '{text}' gives label {label} two classes, {classes[label]} and {number}.")
    numbers = LabelMap(classes, others).numbers()
    if min(numbers) < 0 or max(numbers) > 255:
        raise UserError(f"--label_map '{text}': classes are 0..255, got {min(numbers)} to {max(numbers)}.")
    missing = sorted(set(range(max(numbers))) - numbers)
    if missing:
        raise UserError(f"--label_map '{text}' leaves out class {listing(missing)}: they run 0..K-1 without a gap.")
    return LabelMap(classes, others)


def map_labels(stack: np.ndarray, mapping: LabelMap | None) -> tuple[np.ndarray, list[int]]:
    """(N, W, H) labels -> (N, W, H) uint8 class numbers, and the labels that have no class.

    Without a mapping the labels are the classes. Raises ValueError if the values are no labels, see `whole_labels`.
    """
    stack = whole_labels(stack)
    mapping = mapping or LabelMap({value: value for value in range(256)})
    low, counts = histogram(stack)
    table, unknown = np.zeros(len(counts), np.uint8), []
    for place in np.flatnonzero(counts):
        number = mapping.class_of(low + int(place))
        table[place] = number or 0
        if number is None:
            unknown.append(low + int(place))
    return _look_up(table, stack, low), unknown


def _look_up(table: np.ndarray, stack: np.ndarray, low: int) -> np.ndarray:
    """(N, W, H) integers -> (N, W, H) uint8: of each its entry in the table, which begins at `low`."""
    found = np.empty_like(stack, np.uint8)
    if stack.dtype.itemsize > 1:
        for plane, out in zip(stack, found, strict=True):
            out[...] = table[plane.astype(np.int64) - low]
        return found
    by_byte = np.zeros(256, np.uint8)  # OpenCV's table, three times as fast
    by_byte[np.arange(low, low + len(table)) & 255] = table
    for plane, out in zip(stack.view(np.uint8), found, strict=True):
        lines, lines_out = (plane.T, out.T) if plane.flags.f_contiguous else (plane, out)
        lines_out[...] = cv2.LUT(lines, by_byte)
    return found


def whole_labels(stack: np.ndarray) -> np.ndarray:
    """(N, W, H) labels as integers.

    Raises ValueError that shows values if they are fractions, or their range too wide.
    """
    low, high = float(stack.min()), float(stack.max())
    if not high - low < MAX_LABEL_RANGE or max(-low, high) >= 2**62:
        raise ValueError(f"values from {low:.6g} to {high:.6g}")
    if stack.dtype.kind != "f":
        return stack
    for plane in stack:
        if whole(plane) is plane:
            odd = plane[np.abs(plane - np.rint(plane)) > ROUNDING]
            raise ValueError(f"fractions, as {odd[0]:.6g}")
    return np.rint(stack).astype(np.int64)


def classes_of(stack: np.ndarray, mapping: LabelMap | None, path: Path) -> np.ndarray:
    """(N, W, H) labels of a file -> (N, W, H) uint8 class numbers.

    Raises VolumeFault for values that are no labels, and for labels without a class.
    """
    try:
        classes, unknown = map_labels(stack, mapping)
    except ValueError as error:
        raise VolumeFault("holds no whole-number labels", f"{path} ({error})") from error
    if unknown:
        what = "has labels without a class (add them to --label_map, or give it --others 0)"
        raise VolumeFault(what, f"{path} ({listing(unknown, 40)})")
    return classes
