"""What a set tells of itself: dataset.json, how it was made, and manifest.csv, where each slice comes from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import SPLITS
from datasets.trained_on import describe_geometry, describe_guessed, describe_levels, describe_orders, stored_as
from preprocess.new_set import write_card
from preprocess.slicing.bias_field import CONVERGENCE, ITERATIONS
from preprocess.slicing.case import SlicingResult, Task
from preprocess.slicing.spec import IGNORED, SliceSpec
from processes.quoting import csv_text
from utils import atomic_write, counted, listing

TOOL = "preprocess.slice_volumes 2"  # raised when the same volumes and settings give other slices
COLUMNS = (
    *("slice", "split", "patient", "index", "axis", "width", "height", "offset_w", "offset_h"),
    *("spacing_w", "spacing_h", "spacing_slice", "shape0", "shape1", "shape2", "affine", "stored"),
    *("source", "sha256"),
)


def make_card(spec: SliceSpec, tasks: Sequence[Task], results: Sequence[SlicingResult]) -> dict[str, Any]:
    """The content of dataset.json."""
    mapping, how = spec.mapping(), spec.normalisation
    members = {split: [task.case.patient for task in tasks if split in task.splits] for split in SPLITS}
    n_class = spec.class_count()
    if spec.label and n_class is None:
        n_class = 1 + max(int(result.pixels.any(0).nonzero()[0].max()) for result in results)
    return {
        "name": spec.dest.name,
        "modality": spec.modality,
        "site": spec.site,
        "phantom": spec.phantom,
        "n_class": n_class,
        "class_names": list(spec.class_names) or None,
        "label_map": mapping and {str(old): new for old, new in mapping.classes.items() if old != spec.ignore},
        "other_labels": "error" if spec.others is None else spec.others,
        **({} if spec.ignore is None else {"ignore": IGNORED, "ignore_label": spec.ignore}),
        "normalisation": {
            "kind": how.kind,
            "scope": None if how.kind in ("window", "none") else how.scope,
            "percentiles": how.percentiles if how.kind == "percentile" else None,
            "window": how.window,
            "clip": how.clip,
            "no_clip": how.no_clip,
        },
        "n4": {"convergence": CONVERGENCE, "iterations": ITERATIONS, "shrink": spec.n4_shrink} if spec.n4 else None,
        "images": list(spec.images),
        "channels": {name: len(spec.folders()[name]) for name in spec.images},
        "channel": spec.channel,
        "labels": spec.label_folder if spec.label else None,
        "distance_maps": spec.distance_maps,
        "axis": spec.axis,
        "orient": spec.orient,
        **_trained_on(spec, tasks, results),
        "format": spec.format,
        "bits": spec.bits if spec.format == "png" else None,
        "size": spec.frame(tasks[0].grid).size,
        "centre": spec.centre,
        "uses_labels": "slices are cut round all that is labelled" if spec.centre == "labels" else None,
        "resized": bool(spec.resize or spec.spacing),
        "spacing": spec.spacing,
        "cut": {"size": spec.size, "resize": spec.resize, "spacing": spec.spacing},  # as asked for
        "multiple": spec.multiple,
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
        "placed_labels": {
            task.case.patient: result.displacement
            for task, result in zip(tasks, results, strict=True)
            if result.displacement
        },
        "sources": [source for result in results for source in result.sources],
        "tool": TOOL,
    }


def _trained_on(spec: SliceSpec, tasks: Sequence[Task], results: Sequence[SlicingResult]) -> dict[str, Any]:
    """What trained_on tells of the volumes with slices in train."""
    pairs = list(zip(tasks, results, strict=True))
    pairs = [(task, result) for task, result in pairs if "train" in task.splits] or pairs
    grids = [task.grid for task, _ in pairs]
    return {
        "stored_as": stored_as({task.case.patient: task.grid for task in tasks}),
        "guessed_directions": [
            task.case.patient for task, result in zip(tasks, results, strict=True) if result.guessed
        ],
        "geometry": describe_geometry(grids, map(spec.spacing_of, grids)),
        "grey_levels": {
            name: describe_levels([result.levels[role] for role in spec.folders()[name]] for _, result in pairs)
            for name in spec.images
        },
    }


def _counts(
    tasks: Sequence[Task], results: Sequence[SlicingResult], members: Mapping[str, Sequence[str]], n_class: int | None
) -> dict[str, Any]:
    """Per split: patients, slices, and in how many slices each class occurs."""
    where = np.array([split for task in tasks for split in task.splits])
    counted = n_class is not None and all(result.pixels is not None for result in results)
    holds = np.concatenate([result.pixels > 0 for result in results])[:, :n_class] if counted else None
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


def _rows(task: Task, sources: Sequence[Mapping[str, str]], spec: SliceSpec) -> Iterator[dict[str, Any]]:
    """One patient's rows of the manifest; `sources` are the channels of the first image."""
    frame = spec.frame(task.grid)
    same = {"patient": task.case.patient, "axis": spec.axis}
    same |= dict(zip(("width", "height", "offset_w", "offset_h"), (*frame.size, *frame.offset), strict=True))
    same |= dict(zip(("spacing_slice", "spacing_w", "spacing_h"), spec.spacing_of(task.grid), strict=True))
    same |= {f"shape{axis}": n for axis, n in enumerate(task.grid.shape)}
    same["affine"] = " ".join(repr(float(number)) for number in task.grid.affine.ravel())
    same["stored"] = task.grid.stored
    same["source"], same["sha256"] = (";".join(source[key] for source in sources) for key in ("path", "sha256"))
    for index, split in enumerate(task.splits):
        yield {"slice": f"{task.case.patient}_{index}", "split": split, "index": index, **same}


def write_tables(
    folder: Path, card: Mapping[str, Any], tasks: Sequence[Task], results: Sequence[SlicingResult], spec: SliceSpec
) -> None:
    """Writes both into the folder."""
    channels = len(next(iter(spec.folders().values())))
    with atomic_write(folder / "manifest.csv", "w") as file:
        file.write(csv_text([COLUMNS]))
        for task, result in zip(tasks, results, strict=True):
            rows = _rows(task, result.sources[:channels], spec)
            file.write(csv_text([row[name] for name in COLUMNS] for row in rows))
    write_card(folder, card)


UNLABELLED = "The ground truth is 0 throughout: there is nothing to learn from it, or to score against."


def is_unlabelled(counts: Iterable[Sequence[int] | None]) -> bool:
    """Whether a set has ground truth and no class in it. `counts`: of each split where each class is found, or None."""
    known = [count for count in counts if count is not None]
    return bool(known) and not any(sum(count[1:]) for count in known)


def describe(card: Mapping[str, Any]) -> str:
    """A line or two on a set for the screen: patients, slices and the census of the labels."""
    parts = []
    for split, count in card["counts"].items():
        part = f"{split} {counted(count['slices'], 'slice')} of {counted(count['patients'], 'patient')}"
        if census := [f"{n} with class {k}" for k, n in enumerate(count["slices_with_class"] or ()) if k]:
            part += f" ({listing(census)})"
        parts.append(part)
    text = f"{card['name']}: {'; '.join(parts)}; {card['size'][0]}x{card['size'][1]}"
    if card["foreground_cut_away"]:
        lost = [f"{patient} {n}" for patient, n in card["foreground_cut_away"].items()]
        text += f"\nThe cut to size left voxels of a class outside, in {listing(lost, 40)}; a larger --size keeps them."
    if placed := [f"{patient} ({how})" for patient, how in card.get("placed_labels", {}).items()]:
        text += f"\nLabels were placed on the grids of their images: {listing(placed, 4)}."
    if is_unlabelled(count["slices_with_class"] for count in card["counts"].values()):
        text += f"\n{UNLABELLED}"
    if card["uses_labels"]:
        text += f"\nLabels shaped its images: {card['uses_labels']}."
    if told := describe_orders(card.get("stored_as", {}), card.get("geometry", {}).get("directions")):
        text += f"\n{told}"
    if guessed := describe_guessed(card.get("guessed_directions", ())):
        text += f"\n{guessed}"
    return text
