"""What a run writes down: the csv log, raw arrays per slice, masks, scores per patient, provenance."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dataloader import SliceSet, Stream, read_card
from evaluation import Evaluation, class_mean, score_volumes
from methods import Method
from metrics import dice
from run_folder import CsvLog, RunFolder, describe_code, write_masks

Trained = dict[str, np.ndarray]  # what main.train_epoch returns


class Recorder:
    """Everything a run writes down, epoch by epoch."""

    def __init__(
        self, folder: RunFolder, method: Method, val: SliceSet, streams: dict[str, Stream], args: Namespace
    ) -> None:
        self.folder, self.method, self.val, self.args = folder, method, val, args
        self.train = next((stream.slices for stream in streams.values()), None)
        self.unit = "vox" if val.spacing is None else "mm"
        self.log = CsvLog(folder.path / self.csv_name, self._columns(), folder.done)
        shape = (args.n_epoch, len(val), args.n_class)
        self.arrays = {name: folder.array(name, shape) for name in ("val_dice", "val_sizes")}
        if self.train:
            steps = len(next(iter(streams.values())))
            self.arrays["tra_dice"] = folder.array("tra_dice", (args.n_epoch, len(self.train), args.n_class))
            self.arrays["tra_loss"] = folder.array("tra_loss", (args.n_epoch, steps, len(method.columns)))

    @property
    def csv_name(self) -> str:
        return self.args.csv or f"{self.val.folders[0].folder}_target_metrics.csv"

    def _columns(self) -> list[str]:
        columns = ["epoch", *(f"tra_loss_{name}" for name in self.method.columns)]
        columns += [f"val_loss_{name}" for name in self.method.loss.columns]
        columns += ["tra_dice", "val_dice", "val_dice_3d", "val_dice_3d_sd", "val_size_mean", "val_gt_size_mean"]
        columns += [f"val_dice_3d_{k}" for k in range(1, self.args.n_class)]
        columns += [f"val_{name}_{self.unit}_{k}" for name in self._distances() for k in range(1, self.args.n_class)]
        return [*columns, "lr", "seconds"]

    def _distances(self) -> list[str]:
        return [name for name, every in (("hd95", self.args.do_hd), ("assd", self.args.do_asd)) if every]

    def epoch(
        self, epoch: int, trained: dict[str, np.ndarray] | None, found: Evaluation, seconds: float
    ) -> dict[str, float]:
        """Writes arrays, masks and the csv row of one epoch; returns the row."""
        axis = self.args.metric_axis
        row = {"epoch": epoch, "seconds": seconds, "tra_dice": np.nan, "lr": self.method.rate()}
        row |= {f"val_loss_{name}": value for name, value in found.terms.items()}
        means = np.full(len(self.method.columns), np.nan)
        if trained:
            means = np.average(trained["terms"], axis=0, weights=trained["sizes"])
            tra_dice = np.empty((len(self.train), self.args.n_class), np.float32)
            tra_dice[trained["rows"]] = dice(*trained["counts"])
            row["tra_dice"] = nanmean(class_mean(tra_dice, axis))
            self.arrays["tra_dice"][epoch], self.arrays["tra_loss"][epoch] = tra_dice, trained["terms"]
        row |= {f"tra_loss_{name}": value for name, value in zip(self.method.columns, means, strict=True)}
        volumes = found.dice_3d()
        per_patient = class_mean(volumes, axis)
        row |= {
            "val_dice": nanmean(class_mean(found.dice_2d, axis)),
            "val_dice_3d": nanmean(per_patient),
            "val_dice_3d_sd": float(np.nanstd(per_patient, ddof=1)) if np.isfinite(per_patient).sum() > 1 else np.nan,
            "val_size_mean": float(found.predicted[:, axis].mean()),
            "val_gt_size_mean": float(found.true[:, axis].mean()),
        }
        row |= {f"val_dice_3d_{k}": nanmean(volumes[:, k]) for k in range(1, self.args.n_class)}
        row |= self._distance_cells(epoch, found)
        self.arrays["val_dice"][epoch], self.arrays["val_sizes"][epoch] = found.dice_2d, found.predicted
        for array in self.arrays.values():
            array.flush()
        if self.args.saveim and (epoch % self.args.saveim == 0 or epoch == self.args.n_epoch - 1):
            write_masks(self.folder.path / f"iter{epoch:03d}" / "val", found.names, found.prediction)
        self.log.append(row)
        return row

    def _distance_cells(self, epoch: int, found: Evaluation) -> dict[str, float]:
        """Mean distances per class in the epochs that --do_hd and --do_asd name, NaN in the others."""
        cells = {}
        last, scores = epoch == self.args.n_epoch - 1, None
        for name, every in (("hd95", self.args.do_hd), ("assd", self.args.do_asd)):
            if not every:
                continue
            due = last or (epoch % every == 0 and (epoch or every == 1))
            if due and scores is None:
                scores = pd.DataFrame(score_volumes(found, self.val, self.args))
            for k in range(1, self.args.n_class):
                value = nanmean(scores.loc[scores["class"] == k, name].to_numpy()) if due else np.nan
                cells[f"val_{name}_{self.unit}_{k}"] = value
        return cells

    def start(self, bounds: Sequence[Any], inputs: dict[str, str]) -> None:
        """What is known before the first epoch."""
        card = read_card(self.args.target_dataset)
        supervision = sorted({bound.supervision for bound in bounds if bound is not None} - {"none"})
        self.folder.write_json(
            "provenance.json",
            describe_code()
            | {
                "dataset": {"path": str(self.args.target_dataset), "phantom": None} | card,
                "inputs": inputs,
                "method": self.args.method,
                "network": self.args.network,
                "n_class": self.args.n_class,
                "n_epoch": self.args.n_epoch,
                "debug": bool(self.args.debug),
                "device": self.args.device,
                "supervision": ", ".join(supervision) or self.method.supervision,
                "oracle": any("oracle" in words for words in supervision),
                "csv": self.csv_name,
                "image_folder": self.val.folders[0].folder,
                "label_folder": self.val.folders[1].folder,
                "nsd_tolerance": self.args.nsd_tolerance,
                "distance_unit": self.unit,
            },
        )
        self.folder.write_text("val_names.txt", self.val.names)
        truth = [np.bincount(label.ravel(), minlength=self.args.n_class) for label in self.val.truth]
        self.folder.array("val_gt_sizes", (len(self.val), self.args.n_class))[:] = truth
        prior = self.folder.array("prior_sizes", (len(self.val), self.args.n_class))
        for bound in self.val.bounds:
            if bound is not None:
                prior[:] = bound[:, :, 0]

    def finish(self, which: str, found: Evaluation) -> None:
        """Scores per patient, masks and entropy maps of the last or the best network."""
        scores = pd.DataFrame(score_volumes(found, self.val, self.args))
        scores = scores.rename(columns={name: f"{name}_{self.unit}" for name in ("hd95", "assd", "diagonal")})
        first = ["patient", "class", "outcome"]
        scores = scores[first + [name for name in scores.columns if name not in first]]
        self.folder.write_text(f"patients_{which}.csv", scores.to_csv(index=False).splitlines())
        if self.args.saveim:
            name = {"last": "last_epoch", "best_3d": "best_epoch_3d"}[which]
            write_masks(self.folder.path / name / "val", found.names, found.prediction)
        if found.entropy is not None:
            write_masks(self.folder.path / "ent_map", found.names, found.entropy)


def nanmean(values: np.ndarray) -> float:
    """The mean without NaN, NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def epoch_line(row: Mapping[str, float], best: Mapping[str, float], args: Namespace) -> str:
    """One line an epoch; --pprint adds one for each value of a class."""
    loss = f"loss {row['tra_loss_tot']:.4f} (val {row['val_loss_tot']:.4f})"
    line = (
        f"epoch {row['epoch'] + 1:3d}/{args.n_epoch}  {loss if np.isfinite(row['tra_loss_tot']) else 'no step'}  "
        f"val Dice 3D {row['val_dice_3d']:.3f} (slices {row['val_dice']:.3f})  "
        f"best {best['dice']:.3f} in epoch {best['epoch'] + 1}  {row['seconds']:.1f} s"
    )
    if args.pprint:
        names = [name for name in row if name.startswith("val_") and name[-1].isdecimal()]
        line += "".join(f"\n    {name:24s} {row[name]:.4f}" for name in names)
    return line
