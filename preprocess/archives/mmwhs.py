"""MM-WHS 2017 (X. Zhuang, Fudan University): whole hearts in CT and MR.

    python -m preprocess.archives.mmwhs --volumes data/whs_volumes --modality MR --dest data/mr --val 4

Layout: mr_train/mr_train_10NN_image.nii.gz and _label.nii.gz, ct_train/ct_train_10NN_… (or ct_train1 and ct_train2).
Labels: 205 myocardium, 420 left atrium, 500 left ventricle, 550 right atrium, 600 right ventricle, 820 ascending
aorta, 850 pulmonary artery. Of four structures (Bateson et al. 2022, after PnP-AdaNet) the classes are myocardium,
left atrium, left ventricle, aorta; of seven (Chaitanya et al. 2020) they are counted in the order of the labels
above.
Oddities: a label 421 in one MR volume, which is 420. Volumes are stored in several orientations and sizes: the recipes
for the real archive cut `--plane coronal`, those for the phantom turn it to the order that it is stored in. The
published crop is centred on the heart as the labels show it: `--centre labels`. Without it the crop is centred on the
volume, which takes no label and is what predict.py can do.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import sys
from collections.abc import Callable

from preprocess.archives.layout import first_there, slice_archive
from utils import run_program

STRUCTURES = {4: "205:1,420-421:2,500:3,820:4", 7: "205:1,420-421:2,500:3,550:4,600:5,820:6,850:7"}


def add_flags(add: Callable[..., object]) -> None:
    add("--modality", choices=("CT", "MR"), required=True)
    add("--structures", type=int, choices=STRUCTURES, default=4, help="default: %(default)s; the others are background")


def flags(args: argparse.Namespace) -> list[str]:
    kind = args.modality.lower()
    image = first_there(args.volumes, *(f"{where}{kind}_train*/{kind}_train_*_image.nii*" for where in ("", "**/")))
    label = image.replace("_image.", "_label.")
    files = ["--image", f"IMG={image}", "--label", label, "--patient", r"train_(\d+)", "--modality", args.modality]
    return [*files, "--label_map", STRUCTURES[args.structures], "--others", "0"]


if __name__ == "__main__":
    run_program(lambda: slice_archive(sys.modules[__name__]))
