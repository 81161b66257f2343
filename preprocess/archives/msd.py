"""Medical Segmentation Decathlon (http://medicaldecathlon.com): ten tasks in one layout.

    python -m preprocess.archives.msd --volumes data/msd_prostate_volumes --task Task05_Prostate --image_channel T2 \\
        --dest data/msd_prostate --val 6 --format nii

Layout: TaskNN_Name/dataset.json, imagesTr, labelsTr, imagesTs (without labels, left out). Several images of a patient
are one 4D file; dataset.json names them ("modality") and the classes ("labels"), which are kept as they are numbered.
The voxel axes of these archives run to the right, front and head, and so do those of the slices (`--orient RAS`).
Oddities: ._* shadows that macOS left next to every file, which are never read.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess.archives.layout import folder_there, slice_archive
from processes.errors import UserError
from utils import listing, run_program


def add_flags(add: Callable[..., object]) -> None:
    add("--task", required=True, metavar="TaskNN_Name", help="the folder of the task")
    add("--image_channel", metavar="NAME", help="which image of a 4D file, by its name in dataset.json")


def flags(args: argparse.Namespace) -> list[str]:
    folder = folder_there(args.volumes, args.task)
    card = read_contents(folder)
    names = sorted(path.name for path in (folder / "labelsTr").glob("[!.]*.nii.gz"))
    if not names:
        raise UserError(f"{folder / 'labelsTr'} holds no .nii.gz; unpack the whole archive of {args.task}.")
    stem = names[0].rpartition("_")[0]
    files = ["--image", f"IMG={folder}/imagesTr/{stem}_*.nii.gz", "--label", f"{folder}/labelsTr/{stem}_*.nii.gz"]
    files += ["--patient", rf"{stem}_(\d+)", "--n_class", str(1 + max(map(int, card["labels"]))), "--orient", "RAS"]
    print(f"{args.task}: {', '.join(f'{number} {name}' for number, name in card['labels'].items())}")
    channels = [name for _, name in sorted(card["modality"].items(), key=lambda item: int(item[0]))]
    if args.image_channel is None and len(channels) == 1:
        return files
    if args.image_channel not in channels:
        raise UserError(
            f"--image_channel {args.image_channel}: {args.task} has {listing(channels)} in each file; name one."
        )
    return [*files, "--channel", str(channels.index(args.image_channel))]


def read_contents(folder: Path) -> dict[str, Any]:
    """The content of dataset.json. Raises UserError if it is not there or names no classes."""
    path = folder / "dataset.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(card["labels"], dict) and isinstance(card["modality"], dict):
            return card
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as the contents of a task ({type(error).__name__}: {error})."
        ) from error
    raise UserError(f'{path} does not name its "labels" and its "modality" by their numbers.')


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
