"""What is kept of one source network of a study of recipes, before anything adapts it, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selection.candidates import REFRESH, SOURCE, name_of_refresh
from tests.studies.pairs import USUAL
from tests.studies.records import Record
from utils import atomic_write


@dataclass(frozen=True)
class Start:
    """One source network before anything adapts it: Dice in points of each validation patient, mean over classes.

    own       (Q,) on its own site
    shown     (L, P) on the target, in each of LOOKS
    decided   which of these --match_source auto takes
    upper     (P,) of the last epoch of a network that learnt from the labelled target
    """

    own: np.ndarray
    shown: np.ndarray
    decided: int
    upper: np.ndarray

    @property
    def as_is(self) -> np.ndarray:
        return self.shown[0]

    @property
    def found(self) -> np.ndarray:
        return self.shown[self.decided]

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def read(cls, path: Path) -> "Start":
        with np.load(path, allow_pickle=False) as file:
            whole = dict(file)
        return cls(**whole | {"decided": int(whole["decided"])})


def records_of(out: Path, recipe: str, company: Sequence[str] | None = None) -> Path:
    """The folder that adaptations are kept in: of the usual source network, of a recipe's, or of a start chosen so."""
    if company:
        return out / "recipes" / f"beside {' '.join(company)}"
    return out if recipe == USUAL else out / "recipes" / recipe


def start_file(out: Path, recipe: str, name: str, seed: int) -> Path:
    return out / "recipes" / recipe / name / str(seed) / "start.npz"


def among_file(out: Path, name: str, seed: int) -> Path:
    return out / "recipes" / "among" / name / f"{seed}.npz"


def patient_points(dice: np.ndarray) -> np.ndarray:
    """(P,) Dice in points of each patient, the mean over the foreground classes, out of (P, K)."""
    return 100 * np.nanmean(dice[:, 1:], axis=1)


# --------------------------------------------------------------------------------- chosen among several source networks


def beside(record: Record, company: Sequence[str]) -> Record:
    """Of all source networks of a pair: the usual one and those of these recipes, each with its refresh."""
    names = (SOURCE, *company)
    return record.among({*names, *map(name_of_refresh, names)})


def start_of(record: Record) -> str:
    """The network that `choose.py --start` takes: a recipe or its refresh; SOURCE is the usual one."""
    taken = str(record.names[record.start.place])
    return SOURCE if taken == REFRESH else taken
