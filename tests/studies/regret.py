"""The tables of a study of choices: what each way to choose loses against the best candidate, and when it harms."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from processes.quoting import csv_text
from selection.candidates import SOURCE
from selection.decision import by_patient
from selection.validators import VALIDATORS, middle
from tests.studies.pairs import EVERY, METHODS, PAIRS, PRIORS
from tests.studies.records import Record
from utils import atomic_write

WITH_A_PRIOR = ("sfda", "sfda_notags")  # what the priors that bend stand beside
HARM = 1  # points of Dice below the source network that count as harm


@dataclass(frozen=True)
class Run:
    """A record, and which pair, seed and method it is of."""

    pair: str
    seed: int
    method: str
    record: Record

    @property
    def points(self) -> np.ndarray:
        """(C + 1,) Dice in points, 0 to 100, that of the source network on images as they are last."""
        return 100 * self.record.dice

    @property
    def source(self) -> float:
        return float(self.points[-1])

    @property
    def best(self) -> float:
        return float(self.points.max())


def read_runs(out: Path) -> list[Run]:
    """The records of a study, in the order of PAIRS and METHODS."""
    found = []
    for pair in PAIRS:
        for folder in sorted((out / pair).glob("*"), key=lambda path: path.name.zfill(9)):
            files = [(method, folder / f"{method}.npz") for method in EVERY]
            found += [Run(pair, int(folder.name), name, Record.read(path)) for name, path in files if path.is_file()]
    return found


# ------------------------------------------------------------------------------------------------- ways to choose


def as_chosen(record: Record) -> int:
    """By the rule as it is now, whichever chose when the record was made."""
    return record.choice.place


def the_last(record: Record) -> int:
    return int(np.argmax(record.epochs))


def the_source(record: Record) -> int:
    """On images as they are."""
    return -1


def the_start(record: Record) -> int:
    """The source network on images as --match_source auto shows them."""
    return list(record.names).index(SOURCE)


def by_validator(name: str, gated: bool) -> Callable[[Record], int]:
    """The candidate with the highest score of one validator; behind the gate, or of all."""

    def place(record: Record) -> int:
        scores = middle(by_patient(name, record.values[name], record.evidence["expected"] > 0))
        if gated:
            scores = np.where(record.may_be_chosen, scores, np.nan)
        return int(np.nanargmax(scores)) if np.isfinite(scores).any() else list(record.names).index(SOURCE)

    return place


WAYS: dict[str, Callable[[Record], int]] = {
    "**chosen**": as_chosen,
    "source network": the_source,
    "source network, matched": the_start,
    "last epoch": the_last,
    "entropy, no gate": by_validator("entropy", gated=False),
    **{f"{name}, behind the gate": by_validator(name, gated=True) for name in VALIDATORS if name != "source"},
}


# ------------------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; floats with one decimal."""
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(runs: Sequence[Run]) -> str:
    """A row a way to choose: what it loses against the best candidate, and what it does to the source network."""
    rows = []
    for name, way in WAYS.items():
        places = [way(run.record) for run in runs]
        lost = np.array([run.best - run.points[place] for run, place in zip(runs, places, strict=True)])
        gain = np.array([run.points[place] - run.source for run, place in zip(runs, places, strict=True)])
        rows.append((name, lost.mean(), lost.max(), int((gain < -HARM).sum()), max(0.0, -gain.min()), gain.mean()))
    rows.sort(key=lambda row: row[1])
    return table(("chosen by", "mean regret", "worst regret", "harms", "worst harm", "mean gain"), rows)


def by_pair(runs: Sequence[Run]) -> str:
    """A row a pair and method, means over seeds: the source network, the last, the chosen and the best candidate."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.pair, run.method].append(run)
    rows = []
    for (pair, method), members in groups.items():
        chosen = np.array([run.points[as_chosen(run.record)] for run in members])
        last = np.mean([run.points[the_last(run.record)] for run in members])
        source, best = (np.array([getattr(run, name) for run in members]) for name in ("source", "best"))
        worst = (best - chosen).max()
        rows.append((pair, method, len(members), source.mean(), last, chosen.mean(), best.mean(), worst))
    return table(("pair", "method", "seeds", "source", "last", "**chosen**", "best", "worst regret"), rows)


def by_method(runs: Sequence[Run]) -> str:
    """A row a method, means over the pairs and seeds on which all of these methods were tried."""
    methods = list(dict.fromkeys(run.method for run in runs))
    found = {(run.pair, run.seed, run.method): run for run in runs}
    keys = dict.fromkeys((run.pair, run.seed) for run in runs)
    shared = [key for key in keys if all((*key, method) in found for method in methods)]
    if not shared:
        return ""
    rows = []
    for method in methods:
        own = [found[(*key, method)] for key in shared]
        points = np.array(
            [[run.source, *(run.points[way(run.record)] for way in (the_last, as_chosen)), run.best] for run in own]
        )
        lost = points[:, 0] - points[:, 1]
        rows.append((method, *points.mean(0), int((lost > HARM).sum()), max(0.0, lost.max())))
    words = ("method", "source", "last", "**chosen**", "best", "last harms", "worst harm of last")
    return f"{len(shared)} pairs and seeds\n\n{table(words, rows)}"


def candidates(runs: Sequence[Run]) -> Iterator[list[object]]:
    """Rows of candidates.csv: what each validator says of each candidate, and its Dice."""
    yield ["pair", "seed", "method", "candidate", "epoch", "chosen", "gate", "dice", *VALIDATORS]
    for run in runs:
        record = run.record
        expected, choice = record.evidence["expected"] > 0, record.choice
        scores = [middle(by_patient(name, record.values[name], expected)) for name in VALIDATORS]
        for place, (name, epoch, gate) in enumerate(zip(record.names, record.epochs, choice.gate, strict=True)):
            told = [run.pair, run.seed, run.method, name, epoch, int(place == choice.place), gate]
            yield [*told, f"{record.dice[place]:.4f}", *(f"{score[place]:.4g}" for score in scores)]


def write_tables(out: Path) -> None:
    """Writes OUT/candidates.csv and OUT/tables.md out of the records that are there."""
    runs = read_runs(out)
    if not runs:
        return
    with atomic_write(out / "candidates.csv", "w") as file:
        file.write(csv_text(list(candidates(runs))))
    parts = {"pairs": [run for run in runs if not PAIRS[run.pair].stress and run.method in METHODS]}
    parts["made to fail"] = [run for run in runs if PAIRS[run.pair].stress]
    words = [
        f"{len(own)} adaptations, {name}\n\n{summary(own)}\n\n{by_pair(own)}" for name, own in parts.items() if own
    ]
    bent = [run for run in runs if not PAIRS[run.pair].stress and run.method in (*WITH_A_PRIOR, *PRIORS)]
    if {run.method for run in bent} & set(PRIORS):
        words.append(f"priors: {by_method(bent)}")
    with atomic_write(out / "tables.md", "w") as file:
        file.write("\n\n".join(words) + "\n")
    print("\n\n".join(words))
