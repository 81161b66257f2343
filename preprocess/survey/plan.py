"""What is proposed for two sites' volumes: classes, split, spacing, size, each with its reason in words."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from files.grids import PLANES, RADIOLOGICAL, axis_across
from files.pairing import Case, read_id
from preprocess.slicing.spec import SliceSpec
from preprocess.slicing.split import split_patients
from preprocess.survey.sites import IMAGE, Site, unlike_spacing
from processes.errors import UserError
from utils import counted, listing

VAL_SHARE = 0.2
THICK = 1.5  # times the pixels: slices that are so far apart were scanned as slices
UNLIKE = 1.2  # times as large: in-plane spacings that differ by more are made one
MULTIPLE = 16  # pixels: what a U-Net of four levels halves without a remainder
SMALL, FINE = 64, 8  # below so many pixels, a multiple of this
TWICE = re.compile(r"(.*\d)(?:[a-zA-Z]|[_-][a-zA-Z]{0,5}[_-]?\d{1,2})")  # case01a, case01_2, sub-01_ses-1
MOST_SCANS = 4  # of one person; more files with one beginning are a study, no person


@dataclass(frozen=True)
class Plan:
    """The proposal. `label_map`: None where the labels are the classes; `val`: patients, source and target."""

    label_map: str | None
    others: int | None
    n_class: int
    val: tuple[int, int]
    group: str | None
    plane: str
    spacing: tuple[float, float] | None
    size: tuple[int, int]
    reasons: tuple[str, ...]


def make_plan(sites: tuple[Site, Site], plane: str | None, group: str | None, val: int | None) -> Plan:
    """A proposal for source and target. Raises UserError where there can be none."""
    label_map, others, n_class, about_labels = propose_classes(sites)
    group, about_group = (group, [f"--group {group}, as given"]) if group else propose_group(sites)
    numbers = tuple(propose_val(site, group, val) for site in sites)
    plane, about_plane = (plane, f"--plane {plane}, as given") if plane else propose_plane(sites)
    axis = axis_across(plane, RADIOLOGICAL)
    spacing, about_spacing = propose_spacing(sites, axis)
    size, about_size = propose_size(sites, axis, spacing)
    about_split = f"--val {numbers[0]} of {len(sites[0].cases)} source patients, {numbers[1]} of {len(sites[1].cases)}"
    reasons = (
        *about_labels,
        f"{about_split} target patients",
        *about_group,
        about_plane,
        about_spacing,
        about_size,
        *compare_orientations(sites),
    )
    return Plan(label_map, others, n_class, numbers, group, plane, spacing, size, reasons)


def propose_classes(sites: tuple[Site, Site]) -> tuple[str | None, int | None, int, list[str]]:
    """Label map, class of other labels, number of classes, and why; read off the source, whose labels are learnt."""
    source, target = sites
    if min(source.voxels) < 0:
        raise UserError(
            f"The source labels hold negative values ({min(source.voxels)}): name the right files, or map them."
        )
    labels = sorted({0, *source.voxels})
    if len(labels) < 2:
        raise UserError(f"The source labels '{source.label}' are 0 throughout: no organ to learn.")
    reasons, label_map = [], None
    if labels != list(range(len(labels))):
        label_map = ",".join(f"{label}:{number}" for number, label in enumerate(labels))
        kind = "a 0/255 mask" if labels == [0, 255] else "labels with gaps"
        reasons.append(f"--label_map {label_map}: {kind}, {listing(labels)}, become classes 0..{len(labels) - 1}")
    for site in sites:
        if site.floats:
            reasons.append(
                f"{site.floats} {site.name} labels are whole numbers stored as fractions, which does no harm"
            )
    extra = sorted(set(target.voxels) - set(labels))
    if extra:
        label_map = label_map or ",".join(f"{label}:{label}" for label in labels)
        reasons.append(
            f"--others 0: target labels {listing(extra)} are in no source volume and become BACKGROUND; check"
        )
    if lacking := sorted(set(labels) - set(target.voxels)) if target.voxels else []:
        reasons.append(f"label {listing(lacking)} is in no target volume; check")
    return label_map, 0 if extra else None, len(labels), reasons


def propose_group(sites: Sequence[Site]) -> tuple[str | None, list[str]]:
    """A --group expression where ids look like scans of one person, and why."""
    found: dict[str, list[str]] = {}
    for site in sites:
        for case in site.cases:
            if match := TWICE.fullmatch(case.patient):
                found.setdefault(f"{site.name} {match[1]}", []).append(case.patient)
    twins = {key: ids for key, ids in found.items() if len(ids) > 1}
    if not twins or max(map(len, twins.values())) > MOST_SCANS:
        return None, []
    shown = listing((" and ".join(ids) for ids in twins.values()), 4)
    words = f"{shown} look like one person scanned twice"
    shapes = {_shape(key.split(" ", 1)[1]) for key in found}
    for shape in shapes if len(shapes) == 1 else ():
        if all(_same_groups(site.cases, f"({shape})") for site in sites):
            return f"({shape})", [f"--group ({shape}): {words}, and stay in one split"]
    return None, [f"{words}: give --group REGEX, whose group is the person, to keep them in one split"]


def _shape(text: str) -> str:
    """'case-01' -> 'case-\\d+', an expression for ids like it."""
    return re.sub(r"\d+", lambda _: r"\d+", re.escape(text).replace(r"\-", "-"))


def _same_groups(cases: Sequence[Case], group: str) -> bool:
    """Whether the expression finds in every file the person whom its patient's id begins with."""
    pattern = re.compile(group)
    for case in cases:
        match = TWICE.fullmatch(case.patient)
        if read_id(case.paths[IMAGE], pattern) != (match[1] if match else case.patient):
            return False
    return True


def propose_val(site: Site, group: str | None, n_val: int | None) -> int:
    """Patients who validate: a fifth, or what comes nearest in whole groups. Raises UserError where none can."""
    names = [case.patient for case in site.cases]
    homes = dict(zip(names, names, strict=True))
    if group:
        pattern = re.compile(group)
        read = {case.patient: read_id(case.paths[IMAGE], pattern) for case in site.cases}
        if lost := [name for name, person in read.items() if person is None]:
            raise UserError(f"--group '{group}' does not match the image file of {listing(lost)}.")
        homes = {name: str(person) for name, person in read.items()}
    target = n_val or max(1, round(VAL_SHARE * len(names)))
    for number in sorted(range(1, len(names)), key=lambda n: (abs(n - target), n)):
        try:
            split_patients(homes, _split_spec(number))
        except UserError:
            continue
        return number
    raise UserError(
        f"The {site.name} has {counted(len(names), 'patient')} ({listing(names)}): one trains and "
        "another validates. Widen the pattern, or mend --patient (or --group) if it reads several as one. A single "
        "volume is not parted: neighbouring slices look alike, so what is scored on some of them proves nothing."
    )


def _split_spec(val: int) -> SliceSpec:
    """The slicer's own draw decides what can be drawn; its other settings play no part."""
    return SliceSpec(dest=Path(), images={IMAGE: ""}, patient="", val=val)


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


def propose_spacing(sites: Sequence[Site], axis: int) -> tuple[tuple[float, float] | None, str]:
    found, unlike = unlike_spacing(sites, axis)
    middle = tuple(float(f"{mm:.4g}") for mm in np.median(found, axis=0))
    if unlike <= UNLIKE:
        return None, f"no resampling: in-plane spacings differ by {unlike - 1:.0%} at most"
    shown = " ".join(f"{mm:g}" for mm in middle)
    return middle, f"--spacing {shown}: in-plane spacings differ by {unlike - 1:.0%}; this is their median, in mm"


def propose_size(sites: Sequence[Site], axis: int, spacing: tuple[float, float] | None) -> tuple[tuple[int, int], str]:
    """The smallest multiple that holds every plane, resampled."""
    spec = SliceSpec(dest=Path(), images={IMAGE: ""}, patient="", val=1, axis=axis, spacing=spacing)  # of turned grids
    planes = [spec.frame(grid).scaled for site in sites for grid in site.grids]
    largest = np.max(planes, axis=0)
    step = FINE if largest.max() < SMALL else MULTIPLE
    size = tuple(int(-(-n // step) * step) for n in largest)
    kinds = Counter(planes)
    shown = f"planes of {listing(('x'.join(map(str, plane)) for plane, _ in kinds.most_common()), 4)} pixels"
    return size, f"--size {size[0]} {size[1]}: holds all {shown}; multiples of {step}"
