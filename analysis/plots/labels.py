"""What a column of the log, a raw array or a score of patients holds, in words and with its unit."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.run import NATIVE, SCORED, Run, unique
from metrics import DISTANCES
from processes.quoting import for_chart

SHARES = ("dice", "nsd", "iou")  # the scores between 0 and 1, by what their columns and arrays are called
SHARE_LIMITS = (-0.03, 1.03)


def is_share(name: str) -> bool:
    """Whether the values of this column, array or score lie between 0 and 1."""
    return any(word in name for word in SHARES) and "_loss_" not in name and not name.endswith("_sd")


def column_label(column: str, run: Run) -> str:
    """What a column of the log holds."""
    side = {"tra": "training", "val": "validation"}.get(column[:3], "")

    def class_name(number: str) -> str:
        return for_chart(run.class_name(int(number)))

    patterns: dict[str, Callable[[re.Match[str]], str]] = {
        r"..._loss_tot": lambda _: f"total loss, {side}",
        r"..._loss_(.+)": lambda m: f"{for_chart(m[1])}, {side}",
        r"..._dice": lambda _: f"2D Dice, mean over slices, {side}",
        r"val_dice_3d": lambda _: "3D Dice, mean over patients",
        r"val_dice_3d_sd": lambda _: "3D Dice, sd over patients",
        r"val_dice_3d_(\d+)": lambda m: f"3D Dice, {class_name(m[1])}",
        r"val_miou": lambda _: "mIoU of all images",
        r"val_iou_(\d+)": lambda m: f"IoU of all images, {class_name(m[1])}",
        r"val_(hd95|assd|masd)_(mm|vox)_(\d+)": lambda m: f"{m[1].upper()} ({m[2]}), {class_name(m[3])}",
        r"val_size_mean": lambda _: "predicted size, mean over slices (pixels)",
        r"val_gt_size_mean": lambda _: "true size, mean over slices (pixels)",
        r"weight_(.+)": lambda m: f"weight of {for_chart(m[1])}",
        r"lr|l_rate": lambda _: "learning rate",
        r"seconds": lambda _: "time of an epoch (s)",
    }
    for pattern, words in patterns.items():
        if match := re.fullmatch(pattern, column):
            return words(match)
    return for_chart(column)


def score_label(score: str, runs: Sequence[Run]) -> str:
    """The name of a score on an axis, such as Dice or HD95 (mm)."""
    dice = "Dice" if any(run.by_iou for run in runs) else "3D Dice"  # of pictures, which have no depth
    names = {"dice": dice, "nsd": "NSD", "volume_error": "relative volume error"}
    unit = f" ({', '.join(unique(runs, lambda run: run.unit))})" if score in DISTANCES else ""
    return names.get(score, score.upper()) + unit


def array_label(name: str, runs: Sequence[Run]) -> str:
    """What a raw array such as val_dice.npy or val_3d_hd95.npy holds."""
    stem = Path(name).stem
    if stem.startswith(SCORED):
        score = stem.removeprefix(SCORED)
        return score_label(score.removeprefix(NATIVE), runs) + ", native grid" * score.startswith(NATIVE)
    names = {"val_dice": "2D Dice, validation", "tra_dice": "2D Dice, training", "val_sizes": "predicted size (pixels)"}
    return names.get(stem, for_chart(stem))


def cases(source: str) -> str:
    """What has one value each, 'slices' or 'patients', in a raw array (…npy) or a score."""
    return "slices" if source.endswith(".npy") and not source.startswith(SCORED) else "patients"
