"""The pictures of one site as a user has them: paired, read, their masks counted; what is proposed for two sites."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from files.faults import VolumeFault
from files.grids import Grid
from files.pairing import Case, compile_pattern, pair
from files.pictures import LOSSY, read_picture
from preprocess.layouts.layout import SiteFiles
from preprocess.picture_set import find_twins, must_be_alike, must_have_greys
from preprocess.survey.classes import propose_classes
from preprocess.survey.plan import MULTIPLE, Plan
from preprocess.survey.sites import IMAGE, LABEL, CaseFacts, Site, count_labels, roles_of, site_of
from preprocess.survey.splits import propose_group, propose_splits
from preprocess.survey.wishes import Wishes
from processes.errors import UserError
from processes.pool import in_processes
from utils import listing, sha256_of

LARGEST = 512  # pixels of the longer side that is proposed; larger pictures are scaled down
FEW = 8  # values of a mask of 0 and 255; one with more of them has been blurred


def read_picture_site(name: str, files: SiteFiles, is_mapped: bool, jobs: int = 1) -> Site:
    """Pairs the files, and reads every picture and every mask. Grids are of pictures (rows, columns, 1).

    is_mapped: whether the user says which class each grey level of a mask is
    """
    cases, faults = pair(roles_of(files), compile_pattern("--patient", files.patient), pictures=True)
    found = list(in_processes(partial(_read_case, is_mapped=is_mapped), cases, jobs))
    faults += find_twins({case.paths[IMAGE]: sha256_of(case.paths[IMAGE]) for case in cases if IMAGE in case.paths})
    return site_of(name, files, cases, found, faults)


def _read_case(case: Case, is_mapped: bool) -> CaseFacts:
    facts = CaseFacts()
    for role, path in case.paths.items():
        try:
            pixels = read_picture(path, is_label=role == LABEL)
            if role == IMAGE:
                must_have_greys(pixels, path)
                facts.grid = Grid((*pixels.shape, 1), np.eye(4))
                continue
            if facts.grid:
                must_be_alike(pixels.shape, facts.grid.shape[:2], path)
            if not is_mapped:
                _must_be_sharp(pixels, path)
            count_labels(pixels, path, facts)
        except VolumeFault as error:
            facts.faults.append(error.fault)
    return facts


def _must_be_sharp(mask: np.ndarray, path: Path) -> None:
    """Raises VolumeFault for a mask with grey levels between its labels, as JPEG and resizing leave them."""
    values = np.unique(mask)
    if len(values) > 2 and (path.suffix.lower() in LOSSY or (len(values) > FEW and values[-1] == 255)):
        what = (
            "is a mask with grey levels in between, as JPEG and resizing leave them (save it as PNG with one number a "
            "class; or take all from 128 on with --label_map 0-127:0,128-255:1)"
        )
        raise VolumeFault(what, f"{path} ({len(values)} different values)")


# ------------------------------------------------------------------------------------------------- the proposal


def make_picture_plan(sites: tuple[Site, Site], wishes: Wishes) -> Plan:
    """A proposal for source and target. Raises UserError where there can be none."""
    _check(sites, wishes)
    classes = propose_classes(sites, wishes)
    typed = wishes.group or next((site.files.group for site in sites if site.files.group), None)
    group, about_group = (typed, []) if typed else propose_group(sites)
    splits, about_splits = propose_splits(sites, group, 2, wishes)
    size, about_size = propose_picture_size(sites, wishes)
    lengths = "distances are in pixels; --spacing gives the size of a pixel in mm"
    if wishes.spacing:
        lengths = "--spacing {:g} {:g}: a pixel in mm, as given".format(*wishes.spacing)
    notes = [note for site in sites for note in site.files.notes]
    reasons = (*classes.reasons, *about_splits, *about_group, about_size, lengths, *notes)
    reasons = tuple(dict.fromkeys(reasons))
    return Plan(classes, splits, group, "", wishes.spacing, size, reasons, tiles=wishes.tile is not None)


def _check(sites: Sequence[Site], wishes: Wishes) -> None:
    """Raises UserError for what is for volumes, and for a site that cannot be split."""
    if wishes.plane:
        raise UserError("--plane is for volumes; pictures are taken as they are.")
    if wishes.organ_mm3:
        raise UserError("--organ_mm3 is for volumes; pictures have areas: --organ_mm2 with --spacing.")
    if wishes.organ_mm2 and not wishes.spacing:
        raise UserError("--organ_mm2 needs --spacing W_MM H_MM, the size of a pixel, which no picture tells; give it.")
    if wishes.size and wishes.tile:
        raise UserError("--size scales every picture, --tile cuts it in parts; give one of them.")
    for site in sites:
        if len(site.cases) < 2:
            raise UserError(
                f"The {site.name} is one picture, {site.cases[0].patient}: one trains and another validates. Widen the "
                "pattern."
            )


def propose_picture_size(sites: Sequence[Site], wishes: Wishes) -> tuple[tuple[int, int], str]:
    """Width and height of the slices: the smallest multiple that holds every picture, or LARGEST, and why."""
    shapes = Counter(grid.shape[1::-1] for site in sites for grid in site.grids)
    shown = f"pictures of {listing((f'{w}x{h}' for (w, h), _ in shapes.most_common()), 4)} pixels"
    if wishes.tile:
        return wishes.tile, "--tile {} {}, as given: {} are cut into tiles".format(*wishes.tile, shown)
    if wishes.size:
        return wishes.size, "--size {} {}, as given: {} are scaled to fit".format(*wishes.size, shown)
    largest = np.max(list(shapes), axis=0)
    scale = min(1, LARGEST / largest.max())
    size = tuple(int(-(-n * scale // MULTIPLE) * MULTIPLE) for n in largest)
    why = f"--size {size[0]} {size[1]}: all {shown} are scaled to fit, and padded"
    if scale < 1:
        why += f"; large ones lose what is small, as nuclei: then give --tile {LARGEST // 2} {LARGEST // 2}"
    return size, why
