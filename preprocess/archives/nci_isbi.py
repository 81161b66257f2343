"""NCI-ISBI 2013 (TCIA, https://doi.org/10.7937/K9/TCIA.2015.zF0vlOPv): T2 MR of the prostate from two sites.

    python -m preprocess.archives.nci_isbi --volumes data/nci_isbi_volumes --site BMC --dest data/prostate_source \\
        --val 10

Layout: below any folders, as TCIA's retriever makes them, one of the name of the patient, Prostate3T-01-NNNN (RUNMC,
3 T) or ProstateDx-01-NNNN (BMC, 1.5 T), in it <study>/<series>/*.dcm; the labels, <patient>.nrrd, in a folder of
their own: 1 peripheral zone, 2 central gland.
Oddities: a corrected label (<patient>_corrected_label.nrrd) stands in for the first one; those of the leaderboard and
test sets are called <patient>_truth.nrrd. The label of ProstateDx-01-0055 has fewer slices than its image, that of
-0082 another resolution: labels are placed on their image by geometry. Patients without a label are left out; a
patient with several series is told. These are the patients of RUNMC and BMC in the release of SAML (saml.py), under
other numbers.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import glob
import re
import sys
from collections.abc import Callable
from pathlib import Path

from preprocess.archives.layout import AXIAL, slice_archive
from processes.errors import UserError
from utils import listing, run_program

COLLECTIONS = {"RUNMC": "Prostate3T-01", "BMC": "ProstateDx-01"}
ENDINGS = ("_corrected_label", "_truth", "")  # of a label's name; the first that is there counts


def add_flags(add: Callable[..., object]) -> None:
    add("--site", choices=COLLECTIONS, required=True, help="BMC: 1.5 T, the published source; RUNMC: 3 T, the target")
    add("--zones", action="store_true", help="peripheral zone 1 and central gland 2, not the whole gland")


def flags(args: argparse.Namespace) -> list[str]:
    name = COLLECTIONS[args.site]
    labels = find_labels(args.volumes, name)
    series = sorted({path.parent for path in args.volumes.rglob("*.dcm") if name in path.as_posix()})
    images = {patient: [folder for folder in series if patient in folder.as_posix()] for patient in labels}
    odd = [f"{patient} ({len(found)})" for patient, found in images.items() if len(found) != 1]
    if odd or not labels:
        raise UserError(
            f"{args.volumes}: expected one series of DICOM files for each label of {name}-NNNN, below a folder of the "
            f"patient's name; the number of series is another for {listing(odd) or 'all: there is no label'}."
        )
    image = "|".join(f"{glob.escape(str(folder))}/" for (folder,) in images.values())
    label = "|".join(glob.escape(str(path)) for path in labels.values())
    files = ["--image", f"IMG={image}", "--label", label, "--patient", rf"/({name}-\d+)", "--place_labels"]
    zones = "0:0,1:1,2:2" if args.zones else "0:0,1-2:1"
    return [*files, "--label_map", zones, "--modality", "MR", "--site", args.site, *AXIAL]


def find_labels(root: Path, collection: str) -> dict[str, Path]:
    """Patient -> the file of labels that counts."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*.nrrd")):
        match = re.fullmatch(rf"({collection}-\d+)({'|'.join(ENDINGS)})", path.stem, re.I)
        if match and not path.name.startswith("."):
            found.setdefault(match[1], {})[match[2].lower()] = path
    return {patient: next(paths[end] for end in ENDINGS if end in paths) for patient, paths in found.items()}


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
