"""A trained network on new volumes: for each a label map on the volume's own grid.

    python predict.py --weights results/prostate/sfda --volumes 'new/*.nii.gz' --out predictions

The network is a checkpoint, or that of a run's folder: what the run chose without labels (chosen.pkl), else its last
one. Of a folder of runs (results/prostate) it is that of the run `chosen`, which `make … chosen` makes. In its place
--bundle names a folder of `make … bundle`: the masks are the same.

Writes OUT/<patient>.nii.gz (--layout nnunet or bids: as these have it), names and colours of the labels for ITK-SNAP
and 3D Slicer, OUT/volumes.csv (how large each class is, and which Dice to expect of its mask), and what
else is asked for. How an image is made of a volume stands in the checkpoint: it is done as it was for the training, in
the same directions whatever the order of the voxels in the file. What is there already is skipped. A case that fails is
told and stops no other; typed again, the same line does what lacks. --jobs 4 reads four cases ahead. --montage draws
the masks, and makes a page of the pictures.

--volumes is a glob, a folder of volumes or of DICOM series, a .txt with a path a line, or a .csv with a column
`patient` and a column of paths for each channel. Of several DICOM series of a study --series chooses one. Images of
several channels are found by one --volumes each, in the order in which the set was sliced. --adapt adapts the network
to these volumes first, without any ground truth; --export writes it as ONNX.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.arguments import args_of
from files.faults import Fault, VolumeFault, describe_faults
from files.pairing import Case
from main import run
from nets.decoding import DECODERS
from nets.expected_dice import first_to_look_at
from nets.network_folder import WEIGHTS
from nets.precision import PRECISIONS, device_of
from prediction.adaptation import Adapting, adapt, add_adaptation_flags, refuse_idle_sizes
from prediction.dicom_segments import Maker, need_highdicom, refuse_other_formats
from prediction.export import export_onnx
from prediction.forms import FORMS, PLAIN
from prediction.inference import Predicting, Prediction
from prediction.model import FLIPS, Model, checkpoint_of, load_model, manifest_of
from prediction.one_by_one import predict_each, tell_lost
from prediction.outputs import SEGMENTATIONS, Outputs, joined, labels_of, refuse_foreign_outputs
from prediction.preparation import Preparation, preparation
from prediction.volumes import digest, find_cases, refuse_as_output, voxel_volumes
from processes.errors import UserError
from processes.ownership import refuse_input
from utils import ProgramParser, listing, run_program, settings_of, sha256_of


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser("predict.py", description=__doc__)
    _add_input(parser.add_argument_group("input").add_argument)
    _add_output(parser.add_argument_group("output").add_argument)
    _add_machine(parser.add_argument_group("machine").add_argument)
    add_adaptation_flags(parser.add_argument_group("adaptation").add_argument)
    args = parser.parse_args(argv)
    if (args.weights is None) == (args.bundle is None):
        raise UserError("--weights names a checkpoint or a run, --bundle a folder of make … bundle; give one of them.")
    if not args.volumes and (args.adapt or not args.export):
        raise UserError("--volumes 'new/*.nii.gz' says what to predict; give it, or --export alone.")
    if args.volumes and args.out is None:
        raise UserError("--out names the folder of the predictions; give it.")
    if args.export and args.export.is_dir():
        raise UserError(f"--export names the file of the network; {args.export} is a folder.")
    refuse_idle_sizes(vars(args))
    for name in ("batch_size", "jobs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is at least 1; got {getattr(args, name)}.")
    args.segments = () if args.segments is None else tuple(args.segments) or ("nrrd",)
    if "dicom" in args.segments:
        need_highdicom()
    args.device = device_of(args.device)
    args.label_values = args.label_values or ("classes" if args.layout == PLAIN.name else "original")
    args.weights = manifest_of(args.bundle) if args.bundle else checkpoint_of(args.weights)
    return args


def _add_input(add: Callable[..., Any]) -> None:
    weights = "checkpoint; or a run's folder: what it chose, else its last; or results/<set>: that of its run `chosen`"
    add("--weights", type=Path, help=weights)
    add("--bundle", type=Path, metavar="FOLDER", help="in its place: the network of a folder of make … bundle")
    volumes = (
        "the volumes: a glob, a folder, or a .txt with a path a line; once for each channel of an image, in the order "
        "of the set; or one .csv, with a column `patient` and a column of paths for each channel"
    )
    add("--volumes", action="append", default=[], metavar="[NAME=]GLOB", help=volumes)
    series = "of several DICOM series of a study the one with this description ('T2*'), or SeriesInstanceUID"
    add("--series", action="append", default=[], metavar="PATTERN", help=f"{series}; once, or for each channel")
    patient = "its groups, joined, are the patient's id, by which files are named (default: the name of the file)"
    add("--patient", metavar="REGEX", help=patient)
    like = "take the preprocessing of this set of slices or volumes, not that of the checkpoint"
    add("--like", type=Path, metavar="FOLDER", help=like)
    orient = (
        "directions of the axes that the network was trained in, where the checkpoint does not tell them; or stored"
    )
    add("--orient", metavar="{CODES,stored}", help=orient)


def _add_output(add: Callable[..., Any]) -> None:
    add("--out", type=Path, help="folder of the predictions")
    add("--probabilities", action="store_true", help="of each class too: probabilities/<patient>.nii.gz, classes last")
    segments = (
        "the label map with the names of its labels too: nrrd, for 3D Slicer (segments/<patient>.seg.nrrd; the "
        "default), or dicom, of volumes that came as DICOM, for archives and viewers (segments/<patient>.dcm)"
    )
    add("--segments", nargs="*", choices=SEGMENTATIONS, help=segments)
    montage = "a picture of each case with the contours of its classes, and a page of them all: montage/index.html"
    add("--montage", action="store_true", help=montage)
    add("--entropy", action="store_true", help="entropy maps too, 0 to 1: entropy/<patient>.nii.gz")
    form = "as nnU-Net predicts (<case>.nii.gz of <case>_0000.nii.gz), or a folder of BIDS derivatives"
    add("--layout", choices=FORMS, default=PLAIN.name, help=f"{form} (default %(default)s)")
    values = "class numbers, or for each class the (lowest) label it had in the volumes of the set"
    default = "default: classes; with --layout nnunet or bids original"
    add("--label_values", choices=("classes", "original"), help=f"{values} ({default})")
    flip = "mean probability over mirror images along these axes; alone: none (default: none, or as nnU-Net mirrors)"
    add("--flip", nargs="*", choices=FLIPS, help=flip)
    decode = "the most probable class, or the mask of the highest expected Dice (default: as the run was evaluated)"
    add("--decode", choices=DECODERS, help=decode)
    add("--largest_component", action="store_true", help="of each class the largest piece in 3D alone")
    add("--overwrite", action="store_true", help="also predict what is there already")
    add("--export", type=Path, metavar="FILE.onnx", help="write the network as ONNX, and compare what both give")


def _add_machine(add: Callable[..., Any]) -> None:
    add("--batch_size", type=int, default=8, help="slices, or windows of a volume, at a time (default %(default)s)")
    add("--jobs", type=int, default=1, help="cases that are read ahead, while one is predicted (default %(default)s)")
    add("--device", help="default: cuda where there is one")
    add("--precision", choices=PRECISIONS, help="default: that of the run")


# --------------------------------------------------------------------------------------------------- the story


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    how = {
        "precision": args.precision,
        "windows": args.batch_size,
        "flips": None if args.flip is None else tuple(args.flip),
    }
    how |= {"decode": args.decode, "like": args.like, "orient": args.orient}
    load = partial(load_model, device=args.device, **how)
    model = load(args.weights)
    who = (args.patient, model.recipe.channels, FORMS[args.layout], args.series)
    cases, lost = find_cases(args.volumes, *who) if args.volumes else ([], [])
    if cases:
        refuse_as_output(cases, args.out, FORMS[args.layout])
        refuse_foreign_outputs(args.out)
        if "dicom" in args.segments:
            refuse_other_formats(cases)
    if args.export:
        refuse_input(args.export, _read_by(args, cases), "--export")
    if args.adapt:
        args.weights = adapt(settings_of(Adapting, vars(args)), model, cases, lambda flags: run(args_of(flags)))
        model = load(args.weights)
    prepare = preparation(model.recipe, args.out or Path())
    if args.export:
        print(export_onnx(model, args.export, _first_input(model, prepare, cases)))
    if cases:
        _predict_all(args, model, prepare, cases, lost)


def _read_by(args: argparse.Namespace, cases: Sequence[Case]) -> list[Path]:
    """The files that the program reads."""
    volumes = [path for case in cases for path in case.paths.values()]
    weights = [args.weights.with_name(WEIGHTS)] if args.bundle else []
    return [path for path in (args.weights, *weights, args.sizes, *volumes) if path is not None]


def _first_input(model: Model, prepare: Preparation, cases: Sequence[Case]) -> torch.Tensor | None:
    """What the network is given first of the first patient, if there is one."""
    if not cases:
        return None
    try:
        prepared = prepare.read(cases[0])
    except VolumeFault as error:
        raise UserError(f"The network was not exported: {describe_faults([error.fault])}") from error
    middle = len(prepared.stored) // 2
    return prepared.decode(torch.from_numpy(prepared.stored[middle : middle + 1])).to(model.device)


def _predict_all(
    args: argparse.Namespace, model: Model, prepare: Preparation, cases: Sequence[Case], lost: Sequence[Fault]
) -> None:
    """Every case that is not done yet. Raises UserError at the end for those that failed, and those that are lost."""
    predicting = settings_of(Predicting, vars(args))
    labels = labels_of(model.recipe.card, model.n_class, args.label_values == "original")
    made_with = _made_with(args, model)
    maker = Maker(model.network, made_with["sha256"])
    outputs = Outputs(args.out, labels, predicting, model.labels, FORMS[args.layout], maker)
    bar = tqdm(cases, "looking at the volumes", unit="case", disable=None, leave=False)
    digests = {case.patient: [digest(path) for path in case.paths.values()] for case in bar}
    outputs.begin(made_with, digests, args.overwrite)
    todo = [case for case in cases if args.overwrite or not outputs.is_done(case.patient)]
    for fault in lost:
        tell_lost(fault)
    write = partial(_write, outputs)
    failed, unlike = predict_each(model, prepare, todo, predicting, args.jobs, write)
    _warn(model, unlike)
    mm3 = voxel_volumes(cases)
    if mm3:
        what = "in another unit than mm, which ITK and its viewers overlook: the mask has the numbers of the volume"
        print(f"Note: {what}: {listing(mm3)}.", file=sys.stderr)
    table = outputs.write_sizes({case.patient: joined(case.paths.values()) for case in cases}, mm3)
    print(f"{args.out}: {len(todo) - len(failed)} predicted, {len(cases) - len(todo)} were there; {table}")
    if isinstance(model.told, str):
        print(f"How good the masks are cannot be told without labels: {model.told}.")
    else:
        print(first_to_look_at(*outputs.expected([case.patient for case in cases])))
    undrawn = _draw(args, model, outputs, cases, todo) if args.montage else []
    if undrawn:
        print(f"Not drawn: {describe_faults(undrawn)}", file=sys.stderr)
    if faults := [*lost, *failed]:
        every = len(cases) + len(lost)
        raise UserError(f"{len(faults)} of {every} volumes were not predicted: {describe_faults(faults)}")


def _write(outputs: Outputs, case: Case, prediction: Prediction) -> None:
    outputs.write(case.patient, prediction, [*case.paths.values()])


def _draw(
    args: argparse.Namespace, model: Model, outputs: Outputs, cases: Sequence[Case], todo: Sequence[Case]
) -> list[Fault]:
    """Draws the cases that have a mask, and tells where. Returns the faults of those that cannot be drawn."""
    from prediction.montage import FOLDER, PAGE, Look, Shown, write_montages  # here, as it brings matplotlib

    masks = {case.patient: outputs.paths(case.patient)["classes"] for case in cases}
    shown = [
        Shown(case.patient, next(iter(case.paths.values())), masks[case.patient])
        for case in cases
        if masks[case.patient].exists()
    ]
    look = Look(outputs.labels, outputs.names, bool(model.recipe.card.get("phantom")))
    faults = write_montages(args.out, shown, [case.patient for case in todo], look, outputs.rows())
    if shown:
        print(f"Look them over: {args.out / FOLDER / PAGE}")
    return faults


def _warn(model: Model, unlike: Sequence[Fault]) -> None:
    """A line for each kind of what is worth a look before the masks are believed."""
    if tile := model.recipe.tile:
        print(
            f"The network was trained on slices of {tile[0]}x{tile[1]} cut round the labels, which new volumes do not "
            "have: it was given all of each plane, in windows of that size. Look for structures far from the organ.",
            file=sys.stderr,
        )
    for what in dict.fromkeys(what for what, _ in unlike):
        which = listing(whose for each, whose in unlike if each == what)
        print(f"Note: {what}: {which}.", file=sys.stderr)


def _made_with(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What a prediction depends on, apart from its volume."""
    flags = {"flip": model.flips} | {name: getattr(args, name) for name in ("largest_component", "label_values")}
    recipe = model.recipe
    return {
        "weights": str(args.weights),
        "sha256": sha256_of(args.weights),
        "network": model.network,
        "precision": model.precision,
        "card": recipe.card,
        "image": [recipe.image.folder, recipe.image.transform],
        "crop": recipe.crop,
        "directions": recipe.directions,
        **flags,
        # which older notes lack
        **({} if model.decode == "argmax" else {"decode": model.decode}),
        **({} if args.layout == PLAIN.name else {"layout": args.layout}),
    }


if __name__ == "__main__":
    run_program(main)
