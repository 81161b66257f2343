"""Which classes two sites' labels become: as the user says, as a data set names them, or by what is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from files.labels import parse_label_map
from preprocess.survey.sites import Site
from preprocess.survey.wishes import Wishes
from processes.errors import UserError
from utils import listing

BACKGROUND = "background"


@dataclass(frozen=True)
class Classes:
    """The proposal.

    label_maps: of source and target; None where the labels are the classes
    others: the class of all other labels, None if there are none
    ignore: of source and target, the label of voxels whose class nobody knows
    names: of all classes, the background first; empty where nobody tells
    """

    label_maps: tuple[str | None, str | None]
    others: int | None
    n_class: int
    ignore: tuple[int | None, int | None] = (None, None)
    names: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def propose_classes(sites: tuple[Site, Site], wishes: Wishes) -> Classes:
    """Raises UserError where there can be no proposal. The source's labels decide, as they are learnt."""
    source = sites[0]
    if source.voxels and min(source.voxels) < 0 and not wishes.label_map:
        raise UserError(
            f"The source labels hold negative values ({min(source.voxels)}): name the right files, or map them."
        )
    if not set(source.voxels) - {0, source.files.ignore}:
        raise UserError(f"The source labels '{source.files.label}' are 0 throughout: no organ to learn.")
    if wishes.label_map:
        return _typed(sites, wishes)
    return _declared(sites, wishes) if source.files.class_names else _counted(sites, wishes)


# ------------------------------------------------------------------------------------------ as what is there says


def _counted(sites: tuple[Site, Site], wishes: Wishes) -> Classes:
    """Every label of the source is a class."""
    source, target = sites
    labels = sorted({0, *source.voxels} - {source.files.ignore})
    reasons, label_map = [], None
    if labels != list(range(len(labels))):
        label_map = _written({label: number for number, label in enumerate(labels)})
        kind = "a 0/255 mask" if labels == [0, 255] else "labels with gaps"
        reasons.append(f"--label_map {label_map}: {kind}, {listing(labels)}, become classes 0..{len(labels) - 1}")
    reasons += _floats_told(sites)
    extra = sorted(set(target.voxels) - set(labels) - {target.files.ignore})
    if extra:
        label_map = label_map or _written({label: label for label in labels})
        reasons.append(
            f"--others 0: target labels {listing(extra)} are in no source volume and become BACKGROUND; check"
        )
    if lacking := sorted(set(labels) - set(target.voxels)) if target.voxels else []:
        reasons.append(f"label {listing(lacking)} is in no target volume; check")
    names = _checked_names(wishes.class_names, len(labels))
    return Classes((label_map, label_map), 0 if extra else None, len(labels), names=names, reasons=tuple(reasons))


def _floats_told(sites: Sequence[Site]) -> list[str]:
    return [
        f"{site.floats} {site.name} labels are whole numbers stored as fractions, which does no harm"
        for site in sites
        if site.floats
    ]


def _written(classes: Mapping[int, int]) -> str:
    return ",".join(f"{label}:{number}" for label, number in classes.items())


def _checked_names(names: tuple[str, ...], n_class: int) -> tuple[str, ...]:
    if names and len(names) != n_class:
        raise UserError(
            f"--class_names are the names of all {n_class} classes, the background first; got {listing(names)}."
        )
    return names


# ------------------------------------------------------------------------------------------ as the user says


def _typed(sites: tuple[Site, Site], wishes: Wishes) -> Classes:
    """The user's map, for both sites; labels that it leaves out become background, which is told."""
    label_map = str(wishes.label_map)
    mapping = parse_label_map(label_map, 0)
    n_class = 1 + max(mapping.numbers())
    if not any(mapping.class_of(label) for label in sites[0].voxels):
        raise UserError(f"--label_map {label_map} makes background of all source labels, {listing(sites[0].voxels)}.")
    reasons = [f"--label_map {label_map}, as given: {n_class} classes", *_floats_told(sites)]
    ignore = tuple(None if site.files.ignore in mapping.classes else site.files.ignore for site in sites)
    others = None
    for site, ignored in zip(sites, ignore, strict=True):
        if left := sorted(set(site.voxels) - {0, *mapping.classes, ignored}):
            others = 0
            reasons.append(f"--others 0: {site.name} labels {listing(left)} are not in it and become BACKGROUND; check")
    names = wishes.class_names or _merged_names(sites[0].files.class_names, mapping.class_of, n_class)
    return Classes((label_map, label_map), others, n_class, ignore, _checked_names(names, n_class), tuple(reasons))


def _merged_names(told: Mapping[int, str], class_of: Callable[[int], int | None], n_class: int) -> tuple[str, ...]:
    """The names of the labels that became each class, joined; empty where no label that is named became one."""
    members = [[name for label, name in told.items() if label and class_of(label) == k] for k in range(1, n_class)]
    return (BACKGROUND, *(" + ".join(names) for names in members)) if members and all(members) else ()


# ------------------------------------------------------------------------------------------ as a data set says


def _declared(sites: tuple[Site, Site], wishes: Wishes) -> Classes:
    """The classes that the source names; the target's labels are found by their names, whatever their numbers."""
    source, target = sites
    told = source.files.class_names
    order = sorted(told)
    if not source.files.names_all:
        order = [label for label in order if label == 0 or label in source.voxels]
    strange = sorted(set(source.voxels) - {*order, source.files.ignore})
    if strange:
        raise UserError(
            f"The source labels hold {listing(strange)}, which its data set does not name (it names "
            f"{listing(f'{label} {told[label]}' for label in order)}): mend the labels, or give --label_map."
        )
    told = {label: told[label] for label in order}
    own = {label: number for number, label in enumerate(order)}
    reasons = [f"{len(order)} classes as named: {listing(told[label] for label in order)}", *_floats_told(sites)]
    if lacking := [told[label] for label in order[1:] if label not in source.voxels]:
        reasons.append(f"{listing(lacking)}: named, and in no source volume; check")
    theirs, about_target = _by_name(target, told, own) if target.files.class_names else (own, [])
    extra = sorted(set(target.voxels) - {*theirs, target.files.ignore})
    if extra:
        about_target += [
            f"--others 0: target labels {listing(extra)} are no class of the source and become BACKGROUND; check"
        ]
    ignore = source.files.ignore, target.files.ignore if target.files.label else None
    maps = tuple(
        None
        if not extra and ignored is None and all(label == number for label, number in each.items() if label in order)
        else _written(each)
        for each, ignored in zip((own, theirs), ignore, strict=True)
    )
    if ignored := sorted({each for each in ignore if each is not None}):
        about_target.append(
            f"--ignore: label {listing(ignored)} marks voxels whose class nobody knows; they count nowhere"
        )
    names = _checked_names(wishes.class_names or tuple(told[label] for label in order), len(order))
    return Classes(maps, 0 if extra else None, len(order), ignore, names, (*reasons, *about_target))


def _by_name(target: Site, told: Mapping[int, str], own: Mapping[int, int]) -> tuple[dict[int, int], list[str]]:
    """Target label -> class, and what is to be said of it."""
    named = target.files.class_names
    classes: dict[str, list[int]] = {}
    for label, name in told.items():
        classes.setdefault(_key(name), []).append(own[label])
    theirs = {}
    for label, name in named.items():
        found = classes.get(_key(name), [])
        if len(found) > 1 and own.get(label) not in found:
            raise UserError(
                f"The source calls {len(found)} labels '{name}', and the target has the label {label} of that name: "
                "which of them it is cannot be told. Rename them in both, or give --label_map, which holds for both."
            )
        if found:
            theirs[label] = own[label] if len(found) > 1 else found[0]
    theirs |= {0: 0}
    said = []
    if moved := [named[label] for label, number in theirs.items() if number and own.get(label) != number]:
        said.append(f"target labels are found by their names, as their numbers differ: {listing(moved)}; check")
    unknown = [name for label, name in named.items() if label not in theirs]
    missing = [name for label, name in told.items() if own[label] and own[label] not in theirs.values()]
    if target.files.label and missing and len(missing) == len(own) - 1:
        raise UserError(
            f"Source and target share no class: the source has {listing(missing)}, the target {listing(unknown)}. "
            "Rename them in one of the two, or give --label_map, which holds for both."
        )
    if target.files.label and missing:
        said.append(f"{listing(missing)}: the target has no class of that name; check")
    for number in sorted(
        set(own.values()) - set(theirs.values())
    ):  # a map leaves no class out: a label that is nowhere
        theirs[max(*theirs, *named, *target.voxels, 255) + 1] = number
    return dict(sorted(theirs.items())), said


def _key(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ")
