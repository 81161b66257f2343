"""Mutates OPT strings and flags: each is taken with its meaning or refused in a sentence before any data is read.

python -m tests.tools.fuzz_options --mutations 5000
"""

import contextlib
import io
import math
import random
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

import main as program
from datasets.augmentation import Augmentation
from datasets.slices import are_usable
from engine.arguments import get_args, get_parser
from methods.base import METHODS
from methods.settings import add_flags
from processes.errors import UserError
from tests.tools.fuzzing import each_kind, main
from utils import read_literal

CSV = "sizes.csv"
SIZES = "val_ids,col\n" + "".join(f'Case0_{k}.png,"[30, 20]"\n' for k in range(2))
FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, True), ('GT', gt_transform, True)]"
MAPS = FOLDERS.replace(")]", "), ('GT', dist_map_transform, False)]")
LOSSES = (
    "[('CrossEntropy', {'idc': [0, 1], 'weights': [1, 1], 'ignore_index': 255}, None, None, None, 1)]",
    "[('EntKLProp', {'lamb_se': 1, 'lamb_consprior': 1, 'ivd': True, 'weights_se': [0.1, 0.9], 'idc_c': [1], "
    "'curi': True, 'power': 1, 'over': 'batch'}, 'PredictionBounds', {'margin': 0, 'dir': 'high', 'idc': [0, 1], "
    "'predcol': 'col', 'power': 1, 'fake': False, 'mode': 'percentage', 'prop': False, 'sep': ';', 'sizefile': CSV}, "
    "'norm_soft_size', 50)]",
    "[('NaivePenalty', {'idc': [1], 'reduction': 'pixels', 'curi': True, 'prop': 'mean'}, 'ConstantBounds', "
    "{'values': {1: [10, 20]}}, 'soft_size', 2.5)]",
    "[('KLPropInv', {'direction': 'prior', 'lamb_se': 0}, 'TagBounds', {'values': [[30, 40], [5, 9]], 'idc': [1]}, "
    "None, 1), ('SelfEntropy', {'weights': [1, 2], 'idc': [0, 1]}, None, None, None, 1)]",
    "[('NaivePenalty', {'idc': [1]}, 'PreciseBounds', {'margin': 0.1, 'mode': 'abs'}, None, 1)]",
    "[('NaivePenalty', {'idc': [1]}, 'PreciseTags', {'margin': 0.1, 'neg_value': [0, 1]}, None, 1)]",
    "[('NaivePenalty', {'idc': [1]}, 'BoxBounds', {'margins': [0.6, 0.9]}, None, 1)]",
    "[('DiceLoss', {'idc': [1], 'smooth': 1e-3}, 1), ('FocalLoss', {'idc': [1], 'gamma': 2}, 0.5)]",
    "[('GeneralizedDice', {'idc': [0, 1], 'legacy': False}, 1), ('HausdorffDTLoss', {'idc': [1]}, 0.1)]",
    "[('BCEGDice', {'idc': [0, 1], 'weights': [1, 1], 'alpha': 0.5}, 1), ('NegCrossEntropy', {'idc': [0]}, 1)]",
    "[('GeneralizedDice', {}, 1), ('BoundaryLoss', {'idc': [1], 'force': False}, 0.01)]",
)
SCHEDULES = (("StealWeight", "{'to_steal': 0.01, 'floor': 0.1}"), ("AddWeightLoss", "{'to_add': [0.1, 0.2]}"))
AUGMENTATIONS = (
    "{'flip': True, 'rotate': 0, 'turn': 180, 'scale': 0.05, 'one_of': True, 'crop': 0.5, 'shift': 2}",
    "{'elastic': 5, 'elastic_points': 3, 'elastic_share': 0.5, 'contrast': 0, 'gamma': 0, 'spread': 0.2}",
    "{'offset': 0.1, 'either': True, 'noise': 0.1, 'clip': 1, 'equalise': 0.2, 'brightness': 0.3}",
    "{'curves': 0.5, 'gin': 0.5, 'ipa': 0.5, 'fourier': 0.5, 'invert': 0.5, 'gradient': 0.5, 'local_gamma': 0.5}",
    "{'preset': 'strong', 'label_curves': 0.5, 'label_gin': 0.5}",
    "transfer",
)
NETWORKS = ("UNet:nG=2", "ResidualUNet:nG=2", "PooledUNet:nG=2,bn_decay=0.9", "Dimwit:nG=4", "ENet", "PublishedENet")
ODD = (None, True, False, 0, 1, -1, 2, 255, 256, 10**9, 10**30, -(10**30), 0.5, -0.5, 1e308, 1e-308, math.inf, "")
ODD += ("x", "soft_size", "nan", [], [[]], [1], [1, 1], [0.5], [-1], (), (1,), {}, {1: 2}, {"a": 1}, b"1", 1j, ...)
ODD += ([math.inf, 1], "1" * 300, {"idc": [1]}, [10**9], [True, False])
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1", "2", "256", "1e999", "1e308", "-0.5", "0.5", "1e-300", "", "x", "True")
NUMBERS += (
    "99999999999999999999",
    "18446744073709551616",
    "9" * 5000,
    "1_000",
    "１２",
    "²",
    "0x10",
    " 7 ",
    "1000000000",
)
REGEXES = (
    "(",
    "[",
    "*",
    "(?P<a>x)(",
    "",
    "(Case\\d+)_(\\d+)",
    "()",
    "(a)?",
    "\\",
    "(?",
    "x{99999999999}",
    "(\\d+)\\2",
    "a|b",
)
PIECES = "[](){},:'\"0123456789.-+eEjNTrufalsn_ #\n\t\\@=*&é\0"


# ----------------------------------------------------------------------------------------------- mutations


def places(value, path=()):
    """The path to every value within a literal, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value, path, change):
    """The literal with another value at the end of the path."""
    if not path:
        return change(value)
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {each: replaced(item, rest, change) if each == key else item for each, item in value.items()}
    items = [replaced(item, rest, change) if place == key else item for place, item in enumerate(value)]
    return tuple(items) if isinstance(value, tuple) else items


def meddled(value, rng):
    """One value in the literal made odd, taken out, put twice, or put beside another."""
    chosen, kind = rng.choice(list(places(value))), rng.random()

    def change(old):
        if kind < 0.6 or not isinstance(old, list | tuple | dict):
            return rng.choice(ODD)
        if isinstance(old, dict):
            items = [*old.items(), (rng.choice((1, "x", "fn", "idc", (1,))), rng.choice(ODD))]
            return dict(rng.sample(items, rng.randrange(len(items) + 1)))
        items = [*old, *old, rng.choice(ODD)]
        return type(old)(rng.sample(items, rng.randrange(len(items) + 1)))

    return replaced(value, chosen, change)


def scratched(text, rng):
    """One to three letters of the text changed, taken out or put in, or one piece of it put elsewhere."""
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        kind = rng.randrange(4)
        piece = rng.choice(PIECES) if kind < 2 else text[at:end] * (kind == 3)
        text = text[:at] + piece + text[(at + (kind == 0) if kind != 2 else min(at + 2, end)) :]
    return text


def mutated(text, rng):
    if rng.random() < 0.3:
        return scratched(text, rng)
    return repr(meddled(read_literal(text), rng)).replace("inf", "1e999")


# ------------------------------------------------------------------------------------------------ attempts


def flags(folder, more):
    given = {
        "--target_dataset": "nowhere",
        "--workdir": str(folder / "run"),
        "--target_folders": FOLDERS,
        "--target_losses": "[('CrossEntropy', {}, 1)]",
        "--grp_regex": "(Case\\d+)_(\\d+)",
        "--n_class": "2",
        "--network": "Dimwit:nG=2",
        "--device": "cpu",
    } | more
    return [f"{name}={value}" for name, value in given.items()] + ["--check"]


def take(argv):
    """What is wrong with what main.py takes, up to where the data would be read; '' if nothing is."""
    torch.manual_seed(0)
    args = get_args(argv)
    program.check_axes(args)
    loss = program.build_objective(args)
    program.check(args, loss)
    named = [(bound.sizefile, bound.predcol) for bound in loss.bounds if hasattr(bound, "sizefile")]
    if not loss.losses or not all(Path(path).is_file() and column == "col" for path, column in named):
        return ""
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, 2:5, 2:6] = 1
    limits = [bound and lay(bound, labels) for bound in loss.bounds]  # what is refused here is refused with the data
    try:
        return first_step(args, loss, labels, limits)
    except UserError as error:
        return f"told late: {error}"


def lay(bound, labels):
    """(B, K, 2) limits of two slices, as a set of slices lays them."""
    names = [f"Case0_{k}" for k in range(2)]
    limits = np.stack([bound(label.numpy(), name) for label, name in zip(labels, names, strict=True)])
    are_usable(bound, limits, np.ones(2, bool), names, required=True)
    return torch.from_numpy(limits).float()


def first_step(args, loss, labels, limits):
    """What is wrong with the first step of a run, on made-up images, and the last epoch; '' if nothing is."""
    logits = torch.randn(2, args.n_class, 8, 8, requires_grad=True)
    maps = torch.randn(2, args.n_class, 8, 8)
    targets = [maps if each.needs_maps else labels if each.needs_target else None for each in loss.losses]
    for epoch in (0, args.n_epoch - 1):
        loss.begin_epoch(epoch)
        terms = loss(logits, targets, limits)
        terms["tot"].backward()
        if not (all(term.isfinite() for term in terms.values()) and logits.grad.isfinite().all()):
            return f"not finite: { {name: float(term) for name, term in terms.items()} }"
    if args.augment:
        ranges = Augmentation.read(args.augmentation)
        draw = ranges.draw(2, (1, 8, 8), torch.Generator().manual_seed(0), args.n_class)
        if not draw.image(torch.rand(2, 1, 8, 8), label=labels).isfinite().all():
            return "the augmented image is not finite"
    return ""


def numbers_of(method):
    """The flags that take numbers, those of the method included."""
    parser = get_parser()
    add_flags(parser.add_argument_group("method"), METHODS[method].Settings)
    return [action.option_strings[0] for action in parser._actions if action.type is not None]


def sound_losses(rng, folder):
    text = rng.choice(LOSSES).replace("CSV", repr(str(folder / CSV)))
    return {"--target_losses": text, "--target_folders": MAPS if "Boundary" in text else FOLDERS}


def sound_folders(rng, folder):
    return {rng.choice(("--target_folders", "--val_target_folders")): FOLDERS}


def sound_augmentation(rng, folder):
    return {"--augmentation": rng.choice(AUGMENTATIONS), "--augment": "1"}


def sound_schedule(rng, folder):
    name, text = rng.choice(SCHEDULES)
    two = "[('CrossEntropy', {}, 1), ('DiceLoss', {}, 0.1)]"
    return {"--scheduler_params": text, "--scheduler": name, "--target_losses": two}


def sound_network(rng, folder):
    return {"--network": rng.choice(NETWORKS)}


def sound_number(rng, folder):
    method = rng.choice([name for name in METHODS if METHODS[name].streams])
    more = {"--method": method, "--batch_size": "8", "--network": "UNet:nG=2"}
    more |= {"--model_weights": "w.pkl"} if METHODS[method].needs_weights or method == "contrastive_local" else {}
    more |= {"--source_dataset": "nowhere"} if "source" in METHODS[method].streams else {}
    more |= {"--target_losses": "[('SelfEntropy', {}, 1)]"} if method == "sfda" else {}
    return more | ({"--load_blocks": "0"} if method == "contrastive_local" else {})


def sound_regex(rng, folder):
    return {rng.choice(("--grp_regex", "--source_regex")): "(Case\\d+)_(\\d+)"}


SOUND = {
    "losses": sound_losses,
    "folders": sound_folders,
    "augmentation": sound_augmentation,
    "schedule": sound_schedule,
    "network": sound_network,
    "number": sound_number,
    "regex": sound_regex,
}


def spoilt(sound, rng):
    """The sound flags, one of them, the first, or a number of another, no longer so."""
    first, text = next(iter(sound.items()))
    if first == "--method":
        return sound | {rng.choice(numbers_of(text)): rng.choice(NUMBERS)}
    if first.endswith("regex"):
        return sound | {first: rng.choice(REGEXES)}
    if first != "--network":
        return sound | {first: mutated(text, rng)}
    odd = repr(rng.choice([odd for odd in ODD if odd not in (255, 256)]))  # such a network is no mistake, but slow
    odd = re.sub(r"=[^,]+", f"={odd}".replace("\\", "").replace("inf", "1e999"), text, count=1)
    return sound | {first: scratched(text, rng) if rng.random() < 0.5 else odd}


def _prepare(kind, folder):
    (folder / CSV).write_text(SIZES)
    held = {}

    def mutate(rng):
        rng = random.Random(int(rng.integers(2**62)))
        sound = SOUND[kind](rng, folder)
        held["sound"], held["given"] = sound, sound if rng.random() < 0.1 else spoilt(sound, rng)

    def look():
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _look(held["sound"], held["given"], folder)

    return mutate, look


def _look(sound, given, folder):
    try:
        complaint = take(flags(folder, given))
    except UserError as error:
        if given is sound:
            return f"{given} is refused, and nothing is wrong with it: {error}"
        if "nowhere" in str(error).replace(given.get("--target_losses", ""), ""):
            return f"{given}: the data were read first"
        if not str(error) or "\n" in str(error):
            return f"{given}: no paragraph: {error}"
        raise
    except Exception as error:  # with the words of the line
        raise RuntimeError(f"{given}: {type(error).__name__}: {error}") from error
    return f"{given}: {complaint}" if complaint else ""


KINDS = {kind: partial(_prepare, kind) for kind in SOUND}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
