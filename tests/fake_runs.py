"""Made-up finished runs and the data set they were evaluated on, for the tests of plots and report."""

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from analysis.calibration.scores import SCORES
from analysis.calibration.sums import BINS
from analysis.evaluated import (
    CALIBRATION,
    COLUMNS,
    CURVE,
    EVERYONE,
    NOTE,
    REGIONS,
    RELIABILITY,
    evaluated_folder,
)
from metrics import DISTANCES, dice, score_patients
from processes.quoting import csv_text

FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, False)]"
SPACING = (3.0, 1.0, 1.0)
LOG_ORDER = [
    "epoch",
    "tra_loss_tot",
    "tra_loss_entropy",
    "tra_loss_kl",
    "val_loss_tot",
    "val_loss_entropy",
    "val_loss_kl",
]


def save_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def make_set(
    root: Path,
    n_patient: int = 4,
    n_slice: int = 6,
    size: tuple[int, int] = (32, 40),
    n_class: int = 2,
    seed: int = 0,
    channels: int = 1,
    truth_scale: int = 1,
    ignore: int | None = None,
) -> Path:
    """`root`/val/{IMG,GT}: balls in noise, side by side, one a class; patient p has slices Case0p_00, …

    Three channels are a colour picture, the last the brightest; other numbers than 1 and 3 an array. The ground truth
    is `truth_scale` times as large as the image, its first rows are `ignore`.
    """
    rng = np.random.default_rng(seed)
    W, H = size
    w, h = np.mgrid[:W, :H]
    for p in range(n_patient):
        radius = 0.2 * min(size) * rng.uniform(0.8, 1.3)
        centre = np.array([W, H]) * rng.uniform(0.4, 0.6, 2)
        for s in range(n_slice):
            cut = radius * np.sqrt(max(0.0, 1 - (2.2 * (s + 0.5) / n_slice - 1.1) ** 2))
            label = np.zeros(size, int)
            for k in range(1, n_class):
                shift = (k - n_class / 2) * radius * 1.3
                label[(w - centre[0]) ** 2 + (h - centre[1] - shift) ** 2 < cut**2] = k
            image = 80 + 50 * (label > 0) + 12 * label + 40 * gaussian_filter(rng.normal(size=size), 2)
            save_image(root / f"val/IMG/Case{p:02d}_{s:02d}", image.clip(0, 255), channels)
            label = label.repeat(truth_scale, 0).repeat(truth_scale, 1)
            label[: 2 * truth_scale] = label[: 2 * truth_scale] if ignore is None else ignore
            save_png(root / f"val/GT/Case{p:02d}_{s:02d}.png", label)
    write_spacing(root, SPACING)
    return root


def write_spacing(root: Path, spacing: tuple[float, float, float]) -> None:
    """`spacing`: between slices, W, H, in mm."""
    table = pd.DataFrame({"slice": [path.stem for path in (root / "val/GT").iterdir()]})
    table[["spacing_slice", "spacing_w", "spacing_h"]] = spacing
    table.to_csv(root / "manifest.csv", index=False)


def save_image(path: Path, image: np.ndarray, channels: int) -> None:
    every = np.stack([image * (c + 1) / channels for c in range(channels)]).astype(np.uint8)
    if channels in (1, 3):
        save_png(path.with_suffix(".png"), every[0] if channels == 1 else np.moveaxis(every, 0, -1))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), every)


def degrade(truth: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """(S, W, H) truth moved sideways and lost in some slices, the more the lower the quality (1: kept)."""
    moved = np.roll(truth, round((1 - quality) * 0.3 * truth.shape[2]), axis=2)
    lost = rng.random(len(truth)) < 0.3 * (1 - quality)
    return np.where(lost[:, None, None], 0, moved).astype(np.uint8)


def make_run(
    folder: Path,
    data: Path,
    quality: float = 0.8,
    n_epoch: int = 5,
    n_class: int = 2,
    pictures: bool = True,
    missed: tuple[str, ...] = (),
    **provenance: object,
) -> Path:
    """A run folder as main.py leaves it; predictions reach `quality` in the last epoch, those of `missed` are empty."""
    rng = np.random.default_rng(n_epoch)
    names = sorted(path.stem for path in (data / "val/GT").glob("*.png"))
    truth = np.stack([np.asarray(Image.open(data / f"val/GT/{name}.png")) for name in names])
    counted = truth < n_class
    truth = truth * counted
    patients = np.array([name.split("_")[0] for name in names])
    folder.mkdir(parents=True)
    shape = (n_epoch, len(names), n_class)
    arrays = {name: np.full(shape, np.nan, np.float32) for name in ("val_dice", "val_sizes")}
    rows = []
    for epoch in range(n_epoch):
        share = quality * (epoch + 1) / n_epoch if n_epoch > 1 else quality
        predicted = degrade(truth, share, rng)
        predicted[np.isin(patients, missed)] = 0
        scored = predicted * counted
        counts = [[[(m == k).sum() for k in range(n_class)] for m in masks] for masks in (scored, truth)]
        both = [[((p == k) & (t == k)).sum() for k in range(n_class)] for p, t in zip(scored, truth, strict=True)]
        arrays["val_dice"][epoch], arrays["val_sizes"][epoch] = dice(both, *counts), counts[0]
        scores = [
            score
            for p in np.unique(patients)
            for score in scores_of(
                str(p), *(m[patients == p].tobytes() for m in (scored, truth)), truth.shape[1:], n_class
            )
        ]
        rows.append(log_row(epoch, scores, n_class, trained=n_epoch > 1))
        if pictures:
            for name, mask in zip(names, predicted, strict=True):
                save_png(folder / f"iter{epoch:03d}/val/{name}.png", mask)
    if provenance.get("scores") == "iou":
        write_classes(folder, np.sum(both, 0), np.sum(counts, (0, 1)), provenance.get("class_names"))
    write_tables(folder, rows, scores)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "val_gt_sizes.npy", np.array(counts[1], np.float32))
    prior = np.array([[0, *[90 * (truth_k > 0) for truth_k in row[1:]]] for row in counts[1]], np.float32)
    np.save(folder / "prior_sizes.npy", prior if n_epoch > 1 else np.full_like(prior, np.nan))
    if pictures:
        for name, mask in zip(names, predicted, strict=True):
            edge = gaussian_filter(np.abs(np.gradient(mask.astype(float))).sum(0), 1)
            for place in ("last_epoch/val", "best_epoch_3d/val"):
                save_png(folder / place / f"{name}.png", mask)
            save_png(folder / "ent_map" / f"{name}.png", (400 * edge).clip(0, 255))
    write_facts(folder, data, names, n_epoch, n_class, provenance)
    return folder


@functools.lru_cache(1000)
def scores_of(patient: str, predicted: bytes, truth: bytes, size: tuple[int, int], n_class: int) -> list[dict]:
    """Those of one patient, whose masks are many epochs' and many runs' alike; nobody changes them."""
    volumes = [np.frombuffer(mask, np.uint8).reshape(-1, *size) for mask in (predicted, truth)]
    return score_patients({patient: (*volumes, SPACING)}, n_class, 2.0, 1)


def log_row(epoch: int, scores: list[dict], n_class: int, trained: bool) -> dict[str, float]:
    table = pd.DataFrame(scores)
    fall = np.exp(-epoch / 3)
    row = dict.fromkeys(LOG_ORDER[1:], np.nan) | {"epoch": epoch}
    if trained:
        row |= {
            f"{side}_loss_{term}": fall * size for side, size in (("tra", 1.0), ("val", 1.2)) for term in ("tot", "kl")
        }
        row |= {"tra_loss_entropy": 0.3 * fall, "val_loss_entropy": 0.35 * fall}
    row |= {"tra_dice": np.nan, "val_dice": table["dice"].mean(), "val_dice_3d": table["dice"].mean()}
    row |= {f"val_dice_3d_{k}": table.loc[table["class"] == k, "dice"].mean() for k in range(1, n_class)}
    row |= (
        {"val_hd95_mm_1": table.loc[table["class"] == 1, "hd95"].mean()}
        if epoch % 2 == 0
        else {"val_hd95_mm_1": np.nan}
    )
    return row | {"lr": 1e-3, "seconds": 1.5}


def write_tables(folder: Path, rows: list[dict], scores: list[dict]) -> None:
    table = pd.DataFrame(rows)
    table[LOG_ORDER + [c for c in table if c not in LOG_ORDER]].to_csv(folder / "IMG_target_metrics.csv", index=False)
    patients = pd.DataFrame(scores).rename(columns={name: f"{name}_mm" for name in (*DISTANCES, "diagonal")})
    for which in ("last", "best_3d"):
        patients.to_csv(folder / f"patients_{which}.csv", index=False)
    (folder / "3dbestepoch.txt").write_text(f"{len(rows) - 1}, {rows[-1]['val_dice_3d']:.6f}\n")


def write_classes(folder: Path, intersection: np.ndarray, pixels: np.ndarray, names: list[str] | None) -> None:
    """`intersection`: of all slices; `pixels`: of predictions and truth together; (K,)."""
    union = pixels - intersection
    with np.errstate(invalid="ignore"):
        table = pd.DataFrame({"iou": intersection / union, "intersection": intersection, "union": union})
    table.insert(0, "name", names or range(len(table)))
    for which in ("last", "best_3d"):
        table.to_csv(folder / f"classes_{which}.csv", index_label="class")


def add_selection(
    folder: Path, chosen: str, held: Mapping[str, str] = MappingProxyType({}), every: int = 1, last: int | None = None
) -> Path:
    """Lets a run have chosen this one of its candidates; held: candidate -> why the gate held it back.

    Its candidates are the source, its refresh and every so many of its epochs up to the `last`. Its chosen network has
    the scores and masks of the last one.
    """
    last = len(pd.read_csv(folder / "IMG_target_metrics.csv")) if last is None else last
    names = {"source": 0, "refresh": 0} | {f"epoch {epoch}": epoch for epoch in range(every, last + 1, every)}
    rng = np.random.default_rng(last)
    rows = []
    for name, epoch in names.items():
        row = {"candidate": name, "epoch": epoch, "chosen": int(name == chosen), "gate": held.get(name, "")}
        row |= {validator: rng.normal() + 0.1 * epoch for validator in ("cmr_nhd", "entropy", "ensv")}
        rows.append(row | {"sdc": "", "taken_by": "ensv entropy" if name == chosen else ""})
    with (folder / "selection.csv").open("w") as file:
        file.write(csv_text([list(rows[0]), *(row.values() for row in rows)]))
    (folder / "selection.txt").write_text(f"Chosen without labels: {chosen}, as it ranks highest.\n")
    for path in folder.glob("*_last.csv"):
        shutil.copy(path, path.with_name(path.name.replace("last", "chosen")))
    if (folder / "last_epoch").exists():
        shutil.copytree(folder / "last_epoch", folder / "chosen", dirs_exist_ok=True)
    return folder


def add_columns(folder: Path, **columns: object) -> None:
    """Columns beside those that the log of a run has."""
    path = folder / "IMG_target_metrics.csv"
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


def write_facts(folder: Path, data: Path, names: list[str], n_epoch: int, n_class: int, more: dict) -> None:
    (folder / "val_names.txt").write_text("".join(f"{name}\n" for name in names))
    params = {"grp_regex": r"(Case\d+)_(\d+)", "metric_axis": more.pop("metric_axis", list(range(1, n_class)))}
    params |= {"target_folders": FOLDERS, "ignore": more.pop("ignore", None)}
    params |= {"ontest": 0, "ontrain": 0, "l_rate": more.pop("l_rate", 1e-3), "val_target_folders": None}
    (folder / "params.txt").write_text("".join(f"{key}: {value}\n" for key, value in params.items()))
    facts = {
        "dataset": {"path": str(data), "phantom": None, "name": data.name, "split_unit": "patient"}
        | more.pop("dataset", {}),
        "csv": "IMG_target_metrics.csv",
        "supervision": "none",
        "oracle": False,
        "debug": False,
        "method": "sfda",
        "n_class": n_class,
        "n_epoch": n_epoch,
        "nsd_tolerance": 2.0,
        "distance_unit": "mm",
    }
    (folder / "provenance.json").write_text(json.dumps(facts | more))


class Killed(BaseException):
    """In place of a kill: no handler of the program sees it."""


def killed_after(writes: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """An `atomic_write` whose process is killed the moment after it wrote so many files."""
    left = itertools.count(writes - 1, -1)

    @contextlib.contextmanager
    def write(*args: Any) -> Iterator[Any]:
        with real(*args) as file:
            yield file
        if not next(left):
            raise Killed

    return write


def add_calibration(folder: Path, ece: Mapping[str, float], classes: Iterable[int] = (1,)) -> Path:
    """What study.evaluate would leave beside a run: network -> its class-wise ECE in the band, half of it in the image.

    Each is too sure by that much, whatever it says. Returns the run's folder.
    """
    out = evaluated_folder(folder)
    out.mkdir(parents=True, exist_ok=True)
    scores, curves = [list(COLUMNS)], [list(CURVE)]
    for (which, error), k, region in itertools.product(ece.items(), classes, REGIONS):
        error = error if region == "band" else error / 2
        for patient in (EVERYONE, "Case00"):
            scores.append([which, patient, k, region, *[error] * len(SCORES), 1500, 1.0])
        said = (np.arange(BINS) + 0.5) / BINS
        curves += [[which, k, region, b, p, max(p - error, 0), 100] for b, p in enumerate(said)]
    for name, rows in ((CALIBRATION, scores), (RELIABILITY, curves)):
        (out / name).write_text(csv_text(rows))
    (out / NOTE).write_text(json.dumps({"unit": "mm"}))
    return folder
