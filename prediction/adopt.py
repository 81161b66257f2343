"""A network that was trained elsewhere as a checkpoint of this program.

    python -m prediction.adopt --nnunet nnUNet_results/Dataset001_X/nnUNetTrainer__nnUNetPlans__2d --out x/last.pkl

Reads a folder of results of nnU-Net v2 (one fold of it) and writes one file. From then on it is a network like any
other: predict.py --weights, with --adapt too, and main.py --model_weights. Nothing in the files that are read is run.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Sequence
from pathlib import Path

from nets.checkpoint_files import save_checkpoint
from prediction.nnunet_results import checkpoint_of_nnunet
from preprocess.new_set import refuse_existing
from utils import ProgramParser, listing, run_program

PROGRAM = "prediction.adopt"


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser(f"python -m {PROGRAM}", description=__doc__)
    add = parser.add_argument
    nnunet = "folder of a trained configuration, with plans.json, dataset.json and fold_0/"
    add("--nnunet", type=Path, metavar="FOLDER", required=True, help=nnunet)
    add("--fold", default="0", metavar="{0,1,…,all}", help="which of its folds (default %(default)s)")
    add("--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="file in the fold (default %(default)s)")
    add("--out", type=Path, required=True, metavar="FILE.pkl", help="the checkpoint to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    refuse_existing(args.out, "--out")
    state = checkpoint_of_nnunet(args.nnunet, args.fold, args.checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(args.out, state)
    weights = sum(value.numel() for value in state["net"].values())
    print(f"{args.out}: {state['network'].partition(':')[0]}, {weights} weights, classes {listing(state['labels'])}")


if __name__ == "__main__":
    run_program(main)
