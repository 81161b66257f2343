"""What a loss may know about the sizes of the classes: BOUNDS, built by `BOUNDS.build(name, n_class, **params)`.

A bound is called with the label map (W, H) of a slice, or None where `needs_label` is False, and the slice's name. It
gives (K, 2) float64 pixels, lower and upper. The class-ratio losses divide the lower ones by their own sum; the size
penalty uses both. `supervision` says in words what had to be known of the target to make them; runs record it.

Parameters that published lines carry without effect are accepted (`sep`, `idc`, `power`, `fake`, `prop`, `fn`).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from datasets.size_table import HIGH, LEAST, LOW, MOST, ORACLE, SizeTable, names_of_columns, read_size_table
from processes.errors import UserError
from utils import Registry, fits, listing, nearest

BOUNDS = Registry("bounds", typed=True)
ROUGHLY = 0.01  # of the pixels of a slice, that published sizes miss by: 385² for 384²


class Bounds:
    """The base of all bounds. `check` and `skips` matter to those that look slices up in a table."""

    supervision: str = "none"
    needs_label: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}  # parameters that fit four classes: the tests try every bound with them
    of_slices: bool = True  # whether they tell sizes that are seen in a slice, and so go with what is seen of it
    as_ratios: bool = False  # whether a loss takes them for ratios, to which a row of zeros says nothing
    with_spacing: bool = False  # whether a loss wants the size of a pixel told with them

    def __init__(self, n_class: int) -> None:
        self.n_class = n_class

    def take_as_ratios(self) -> None:
        """Tells the bounds that their loss compares ratios. Raises UserError if they cannot be turned into ratios."""
        self.as_ratios = True

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        """(W, H) class numbers or None, slice name -> (K, 2) pixels."""
        raise NotImplementedError

    def check(self, names: Iterable[str]) -> None:
        """Raises UserError that lists the slices about which nothing is known."""

    def skips(self, name: str) -> bool:
        """Whether the slice is to be left out."""
        return False

    def doubt(self, names: Sequence[str], pixels: Sequence[int]) -> str:
        """A line on sizes that cannot be right for slices of these names and numbers of pixels.

        '' if nothing is odd.
        """
        return ""

    def count(self, label: np.ndarray | None) -> np.ndarray:
        """(K,) pixels of each class; other values, such as an ignore label, count nowhere."""
        if label is None:
            raise UserError(f"{type(self).__name__} reads the ground truth of a slice, and none was given.")
        values = np.asarray(label).ravel()
        if values.dtype != np.uint8:
            values = values[(values >= 0) & (values < self.n_class)].astype(np.int64)
        return np.bincount(values, minlength=self.n_class)[: self.n_class].astype(np.float64)


# ------------------------------------------------------------------------------------------- the same everywhere


@BOUNDS.register()
class ConstantBounds(Bounds):
    """The same limits for every slice: [[lower, upper], …] or [pixels, …] one a class, or {class: [lower, upper]}.

    Classes that a dict leaves out get [0, 0]. 'uniform' gives every class the same size; it is one pixel, since only
    ratios can mean anything then (the prior that information maximisation, as in SHOT, implies).
    """

    example: ClassVar = {"values": [[1, 2]] * 4}

    def __init__(
        self,
        n_class: int,
        *,
        values: str | Sequence[Any] | Mapping[Any, Any],  # what is wrong with one is said below
        idc: Sequence[int] | None = None,
    ) -> None:
        super().__init__(n_class)
        self.limits = _read_limits(type(self).__name__, values, n_class)
        self.of_slices = values != "uniform"

    def take_as_ratios(self) -> None:
        super().take_as_ratios()
        if not (self.limits[0].any() or self.needs_label):
            raise UserError(
                f"{type(self).__name__} gives class 0, the background, no size, and beside a loss that compares the "
                "ratios of the classes that is a slice without background. Give it one: what the others leave of W·H "
                "pixels."
            )

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        return self.limits.copy()


@BOUNDS.register()
class TagBounds(ConstantBounds):
    """The limits of ConstantBounds for the classes that the slice shows, [0, 0] for the others.

    A background without limits of its own gets the pixels that the other classes leave: all W·H of a slice that shows
    none of them, as published.
    """

    example: ClassVar = {"values": {1: [1, 2]}}
    supervision = "image-level tags"
    needs_label = True

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        limits = np.where(self.count(label)[:, None] > 0, self.limits, 0.0)
        if not self.limits[0].any():
            limits[0] = np.maximum(np.size(label) - limits[:, ::-1].sum(0), 0)
        return limits


# ---------------------------------------------------------------------------------------------- looked up


@BOUNDS.register()
class PredictionBounds(Bounds):
    """The sizes v that column `predcol` of the csv `sizefile` holds for the slice, with a margin.

    'high' gives [v, v + m], 'low' [v - m, v], 'both' [v - m, v + m], never below 0; m = margin · v in `mode`
    'percentage' (margin 0.1 is 10 %), m = margin pixels in `mode` 'abs'. The file is read at first use. A slice whose
    list is all zero is left out (`skips`).
    """

    example: ClassVar = {"predcol": "prior"}

    def __init__(
        self,
        n_class: int,
        *,
        sizefile: str,
        predcol: str,
        margin: float = 0,
        dir: str = "high",
        mode: str = "percentage",
        sep: str | None = None,
        idc: Sequence[int] | None = None,
        power: float = 1,
        fake: bool = False,
        prop: bool | str = False,
    ) -> None:
        super().__init__(n_class)
        self.sizefile, self.predcol = str(sizefile), str(predcol)
        self.margin, self.mode = _read_margin(type(self).__name__, margin, mode)
        self.sides = _choose(type(self).__name__, "dir", dir, {"high": (0, 1), "low": (1, 0), "both": (1, 1)})

    @cached_property
    def table(self) -> SizeTable:
        return read_size_table(self.sizefile, self.predcol, self.n_class)

    @property
    def supervision(self) -> str:
        """What had to be known of the target, as the csv tells it."""
        return self.table.supervision

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        return _with_margin(self.table[name], self.margin, self.mode, self.sides)

    def check(self, names: Iterable[str]) -> None:
        self.table.require(names)

    def skips(self, name: str) -> bool:
        return self.table.skips(name)

    def doubt(self, names: Sequence[str], pixels: Sequence[int]) -> str:
        sums = np.stack([self.table[name] for name in names]).sum(1)
        odd = np.flatnonzero((np.abs(sums - pixels) > ROUGHLY * np.array(pixels)) & (sums > 0))
        if not len(odd):
            return ""
        shown = listing((f"{names[row]}: {sums[row]:.10g}, not {pixels[row]}" for row in odd), 3)
        return (
            f"{self.sizefile}, column '{self.predcol}': the sizes in {len(odd)} of {len(names)} slices do not add up "
            f"to the pixels of the slice ({shown}); as ratios they are shares of their sum. Is it the csv of this set?"
        )


@BOUNDS.register()
class IntervalBounds(PredictionBounds):
    """The interval that the csv holds of an estimate: columns `<predcol>_low` and `<predcol>_high`.

    `preprocess.size_priors make --network_weights` writes them; of a single patient it knows no interval, and then the
    estimate is both ends. `predcol` itself says which slices are left out.
    """

    def __init__(self, n_class: int, *, sizefile: str, predcol: str) -> None:
        super().__init__(n_class, sizefile=sizefile, predcol=predcol)

    @property
    def supervision(self) -> str:
        """What had to be known of the target, as the csv tells it of all three columns."""
        return ", ".join(dict.fromkeys(each.supervision for each in (self.table, *self.ends)))

    @cached_property
    def ends(self) -> tuple[SizeTable, SizeTable]:
        ends = [self.predcol + end for end in (LOW, HIGH)]
        if not set(ends) & set(names_of_columns(self.sizefile)):
            return self.table, self.table
        low, high = (read_size_table(self.sizefile, end, self.n_class) for end in ends)
        if crossed := [name for name in low.sizes if name in high.sizes and (low[name] > high[name]).any()]:
            raise UserError(
                f"{self.sizefile}: '{self.predcol}{LOW}' is above '{self.predcol}{HIGH}' in {len(crossed)} slices: "
                f"{listing(crossed, 5)}. Make the csv again."
            )
        return low, high

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        return np.stack([end[name] for end in self.ends], axis=-1)

    def check(self, names: Iterable[str]) -> None:
        names = list(names)
        for table in (self.table, *self.ends):
            table.require(names)


# --------------------------------------------------------------------------------------- from the ground truth


@BOUNDS.register()
class PreciseBounds(Bounds):
    """The true sizes v of the slice, [v - m, v + m], never below 0; m as in PredictionBounds."""

    supervision = ORACLE
    needs_label = True

    def __init__(
        self,
        n_class: int,
        *,
        margin: float = 0,
        mode: str = "percentage",
        fn: str | None = None,
        power: float = 1,
        idc: Sequence[int] | None = None,
    ) -> None:
        super().__init__(n_class)
        self.margin, self.mode = _read_margin(type(self).__name__, margin, mode)

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        return _with_margin(self.count(label), self.margin, self.mode, (1, 1))


@BOUNDS.register()
class PreciseTags(PreciseBounds):
    """PreciseBounds for the classes that the slice shows, `neg_value` = [lower, upper] for the others."""

    def __init__(
        self,
        n_class: int,
        *,
        margin: float = 0,
        mode: str = "percentage",
        neg_value: Sequence[float] = (0, 0),
        fn: str | None = None,
        power: float = 1,
        idc: Sequence[int] | None = None,
    ) -> None:
        super().__init__(n_class, margin=margin, mode=mode)
        self.absent = _read_pair(f"{type(self).__name__}: neg_value", neg_value)

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        return np.where(self.count(label)[:, None] > 0, super().__call__(label, name), self.absent)


@BOUNDS.register()
class BoxBounds(Bounds):
    """`margins` = [lower, upper] as shares of the area of the upright box around all pixels of a class.

    The box of the background is nearly always the slice: losses with these bounds name their classes (`idc`).
    """

    example: ClassVar = {"margins": [0.5, 1]}
    supervision = "bounding boxes"
    needs_label = True

    def __init__(self, n_class: int, *, margins: Sequence[float], idc: Sequence[int] | None = None) -> None:
        super().__init__(n_class)
        self.margins = _read_pair("BoxBounds: margins", margins)

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        areas = np.zeros(self.n_class)
        for k in np.flatnonzero(self.count(label)):
            areas[k] = _box_area(np.asarray(label) == k)
        return areas[:, None] * self.margins


def _box_area(mask: np.ndarray) -> int:
    """Pixels in the box around a mask that is not empty; any number of axes."""
    axes = range(mask.ndim)
    seen = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return int(np.prod([places[-1] - places[0] + 1 for places in seen]))


# ------------------------------------------------------------------------------------------------ parameters


def _with_margin(sizes: np.ndarray, margin: float, mode: str, sides: tuple[int, int]) -> np.ndarray:
    """(K,) pixels -> (K, 2), the margin taken off below and put on above as `sides` says."""
    width = sizes * margin if mode == "percentage" else np.full_like(sizes, margin)
    return np.stack([np.maximum(sizes - sides[0] * width, 0), sizes + sides[1] * width], axis=-1)


WIDEST = 1e9  # as a margin: more pixels than any slice has


def _read_margin(kind: str, margin: Any, mode: Any) -> tuple[float, str]:
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= WIDEST:
        raise UserError(
            f"{kind}: margin is a number from 0 to {WIDEST:g} (0.1 is 10 % in mode 'percentage'), got {margin!r}."
        )
    return float(margin), _choose(kind, "mode", mode, {"percentage": "percentage", "abs": "abs"})


def _choose(kind: str, parameter: str, value: Any, choices: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{kind}: there is no {parameter} {value!r}.{nearest(str(value), choices)}")
    return choices[value]


def _read_pair(what: str, limits: Any) -> np.ndarray:
    """[lower, upper] or one number for both -> (2,)."""
    pair = limits if isinstance(limits, list | tuple) else (limits, limits)
    if len(pair) != 2 or not all(fits(v, float) and (v == 0 or LEAST <= v <= MOST) for v in pair) or pair[0] > pair[1]:
        raise UserError(
            f"{what} expects [lower, upper] with 0 <= lower <= upper, and neither above {MOST:g} or next to 0; got "
            f"{limits!r}."
        )
    return np.array(pair, dtype=np.float64)


def _read_limits(kind: str, values: Any, n_class: int) -> np.ndarray:
    """The `values` of ConstantBounds -> (K, 2) pixels."""
    if values == "uniform":
        return np.ones((n_class, 2))
    if isinstance(values, dict):
        unknown = [key for key in values if key not in range(n_class)]
        if unknown:
            raise UserError(
                f"{kind}: values names class {unknown[0]!r}; the classes are 0 to {n_class - 1} (--n_class)."
            )
        values = [values.get(k, 0) for k in range(n_class)]
    if not isinstance(values, list | tuple) or len(values) != n_class:
        raise UserError(
            f"{kind}: values expects one [lower, upper] or one number a class, {n_class} of them (--n_class), or "
            f"{{class: [lower, upper]}}, or 'uniform'; got {values!r}."
        )
    return np.stack([_read_pair(f"{kind}: class {k}", limits) for k, limits in enumerate(values)])
