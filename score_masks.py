"""A score of the masks that a run saved, epoch by epoch, without training again.

    python score_masks.py --run results/acdc/ce --score hd95

writes val_3d_hd95.npy into the run's folder, (epochs, patients, K) float32: per patient and class, in 3D, distances in
mm, NaN where an epoch's masks were not saved or the class has no score (the background never has); and
val_3d_hd95.csv, its means with what a reader needs to judge them. `python plot.py curves --array` draws it.
"""

import argparse
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import SliceSet
from metrics import SCORES, average_classes, score_patients, summarise
from run_files import SCORED, Run, open_run
from utils import UserError, atomic_write, run_program

Rows = list[dict[str, Any]]  # of metrics.score_patients: one a patient and class


def score_epoch(run: Run, slices: SliceSet, folder: str, jobs: int) -> Rows:
    """Every score of every patient and foreground class, of the masks in this folder of the run.

    Pixels to be ignored are background in both masks and truth.
    """
    volumes = {}
    for patient in dict.fromkeys(slices.patients):
        rows = [row for row, name in enumerate(slices.patients) if name == patient]
        predicted, true = np.stack([run.prediction(folder, slices, row) for row in rows]), slices.labels(rows)
        counted = run.counted(true)
        spacing = (1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[patient]
        volumes[patient] = (predicted * counted, true * counted, spacing)
    return score_patients(volumes, run.n_class, run.nsd_tolerance, jobs)


def make_array(epochs: Mapping[int, Rows], score: str, run: Run) -> np.ndarray:
    """(epochs, patients, K) float32, the patients in the order of their first slice."""
    patients = list(dict.fromkeys(row["patient"] for rows in epochs.values() for row in rows))
    array = np.full((run.n_epoch, len(patients), run.n_class), np.nan, np.float32)
    for epoch, rows in epochs.items():
        for row in rows:
            array[epoch, patients.index(row["patient"]), row["class"]] = row[score]
    return array


def make_table(epochs: Mapping[int, Rows], score: str, run: Run) -> str:
    """csv, a line per epoch and class, then one for the mean of the classes that the run averages over."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["epoch", "class", "mean", "sd", "n", "misses", "false_structures"])
    for epoch, rows in epochs.items():
        groups = {str(k): [row for row in rows if row["class"] == k] for k in range(1, run.n_class)}
        groups["mean"] = average_classes(row for row in rows if row["class"] in run.metric_axis)
        for name, group in groups.items():
            found = summarise(group, score)
            numbers = ["" if math.isnan(found[key]) else f"{found[key]:.6g}" for key in ("mean", "sd")]
            writer.writerow([epoch, name, *numbers, found["n"], found["misses"], found["false_structures"]])
    return file.getvalue()


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="results/<set>/<run>, trained with --saveim 1")
    parser.add_argument("--score", choices=SCORES, required=True)
    parser.add_argument("--data", type=Path, help="the set's folder, if it moved since the run")
    parser.add_argument("--jobs", type=int, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"the .npy (default: {SCORED}<score>.npy in the run's folder)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    run = open_run(args.run)
    out = args.out or run.folder / f"{SCORED}{args.score}.npy"
    if out.suffix != ".npy":
        raise UserError(f"Scores are written as .npy, with a .csv beside it, not as '{out.name}'; change --out.")
    if run.by_iou:
        raise UserError(f"{run.folder} was evaluated on pictures, by IoU; only slices of volumes have scores in 3D.")
    folders, slices = run.epochs_saved(), run.slices(args.data)
    unit = "vox" if slices.spacing is None else "mm"
    if unit != run.unit:
        raise UserError(
            f"{run.folder} measured distances in {run.unit}, and by the spacing in its manifest.csv (or without one) "
            f"{slices.root} has them in {unit}: this is not the set of that run; name it with --data."
        )
    epochs = {epoch: score_epoch(run, slices, folder, args.jobs) for epoch, folder in folders.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        np.save(file, make_array(epochs, args.score, run))
    with atomic_write(out.with_suffix(".csv"), "w") as file:
        file.write(make_table(epochs, args.score, run))
    print(f"{out}: {args.score} of {len(set(slices.patients))} patients in {len(epochs)} of {run.n_epoch} epochs")


if __name__ == "__main__":
    run_program(main)
