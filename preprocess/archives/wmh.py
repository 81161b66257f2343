"""WMH 2017 (https://wmh.isi.uu.nl; https://doi.org/10.34894/AECRSD): white matter lesions of 60 people.

    python -m preprocess.archives.wmh --volumes data/wmh_volumes --dest data/wmh --val 10 --format npy

Layout: <id>/pre/FLAIR.nii.gz, <id>/pre/T1.nii.gz and <id>/wmh.nii.gz, below Utrecht, Singapore and GE3T (older
archives) or training/Utrecht, training/Singapore and training/Amsterdam/GE3T (DataverseNL). FLAIR and T1 are the
channels of one image.
Oddities: label 2 is other pathology, and background here; ids start again at each site, so a patient is site and id.
The test data of DataverseNL, which lie in test/, are left out.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import sys
from collections.abc import Callable

from preprocess.archives.layout import AXIAL, first_there, slice_archive
from utils import run_program


def add_flags(add: Callable[..., object]) -> None:
    add("--image_folder", default="in_npy", metavar="NAME", help="default: %(default)s")
    add("--label_folder", default="gt_npy", metavar="NAME", help="default: %(default)s")


def flags(args: argparse.Namespace) -> list[str]:
    label = first_there(args.volumes, "training/**/wmh.nii.gz", "**/wmh.nii.gz")
    files = []
    for name in ("FLAIR", "T1"):
        files += ["--image", f"{args.image_folder}={label.replace('wmh.nii.gz', f'pre/{name}.nii.gz')}"]
    files += ["--label", label, "--label_folder", args.label_folder, "--patient", r"/(Utrecht|Singapore|GE3T)/(\d+)/"]
    return [*files, "--label_map", "0:0,1:1,2:0", "--modality", "MR", "--n_class", "2", *AXIAL]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
