"""A study's folder, read back: its runs, their scores by patient and seed, and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run import Run, open_run
from analysis.statistics.intervals import Interval, crossed_interval
from analysis.tables.facts import marks
from metrics import BOUNDS, DISTANCES, SCORES, average_classes
from processes.errors import UserError
from study.asking import Asked, read_asked
from utils import listing, nearest

NETWORKS = ("last", "chosen", "best_3d")  # the last epoch, the one chosen without labels, the oracle
HEADLINE = "chosen"  # the network that a study is about
COUNTS = ("misses", "false_structures")
PENALISED = tuple(f"{score}_penalised" for score in DISTANCES)  # with the diagonal for what was missed
KNOWN = (*SCORES, *PENALISED, *COUNTS)
IOU, ALL_IMAGES = "iou", "all images"  # of runs that are scored by all images together
Key = tuple[str, int]  # a row and a seed


@dataclass(frozen=True)
class Study:
    """What is there of a study.

    runs     row and seed -> its run, where it is finished, whole, and scored on the same patients as the others
    faults   one line each, for a person: a run that is missing, broken, of another seed or on other patients
    """

    folder: Path
    asked: Asked
    runs: Mapping[Key, Run]
    faults: tuple[str, ...]
    _entries: dict[tuple[Path, str], list[dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)
    _averages: dict[tuple[Path, str, tuple[int, ...]], list[dict[str, Any]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that were asked for, whether or not a run of them is there."""
        return self.asked.rows

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were asked for."""
        return self.asked.seeds

    @property
    def by_iou(self) -> bool:
        """Whether it is scored by the IoU of all images together: these count as one patient then."""
        return any(run.by_iou for run in self.runs.values())

    @property
    def score(self) -> str:
        """The score that heads its tables."""
        return IOU if self.by_iou else "dice"

    @property
    def score_name(self) -> str:
        return "IoU" if self.by_iou else "Dice"

    @property
    def known_scores(self) -> tuple[str, ...]:
        return (IOU,) if self.by_iou else KNOWN

    @property
    def unit(self) -> str:
        """What a line of a table of scores is."""
        return "set of images" if self.by_iou else "patient"

    def of_row(self, row: str) -> dict[int, Run]:
        """The runs of a row by their seed. Raises UserError for a row that the study has not."""
        if row not in self.rows:
            raise UserError(f"{self.folder} has no row '{row}'.{nearest(row, self.rows)}")
        return {seed: run for (name, seed), run in self.runs.items() if name == row}

    def images_of(self, row: str) -> str:
        """Which images the row was scored on: rows of the same images can be compared; '' where no run is there."""
        return next(map(images, self.of_row(row).values()), "")

    def patients(self, row: str) -> list[str]:
        """The patients of the images that the row was scored on, sorted; those are the same for all such rows."""
        runs = list(self.of_row(row).values())
        return sorted({entry["patient"] for run in runs for entry in self.entries(run, "last")})

    def scores(self, row: str, score: str, which: str = HEADLINE, classes: Sequence[int] | None = None) -> pd.DataFrame:
        """Patients (sorted) x seeds: a score of each, NaN where it is not known, as of a run that is not there.

        score     of metrics.SCORES, with `_penalised` behind a distance, or how many `misses` and `false_structures`
        which     the 'last' network, the 'chosen' one (the last where nothing was chosen) or the oracle, 'best_3d'
        classes   a patient's score is the mean over these, NaN left out; by default over the run's --metric_axis

        Runs that are scored by IoU have one patient, ALL_IMAGES, and the score 'iou'.
        """
        for name, known in ((score, self.known_scores), (which, NETWORKS)):
            if name not in known:
                raise UserError(f"A study knows no '{name}'.{nearest(name, known)}")
        columns = {seed: self._column(run, score, which, classes) for seed, run in self.of_row(row).items()}
        table = pd.DataFrame(columns, index=self.patients(row), columns=list(self.seeds), dtype=float)
        return table.rename_axis(index="patient", columns="seed")

    def chosen(self, row: str) -> pd.DataFrame | None:
        """What the study is about, (patients, seeds) scores of what the row chose; None where no run of it is there."""
        return self.scores(row, self.score) if row in self.rows and self.of_row(row) else None

    def interval(self, row: str, score: str, which: str = HEADLINE, classes: Sequence[int] | None = None) -> Interval:
        """The mean of `scores`, with its interval for other patients and other seeds."""
        return crossed_interval(self.scores(row, score, which, classes), bounds=BOUNDS.get(score, (0, math.inf)))

    def _column(self, run: Run, score: str, which: str, classes: Sequence[int] | None) -> dict[str, float]:
        wanted = tuple(run.metric_axis if classes is None else classes)
        key = (run.folder, which, wanted)
        if key not in self._averages:
            entries = [entry for entry in self.entries(run, which) if entry["class"] in wanted]
            self._averages[key] = averages(entries, run.by_iou)
        return {entry["patient"]: entry[score] for entry in self._averages[key]}

    def entries(self, run: Run, which: str) -> list[dict[str, Any]]:
        """What `entries_of` says of a network of one of the runs, read once."""
        key = (run.folder, which)
        if key not in self._entries:
            self._entries[key] = entries_of(run, which)
        return self._entries[key]


def averages(entries: Sequence[Mapping[str, Any]], by_iou: bool) -> list[dict[str, Any]]:
    """A line a patient: the means over the classes of these entries."""
    if not by_iou:
        return average_classes(entries)
    return [{"patient": ALL_IMAGES, IOU: float(pd.Series([entry[IOU] for entry in entries], dtype=float).mean())}]


def entries_of(run: Run, which: str) -> list[dict[str, Any]]:
    """The scores of a network: a patient and a class each, as in Run.patients; of all images together by IoU."""
    return [entry | {"patient": ALL_IMAGES} for entry in run.classes(which)] if run.by_iou else run.patients(which)


def images(run: Run) -> str:
    """The set, and the folder of it, that a run was scored on."""
    folder = run.provenance.get("image_folder")
    return f"{run.set_name}/{folder}" if folder else run.set_name


def open_study(folder: str | Path, asked: Asked | None = None) -> Study:
    """Reads what is there of a study. Raises UserError where none was asked for in this folder.

    asked: other rows of the same folder, in the place of those of study.json
    """
    folder = Path(folder)
    asked = asked or read_asked(folder)
    runs, faults = {}, []
    for seed in asked.seeds:
        for row in asked.rows:
            try:
                runs[row, seed] = _open(folder / f"seed{seed}" / row, seed)
            except UserError as error:
                faults.append(f"{called(row, seed)}: {error}")
    apart = dict(_on_other_patients(runs))
    faults += apart.values()
    return Study(folder, asked, {key: run for key, run in runs.items() if key not in apart}, tuple(faults))


def called(row: str, seed: int) -> str:
    """'sfda, seed 1'."""
    return f"{row}, seed {seed}"


def _open(folder: Path, seed: int) -> Run:
    """A finished run of this seed with all of its scores. Raises UserError saying what it lacks."""
    if not folder.is_dir():
        begun = folder.with_name(f"{folder.name}_tmp")
        raise UserError(f"not finished; {begun} is there" if begun.is_dir() else "not there")
    run = open_run(folder)
    if run.params.get("seed", str(seed)) != str(seed):
        raise UserError(f"trained with seed {run.params['seed']}, and lies in the folder of seed {seed}")
    axis, _ = run.metric_axis, run.metrics
    for which in NETWORKS:
        if not any(entry["class"] in axis for entry in entries_of(run, which)):
            raise UserError(f"it scored none of the classes {axis} of its --metric_axis")
        marks(run, which, [run])  # raises UserError where a file that every table asks is broken
    truth = _truth(run)
    for which in NETWORKS:
        if apart := sorted({patient for patient, *_ in _truth(run, which) ^ truth}):
            raise UserError(
                f"its {which} network is not scored on the same structures as its last one, as by {listing(apart)}"
            )
    return run


def _on_other_patients(runs: Mapping[Key, Run]) -> Iterator[tuple[Key, str]]:
    """The runs whose patients, or what is true of these, are not those of most runs on the same images, and why."""
    truths = {key: _truth(run) for key, run in runs.items()}
    for name in dict.fromkeys(map(images, runs.values())):
        keys = [key for key, run in runs.items() if images(run) == name]
        (usual, _), *_ = Counter(truths[key] for key in keys).most_common(1)
        for key in keys:
            if truths[key] != usual:
                yield key, f"{called(*key)}: left out, as {_difference(truths[key], usual)}; train it again"


Truth = frozenset[tuple[str, int, float]]


def _truth(run: Run, which: str = "last") -> Truth:
    """The patients, the classes, and how large each truly is in pixels or voxels, where that is told."""
    return frozenset((entry["patient"], entry["class"], entry.get("true", 0)) for entry in entries_of(run, which))


def _difference(truth: Truth, usual: Truth) -> str:
    mine, others = ({patient for patient, *_ in each} for each in (truth, usual))
    if lacking := sorted(others - mine):
        return f"it was not scored on {listing(lacking)}, as the other runs were"
    if more := sorted(mine - others):
        return f"it was scored on {listing(more)} too, and the other runs were not"
    return (
        f"its ground truth of {listing(sorted({patient for patient, *_ in truth ^ usual}))} is not that of the others"
    )
