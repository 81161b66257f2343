"""Command lines of the published codes, whose words are not all ours: docs/parity.md has the table.

A flag that only they have is put into our words, or changed nothing there and is let pass, or is refused with what to
write. `--published` gives what a line leaves unsaid the values of that code, and its networks, transforms and losses
the meaning that their names have there: `sfda` is the code of Bateson et al. 2022, `boundary` of Kervadec et al. 2021.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from methods.terms import LossSpec
from processes.errors import UserError

CODES = ("sfda", "boundary")
DEFAULTS: dict[str, dict[str, Any]] = {
    "sfda": {"batch_size": 1, "n_epoch": 200, "lr_rule": "late", "lr_decay": 0.7, "weight_decay": 1e-5},
    "boundary": {"batch_size": 1, "n_epoch": 200, "betas": (0.9, 0.99)},
}
SGD = {"optimiser": "sgd", "momentum": 0.99, "weight_decay": 5e-4}  # what --use_sgd is there
ADAMW_DECAY = 0.01  # torch's own, since the published AdamW is not given --weight_decay
NETWORKS = {
    "sfda": {"ENet": "PublishedENet"},
    "boundary": {"UNet": "UNet:nG=64", "ENet": "PublishedENet"},
}
TRANSFORMS = {
    "sfda": {"nii_transform": "nii_zscore_transform", "npy_transform": "imnpy_transform"},
    "boundary": {"dist_map_transform": "dist_map_legacy_transform"},
}
LEGACY = {name: {"legacy": True} for name in ("DiceLoss", "GeneralizedDice", "BCEGDice")}
RATIOS = {"EntKLProp": {"silent": False}, "KLPropInv": {"direction": "predicted", "silent": False}}
LOSSES = {"sfda": LEGACY | RATIOS, "boundary": LEGACY}
IN_MM = {  # --use_spacing
    "dist_map_transform": "dist_map_mm_transform",
    "dist_map_legacy_transform": "dist_map_legacy_mm_transform",
}


@dataclass(frozen=True)
class Foreign:
    """A flag that only a published code has: with which values it changes nothing, and what to do about any other."""

    means: str
    idle: tuple[str, ...] | None = None  # None: with all of them

    def is_idle(self, values: Sequence[str]) -> bool:
        return self.idle is None or " ".join(values) in self.idle


UNUSED = Foreign("the published code does not use it")
CHECKED = Foreign("ground truth is always checked, and grey levels may be any finite numbers")
FOREIGN = {
    **dict.fromkeys(("--mix", "--both", "--lin_aug_w", "--best_losses", "--resize", "--pho", "--power"), UNUSED),
    **dict.fromkeys(("--no_assert_dataloader", "--ignore_norm_dataloader"), CHECKED),
    "--wh": Foreign("the size of the slices is read off them"),
    "--val_loader_id": Foreign("there is one validation set"),
    "--dtype": Foreign("choose with --precision", ("torch.float32",)),
    "--temperature": Foreign("the logits are taken as they are; leave it out", ("1", "1.0")),
    "--dimensions": Foreign("give --crop D W H and a network of volumes, such as UNet3D", ("2",)),
    "--training_folders": Foreign("give --trainval, --valonly or another --target_dataset", ("train",)),
    "--validation_folder": Foreign("give --ontest or --ontrain", ("val",)),
    "--source_metrics": Foreign("score the source in a run of its own, --method noadap --target_dataset <source>", ()),
    "--group_train": Foreign("batches are drawn slice by slice; leave it out", ()),
    "--save_train": Foreign("save masks of the training images by --mode makeim --ontrain", ()),
}


def read_foreign(words: Sequence[str]) -> list[str]:
    """What to say of flags that our parser does not know. Raises UserError for those that cannot be let pass."""
    unknown, refused, said = [], [], []
    for flag, values in _flags(words):
        text, known = " ".join([flag, *values]), FOREIGN.get(flag)
        if known is None:
            unknown.append(text)
        elif known.is_idle(values):
            said.append(f"{text} changes nothing: {known.means}.")
        else:
            refused.append(f"{text}: {known.means}")
    if unknown:
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}. See python main.py --help.")
    if refused:
        raise UserError(f"Flags of a published code that have no meaning here. {'; '.join(refused)}.")
    return said


def _flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            found.append((word, []))
    return found


def defaults(code: str | None, use_sgd: bool) -> dict[str, Any]:
    """The values of flags that a line does not give, by --published and --use_sgd."""
    return DEFAULTS.get(code, {}) | (SGD if use_sgd else {})


def in_our_words(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that mean something else here, with our networks and transforms, by --published and --use_spacing.

    flags: the value of every flag
    """
    code, ours = flags["published"], {}
    ours["network"] = NETWORKS.get(code, {}).get(flags["network"], flags["network"])
    for name in ("target_folders", "val_target_folders", "source_folders"):
        published = _renamed(flags[name], TRANSFORMS.get(code, {}))
        ours[name] = _renamed(published, IN_MM if flags["use_spacing"] else {})
    return ours | ({"weight_decay": ADAMW_DECAY} if code == "sfda" and flags["adamw"] else {})


def as_published(spec: LossSpec, code: str | None) -> LossSpec:
    """The loss with the parameters that it has in the code of --published, where it says nothing else itself."""
    return replace(spec, params=LOSSES.get(code, {}).get(spec.name, {}) | spec.params)


def _renamed(text: str | None, names: dict[str, str]) -> str | None:
    return text and re.sub(r"\w+", lambda word: names.get(word[0], word[0]), text)


def what_differs(argv: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """What a line leaves unsaid and means in the published boundary loss, if it names its set as that code does.

    flags: the value of every flag
    """
    if flags["published"] or not any(word.partition("=")[0] == "--dataset" for word in argv):
        return []
    dice, losses = "a Dice without a gradient on images that lack a class", flags["target_losses"] or ""
    maps = "distance maps in whole numbers, half a pixel off the border"
    theirs = {
        "--betas 0.9 0.99": flags["optimiser"] == "adam" and tuple(flags["betas"]) != (0.9, 0.99),
        f"--network {NETWORKS['boundary'].get(flags['network'])}": flags["network"] in NETWORKS["boundary"],
        dice: any(name in losses for name in LEGACY) and "legacy" not in losses,
        maps: any(name in flags["target_folders"] for name in ("dist_map_transform", "dist_map_mm_transform")),
    }
    meant = [what for what, differs in theirs.items() if differs]
    if not meant:
        return []
    return [
        f"A line that says --dataset is one of the published boundary loss, where it means {'; '.join(meant)}. Here it "
        "does not: add --published boundary for that (docs/parity.md)."
    ]
