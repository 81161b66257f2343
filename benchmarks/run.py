"""What training costs beside the network.

    make bench        (python -m benchmarks.run [--size 256] [--batch 8] [--steps 3] [--network UNet])

Prints a table: images/s of a training epoch, the share of its time outside the step (forward, loss, backward,
optimiser), and the cost of one item of a batch for a small and a ten times larger set, PNG and NIfTI. Medians; the
machine is named above it. Times on a shared machine drift: read ratios and shares, not seconds.
"""

import argparse
import platform
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arguments import get_args
from dataloader import Batch, Stream, open_slices, parse_folders
from losses import LossSum, build_loss, parse_losses
from main import train_epoch
from methods import METHODS
from networks import build_network
from utils import run_program, seed_everything

REGEX = r"(Case\d+)_(\d+)"
LOSS = "[('CrossEntropy', {'idc': [0, 1]}, 1)]"
FOLDERS = {
    "png": "[('IMG', png_transform, False), ('GT', gt_transform, False)]",
    "nii": "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]",
}


def write_set(root: Path, count: int, size: int, suffix: str) -> None:
    """`count` slices of noise with a square for an organ."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image, mask = rng.integers(0, 255, (size, size), np.uint8), np.zeros((size, size), np.uint8)
        mask[size // 4 : size // 2, size // 4 : size // 2] = 1
        for folder, array in (("IMG", image), ("GT", mask)):
            path = root / "train" / folder / f"Case{number // 24:03d}_{number % 24}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == "png":
                Image.fromarray(array).save(path, compress_level=1)
            else:
                nib.save(nib.Nifti1Image(array.astype(np.float32) / 255 if folder == "IMG" else array, None), path)


def open_stream(root: Path, suffix: str, batch: int) -> Stream:
    slices = open_slices(root, "train", parse_folders(FOLDERS[suffix], 1), 2, REGEX)
    slices.bounds = [None]
    return Stream(slices, batch, 0, torch.device("cpu"), augment=False, with_targets=True)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cost_per_item(root: Path, suffix: str, count: int, size: int, batch: int) -> tuple[float, float]:
    """Milliseconds per slice: opening the set once, and every batch of an epoch."""
    write_set(root, count, size, suffix)
    opening = seconds(lambda: open_stream(root, suffix, batch), repeats=1)
    stream = open_stream(root, suffix, batch)
    epoch = seconds(lambda: [None for _ in stream.epoch(0)])
    return 1e3 * opening / count, 1e3 * epoch / count


def training(root: Path, options: Namespace) -> tuple[float, float]:
    """Images per second of a training epoch, and the share of it spent outside the step."""
    stream = open_stream(root, "png", options.batch)
    argv = f"--target_dataset {root} --workdir unused --n_class 2 --network {options.network}".split()
    args = get_args([*argv, "--target_folders", FOLDERS["png"], "--grp_regex", REGEX, "--target_losses", LOSS])
    seed_everything(0)
    specs = parse_losses(LOSS)
    loss = LossSum([build_loss(spec) for spec in specs], [spec.weight for spec in specs])
    net = build_network(options.network, 1, 2).to(args.device)
    method = METHODS[args.method](net, loss, args)
    inside, step = [], method.step

    def timed(batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        start = time.perf_counter()
        found = step(batches)
        inside.append(time.perf_counter() - start)
        return found

    method.step = timed
    start = time.perf_counter()
    train_epoch(method, {"target": stream}, 0, args)
    total = time.perf_counter() - start
    return len(stream.slices) / total, 1 - sum(inside) / total


def main() -> None:
    parser = argparse.ArgumentParser("make bench", description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--network", default="UNet")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"\n{'one item beside the network':34s} {'opening, ms':>12s} {'in a batch, ms':>15s}")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FOLDERS:
            for count in (96, 960):
                root = Path(folder) / f"{suffix}{count}"
                opening, item = cost_per_item(root, suffix, count, options.size, options.batch)
                print(
                    f"{suffix}, {count:4d} slices of {options.size} x {options.size:<6d} {opening:17.2f} {item:15.3f}"
                )
        root = Path(folder) / "training"
        write_set(root, options.steps * options.batch, options.size, "png")
        rate, share = training(root, options)
    print(f"\n{options.network}, batch {options.batch}: {rate:.2f} images/s, {100 * share:.2f} % outside the step")


if __name__ == "__main__":
    run_program(main)
