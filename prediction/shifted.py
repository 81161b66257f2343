"""A set whose images are as another acquisition shows them: shifted in memory as they are read, one patient at a time.

No file is written, as nine shifts at five severities would be 45 copies of a set. Slices are stacked to the volume that
they are from, so that a bias field goes on from one to the next. What a shift does to the grey levels of a volume, the
set's own normalisation then sees, as it would if the volume were cut anew: it is done again where it is by the volume's
or the slice's own levels. Labels stay as they are.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader import AnySet
from datasets.cache import Plane
from datasets.set_tables import normalisation_of, read_card
from datasets.volumes import Box, VolumePlane, VolumeSet
from files.grey_levels import Normalisation
from preprocess.shifts.acquisitions import Shift
from processes.errors import UserError

ORDERS = tuple(permutations(range(3)))
HELD = 2  # patients at a time: a batch may hold the last slices of one and the first of the next


@dataclass(frozen=True)
class Levels:
    """How grey levels that were shifted become those of a set again.

    how      the normalisation by a volume's or a slice's own levels; None where levels stay as they are
    limits   lowest and highest level that the set can hold; None where it has no limits
    whole    whether its levels are whole numbers
    """

    how: Normalisation | None
    limits: tuple[float, float] | None
    whole: bool

    def again(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Two stacks (N, W, H), as the set holds them and shifted -> the second as the set would hold it, float32.

        `before` is normalised already, so its own scale is put in the place of that of `after`: what was not shifted
        comes back as it was, although a set was cut and padded since it was normalised.
        """
        after = after.astype(np.float32)
        if self.how and self.how.scope == "slice":
            after = np.stack([self._rescaled(*planes) for planes in zip(before, after, strict=True)])
        elif self.how:
            after = self._rescaled(before, after)
        if self.limits:
            np.clip(after, *self.limits, out=after)
        return np.rint(after, out=after) if self.whole else after

    def _rescaled(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Both stacks (N, W, H), or planes (W, H)."""
        old, new = self.how.fit(before), self.how.fit(after)
        if not (old.width and new.width):  # a flat slice, which has no scale
            return after
        return ((after - np.float32(new.shift)) * np.float32(old.width / new.width)) + np.float32(old.shift)


def levels_of(card: Mapping[str, Any], divisor: float = 1.0) -> Levels:
    """How a set's dataset.json says that its grey levels were made.

    divisor: of the levels as they are stored, 1 where they are no grey levels of 8 or 16 bits
    """
    told = normalisation_of(card)
    try:
        how = Normalisation.from_card(told)
    except (KeyError, TypeError, UserError):  # of volumes, which are scaled by their whole set; of an older card
        how = None
    clipped = how is not None and (how.kind == "minmax" or (how.kind in ("percentile", "window") and not how.no_clip))
    limits = (0.0, float(divisor)) if clipped or divisor != 1 else None
    return Levels(how if how and how.kind in ("minmax", "percentile", "zscore") else None, limits, divisor != 1)


def order_of(card: Mapping[str, Any]) -> tuple[int, ...]:
    """Which of the axes N, W and H of a set are X, Y and Z of its volumes, by its dataset.json.

    A shift draws by the axes of the volume, so what is drawn for a set is what preprocess.shift_volumes draws.
    """
    axes, axis = card.get("axes"), card.get("axis")
    if axes in map(list, ORDERS):
        return tuple(int(place) for place in np.argsort(axes))
    return {1: (1, 0, 2), 2: (1, 2, 0)}.get(axis if isinstance(axis, int) else 0, ORDERS[0])


# ---------------------------------------------------------------------------------------------------- the set


def shift_set(slices: AnySet, shift: Shift, pictures: bool) -> AnySet:
    """The set with its images shifted, each when it is read; ground truth and all else stay.

    pictures: whether each slice is a picture of its own, and not a plane of its patient's volume
    """
    image, card = slices.folders[0], read_card(slices.root)
    plane, rows = slices.planes[image], slices.order.tolist()
    spacing = [(1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[name] for name in slices.patients]
    if isinstance(slices, VolumeSet):
        named = dict(zip(rows, zip(slices.patients, spacing, strict=True), strict=True))

        def show(row: int, channels: np.ndarray) -> np.ndarray:
            name, lengths = named[row]
            return _shown(channels, lengths, name, shift, levels_of(card), order_of(card))

        shown: Plane | VolumePlane = ShiftedVolumes(plane.volumes, torch.float32, None, plane.mean, plane.divisor, show)
    else:
        cases = slices.names if pictures else slices.patients
        stacks: dict[str, list[int]] = {}
        for place, case in enumerate(cases):
            stacks.setdefault(case, []).append(place)
        found = [_Stack(case, [rows[n] for n in places], spacing[places[0]]) for case, places in stacks.items()]
        shown = ShiftedPlane(plane, found, shift, levels_of(card, plane.divisor), order_of(card))
    return replace(slices, planes=dict(slices.planes) | {image: shown})


def _shown(
    channels: np.ndarray,
    spacing: Sequence[float],
    name: str,
    shift: Shift,
    levels: Levels,
    order: Sequence[int],
) -> np.ndarray:
    """(C, N, W, H) as they are stored -> (C, N, W, H) float32, as the shifted volume of this name would be stored.

    order: see `order_of`; a single slice is a picture, of which the first axis is the one of length 1
    """
    order = ORDERS[0] if channels.shape[1] == 1 else order
    before = channels.astype(np.float32)
    turned = [channel.transpose(order) for channel in before]
    after = shift.apply(turned, [spacing[axis] for axis in order], name)
    back = np.argsort(order)
    return np.stack([levels.again(old, new.transpose(back)) for old, new in zip(before, after, strict=True)])


@dataclass(frozen=True)
class _Stack:
    """The slices of a volume, or a picture: its name, its rows in the plane in order, mm between and in them."""

    name: str
    rows: Sequence[int]
    spacing: Sequence[float]


class ShiftedPlane(Plane):
    """The images of a plane, shifted as they are asked for: all slices of a patient at once, of two patients at most.

    Slices that lack between others are not made up: those on both sides of a gap count as neighbours.
    """

    def __init__(
        self, plane: Plane, stacks: Sequence[_Stack], shift: Shift, levels: Levels, order: Sequence[int]
    ) -> None:
        super().__init__(plane.parts, plane.divisor)
        self.dtype = torch.float32
        self.plane, self.stacks, self.how = plane, stacks, (shift, levels, order)
        self.homes = {row: (n, place) for n, stack in enumerate(stacks) for place, row in enumerate(stack.rows)}
        self.held: dict[int, np.ndarray] = {}
        self.turn = threading.Lock()

    def gather(self, rows: Tensor, pin: bool = False) -> Tensor:
        """(B,) rows -> (B, C, W, H) float32, the levels of 8 or 16 bits still whole numbers."""
        homes = [self.homes[row] for row in rows.tolist()]
        found = torch.empty((len(homes), *self.shape), pin_memory=pin)
        for number in dict.fromkeys(number for number, _ in homes):
            whole = self._whole(number)
            for at, (other, place) in enumerate(homes):
                if other == number:
                    found[at] = torch.from_numpy(whole[place])
        return found

    def _whole(self, number: int) -> np.ndarray:
        """(N, C, W, H) of a patient. One thread makes it, the others wait."""
        with self.turn:
            if number not in self.held:
                stack = self.stacks[number]
                stored = self.plane.gather(torch.tensor(stack.rows, device=self.device)).cpu().numpy()
                shown = _shown(stored.swapaxes(0, 1), stack.spacing, stack.name, *self.how)
                self.held[number] = np.ascontiguousarray(shown.swapaxes(0, 1))
                while len(self.held) > HELD:
                    del self.held[next(iter(self.held))]
            return self.held[number]


@dataclass(frozen=True)
class ShiftedVolumes(VolumePlane):
    """The images of a plane of volumes, each shifted when it is read."""

    show: Callable[[int, np.ndarray], np.ndarray] = lambda _, channels: channels

    def read(self, row: int, box: Box | None = None) -> np.ndarray:
        """(C, D, W, H) float32 of a volume, or of a part that lies in it."""
        start, size = box or ((0, 0, 0), self.volumes[row].size)
        inside = (..., *(slice(at, at + length) for at, length in zip(start, size, strict=True)))
        return self.show(row, super().read(row))[inside]
