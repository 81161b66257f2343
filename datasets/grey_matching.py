"""Source matching: the grey levels of a patient brought to those that the source network learnt from, by quantiles.

    x' = α q_s(F_t(x)) + (1 − α) x

F_t is the distribution of a patient's grey levels, q_s the quantiles that the source left in its bundle. Both are of
the body alone, the pixels above the lowest level, so that the field of view does not matter; the lowest level itself
becomes the source's. Where bright and dark have changed places between the sites, a negative α turns the body round:
it takes |α| of q_s(1 − F_t(x)). Nothing is learnt. To match intensities at test time is an idea of Thaler et al.
(arXiv 2512.01510); the quantiles, and the turn, are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from datasets.grey_quantiles import grey_quantiles, sample_levels
from datasets.slices import SliceSet
from nets.bundle import LEVELS, read_bundle
from processes.errors import UserError
from utils import fits

KNOTS = 1 + LEVELS  # of a curve: the lowest level, and the quantiles of the body
AUTO = "auto"  # in place of a share: selection/looks.py decides
SHARE = "match_source"  # α in the entry "preprocessing" of a checkpoint whose images were matched, and as a flag
TINY = torch.finfo(torch.float32).tiny

Set = TypeVar("Set", bound=SliceSet)


@dataclass(frozen=True, eq=False)
class SourceLevels:
    """What grey levels are brought to, (C, KNOTS) in ascending order, and α, the share of what is brought there.

    A share below 0 brings the darkest of the body to the brightest of the source, and the reverse.
    """

    levels: np.ndarray
    share: float

    def curve(self, seen: np.ndarray) -> np.ndarray:
        """(C, n) grey levels of a patient -> (C, 2, KNOTS) float32 of its curve: levels, and what becomes of each.

        Quantiles that are one level become the mean of what each would. NaN of a channel of one level, which stays.
        """
        found = np.full((len(seen), 2, KNOTS), np.nan, np.float32)
        knots = np.concatenate([seen.min(1, keepdims=True), grey_quantiles(seen)[1]], axis=1).astype(np.float32)
        wanted = self.levels
        if self.share < 0:
            wanted = np.concatenate([wanted[:, :1], wanted[:, :0:-1]], axis=1)
        for curve, own, theirs in zip(found, knots, wanted, strict=True):
            if not np.isnan(own).any():
                places, at, counts = np.unique(own, return_inverse=True, return_counts=True)
                curve[:, : len(places)] = places, np.bincount(at, theirs) / counts
                curve[:, len(places) :] = curve[:, len(places) - 1, None]
        return found


@dataclass(frozen=True, eq=False)
class Matching:
    """The curves of the patients of a set, (P, C, 2, KNOTS), and the number of each."""

    source: SourceLevels
    curves: Tensor
    numbers: Mapping[str, int]

    def __call__(self, image: Tensor, patients: Sequence[str]) -> Tensor:
        """Images (B, C, …) float32 of these patients -> the same with matched levels. Nothing waits for the device."""
        curves = self.curves[[self.numbers[patient] for patient in patients]]
        curves = curves.pin_memory() if image.is_cuda else curves
        return matched(image, curves.to(image.device, non_blocking=True), self.source.share)


def matched(image: Tensor, curves: Tensor, share: float) -> Tensor:
    """Images (B, C, …) float32, their levels taken along curves (B, C, 2, KNOTS), of which the result has |share|.

    Beyond its ends a curve is flat. A channel whose curve is NaN stays.
    """
    flat = image.flatten(2).contiguous()
    places, levels = (each.contiguous() for each in curves.unbind(2))
    after = torch.searchsorted(places, flat, right=True).clamp_(1, KNOTS - 1)
    (left, low), (right, high) = ([each.gather(2, at) for each in (places, levels)] for at in (after - 1, after))
    part = ((flat - left) / (right - left).clamp_min(TINY)).clamp(0, 1)
    found = torch.lerp(flat, low + part * (high - low), abs(share))
    return torch.where(found.isnan(), flat, found).view_as(image)


def match_set(slices: Set, source: SourceLevels | None) -> Set:
    """The set with its images matched, each when it is read; None leaves them as they are.

    The levels of a patient are those of all its rows in this set.
    """
    slices = replace(slices, matching=None)
    if source is None:
        return slices
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(slices.patients):
        rows.setdefault(patient, []).append(row)
    curves = np.stack([source.curve(sample_levels(slices, own)) for own in rows.values()])
    numbers = {patient: number for number, patient in enumerate(rows)}
    return replace(slices, matching=Matching(source, torch.from_numpy(curves), numbers))


def knows_levels(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint tells the grey levels of its source."""
    bundle = read_bundle(state)
    told = None if bundle is None or bundle.grey_quantiles is None else bundle.grey_quantiles_body
    return told is not None and bool(np.isfinite(told).all())


def levels_to_match(state: Mapping[str, Any], share: float | None) -> SourceLevels | None:
    """What the images of a network are matched to, by its checkpoint; None where they are not.

    share: α from 0 (not at all) to 1, or to -1, with bright and dark exchanged; None: as much as those that the network
        was used on
    Raises UserError for another share, and for a checkpoint without the source's grey levels.
    """
    share = state.get("preprocessing", {}).get(SHARE, 0.0) if share is None else share
    if not fits(share, float) or not -1 <= share <= 1:
        raise UserError(
            "--match_source is a share, 0 (grey levels as they are) to 1 (the source's), or to -1 (the source's, with "
            f"bright and dark exchanged), or auto; got {share}."
        )
    if not share:
        return None
    bundle = read_bundle(state)
    if not knows_levels(state):
        raise UserError(
            f"--match_source {share:g} brings grey levels to those of the source, and --model_weights does not tell "
            "these: it has no source bundle, because it is of an older version, or was not trained here on labels. "
            "Train the source network anew (make … cesource), or leave --match_source out."
        )
    found = bundle.grey_quantiles_body
    lowest = np.minimum(bundle.grey_quantiles[:, :1], found[:, :1])
    return SourceLevels(np.concatenate([lowest, found], axis=1), float(share))


def with_share(preprocessing: Mapping[str, Any], share: float) -> dict[str, Any]:
    """The entry "preprocessing" of a checkpoint whose images were matched by this share, 0 for not at all."""
    told = {name: value for name, value in preprocessing.items() if name != SHARE}
    return told | ({SHARE: share} if share else {})
