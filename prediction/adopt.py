"""A network that was trained elsewhere as a checkpoint of this program.

    python -m prediction.adopt --nnunet nnUNet_results/Dataset001_X/nnUNetTrainer__nnUNetPlans__2d --out x/last.pkl
    python -m prediction.adopt --monai spleen_ct_segmentation --out y/last.pkl

Reads a folder of results of nnU-Net v2 (one fold of it), or a bundle of MONAI, and writes one file. From then on it is
a network like any other: predict.py --weights, with --adapt too, and main.py --model_weights. Nothing in the files that
are read is run. The transforms of a bundle are not taken over: predict.py --like names a set that was made likewise.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Sequence
from pathlib import Path

from nets.checkpoint_files import save_checkpoint
from prediction.monai_source import checkpoint_of_monai, transforms_in
from prediction.nnunet_results import checkpoint_of_nnunet
from preprocess.new_set import refuse_existing
from utils import ProgramParser, listing, run_program

PROGRAM = "prediction.adopt"


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser(f"python -m {PROGRAM}", description=__doc__)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True).add_argument
    nnunet = "folder of a trained configuration, with plans.json, dataset.json and fold_0/"
    which("--nnunet", type=Path, metavar="FOLDER", help=nnunet)
    which("--monai", type=Path, metavar="FOLDER", help="bundle of MONAI, with configs/inference.json")
    add("--fold", default="0", metavar="{0,1,…,all}", help="of nnU-Net: which of its folds (default %(default)s)")
    name = "file of the weights in the fold, or in the bundle (default checkpoint_final.pth, or models/model.pt)"
    add("--checkpoint", metavar="NAME", help=name)
    add("--out", type=Path, required=True, metavar="FILE.pkl", help="the checkpoint to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    refuse_existing(args.out, "--out")
    if args.nnunet:
        state = checkpoint_of_nnunet(args.nnunet, args.fold, args.checkpoint or "checkpoint_final.pth")
    else:
        state = checkpoint_of_monai(args.monai, args.checkpoint or "models/model.pt")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(args.out, state)
    weights = sum(value.numel() for value in state["net"].values())
    print(f"{args.out}: {state['network'].partition(':')[0]}, {weights} weights, classes {listing(state['labels'])}")
    if args.monai:
        steps = listing(transforms_in(args.monai)) or "nothing that it tells"
        print(f"Its images were made by {steps}. Make a set likewise, and name it with predict.py --like.")


if __name__ == "__main__":
    run_program(main)
