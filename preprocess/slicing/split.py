"""Who is trained on, who validates, who tests: whole patients, and whole groups of them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from files.grids import Grid
from files.pairing import Case, compile_pattern, read_id
from preprocess.slicing.spec import SliceSpec
from processes.errors import UserError
from utils import listing


def assign_splits(cases: Sequence[Case], spec: SliceSpec) -> dict[str, str]:
    """Patient -> split, whole groups where spec.group is given; empty for a split by blocks. Raises UserError."""
    if spec.split_by_blocks:
        return {}
    groups = {case.patient: case.patient for case in cases}
    if spec.group:
        pattern = compile_pattern("--group", spec.group)
        read = {case.patient: read_id(next(iter(case.paths.values())), pattern) for case in cases}
        lost = [name for name, group in read.items() if group is None]
        if lost:
            raise UserError(f"--group '{spec.group}' does not match the image file of {listing(lost, 40)}.")
        groups = {name: str(group) for name, group in read.items()}
    return split_patients(groups, spec)


def split_patients(groups: Mapping[str, str], spec: SliceSpec) -> dict[str, str]:
    """Patient -> split. `groups`: patient -> group; a group stays together.

    Lists come first; then --test and --val take whole groups in an order that depends on seed and group name alone,
    so that it is the same on every machine; test is drawn first and stays when --val changes. Raises UserError.
    """
    home: dict[str, str] = {}
    for split, names in (("val", spec.val_list), ("test", spec.test_list)):
        unknown = [name for name in names if name not in groups]
        if unknown:
            raise UserError(
                f"--{split}_list names patients that are not there: {listing(unknown, 40)}. "
                f"There are {listing(groups, 40)}."
            )
        home |= dict.fromkeys(names, split)
    twice = sorted(set(spec.val_list) & set(spec.test_list))
    if twice:
        raise UserError(f"--val_list and --test_list share {listing(twice, 40)}; a patient belongs to one split.")
    for split, number in (("test", spec.test), ("val", spec.val)):
        home |= dict.fromkeys(
            _draw({p: g for p, g in groups.items() if p not in home}, split, number, spec.seed), split
        )
    home = {patient: home.get(patient, "train") for patient in groups}
    splits_of: dict[str, set[str]] = {}
    for patient, group in groups.items():
        splits_of.setdefault(group, set()).add(home[patient])
    torn = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if torn:
        raise UserError(
            f"The lists tear these groups apart: {listing(torn, 40)}. List all patients of a group or none."
        )
    if "train" not in home.values():
        raise UserError(f"All {len(groups)} patients are for validation or test; none is left to train on.")
    return home


def _draw(groups: Mapping[str, str], split: str, number: int, seed: int) -> list[str]:
    """`number` patients in whole groups."""
    drawn: list[str] = []
    for group in sorted(set(groups.values()), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()):
        members = [patient for patient, name in groups.items() if name == group]
        if len(drawn) + len(members) <= number:
            drawn += members
    if len(drawn) != number:
        sizes = sorted(Counter(groups.values()).values())
        raise UserError(f"--{split} {number}: cannot take that many patients out of groups of {listing(sizes, 40)}.")
    return drawn


def slice_splits(case: Case, grid: Grid, home: Mapping[str, str], spec: SliceSpec) -> tuple[str, ...]:
    """The split of each slice of a patient; "" while the set has faults and nobody is in a split."""
    number = grid.shape[spec.axis]
    if spec.split_by_blocks:
        return tuple(spec.split_by_blocks.split_of(index) for index in range(number))
    return (home.get(case.patient, ""),) * number
