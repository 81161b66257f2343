"""ACDC 2017 (https://humanheart-project.creatis.insa-lyon.fr): cine MR of the heart, 100 patients at two moments.

    python -m preprocess.archives.acdc --volumes data/acdc_volumes --dest data/acdc --val 50 --format png

Layout: training/patientNNN/patientNNN_frameFF.nii.gz and …_gt.nii.gz at end-diastole (ED) and end-systole (ES), whose
frames stand in Info.cfg next to them; newer archives have database/training. Labels: 1 right ventricle, 2 myocardium,
3 left ventricle. A set's patients are the frames, and both frames of a patient are in one split.
Slices are cut as they were scanned (`--orient stored`): short-axis planes run obliquely through the body, and the plane
of the body that is nearest to them differs from patient to patient.
Oddities: end-diastole is frame 1 in all but one patient (090), so it is read off Info.cfg where one moment is wanted.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import glob
import re
import sys
from collections.abc import Callable
from pathlib import Path

from files.pairing import find_files
from preprocess.archives.layout import slice_archive
from processes.errors import UserError
from utils import listing, run_program


def add_flags(add: Callable[..., object]) -> None:
    add("--frames", choices=("both", "ED", "ES"), default="both", help="default: %(default)s")
    add("--image_folder", default="img", metavar="NAME", help="default: %(default)s")
    add("--label_folder", default="gt", metavar="NAME", help="default: %(default)s")


def flags(args: argparse.Namespace) -> list[str]:
    scans = [f"{args.volumes}/**/training/patient*/patient*_frame[0-9][0-9]"]
    if args.frames != "both":
        scans = find_frames(args.volumes, args.frames)
    image, label = ("|".join(scan + ending for scan in scans) for ending in (".nii.gz", "_gt.nii.gz"))
    files = ["--image", f"{args.image_folder}={image}", "--label", label, "--label_folder", args.label_folder]
    who = ["--patient", r"(patient\d+_frame\d+)", "--group", r"(patient\d+)"]
    return [*files, *who, "--n_class", "4", "--modality", "MR", "--orient", "stored"]


def find_frames(root: Path, moment: str) -> list[str]:
    """Every patient's frame of this moment, without its ending. Raises UserError if Info.cfg does not tell it."""
    told = {}
    for path in find_files(f"{root}/**/training/patient*/Info.cfg"):
        match = re.search(rf"^{moment}:\s*(\d+)", path.read_text(encoding="utf-8"), re.M)
        told[path.parent] = match and int(match[1])
    lost = [folder.name for folder, frame in told.items() if frame is None]
    if lost or not told:
        raise UserError(f"{root}: no Info.cfg tells the frame of {moment} of {listing(lost) or 'any patient'}.")
    return [f"{glob.escape(str(folder))}/{folder.name}_frame{frame:02d}" for folder, frame in told.items()]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
