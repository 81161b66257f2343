"""The network of a finished run as a folder for others: a bundle.

    python -m prediction.bundle --run results/prostate/chosen --out results/prostate/bundle/chosen

Writes OUT/model.safetensors and OUT/manifest.json, which together are the checkpoint (nets/network_folder.py);
README.md, the model card; what MONAI runs by itself (configs/ and models/), where it can; and model.onnx where the
packages for it are there. predict.py --bundle OUT predicts as with the checkpoint. A folder that a bundle is in already
is written anew.

The network is what the run chose without labels, else its last one. What the manifest tells of its past is read off the
checkpoints that it started from, as far as these are still the same files.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.run import Run, open_run
from files.run_names import CHOSEN
from nets.checkpoint_files import OF_A_NETWORK, load_checkpoint, of_a_network, require
from nets.network_folder import MANIFEST, WEIGHTS, write_network_folder
from prediction.export import PACKAGES, export_onnx
from prediction.history import choice_in, history_of, is_of_debugging, prior_in
from prediction.model import Model, checkpoint_of, load_model
from prediction.model_card import mean_scores, model_card
from prediction.monai_bundle import FILES, write_monai_bundle
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin, refuse_taken
from utils import ProgramParser, atomic_write, doubled, run_program, sha256_of

PROGRAM = "prediction.bundle"
CARD, ONNX, MONAI = "README.md", "model.onnx", "configs/, models/"
LONGEST = 200  # letters of a name or a licence


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser(f"python -m {PROGRAM}", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="results/<set>/<run>, finished")
    add("--out", type=Path, required=True, help="folder of the bundle")
    names = "what the classes from 1 up are called (default: as the set's card calls them, else class 1, class 2, …)"
    add("--labels", nargs="+", metavar="NAME", help=names)
    add("--licence", help="under which others may use the network, as CC-BY-4.0 (default: not stated)")
    orient = "directions that the volumes' axes were turned to, where the checkpoint does not tell (see predict.py)"
    add("--orient", metavar="{CODES,stored}", help=orient)
    args = parser.parse_args(argv)
    for flag, words in (("--labels", args.labels or []), ("--licence", [args.licence] if args.licence else [])):
        if any(not word.strip() or len(word) > LONGEST or not word.isprintable() for word in words):
            raise UserError(f"{flag} takes words of 1 to {LONGEST} letters on one line; got {words}.")
    return args


def label_names(names: Sequence[str], n_class: int) -> list[str]:
    """What the classes are called, background first. Raises UserError for another number of names, and for doubles."""
    if len(names) != n_class - 1 or doubled(names):
        raise UserError(
            f"--labels names each of the {n_class - 1} classes from 1 up once; got {len(names)}: {', '.join(names)}."
        )
    return ["background", *names]


# ----------------------------------------------------------------------------------------------- what is told


def manifest_words(run: Run, file: Path, state: Mapping[str, Any], licence: str | None) -> dict[str, Any]:
    """What the manifest tells beside the checkpoint's entries, in plain types."""
    steps = history_of(file, state)
    facts, bundle = run.provenance, state.get("bundle", {})
    return {
        "name": f"{run.set_name}/{run.name}",
        "licence": licence,
        "temperatures": bundle.get("numbers", {}).get("temperatures"),
        "prior": prior_in(steps),
        "supervision": str(facts.get("supervision") or ""),
        "scores": mean_scores(run, "chosen" if file.name == CHOSEN else "last", state["n_class"]),
        "history": [step.told() for step in steps],
        "history_is_whole": not steps[-1].start,
        "debugging": is_of_debugging(steps),
        "provenance": {
            **{name: facts.get(name) for name in ("commit", "code", "versions", "platform")},
            "uncommitted": bool(facts.get("diff")),
        },
    }


def add_onnx(model: Model, path: Path) -> str:
    """Writes the network as ONNX, if that can be; returns what the file is, or why there is none."""
    path.unlink(missing_ok=True)
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        return f"not written: it needs the packages {', '.join(lacking)} (pip install {' '.join(PACKAGES)})"
    try:
        return export_onnx(model, path, None).removeprefix(f"{path}: ")
    except UserError as error:
        return f"not written: {str(error).removeprefix(f'{path} was not written: ')}"


def add_monai(model: Model, folder: Path, words: Mapping[str, Any]) -> str:
    """Writes what MONAI runs, if that can be; returns what it is, or why there is none."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    try:
        return write_monai_bundle(model, folder, words)
    except UserError as error:
        return f"not written: {str(error).partition(' was not written: ')[2] or error}"


def write_bundle(args: argparse.Namespace) -> dict[str, str]:
    """Writes the bundle; returns name -> what it is of what it holds beside weights and manifest."""
    file = checkpoint_of(args.run)
    checkpoint = load_checkpoint(file)
    if "labels" in checkpoint and not (file.parent / "provenance.json").exists():
        raise UserError(
            f"{file} is what prediction.adopt made of a network that was trained elsewhere, and no run; a bundle tells "
            "how a run was trained. Hand on what it was made of; or adapt it, and give the run of that (predict.py "
            "--adapt leaves OUT/adaptation/run)."
        )
    run = open_run(file.parent)
    require(file, checkpoint, OF_A_NETWORK)
    model = load_model(file, "cpu", precision="fp32", orient=args.orient)
    state, told = of_a_network(checkpoint), manifest_words(run, file, checkpoint, args.licence)
    state["labels"] = label_names(args.labels, model.n_class) if args.labels else list(model.labels)
    if choice := checkpoint.get("choice") or choice_in(history_of(file, checkpoint)):
        state["choice"] = choice
    begin(args.out, PROGRAM)
    with locked(args.out):
        (args.out / MANIFEST).unlink(missing_ok=True)  # it is there when all is there
        files = {WEIGHTS: "the weights", MANIFEST: "all else of the checkpoint", ONNX: add_onnx(model, args.out / ONNX)}
        files |= {MONAI: add_monai(model, args.out, {**told, **state})}
        told["files"] = {name: sha256_of(args.out / name) for name in (ONNX, *FILES) if (args.out / name).is_file()}
        with atomic_write(args.out / CARD, "w") as card:
            card.write(model_card({**told, **state, "source": state.get("bundle")}, files))
        write_network_folder(args.out, state, told)
    return files


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    refuse_taken(args.out, PROGRAM, "--out", MANIFEST)
    files = write_bundle(args)
    print(f"{args.out}: a bundle; {ONNX}: {files[ONNX]}; for MONAI: {files[MONAI]}")


if __name__ == "__main__":
    run_program(main)
