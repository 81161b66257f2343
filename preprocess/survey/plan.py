"""What is proposed for two sites' volumes: plane, spacing, size, classes and split, each with its reason in words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from files.grids import PLANES, RADIOLOGICAL, axis_across
from preprocess.slicing.spec import SliceSpec
from preprocess.survey.classes import Classes, propose_classes
from preprocess.survey.sites import IMAGE, Site, unlike_spacing
from preprocess.survey.splits import propose_group, propose_splits
from preprocess.survey.wishes import Wishes
from utils import listing

THICK = 1.5  # times the pixels: slices that are so far apart were scanned as slices
UNLIKE = 1.2  # times as large: in-plane spacings that differ by more are made one
MULTIPLE = 16  # pixels: what a U-Net of four levels halves without a remainder
SMALL, FINE = 64, 8  # below so many pixels, a multiple of this


@dataclass(frozen=True)
class Plan:
    """The proposal.

    splits: the slicer's flags that say who validates, of source and target
    spacing: that slices are resampled to; of pictures that of their pixels, if it is known
    size: of the slices; of pictures width and height
    tiles: whether pictures are cut into tiles of this size
    """

    classes: Classes
    splits: tuple[str, str]
    group: str | None
    plane: str
    spacing: tuple[float, float] | None
    size: tuple[int, int]
    reasons: tuple[str, ...]
    tiles: bool = False


def make_plan(sites: tuple[Site, Site], wishes: Wishes) -> Plan:
    """A proposal for source and target. Raises UserError where there can be none."""
    classes = propose_classes(sites, wishes)
    if wishes.group:
        group, about_group = wishes.group, [f"--group {wishes.group}, as given"]
    elif len(told := {site.files.group for site in sites}) == 1 and None not in told:
        (group,) = told
        about_group = [f"--group {group}, as the data sets say: scans of one person stay in one split"]
    elif wishes.val_list or any(site.files.val for site in sites):  # a list that is there is not judged by names
        group, about_group = None, []
    else:
        group, about_group = propose_group(sites)
    plane, about_plane = (wishes.plane, f"--plane {wishes.plane}, as given") if wishes.plane else propose_plane(sites)
    axis = axis_across(plane, RADIOLOGICAL)
    splits, about_splits = propose_splits(sites, group, axis, wishes)
    spacing, about_spacing = propose_spacing(sites, axis, wishes.spacing)
    size, about_size = propose_size(sites, axis, spacing, wishes.size)
    reasons = (
        *classes.reasons,
        *about_splits,
        *about_group,
        about_plane,
        about_spacing,
        about_size,
        *compare_orientations(sites),
        *(note for site in sites for note in site.files.notes),
    )
    return Plan(classes, splits, group, plane, spacing, size, tuple(dict.fromkeys(reasons)))


def compare_orientations(sites: Sequence[Site]) -> list[str]:
    """A word where volumes lie differently in their files: as they are stored, slices would be mirrored or turned."""
    codes = Counter(grid.stored for site in sites for grid in site.grids)
    if len(codes) == 1:
        return []
    shown = listing(f"{number} {code}" for code, number in codes.most_common())
    return [f"voxel axes point differently, {shown}: all are turned to {RADIOLOGICAL} before they are cut"]


def propose_plane(sites: Sequence[Site]) -> tuple[str, str]:
    """The plane that the volumes were scanned in, if they are thick slices and all of one plane; else axial."""
    scanned = set()
    for grid in (grid for site in sites for grid in site.grids):
        spacing = grid.spacing()
        (plane,) = (name for name in PLANES if axis_across(name, RADIOLOGICAL) == int(np.argmax(spacing)))
        scanned.add(plane if max(spacing) > THICK * sorted(spacing)[1] else None)
    if len(scanned) == 1 and (plane := scanned.pop()):
        return (
            plane,
            f"--plane {plane}: the volumes are stacks of {plane} slices, each {THICK:g} times as thick or more",
        )
    why = "the volumes were scanned in several planes" if len(scanned) > 1 else "the volumes have no thick slices"
    return "axial", f"--plane axial: {why}"


def propose_spacing(
    sites: Sequence[Site], axis: int, given: tuple[float, float] | None
) -> tuple[tuple[float, float] | None, str]:
    if given:
        return given, "--spacing {:g} {:g}, as given".format(*given)
    found, unlike = unlike_spacing(sites, axis)
    middle = tuple(float(f"{mm:.4g}") for mm in np.median(found, axis=0))
    if unlike <= UNLIKE:
        return None, f"no resampling: in-plane spacings differ by {unlike - 1:.0%} at most"
    shown = " ".join(f"{mm:g}" for mm in middle)
    return middle, f"--spacing {shown}: in-plane spacings differ by {unlike - 1:.0%}; this is their median, in mm"


def propose_size(
    sites: Sequence[Site], axis: int, spacing: tuple[float, float] | None, given: tuple[int, int] | None
) -> tuple[tuple[int, int], str]:
    """The smallest multiple that holds every plane, resampled."""
    spec = SliceSpec(dest=Path(), images={IMAGE: ""}, patient="", val=1, axis=axis, spacing=spacing)  # of turned grids
    planes = [spec.frame(grid).scaled for site in sites for grid in site.grids]
    largest = np.max(planes, axis=0)
    step = FINE if largest.max() < SMALL else MULTIPLE
    size = tuple(int(-(-n // step) * step) for n in largest)
    kinds = Counter(planes)
    shown = f"planes of {listing(('x'.join(map(str, plane)) for plane, _ in kinds.most_common()), 4)} pixels"
    if given:
        return given, f"--size {given[0]} {given[1]}, as given: {shown} are cut or padded round their centre"
    return size, f"--size {size[0]} {size[1]}: holds all {shown}; multiples of {step}"
