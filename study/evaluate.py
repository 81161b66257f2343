"""How true the probabilities of a finished run are, and scans of its patients for a viewer.

    python -m study.evaluate --run results/prostate/sfda

The run's last network, and the one that it chose, see its validation images once more, as in the run: the same look at
grey levels, the same batch norms, the same --decode. The labels score, and nothing is learnt. One temperature a network
is fitted to the target's training images without labels (PseudoCal), and the scores at it stand beside those as they
are, as 'last, tempered'.

Writes, beside the run, evaluated/<run>/calibration.csv, reliability.csv and scans/<patient>.npz; analysis/evaluated.py
says what is in them. What is there and of the same networks, images and code is kept.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from analysis.evaluated import (
    CALIBRATION,
    COLUMNS,
    CURVE,
    EVERYONE,
    NOTE,
    RELIABILITY,
    SCANS,
    TEMPERED,
    evaluated_folder,
)
from analysis.run import Run, open_run
from dataloader import AnySet, Demand, Reading, open_data, open_images, splits_of
from datasets.code_identity import source_hash
from datasets.grey_matching import levels_to_match, match_set
from datasets.streams import Stream
from datasets.volumes import WholeStream
from engine.arguments import args_of
from engine.recorder import unit_of
from files.run_names import CHOSEN
from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import Settings
from nets.checkpoint_files import OF_A_NETWORK, load_checkpoint, require
from nets.precision import PRECISIONS, device_of, set_up_machine
from networks import network_of
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin, refuse_taken
from processes.quoting import csv_text
from score_masks import about_truth
from selection.target import Target
from study.calibrating import Row, Tally
from study.cases import Shown, cases_of
from study.pseudo_labels import Fitted, fit_without_labels
from study.scans import scan_of, write_scan
from utils import ProgramParser, atomic_write, counted, listing, read_literal, run_program, settings_of, sha256_of

PROGRAM = "study.evaluate"
LOOKED_AT = 400  # training images, evenly spaced, that a temperature is fitted to at most


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser(f"python -m {PROGRAM}", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="results/<set>/<run>, finished and scored")
    add("--out", type=Path, help="folder of what is written (default: evaluated/<run> beside the run)")
    add("--data", type=Path, help="the set's folder, if it moved since the run")
    add("--device", help="default: cuda where there is one")
    add("--precision", choices=PRECISIONS, help="default: that of the run")
    args = parser.parse_args(argv)
    args.device = device_of(args.device)
    return args


# --------------------------------------------------------------------------------------------- networks and images


def files_of(run: Run) -> dict[str, Path]:
    """The checkpoints of its 'last' network, and of the 'chosen' one where it chose. Raises UserError for none."""
    run.patients("last")  # a run that is not finished, or not scored, says so
    files = {"last": run.folder / "last.pkl"}
    if run.selection is not None:
        files["chosen"] = run.folder / CHOSEN
    if missing := [path for path in files.values() if not path.is_file()]:
        raise UserError(f"{listing(missing)} is not there, and without its network a run cannot be evaluated.")
    return files


def arguments_of(file: Path, state: dict[str, Any], here: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments of a checkpoint's run, with what is to be read of its images and labels, and no more.

    here: flags that say where this program reads and computes
    """
    flags = {name: value for name, value in state["identity"].items() if name != "inputs"}
    try:
        for name in ("target_folders", "val_target_folders"):  # the folder of a loss is not needed
            if flags.get(name):
                flags[name] = str(first_two(str(flags[name])))
        return args_of(flags | {"cache": "stream"} | here)
    except UserError as error:
        raise UserError(f"{file} tells of a run that cannot be read: {error}") from error


def first_two(folders: str) -> list[Any]:
    """The image and its ground truth, of folders as --target_folders lists them. Raises UserError for no list."""
    listed = read_literal(folders)
    if not isinstance(listed, list):
        raise UserError(f"--target_folders lists the image and its ground truth, [(…), (…)]; got {folders}.")
    return listed[:2]


def shown_of(file: Path, state: dict[str, Any], args: argparse.Namespace) -> Shown:
    """The network of a checkpoint with the look that it is used with. args: of its run"""
    net = network_of(state, file).to(args.device)
    if args.channels_last:
        net.to(memory_format=torch.channels_last_3d if args.crop else torch.channels_last)
    method = METHODS["noadap"](net, LossSum([]), settings_of(Settings, vars(args)))
    return Shown(method, levels_to_match(state, None))


@dataclass(frozen=True)
class Opened:
    """The networks of a run by name, and the images, as they lie, that it was evaluated on."""

    run: Run
    shown: Mapping[str, Shown]
    reading: Reading
    val: Stream | WholeStream
    made_of: Mapping[str, Any]

    @property
    def slices(self) -> AnySet:
        return self.val.slices

    @property
    def pictures(self) -> bool:
        """Whether each image is one by itself, and no plane of a volume."""
        return self.run.by_iou

    def as_seen_by(self, shown: Shown) -> Stream | WholeStream:
        """The images with the grey levels that a network sees."""
        stream = copy.copy(self.val)
        stream.slices = match_set(self.slices, shown.levels)
        return stream


def open_evaluation(run: Run, here: Mapping[str, Any]) -> Opened:
    """Opens what a run left, and its data. Raises UserError for a run, networks or images that do not fit together."""
    shown, made_of, args = {}, {}, None
    for which, file in files_of(run).items():
        state = load_checkpoint(file)
        require(file, state, OF_A_NETWORK)
        args = args or arguments_of(file, state, here)
        if not shown:
            set_up_machine(args.precision, args.deterministic)
        shown[which], made_of[which] = shown_of(file, state, args), sha256_of(file)
    reading = settings_of(Reading, vars(args))
    _, val = open_data(Demand("noadap", {}, (), True), reading, [])
    slices = val.slices
    if slices.names != run.names:
        raise UserError(
            f"{slices.root / slices.split} holds other images than {run.folder} was evaluated on (its val_names.txt), "
            f"as by {listing(sorted({*slices.names} ^ {*run.names}))}. Put them back, or name the set of that run with "
            "--data."
        )
    if told := about_truth(run, slices):
        print(told, flush=True)
    if EVERYONE in slices.patients:
        raise UserError(
            f"A patient of {slices.root} is called '{EVERYONE}', as the rows of all patients together are here; give "
            "it another name."
        )
    code = source_hash([Tally, cases_of, scan_of, fit_without_labels])
    made_of |= {"images": slices.digest, "precision": args.precision, "code": code}
    return Opened(run, shown, reading, val, made_of)


def training_images(opened: Opened) -> Target | None:
    """The target's training images without labels, some of them where they are many; None where there are none."""
    split = splits_of("target", opened.reading)[0]
    if not (opened.slices.root / split).is_dir():
        return None
    slices = open_images(opened.reading, split).slices
    if len(slices) > LOOKED_AT:
        slices = slices.keep(np.linspace(0, len(slices) - 1, LOOKED_AT).astype(int).tolist())
    return Target(slices, None, opened.reading, None)


# ------------------------------------------------------------------------------------------------------- the story


@dataclass(frozen=True)
class Found:
    """Rows of calibration.csv and reliability.csv of one network, and the temperature that it was given, if any."""

    scores: list[Row]
    curves: list[Row]
    fitted: Fitted | None

    def called(self, which: str, other: str) -> "Found":
        """The same under the name of another network, which says the same."""

        def renamed(rows: list[Row]) -> list[Row]:
            return [[str(row[0]).replace(which, other, 1), *row[1:]] for row in rows]

        return Found(renamed(self.scores), renamed(self.curves), self.fitted)


def evaluate(opened: Opened, which: str, training: Target | None, scans: Path | None) -> Found:
    """Shows one network all images. scans: the folder that scans are written into; None writes none"""
    shown, run = opened.shown[which], opened.run
    fitted = None
    if training is not None:
        fitted = fit_without_labels(shown, training.batches(shown.levels), len(training.slices))
    versions = {which: 1.0} | ({} if fitted is None else {f"{which}{TEMPERED}": fitted.temperature})
    tally, rows = Tally(versions, run.n_class, opened.reading.ignore), []
    cases = cases_of(shown, opened.as_seen_by(shown), opened.pictures)
    bar = tqdm(total=len(set(opened.slices.patients)), desc=which, disable=None, unit="patient")
    for patient, own in groupby(cases, lambda case: case.patient):
        for case in own:
            tally.add(case)
            if scans is not None:
                write_scan(scans, patient, scan_of(case, opened.slices, run.standing_for("chosen"), tally.ignore))
        rows += tally.finish(patient)
        bar.update()
    bar.close()
    return Found([*tally.rows_of_everyone(), *rows], tally.curves(), fitted)


def evaluate_all(opened: Opened, out: Path) -> dict[str, Found]:
    """Every network of the run, each that says the same as one before without another pass."""
    training, found = training_images(opened), {}
    if training is None:
        print(f"{opened.slices.root} has no training images, so no temperature is fitted.", flush=True)
    headline = opened.shown[opened.run.standing_for("chosen")]
    for which, shown in opened.shown.items():
        if same := next((name for name in found if opened.shown[name].is_same(shown)), None):
            found[which] = found[same].called(same, which)
        else:
            scans = out if not opened.pictures and shown.is_same(headline) else None
            found[which] = evaluate(opened, which, training, scans)
    return found


def write(opened: Opened, found: Mapping[str, Found], out: Path) -> None:
    """Writes the tables, that of the scores last: it is what make asks for."""
    tables = {RELIABILITY: (CURVE, "curves"), CALIBRATION: (COLUMNS, "scores")}
    note = dict(opened.made_of) | {
        "unit": {"mm": "mm", "vox": "pixels"}[unit_of(opened.slices)],
        "fitted": {which: each.fitted and asdict(each.fitted) for which, each in found.items()},
    }
    with atomic_write(out / NOTE, "w") as file:
        json.dump(note, file, indent=1)
        file.write("\n")
    for name, (columns, rows) in tables.items():
        with atomic_write(out / name, "w") as file:
            file.write(csv_text([columns, *(row for each in found.values() for row in getattr(each, rows))]))


def is_kept(opened: Opened, out: Path) -> bool:
    """Whether what lies there is whole, and of the same networks, images and code."""
    if not ((out / CALIBRATION).is_file() and (out / NOTE).is_file()):
        return False
    try:
        note = json.loads((out / NOTE).read_text(encoding="utf-8"))
        return all(note[name] == value for name, value in opened.made_of.items())
    except (ValueError, KeyError, TypeError):
        return False


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    run = open_run(args.run)
    out = args.out or evaluated_folder(run.folder)
    refuse_taken(out, PROGRAM, "--out")
    here = {"workdir": out, "device": args.device} | ({"precision": args.precision} if args.precision else {})
    opened = open_evaluation(run, here | ({"target_dataset": args.data} if args.data else {}))
    begin(out, PROGRAM)
    with locked(out):
        if is_kept(opened, out):
            os.utime(out / CALIBRATION)  # for make, which looks at times
            print(f"{out} is there, of the same networks, images and code, and is kept.")
            return
        (out / CALIBRATION).unlink(missing_ok=True)
        shutil.rmtree(out / SCANS, ignore_errors=True)
        found = evaluate_all(opened, out)
        write(opened, found, out)
    tell(opened, found, out)


def tell(opened: Opened, found: Mapping[str, Found], out: Path) -> None:
    """Prints where it lies, and what a reader must know of it."""
    fitted = {which: each.fitted for which, each in found.items() if each.fitted}
    if fitted:
        words = ", ".join(f"{which} {each.temperature:.2f}" for which, each in fitted.items())
        print(f"Temperature without labels (above 1: too sure of itself): {words}.")
    if unit_of(opened.slices) != "mm":
        print(f"{opened.slices.root} states no spacing: the band is 5 pixels wide, not 5 mm.")
    if opened.pictures:
        print("Pictures are no volumes: each has its band by itself, and there are no scans.")
    print(f"{out / CALIBRATION}: {counted(len(set(opened.slices.patients)), 'patient')}")


if __name__ == "__main__":
    run_program(main)
