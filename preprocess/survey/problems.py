"""What may be wrong with sets of slices or volumes before anybody trains on them: looked for, listed, never mended."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets import stacks
from datasets.set_tables import is_split_by_patients, normalisation_of
from datasets.size_table import TRUE_SIZES, WITH_TAGS, WITHOUT_TAGS, SizeTable, read_size_table
from datasets.trained_on import list_orders
from files.faults import Fault
from preprocess.size_priors import compare
from preprocess.survey.sets import Survey
from processes.errors import UserError
from utils import doubled, listing

EMPTY_SHARE = 0.75  # of a split's slices without foreground, from which that is worth a word
UNLIKE = 1.2  # times as large: spacings of a set, or sites, that differ by more
PRIOR_OFF = 2.0  # times the truth, or its inverse, from which a prior is far off
SLACK = 1e-3  # that grey levels may leave 0..1 by
FEW = 2  # patients in val

WHITE = 255
WHITE_MEANS = (
    "no class: of a 0/255 mask write 1 for 255; where it marks pixels without a class, train with --ignore 255"
)

OPEN_RANGES = ("zscore", "none")


def find_problems(surveys: Sequence[Survey], prior: Path | None) -> list[Fault]:
    """Every problem of the sets and of the prior for the last of them: what, and which; the worst kinds first."""
    found = [fault for survey in surveys for fault in _faults_of_set(survey)]
    found += _duplicates(surveys)
    for survey in surveys:
        found += [*_classes(survey), *_orders(survey), *_spacings(survey), *_levels(survey)]
    found += _sites(surveys)
    return found + (list(_prior(surveys[-1], prior)) if prior and prior.is_file() else [])


def _faults_of_set(survey: Survey) -> Iterator[Fault]:
    """Unreadable, without a partner, flat, of several sizes; a patient in two splits."""
    yield from ((f"{survey.set_name}: {what}", which) for what, which in survey.faults)
    yield from _patients(survey)
    yield from _places(survey)
    for item in survey.items:
        for image in item.images.values():
            if image.low == image.high:
                which = f"{item.key} ({image.folder}: {image.low:g})"
                yield f"{survey.set_name}: flat image, one grey level throughout", which
    if not survey.volumetric:
        yield from _unusual(survey, "size", [(item.key, item.size) for item in survey.items if item.size])
    shown = [(item.key, image.channels) for item in survey.items for image in item.images.values()]
    yield from _unusual(survey, "number of channels", shown)


def _patients(survey: Survey) -> Iterator[Fault]:
    """Splits that share a patient, or lack patients."""
    name = survey.set_name
    homes: dict[str, set[str]] = defaultdict(set)
    for item in survey.items:
        homes[item.patient].add(item.split)
    for patient, splits in homes.items():
        if len(splits) > 1 and is_split_by_patients(survey.card):
            yield f"{name}: patient in more than one split", f"{patient} ({' and '.join(sorted(splits))})"
    for split in ("train", "val"):
        if not survey.of(split):
            yield f"{name}: no {survey.unit} in this split", split
    if 0 < len({item.patient for item in survey.of("val")}) < FEW:
        yield f"{name}: validates on one patient, whose score is no measure of accuracy", survey.of("val")[0].patient


def _places(survey: Survey) -> Iterator[Fault]:
    """Slices of a volume that lack between others, and those of one number."""
    if survey.volumetric or survey.is_of_pictures or not is_split_by_patients(survey.card):
        return
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for item in survey.items:
        if item.number is not None:
            numbers[item.patient, item.split].append(item.number)
    for (patient, split), found in numbers.items():
        if same := doubled(found):
            yield f"{survey.set_name}: slices of one patient and number", f"{split}/{patient} ({listing(same, 5)})"
        elif not stacks.are_places(found):
            yield (
                f"{survey.set_name}: numbers far apart, which tell no places",
                f"{split}/{patient} ({listing(found, 5)})",
            )
        elif (step := stacks.constant_step(found)) > 1:
            what = f"{survey.set_name}: slices numbered in steps (neighbours count as so many slice spacings apart)"
            yield what, f"{split}/{patient} (by {step})"
        elif lost := stacks.gaps(found):
            what = f"{survey.set_name}: slices lack between others (distances keep the gap)"
            yield what, f"{split}/{patient} ({listing(lost, 5)})"


def _unusual(survey: Survey, what: str, values_by_key: Sequence[tuple[str, object]]) -> Iterator[Fault]:
    usual = Counter(value for _, value in values_by_key).most_common(1)
    for key, value in values_by_key:
        if value != usual[0][0]:
            yield f"{survey.set_name}: other {what} than the usual {usual[0][0]}", f"{key} ({value})"


def _duplicates(surveys: Sequence[Survey]) -> Iterator[Fault]:
    """Images with equal grey levels under several names, in one split, in two, or at two sites; but no flat images."""
    places: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for survey in surveys:
        for item in survey.items:
            for image in item.images.values():
                if image.low < image.high:
                    places[image.folder, image.digest].append((survey.set_name, item.key))
    for same in places.values():
        if len(same) > 1:
            sets, splits = {name for name, _ in same}, {key.split("/")[0] for _, key in same}
            where = "in two sets" if len(sets) > 1 else "in two splits of a set" if len(splits) > 1 else "in one split"
            shown = " = ".join(f"{name}/{key}" for name, key in same[:3]) + " = …" * (len(same) > 3)
            yield f"the same image under several names, {where}", shown


def _classes(survey: Survey) -> Iterator[Fault]:
    """Labels beyond the classes; a class that a split lacks; splits that are mostly empty."""
    if not survey.labels:
        return
    ignored = survey.card.get("ignore")
    known = {*range(survey.n_class), ignored}
    for item in survey.items:
        odd = [] if item.pixels is None else [k for k in np.flatnonzero(item.pixels).tolist() if k not in known]
        if odd == [WHITE]:
            yield f"{survey.set_name}: label 255, {WHITE_MEANS}", item.key
        elif odd:
            yield f"{survey.set_name}: labels outside 0..{survey.n_class - 1}", f"{item.key} ({listing(odd, 5)})"
    for split in survey.splits:
        counts = survey.class_counts(split)
        if not len(counts):
            continue
        for k in range(1, survey.n_class):
            if not counts[:, k].any():
                yield f"{survey.set_name}: class absent from {split}", survey.class_name(k)
        labelled = [item.pixels for item in survey.of(split) if item.pixels is not None]
        foreground = [
            k for k in range(1, len(labelled[0])) if k != ignored
        ]  # beyond the classes too: it is no emptiness
        empty = float(np.mean([not pixels[foreground].any() for pixels in labelled]))
        if empty > EMPTY_SHARE:
            yield f"{survey.set_name}: most {survey.unit} are empty, without any class", f"{split} ({empty:.0%})"


def _orders(survey: Survey) -> Iterator[Fault]:
    """Volumes that were cut as they are stored, and are stored in several orders of voxels."""
    if len(survey.orders) > 1 and not survey.directions:
        what = (
            "slices are turned or mirrored against each other: volumes in several orders of voxels were cut as stored"
        )
        yield f"{survey.set_name}: {what} (cut them anew with --plane axial)", list_orders(survey.orders)


def _spacings(survey: Survey) -> Iterator[Fault]:
    for axis, words in enumerate(("from slice to slice", "along W", "along H")):
        lengths = {patient: mm[axis] for patient, mm in sorted((survey.spacing or {}).items())}
        if lengths and max(lengths.values()) > UNLIKE * min(lengths.values()):
            least, most = (pick(lengths, key=lengths.__getitem__) for pick in (min, max))
            shown = f"{lengths[least]:.3g} mm ({least}) to {lengths[most]:.3g} mm ({most})"
            yield f"{survey.set_name}: very different spacing {words}", shown


def _levels(survey: Survey) -> Iterator[Fault]:
    """Grey levels outside 0..1, unless the card says that they are meant to."""
    if _is_open_range(survey):
        return
    for folder in survey.images:
        images = [item.images[folder] for item in survey.items if folder in item.images]
        outside = [image for image in images if image.low < -SLACK or image.high > 1 + SLACK]
        if outside:
            low, high = min(image.low for image in outside), max(image.high for image in outside)
            shown = f"{len(outside)} of {len(images)} in {folder} ({low:.4g} to {high:.4g})"
            yield f"{survey.set_name}: grey levels outside 0..1", shown


def _is_open_range(survey: Survey) -> bool:
    """Whether grey levels are not meant to lie in 0..1."""
    how = normalisation_of(survey.card)
    return bool(survey.volumetric or how.get("kind") in OPEN_RANGES or how.get("no_clip"))


def find_unchecked(surveys: Sequence[Survey], prior: Path | None) -> list[str]:
    """What was not looked for, as the data do not tell enough for it: a line each."""
    found = [f"{survey.set_name}: {line}" for survey in surveys for line in _unchecked_of_set(survey)]
    if len(surveys) < 2:
        found.append("another site: one set was named")
    if prior is None:
        found.append("the class-ratio prior: none was named (--sizes)")
    elif not prior.is_file():
        found.append(f"the class-ratio prior {prior}: it is not there yet, the first adaptation makes it")
    return found


def _unchecked_of_set(survey: Survey) -> Iterator[str]:
    if survey.taken_for:
        yield f"whether it is of slices or volumes: no dataset.json tells it, {survey.taken_for}"
    if not survey.labels:
        yield "ground truth, class ratios, empty slices: there is no folder of labels"
    elif survey.card.get("n_class") is None:
        yield "labels against a number of classes: no dataset.json tells it (0 to the largest label were taken for it)"
    if not survey.spacing and not survey.is_of_pictures:
        yield "spacing: no manifest.csv tells it"
    if not is_split_by_patients(survey.card):
        yield f"patients in several splits, gaps between slices: it is split by {survey.card['split_unit']}"
    elif not survey.volumetric and not survey.is_of_pictures and any(item.number is None for item in survey.items):
        yield "gaps between slices: not every name ends in a number (--grp_regex)"
    if _is_open_range(survey):
        yield "the range of grey levels: they are not meant to lie in 0..1"


def _sites(surveys: Sequence[Survey]) -> Iterator[Fault]:
    """What differs between the sets, pair by pair."""
    for first, second in itertools.pairwise(surveys):
        names = f"{first.set_name} and {second.set_name}"
        counts = [len(set(each.images)) for each in (first, second)]
        if first.n_class and second.n_class and first.n_class != second.n_class:
            yield "other number of classes", f"{names} ({first.n_class} and {second.n_class})"
        if counts[0] == counts[1] == 1:
            channels = [{i.channels for item in each.items for i in item.images.values()} for each in (first, second)]
            if channels[0] != channels[1]:
                yield "other number of channels", f"{names} ({sorted(channels[0])} and {sorted(channels[1])})"
        ways = [(each.directions, each.card.get("axis")) for each in (first, second)]
        if all(directions for directions, _ in ways) and ways[0] != ways[1]:
            shown = " and ".join(f"{directions}, along axis {axis}" for directions, axis in ways)
            yield "slices cut in other directions at two sites", f"{names} ({shown})"
        if not (first.spacing and second.spacing):
            continue
        middle = [np.median(list(each.spacing.values()), axis=0) for each in (first, second)]
        for axis, words in enumerate(("from slice to slice", "along W", "along H")):
            a, b = (float(each[axis]) for each in middle)
            if max(a, b) > UNLIKE * min(a, b):
                yield f"very different spacing {words} at two sites", f"{names} ({a:.3g} and {b:.3g} mm, medians)"


def _prior(survey: Survey, path: Path) -> Iterator[Fault]:
    """The csv of class-ratio priors: unreadable, without some slices, or far from the truth where that is known."""
    columns = {}
    for column in (WITH_TAGS, WITHOUT_TAGS, TRUE_SIZES):
        try:
            columns[column] = read_size_table(path, column, survey.n_class or None)
        except UserError as error:
            if column == WITHOUT_TAGS or "has no column" not in str(error):
                yield f"{path} cannot be used", f"{column} ({error})"
    for column, table in columns.items():
        if lost := [item.name for item in survey.items if item.name not in table.sizes]:
            yield f"{path}: {column} lacks slices of {survey.set_name}", f"{len(lost)} ({listing(lost, 5)})"
        elif column != TRUE_SIZES:
            yield from _far_off(survey, column, table)


def _far_off(survey: Survey, column: str, table: SizeTable) -> Iterator[Fault]:
    """Compared with the labels that lie there now, not with those that the csv was made of."""
    truth = {item.name: item.pixels[: survey.n_class].astype(float) for item in survey.items if item.pixels is not None}
    if set(truth) != set(survey.names):
        return
    try:
        found = compare(table, SizeTable(table.path, TRUE_SIZES, truth, frozenset(), {}, ""))
    except UserError as error:
        yield f"{table.path} cannot be compared", f"{column} ({error})"
        return
    for k in range(1, survey.n_class):
        ratio = float(found.ratio[k])
        if np.isfinite(ratio) and not 1 / PRIOR_OFF <= ratio <= PRIOR_OFF:
            shown = f"{survey.class_name(k)} is {ratio:.2f} times its true size"
            yield f"{table.path}: {column} is far from the truth", shown
