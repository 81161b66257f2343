"""Volumes -> a set of 2D slices that the pipeline trains on.

    python -m preprocess.slice_volumes --dest data/prostate_target \\
        --image IMG='data/prostate_volumes/RUNMC/Case??.nii.gz' \\
        --label 'data/prostate_volumes/RUNMC/Case??_segmentation.nii.gz' \\
        --patient '(Case[0-9]+)' --label_map 1-2:1 --val 10

Writes DEST/{train,val[,test]}/{IMG,GT}/<patient>_<index>.<format>, DEST/manifest.csv (one row a slice: where it
comes from, so that a prediction can go back, see frames.restore) and DEST/dataset.json (how the set was made).
DEST appears when it is whole, or not at all. A folder that is given several images has them as channels (C, W, H).
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from files.faults import Fault, VolumeFault
from files.grey_levels import Normalisation
from files.grids import PLANES, RADIOLOGICAL, TOLERANCE, Grid, axis_across, deviation, is_direction
from files.labels import map_labels
from files.pairing import Case, compile_pattern, pair, read_patients
from files.reading import displaced, read_grid, read_stack, unsure_place
from preprocess.new_set import refuse, refuse_existing, whole_folder
from preprocess.slicing.case import SlicingResult, Task, slice_case
from preprocess.slicing.spec import FORMATS, IGNORED, Blocks, SliceSpec
from preprocess.slicing.split import assign_splits, slice_splits
from preprocess.slicing.tables import describe, make_card, write_tables
from processes.errors import UserError
from processes.pool import in_processes
from utils import ProgramParser, listing, run_program


def slice_set(spec: SliceSpec, named: Sequence[Case] | None = None) -> dict[str, Any]:
    """Slices a set of volumes into spec.dest and returns the content of its dataset.json.

    named: the patients, by the roles of the spec, if their files are not to be found by its globs
    Raises UserError if spec.dest is there already, and one that lists every volume at fault; then nothing is left.
    """
    refuse_existing(spec.dest, "--dest")
    patient = compile_pattern("--patient", spec.patient)
    spec.mapping()  # a slip in --label_map is told before any volume is read
    globs = {role: glob for roles in spec.folders().values() for role, glob in roles.items()}
    cases, faults = pair(globs, patient) if named is None else ([*named], [])
    home = {} if faults else assign_splits(cases, spec)
    cases, grids, more = _inspect(cases, spec)
    faults += more
    tasks = [Task(case, grid, slice_splits(case, grid, home, spec)) for case, grid in zip(cases, grids, strict=True)]

    with whole_folder(spec.dest) as made:
        if not faults:
            _make_folders(made, tasks, spec)
        work = partial(slice_case, spec=spec, folder=made)
        if faults:  # the rest is only checked, without the minutes of N4
            work = partial(slice_case, spec=replace(spec, n4=False, n4_shrink=1), folder=None)
        results = list(tqdm(in_processes(work, tasks, spec.jobs), "slicing", len(tasks), unit="volume", disable=None))
        faults += [fault for result in results for fault in result.faults]
        faults += [] if faults else _gaps(tasks, results, spec)
        refuse(faults, spec.dest)
        card = make_card(spec, tasks, results)
        write_tables(made, card, tasks, results, spec)
    return card


def _inspect(cases: Sequence[Case], spec: SliceSpec) -> tuple[list[Case], list[Grid], list[Fault]]:
    """Reads the headers: the cases with the files that can be read, the grid of each, and the faults.

    A label that does not lie where its image lies belongs to another volume, unless it is to be placed there.
    """
    faults: list[Fault] = []
    readable: list[Case] = []
    grids: list[Grid] = []
    for case in cases:
        own: dict[str, Grid] = {}
        for role, path in case.paths.items():
            try:
                is_label = role == spec.label_folder
                own[role] = read_grid(path, None if is_label else spec.channel, spec.orient, is_label)
            except VolumeFault as error:
                faults.append(error.fault)
        if own:
            image = next(iter(own))  # what the label states of place moves nothing: it is only held against the image
            held = {role: grid for role, grid in own.items() if role != spec.label_folder or not spec.place_labels}
            is_aside = spec.label_folder in own and deviation(own[image], own[spec.label_folder], spec.tolerance)
            aside = _unsure_place(case, image, spec) if is_aside else None
            faults += [aside] if aside else displaced(case.paths, held or own, image, spec.tolerance)
            grid = own[image]
            if spec.centre == "labels" and spec.label_folder in own:
                try:
                    grid = centred_on_labels(grid, case.paths[spec.label_folder], spec)
                except VolumeFault as error:
                    faults.append(error.fault)
            readable.append(replace(case, paths={role: path for role, path in case.paths.items() if role in own}))
            grids.append(grid)
    sizes = [spec.frame(grid).size for grid in grids]
    usual = Counter(sizes).most_common(1)[0][0] if sizes else None
    what = f"slices of another size than the usual {usual} (give --size W H or --resize W H)"
    faults += [(what, f"{case.patient} {size}") for case, size in zip(readable, sizes, strict=True) if size != usual]
    return readable, grids, faults


def _unsure_place(case: Case, image: str, spec: SliceSpec) -> Fault | None:
    """Why image and label lie apart, where their headers leave it open."""
    try:
        return unsure_place(case.paths[image], case.paths[spec.label_folder], spec.channel, spec.tolerance, spec.orient)
    except VolumeFault as error:
        return error.fault


def centred_on_labels(grid: Grid, path: Path, spec: SliceSpec) -> Grid:
    """The grid, with the middle of the box round all labelled voxels as the place to cut round. Raises VolumeFault."""
    try:
        classes, _ = map_labels(read_stack(path, 0, is_label=True, directions=spec.orient), spec.mapping())
    except ValueError as error:
        raise VolumeFault("holds no whole-number labels", f"{path} ({error})") from error
    if spec.ignore is not None:
        classes[classes == IGNORED] = 0
    spans = [np.flatnonzero(classes.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(spans[0]):
        raise VolumeFault("has no label to cut round (leave --centre labels out)", str(path))
    return replace(grid, centre=tuple(float(span[0] + span[-1]) / 2 for span in spans))


def _make_folders(made: Path, tasks: Sequence[Task], spec: SliceSpec) -> None:
    for split in {split for task in tasks for split in task.splits}:
        for name in [*spec.folders(), *([spec.distance_maps] if spec.distance_maps else [])]:
            (made / split / name).mkdir(parents=True)


def _gaps(tasks: Sequence[Task], results: Sequence[SlicingResult], spec: SliceSpec) -> list[Fault]:
    """Where nothing tells the classes, the labels of the set must be 0..K-1; the volumes with a label above a gap."""
    if spec.label is None or spec.class_count():
        return []
    present = [np.flatnonzero(result.pixels.any(0)) for result in results]
    labels = sorted({int(label) for found in present for label in found} | {0})
    if labels == list(range(len(labels))):
        return []
    proposal = ",".join(f"{label}:{number}" for number, label in enumerate(labels) if number)
    what = f"labels are not 0..K-1 without a gap but {listing(labels, 40)} (perhaps --label_map {proposal})"
    high = next(label for number, label in enumerate(labels) if label != number)
    paths = [task.case.paths[spec.label_folder] for task in tasks]
    return [(what, str(path)) for path, found in zip(paths, present, strict=True) if found.max() >= high]


# ------------------------------------------------------------------------------------------------ command line


def _class_or_none(text: str) -> int | None:
    return None if text == "error" else int(text)


def read_names(text: str) -> tuple[str, ...]:
    """The names in a list that commas separate."""
    return tuple(text.split(","))


def _named_glob(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise argparse.ArgumentTypeError(f"expected NAME=GLOB, got '{text}'")
    return name, pattern


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser("python -m preprocess.slice_volumes", description=__doc__)
    _add_files(parser.add_argument_group("volumes").add_argument)
    _add_cutting(parser.add_argument_group("slices").add_argument)
    _add_grey_and_labels(parser.add_argument_group("grey levels and labels").add_argument)
    _add_split(parser.add_argument_group("split, by patient").add_argument)
    add = parser.add_argument_group("other").add_argument
    add("--site", default="", help="written to dataset.json")
    add("--modality", default="", help="written to dataset.json")
    add("--phantom", metavar="TEXT", help="the volumes are made up: dataset.json says so in these words")
    add("--jobs", type=int, default=os.cpu_count(), help="volumes at a time (default %(default)s)")
    return parser


def _add_files(add: Callable[..., Any]) -> None:
    add("--dest", type=Path, required=True, help="folder of the new set; must not exist")
    image = (
        "image volumes (** is any number of folders), and the folder for their slices; once for each co-registered "
        "image of a patient: those of one NAME become channels, in this order (not in png)"
    )
    add("--image", type=_named_glob, action="append", required=True, metavar="NAME=GLOB", help=image)
    add("--label", metavar="GLOB", help="label volumes; without them the set has no ground truth")
    add("--label_folder", default="GT", metavar="NAME", help="for the ground truth (default %(default)s)")
    maps = "folder for signed distance maps in mm, cut out of those of the whole label volume: .npy (K, W, H), float32"
    add("--distance_maps", metavar="NAME", help=maps)
    channel = "of 4D images this one of the last axis, from 0 (labels are 3D)"
    add("--channel", type=int, metavar="N", help=channel)
    patient = "its groups, joined, are the patient's id; applied to the file name, or to the path if it holds a '/'"
    add("--patient", required=True, metavar="REGEX", help=patient)
    tolerance = "how far apart image and label may place a corner (default %(default)s mm, half a voxel at most)"
    add("--tolerance", type=float, default=TOLERANCE, metavar="MM", help=tolerance)
    place = "put a label that lies elsewhere on the grid of its image, by its geometry, to the nearest voxel"
    add("--place_labels", action="store_true", help=place)


def _add_cutting(add: Callable[..., Any]) -> None:
    orient = (
        "first turn the voxels so that their axes run in these directions, as in LPS: left, back, head; or leave them "
        "as stored"
    )
    add("--orient", metavar="{CODES,stored}", default=RADIOLOGICAL, help=f"{orient} (default %(default)s)")
    plane = "cut these planes, however the volumes are stored (default axial; with --orient stored --axis 2)"
    add("--plane", choices=PLANES, help=plane)
    add("--axis", type=int, metavar="N", help="cut along this axis instead, 0, 1 or 2 once they are turned")
    add("--format", choices=FORMATS, default="png", help="of the slices (default %(default)s)")
    add("--bits", type=int, choices=(8, 16), default=8, help="of png images (default %(default)s)")
    add("--size", type=int, nargs=2, metavar=("W", "H"), help="crop and pad round the centre to this size")
    centre = "what --size cuts round: the middle of the volume, or of all that is labelled, which is a use of labels"
    add("--centre", choices=("volume", "labels"), default="volume", help=f"{centre} (default %(default)s)")
    add("--multiple", type=int, metavar="M", help="pad up to a multiple of M")
    resize = "resample to this size, images linearly (smoothed where they shrink), labels to the nearest pixel"
    add("--resize", type=int, nargs=2, metavar=("W", "H"), help=resize)
    spacing = "resample likewise to as many pixels as come nearest to this spacing, before the crop to --size"
    add("--spacing", type=float, nargs=2, metavar=("W_MM", "H_MM"), help=spacing)


def _add_grey_and_labels(add: Callable[..., Any]) -> None:
    add("--n4", action="store_true", help="first take the bias field out of MR volumes, by N4; minutes a volume")
    shrink = "estimate the bias field on every F-th voxel along each axis, 8 at least (default %(default)s)"
    add("--n4_shrink", type=int, default=1, metavar="F", help=shrink)
    add("--clip", type=float, nargs=2, metavar=("LOW", "HIGH"), help="cut grey levels there before normalising")
    kind = "to 0..1 by the extremes, by percentiles or by a window (both clip); to mean 0 and sd 1; or not at all"
    add("--normalise", choices=Normalisation.KINDS, default="percentile", help=f"{kind} (default %(default)s)")
    add("--no_clip", action="store_true", help="let percentile and window leave 0..1 (not in png)")
    percentiles = "for --normalise percentile (default 1 99)"
    add("--percentiles", type=float, nargs=2, default=(1.0, 99.0), metavar=("LOW", "HIGH"), help=percentiles)
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="for --normalise window")
    scope = "extremes, percentiles, mean, … of the volume or of each slice (default %(default)s)"
    add("--scope", choices=Normalisation.SCOPES, default="volume", help=scope)
    mapping = "label:class pairs, as 255:1 or 41-50:1,60:2; without it labels must be 0..K-1"
    add("--label_map", metavar="MAP", help=mapping)
    others = "the class of labels that --label_map leaves out; without it they are an error"
    add("--others", type=_class_or_none, metavar="{CLASS,error}", help=others)
    n_class = "number of classes, background included (default: what --label_map or the labels say)"
    add("--n_class", type=int, metavar="K", help=n_class)
    ignore = "the label of voxels whose class nobody knows: 255 in the slices, so train with --ignore 255"
    add("--ignore", type=int, metavar="LABEL", help=ignore)
    names = "of all classes, the background first; for tables, and for viewers of what is predicted"
    add("--class_names", type=read_names, default=(), metavar="NAME,NAME…", help=names)


def _add_split(add: Callable[..., Any]) -> None:
    for name in ("val", "test"):
        add(f"--{name}", type=int, default=0, metavar="N", help=f"number of patients in {name}, drawn with --seed")
        names = f"patients in {name}: a,b,c, or a file with their names (UTF-8)"
        add(f"--{name}_list", type=read_patients, default=(), metavar="LIST", help=names)
    blocks = (
        "instead: blocks of so many neighbouring slices, each EVERYth of which validates; for a single patient, whose "
        "scores prove nothing on others"
    )
    add("--split_by_blocks", type=int, nargs=2, metavar=("SLICES", "EVERY"), help=blocks)
    add("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    group = "patients stay in one split if its groups read the same in their image files (one person scanned twice)"
    add("--group", metavar="REGEX", help=group)


def _directions(orient: str, plane: str | None, axis: int | None) -> dict[str, Any]:
    """`orient` and `axis` of the spec. Raises UserError for flags that contradict each other."""
    if plane and axis is not None:
        raise UserError(f"--plane {plane} and --axis {axis} both say along which axis to cut; give one of them.")
    if plane and orient == "stored":
        raise UserError(
            f"--plane {plane} is found by the directions of the axes, which --orient stored leaves as they are in each "
            "file; leave one of them out."
        )
    if axis is None:
        axis = axis_across(plane or "axial", orient) if is_direction(orient) else 2
    return {"orient": None if orient == "stored" else orient, "axis": axis}


def read_spec(arguments: Sequence[str] | None = None) -> SliceSpec:
    """The settings on the command line. Raises UserError, or exits like argparse."""
    args = vars(_parser().parse_args(arguments))
    args.pop("debug")
    args |= _directions(args["orient"], args.pop("plane"), args["axis"])
    images: dict[str, list[str]] = {}
    for name, pattern in args.pop("image"):
        images.setdefault(name, []).append(pattern)
    args["images"] = {name: tuple(globs) if len(globs) > 1 else globs[0] for name, globs in images.items()}
    limits = {key: args.pop(key) for key in ("percentiles", "window", "clip")}
    limits = {key: None if pair is None else tuple(pair) for key, pair in limits.items()}
    how = Normalisation(args.pop("normalise"), args.pop("scope"), no_clip=args.pop("no_clip"), **limits)
    sizes = {key: args.pop(key) for key in ("size", "resize", "spacing")}
    args["split_by_blocks"] = args["split_by_blocks"] and Blocks(*args["split_by_blocks"])
    return SliceSpec(normalisation=how, **{key: size and tuple(size) for key, size in sizes.items()}, **args)


def main() -> None:
    print(describe(slice_set(read_spec())))


if __name__ == "__main__":
    run_program(main)
