"""Prostate MR of six sites, the release of SAML (https://liuquande.github.io/SAML), as Bateson et al. 2022 use it.

    python -m preprocess.archives.saml --volumes data/prostate_volumes --site BMC --dest data/prostate_source --val 10

Layout: RUNMC, BMC, I2CVB, UCL, BIDMC, HK, in each CaseNN.nii.gz and CaseNN_segmentation.nii.gz.
Oddities: `_Segmentation` in places, so capital and small letters are the same; labels of RUNMC and BMC may be 1 and
2, zones of the gland, so both become 1; case numbers count from 0 at each site, so a set is of one site. RUNMC and BMC
are patients of NCI-ISBI 2013 (nci_isbi.py), UCL, BIDMC and HK of PROMISE12 (promise12.py): do not train on the one
and test on the other.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import sys
from collections.abc import Callable

from preprocess.archives.layout import AXIAL, first_there, folder_there, slice_archive
from utils import run_program

SITES = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")


def add_flags(add: Callable[..., object]) -> None:
    add("--site", choices=SITES, required=True, help="RUNMC is the published target, BMC the source")


def flags(args: argparse.Namespace) -> list[str]:
    folder = folder_there(args.volumes, args.site)
    label = first_there(folder, "Case??_segmentation.nii.gz", "Case??_segmentation.nii")
    image = first_there(folder, "Case??.nii.gz", "Case??.nii")
    files = ["--image", f"IMG={image}", "--label", label, "--patient", r"(Case\d+)"]
    return [*files, "--label_map", "1-2:1", "--modality", "MR", "--site", args.site, *AXIAL]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
