"""The part of a bundle that MONAI runs by itself: configs/, and models/model.ts.

    python -m monai.bundle run --bundle_root FOLDER --config_file FOLDER/configs/inference.json \\
        --meta_file FOLDER/configs/metadata.json --dataset_dir VOLUMES --output_dir MASKS

MONAI reads the volumes, turns them, calls the program (script.py), turns its masks back and saves them. The layout is
that of MONAI's bundle specification, the metadata's fields those of the model zoo's schema. A config of MONAI is code:
predict.py never opens these files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prediction.model import Model
from prediction.torchscript import write_torchscript
from utils import atomic_write

CONFIGS, PROGRAM = "configs", "models/model.ts"
FILES = (f"{CONFIGS}/metadata.json", f"{CONFIGS}/inference.json", PROGRAM)
MONAI = "1.6.1"  # that the tests run it with
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]  # of a letter, where its axis begins and where it ends
INSTALL = 'pip install "monai[nibabel,ignite,fire]"'


def write_monai_bundle(model: Model, folder: Path, manifest: Mapping[str, Any]) -> str:
    """Writes FILES into a folder. Returns a line about them.

    manifest: name, labels and licence of the network, as the manifest tells them

    Raises UserError for a network that MONAI cannot run alone, before anything is written.
    """
    told = write_torchscript(model, folder / PROGRAM)
    (folder / CONFIGS).mkdir(exist_ok=True)
    for name, content in zip(FILES, (metadata(model, manifest), inference(model)), strict=False):
        with atomic_write(folder / name, "w") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    return told


def metadata(model: Model, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """configs/metadata.json."""
    labels = {str(k): name for k, name in enumerate(manifest["labels"])}
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": str(model.recipe.card.get("modality") or "n/a"),
        "num_channels": model.in_channels,
        "spatial_shape": ["*", "*", "*"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(c): "image" for c in range(model.in_channels)},
    }
    pred = image | {"format": "segmentation", "num_channels": model.n_class, "value_range": [0, 1]}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "made by prediction.bundle"},
        "monai_version": MONAI,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.4.2", "pytorch-ignite": "0.5.5", "fire": "0.7.1"},
        "name": manifest["name"],
        "task": f"Segmentation of {', '.join(manifest['labels'][1:])}",
        "description": "A network that was adapted to, or trained on, the images of one site. README.md tells how.",
        "authors": "not stated",
        "copyright": f"licence: {manifest['licence'] or 'not stated'}",
        "intended_use": "Research alone; it is no medical device.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred | {"channel_def": labels}}},
    }


def inference(model: Model) -> dict[str, Any]:
    """configs/inference.json: volumes of --dataset_dir, one a file, or with several channels one a folder of files."""
    files = "$[{'image': f} for f in sorted(glob.glob(@dataset_dir + '/*.nii*'))]"
    folders = "$[{'image': sorted(glob.glob(f + '*.nii*'))} for f in sorted(glob.glob(@dataset_dir + '/*/'))]"
    turned = {"_target_": "Orientationd", "keys": "image", "axcodes": model.recipe.directions, "labels": AXES}
    several = (model.recipe.channels or 1) > 1
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/volumes'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": folders if several else files,
        "network_def": f"$torch.jit.load(@bundle_root + '/{PROGRAM}', map_location=@device)",
        "preprocessing": _compose(
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True, "image_only": True},
            *([turned] if model.recipe.directions else []),
        ),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": _compose(
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": True,
                "to_tensor": True,
            },
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_postfix": "",
                "output_dtype": "uint8",
                "resample": False,
                "separate_folder": False,
            },
        ),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": ["$torch.set_grad_enabled(False)"],
        "run": ["$@evaluator.run()"],
    }


def _compose(*transforms: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}
