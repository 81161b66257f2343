"""Made-up studies: folders of finished runs over several seeds, with scores as an adaptation may have them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from fake_runs import add_calibration, add_selection, write_facts
from scipy.ndimage import gaussian_filter

from analysis.evaluated import TEMPERED, evaluated_folder
from metrics import DISTANCES
from study.asking import Asked, write_asked

ROWS = ("noadap", "bn", "sfda", "fs")
GAIN = {"noadap": 0.0, "bn": 0.06, "sfda": 0.16, "fs": 0.3, "entropy": -0.05}  # Dice that a row has more than `noadap`
EVERY = 5  # epochs between two networks that are kept


def make_study(
    folder: Path, rows: Sequence[str] = ROWS, seeds: Sequence[int] = (0, 1, 2), patients: int = 8, n_epoch: int = 20
) -> Path:
    """A study whose patients, seeds and rows have effects of their own; `noadap` and `fs` have no epoch to choose."""
    rng = np.random.default_rng(len(rows))
    names = [f"Case{n:02d}" for n in range(patients)]
    ease, gains = rng.normal(0, 0.08, patients), dict(zip(rows, np.linspace(0, 0.25, len(rows)), strict=True)) | GAIN
    for seed in seeds:
        luck = rng.normal(0, 0.03)
        for row in rows:
            final = (0.55 + gains[row] + ease + luck + rng.normal(0, 0.03, patients)).clip(0.02, 0.98)
            make_run(folder / f"seed{seed}" / row, names, final, 1 if row == "noadap" else n_epoch, seed)
    write_asked(folder, Asked(folder.parent.name, tuple(rows), tuple(seeds)))
    return folder


def make_run(folder: Path, names: Sequence[str], dice: np.ndarray, n_epoch: int, seed: int) -> None:
    """A run whose Dice of these patients, (P,), rises to a peak before its last epoch, and falls again."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    height = [
        1 - 0.3 * np.exp(-epoch / 3) - 0.006 * max(0, epoch - 11) + rng.normal(0, 0.01) for epoch in range(n_epoch)
    ]
    best = int(np.argmax(height))
    chosen = EVERY * max(1, (best + 1) // EVERY)  # epochs behind it
    rows = [{"epoch": n, "val_dice_3d": dice.mean() * each, "seconds": 2.0} for n, each in enumerate(height)]
    pd.DataFrame(rows).to_csv(folder / "IMG_target_metrics.csv", index=False)
    (folder / "3dbestepoch.txt").write_text(f"{best}, {height[best]}\n")
    write_facts(folder, Path("data/toy"), list(names), n_epoch, 2, {"method": folder.name, "commit": "0123abc"})
    with (folder / "params.txt").open("a") as file:
        file.write(f"seed: {seed}\nmodel_weights: {folder.parent}/cesource/last.pkl\n")
    write_scores(folder, "last", names, dice * height[-1])
    write_scores(folder, "best_3d", names, dice * height[best])
    if n_epoch > EVERY and folder.name != "fs":
        add_selection(folder, f"epoch {chosen}", {"source": "below the refresh"}, EVERY)
        write_scores(folder, "chosen", names, dice * height[chosen - 1])


def write_scores(folder: Path, which: str, names: Sequence[str], dice: np.ndarray) -> None:
    """The table of patients of one network, one class; distances are 30 (1 - Dice) mm."""
    far = {f"{name}_mm": 30 * (1 - dice) for name in DISTANCES}
    table = {"patient": names, "class": 1, "outcome": "hit", "dice": dice, **far, "nsd": dice, "volume_error": 1 - dice}
    table |= {"predicted": 900, "true": 1000, "diagonal_mm": 200.0}
    pd.DataFrame(table).to_csv(folder / f"patients_{which}.csv", index=False)


def add_evaluation(
    run: Path, patients: Sequence[str], quality: float, size: tuple[int, int, int] = (12, 80, 96)
) -> None:
    """Scans and calibration of a run: balls in noise, missed by the more the lower the quality, and too sure of it."""
    which = "chosen" if (run / "selection.csv").is_file() else "last"
    add_calibration(run, {which: 0.4 * (1 - quality), f"{which}{TEMPERED}": 0.1 * (1 - quality)})
    folder = evaluated_folder(run)
    (folder / "scans").mkdir()
    grid = np.stack(np.mgrid[tuple(slice(length) for length in size)])
    for n, patient in enumerate(patients):
        rng = np.random.default_rng(n)
        centre = np.array(size) * rng.uniform(0.4, 0.6, 3)
        stretched = np.array([0.45 * size[0], 0.3 * size[1], 0.25 * size[2]]) * rng.uniform(0.7, 1.1)
        off = np.array([0, 1, 1]) * (1 - quality) * 20
        near, missed = (
            ((grid - c[:, None, None, None]) / stretched[:, None, None, None]) ** 2 for c in (centre, centre + off)
        )
        truth, mask = near.sum(0) < 1, missed.sum(0) < 0.5 + 0.5 * quality
        image = (90 + 70 * truth + gaussian_filter(rng.normal(0, 120, size), 1.5)).clip(0, 255)
        entropy = 255 * np.exp(-(((missed.sum(0) - 0.5 - 0.5 * quality) / 0.3) ** 2))
        volumes = {"image": image, "truth": truth, "mask": mask, "entropy": entropy}
        volumes = {name: volume.astype(np.uint8) for name, volume in volumes.items()}
        rest = {
            "spacing": np.array([3.0, 1.0, 1.0]),
            "corner": np.zeros(3, int),
            "size": np.array(size),
            "which": "chosen",
        }
        np.savez_compressed(folder / f"scans/{patient}.npz", **volumes, **rest)
