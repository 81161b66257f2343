"""The command line of main.py: the flags every method shares, and the method's own."""

import argparse
import math
import os
import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from datasets.augmentation import Augmentation, spell_out
from datasets.files import check_ignored, check_regex
from datasets.grey_matching import AUTO
from datasets.presets import PRESETS
from engine.begun import begun_with, layout_of, precision_of
from engine.logs.base import LOGS, names_of
from engine.published import CODES, defaults, in_our_words, read_foreign, what_differs
from methods.base import METHODS
from methods.optimisers import LR_RULES, Learning, check_rates
from methods.schedules import SCHEDULES
from methods.settings import add_flags
from nets.decoding import DECODERS
from nets.norm_mixing import mixing
from nets.precision import PRECISIONS, device_of
from processes.errors import UserError
from utils import listing, settings_of

DEBUG_STEPS = 5  # that --debug keeps of an epoch of --steps


def switch_value(text: str) -> int:
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
    switch = {"type": switch_value, "nargs": "?", "const": 1, "default": 0}

    data = parser.add_argument_group("data")
    data.add_argument("--target_dataset", "--dataset", type=Path, required=True, help="folder with train/ and val/")
    data.add_argument("--source_dataset", type=Path, help="the labelled source, for methods that read it")
    data.add_argument(
        "--unlabelled_dataset", type=Path, help="images alone, for methods that read them (default: as target)"
    )
    data.add_argument("--unlabelled_split", default="unlabelled", help="their folder in it (default: %(default)s)")
    data.add_argument("--target_folders", "--folders", required=True, help="[(folder, transform, is_one_hot), …]")
    data.add_argument("--val_target_folders", help="the same for validation (default: as training)")
    data.add_argument("--source_folders", help="the same in --source_dataset (default: as --target_folders)")
    data.add_argument(
        "--select_folders", help="where --select_with finds labels (default: as --target_folders, or for validation)"
    )
    data.add_argument("--grp_regex", required=True, help="first group: patient; second: slice number")
    data.add_argument("--source_regex", help="the same in --source_dataset (default: as --grp_regex)")
    data.add_argument("--n_class", type=int, required=True, help="classes, background included")
    data.add_argument("--metric_axis", type=int, nargs="+", help="classes to average (default: all but background)")
    data.add_argument("--ignore", type=int, help="label whose pixels count nowhere (street scenes: 255)")
    data.add_argument("--modalities", type=int, default=0, help="channels of an image (default: as they are)")
    data.add_argument("--use_spacing", **switch, help="dist_map_transform means dist_map_mm_transform")
    data.add_argument("--group", **switch, help="accepted: slices always belong to their patient")
    data.add_argument("--n_labelled", type=int, default=0, help="train on the labels of n volumes alone (0: of all)")
    few = "adapt to the images of n patients of the target alone (0: of all)"
    data.add_argument("--n_target", type=int, default=0, help=few)
    data.add_argument("--draw", type=int, default=0, help="which n, or of --select_with: the number of the draw")
    data.add_argument("--batch_size", type=int, default=4)
    data.add_argument(
        "--crop", type=int, nargs=3, metavar=("D", "W", "H"), help="volumes, in random crops of this size"
    )
    data.add_argument("--steps", type=int, default=0, help="of an epoch (default: once through the training set)")
    data.add_argument("--overlap", type=float, default=0.5, help="of the windows of this size that evaluation slides")
    data.add_argument(
        "--match_source",
        type=lambda text: text if text == AUTO else float(text),
        metavar="SHARE",
        help="by which a patient's grey levels are brought to those that the network of --model_weights learnt from: 0 "
        "to 1, or to -1 with bright and dark exchanged, or auto, which decides without labels (default: as that "
        "network was used)",
    )
    data.add_argument("--augment", **switch, help="small random rotations, contrast and gamma of training slices")
    data.add_argument(
        "--augmentation",
        default="{}",
        help=f"its ranges: {{'flip': True, 'rotate': 180, 'elastic': 3}}; or a name: {', '.join(PRESETS)}; or both: "
        "{'preset': 'slaug', 'rotate': 30}",
    )
    data.add_argument("--in_memory", **switch, help="the same as --cache ram")
    data.add_argument(
        "--cache",
        choices=("auto", "gpu", "ram", "stream"),
        default="auto",
        help="where decoded slices live in training",
    )
    data.add_argument("--workers", type=int, default=2, help="threads that read ahead, where slices are not on the GPU")
    data.add_argument("--trainval", **switch, help="train on train and val")
    data.add_argument("--valonly", **switch, help="train on val alone")
    data.add_argument("--ontest", **switch, help="evaluate on test instead of val")
    data.add_argument("--ontrain", **switch, help="evaluate on train instead of val")

    learn = parser.add_argument_group("learning")
    learn.add_argument("--method", default="supervised", help=f"one of {', '.join(METHODS)}")
    learn.add_argument("--mode", choices=("learn", "makeim"), default="learn", help="makeim: save masks, learn nothing")
    learn.add_argument("--target_losses", "--losses", help="[(loss, {}, bounds, {}, fn, weight), …]")
    learn.add_argument("--scheduler", default="Constant", help=f"of the loss weights: {', '.join(SCHEDULES)}")
    learn.add_argument("--scheduler_params", default="{}", help="its parameters: {'to_steal': 0.01}")
    learn.add_argument("--network", default="UNet", help="name, or name:parameter=value,… as in UNet:nG=16")
    learn.add_argument("--model_weights", "--weights", default="", help="checkpoint to start from; '' is random")
    learn.add_argument("--load_blocks", type=int, help="of these weights the encoder and n blocks of the decoder alone")
    learn.add_argument(
        "--bn_mix",
        **switch | {"default": None},
        help="predict at batch-norm statistics between the network's and those of an image (default: as the network of "
        "--model_weights was used)",
    )
    learn.add_argument("--backbone_weights", default="", help="pre-trained trunk of a network that has one: a file")
    learn.add_argument("--n_epoch", type=int, default=100)
    learn.add_argument(
        "--average_last",
        type=int,
        default=1,
        help="the network at the end is the mean of those of the last n epochs",
    )
    learn.add_argument("--l_rate", type=float, default=5e-4)
    learn.add_argument("--lr_rule", choices=LR_RULES, default="step", help="how the rate falls")
    learn.add_argument("--lr_decay", type=float, default=1.0, help="step: factor every --lr_decay_epoch epochs")
    learn.add_argument("--lr_decay_epoch", type=int, default=20)
    learn.add_argument("--poly_power", type=float, default=0.9, help="poly: exponent")
    learn.add_argument("--poly_epochs", type=float, default=0, help="poly: where the rate ends at 0 (default: n_epoch)")
    learn.add_argument("--schedule", **switch, help="--lr_rule legacy, as published lines write it")
    learn.add_argument("--n_warmup", type=int, default=0, help="epochs of linear warm-up")
    learn.add_argument("--flr", **switch, help="fixed learning rate")
    learn.add_argument("--weight_decay", type=float, default=0.0)
    learn.add_argument(
        "--anchor", type=float, default=0.0, help="how much of the way back to --model_weights each step is drawn"
    )
    learn.add_argument("--optimiser", choices=("adam", "adamw", "sgd"), default="adam")
    learn.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.999), help="of Adam and AdamW")
    learn.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    learn.add_argument("--adamw", **switch, help="the same as --optimiser adamw")
    learn.add_argument(
        "--use_sgd", **switch, help="--optimiser sgd, and unless they are given --momentum 0.99 --weight_decay 5e-4"
    )
    learn.add_argument(
        "--published", choices=CODES, help="what the line does not say is as in that code: see docs/parity.md"
    )
    learn.add_argument(
        "--on_collapse",
        choices=("warn", "stop", "rollback"),
        default="warn",
        help="an adaptation loses touch with its source network, or a class vanishes or floods: say so, stop, or go "
        "back an epoch and on more slowly",
    )

    record = parser.add_argument_group("recording")
    record.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    record.add_argument("--csv", help="name of the log (default: <image folder>_target_metrics.csv)")
    record.add_argument("--eval_every", type=int, default=1, help="validate every n epochs, and after the last")
    record.add_argument(
        "--decode",
        choices=DECODERS,
        default="argmax",
        help="masks of an evaluation: the most probable class, or those of the highest expected Dice",
    )
    record.add_argument("--scores", choices=("volume", "iou"), default="volume", help="slices of volumes, or pictures")
    record.add_argument("--dice_3d", "--compute_3d_dice", **switch | {"default": 1}, help="accepted: always computed")
    record.add_argument(
        "--do_hd", "--compute_haussdorf", **switch, help="HD95 in the log every n epochs; always computed at the end"
    )
    record.add_argument("--do_asd", **switch, help="ASSD and MASD, likewise")
    record.add_argument("--nsd_tolerance", type=float, default=2.0, help="in mm (voxels without spacing)")
    record.add_argument("--saveim", **switch, help="masks of every n-th epoch, of the last and of the best as png")
    record.add_argument("--entmap", **switch, help="entropy maps of the last epoch as png")
    record.add_argument("--pprint", **switch, help="a line per class and epoch")
    record.add_argument(
        "--keep_every",
        type=int,
        default=0,
        help="an adaptation keeps its network every n epochs, and at the end chooses one of them without labels",
    )
    record.add_argument(
        "--select_with",
        type=int,
        default=0,
        help="n patients of the target's training images, 1 to 3, whose labels choose there instead; no step sees them",
    )
    record.add_argument(
        "--log",
        default="",
        metavar="NAME,…",
        help=f"the csv in other programs' form too, in folders of the run: {', '.join(LOGS)}",
    )
    record.add_argument("--log_images", type=int, default=10, help="a few slices in them every n epochs (0: never)")
    record.add_argument("--resume", **switch, help="go on where a killed run stopped")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--seed", type=int, default=0)
    machine.add_argument("--deterministic", **switch, help="deterministic algorithms on the GPU, slower")
    machine.add_argument("--device", help="default: cuda where there is one")
    machine.add_argument("--cpu", **switch)
    machine.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="auto: tf32 on a GPU, else fp32; default: bf16 on GPUs with it, else auto",
    )
    machine.add_argument("--compile", **switch, help="compile the network, if a trial step is faster for it")
    machine.add_argument(
        "--channels_last",
        **switch | {"default": None},
        help="memory layout (default: on a GPU in bf16 or fp16, of a network that keeps it)",
    )
    machine.add_argument("--jobs", type=int, default=1, help="threads for surface distances")
    machine.add_argument("--debug", **switch, help="ten slices per set, five steps, and tracebacks")
    machine.add_argument("--check", **switch, help="build everything that needs no data, print one line, stop")
    return parser


def _idle(args: Namespace) -> list[str]:
    """What to say of a flag that changes nothing beside the others."""
    if args.augment or args.augmentation == "{}":
        return []
    return ["--augmentation tells how, and --augment whether: it is off, so nothing is augmented."]


def get_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the flags twice: once for the method's name, then with that method's own flags."""
    argv = sys.argv[1:] if argv is None else argv
    parser = get_parser()
    known, _ = parser.parse_known_args(argv)
    method = METHODS[known.method]
    add_flags(parser.add_argument_group(f"--method {known.method}"), method.Settings)
    parser.set_defaults(**defaults(known.published, known.use_sgd))
    args, foreign = parser.parse_known_args(argv)
    vars(args).update(in_our_words(vars(args)))
    said = read_foreign(foreign) + what_differs(argv, vars(args)) + _idle(args)
    if said and int(os.environ.get("RANK", 0)) == 0:  # of the processes of a team one speaks
        print(*said, sep="\n", flush=True)
    learns = bool(method.streams) and args.mode == "learn"
    args.saveim = args.saveim or int(args.mode == "makeim")
    args.n_epoch = args.n_epoch if learns else 1
    args.steps = min(args.steps, DEBUG_STEPS) if args.debug else args.steps
    args.device = device_of(args.device or ("cpu" if args.cpu else None))
    begun = begun_with(args.workdir) if args.resume and None in (args.precision, args.channels_last) else None
    args.precision = args.precision or precision_of(begun, args.device, bool(args.deterministic or args.published))
    if args.channels_last is None:
        args.channels_last = layout_of(begun, args.device, args.precision, args.network)
    if args.bn_mix is not None:
        args.network = mixing(args.network, bool(args.bn_mix))
    args.cache = "ram" if args.in_memory else args.cache
    args.optimiser = "adamw" if args.adamw else args.optimiser
    args.lr_rule = "legacy" if args.schedule else args.lr_rule
    args.augmentation = spell_out(args.augmentation)  # that a run's notes say it, whatever becomes of the preset
    _check_augmentation(args)
    _check_numbers(args)
    args.metric_axis = args.metric_axis or list(range(1, args.n_class))
    _check_settings(args)
    _check_copies(args)
    _check_anchor(args)
    check_rates(settings_of(Learning, vars(args)))
    if method.segments and not args.target_losses:
        raise UserError(
            f"--method {args.method} learns from losses: give --target_losses [(loss, {{}}, …, weight), …]."
        )
    if (method.needs_weights or not learns) and not args.model_weights:
        raise UserError(
            f"--method {args.method} with --mode {args.mode} starts from a trained network: give --model_weights, "
            "for example results/<set>/cesource/best_3d.pkl."
        )
    if args.n_labelled and not (learns and method.labelled):
        raise UserError(
            f"--n_labelled {args.n_labelled}, but --method {args.method} learns from no label; leave it out."
        )
    if not method.segments and (args.crop or args.mode == "makeim"):
        raise UserError(
            f"--method {args.method} is a pre-training on slices, which segments nothing yet: it has no --mode makeim, "
            "and no --crop."
        )
    if learns and args.lr_rule == "legacy" and "target" not in method.labelled:
        raise UserError(
            f"--lr_rule legacy (--schedule) follows the best epoch, which the target's labels tell, and --method "
            f"{known.method} learns without them. Leave it out, or take --lr_rule step (with --lr_decay) or poly."
        )
    _check_start(args)
    if learns and "source" in method.streams and args.source_dataset is None:
        raise UserError(
            f"--method {args.method} learns from labelled source images: give their folder, --source_dataset."
        )
    return args


def args_of(flags: Mapping[str, Any]) -> Namespace:
    """The arguments of a run whose flags have these values, read and checked like those of a command line.

    True is a switch that is on, None and False are flags that are not given; all that are not named are not given
    either. So what a checkpoint notes of its run's flags gives the arguments of that run.
    """
    return get_args([word for name, value in flags.items() for word in _words_of(name, value)])


def _words_of(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    return [f"--{name}", *map(str, value)] if isinstance(value, list | tuple) else [f"--{name}={value}"]


# The range of a number, both ends in it; 0 and no end where nothing else is said.
LEAST = dict.fromkeys(("n_epoch", "batch_size", "lr_decay_epoch", "eval_every", "workers", "jobs"), 1)
LEAST |= {"average_last": 1, "n_class": 2}
MOST = {"n_class": 255, "seed": 2**64 - 1}  # labels are bytes, of which losses leave 255 out; what a generator can hold
MOST |= {"anchor": 1, "workers": 1024, "jobs": 1024, "draw": 2**64 - 1}
MOST |= dict.fromkeys(("l_rate", "weight_decay"), 3e38)  # what 32 bits hold
LARGEST = 10**6  # of whole numbers, where nothing else is said: more is a slip of the hand, and fills memory or disk
ANY = (
    *LEAST,
    "log_images",
    "n_warmup",
    "modalities",
    "n_labelled",
    "n_target",
    "draw",
    "seed",
    "steps",
    "keep_every",
    "select_with",
)
ANY += ("l_rate", "lr_decay", "poly_power", "weight_decay", "anchor", "momentum", "nsd_tolerance")


def _check_numbers(args: Namespace) -> None:
    for name, value in vars(args).items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"--{name} is {' '.join(map(str, numbers))}; it must be a finite number.")
    for name in ANY:
        value, low, high = getattr(args, name), LEAST.get(name, 0), MOST.get(name, math.inf)
        if not low <= value <= high:
            end = f" and at most {high}" if name in MOST else ""
            raise UserError(f"--{name} is {value}; it must be at least {low}{end}.")
    for name, value in vars(args).items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, int) and abs(number) > MOST.get(name, LARGEST) for number in numbers):
            raise UserError(f"--{name} is {' '.join(map(str, numbers))}; it must be at most {MOST.get(name, LARGEST)}.")


def is_source_free(args: Namespace) -> bool:
    """Whether a whole trained network is adapted, without a label of any set."""
    method = METHODS[args.method]
    learns = bool(method.streams) and args.mode == "learn"
    return learns and method.segments and method.needs_weights and not method.labelled and args.load_blocks is None


def _check_augmentation(args: Namespace) -> None:
    """Raises UserError for ranges that cannot be, and for those of classes where a step sees images without labels."""
    asked, method = Augmentation.read(args.augmentation).of_classes, METHODS[args.method]
    blind = [name for name in method.streams if name not in method.labelled]
    if args.augment and asked and blind and args.mode == "learn":
        off = ", ".join(f"'{name}': 0" for name in asked)
        raise UserError(
            f"--augmentation has {listing(asked)}, which follow the classes of the ground truth, and --method "
            f"{args.method} learns from images without any ({listing(blind)}). Switch them off ({off}; 'curves' and "
            "'gin' do without labels), or leave --augment out."
        )


def _check_copies(args: Namespace) -> None:
    """Raises UserError for --keep_every where no trained network is adapted without labels; and for --select_with."""
    if args.keep_every and not is_source_free(args):
        raise UserError(
            f"--keep_every {args.keep_every} keeps copies of a whole trained network while it is adapted without "
            "labels, to choose one of them. This run makes no such network, so leave it out."
        )
    if args.select_with and not args.keep_every:
        raise UserError(
            f"--select_with {args.select_with} chooses among the copies that --keep_every keeps, and there are none: "
            "give --keep_every 5, or leave --select_with out."
        )
    if args.n_target and args.select_with:
        raise UserError("--select_with draws among all patients, and --n_target leaves some out: give one of them.")
    scored_on = "test" if args.ontest else "train" if args.ontrain else "val"
    if args.select_with and scored_on == ("val" if args.valonly else "train"):
        raise UserError(
            f"--select_with {args.select_with} chooses by labels of {scored_on}, and on {scored_on} the run is scored: "
            "on patients who chose. Score it on others (without --ontrain, with --ontest), or leave --select_with out."
        )


def _check_anchor(args: Namespace) -> None:
    if args.anchor and (not args.model_weights or args.load_blocks is not None):
        raise UserError(
            f"--anchor {args.anchor:g} draws a network back to all of its --model_weights, and this run starts from "
            "random weights, or from a part of a network (--load_blocks); leave it out."
        )


def _check_start(args: Namespace) -> None:
    if args.load_blocks is not None and not args.model_weights:
        raise UserError("--load_blocks says what to take of --model_weights, and none are given.")
    if args.match_source and (args.load_blocks is not None or not args.model_weights):
        raise UserError(
            "--match_source brings grey levels to those that a whole network learnt from: give "
            "it by --model_weights, without --load_blocks, or leave --match_source out."
        )


def _check_settings(args: Namespace) -> None:
    if args.crop and (args.trainval or args.valonly or args.cache == "gpu"):
        raise UserError(
            "--crop reads volumes from the disk, one split: leave --trainval, --valonly and --cache gpu out."
        )
    if args.trainval and args.valonly:
        raise UserError("--trainval trains on train and val, --valonly on val alone: give one of them.")
    if args.crop and min(args.crop) < 1:
        raise UserError(f"--crop D W H is a size in voxels, from 1 upwards; got {args.crop}.")
    if args.csv and not re.fullmatch(r"(?!patients_|classes_|selection\.|\.)[^/]+\.csv", args.csv):
        raise UserError(
            f"--csv {args.csv}: the log is a file of the run's own folder that nothing else there is called, such as "
            "metrics.csv."
        )
    args.log = ",".join(names_of(args.log))
    if not 0 <= args.overlap < 1:
        raise UserError(f"--overlap is a share of a window, 0 to below 1; got {args.overlap:g}.")
    check_ignored(args.ignore, args.n_class)
    for name in ("grp_regex", "source_regex"):
        check_regex(getattr(args, name) or "", name)
    axis = args.metric_axis
    if bad := [k for k in axis if not 0 <= k < args.n_class or axis.count(k) > 1]:
        raise UserError(
            f"--metric_axis names the classes {bad}, but it names each once, and --n_class is {args.n_class} (0 is "
            "background)."
        )
    on_gpu = args.device.startswith("cuda")
    if args.precision == "fp16" and not on_gpu:
        raise UserError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    if args.cache == "gpu" and not on_gpu:
        raise UserError("--cache gpu needs a GPU; use ram, stream or auto on a CPU.")
