"""IVDM3Seg 2018 (https://ivdm3seg.weebly.com): intervertebral discs in four Dixon images of the same scan.

    python -m preprocess.archives.ivdm3seg --volumes data/ivd_volumes --images wat inn --dest data/ivd_transverse \\
        --val 4

Layout: NN_fat.nii, NN_inn.nii (in-phase), NN_opp.nii (opposed), NN_wat.nii (water) and NN_Labels.nii, 36 x 256 x 256,
the 36 sagittal slices along the first axis. Each image becomes a folder: Fat, Inn, Opp, Wat.
Oddities: scans come in pairs of time points of one person. A random split would put one of a pair in training and one
in validation. The archive does not say which belong together: neighbours are taken for a pair, 1 and 2, 3 and 4, and
--val takes whole pairs. All labels of discs become 1. A label that does not lie on its image (that of scan 16, by up to
10.8 mm) is placed there by its geometry. Bateson et al. cut the scans into 256 slices of 36 x 256, as then each shows
one disc at most (`--axis 1`); the slices as they were scanned are `--axis 0`. The axes are those of the files
(`--orient stored`), as published.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import re
import sys
from collections.abc import Callable

from files.pairing import find_files
from preprocess.archives.layout import first_there, slice_archive
from processes.errors import UserError
from utils import run_program

IMAGES = ("fat", "inn", "opp", "wat")


def add_flags(add: Callable[..., object]) -> None:
    add("--images", nargs="+", choices=IMAGES, default=["wat", "inn"], help="default: wat inn, the published ones")
    add("--val", type=int, metavar="N", help="scans to validate on, an even number: the last pairs")


def flags(args: argparse.Namespace) -> list[str]:
    files = []
    for name in args.images:
        files += ["--image", f"{name.capitalize()}={first_there(args.volumes, f'*_{name}.nii*', f'**/*_{name}.nii*')}"]
    labels = first_there(args.volumes, "*_Labels.nii*", "**/*_Labels.nii*")
    files += ["--label", labels, "--place_labels", "--patient", r"(\d+)_"]
    kept = ["--label_map", "0:0", "--others", "1", "--modality", "MR", "--orient", "stored"]
    return [*files, *kept, *_split(labels, args.val)]


def _split(labels: str, count: int | None) -> list[str]:
    """The last `count` scans, if they are whole pairs."""
    if count is None:
        return []
    scans = sorted((re.match(r"\d+", path.name)[0] for path in find_files(labels)), key=int)
    chosen = scans[len(scans) - count :]
    first = min(map(int, scans), default=0)
    torn = [scan for scan in chosen if str((int(scan) - first ^ 1) + first).zfill(len(scan)) not in chosen]
    if torn or not 0 < count < len(scans):
        raise UserError(
            f"--val {count} of {len(scans)} scans: each person was scanned twice, so it is an even number below that; "
            f"the other scan of {', '.join(torn) or 'none'} would be in another split."
        )
    return ["--val_list", ",".join(chosen)]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
