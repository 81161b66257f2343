"""Slice sets on the disk, and how the published code reads one item of them: what items and training measure by."""

import ast
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from datasets.files import SETTLED
from tests.benchmarks.losses import encode

REGEX = r"(Case\d+)_(\d+)"
SLICES = 24  # a patient
FOLDERS = {
    "png": "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]",
    "nii": "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]",
}


def slice_name(number: int) -> str:
    return f"Case{number // SLICES:04d}_{number % SLICES}"


def draw_slice(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image with a brighter disc for an organ, and its mask; both uint8."""
    w, h = np.mgrid[:size, :size] / size
    centre, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.1, 0.25)
    mask = (w - centre[0]) ** 2 + (h - centre[1]) ** 2 < radius**2
    return (80 + 60 * mask + rng.integers(0, 40, mask.shape)).astype(np.uint8), mask.astype(np.uint8)


def write_set(root: Path, count: int, size: int, suffix: str = "png") -> list[str]:
    """`count` slices in train, the first patient's in val under another name, and the true sizes in prior.csv."""
    rng, rows = np.random.default_rng(0), ["val_ids,val_gt_size"]
    names = [slice_name(number) for number in range(count)]
    for split in ("train", "val"):
        for folder in ("IMG", "GT"):
            (root / split / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        image, mask = draw_slice(rng, size)
        rows.append(f'{name},"[{mask.size - int(mask.sum())}, {int(mask.sum())}]"')
        save_slice(root / "train" / "IMG" / f"{name}.{suffix}", image)
        save_slice(root / "train" / "GT" / f"{name}.{suffix}", mask)
        if number < SLICES:
            save_slice(root / "val" / "IMG" / f"{name.replace('Case', 'Case9')}.{suffix}", image)
            save_slice(root / "val" / "GT" / f"{name.replace('Case', 'Case9')}.{suffix}", mask)
    (root / "prior.csv").write_text("\n".join(rows) + "\n")
    settle()
    return names


def save_slice(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".png":
        Image.fromarray(array).save(path, compress_level=1)
    else:
        stored = array.astype(np.float32) / 255 if path.parent.name == "IMG" else array
        nib.save(nib.Nifti1Image(stored, np.eye(4)), path)


def settle() -> None:
    """Waits until a cache trusts the files: those that changed in the last seconds may change again unseen."""
    time.sleep(SETTLED / 1e9 + 0.1)


class NaiveSet:
    """Items as the published code makes them: decoded and checked again each time, the prior looked up by name."""

    def __init__(self, root: Path, names: Sequence[str], suffix: str, n_class: int, checks: bool) -> None:
        self.root, self.names, self.suffix = root / "train", list(names), suffix
        self.n_class, self.checks = n_class, checks
        self.prior = pd.read_csv(root / "prior.csv")

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """(1, W, H) image, (K, W, H) one-hot ground truth, (K, 2) bounds."""
        name = self.names[row]
        if self.checks:
            self.check_files()
        image = self.read("IMG", name)
        image = torch.from_numpy(image / 255 if self.suffix == "png" else image).float()[None]
        masks = [self.read_mask(name) for _ in range(2)]  # the metrics' ground truth, and that of the loss
        sizes = ast.literal_eval(self.prior.loc[self.prior.val_ids == name, "val_gt_size"].iloc[0])
        bounds = torch.tensor(sizes, dtype=torch.float64)[:, None].expand(-1, 2)
        return image, masks[1], bounds

    def check_files(self) -> None:
        """Every slice of the set has a file in every folder."""
        for folder in ("IMG", "GT", "GT"):
            for name in self.names:
                if not (self.root / folder / f"{name}.{self.suffix}").exists():
                    raise FileNotFoundError(name)

    def read(self, folder: str, name: str) -> np.ndarray:
        path = self.root / folder / f"{name}.{self.suffix}"
        return np.array(Image.open(path)) if self.suffix == "png" else nib.load(path).get_fdata()

    def read_mask(self, name: str) -> Tensor:
        label = torch.from_numpy(self.read("GT", name)).long()
        return encode(label[None], self.n_class, self.checks)[0]
