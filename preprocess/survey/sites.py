"""The volumes of one site as a user has them: paired, their geometry compared, their labels counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from files.faults import Fault, VolumeFault
from files.grids import RADIOLOGICAL, Grid
from files.labels import whole_labels
from files.pairing import Case, compile_pattern, pair
from files.reading import read_grid, read_stack, unsure_place
from preprocess.layouts.layout import SiteFiles
from processes.pool import in_processes

IMAGE, LABEL = "IMG", "GT"
MOST_LABELS = 64  # different values, where no table names more; a volume with more of them is an image


@dataclass(frozen=True)
class Offence:
    """One way in which a label does not lie where its image lies."""

    file: str
    what: str  # shape, origin, direction or spacing
    how_far: str
    tolerance: str


@dataclass
class CaseFacts:
    """What was found in the files of one patient."""

    grid: Grid | None = None
    offences: list[Offence] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)  # voxels of each
    is_float: bool = False  # whole numbers, stored as fractions are


@dataclass
class Site:
    """The volumes of a site. `labels`: label -> number of volumes that hold it, over voxels; empty without labels."""

    name: str
    files: SiteFiles
    cases: list[Case]
    grids: list[Grid]  # their axes to the left, back and head, however they are stored
    volumes: Counter[int]
    voxels: Counter[int]
    floats: int  # label volumes of floating-point numbers
    offences: list[Offence]
    faults: list[Fault]


def roles_of(files: SiteFiles) -> dict[str, str]:
    """Role -> pattern: the first channel of the image is IMAGE, the others are told by their numbers."""
    channels = {f"{IMAGE}[{number}]" if number else IMAGE: glob for number, glob in enumerate(files.images)}
    return channels | ({LABEL: files.label} if files.label else {})


def read_site(name: str, files: SiteFiles, tolerance_mm: float, jobs: int = 1) -> Site:
    """Pairs the files, reads every header and every label. `tolerance_mm`: how far a corner may be off."""
    cases, faults = pair(roles_of(files), compile_pattern("--patient", files.patient))
    how = {"tolerance_mm": tolerance_mm, "channel": files.channel, "place_labels": files.place_labels}
    how["most"] = max(MOST_LABELS, len(files.class_names))
    found = list(in_processes(partial(_read_case, **how), cases, jobs))
    return site_of(name, files, cases, found, faults)


def site_of(
    name: str, files: SiteFiles, cases: Sequence[Case], found: Sequence[CaseFacts], faults: Sequence[Fault]
) -> Site:
    """The site of these cases, of which this was found, in their order; `faults`: those of files that are no case."""
    whole = [(case, each.grid) for case, each in zip(cases, found, strict=True) if each.grid]
    labels = [each.labels for each in found if each.grid]
    return Site(
        name,
        files,
        [case for case, _ in whole],
        [grid for _, grid in whole],
        Counter(value for each in labels for value in each),
        sum(labels, Counter()),
        sum(each.is_float for each in found),
        [offence for each in found for offence in each.offences],
        [*faults, *(fault for each in found for fault in each.faults)],
    )


def _read_case(case: Case, tolerance_mm: float, channel: int | None, place_labels: bool, most: int) -> CaseFacts:
    facts, grids = CaseFacts(), {}
    for role, path in case.paths.items():
        try:
            grids[role] = read_grid(path, None if role == LABEL else channel, RADIOLOGICAL, is_label=role == LABEL)
            if role == LABEL:
                count_labels(read_stack(path, 0, is_label=True), path, facts, most)
        except VolumeFault as error:
            facts.faults.append(error.fault)
    facts.grid = grids.get(IMAGE)
    for role in grids if facts.grid else ():
        path = case.paths[role]
        if role == LABEL and place_labels:
            continue
        if role == LABEL and (aside := unsure_place(case.paths[IMAGE], path, channel, tolerance_mm)):
            facts.faults.append(aside)
        else:
            facts.offences += compare_grids(facts.grid, grids[role], str(path), tolerance_mm)
    return facts


def count_labels(stack: np.ndarray, path: Path, facts: CaseFacts, most: int = MOST_LABELS) -> None:
    """The census of one file of labels, planes or a plane. Raises VolumeFault for what holds no labels."""
    facts.is_float = stack.dtype.kind == "f"
    try:
        values, counts = np.unique(whole_labels(stack), return_counts=True)
    except ValueError as error:
        raise VolumeFault("holds no labels (round it, or name the right file)", f"{path} ({error})") from error
    if len(values) > most:
        raise VolumeFault(f"holds more than {most} different values, as an image does", f"{path} ({len(values)})")
    facts.labels = Counter(dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True)))


def compare_grids(image: Grid, label: Grid, file: str, tolerance_mm: float) -> list[Offence]:
    """How the label's grid differs from its image's: shape; origin, direction and spacing, by the mm that they cost."""
    if image.shape != label.shape:
        return [Offence(file, "shape", f"{label.shape}, its image {image.shape}", "none")]
    tolerance_mm = image.allows(tolerance_mm)
    if image.distance(label) <= tolerance_mm:
        return []
    own, other = (np.array(grid.spacing()) for grid in (image, label))
    turned = image.affine[:3, :3] / own, label.affine[:3, :3] / other
    reach = (np.array(image.shape) - 1) * own
    origin = float(np.linalg.norm(image.affine[:3, 3] - label.affine[:3, 3]))
    angles = np.degrees(np.arccos(np.clip((turned[0] * turned[1]).sum(0), -1, 1)))
    apart = float(np.linalg.norm((turned[0] - turned[1]) * reach, axis=0).max())
    stretched = float((np.abs(own - other) * (np.array(image.shape) - 1)).max())
    spacings = " and ".join("x".join(f"{mm:.4g}" for mm in each) for each in (other, own))
    shown = [
        ("origin", origin, f"{origin:.3g} mm apart"),
        ("direction", apart, f"{angles.max():.3g} degrees, {apart:.3g} mm at the far edge"),
        ("spacing", stretched, f"{spacings} mm, {stretched:.3g} mm at the far edge"),
    ]
    worst = max(far for _, far, _ in shown)
    return [
        Offence(file, what, words, f"{tolerance_mm:g} mm")
        for what, far, words in shown
        if far > tolerance_mm or far == worst  # each may be within, and their sum not
    ]


def unlike_spacing(sites: Sequence[Site], axis: int) -> tuple[np.ndarray, float]:
    """(N, 2) mm along W and H of every volume, and the largest over the smallest of them, along the worse axis."""
    planes = [np.delete(np.array(grid.spacing()), axis) for site in sites for grid in site.grids]
    found = np.array(planes)
    return found, float((found.max(0) / found.min(0)).max())
