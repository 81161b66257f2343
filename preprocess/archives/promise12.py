"""PROMISE12 (https://promise12.grand-challenge.org; https://doi.org/10.5281/zenodo.8026660): T2 MR of the prostate.

    python -m preprocess.archives.promise12 --volumes data/promise12_volumes --dest data/promise12 --val 10

Layout: CaseNN.mhd with CaseNN.raw, CaseNN_segmentation.mhd with its .raw, the whole gland as 1; in training_data (as
of Zenodo) or TrainingData_Part1 to 3 (older archives). The 30 cases of the test data have no labels: they are left
out, or with --test_data become a set without ground truth.
Oddities: four centres under running numbers, which the archive does not tell apart; some of them are in the release
of SAML too (saml.py).
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import sys
from collections.abc import Callable

from preprocess.archives.layout import AXIAL, first_there, slice_archive
from utils import run_program


def add_flags(add: Callable[..., object]) -> None:
    add("--test_data", action="store_true", help="the cases without labels instead")


def flags(args: argparse.Namespace) -> list[str]:
    common = ["--patient", r"(Case\d+)", "--modality", "MR", *AXIAL]
    if args.test_data:
        return [
            "--image",
            f"IMG={first_there(args.volumes, '**/test*data*/Case??.mhd', '**/Test*/Case??.mhd')}",
            *common,
        ]
    image = first_there(args.volumes, "**/training_data/Case??.mhd", "**/TrainingData_Part?/Case??.mhd", "Case??.mhd")
    label = image.replace("Case??.mhd", "Case??_segmentation.mhd")
    return ["--image", f"IMG={image}", "--label", label, "--label_map", "0:0,1:1", *common]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
