"""Who validates at each site, and which scans are of one person: as is typed, as a layout says, or drawn."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from files.pairing import Case, read_id
from preprocess.slicing.spec import SliceSpec
from preprocess.slicing.split import split_patients
from preprocess.survey.sites import IMAGE, Site
from preprocess.survey.wishes import Wishes
from processes.errors import UserError
from processes.quoting import for_recipe
from utils import counted, listing

VAL_SHARE = 0.2
BLOCKS, EVERY = 8, 4  # of a single volume: about so many blocks of slices, every fourth of which validates
TWICE = re.compile(r"(.*\d)(?:[a-zA-Z]|[_-][a-zA-Z]{0,5}[_-]?\d{1,2})")  # case01a, case01_2, sub-01_ses-1
MOST_SCANS = 4  # of one person; more files with one beginning are a study, no person


def propose_splits(
    sites: Sequence[Site], group: str | None, axis: int, wishes: Wishes
) -> tuple[tuple[str, str], list[str]]:
    """The slicer's flags for each site, and why. Raises UserError where nobody can be left to train or to validate."""
    everybody = {case.patient for site in sites for case in site.cases}
    if unknown := [name for name in wishes.val_list if name not in everybody]:
        raise UserError(f"--val_list names patients who are at neither site: {listing(unknown, 5)}.")
    found = [_propose_split(site, group, axis, wishes) for site in sites]
    return tuple(flags for flags, _ in found), [why for _, why in found]


def _propose_split(site: Site, group: str | None, axis: int, wishes: Wishes) -> tuple[str, str]:
    ids = [case.patient for case in site.cases]
    if len(ids) == 1:
        return _propose_blocks(site, axis)
    typed = tuple(name for name in wishes.val_list if name in ids)
    listed = typed or (() if wishes.val else site.files.val)
    if listed:
        split_patients(_homes(site, group), SliceSpec(Path(), {IMAGE: ""}, "", val_list=listed))
        whose = "as given" if typed else "as its data set says"
        why = f"--val_list: {len(listed)} of {len(ids)} {site.name} patients, {whose}: {listing(listed, 5)}"
        return f"--val_list {for_recipe(','.join(listed))}", why
    number = propose_val(site, group, wishes.val)
    return f"--val {number}", f"--val {number} of {len(ids)} {site.name} patients"


def _propose_blocks(site: Site, axis: int) -> tuple[str, str]:
    """Blocks of slices of the only volume."""
    (grid,), whose = site.grids, f"THE {site.name.upper()} IS ONE VOLUME, {site.cases[0].patient}"
    number = grid.shape[axis]
    size = max(1, round(number / BLOCKS))
    if number < size * EVERY:
        raise UserError(
            f"The {site.name} has one volume of {counted(number, 'slice')} in this plane, {site.cases[0].patient}: too "
            "few to train on some and validate on others. Widen the pattern, or take another --plane."
        )
    return (
        f"--split_by_blocks {size} {EVERY}",
        f"--split_by_blocks {size} {EVERY}: {whose}. Every {EVERY}th block of {counted(size, 'slice')} validates "
        "beside its neighbours, so NO SCORE OF IT PROVES ANYTHING on other patients; all tables say so",
    )


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
    names, homes = [case.patient for case in site.cases], _homes(site, group)
    target = n_val or max(1, round(VAL_SHARE * len(names)))
    for number in sorted(range(1, len(names)), key=lambda n: (abs(n - target), n)):
        try:
            split_patients(homes, _split_spec(number))
        except UserError:
            continue
        return number
    raise UserError(
        f"The {site.name} has {counted(len(names), 'patient')} ({listing(names)}): one trains and "
        "another validates. Widen the pattern, or mend --patient (or --group) if it reads several as one."
    )


def _homes(site: Site, group: str | None) -> Mapping[str, str]:
    """Patient -> the person, or the patient where no group tells persons. Raises UserError for a file without one."""
    names = [case.patient for case in site.cases]
    homes = dict(zip(names, names, strict=True))
    if group:
        pattern = re.compile(group)
        read = {case.patient: read_id(case.paths[IMAGE], pattern) for case in site.cases}
        if lost := [name for name, person in read.items() if person is None]:
            raise UserError(f"--group '{group}' does not match the image file of {listing(lost)}.")
        homes = {name: str(person) for name, person in read.items()}
    return homes


def _split_spec(val: int) -> SliceSpec:
    """The slicer's own draw decides what can be drawn; its other settings play no part."""
    return SliceSpec(dest=Path(), images={IMAGE: ""}, patient="", val=val)
