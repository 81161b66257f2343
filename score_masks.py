"""A score of the masks that a run saved, epoch by epoch, without training again.

    python score_masks.py --run results/acdc/ce --score hd95

writes val_3d_hd95.npy into the run's folder, (epochs, patients, K) float32: per patient and class, in 3D, distances in
mm, NaN where an epoch's masks were not saved or the class has no score (the background never has); and
val_3d_hd95.csv, its means with what a reader needs to judge them. `python plot.py curves --array` draws it.

With --native the masks are put back on the grids of the volumes that the slices were cut from, and scored there against
the label volumes: val_3d_native_hd95.npy and .csv.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.masks import Masks
from analysis.run import AGAIN, NATIVE, SCORED, Run, open_run
from datasets.set_tables import is_split_by_patients, read_card, read_rows
from datasets.stacks import about_places, placeless, stack, without_distances
from files.labels import LabelMap, map_labels
from files.reading import read_placed, read_stack, sha256
from metrics import SCORES, average_classes, score_patients, summarise
from preprocess.slicing.frames import grid_of, restack
from processes.errors import UserError
from processes.ownership import made_by_run, note_made, refuse_input
from processes.quoting import csv_text
from utils import ProgramParser, atomic_write, counted, listing, run_program, tell_once

if TYPE_CHECKING:
    from datasets.slices import SliceSet  # opened where it is needed: it brings torch, which takes seconds

Rows = list[dict[str, Any]]  # of metrics.score_patients: one a patient and class


@dataclass(frozen=True)
class Reference:
    """What the masks of one patient are scored against.

    rows     of the patient's slices in the set
    numbers  of these slices in the volume
    true     (N, W, H) class numbers
    spacing  from slice to slice, along W and along H
    origins  the rows of manifest.csv by which the masks get onto the grid of `true`; none if they are on it
    """

    rows: list[int]
    numbers: list[int]
    true: np.ndarray
    spacing: tuple[float, float, float]
    origins: list[dict[str, str]] = field(default_factory=list)

    def on_grid(self, masks: np.ndarray) -> np.ndarray:
        """The masks (N, w, h) on the grid of `true`."""
        if not self.origins:
            return masks
        return restack(dict(zip(self.numbers, masks, strict=True)), self.origins)[self.numbers]


def sliced_references(slices: "SliceSet") -> dict[str, Reference]:
    """Patient -> the ground truth as the set holds it."""
    spacing = slices.spacing or dict.fromkeys(slices.patients, (1.0, 1.0, 1.0))
    return {
        patient: Reference(rows, [slices.numbers[row] for row in rows], slices.labels(rows), spacing[patient])
        for patient, rows in group_rows(slices.patients).items()
    }


def native_references(slices: "SliceSet") -> dict[str, Reference]:
    """Patient, as the slicer named the volume -> the planes of the label volume that the slices were cut from.

    Raises UserError if the set does not tell where they are, or if they are not there any more.
    """
    root, card = slices.root, read_card(slices.root)
    manifest = {row["name"]: row for row in read_rows(root)} if slices.spacing else {}
    origins = [manifest.get(name, {}) for name in slices.names]
    labels = {each["patient"]: each for each in card.get("sources", ()) if each["role"] == card["labels"]}
    if not all("affine" in row and row["patient"] in labels for row in origins):
        raise UserError(
            f"--native needs to know the label volumes that {root} was cut from, and its manifest.csv and dataset.json "
            "do not tell: slice it with python -m preprocess.slice_volumes."
        )
    groups = group_rows([row["patient"] for row in origins])
    paths = {patient: Path(labels[patient]["path"]) for patient in groups}
    missing = [
        str(path) for name, path in paths.items() if not path.is_file() or sha256(path) != labels[name]["sha256"]
    ]
    if missing:
        raise UserError(
            f"--native scores on the label volumes that {root} was cut from; these are gone, or not what they were (by "
            f"SHA-256): {listing(missing)}, seen from {Path.cwd()}. Put them back, or slice the set again."
        )
    others = None if card["other_labels"] == "error" else card["other_labels"]
    mapping = card["label_map"] and LabelMap({int(k): number for k, number in card["label_map"].items()}, others)
    return {
        name: native_reference(
            paths[name], rows, [origins[row] for row in rows], mapping, name in card.get("placed_labels", ())
        )
        for name, rows in groups.items()
    }


def native_reference(
    path: Path, rows: list[int], origins: list[dict[str, str]], mapping: LabelMap | None, is_placed: bool
) -> Reference:
    """The planes of one label volume that the slices in these rows were cut from; `is_placed`: on the image's grid."""
    axis, grid = int(origins[0]["axis"]), grid_of(origins[0])
    spacing, directions = grid.spacing(), grid.directions() if grid.stored else None
    if is_placed:
        stack, _ = read_placed(path, axis, grid)
    else:
        stack = read_stack(path, axis, is_label=True, directions=directions)
    classes, _ = map_labels(stack, mapping)
    along = (spacing[axis], *spacing[:axis], *spacing[axis + 1 :])
    numbers = [int(row["index"]) for row in origins]
    return Reference(rows, numbers, classes[numbers], along, origins)


def about_truth(run: Run, slices: "SliceSet") -> str:
    """A line on a set that is not what it was for the run, by its sizes, then by its files; '' where it is."""
    if not (run.folder / "val_gt_sizes.npy").is_file():
        return ""
    sizes, names = run.array("val_gt_sizes.npy"), run.names
    if sizes.shape != (len(names), run.n_class):
        raise UserError(
            f"{run.folder / 'val_gt_sizes.npy'} has the shape {sizes.shape}, not that of the {len(names)} slices in "
            f"val_names.txt and {run.n_class} classes: these are not files of one run; {AGAIN}."
        )
    noted = dict(zip(names, sizes, strict=True))
    other = [
        name
        for row, name in enumerate(slices.names)
        if (np.bincount(slices.truth(row).ravel(), minlength=run.n_class)[: run.n_class] != noted[name]).any()
    ]
    if not other and Masks(run).are_of(slices):
        return ""
    if not other:
        return (
            f"The files in {slices.root} are not those that {run.folder} was evaluated on (images, ground truth or "
            "maps; the classes have the same sizes): these scores are by what lies there now."
        )
    return (
        f"The ground truth of {len(other)} of {len(slices.names)} slices in {slices.root} is not what it was when "
        f"{run.folder} was made ({listing(other, 4)}): these scores are by the one that lies there now."
    )


def group_rows(patients: Sequence[str]) -> dict[str, list[int]]:
    """Patient -> the rows that are of it."""
    groups: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        groups.setdefault(patient, []).append(row)
    return groups


def score_epoch(run: Run, slices: "SliceSet", references: Mapping[str, Reference], folder: str, jobs: int) -> Rows:
    """Every score of every patient and foreground class, of the masks in this folder of the run.

    Pixels to be ignored are background in both masks and truth.
    """
    volumes = {}
    for patient, reference in references.items():
        predicted = np.stack([Masks(run).prediction(folder, slices, row) for row in reference.rows])
        counted = run.counted_pixels(reference.true)
        planes = (reference.on_grid(predicted), reference.true)
        volumes[patient] = (*(stack(each * counted, reference.numbers) for each in planes), reference.spacing)
    tolerance = run.nsd_tolerance if math.isfinite(run.nsd_tolerance) else 0.0  # a run of before may not tell it
    rows = score_patients(volumes, run.n_class, tolerance, jobs)
    return without_distances(rows, placeless({name: each.numbers for name, each in references.items()}))


def make_array(epochs: Mapping[int, Rows], score: str, run: Run) -> np.ndarray:
    """(epochs, patients, K) float32, the patients in the order of their first slice."""
    patients = dict.fromkeys(row["patient"] for rows in epochs.values() for row in rows)
    places = {patient: place for place, patient in enumerate(patients)}
    array = np.full((run.n_epoch, len(patients), run.n_class), np.nan, np.float32)
    for epoch, rows in epochs.items():
        for row in rows:
            array[epoch, places[row["patient"]], row["class"]] = row[score]
    return array


def make_table(epochs: Mapping[int, Rows], score: str, run: Run) -> str:
    """csv, a line per epoch and class, then one for the mean of the classes that the run averages over.

    The score's own name comes first: an ASSD without it is of the time when that meant what is called MASD now.
    """
    lines = [["score", "epoch", "class", "mean", "sd", "n", "misses", "false_structures"]]
    for epoch, rows in epochs.items():
        groups = {str(k): [row for row in rows if row["class"] == k] for k in range(1, run.n_class)}
        groups["mean"] = average_classes(row for row in rows if row["class"] in run.metric_axis)
        for name, group in groups.items():
            summary = summarise(group, score)
            numbers = ["" if math.isnan(summary[key]) else f"{summary[key]:.6g}" for key in ("mean", "sd")]
            lines.append([score, epoch, name, *numbers, summary["n"], summary["misses"], summary["false_structures"]])
    return csv_text(lines)


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser("score_masks.py", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="results/<set>/<run>, trained with --saveim 1")
    parser.add_argument("--score", choices=SCORES, required=True)
    parser.add_argument("--native", action="store_true", help="on the grids of the volumes that the slices are from")
    parser.add_argument("--data", type=Path, help="the set's folder, if it moved since the run")
    parser.add_argument("--jobs", type=int, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"the .npy (default: {SCORED}[{NATIVE}]<score>.npy in the run)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    run = open_run(args.run)
    out = args.out or run.folder / f"{SCORED}{NATIVE if args.native else ''}{args.score}.npy"
    if out.suffix != ".npy":
        raise UserError(f"Scores are written as .npy, with a .csv beside it, not as '{out.name}'; change --out.")
    for path in (out, out.with_suffix(".csv")):
        refuse_input(path, [path for path in run.own_files if not path.name.startswith(SCORED)], "--out")
    if run.by_iou:
        raise UserError(f"{run.folder} was evaluated on pictures, by IoU; only slices of volumes have scores in 3D.")
    if args.score == "nsd" and not math.isfinite(run.nsd_tolerance):
        raise UserError(
            f"{run.folder}/provenance.json does not tell nsd_tolerance, without which there is no NSD; ask for another "
            "--score, or train the run again."
        )
    folders, slices = Masks(run).epochs(), Masks(run).slices(args.data)
    unit = "vox" if slices.spacing is None else "mm"
    if unit != run.unit:
        raise UserError(
            f"{run.folder} measured distances in {run.unit}, and by the spacing in its manifest.csv (or without one) "
            f"{slices.root} has them in {unit}: this is not the set of that run; name it with --data."
        )
    references = native_references(slices) if args.native else sliced_references(slices)
    tell_once(about_truth(run, slices))
    contradicted = () if args.native else slices.contradicted  # native planes have places of their own
    whole = is_split_by_patients(read_card(slices.root))
    for line in about_places({name: each.numbers for name, each in references.items()}, contradicted, whole):
        tell_once(line)
    epochs = {
        epoch: without_distances(score_epoch(run, slices, references, folder, args.jobs), contradicted)
        for epoch, folder in folders.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out.with_suffix(".csv"), "w") as file:
        file.write(make_table(epochs, args.score, run))
    with atomic_write(out) as file:  # make's target, so last: what a kill before it left is made again
        np.save(file, make_array(epochs, args.score, run))
    if out.parent.samefile(run.folder) and made_by_run(run.folder):
        note_made(run.folder, (out.name, out.with_suffix(".csv").name))
    print(f"{out}: {args.score} of {counted(len(references), 'patient')} in {len(epochs)} of {run.n_epoch} epochs")


if __name__ == "__main__":
    run_program(main)
