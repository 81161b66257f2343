"""Small volumes with an organ in each, and a network that was trained on slices of them in a second."""

from pathlib import Path

import nibabel as nib
import numpy as np

import main as training
from preprocess.slice_volumes import read_spec, slice_set
from tests.conftest import CROSS_ENTROPY, FOLDERS


def write_volumes(folder: Path, patients: int = 5, size: tuple[int, int, int] = (20, 22, 9)) -> Path:
    """folder/p<number>.nii.gz, in which the organ is bright, and p<number>_gt.nii.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(patients):
        truth = np.zeros(size, np.int16)
        truth[4:14, 6:15, 2:7] = 1
        image = (truth * 300 + rng.normal(200, 60, size)).astype(np.int16)
        for name, voxels in (("", image), ("_gt", truth)):
            nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.2, 2, 1])), folder / f"p{number}{name}.nii.gz")
    return folder


def train_on_volumes(folder: Path, *flags: object) -> Path:
    """folder/run, trained on folder/set, which is cut of folder/volumes; `flags` of the slicer."""
    volumes, words = write_volumes(folder / "volumes"), ["--dest", folder / "set", "--patient", r"(p\d)", "--val", 2]
    words += ["--image", f"IMG={volumes}/p?.nii.gz", "--label", f"{volumes}/p?_gt.nii.gz", "--jobs", 1, *flags]
    slice_set(read_spec(list(map(str, [*words, "--format", "png"]))))
    words = ["--target_dataset", folder / "set", "--target_folders", FOLDERS, "--target_losses", CROSS_ENTROPY]
    words += ["--n_class", 2, "--grp_regex", r"(p\d)_(\d+)", "--network", "Dimwit", "--n_epoch", 1, "--cpu"]
    training.main(list(map(str, [*words, "--workdir", folder / "run"])))
    return folder / "run"
