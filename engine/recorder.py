"""What a run writes down: the csv log, raw arrays per slice, masks, scores per patient, provenance."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dataloader import AnySet, AnyStream, grey_note
from datasets.set_tables import read_card
from engine.cost import CostFile, Meter
from engine.epoch import Trained
from engine.evaluation import Evaluation, Scoring, class_mean, nanmean, score_patients_of
from engine.logs.base import About, names_of
from engine.logs.keeping import Logs
from engine.run_folder import CsvLog, RunFolder, describe_code, earlier_code, other_versions, write_masks, write_volumes
from engine.watching import COLUMNS as WATCHED
from files.run_names import CLASSES, MASKS, PATIENTS
from methods.base import Method
from metrics import DISTANCES, dice
from processes.lock import finished
from processes.quoting import visible
from utils import counted, listing

if TYPE_CHECKING:
    from engine.shown_slices import Shown  # opened where it is needed: it brings matplotlib, which takes a second

COUNTED = 64  # slices whose classes are counted at a time; volumes, one by one


def is_due(epoch: int, every: int, n_epoch: int) -> bool:
    """Whether what happens every `every` epochs happens in this one: it does in the last, and with 0 never."""
    return every > 0 and (epoch == n_epoch - 1 or (epoch % every == 0 and (epoch > 0 or every == 1)))


@dataclass(frozen=True, kw_only=True)
class Recording(Scoring):
    """What is written down, and how often, under the names of the flags."""

    target_dataset: Path
    network: str
    load_blocks: int | None
    crop: Sequence[int] | None
    n_labelled: int
    n_epoch: int
    csv: str | None
    do_hd: int
    do_asd: int
    saveim: int
    pprint: int
    debug: int
    log: str
    log_images: int


def unit_of(slices: AnySet | None) -> str:
    """In what distances of a set are measured."""
    return "vox" if slices is None or slices.spacing is None else "mm"


def patient_table(evaluation: Evaluation, slices: AnySet, scoring: Scoring) -> pd.DataFrame:
    """Every score, a row a patient and class; the names of distances end in their unit."""
    scores = pd.DataFrame(score_patients_of(evaluation, slices, scoring))
    scores = scores.rename(columns={name: f"{name}_{unit_of(slices)}" for name in (*DISTANCES, "diagonal")})
    first = ["patient", "class", "outcome"]
    return scores[first + [name for name in scores.columns if name not in first]]


class Recorder:
    """Everything a run writes down, epoch by epoch; `val` is None for a pre-training, whose loss is all there is.

    A validation without ground truth has no score: what stands in the log is its loss, its entropy and its sizes.
    """

    def __init__(
        self,
        folder: RunFolder,
        method: Method,
        val: AnySet | None,
        streams: Mapping[str, AnyStream],
        recording: Recording,
        watched: bool,
        meter: Meter,
    ) -> None:
        """watched: whether the log has columns for the alarms of an adaptation; meter: what this start costs."""
        self.folder, self.method, self.val, self.recording, self.watched = folder, method, val, recording, watched
        self.cost = CostFile(folder, meter)
        self.classes = range(1, recording.n_class)  # all but the background
        self.train = next((stream.slices for stream in streams.values()), None)
        self.scored = val is not None and val.has_truth
        self.unit = unit_of(val)
        self.shown: Shown | None = None  # once something is shown
        self.log = CsvLog(folder.path / self.csv_name, self._columns(), folder.epochs_done)
        shapes = {}
        if val:
            names = ("val_dice", "val_sizes") if self.scored else ("val_sizes",)
            shapes |= dict.fromkeys(names, (len(val), recording.n_class))
        if self.train:
            shapes["tra_loss"] = (len(next(iter(streams.values()))), len(method.columns))
        if self.train and self.train.has_truth and method.segments:
            shapes["tra_dice"] = (len(self.train), recording.n_class)
        self.arrays = {name: folder.array(name, (recording.n_epoch, *shape)) for name, shape in shapes.items()}

    @property
    def csv_name(self) -> str:
        folder = (self.val or self.train).folders[0].folder.replace("/", "_")  # it may lie in another
        return self.recording.csv or f"{folder}_target_metrics.csv"

    def _columns(self) -> list[str]:
        columns = ["epoch", *(f"tra_loss_{name}" for name in self.method.columns)]
        settings = [*self.method.moving(), *(WATCHED if self.watched else ())]
        if self.val is None:
            return [*columns, *settings, "seconds"]
        columns += [f"val_loss_{name}" for name in self.method.loss.columns]
        if not self.scored:
            columns += ["tra_dice"] * (self.train is not None and self.train.has_truth)
            columns += ["val_entropy", "val_size_mean", *(f"val_size_{k}" for k in self.classes)]
            return [*columns, *settings, "seconds"]
        columns += ["tra_dice", "val_dice", "val_dice_3d", "val_dice_3d_sd", "val_size_mean", "val_gt_size_mean"]
        columns += [f"val_dice_3d_{k}" for k in self.classes]
        columns += [f"val_{name}_{self.unit}_{k}" for name in self._distances() for k in self.classes]
        if self.recording.scores == "iou":
            columns += ["val_miou", *(f"val_iou_{k}" for k in self.recording.metric_axis)]
        return [*columns, *settings, "seconds"]

    def _distances(self) -> list[str]:
        return [name for name, every in self._every().items() if every]

    def _every(self) -> dict[str, int]:
        """Distance -> every how many epochs it stands in the log; 0: never."""
        return {"hd95": self.recording.do_hd, "assd": self.recording.do_asd, "masd": self.recording.do_asd}

    def keeps_masks(self, epoch: int) -> bool:
        """Whether anything needs this epoch's masks: a picture or a distance."""
        due = [is_due(epoch, every, self.recording.n_epoch) for every in self._every().values()]
        return any(due) or self._shows(epoch) or self._draws(epoch)

    def _draws(self, epoch: int) -> bool:
        """Whether a few slices of this epoch are drawn for the other logs."""
        return bool(self.recording.log) and is_due(epoch, self.recording.log_images, self.recording.n_epoch)

    def _shows(self, epoch: int) -> bool:
        every = self.recording.saveim
        return every > 0 and (epoch % every == 0 or epoch == self.recording.n_epoch - 1)

    def epoch(
        self,
        epoch: int,
        trained: Trained | None,
        evaluation: Evaluation | None,
        settings: Mapping[str, float],
        seconds: float,
    ) -> dict[str, float]:
        """Writes arrays, masks and the csv row of one epoch; returns the row. What was not evaluated is NaN."""
        row = dict.fromkeys(self.log.columns, np.nan) | {"epoch": epoch, "seconds": seconds, **settings}
        if trained:
            row |= self._training_cells(epoch, trained)
        if evaluation:
            row |= self._validation_cells(epoch, evaluation)
            if self._shows(epoch):
                self._write_masks(f"iter{epoch:03d}/val", evaluation.names, evaluation.prediction)
            if self._draws(epoch):
                self._draw(epoch, evaluation)
        self.log.append(row)
        self.cost.updates = (epoch + 1) * len(trained["terms"]) if trained else 0
        self.cost.write()
        return row

    def _draw(self, epoch: int, evaluation: Evaluation) -> None:
        from engine.shown_slices import Shown

        if self.shown is None:
            self.shown = Shown(self.folder.path, self.folder.read_json("provenance.json"), self.val)
        self.shown.draw(epoch, evaluation.prediction)

    def _training_cells(self, epoch: int, trained: Trained) -> dict[str, float]:
        means = np.average(trained["terms"], axis=0, weights=trained["sizes"])
        self.arrays["tra_loss"].write(epoch, trained["terms"])
        cells = {f"tra_loss_{name}": value for name, value in zip(self.method.columns, means, strict=True)}
        if "tra_dice" not in self.arrays:
            return cells
        counts = np.zeros((3, len(self.train), self.recording.n_class), np.int64)
        seen = trained["counts"][:3]  # where there is truth
        np.add.at(counts, (slice(None), trained["rows"]), seen)  # several crops of a volume are one row
        tra_dice = dice(*counts).astype(np.float32)
        self.arrays["tra_dice"].write(epoch, tra_dice)
        return cells | {"tra_dice": nanmean(class_mean(tra_dice, self.recording.metric_axis))}

    def _validation_cells(self, epoch: int, evaluation: Evaluation) -> dict[str, float]:
        if not self.scored:
            return self._blind_cells(epoch, evaluation)
        axis, volumes = self.recording.metric_axis, evaluation.dice_3d()
        per_patient = class_mean(volumes, axis)
        self.arrays["val_dice"].write(epoch, evaluation.dice_2d)
        self.arrays["val_sizes"].write(epoch, evaluation.predicted)
        cells = {f"val_loss_{name}": value for name, value in evaluation.terms.items()}
        cells |= {
            "val_dice": nanmean(class_mean(evaluation.dice_2d, axis)),
            "val_dice_3d": evaluation.mean_dice_3d(axis),
            "val_dice_3d_sd": float(np.nanstd(per_patient, ddof=1)) if np.isfinite(per_patient).sum() > 1 else np.nan,
            "val_size_mean": float(evaluation.predicted[:, axis].mean()),
            "val_gt_size_mean": float(evaluation.true[:, axis].mean()),
        }
        cells |= {f"val_dice_3d_{k}": nanmean(volumes[:, k]) for k in self.classes}
        if self.recording.scores == "iou":
            cells |= {"val_miou": evaluation.mean_iou(axis)} | {f"val_iou_{k}": evaluation.iou()[k] for k in axis}
        return cells | self._distance_cells(epoch, evaluation)

    def _blind_cells(self, epoch: int, evaluation: Evaluation) -> dict[str, float]:
        """The cells of the log for a validation without ground truth."""
        self.arrays["val_sizes"].write(epoch, evaluation.predicted)
        sizes = evaluation.predicted.mean(0)
        cells = {f"val_loss_{name}": value for name, value in evaluation.terms.items()}
        cells |= {
            "val_entropy": evaluation.mean_entropy,
            "val_size_mean": float(sizes[self.recording.metric_axis].mean()),
        }
        return cells | {f"val_size_{k}": float(sizes[k]) for k in self.classes}

    def _distance_cells(self, epoch: int, evaluation: Evaluation) -> dict[str, float]:
        """The cells of the log with mean distances per class, in the epochs that --do_hd and --do_asd name."""
        due = [name for name, each in self._every().items() if is_due(epoch, each, self.recording.n_epoch)]
        if not due:
            return {}
        scores = pd.DataFrame(score_patients_of(evaluation, self.val, self.recording)).groupby("class")
        return {
            f"val_{name}_{self.unit}_{k}": nanmean(scores.get_group(k)[name].to_numpy())
            for name in due
            for k in self.classes
        }

    def start(
        self, inputs: Mapping[str, str], used: Mapping[str, str], choosers: Sequence[str], chose: Sequence[str]
    ) -> None:
        """Writes what is known before the first epoch.

        inputs: the hash of everything that is read; used: set -> how labels shaped its images
        choosers: patients whose labels will choose (--select_with); chose: those whose labels chose what it starts from
        """
        card, reference = read_card(self.recording.target_dataset), self.val or self.train
        supervision = sorted({bound.supervision for bound in self.method.loss.bounds if bound is not None} - {"none"})
        if self.recording.n_labelled and self.train:
            supervision.append(f"labels of {self.recording.n_labelled}")
        elif self.train and self.method.labelled and any(part.needs_target for part in self.method.loss.losses):
            supervision.insert(0, self.method.supervision)  # in addition to what the sizes knew
        for name, how in used.items():
            print(f"Labels shaped the images of {name}: {how}.", flush=True)
        if choosers:
            print(
                f"A network will be chosen with {counted(len(choosers), 'labelled patient')}: {listing(choosers)}.",
                flush=True,
            )
        if note := grey_note(self.train or self.val):
            print(note, flush=True)
        code = describe_code()
        self.folder.write_json(
            "provenance.json",
            code
            | {
                "earlier": self._tell_earlier(code),
                "dataset": {"path": str(self.recording.target_dataset), "phantom": None} | card,
                "inputs": inputs,
                "method": self.method.settings.method,
                "network": self.recording.network,
                "n_class": self.recording.n_class,
                "n_epoch": self.recording.n_epoch,
                "debug": bool(self.recording.debug),
                "device": self.method.settings.device,
                "supervision": ", ".join([*(supervision or [self.method.supervision]), *_of_choices(choosers, chose)]),
                "labelled": {"chooses": list(choosers), "chose_the_start": list(chose)},
                "oracle": any("oracle" in words for words in supervision),
                "uses_labels": used,
                "csv": self.csv_name,
                "image_folder": reference.folders[0].folder,
                "label_folder": self.val.folders[1].folder if self.scored else None,
                "scored": self.scored,
                "loaded_blocks": self.recording.load_blocks,
                "volumes": bool(self.recording.crop),
                "pretraining": not self.method.segments,
                "training_volumes": sorted(set(self.train.patients)) if self.train else [],
                "nsd_tolerance": self.recording.nsd_tolerance,
                "scores": self.recording.scores,
                "distance_unit": self.unit,
            },
        )
        if self.val:
            self._describe_val()
        self.logs = Logs(names_of(self.recording.log), self.folder.path, self.log.path, self._about())
        self.logs.begin(self.folder.epochs_done)

    def _about(self) -> About:
        """What the other logs say of the run."""
        told, flags = self.folder.read_json("provenance.json"), self.folder.parameters
        card = told["dataset"]
        tags = {"commit": told["commit"], "set": card.get("name") or self.recording.target_dataset.name}
        tags |= {"phantom": card["phantom"], "seed": flags["seed"], "supervision": told["supervision"]}
        tags |= {"uncommitted changes": bool(told["diff"]), "folder": finished(self.folder.path)}
        words = {name: visible(value) for name, value in tags.items()}
        parameters = {name: visible(value) for name, value in sorted(flags.items())}
        return About(visible(finished(self.folder.path.resolve()).name), words["set"], parameters, words)

    def _tell_earlier(self, code: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Other code or libraries that made the epochs that are done, if any did; said aloud when that is new."""
        before = self.folder.read_json("provenance.json") if self.folder.resumes else {}
        earlier = earlier_code(before, code, self.folder.epochs_done)
        if len(earlier) > len(before.get("earlier", [])):
            versions = other_versions(before, code)
            if versions:
                what = f"with other libraries ({', '.join(versions)}): its numbers may differ in their last bits"
            else:
                commits = f"commit {before.get('commit')}, now {code['commit']}; either may hold uncommitted changes"
                what = f"with other code ({commits}): its epochs may not belong together"
            print(f"{self.folder.path} was begun {what}. provenance.json keeps both.", file=sys.stderr, flush=True)
        return earlier

    def _describe_val(self) -> None:
        """Writes the names, true sizes and prior sizes of what is evaluated."""
        self.folder.write_text("val_names.txt", self.val.names)
        at_once = 1 if self.recording.crop else COUNTED
        priors = [bound[:, : self.recording.n_class].mean(2) for bound in self.val.bounds if bound is not None]
        unknown = np.full((len(self.val), self.recording.n_class), np.nan)
        self.folder.write_array("prior_sizes", priors[-1] if priors else unknown)
        if not self.scored:
            return
        truth = [
            np.bincount(label.ravel(), minlength=self.recording.n_class)[: self.recording.n_class]
            for start in range(0, len(self.val), at_once)
            for label in self.val.labels(range(start, min(start + at_once, len(self.val))))
        ]
        self.folder.write_array("val_gt_sizes", np.array(truth))

    def finish(self, which: str, evaluation: Evaluation) -> None:
        """Writes scores per patient, masks and entropy maps of the last or the best network."""
        if self.scored:
            self._write_scores(which, evaluation)
        if self.recording.saveim:
            self._write_masks(f"{MASKS[which]}/val", evaluation.names, evaluation.prediction)
        if evaluation.entropy is not None:
            self._write_masks("ent_map", evaluation.names, evaluation.entropy)
        self.cost.write()

    def _write_scores(self, which: str, evaluation: Evaluation) -> None:
        self._write_table(PATIENTS[which], patient_table(evaluation, self.val, self.recording))
        if self.recording.scores == "iou":
            self._write_table(CLASSES[which], self._classes(evaluation))

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        self.folder.write_table(name, [table.columns, *table.itertuples(index=False)])

    def _write_masks(self, name: str, names: Sequence[str], masks: Sequence[np.ndarray]) -> None:
        if self.recording.crop:
            write_volumes(self.folder.path / name, names, masks, self.val.headers)
        else:
            write_masks(self.folder.path / name, names, masks)

    def _classes(self, evaluation: Evaluation) -> pd.DataFrame:
        """The rows with the intersection over union of each averaged class over the whole set."""
        told, every = read_card(self.recording.target_dataset).get("class_names") or [], range(self.recording.n_class)
        names = told if len(told) == len(every) else every
        intersection, union = evaluation.overlap()
        axis = self.recording.metric_axis
        columns = {"class": axis, "name": [names[k] for k in axis], "iou": evaluation.iou()[axis]}
        return pd.DataFrame(columns | {"intersection": intersection[axis], "union": union[axis]})


def _of_choices(choosers: Sequence[str], chose: Sequence[str]) -> list[str]:
    """What a choice by labels adds to the supervision of a run."""
    words = {"choosing": choosers, "the choice of its weights": chose}
    return [f"labels of {counted(len(names), 'patient')} for {what}" for what, names in words.items() if names]


def epoch_line(run: str, row: Mapping[str, float], best: Mapping[str, float], recording: Recording) -> str:
    """The line that is printed of an epoch, with the run's name: two may train side by side.

    --pprint adds one for each value of a class.
    """
    parts = [f"epoch {row['epoch'] + 1:3.0f}/{recording.n_epoch}"]
    trained, evaluated = np.isfinite(row["tra_loss_tot"]), np.isfinite(row.get("val_gt_size_mean", np.nan))
    parts.append(f"loss {row['tra_loss_tot']:.4f}" if trained else "no step")
    lowest = [name for name in row if trained and name.startswith("tra_loss_") and name.endswith("_lowest")]
    parts += [f"{name[9:-7]} {row[name[:-7]]:.4f} (lowest possible {row[name]:.4f})" for name in lowest]
    if evaluated:
        parts[1] += f" (val {row['val_loss_tot']:.4f})" if trained else ""
        volumes = f"val Dice 3D {row['val_dice_3d']:.3f} (slices {row['val_dice']:.3f})"
        parts.append(f"val mIoU {row['val_miou']:.3f}" if recording.scores == "iou" else volumes)
        parts.append(f"best {best['dice']:.3f} in epoch {best['epoch'] + 1}")
    if np.isfinite(row.get("val_entropy", np.nan)):
        parts.append(f"val entropy {row['val_entropy']:.3f}, size {row['val_size_mean']:.1f}, no ground truth")
    line = "  ".join([*parts, f"{row['seconds']:.1f} s", f"({run})"])
    if recording.pprint:
        names = [name for name in row if name.startswith("val_") and name[-1].isdecimal()]
        line += "".join(f"\n    {name:24s} {row[name]:.4f}" for name in names)
    return line
