"""NIfTI volumes -> a set of 2D slices that the pipeline trains on.

    python -m preprocess.slice_volumes --dest data/prostate_target \\
        --image IMG='data/prostate_volumes/RUNMC/Case??.nii.gz' \\
        --label 'data/prostate_volumes/RUNMC/Case??_segmentation.nii.gz' \\
        --patient '(Case[0-9]+)' --label_map 1-2:1 --val 10

Writes DEST/{train,val[,test]}/{IMG,GT}/<patient>_<index>.<format>, DEST/manifest.csv (one row a slice: where it
comes from, so that a prediction can go back, see volumes.restore) and DEST/dataset.json (how the set was made).
DEST appears when it is whole, or not at all.
"""

import argparse
import csv
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from tqdm import tqdm

from folder_lock import sync_folder
from preprocess.volumes import (
    LABEL,
    Case,
    Fault,
    Grid,
    LabelMap,
    Normalisation,
    VolumeFault,
    centred,
    compile_pattern,
    cut,
    describe_faults,
    map_labels,
    pair,
    parse_label_map,
    plane_affine,
    read_grid,
    read_id,
    read_stack,
    sha256,
)
from utils import UserError, atomic_write, listing, run_program

TOOL = "preprocess.slice_volumes 1"  # raised when the same volumes and settings give other slices
FORMATS = ("png", "nii", "nii.gz", "npy")
SPLITS = ("train", "val", "test")
COLUMNS = (
    *("slice", "split", "patient", "index", "axis", "width", "height", "offset_w", "offset_h"),
    *("spacing_w", "spacing_h", "spacing_slice", "shape0", "shape1", "shape2", "affine", "source", "sha256"),
)


@dataclass(frozen=True)
class Blocks:
    """A split inside one volume: blocks of `size` neighbouring slices, every `every`-th of them for validation.

    For demonstrations with one patient only: neighbours in two splits look alike.
    """

    size: int
    every: int

    def split_of(self, index: int) -> str:
        return "val" if index // self.size % self.every == self.every - 1 else "train"


def _is_folder(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-]+", name)) and name != LABEL


@dataclass(frozen=True)
class SliceSpec:
    """Everything that decides what a set looks like; the fields are the flags of the command line (see its help).

    images: folder -> glob. Raises UserError for settings that contradict each other.
    """

    dest: Path
    images: dict[str, str]
    patient: str
    label: str | None = None
    axis: int = 2
    format: str = "png"
    bits: int = 8
    normalisation: Normalisation = field(default_factory=Normalisation)
    size: tuple[int, int] | None = None
    multiple: int | None = None
    label_map: str | None = None
    others: int | None = None  # None: an error
    val: int = 0
    val_list: tuple[str, ...] = ()
    test: int = 0
    test_list: tuple[str, ...] = ()
    split_by_blocks: Blocks | None = None
    seed: int = 0
    group: str | None = None
    tolerance: float = 0.1
    site: str = ""
    modality: str = ""
    phantom: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        sizes = [*(self.size or ()), *([] if self.multiple is None else [self.multiple])]
        lists = self.val_list or self.test_list
        checks = [
            (self.axis in (0, 1, 2), f"--axis is 0, 1 or 2, got {self.axis}"),
            (self.format in FORMATS, f"--format is one of {listing(FORMATS)}, got {self.format}"),
            (self.bits == 8 or (self.bits, self.format) == (16, "png"), "--bits is 8, or 16 with --format png"),
            (self.others is None or self.label_map, "--others goes with --label_map"),
            (
                all(_is_folder(name) for name in self.images),
                "--image NAME=GLOB: NAME has letters, digits, _ or -, not GT",
            ),
            (
                (self.format, self.normalisation.kind) != ("png", "zscore"),
                "png holds 0..1 and z-scores leave that range: take --format nii or npy, or another --normalise",
            ),
            (all(size > 0 for size in sizes), "--size W H and --multiple M are numbers from 1 upwards"),
            (not (self.val and self.val_list), "--val N and --val_list exclude each other"),
            (not (self.test and self.test_list), "--test N and --test_list exclude each other"),
            (min(self.val, self.test) >= 0, "--val and --test are numbers of patients"),
            (self.val or self.val_list or self.split_by_blocks, "say who validates, with --val N or --val_list"),
            (
                not self.split_by_blocks or not (self.val or self.test or lists),
                "a split by blocks of slices takes no other split",
            ),
            (self.jobs > 0, "--jobs is at least 1"),
        ]
        wrong = [text for is_right, text in checks if not is_right]
        if wrong:
            raise UserError(f"Cannot slice into {self.dest}: {'; '.join(wrong)}.")

    def mapping(self) -> LabelMap | None:
        return parse_label_map(self.label_map, self.others) if self.label_map else None

    def frame(self, grid: Grid) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size (W, H) and offset of the cut planes of this grid."""
        shape = tuple(n for axis, n in enumerate(grid.shape) if axis != self.axis)
        return centred(shape, self.size, self.multiple)


# ----------------------------------------------------------------------------------------------------- the split


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


# ------------------------------------------------------------------------------------------------- one patient


@dataclass(frozen=True)
class Task:
    """One patient: the files, where their voxels lie, and the split of each slice."""

    case: Case
    grid: Grid
    splits: tuple[str, ...]


@dataclass
class Sliced:
    """What became of one patient: faults, files used, pixels per slice and class (N, 256)."""

    faults: list[Fault] = field(default_factory=list)
    sources: list[dict[str, str]] = field(default_factory=list)
    pixels: np.ndarray | None = None
    cut_away: int = 0  # voxels of the classes from 1 that the cut left outside


def slice_case(task: Task, spec: SliceSpec, folder: Path | None) -> Sliced:
    """Checks one patient's volumes and writes their slices below `folder` (None: only checks)."""
    done = Sliced()
    for role, path in task.case.paths.items():
        try:
            stack = read_stack(path, spec.axis, is_label=role == LABEL)
            planes = _label_planes(stack, path, spec, done) if role == LABEL else _image_planes(stack, path, spec)
        except VolumeFault as error:
            done.faults.append(error.fault)
            continue
        shown = Path(os.path.relpath(path)).as_posix()
        done.sources.append({"patient": task.case.patient, "role": role, "path": shown, "sha256": sha256(path)})
        if folder:
            _write_planes(planes, role, task, spec, folder)
    return done


def _image_planes(stack: np.ndarray, path: Path, spec: SliceSpec) -> Iterator[np.ndarray]:
    """Checks the image, then gives its planes: normalised float32, cut to size, padded with the lowest value."""
    how = spec.normalisation
    stack = how.clipped(stack)
    scale = how.fit(stack)
    if scale.width == 0:
        raise VolumeFault(f"cannot be normalised by {how.kind}, it has no spread of grey levels", str(path))
    if spec.format == "png" and how.kind == "none" and not (scale.lowest >= 0 and stack.max() <= 1):
        what = "has values outside 0..1, which png cannot hold (take another --normalise or --format)"
        raise VolumeFault(what, f"{path} ({scale.lowest:g} to {stack.max():g})")
    size, offset = centred(stack.shape[1:], spec.size, spec.multiple)

    def planes() -> Iterator[np.ndarray]:
        for plane in stack:
            own = how.fit(plane) if how.scope == "slice" else scale
            yield cut(how.apply(plane, own), size, offset, float(how.apply(own.lowest, own)))

    return planes()


def _label_planes(stack: np.ndarray, path: Path, spec: SliceSpec, done: Sliced) -> Iterator[np.ndarray]:
    """Checks and counts the labels, then gives their planes: class numbers, cut to size, padded with background."""
    try:
        classes, unknown = map_labels(stack, spec.mapping())
    except ValueError as error:
        raise VolumeFault("holds no whole-number labels", f"{path} ({error})") from error
    if unknown:
        what = "has labels without a class (add them to --label_map, or give it --others 0)"
        raise VolumeFault(what, f"{path} ({listing(unknown, 40)})")
    size, offset = centred(classes.shape[1:], spec.size, spec.multiple)
    planes = [cut(plane, size, offset, 0) for plane in classes]
    done.pixels = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in planes])
    done.cut_away = int(np.count_nonzero(classes) - done.pixels[:, 1:].sum())
    return iter(planes)


def _write_planes(planes: Iterator[np.ndarray], role: str, task: Task, spec: SliceSpec, folder: Path) -> None:
    _, offset = spec.frame(task.grid)
    for index, (plane, split) in enumerate(zip(planes, task.splits, strict=True)):
        path = folder / split / role / f"{task.case.patient}_{index}.{spec.format}"
        if spec.format == "png":
            save_png(path, plane, spec.bits)
        elif spec.format == "npy":
            np.save(path, plane)
        else:
            save_nifti(path, plane, plane_affine(task.grid.affine, spec.axis, index, offset))


def save_png(path: Path, plane: np.ndarray, bits: int) -> None:
    """Grey png of class numbers as they are, or of an image in 0..1 times 255 (65535 with 16 bits)."""
    if plane.dtype != np.uint8:
        kind = np.uint8 if bits == 8 else np.uint16
        plane = np.rint(plane * np.float32(np.iinfo(kind).max)).astype(kind)
    Image.fromarray(plane).save(path, compress_level=1)


def save_nifti(path: Path, plane: np.ndarray, affine: np.ndarray) -> None:
    """A plane as a two-dimensional NIfTI that knows its place in space; the same bytes each time."""
    content = nib.Nifti1Image(plane, affine).to_bytes()
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)


# -------------------------------------------------------------------------------------------------- the whole set


def slice_set(spec: SliceSpec) -> dict[str, Any]:
    """Slices a set of volumes into spec.dest and returns the content of its dataset.json.

    Raises UserError if spec.dest is there already, and one that lists every volume at fault; then nothing is left.
    """
    if spec.dest.exists():
        raise UserError(f"{spec.dest} is there already; remove it, or give another --dest.")
    patient = compile_pattern("--patient", spec.patient)
    spec.mapping()  # a slip in --label_map is told before any volume is read
    cases, faults = pair({**spec.images, **({LABEL: spec.label} if spec.label else {})}, patient)
    home = {} if faults else _assign(cases, spec)
    cases, grids, more = _inspect(cases, spec)
    faults += more
    tasks = [Task(case, grid, _slice_splits(case, grid, home, spec)) for case, grid in zip(cases, grids, strict=True)]

    made = spec.dest.with_name(spec.dest.name + "_tmp")
    shutil.rmtree(made, ignore_errors=True)
    try:
        if not faults:
            _make_folders(made, tasks, spec)
        work = partial(slice_case, spec=spec, folder=None if faults else made)
        results = list(tqdm(_each(work, tasks, spec.jobs), "slicing", len(tasks), unit="volume", disable=None))
        faults += [fault for result in results for fault in result.faults]
        faults += [] if faults else _gaps(tasks, results, spec)
        if faults:
            count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
            raise UserError(f"Nothing was written to {spec.dest}, {count}: {describe_faults(faults)}")
        card = _card(spec, tasks, results)
        _write_tables(made, card, tasks, results, spec)
        os.sync()  # thousands of small files: one call instead of one a file, before the name that vouches for them
        made.rename(spec.dest)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    sync_folder(spec.dest.parent)
    return card


def _assign(cases: Sequence[Case], spec: SliceSpec) -> dict[str, str]:
    """Patient -> split, whole groups where spec.group is given."""
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


def _slice_splits(case: Case, grid: Grid, home: Mapping[str, str], spec: SliceSpec) -> tuple[str, ...]:
    """The split of each slice of a patient; "" while the set has faults and nobody is in a split."""
    number = grid.shape[spec.axis]
    if spec.split_by_blocks:
        return tuple(spec.split_by_blocks.split_of(index) for index in range(number))
    return (home.get(case.patient, ""),) * number


def _inspect(cases: Sequence[Case], spec: SliceSpec) -> tuple[list[Case], list[Grid], list[Fault]]:
    """Reads the headers: the cases with the files that can be read, the grid of each, and the faults.

    A label that does not lie where its image lies belongs to another volume.
    """
    faults: list[Fault] = []
    readable: list[Case] = []
    grids: list[Grid] = []
    for case in cases:
        own: dict[str, Grid] = {}
        for role, path in case.paths.items():
            try:
                own[role] = read_grid(path)
            except VolumeFault as error:
                faults.append(error.fault)
        if own:
            reference = LABEL if LABEL in own else next(iter(own))
            faults += _displaced(case, own, reference, spec.tolerance)
            readable.append(replace(case, paths={role: path for role, path in case.paths.items() if role in own}))
            grids.append(own[reference])
    sizes = [spec.frame(grid)[0] for grid in grids]
    usual = Counter(sizes).most_common(1)[0][0] if sizes else None
    what = f"slices of another size than the usual {usual} (give --size W H)"
    faults += [(what, f"{case.patient} {size}") for case, size in zip(readable, sizes, strict=True) if size != usual]
    return readable, grids, faults


def _displaced(case: Case, grids: Mapping[str, Grid], reference: str, tolerance: float) -> Iterator[Fault]:
    """The volumes of a patient that do not lie on the reference's grid."""
    wanted = grids[reference]
    what = f"does not lie on the grid of its {reference} volume (resample one of them, or raise --tolerance)"
    for role, grid in grids.items():
        if grid.shape != wanted.shape:
            yield what, f"{case.paths[role]} (shape {grid.shape}, not {wanted.shape})"
        elif (apart := wanted.distance(grid)) > tolerance:
            yield what, f"{case.paths[role]} ({apart:.3g} mm apart, {tolerance:g} allowed)"


def _make_folders(made: Path, tasks: Sequence[Task], spec: SliceSpec) -> None:
    for split in {split for task in tasks for split in task.splits}:
        for role in [*spec.images, *([LABEL] if spec.label else [])]:
            (made / split / role).mkdir(parents=True)


def _each(work: Callable[[Task], Sliced], tasks: Sequence[Task], jobs: int) -> Iterator[Sliced]:
    """The results in the order of the tasks, made by `jobs` processes."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(work, tasks)
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context(method))
    try:
        yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise UserError("A worker was killed, most likely for want of memory; try again with --jobs 1.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _gaps(tasks: Sequence[Task], results: Sequence[Sliced], spec: SliceSpec) -> list[Fault]:
    """Without a label map the labels of the set must be 0..K-1; the volumes that hold a label above a gap."""
    if spec.label is None or spec.label_map:
        return []
    present = [np.flatnonzero(result.pixels.any(0)) for result in results]
    labels = sorted({int(label) for found in present for label in found} | {0})
    if labels == list(range(len(labels))):
        return []
    proposal = ",".join(f"{label}:{number}" for number, label in enumerate(labels) if number)
    what = f"labels are not 0..K-1 without a gap but {listing(labels, 40)} (perhaps --label_map {proposal})"
    high = next(label for number, label in enumerate(labels) if label != number)
    paths = [task.case.paths[LABEL] for task in tasks]
    return [(what, str(path)) for path, found in zip(paths, present, strict=True) if found.max() >= high]


def _card(spec: SliceSpec, tasks: Sequence[Task], results: Sequence[Sliced]) -> dict[str, Any]:
    """The content of dataset.json."""
    mapping, how = spec.mapping(), spec.normalisation
    members = {split: [task.case.patient for task in tasks if split in task.splits] for split in SPLITS}
    n_class = None
    if spec.label:
        numbers = mapping.numbers() if mapping else {int(result.pixels.any(0).nonzero()[0].max()) for result in results}
        n_class = 1 + max(numbers)
    return {
        "name": spec.dest.name,
        "modality": spec.modality,
        "site": spec.site,
        "phantom": spec.phantom,
        "n_class": n_class,
        "label_map": mapping and {str(label): number for label, number in mapping.classes.items()},
        "other_labels": "error" if spec.others is None else spec.others,
        "normalisation": {
            "kind": how.kind,
            "scope": None if how.kind in ("window", "none") else how.scope,
            "percentiles": how.percentiles if how.kind == "percentile" else None,
            "window": how.window,
            "clip": how.clip,
        },
        "images": list(spec.images),
        "labels": LABEL if spec.label else None,
        "axis": spec.axis,
        "format": spec.format,
        "bits": spec.bits if spec.format == "png" else None,
        "size": spec.frame(tasks[0].grid)[0],
        "empty_slices": "kept",
        "split_unit": "slice blocks" if spec.split_by_blocks else "patient",
        "split": "alternating blocks of one patient's slices"
        if spec.split_by_blocks
        else {split: patients for split, patients in members.items() if patients},
        "split_rule": _split_rule(spec),
        "counts": _counts(tasks, results, members, n_class),
        "foreground_cut_away": {
            task.case.patient: result.cut_away for task, result in zip(tasks, results, strict=True) if result.cut_away
        },
        "sources": [source for result in results for source in result.sources],
        "tool": TOOL,
    }


def _counts(
    tasks: Sequence[Task], results: Sequence[Sliced], members: Mapping[str, Sequence[str]], n_class: int | None
) -> dict[str, Any]:
    """Per split: patients, slices, and in how many slices each class occurs."""
    where = np.array([split for task in tasks for split in task.splits])
    holds = None if n_class is None else np.concatenate([result.pixels > 0 for result in results])[:, :n_class]
    return {
        split: {
            "patients": len(patients),
            "slices": int((where == split).sum()),
            "slices_with_class": None if holds is None else holds[where == split].sum(0).tolist(),
        }
        for split, patients in members.items()
        if patients
    }


def _split_rule(spec: SliceSpec) -> dict[str, Any]:
    """How the split came about."""
    if spec.split_by_blocks:
        return {"slices_a_block": spec.split_by_blocks.size, "every_nth_block_is_val": spec.split_by_blocks.every}
    chosen = {
        split: "list" if names else f"{number} drawn"
        for split, names, number in (("val", spec.val_list, spec.val), ("test", spec.test_list, spec.test))
        if names or number
    }
    return {**chosen, "seed": spec.seed, "group": spec.group}


def _rows(task: Task, source: Mapping[str, str], spec: SliceSpec) -> Iterator[dict[str, Any]]:
    """One patient's rows of the manifest; `source` is the first image."""
    w, h = (axis for axis in range(3) if axis != spec.axis)
    (width, height), (offset_w, offset_h) = spec.frame(task.grid)
    spacing = task.grid.spacing()
    same = {"patient": task.case.patient, "axis": spec.axis, "width": width, "height": height}
    same |= {"offset_w": offset_w, "offset_h": offset_h}
    same |= {"spacing_w": spacing[w], "spacing_h": spacing[h], "spacing_slice": spacing[spec.axis]}
    same |= {f"shape{axis}": n for axis, n in enumerate(task.grid.shape)}
    same["affine"] = " ".join(repr(float(number)) for number in task.grid.affine.ravel())
    same |= {"source": source["path"], "sha256": source["sha256"]}
    for index, split in enumerate(task.splits):
        yield {"slice": f"{task.case.patient}_{index}", "split": split, "index": index, **same}


def _write_tables(
    folder: Path, card: Mapping[str, Any], tasks: Sequence[Task], results: Sequence[Sliced], spec: SliceSpec
) -> None:
    with atomic_write(folder / "manifest.csv", "w") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for task, result in zip(tasks, results, strict=True):
            table.writerows(_rows(task, result.sources[0], spec))
    with atomic_write(folder / "dataset.json", "w") as file:
        json.dump(card, file, indent=1)
        file.write("\n")


# ------------------------------------------------------------------------------------------------ command line


def describe(card: Mapping[str, Any]) -> str:
    """A line or two on a set for the screen: patients, slices and the census of the labels."""
    parts = []
    for split, count in card["counts"].items():
        part = f"{split} {count['slices']} slices of {count['patients']} patient{'s' * (count['patients'] != 1)}"
        if count["slices_with_class"]:
            census = [f"{n} with class {number}" for number, n in enumerate(count["slices_with_class"]) if number]
            part += f" ({listing(census)})"
        parts.append(part)
    text = f"{card['name']}: {'; '.join(parts)}; {card['size'][0]}x{card['size'][1]}"
    if card["foreground_cut_away"]:
        lost = [f"{patient} {n}" for patient, n in card["foreground_cut_away"].items()]
        text += f"\nThe cut to size left voxels of a class outside, in {listing(lost, 40)}; a larger --size keeps them."
    return text


def _names(text: str) -> tuple[str, ...]:
    """Patients out of a comma list, or out of a file that has them in lines or between commas."""
    path = Path(text)
    if "," not in text and path.is_file():
        text = path.read_text(encoding="utf-8")
    return tuple(dict.fromkeys(name for name in re.split(r"[\s,]+", text) if name))


def _class_or_none(text: str) -> int | None:
    return None if text == "error" else int(text)


def _named_glob(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise argparse.ArgumentTypeError(f"expected NAME=GLOB, got '{text}'")
    return name, pattern


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m preprocess.slice_volumes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_files(parser.add_argument_group("volumes").add_argument)
    _add_cutting(parser.add_argument_group("slices").add_argument)
    _add_grey_and_labels(parser.add_argument_group("grey levels and labels").add_argument)
    _add_split(parser.add_argument_group("split, by patient").add_argument)
    add = parser.add_argument_group("other").add_argument
    add("--site", default="", help="written to dataset.json")
    add("--modality", default="", help="written to dataset.json")
    add("--phantom", metavar="TEXT", help="the volumes are made up: dataset.json says so in these words")
    add("--jobs", type=int, default=os.cpu_count(), help="volumes at a time (default %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_files(add: Callable[..., Any]) -> None:
    add("--dest", type=Path, required=True, help="folder of the new set; must not exist")
    image = "image volumes, and the folder for their slices; once for each co-registered image of a patient"
    add("--image", type=_named_glob, action="append", required=True, metavar="NAME=GLOB", help=image)
    add("--label", metavar="GLOB", help="label volumes; without them the set has no GT folder")
    patient = "its groups, joined, are the patient's id; applied to the file name, or to the path if it holds a '/'"
    add("--patient", required=True, metavar="REGEX", help=patient)
    tolerance = "how far apart image and label may place a corner of the volume (default %(default)s mm)"
    add("--tolerance", type=float, default=0.1, metavar="MM", help=tolerance)


def _add_cutting(add: Callable[..., Any]) -> None:
    add("--axis", type=int, default=2, help="stored voxel axis to cut along (default %(default)s)")
    add("--format", choices=FORMATS, default="png", help="of the slices (default %(default)s)")
    add("--bits", type=int, choices=(8, 16), default=8, help="of png images (default %(default)s)")
    add("--size", type=int, nargs=2, metavar=("W", "H"), help="crop and pad round the centre to this size")
    add("--multiple", type=int, metavar="M", help="pad up to a multiple of M")


def _add_grey_and_labels(add: Callable[..., Any]) -> None:
    add("--clip", type=float, nargs=2, metavar=("LOW", "HIGH"), help="cut grey levels there before normalising")
    kind = "to 0..1 by the extremes, by percentiles or by a window (both clip); to mean 0 and sd 1; or not at all"
    add("--normalise", choices=Normalisation.KINDS, default="percentile", help=f"{kind} (default %(default)s)")
    percentiles = "for --normalise percentile (default 1 99)"
    add("--percentiles", type=float, nargs=2, default=(1.0, 99.0), metavar=("LOW", "HIGH"), help=percentiles)
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="for --normalise window")
    scope = "extremes, percentiles, mean, … of the volume or of each slice (default %(default)s)"
    add("--scope", choices=Normalisation.SCOPES, default="volume", help=scope)
    mapping = "label:class pairs, as 255:1 or 41-50:1,60:2; without it labels must be 0..K-1"
    add("--label_map", metavar="MAP", help=mapping)
    others = "the class of labels that --label_map leaves out; without it they are an error"
    add("--others", type=_class_or_none, metavar="{CLASS,error}", help=others)


def _add_split(add: Callable[..., Any]) -> None:
    for name in ("val", "test"):
        add(f"--{name}", type=int, default=0, metavar="N", help=f"number of patients in {name}, drawn with --seed")
        names = f"patients in {name}: a,b,c, or a file with their names"
        add(f"--{name}_list", type=_names, default=(), metavar="LIST", help=names)
    add("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    group = "patients stay in one split if its groups read the same in their image files (one person scanned twice)"
    add("--group", metavar="REGEX", help=group)


def read_spec(arguments: Sequence[str] | None = None) -> SliceSpec:
    """The settings on the command line. Raises UserError, or exits like argparse."""
    args = vars(_parser().parse_args(arguments))
    args.pop("debug")
    images = args.pop("image")
    if len({name for name, _ in images}) < len(images):
        raise UserError(f"Each --image needs a name of its own, got {listing(name for name, _ in images)}.")
    limits = {key: args.pop(key) for key in ("percentiles", "window", "clip")}
    limits = {key: None if pair is None else tuple(pair) for key, pair in limits.items()}
    how = Normalisation(args.pop("normalise"), args.pop("scope"), **limits)
    size = args.pop("size")
    return SliceSpec(images=dict(images), normalisation=how, size=size and tuple(size), **args)


def main() -> None:
    print(describe(slice_set(read_spec())))


if __name__ == "__main__":
    run_program(main)
