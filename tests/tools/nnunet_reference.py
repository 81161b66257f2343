"""A miniature data set in nnU-Net's layout, networks that the nnunetv2 package trains on it, and its own masks.

    python nnunet_reference.py OUT

It runs in an environment of its own, which has nnunetv2 2.8.1 and none of this repository. OUT/results/Dataset…/… are
folders as nnU-Net leaves them, OUT/new the volumes to predict, OUT/there/<set>_<plans>_<configuration>/<tta> its masks,
with mirroring and without. The volumes differ in spacing, their border is empty, and windows are smaller than they are.
"""

import json
import os
import sys
from pathlib import Path

OUT = Path(sys.argv[1]).resolve()
PATHS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
os.environ |= {name: str(OUT / folder) for name, folder in PATHS.items()}
os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}

import numpy as np  # noqa: E402  these read the environment
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: E402
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402

ITERATIONS = 40
SETS = {501: ("Dataset501_Mini", {"0": "T1"}), 502: ("Dataset502_MiniCT", {"0": "CT", "1": "T2"})}
PLANNERS = {"nnUNetPlans": "ExperimentPlanner", "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM"}
RUNS = [
    (501, "nnUNetPlans", "2d"),
    (501, "nnUNetPlans", "3d_fullres"),
    (501, "nnUNetResEncUNetMPlans", "2d"),
    (501, "nnUNetResEncUNetMPlans", "3d_fullres"),
    (502, "nnUNetPlans", "3d_fullres"),
    (502, "nnUNetPlans", "2d"),
]


def case(rng, channels):
    """Channels (Z, Y, X) of an ellipsoid with a brighter organ of two parts in it, air of value 0 round it; labels."""
    shape, spacing = rng.integers((12, 40, 34), (16, 52, 46)), rng.uniform((2.6, 0.9, 0.9), (3.4, 1.3, 1.3))
    place = [(np.arange(n) - n / 2) / (n / 2) for n in shape]
    z, y, x = np.meshgrid(*place, indexing="ij")
    body = z**2 + (y / 0.9) ** 2 + (x / 0.75) ** 2 < 0.8
    dz, dy, dx = rng.uniform(-0.15, 0.15, 3)
    near = (z - dz) ** 2 + ((y - dy) / 0.9) ** 2 + ((x - dx) / 0.9) ** 2
    label = np.where(near < 0.08, 2, np.where(near < 0.3, 1, 0)) * body
    levels = np.array([100, 260, 400])[label] + rng.normal(0, 25, shape)
    images = [levels * body, (700 - levels) * body][: len(channels)]
    if "CT" in channels.values():
        images[0] = np.where(body, images[0] - 150, -1000)
    return images, label.astype(np.uint8), spacing


def write(path, voxels, spacing, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels.astype(kind))
    image.SetSpacing([float(mm) for mm in spacing[::-1]])
    image.SetOrigin((10.0, -20.0, 30.0))
    sitk.WriteImage(image, str(path))


def write_set(number):
    name, channels = SETS[number]
    rng, raw = np.random.default_rng(number), OUT / "raw" / name
    for index in range(8):
        images, label, spacing = case(rng, channels)
        folder = raw / "imagesTr" if index < 6 else OUT / "new" / name
        for channel, voxels in enumerate(images):
            write(folder / f"mini_{index:03}_{channel:04}.nii.gz", voxels, spacing, np.int16)
        if index < 6:
            write(raw / "labelsTr" / f"mini_{index:03}.nii.gz", label, spacing, np.uint8)
    card = {"channel_names": channels, "labels": {"background": 0, "shell": 1, "core": 2}, "numTraining": 6}
    (raw / "dataset.json").write_text(json.dumps({**card, "file_ending": ".nii.gz"}))


def plan(number, plans):
    """Plans that train in seconds: batches of two, and windows smaller than the volumes."""
    plan_experiments([number], PLANNERS[plans], 1)
    path = OUT / "preprocessed" / SETS[number][0] / f"{plans}.json"
    told = json.loads(path.read_text())
    for name, size in (("2d", [32, 24]), ("3d_fullres", [8, 32, 24])):
        each = told["configurations"][name]
        each |= {"batch_size": 2, "patch_size": size}
        each["architecture"]["arch_kwargs"]["features_per_stage"] = [
            min(width, 64) // 2 for width in each["architecture"]["arch_kwargs"]["features_per_stage"]
        ]
    path.write_text(json.dumps(told))
    preprocess([number], plans, ("2d", "3d_fullres"), (1, 1))


def train(number, plans, configuration):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the generator that its augmentation draws from
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # in this very process, where the seeds are; the planner wants one
    trainer = get_trainer_from_args(str(number), configuration, 0, plans_identifier=plans, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, ITERATIONS, 1
    trainer.run_training()
    return Path(trainer.output_folder_base)


def predict(folder, number, name):
    for tta in ("mirrored", "plain"):
        predictor = nnUNetPredictor(use_mirroring=tta == "mirrored", device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), (0,))
        there = OUT / "there" / name / tta
        there.mkdir(parents=True)
        predictor.predict_from_files_sequential(str(OUT / "new" / SETS[number][0]), str(there))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in SETS:
        write_set(number)
        extract_fingerprints([number], num_processes=1)
        for plans in dict.fromkeys(plans for other, plans, _ in RUNS if other == number):
            plan(number, plans)
    for number, plans, configuration in RUNS:
        predict(train(number, plans, configuration), number, f"{number}_{plans}_{configuration}")
