"""How a network of a run was chosen, with few labels or none, read back from what the choice wrote down."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from processes.quoting import from_cell
from utils import counted, fits

FACTS = ("candidate", "epoch", "chosen", "gate", "taken_by", "labelled", "seconds")  # columns of no validator


@dataclass(frozen=True)
class Candidate:
    """A network that could be chosen.

    name     'source', 'refresh' (the source network, its batch-norm statistics re-estimated) or 'epoch 5'
    epoch    the epochs that it has behind it; 0 before the first step
    gate     why it was held back; '' where it was not
    scores   validator -> score, higher is better, NaN where it says nothing
    """

    name: str
    epoch: int
    gate: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """What a run chose from, in the order in which it was listed, what it chose, and a paragraph that says why.

    labelled   the patients whose labels chose; none where it was chosen without labels
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    reason: str
    labelled: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """'without labels', or 'with 2 labelled patients'."""
        return how_chosen(len(self.labelled))

    @property
    def validators(self) -> list[str]:
        """The names of all that gave scores."""
        return list(self.chosen.scores)


def how_chosen(labelled: int) -> str:
    """'without labels', or 'with 2 labelled patients'."""
    return f"with {counted(labelled, 'labelled patient')}" if labelled else "without labels"


def parse_selection(table: str, reason: str) -> Selection:
    """The selection that the text of a selection.csv tells; raises ValueError where it tells none."""
    rows = list(csv.DictReader(io.StringIO(table, newline=""), strict=True))
    if not rows or None in rows[0] or not {"candidate", "epoch", "chosen", "gate"} <= rows[0].keys():
        raise ValueError("expected a row a candidate, with the columns candidate, epoch, chosen and gate")
    candidates = tuple(map(_candidate, rows))
    chosen = [one for one, row in zip(candidates, rows, strict=True) if row["chosen"] == "1"]
    if len(chosen) != 1:
        raise ValueError(f"{len(chosen)} of its candidates are chosen, and one should be")
    return Selection(candidates, chosen[0], reason.strip(), _labelled(rows[0].get("labelled") or "[]"))


def _labelled(cell: str) -> tuple[str, ...]:
    names = json.loads(from_cell(cell))
    if not fits(names, Sequence[str]):
        raise ValueError("expected a list of the patients whose labels chose")
    return tuple(names)


def _candidate(row: Mapping[str, str]) -> Candidate:
    if None in row or None in row.values():
        raise ValueError("its rows have not as many cells as there are columns")
    if (epoch := int(row["epoch"])) < 0:
        raise ValueError(f"its candidate {row['candidate']} has {epoch} epochs behind it")
    scores = {name: float(cell) if cell else math.nan for name, cell in row.items() if name not in FACTS}
    return Candidate(from_cell(row["candidate"]), epoch, from_cell(row["gate"]), scores)
