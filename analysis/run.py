"""A finished run's folder, read back: what plots and reports know of a run.

Nothing here opens the data set except `Run.slices`, so a folder out of an archive is as good as a fresh one.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.selection import Selection, parse_selection
from datasets.files import MOST_CLASSES, check_regex
from files.foreign import read_json, reading
from files.run_names import CLASSES, PATIENTS, SELECTION
from metrics import DISTANCES, SCORES
from processes.errors import UserError
from processes.ownership import made_by_run, visible_names
from processes.quoting import for_shell, from_cell
from utils import doubled, fits, nearest, read_literal

PICTURES = (".png", ".pdf", ".svg", ".gif")  # as plot.py makes them
WITH_UNIT = (*DISTANCES, "diagonal")
DEFAULT_CSV = "*_target_metrics.csv"
SCORED = "val_3d_"  # how the arrays begin that score_masks.py makes
MOST_EPOCHS = 100_000  # what nobody trains; a larger number is a broken file, which no memory is taken for
AGAIN = "train the run again"  # what mends a run that is broken
NATIVE = "native_"  # what follows where it scored on the volumes' own grids

SHAPES = dict.fromkeys(("val_dice.npy", "val_sizes.npy"), ("n_epoch", "slices", "K"))  # axes of raw arrays
SHAPES |= dict.fromkeys(("val_gt_sizes.npy", "prior_sizes.npy"), ("slices", "K"))


def number_in(text: str) -> float:
    """The number of a cell, NaN where it is empty."""
    return float(text) if text else float("nan")


def regex(text: str) -> str:
    check_regex(text)
    return text


def _old_names(columns: Iterable[str]) -> dict[str, str]:
    """Old column -> its name of today, for a table in which ASSD stands alone: that ASSD is called MASD now."""
    columns = list(columns)
    if any("masd" in name for name in columns):
        return {}
    return {name: name.replace("assd", "masd") for name in columns if "assd" in name.split("_")}


PATIENT_COLUMNS = {"patient": str, "class": int, "outcome": str}
PATIENT_COLUMNS |= dict.fromkeys((*SCORES, "predicted", "true", "diagonal"), number_in)
CLASS_COLUMNS = {"class": int, "name": str, "iou": number_in, "intersection": int, "union": int}


KINDS = {  # of what provenance.json tells, where it does
    **{"n_class": int, "n_epoch": int, "nsd_tolerance": (int, float), "path": str, "csv": (str, type(None))},
    **{"scores": str, "distance_unit": str, "class_names": (list, dict, type(None))},
}


@dataclass(frozen=True)
class Run:
    """One run folder whose provenance could be read.

    The methods raise UserError naming the file that is missing or broken.
    """

    folder: Path
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def own_files(self) -> list[Path]:
        """What the run wrote: its files, and its folders of pictures. An older run does not tell them apart."""
        names = made_by_run(self.folder) or {name for name in visible_names(self.folder) if not name.endswith(PICTURES)}
        paths = [self.folder / name for name in sorted(names)]
        return [*paths, *(path / "val" for path in paths if path.is_dir())]

    @property
    def set_name(self) -> str:
        return str(self.provenance["dataset"].get("name") or Path(self.provenance["dataset"]["path"]).name)

    @property
    def phantom(self) -> bool:
        return bool(self.provenance["dataset"].get("phantom"))

    @property
    def label_uses(self) -> dict[str, str]:
        """Set -> in what way labels shaped its images. An older run knew it only of its target set."""
        how = self.provenance["dataset"].get("uses_labels")
        return self.provenance.get("uses_labels", {self.set_name: how} if how else {})

    @property
    def scored(self) -> bool:
        """Whether there was ground truth to compare with; a pre-training, which segments nothing yet, has no scores."""
        return bool(self.provenance.get("scored", not self.provenance.get("pretraining")))

    @property
    def n_class(self) -> int:
        return int(self.provenance["n_class"])

    @property
    def n_epoch(self) -> int:
        """The epochs that were asked for; the log has fewer where the run stopped by itself."""
        return int(self.provenance["n_epoch"])

    @property
    def adapts_nothing(self) -> bool:
        """Whether it is the network as it came, only evaluated."""
        return self.provenance.get("method") == "noadap"

    @property
    def start(self) -> str:
        """The file of weights that it starts from, empty for random ones."""
        return self.params.get("model_weights", "")

    @property
    def by_iou(self) -> bool:
        """Whether it is scored by the IoU of all images together, instead of patient by patient."""
        return self.provenance.get("scores") == "iou"

    @property
    def unit(self) -> str:
        """The unit of distances: mm, or vox if the set states no spacing."""
        return self.provenance.get("distance_unit", "mm")

    @property
    def nsd_tolerance(self) -> float:
        """The tolerance of the NSD, in `unit`."""
        return float(self.provenance.get("nsd_tolerance", "nan"))

    def class_name(self, number: int) -> str:
        """The name that the data set gives the class, or 'class 2'."""
        names = self.provenance.get("class_names") or self.provenance["dataset"].get("class_names") or {}
        named = dict(enumerate(names)) if isinstance(names, list) else {int(k): v for k, v in names.items()}
        return str(named.get(number) or f"class {number}")

    @cached_property
    def palette(self) -> np.ndarray | None:
        """(256, 3) uint8 colour of each label, black beyond the classes; None where the set's card has no palette."""
        listed = self.provenance["dataset"].get("palette")
        if not listed:
            return None
        try:
            colours = np.array(listed, dtype=np.uint8)[: self.n_class]
            if colours.shape != (self.n_class, 3):
                raise ValueError(f"its shape is {colours.shape}")
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"The palette of {self.provenance['dataset']['path']}/dataset.json, noted in {self.folder}, should be "
                f"{self.n_class} triples of red, green and blue, 0..255, one a class; {error}."
            ) from error
        return np.concatenate([colours, np.zeros((256 - self.n_class, 3), np.uint8)])

    @cached_property
    def params(self) -> dict[str, str]:
        """The lines of params.txt."""
        pairs = (line.split(": ", 1) for line in self.text("params.txt").split("\n"))
        return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}

    def param(self, name: str, default: str, read: Callable[[str], Any]) -> Any:
        """An argument of the run out of params.txt, as `read` takes it. Raises UserError where it does not."""
        text = self.params.get(name, default)
        try:
            return read(text)
        except (UserError, ValueError, TypeError) as error:
            raise UserError(f"{self._file('params.txt')} says '{name}: {text}': {error}; {AGAIN}.") from error

    @cached_property
    def selection(self) -> Selection | None:
        """What was chosen among the networks that it kept, with few labels or none; None where nothing was."""
        path = self.folder / f"{SELECTION}.csv"
        if not path.is_file():
            return None
        with reading(path, AGAIN):
            return parse_selection(self.text(path.name), self.text(f"{SELECTION}.txt"))

    def labelled(self, which: str) -> list[str]:
        """The patients whose labels chose that network, or the one that it started from."""
        told = self.provenance.get("labelled")
        names = told.get("chose_the_start") if isinstance(told, dict) else None
        own = self.selection.labelled if which == "chosen" and self.selection else ()
        return sorted({*(names if fits(names, Sequence[str]) else ()), *own})

    def standing_for(self, which: str) -> str:
        """'last', 'chosen' or 'best_3d': where nothing was chosen, the last network stands for the 'chosen' one."""
        return "last" if which == "chosen" and self.selection is None else which

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The log, one row an epoch; what an old one calls ASSD has its name of today, MASD."""
        named = self.provenance.get("csv")
        found = [self.folder / named] if named else sorted(self.folder.glob(DEFAULT_CSV))
        path = self._file(found[0].name if found else DEFAULT_CSV)
        with reading(path, AGAIN):
            table = pd.read_csv(path).apply(pd.to_numeric)
            has_epochs = not table.empty and "epoch" in table and table["epoch"].tolist() == [*range(len(table))]
        if not has_epochs:
            raise UserError(f"{path} has no epoch in it, or not each one in its row; train the run to its end.")
        return table.rename(columns=_old_names(table))

    def column(self, name: str) -> pd.Series:
        """One column of the log."""
        if name not in self.metrics:
            raise UserError(f"The log of {self.folder} has no column '{name}'.{nearest(name, self.metrics.columns)}")
        return self.metrics[name]

    def patients(self, which: str) -> list[dict[str, Any]]:
        """One row per patient and foreground class of the 'last', the 'chosen' or the 'best_3d' network.

        Numbers are float, NaN where the cell is empty; distances are in `unit`, which their names have lost. What an
        old table calls ASSD has its name of today, MASD, and the ASSD is NaN.
        """
        columns = {name: f"{name}_{self.unit}" if name in WITH_UNIT else name for name in PATIENT_COLUMNS}
        if self.has_old_assd:
            columns["masd"] = columns.pop("assd")
        scores = [column for name, column in columns.items() if name in SCORES]
        read = {column: PATIENT_COLUMNS[name] for name, column in columns.items()}
        rows = self._table(PATIENTS[self.standing_for(which)], read, may_lack=scores)
        known = [{name: row[column] for name, column in columns.items() if column in row} for row in rows]
        return [{name: row.get(name, float("nan")) for name in PATIENT_COLUMNS} for row in known]

    @cached_property
    def has_old_assd(self) -> bool:
        """Whether its tables are of the time when the mean of the two directed means was called ASSD, not MASD."""
        return bool(_old_names(next(csv.reader(io.StringIO(self.text(PATIENTS["last"]))), [])))

    def classes(self, which: str) -> list[dict[str, Any]]:
        """One row per class of that network, of a run that is scored `by_iou`: class, name, iou, intersection, union.

        The counts are pixels of all images together; iou is NaN where the class is neither true nor predicted.
        """
        return self._table(CLASSES[self.standing_for(which)], CLASS_COLUMNS)

    @property
    def metric_axis(self) -> list[int]:
        """The classes that the run's averages are over."""

        def read(text: str) -> list[int]:
            chosen = read_literal(text) or list(range(1, self.n_class))
            if not fits(chosen, Sequence[int]) or not set(chosen) <= set(range(self.n_class)):
                raise ValueError(f"expected classes, 0..{self.n_class - 1}")
            return list(chosen)

        return self.param("metric_axis", "[]", read)

    @property
    def ignore(self) -> int | None:
        """The label of the ground truth whose pixels count nowhere."""

        def read(text: str) -> int | None:
            label = read_literal(text)
            if not fits(label, int | None):
                raise ValueError("expected a label, or None")
            return label

        return self.param("ignore", "None", read)

    def epoch(self, which: str) -> int:
        """Number of the last epoch, the chosen or the best one; -1 where a network before the first was chosen."""
        last, which = int(self.metrics["epoch"].iloc[-1]), self.standing_for(which)
        if which == "last":
            return last
        if which == "chosen":
            name, number = f"{SELECTION}.csv", self.selection.chosen.epoch - 1
        else:
            name, number = "3dbestepoch.txt", self._best_epoch()
        if number > last:
            raise UserError(f"{self._file(name)} names epoch {number}, and the log has 0..{last}; {AGAIN}.")
        return number

    def _best_epoch(self) -> int:
        number = re.search(r"\d+", self.text("3dbestepoch.txt"))
        if not number:
            raise UserError(f"{self._file('3dbestepoch.txt')} should say 'epoch, 3D Dice'; it holds no number.")
        return int(number[0])

    def is_alarming(self, which: str) -> bool:
        """Whether the collapse alarm of an adaptation rang in this epoch."""
        table = self.metrics
        return "alarms" in table and bool((table.loc[table["epoch"] == self.epoch(which), "alarms"] > 0).any())

    def only_class(self, which: str) -> int | None:
        """The class that the network of this epoch gives to every pixel; None where it predicts several, as it should.

        None, too, where nothing else is there to be predicted, or where no sizes were noted.
        """
        epoch = self.epoch(which)
        if epoch < 0 or not (self.folder / "val_sizes.npy").is_file():
            return None
        predicted = np.flatnonzero(self.array("val_sizes.npy")[epoch].sum(0))
        if len(predicted) != 1:
            return None
        known = (self.folder / "val_gt_sizes.npy").is_file()
        true = np.flatnonzero(self.array("val_gt_sizes.npy").sum(0)) if known else []
        return None if [*true] == [*predicted] else int(predicted[0])

    def array(self, name: str) -> np.ndarray:
        """One of the raw arrays, such as val_sizes.npy (epochs, slices, K)."""
        if name.startswith(SCORED) and not (self.folder / name).is_file():
            score = Path(name).stem.removeprefix(SCORED)
            flags = f"{score.removeprefix(NATIVE)} --native" if score.startswith(NATIVE) else score
            raise UserError(
                f"{self.folder / name} is missing; make it: python score_masks.py --run {for_shell(self.folder)} "
                f"--score {flags}."
            )
        path = self._file(name)
        self._must_name_its_score(path)
        with reading(path, AGAIN):
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "fiub":
                raise ValueError(f"it holds {array.dtype}, no numbers")
            self._must_have_its_shape(name, array)
        return array

    def _must_have_its_shape(self, name: str, array: np.ndarray) -> None:
        """Raises ValueError for a raw array whose axes are not those that main.py writes."""
        known = {"n_epoch": self.n_epoch, "K": self.n_class}
        axes = SHAPES.get(name, array.shape)
        if len(axes) != array.ndim or any(known.get(axis, n) != n for axis, n in zip(axes, array.shape, strict=True)):
            raise ValueError(f"its shape is {array.shape}, expected ({', '.join(axes)}), {known}")

    def _must_name_its_score(self, path: Path) -> None:
        """Raises UserError for an array called ASSD from the time when ASSD meant what is now MASD."""
        if not (path.name.startswith(SCORED) and path.stem.endswith("assd")):
            return
        table = path.with_suffix(".csv")
        if not (table.is_file() and table.read_text(encoding="utf-8").startswith("score,")):
            raise UserError(
                f"{path} was made when ASSD was the mean of the two directed means, which is called MASD now; remove "
                f"it and make it again: python score_masks.py --run {for_shell(self.folder)} --score assd."
            )

    def class_means(self, name: str, classes: Sequence[int]) -> np.ndarray:
        """(epochs, slices or patients) mean over these classes of a raw array, NaN left out."""
        array = self.array(name)
        if array.ndim != 3 or array.shape[2] != self.n_class:
            raise UserError(
                f"{self.folder / name} has the shape {array.shape}; a mean over classes needs (epochs, slices or "
                f"patients, {self.n_class}), as val_dice.npy has."
            )
        if wrong := [k for k in classes if not 0 <= k < self.n_class]:
            raise UserError(f"{self.folder} has no class {wrong[0]}; its classes are 0..{self.n_class - 1}.")
        return np.stack([pd.DataFrame(epoch).mean(axis=1) for epoch in array[:, :, list(classes)]])

    def counted_pixels(self, true: np.ndarray) -> np.ndarray:
        """(W, H) class numbers -> (W, H) bool: which pixels of a ground truth count, all but those to be ignored."""
        return np.full(true.shape, True) if self.ignore is None else true != self.ignore

    @cached_property
    def names(self) -> list[str]:
        """The slices that the run was evaluated on."""
        return self.text("val_names.txt").removesuffix("\n").split("\n")

    def _table(
        self, name: str, columns: Mapping[str, Callable[[str], Any]], may_lack: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """The rows of a csv file; `columns`: name -> how to read a cell.

        may_lack: columns that a run of before had not, as the score did not exist; its rows are without them
        """
        path, again = self._file(name), "evaluate the run again"
        with reading(path, again):
            rows = list(csv.DictReader(io.StringIO(self.text(name), newline="")))
        missing = [column for column in columns if rows and column not in rows[0]]
        lost = [column for column in missing if column not in may_lack]
        if lost or not rows:
            what = f"lacks the columns {', '.join(lost)}" if lost else "has no row in it"
            raise UserError(f"{path} {what}; {again}.")
        with reading(path, again):
            if any(None in row.values() for row in rows):
                raise ValueError("a line has fewer cells than the first one, as where a file is torn")
            known = {column: read for column, read in columns.items() if column not in missing}
            return [{column: read(from_cell(row[column])) for column, read in known.items()} for row in rows]

    def text(self, name: str) -> str:
        path = self._file(name)
        with reading(path, AGAIN):
            return path.read_text(encoding="utf-8")

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file() and self.provenance.get("pretraining"):
            raise UserError(f"{self.folder} is a pre-training, which has no scores; name the runs that start from it.")
        if not path.is_file() and not self.scored:
            raise UserError(
                f"{self.folder} has no {name}: it was evaluated without ground truth, so there are no scores and no "
                "best epoch; its log has loss, entropy and sizes."
            )
        if not path.is_file():
            raise UserError(f"{path} is missing: {self.folder} is not a finished run; train it to its end.")
        return path


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders; raises one UserError that lists every folder that is none."""
    runs, faults = [], []
    for folder in map(Path, folders):
        try:
            runs.append(open_run(folder))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(" ".join(faults))
    if twice := doubled(run.name for run in runs):
        raise UserError(f"Runs are told apart by their folder's name; given twice: {', '.join(twice)}.")
    return runs


def open_run(folder: Path) -> Run:
    """Reads and checks provenance.json."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; expected the folder of a finished run, results/<set>/<run>.")
    path = folder / "provenance.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder} is not a finished run; train it to its end.")
    provenance = read_json(path, AGAIN)
    with reading(path, AGAIN):
        if not provenance["dataset"]["path"] or int(provenance["n_class"]) < 1 or int(provenance["n_epoch"]) < 0:
            raise ValueError("no data set or no class")
        if int(provenance["n_class"]) > MOST_CLASSES:
            raise ValueError(f"{provenance['n_class']} classes, and masks hold {MOST_CLASSES} at most")
        if int(provenance["n_epoch"]) > MOST_EPOCHS:
            raise ValueError(f"{provenance['n_epoch']} epochs, of which a run has {MOST_EPOCHS} at most")
        told = {**provenance["dataset"], **provenance}
        if wrong := [key for key, kinds in KINDS.items() if key in told and not isinstance(told[key], kinds)]:
            raise ValueError(f"{', '.join(f'{key} is {told[key]!r}' for key in wrong)}")
        if not 0 <= told.get("nsd_tolerance", 0) < float("inf"):
            raise ValueError(f"nsd_tolerance is {told['nsd_tolerance']}, and no distance")
    return Run(folder, provenance)


def unique(runs: Sequence[Run], read: Callable[[Run], Any]) -> list[Any]:
    """What the runs say, each answer once, in the order of the runs."""
    return list(dict.fromkeys(read(run) for run in runs))
