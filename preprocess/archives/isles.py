"""ISLES 2018 (https://www.smir.ch): CT and CT perfusion of stroke, 94 scans, the lesion outlined.

    python -m preprocess.archives.isles --volumes data/isles_volumes --dest data/isles --val 20 --format npy

Layout: TRAINING/case_N/SMIR.Brain.XX.O.<kind>.<id>/<same>.nii with the kinds CT, CT_CBF, CT_CBV, CT_MTT, CT_Tmax,
CT_4DPWI and OT, the lesion. The first five are the channels of one image, in this order.
Oddities: several scans are of one person and the archive does not tell which, so that a person may lie in both
splits; the types of numbers differ between kinds and between packings, and do not matter. TESTING has no lesions and
is left out.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import sys
from collections.abc import Callable

from preprocess.archives.layout import AXIAL, first_there, slice_archive
from utils import run_program

KINDS = ("CT", "CT_CBF", "CT_CBV", "CT_MTT", "CT_Tmax")


def add_flags(add: Callable[..., object]) -> None:
    add("--image_folder", default="in_npy", metavar="NAME", help="default: %(default)s")
    add("--label_folder", default="gt_npy", metavar="NAME", help="default: %(default)s")


def flags(args: argparse.Namespace) -> list[str]:
    scans = "**/TRAINING/case_*/SMIR.Brain.XX.O"
    first_there(args.volumes, f"{scans}.OT.*/*.nii")
    files = [
        word for kind in KINDS for word in ("--image", f"{args.image_folder}={args.volumes}/{scans}.{kind}.*/*.nii")
    ]
    files += ["--label", f"{args.volumes}/{scans}.OT.*/*.nii", "--label_folder", args.label_folder]
    return [*files, "--patient", r"/(case_\d+)/", "--modality", "CT perfusion", "--n_class", "2", *AXIAL]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
