"""The command line of main.py: the flags every method shares, and the method's own."""

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from methods import METHODS
from utils import UserError


def flag(text: str) -> int:
    """A switch that may be typed alone, as True or False, or as a number: 0 is off, n is every n epochs."""
    word = text.strip().lower()
    if word in ("true", "yes", "on"):
        return 1
    if word in ("false", "no", "off", ""):
        return 0
    if word.isdecimal():
        return int(word)
    raise argparse.ArgumentTypeError(f"expected nothing, True, False or a number, got '{text}'")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See python main.py --help.")


def get_parser() -> Parser:  # noqa: PLR0915  a flat list of flags reads better than six functions of it
    """The flags that every method shares."""
    parser = Parser("main.py", description="Train, adapt or evaluate one network.", allow_abbrev=False)
    switch = {"type": flag, "nargs": "?", "const": 1, "default": 0}

    data = parser.add_argument_group("data")
    data.add_argument("--target_dataset", "--dataset", type=Path, required=True, help="folder with train/ and val/")
    data.add_argument("--source_dataset", type=Path, help="the labelled source, for methods that read it")
    data.add_argument("--target_folders", "--folders", required=True, help="[(folder, transform, is_one_hot), …]")
    data.add_argument("--val_target_folders", help="the same for validation (default: as training)")
    data.add_argument("--grp_regex", required=True, help="first group: patient; second: slice number")
    data.add_argument("--n_class", type=int, required=True, help="classes, background included")
    data.add_argument("--metric_axis", type=int, nargs="+", help="classes to average (default: all but background)")
    data.add_argument("--batch_size", type=int, default=4)
    data.add_argument("--augment", **switch, help="random flips and rotations of the training slices")
    data.add_argument("--in_memory", **switch, help="accepted: slices are always held in memory")
    data.add_argument("--cache", choices=("auto", "ram"), default="auto", help="where decoded slices live")
    data.add_argument("--trainval", **switch, help="train on train and val")
    data.add_argument("--valonly", **switch, help="train on val alone")
    data.add_argument("--ontest", **switch, help="evaluate on test instead of val")
    data.add_argument("--ontrain", **switch, help="evaluate on train instead of val")

    learn = parser.add_argument_group("learning")
    learn.add_argument("--method", default="supervised", help=f"one of {', '.join(METHODS)}")
    learn.add_argument("--mode", choices=("learn", "makeim"), default="learn", help="makeim: save masks, learn nothing")
    learn.add_argument("--target_losses", "--losses", required=True, help="[(loss, {}, bounds, {}, fn, weight), …]")
    learn.add_argument("--network", default="UNet", help="name, or name:parameter=value,… as in UNet:nG=16")
    learn.add_argument("--model_weights", "--weights", default="", help="checkpoint to start from; '' is random")
    learn.add_argument("--n_epoch", type=int, default=100)
    learn.add_argument("--l_rate", type=float, default=5e-4)
    learn.add_argument("--lr_decay", type=float, default=1.0, help="factor every --lr_decay_epoch epochs")
    learn.add_argument("--lr_decay_epoch", type=int, default=20)
    learn.add_argument("--n_warmup", type=int, default=0, help="epochs of linear warm-up")
    learn.add_argument("--flr", **switch, help="fixed learning rate")
    learn.add_argument("--weight_decay", type=float, default=0.0)
    learn.add_argument("--adamw", **switch)

    record = parser.add_argument_group("recording")
    record.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    record.add_argument("--csv", help="name of the log (default: <image folder>_target_metrics.csv)")
    record.add_argument("--dice_3d", **switch | {"default": 1}, help="accepted: 3D Dice is always computed")
    record.add_argument("--do_hd", **switch, help="HD95 in the log every n epochs; always computed at the end")
    record.add_argument("--do_asd", **switch, help="ASSD, likewise")
    record.add_argument("--nsd_tolerance", type=float, default=2.0, help="in mm (voxels without spacing)")
    record.add_argument("--saveim", **switch, help="masks of every n-th epoch, of the last and of the best as png")
    record.add_argument("--entmap", **switch, help="entropy maps of the last epoch as png")
    record.add_argument("--pprint", **switch, help="a line per class and epoch")
    record.add_argument("--resume", **switch, help="go on where a killed run stopped")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--seed", type=int, default=0)
    machine.add_argument("--deterministic", **switch, help="deterministic algorithms on the GPU, slower")
    machine.add_argument("--device", help="default: cuda where there is one")
    machine.add_argument("--cpu", **switch)
    machine.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="fp32")
    machine.add_argument("--compile", **switch, help="torch.compile the network")
    machine.add_argument("--jobs", type=int, default=1, help="threads for surface distances")
    machine.add_argument("--debug", **switch, help="ten slices per set, and tracebacks")
    machine.add_argument("--check", **switch, help="build everything that needs no data, print one line, stop")
    return parser


def get_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the flags twice: once for the method's name, then with that method's own flags."""
    known, _ = get_parser().parse_known_args(argv)
    method = METHODS[known.method]
    parser = get_parser()
    method.add_arguments(parser.add_argument_group(f"--method {known.method}"))
    args = parser.parse_args(argv)
    learns = bool(method.streams) and args.mode == "learn"
    args.saveim = args.saveim or int(args.mode == "makeim")
    args.n_epoch = args.n_epoch if learns else 1
    args.device = args.device or ("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    args.metric_axis = args.metric_axis or list(range(1, args.n_class))
    _check_numbers(args)
    if (method.needs_weights or not learns) and not args.model_weights:
        raise UserError(
            f"--method {args.method} with --mode {args.mode} starts from a trained network: give --model_weights, "
            "for example results/<set>/cesource/last.pkl."
        )
    return args


def _check_numbers(args: Namespace) -> None:
    for name, low in {
        "n_class": 2,
        "n_epoch": 1,
        "batch_size": 1,
        "lr_decay_epoch": 1,
        "n_warmup": 0,
        "jobs": 1,
    }.items():
        if getattr(args, name) < low:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least {low}.")
    if bad := [k for k in args.metric_axis if not 0 <= k < args.n_class]:
        raise UserError(f"--metric_axis names the classes {bad}, but --n_class is {args.n_class} (0 is background).")
    if args.precision == "fp16" and not args.device.startswith("cuda"):
        raise UserError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
