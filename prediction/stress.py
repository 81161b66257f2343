"""Stress test of a trained network: labelled images as other scanners would show them, from mild (1) to bad (5).

    python -m prediction.stress --weights results/prostate/cesource --out results/prostate/stress/cesource

The images are the validation images that the network's own run was scored on, or those of another set, which is named
by the flags of main.py (--target_dataset …). They are shifted in memory, one patient at a time, predicted, and scored
as a run scores them.

Writes OUT/stress.csv, a row a shift, severity, patient and class, and OUT/stress.png, the Dice over severities. A shift
at a severity is kept as soon as it is scored, so the same command goes on where it was stopped. What stands in a row
depends on patient, shift, severity and --seed alone. Nothing learns here, and nothing that learns reads the table.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from tqdm import tqdm

from analysis.plots.canvas import STYLE
from analysis.plots.stress import plot_stress
from analysis.stress import UNDISTURBED, Kind, StressTable, read_stress, stress_text
from dataloader import Demand, Reading, open_data
from datasets.code_identity import source_hash
from datasets.grey_matching import SourceLevels, levels_to_match, match_set
from datasets.set_tables import read_card
from datasets.streams import Stream
from datasets.volumes import WholeStream
from engine.arguments import args_of
from engine.evaluation import Scoring, evaluate
from engine.recorder import patient_table, unit_of
from files.foreign import read_json
from methods.base import METHODS, Method
from methods.objective import LossSum
from methods.settings import Settings
from metrics import DISTANCES, SCORES
from nets.checkpoint_files import OF_A_NETWORK, load_checkpoint, require
from nets.precision import PRECISIONS, device_of, set_up_machine
from networks import network_of
from prediction.model import checkpoint_of
from prediction.shifted import shift_set
from preprocess.shifts.acquisitions import ACQUISITIONS, OF_SCANNERS, SEVERITIES, Shift
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin, refuse_taken
from utils import ProgramParser, atomic_write, listing, nearest, read_literal, run_program, settings_of, sha256_of

PROGRAM = "prediction.stress"
TABLE, PICTURE, NOTE = "stress.csv", "stress.png", "stress.json"
OF_A_SET = ("target_dataset", "target_folders", "val_target_folders", "grp_regex")  # flags that name another set


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser(f"python -m {PROGRAM}", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="checkpoint; or a run's folder: what it chose, else its last")
    add("--out", type=Path, required=True, help="folder of the table and the picture")
    add("--target_dataset", help="a labelled set, of which val is shifted (default: that of the network's run)")
    add("--target_folders", help="its folders, as main.py is told them (default: as the run's)")
    add("--val_target_folders", help="the same of its validation images, where they are others")
    add("--grp_regex", help="first group: patient; second: slice number (default: as the run's)")
    shifts = "default: all, and of pictures those that a camera can have"
    add("--shifts", nargs="+", metavar="SHIFT", help=f"some of {', '.join(ACQUISITIONS)} ({shifts})")
    add("--severities", nargs="+", type=int, metavar="N", help="some of 1 (mild) to 5 (bad) (default: all)")
    add("--seed", type=int, default=0, help="of what is drawn: the side of a shift, noise")
    add("--overwrite", action="store_true", help="begin anew where the table is of another network, set, seed or code")
    add("--jobs", type=int, default=1, help="threads for surface distances (default %(default)s)")
    add("--device", help="default: cuda where there is one")
    add("--precision", choices=PRECISIONS, help="default: that of the run")
    args = parser.parse_args(argv)
    if args.seed < 0 or args.jobs < 1:
        raise UserError(f"--seed is at least 0 and --jobs at least 1; got {args.seed} and {args.jobs}.")
    args.device = device_of(args.device)
    return args


def asked_for(shifts: Sequence[str] | None, severities: Sequence[int] | None, pictures: bool) -> list[Kind]:
    """The shifts and severities to be tried, undisturbed images first. Raises UserError for one that is none."""
    known = [name for name in ACQUISITIONS if not (pictures and name in OF_SCANNERS)]
    for name in shifts or ():
        if name not in ACQUISITIONS:
            raise UserError(f"--shifts: there is no shift '{name}'.{nearest(name, ACQUISITIONS)}")
        if name not in known:
            raise UserError(
                f"--shifts: {name} is made of what a scanner measures (tissue and air, lines of k-space), and these "
                f"are pictures (--scores iou). Leave it out; pictures have {', '.join(known)}."
            )
    if wrong := [severity for severity in severities or () if severity not in SEVERITIES]:
        raise UserError(f"--severities are 1 (mild) to 5 (bad); got {listing(wrong)}.")
    chosen = [name for name in known if name in (shifts or known)]
    return [UNDISTURBED, *((name, severity) for name in chosen for severity in severities or SEVERITIES)]


# --------------------------------------------------------------------------------------------- network and set


@dataclass(frozen=True)
class Tested:
    """A network, the images that it is tested on, and how it is scored.

    levels: what the images are matched to, once they are shifted
    flags: what of its run and of the set decides the scores
    """

    weights: Path
    method: Method
    val: Stream | WholeStream
    levels: SourceLevels | None
    scoring: Scoring
    debug: bool
    flags: dict[str, Any]

    @property
    def set_name(self) -> str:
        return str(self._card.get("name") or self.val.slices.root.name)

    @property
    def phantom(self) -> bool:
        return bool(self._card.get("phantom"))

    @property
    def _card(self) -> dict[str, Any]:
        return read_card(self.val.slices.root)

    @property
    def columns(self) -> list[str]:
        """Of the table; after shift and severity those of a run's patients_last.csv."""
        unit = unit_of(self.val.slices)
        scores = [f"{name}_{unit}" if name in DISTANCES else name for name in SCORES]
        return ["shift", "severity", "patient", "class", "outcome", *scores, "predicted", "true", f"diagonal_{unit}"]

    def made_with(self, seed: int) -> dict[str, Any]:
        """What a row depends on, apart from its shift, severity and patient."""
        code = source_hash([shift_set, Shift.apply])
        network = {"sha256": sha256_of(self.weights), "precision": self.method.settings.precision}
        return network | {"images": self.val.slices.digest, "seed": seed, "shifts": code} | self.flags


def open_test(weights: Path, named: dict[str, Any], here: dict[str, Any]) -> Tested:
    """Opens the network of a checkpoint and the labelled images.

    named: flags of main.py that name another set than that of the network's run; here: flags of this machine

    Raises UserError for a checkpoint of no such network, for images that cannot be read or do not fit it, and for a set
    without ground truth.
    """
    state = load_checkpoint(weights)
    require(weights, state, OF_A_NETWORK)
    args = _arguments(weights, state, named, here)
    if not METHODS[args.method].segments:
        raise UserError(f"{weights} is of a pre-training (--method {args.method}), which segments nothing yet.")
    set_up_machine(args.precision, args.deterministic)
    levels = levels_to_match(state, None)
    _, val = open_data(Demand("noadap", {}, (), True), settings_of(Reading, vars(args)), [], levels=levels)
    slices = val.slices
    where = slices.root / slices.split
    if not slices.has_truth:
        raise UserError(
            f"{where} is read without ground truth ({args.target_folders}), and nothing can be scored. Name a labelled "
            "set: --target_dataset, with its image and its ground truth in --target_folders (ON=source of make)."
        )
    if slices.shape[0] != state["in_channels"]:
        raise UserError(
            f"{weights} takes images of {state['in_channels']} channels, and those of {where} have {slices.shape[0]}: "
            "name a set that was made as the network's own."
        )
    net = network_of(state, weights).to(args.device)
    if args.channels_last:
        net.to(memory_format=torch.channels_last_3d if args.crop else torch.channels_last)
    method = METHODS["noadap"](net, LossSum([]), settings_of(Settings, vars(args)))
    names = ("target_folders", "grp_regex", "n_class", "metric_axis", "scores", "ignore", "nsd_tolerance")
    flags = {name: getattr(args, name) for name in (*names, "crop", "overlap", "debug")}
    return Tested(weights, method, val, levels, settings_of(Scoring, vars(args)), bool(args.debug), flags)


def _arguments(weights: Path, state: dict[str, Any], named: dict[str, Any], here: dict[str, Any]) -> argparse.Namespace:
    """The arguments of the network's run, as if it were evaluated on the images to be shifted."""
    flags = {name: value for name, value in state["identity"].items() if name != "inputs"}
    own = {name: flags.get(name) for name in OF_A_SET} | (
        {"val_target_folders": None} if named.get("target_folders") else {}
    )
    of_set = own | {name: value for name, value in named.items() if value}
    folders = read_literal(str(of_set["val_target_folders"] or of_set["target_folders"]))
    if not isinstance(folders, list):
        raise UserError(f"--target_folders lists the image and its ground truth, [(…), (…)]; got {folders!r}.")
    of_set |= {"target_folders": str(folders[:2]), "val_target_folders": None}  # a loss's folder is not needed
    only_val = {"ontest": 0, "ontrain": 0, "cache": "stream", "workers": 1}
    try:
        return args_of(flags | of_set | only_val | here)
    except UserError as error:
        raise UserError(f"{weights} tells of a run that cannot be read: {error}") from error


# ----------------------------------------------------------------------------------------------------- the table


def begin_table(tested: Tested, out: Path, seed: int, overwrite: bool) -> StressTable:
    """What is finished in the folder already. Raises UserError where that is of something else, unless it may go."""
    note, made_with = out / NOTE, json.loads(json.dumps(tested.made_with(seed)))
    before = read_json(note, "remove it, and the test begins anew") if note.exists() else None
    if before != made_with:
        if (out / TABLE).exists() and not overwrite:
            other = [name for name in made_with if (before or {}).get(name) != made_with[name]]
            raise UserError(
                f"{out} holds a stress test of something else ({listing(other)}; see {note}). Name another --out, or "
                "give --overwrite to begin it anew."
            )
        for name in (PICTURE, TABLE):
            (out / name).unlink(missing_ok=True)
        with atomic_write(note, "w") as file:
            json.dump(made_with, file, indent=1)
            file.write("\n")
    empty = StressTable(tested.columns, {})
    table = read_stress(out / TABLE, tested.columns) if (out / TABLE).exists() else empty
    return table.whole(list(dict.fromkeys(tested.val.slices.patients)), tested.scoring.n_class)


def scores_under(tested: Tested, kind: Kind, seed: int) -> list[tuple[Any, ...]]:
    """The rows of one shift at one severity, without these two."""
    stream, pictures = tested.val, tested.scoring.scores == "iou"
    if kind != UNDISTURBED:
        stream = copy.copy(stream)
        stream.slices = match_set(shift_set(stream.slices, Shift(*kind, seed), pictures), tested.levels)
    evaluation = evaluate(tested.method, stream, keep_masks=not pictures)
    rows = patient_table(evaluation, stream.slices, tested.scoring)
    return list(rows[tested.columns[2:]].itertuples(index=False, name=None))


def run_test(tested: Tested, out: Path, kinds: Sequence[Kind], seed: int, overwrite: bool) -> StressTable:
    """Scores what is not there yet, and writes the table after each shift and severity."""
    table = begin_table(tested, out, seed, overwrite)
    order = [UNDISTURBED, *((name, severity) for name in ACQUISITIONS for severity in SEVERITIES)]
    todo = [kind for kind in kinds if kind not in table.rows]
    for kind in tqdm(todo, "shifts", disable=None, unit="evaluation"):
        table = replace(table, rows=dict(table.rows) | {kind: scores_under(tested, kind, seed)})
        with atomic_write(out / TABLE, "w") as file:
            file.write(table.text(order))
    return read_stress(out / TABLE, tested.columns)


def warnings_of(tested: Tested) -> list[str]:
    """What stands above the table, loudly."""
    phantom = ["PHANTOM: made-up images; these figures say nothing about real ones."] * tested.phantom
    return phantom + ["DEBUG: ten slices a set; the figures mean nothing."] * tested.debug


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    refuse_taken(args.out, PROGRAM, "--out")
    weights = checkpoint_of(args.weights)
    here = {"workdir": args.out, "device": args.device, "jobs": args.jobs}
    here |= {"precision": args.precision} if args.precision else {}
    tested = open_test(weights, {name: getattr(args, name) for name in OF_A_SET}, here)
    kinds = asked_for(args.shifts, args.severities, tested.scoring.scores == "iou")
    begin(args.out, PROGRAM)
    with locked(args.out):
        table = run_test(tested, args.out, kinds, args.seed, args.overwrite)
        axis = tested.scoring.metric_axis
        title = f"{weights} on {tested.val.slices.root}, shifted"
        with mpl.rc_context(STYLE):
            plot_stress(table, axis, tested, f"{weights.parent.name} on shifted images", args.out / PICTURE)
    print(stress_text(table, axis, title, warnings_of(tested)))
    print(f"\n{args.out / TABLE}, {args.out / PICTURE}")


if __name__ == "__main__":
    run_program(main)
