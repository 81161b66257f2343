"""What every report says of its runs: marks, warnings, notes, and the facts in the csv."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from analysis.run import Run, unique
from utils import counted

SHAPED = "labels in preprocessing"


def marks(run: Run, which: str, runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing this run, at this one of its epochs, with the others."""
    words = [word for key, word in (("debug", "DEBUG"), ("oracle", "ORACLE")) if run.provenance.get(key)]
    if run.phantom and not all(other.phantom for other in runs):
        words.append("PHANTOM")
    if no_learning(run):
        words.append("lr 0")
    if run.is_alarming(which):
        words.append("alarm")
    if run.only_class(which) is not None:
        words.append("one class")
    if labelled := run.labelled(which):
        words.append(counted(len(labelled), "labelled patient"))
    if len(unique(runs, lambda each: each.set_name)) > 1:
        words.append(f"on {run.set_name}")
    return words


def no_learning(run: Run) -> bool:
    """Whether it is the batch-norm control: trained, with learning rate 0."""
    return run.provenance.get("method") != "noadap" and run.param("l_rate", "nan", float) == 0


def supervision(run: Run) -> str:
    """What had to be known of the training images, and whether labels shaped any image that the run saw."""
    return str(run.provenance.get("supervision", "")) + f", {SHAPED}" * bool(run.label_uses)


def progress(run: Run, which: str) -> str:
    """'3/100', the epoch of how many; the name of a network that was chosen before the first."""
    if run.epoch(which) < 0:
        return run.selection.chosen.name
    return f"{run.epoch(which) + 1}/{len(run.metrics)}"


def warnings_of(runs: Sequence[Run]) -> list[str]:
    """What stands above the table, loudly."""
    warnings = []
    if phantom := unique([run for run in runs if run.phantom], lambda run: run.name):
        whose = "" if all(run.phantom for run in runs) else f" in {', '.join(phantom)}"
        warnings.append(f"PHANTOM: made-up images{whose}; these figures say nothing about real ones.")
    if debug := unique([run for run in runs if run.provenance.get("debug")], lambda run: run.name):
        warnings.append(f"DEBUG: {', '.join(debug)} saw ten slices a set; the figures mean nothing.")
    if any(run.provenance["dataset"].get("split_unit") == "slice blocks" for run in runs):
        warnings.append("Slices of one patient in both splits: no measure of accuracy on new patients.")
    return warnings


def notes_of(runs: Sequence[Run], blocks: Iterable[str]) -> list[str]:
    """What the marks mean that runs carry in these of their epochs."""
    notes = []
    if any(run.is_alarming(which) for run in runs for which in blocks):
        notes.append(
            "Alarm: told without labels that the predictions of that epoch agree with the source network's little more "
            "than by chance (val_source_agreement in the log), or that a class vanishes or floods."
        )
    only = {run.class_name(k): None for run in runs for k in map(run.only_class, blocks) if k is not None}
    if only:
        notes.append(
            f"One class: the network gives every pixel of the validation images the same one ({', '.join(only)})."
        )
    if any(run.provenance.get("oracle") for run in runs):
        notes.append("ORACLE: the run was told what only target labels tell; it is a bound, no competitor.")
    if any(map(no_learning, runs)):
        notes.append("lr 0: the same run with learning rate 0; what it gains comes from batch-norm statistics alone.")
    if any(run.labelled(which) for run in runs for which in blocks):
        notes.append(
            "Labelled patients: the labels of so many target patients chose this network, or the one that it started "
            "from (--select_with); no step of a training saw them."
        )
    uses = dict.fromkeys(f"{name}: {how}" for run in runs for name, how in run.label_uses.items())
    return notes + [f"{SHAPED[0].upper()}{SHAPED[1:]}, {use}." for use in uses]


def facts(run: Run, which: str) -> dict[str, Any]:
    """The first cells of a line of the csv; `epoch` counts from 0, as in the log; -1: before the first step."""
    return {
        "run": run.name,
        "set": run.set_name,
        "chosen": which,
        "candidate": run.selection.chosen.name if which == "chosen" and run.selection else "",
        "epoch": run.epoch(which),
        "epochs": len(run.metrics),
        "supervision": supervision(run),
        "uses_labels": "; ".join(f"{name}: {how}" for name, how in run.label_uses.items()),
        **{key: int(bool(run.provenance.get(key))) for key in ("oracle", "debug")},
        "phantom": int(run.phantom),
        "seconds": float(run.metrics["seconds"].sum()) if "seconds" in run.metrics else math.nan,
    }
