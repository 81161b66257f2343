"""A finished run's folder, read back: what plots and reports know of a run.

Nothing here opens the data set except `Run.slices`, so a folder out of an archive is as good as a fresh one.
"""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from dataloader import SliceSet, open_slices, parse_folders
from metrics import DISTANCES, SCORES
from utils import UserError, nearest, read_literal

PATIENT_FILES = {"last": "patients_last.csv", "best_3d": "patients_best_3d.csv"}
PICTURE_FOLDERS = {"last": "last_epoch", "best_3d": "best_epoch_3d"}
WITH_UNIT = (*DISTANCES, "diagonal")
PATIENT_COLUMNS = ("patient", "class", "outcome", *SCORES, "predicted", "true", "diagonal")
DEFAULT_CSV = "*_target_metrics.csv"


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
    def set_name(self) -> str:
        return str(self.provenance["dataset"].get("name") or Path(self.provenance["dataset"]["path"]).name)

    @property
    def phantom(self) -> bool:
        return bool(self.provenance["dataset"].get("phantom"))

    @property
    def n_class(self) -> int:
        return int(self.provenance["n_class"])

    @property
    def unit(self) -> str:
        """Of distances: mm, or vox where the set states no spacing."""
        return self.provenance.get("distance_unit", "mm")

    def class_name(self, number: int) -> str:
        """As the data set calls the class, or 'class 2'."""
        names = self.provenance.get("class_names") or self.provenance["dataset"].get("class_names") or {}
        named = dict(enumerate(names)) if isinstance(names, list) else {int(k): v for k, v in names.items()}
        return str(named.get(number) or f"class {number}")

    @cached_property
    def params(self) -> dict[str, str]:
        """The lines of params.txt."""
        path = self._file("params.txt")
        pairs = (line.split(": ", 1) for line in path.read_text(encoding="utf-8").splitlines())
        return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The log, one row an epoch."""
        named = self.provenance.get("csv")
        found = [self.folder / named] if named else sorted(self.folder.glob(DEFAULT_CSV))
        path = self._file(found[0].name if found else DEFAULT_CSV)
        try:
            table = pd.read_csv(path).apply(pd.to_numeric)
        except (ValueError, pd.errors.ParserError) as error:
            raise UserError(f"{path} is not a table of numbers: {error}. Train the run again.") from error
        if table.empty or "epoch" not in table:
            raise UserError(f"{path} has no epoch in it; train the run to its end.")
        return table

    def column(self, name: str) -> pd.Series:
        """One column of the log."""
        if name not in self.metrics:
            raise UserError(f"The log of {self.folder} has no column '{name}'.{nearest(name, self.metrics.columns)}")
        return self.metrics[name]

    def patients(self, which: str) -> list[dict[str, Any]]:
        """One row per patient and foreground class of the 'last' or the 'best_3d' epoch.

        Numbers are float, NaN where the cell is empty; distances are in `unit`, which their names have lost.
        """
        path = self._file(PATIENT_FILES[which])
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: f"{name}_{self.unit}" if name in WITH_UNIT else name for name in PATIENT_COLUMNS}
        lost = [column for column in columns.values() if rows and column not in rows[0]]
        if lost or not rows:
            what = f"lacks the columns {', '.join(lost)}" if lost else "has no patient in it"
            raise UserError(f"{path} {what}; evaluate the run again.")
        try:
            return [{name: _value(name, row[column]) for name, column in columns.items()} for row in rows]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is broken ({error}); evaluate the run again.") from error

    @property
    def metric_axis(self) -> list[int]:
        """The classes that the run's averages are over."""
        chosen = read_literal(self.params.get("metric_axis", "[]"))
        return [int(k) for k in chosen or range(1, self.n_class) if k]

    def epoch(self, which: str) -> int:
        """Number of the last epoch, or of the one with the best 3D Dice."""
        if which == "last":
            return int(self.metrics["epoch"].iloc[-1])
        path = self._file("3dbestepoch.txt")
        number = re.search(r"\d+", path.read_text(encoding="utf-8"))
        if not number:
            raise UserError(f"{path} should say 'epoch, 3D Dice'; it holds no number.")
        return int(number[0])

    def array(self, name: str) -> np.ndarray:
        """One of the raw arrays, such as val_sizes.npy (epochs, slices, K)."""
        path = self._file(name)
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); train the run again.") from error

    # ------------------------------------------------------------------------------------------ pictures

    def picture(self, which: str, name: str) -> np.ndarray:
        """(W, H) class numbers predicted on a slice; `which` is 'last', 'best_3d' or a folder such as iter004."""
        return read_mask(self.folder / PICTURE_FOLDERS.get(which, which) / "val" / f"{name}.png")

    def entropy(self, name: str) -> np.ndarray:
        """(W, H) entropy of the last network on a slice, 1 where every class is equally likely."""
        return read_mask(self.folder / "ent_map" / f"{name}.png") / 255

    @property
    def has_entropy(self) -> bool:
        return (self.folder / "ent_map").is_dir()

    def epochs_saved(self) -> list[str]:
        """Names of the folders iter000, iter001, …, in order."""
        return sorted((path.parent.name for path in self.folder.glob("iter*/val")), key=lambda name: int(name[4:]))

    def slices(self, data: Path | None = None) -> SliceSet:
        """The slices that the run was evaluated on, with their ground truth.

        `data`: where the set lies now; else where it lay when the run was made. Raises UserError when it is not there.
        """
        params = self.params
        split = next((name for name in ("test", "train") if params.get(f"on{name}", "0") not in ("0", "False")), "val")
        root = data or Path(self.provenance["dataset"]["path"])
        if not (root / split).is_dir():
            raise UserError(
                f"The pictures of {self.folder} are drawn over the images it was evaluated on, and {root / split} is "
                "not there. Make the data set again, or name its folder with --data."
            )
        listed = [params.get(key, "") for key in ("val_target_folders", "target_folders")]
        text = next((text for text in listed if text.startswith("[")), "")
        folders = parse_folders(text, len(read_literal(text)) if text else 0)[:2]
        slices = open_slices(root, split, folders, self.n_class, params.get("grp_regex", ""))
        seen = set(self._file("val_names.txt").read_text(encoding="utf-8").split("\n"))
        rows = [row for row, name in enumerate(slices.names) if name in seen]
        if not rows:
            raise UserError(f"{root / split} holds none of the slices in {self.folder / 'val_names.txt'}.")
        return slices.keep(rows)

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: {self.folder} is not a finished run; train it to its end.")
        return path


def _value(key: str, text: str) -> str | int | float:
    if key in ("patient", "outcome"):
        return text
    if key == "class":
        return int(text)
    return float(text) if text else float("nan")


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
    names = [run.name for run in runs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"Runs are told apart by their folder's name; given twice: {', '.join(doubled)}.")
    return runs


def open_run(folder: Path) -> Run:
    """Reads and checks provenance.json."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; expected the folder of a finished run, results/<set>/<run>.")
    path = folder / "provenance.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder} is not a finished run; train it to its end.")
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
        if not provenance["dataset"]["path"] or int(provenance["n_class"]) < 1:
            raise ValueError("no data set or no class")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); train the run again.") from error
    return Run(folder, provenance)


def read_mask(path: Path) -> np.ndarray:
    """(W, H) grey levels of a saved prediction (class numbers) or entropy map (0..255)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L") if image.mode == "RGB" else image)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; run it again with --saveim True (--entmap True for entropy).") from error
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read ({error}); run it again.") from error


def unique(runs: Sequence[Run], read: Callable[[Run], Any]) -> list[Any]:
    """What the runs say, each answer once, in the order of the runs."""
    return list(dict.fromkeys(read(run) for run in runs))
