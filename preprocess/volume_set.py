"""NIfTI volumes -> a set of volumes that the pipeline trains on, in 3D.

    python -m preprocess.volume_set --dest data/brats --image 'V/imagesTr/*.nii.gz' --label 'V/labelsTr/*.nii.gz' \\
        --unlabelled 'V/imagesTs/*.nii.gz' --patient '(BRATS_[0-9]+)' --axes 2 1 0 --label_map 1-3:1 --train 8

A set of images alone, to adapt to, is made without --label; with --scale_of data/source it is scaled as the source is.

Writes DEST/{train,val,unlabelled}/{IMG,GT}/<patient>.npy: images (C, D, W, H) in the smallest type that loses nothing,
ground truth (D, W, H) uint8; DEST/manifest.csv, where the voxels lie, and DEST/dataset.json, how the set was made and
by what `scale` its images are to be standardised as they are read. DEST appears when it is whole, or not at all.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.set_tables import read_card
from datasets.trained_on import (
    describe_geometry,
    describe_guessed,
    describe_levels,
    describe_orders,
    grey_levels,
    stored_as,
)
from datasets.volume_files import compact
from files.faults import Fault
from files.grids import RADIOLOGICAL, TOLERANCE
from files.nifti_headers import qform_in_mm, states_no_place
from files.pairing import Case, compile_pattern, pair
from files.reading import displaced, read_grid, read_header, sha256, unsure_place
from preprocess.new_set import refuse, refuse_existing, whole_folder, write_card
from preprocess.packing import (
    IMAGE,
    LABEL,
    MOMENTS,
    SPLITS,
    PackingResult,
    Task,
    VolumeSpec,
    gather_image,
    read_classes,
    reordered,
    turned_header,
)
from preprocess.slicing.tables import UNLABELLED, is_unlabelled
from processes.errors import UserError
from processes.pool import in_processes
from processes.quoting import csv_text
from utils import ProgramParser, atomic_write, counted, listing, run_program

TOOL = "preprocess.volume_set 3"  # raised when the same volumes and settings give other files
COLUMNS = ("name", "split", "spacing_slice", "spacing_w", "spacing_h", "affine", "qform", "codes", "stored")
COLUMNS = (*COLUMNS, "source", "sha256")  # affine and qform, and the codes of qform and sform: see nifti_headers


def make_volume_set(
    spec: VolumeSpec, named: Sequence[Case] | None = None, scale_card: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes the set to spec.dest and returns the content of its dataset.json.

    named: the patients, by the roles of spec.image, if their files are not to be found by its globs
    scale_card: the card of the set whose scale is taken, where the set itself is not there
    Raises UserError if spec.dest is there already, and one that lists every volume at fault; then nothing is left.
    """
    refuse_existing(spec.dest, "--dest")
    spec.mapping()  # a slip in --label_map is told before any volume is read, and so is a set without a scale
    scale_card = read_scale_card(spec.scale_of) if spec.scale_of else scale_card
    tasks, faults = _find(spec) if named is None else (_split(named, spec), [])
    with whole_folder(spec.dest) as made:
        for task in tasks:
            for folder in (IMAGE, LABEL) if task.split != "unlabelled" else (IMAGE,):
                (made / task.split / folder).mkdir(parents=True, exist_ok=True)
        work = partial(write_case, spec=spec, folder=None if faults else made)
        results = list(tqdm(in_processes(work, tasks, spec.jobs), "volumes", len(tasks), unit="patient", disable=None))
        faults += [fault for each in results for fault in each.faults]
        faults += [] if faults else _misfits(tasks, results)
        refuse(faults, spec.dest)
        card = make_card(spec, tasks, results, scale_card)
        write_card(made, card)
        _write_manifest(made, tasks, results)
    return card


# ------------------------------------------------------------------------------------------------- who goes where


def _find(spec: VolumeSpec) -> tuple[list[Task], list[Fault]]:
    """The patients of all splits, and what is wrong with their files."""
    patient = compile_pattern("--patient", spec.patient)
    roles = spec.roles(spec.image) | ({LABEL: spec.label} if spec.label else {})
    cases, faults = pair(roles, patient)
    unlabelled, more = pair(spec.roles(spec.unlabelled), patient)
    faults += more
    known = {case.patient for case in cases}
    what = "patients both with --image and with --unlabelled (a volume belongs to one split; narrow the patterns)"
    faults += [(what, case.patient) for case in unlabelled if case.patient in known]
    tasks = [Task(case, "train") for case in cases] if faults else _split(cases, spec)
    return tasks + [Task(case, "unlabelled") for case in unlabelled], faults


def _split(cases: Sequence[Case], spec: VolumeSpec) -> list[Task]:
    home = assign_splits([case.patient for case in cases], spec)
    return [Task(case, home[case.patient]) for case in cases]


def assign_splits(names: Sequence[str], spec: VolumeSpec) -> dict[str, str]:
    """Patient of --image -> split: the first to train on, the next to validate; what is left goes without its labels.

    In the order of their names, or in one that depends on seed and name alone. Raises UserError for too few patients.
    """
    order = sorted(names)
    if spec.seed is not None:
        order.sort(key=lambda name: hashlib.sha256(f"{spec.seed}/{name}".encode()).digest())
    val = len(order) - spec.train if spec.val is None else spec.val
    if val < 1 or spec.train + val > len(order):
        raise UserError(
            f"--train {spec.train} and --val {max(val, 1)} are more than the {len(order)} patients of --image."
        )
    splits = ["train"] * spec.train + ["val"] * val + ["unlabelled"] * (len(order) - spec.train - val)
    return dict(zip(order, splits, strict=True))


# --------------------------------------------------------------------------------------------------- one patient


def write_case(task: Task, spec: VolumeSpec, folder: Path | None) -> PackingResult:
    """Checks one patient's volumes and writes them below `folder` (None: only checks)."""
    result = PackingResult()
    image, classes = _read_case(task, spec, result)
    if image is None:
        return result
    result.channels = len(image)
    result.levels = [grey_levels(channel) for channel in image]
    if classes is not None:
        result.voxels = np.bincount(classes.ravel(), minlength=256)
    if task.split == "train" and not spec.scale_of:
        result.moments = MOMENTS[spec.normalise](image, classes)
    for role, path in task.paths.items():
        shown = Path(os.path.relpath(path)).as_posix()
        result.sources.append({"patient": task.case.patient, "role": role, "path": shown, "sha256": sha256(path)})
    if folder:
        name = f"{task.case.patient}.npy"
        np.save(folder / task.split / IMAGE / name, compact(image))
        if classes is not None:
            np.save(folder / task.split / LABEL / name, classes)
    return result


def _read_case(task: Task, spec: VolumeSpec, result: PackingResult) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The image (C, D, W, H), None for a patient at fault, and the class numbers (D, W, H), if they are to be known."""
    channels = {role: None if role == LABEL else 0 for role in task.paths}
    grids = {
        role: result.attempt(read_grid, path, channels[role], spec.orient, role == LABEL)
        for role, path in task.paths.items()
    }
    if not result.faults:
        image = next(iter(grids))
        aside = LABEL in grids and result.attempt(
            unsure_place, task.paths[image], task.paths[LABEL], 0, spec.tolerance, spec.orient
        )
        result.faults += [aside] if aside else displaced(task.paths, grids, image, spec.tolerance)
    if result.faults:
        return None, None
    first = next(iter(grids))
    result.grid = reordered(grids[first], spec.axes)
    result.guessed = bool(result.attempt(lambda path: states_no_place(read_header(path)), task.paths[first]))
    result.header = result.attempt(turned_header, task.paths[first], channels[first], result.grid)
    paths = [path for role, path in task.paths.items() if role != LABEL]
    image = result.attempt(gather_image, paths, spec.axes, spec.channels, spec.orient) if paths else None
    classes = result.attempt(read_classes, task.paths[LABEL], spec) if LABEL in task.paths else None
    if result.faults or image is None:  # no image without a fault: one that was found before
        return None, None
    return image, None if classes is None else np.ascontiguousarray(classes.transpose(spec.axes))


# ----------------------------------------------------------------------------------------------- the whole set


def _misfits(tasks: Sequence[Task], results: Sequence[PackingResult]) -> Iterator[Fault]:
    """The patients whose images have another number of channels than most."""
    usual = Counter(each.channels for each in results).most_common(1)[0][0]
    what = f"has another number of channels than the usual {usual} (choose some with --channels)"
    for task, each in zip(tasks, results, strict=True):
        if each.channels != usual:
            yield what, f"{task.case.patient} {each.channels}"


def count_classes(spec: VolumeSpec, results: Sequence[PackingResult]) -> int | None:
    """K by --label_map, else by the labels, None without any. Raises UserError where those leave a number out."""
    if not spec.label:
        return None
    if mapping := spec.mapping():
        return 1 + max(mapping.numbers())
    present = np.flatnonzero(sum(each.voxels for each in results if each.voxels is not None))
    labels = sorted({0, *present.tolist()})
    if len(labels) <= labels[-1]:
        proposal = ",".join(f"{label}:{number}" for number, label in enumerate(labels) if label != number)
        raise UserError(
            f"The labels are not 0..K-1 without a gap but {listing(labels, 40)}: give --label_map, perhaps {proposal}."
        )
    return len(labels)


def find_scale(spec: VolumeSpec, tasks: Sequence[Task], results: Sequence[PackingResult]) -> dict[str, float] | None:
    """Mean and standard deviation of the training images, all voxels and channels alike.

    With --normalise foreground inside their labels, as Xu et al. (2022) do; their code lets each volume weigh alike.
    None with --normalise none. Raises UserError where there is no foreground, or no spread.
    """
    if spec.normalise == "none":
        return None
    number, total, squares = sum(
        each.moments for task, each in zip(tasks, results, strict=True) if task.split == "train"
    )
    mean, square = total / max(number, 1), squares / max(number, 1)
    variance = square - mean**2
    if variance <= 1e-9 * square:  # nothing but rounding
        where, mend = "above the lowest", ""
        if spec.normalise == "foreground":
            where, mend = "inside the labels", "look at --label_map, or "
        raise UserError(
            f"--normalise {spec.normalise}: the {number:.0f} grey levels {where} of the {spec.train} training patients "
            f"have no spread; {mend}take --normalise none."
        )
    return {"mean": float(mean), "sd": float(variance**0.5)}


def read_scale_card(root: Path) -> dict[str, Any]:
    """The card of the set that --scale_of names. Raises UserError unless it is one of volumes that tells its scale."""
    card = read_card(root)
    if not card.get("volumetric") or "scale" not in card:
        raise UserError(
            f"--scale_of {root}: expected a set that this program made, whose dataset.json tells its scale; there is "
            f"{'one of slices, or of another program' if card else 'no dataset.json'}. Name the set that the network "
            "was trained on."
        )
    return card


def uses_labels(spec: VolumeSpec, scale_card: Mapping[str, Any] | None, results: Sequence[PackingResult]) -> str | None:
    """In what way labels of these very volumes shape what a network sees of them, in words; None if they do not."""
    if spec.normalise == "foreground":
        return "grey levels are scaled by those inside the labels of the training images"
    if scale_card and scale_card.get("uses_labels"):
        seen = {source["sha256"] for source in scale_card["sources"] if source["role"] != LABEL}
        if any(source["sha256"] in seen for each in results for source in each.sources if source["role"] != LABEL):
            return f"scaled as {scale_card['name']}, which holds some of the same volumes: {scale_card['uses_labels']}"
    return None


def make_card(
    spec: VolumeSpec, tasks: Sequence[Task], results: Sequence[PackingResult], scale_card: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The content of dataset.json; `scale_card`: the card of the set whose scale is taken."""
    mapping, n_class = spec.mapping(), count_classes(spec, results)
    members = {split: [task.case.patient for task in tasks if task.split == split] for split in SPLITS}
    members = {split: patients for split, patients in members.items() if patients}
    shapes = {each.grid.shape for each in results}
    return {
        "name": spec.dest.name,
        "volumetric": True,
        "modality": spec.modality,
        "site": spec.site,
        "phantom": spec.phantom,
        "n_class": n_class,
        "label_map": mapping and {str(label): number for label, number in mapping.classes.items()},
        "other_labels": "error" if spec.others is None else spec.others,
        "normalisation": {"kind": "as", "of": scale_card["name"], "scope": "set"}
        if scale_card
        else {"kind": spec.normalise, "scope": "set" if spec.normalise != "none" else None},
        "scale": scale_card["scale"] if scale_card else find_scale(spec, tasks, results),
        "uses_labels": uses_labels(spec, scale_card, results),
        "images": [IMAGE],
        "channels": {IMAGE: results[0].channels},
        "labels": LABEL if spec.label else None,
        "orient": spec.orient,
        "axes": list(spec.axes),
        **_trained_on(tasks, results),
        "kept_channels": list(spec.channels),
        "format": "npy",
        "size": list(*shapes) if len(shapes) == 1 else None,
        "split_unit": "patient",
        "split": members,
        "split_rule": {"train": spec.train, "val": len(members["val"]), "seed": spec.seed},
        "counts": {split: _count(split, tasks, results, n_class) for split in members},
        "sources": [source for each in results for source in each.sources],
        "tool": TOOL,
    }


def _trained_on(tasks: Sequence[Task], results: Sequence[PackingResult]) -> dict[str, Any]:
    """What trained_on tells of the volumes in train."""
    trained = [each for task, each in zip(tasks, results, strict=True) if task.split == "train"]
    grids = [each.grid for each in trained]
    return {
        "stored_as": stored_as({t.case.patient: each.grid for t, each in zip(tasks, results, strict=True)}),
        "guessed_directions": [t.case.patient for t, each in zip(tasks, results, strict=True) if each.guessed],
        "geometry": describe_geometry(grids, [grid.spacing() for grid in grids]),
        "grey_levels": {IMAGE: describe_levels(each.levels for each in trained)},
    }


def _count(split: str, tasks: Sequence[Task], results: Sequence[PackingResult], n_class: int | None) -> dict[str, Any]:
    """Patients of a split, and in how many of their volumes each class occurs."""
    counts = [each.voxels for task, each in zip(tasks, results, strict=True) if task.split == split]
    holds = None if split == "unlabelled" or not n_class else (np.array(counts)[:, :n_class] > 0).sum(0).tolist()
    return {"patients": len(counts), "volumes": len(counts), "volumes_with_class": holds}


def _write_manifest(folder: Path, tasks: Sequence[Task], results: Sequence[PackingResult]) -> None:
    """Writes manifest.csv, one row a patient, into the folder."""
    with atomic_write(folder / "manifest.csv", "w") as file:
        file.write(csv_text([COLUMNS]))
        for task, each in zip(tasks, results, strict=True):
            matrices = each.grid.affine, qform_in_mm(each.header)
            places = (" ".join(repr(float(n)) for n in matrix.ravel()) for matrix in matrices)
            codes = f"{each.header['qform_code']} {each.header['sform_code']}"
            images = [source for source in each.sources if source["role"] != LABEL]
            source = (";".join(image[key] for image in images) for key in ("path", "sha256"))
            spacing = each.grid.spacing()
            file.write(csv_text([[task.case.patient, task.split, *spacing, *places, codes, each.grid.stored, *source]]))


def describe(card: Mapping[str, Any]) -> str:
    """A line on a set for the screen."""
    counts = [f"{split} {counted(count['patients'], 'patient')}" for split, count in card["counts"].items()]
    scale = card["scale"]
    scaled = f"; scale {scale['mean']:.6g} ± {scale['sd']:.6g}" if scale else ""
    classes = f"{card['n_class']} classes" if card["n_class"] else "no labels"
    unlabelled = is_unlabelled(count["volumes_with_class"] for count in card["counts"].values())
    used = f"\n{UNLABELLED}" if unlabelled else ""
    used += f"\nLabels shaped its images: {card['uses_labels']}." if card["uses_labels"] else ""
    text = f"{card['name']}: {listing(counts)}; {classes}, {counted(card['channels'][IMAGE], 'channel')}{scaled}{used}"
    told = describe_orders(card.get("stored_as", {}), card.get("geometry", {}).get("directions"))
    return "\n".join(filter(None, (text, told, describe_guessed(card.get("guessed_directions", ())))))


# ------------------------------------------------------------------------------------------------ command line


def read_spec(arguments: Sequence[str] | None = None) -> VolumeSpec:
    """The settings on the command line. Raises UserError, or exits like argparse."""
    parser = ProgramParser("python -m preprocess.volume_set", description=__doc__)
    add = parser.add_argument_group("volumes").add_argument
    add("--dest", type=Path, required=True, help="folder of the new set; must not exist")
    image = "image volumes, 3D or 4D; once for each co-registered image of a patient, in the order of their channels"
    add("--image", action="append", required=True, metavar="GLOB", help=image)
    add("--label", metavar="GLOB", help="label volumes; without them the set is one of images alone")
    add("--unlabelled", action="append", default=[], metavar="GLOB", help="images without labels, as often as --image")
    add("--patient", required=True, metavar="REGEX", help="its groups, joined, are the patient's id; of the file name")
    tolerance = "how far apart two volumes may place a corner (default %(default)s mm, half a voxel at most)"
    add("--tolerance", type=float, default=TOLERANCE, metavar="MM", help=tolerance)
    written = parser.add_argument_group("what is written")
    add = written.add_argument
    orient = "first turn the voxels so that their axes run in these directions, or leave them as stored"
    add("--orient", metavar="{CODES,stored}", default=RADIOLOGICAL, help=f"{orient} (default %(default)s)")
    add("--axes", type=int, nargs=3, default=(0, 1, 2), metavar=("D", "W", "H"), help="of them: what become D, W, H")
    add("--channels", type=int, nargs="+", default=(), metavar="C", help="those to keep (default: all)")
    add("--label_map", metavar="MAP", help="label:class pairs, as 1-3:1; without it labels must be 0..K-1")
    add("--others", type=int, metavar="CLASS", help="of labels that --label_map leaves out; without it an error")
    kind = (
        "scale of dataset.json, mean and sd of the training images, all channels pooled: of what is above the lowest "
        "grey level of a channel (padding); inside the labels, which is a use of labels; or none"
    )
    scale = written.add_mutually_exclusive_group()
    scale.add_argument("--normalise", choices=VolumeSpec.KINDS, default="zscore", help=f"{kind} (default %(default)s)")
    other = "take the scale of this set: a target's, of the set that the source network was trained on"
    scale.add_argument("--scale_of", type=Path, metavar="SET", help=other)
    add = parser.add_argument_group("split").add_argument
    add("--train", type=int, required=True, metavar="N", help="patients of --image to train on, the first by name")
    add("--val", type=int, metavar="N", help="the next, to validate on (default: all); the rest loses its labels")
    add("--seed", type=int, help="take them in a random order instead")
    add = parser.add_argument_group("other").add_argument
    add("--site", default="", help="written to dataset.json")
    add("--modality", default="", help="written to dataset.json")
    add("--phantom", metavar="TEXT", help="the volumes are made up: dataset.json says so in these words")
    add("--jobs", type=int, default=os.cpu_count(), help="patients at a time (default %(default)s)")
    args = vars(parser.parse_args(arguments))
    args.pop("debug")
    args["orient"] = None if args["orient"] == "stored" else args["orient"]
    return VolumeSpec(**{name: tuple(value) if isinstance(value, list) else value for name, value in args.items()})


def main() -> None:
    print(describe(make_volume_set(read_spec())))


if __name__ == "__main__":
    run_program(main)
