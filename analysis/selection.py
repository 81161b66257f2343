"""How a network of a run was chosen without labels, read back from what the choice wrote down."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

from processes.quoting import from_cell

FACTS = ("candidate", "epoch", "chosen", "gate", "taken_by", "seconds")  # the columns that are no validator's


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
    """What a run chose from, in the order in which it was listed, what it chose, and a paragraph that says why."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    reason: str

    @property
    def validators(self) -> list[str]:
        """The names of all that gave scores."""
        return list(self.chosen.scores)


def parse_selection(table: str, reason: str) -> Selection:
    """The selection that the text of a selection.csv tells; raises ValueError where it tells none."""
    rows = list(csv.DictReader(io.StringIO(table, newline=""), strict=True))
    if not rows or None in rows[0] or not {"candidate", "epoch", "chosen", "gate"} <= rows[0].keys():
        raise ValueError("expected a row a candidate, with the columns candidate, epoch, chosen and gate")
    candidates = tuple(map(_candidate, rows))
    chosen = [one for one, row in zip(candidates, rows, strict=True) if row["chosen"] == "1"]
    if len(chosen) != 1:
        raise ValueError(f"{len(chosen)} of its candidates are chosen, and one should be")
    return Selection(candidates, chosen[0], reason.strip())


def _candidate(row: Mapping[str, str]) -> Candidate:
    if None in row or None in row.values():
        raise ValueError("its rows have not as many cells as there are columns")
    if (epoch := int(row["epoch"])) < 0:
        raise ValueError(f"its candidate {row['candidate']} has {epoch} epochs behind it")
    scores = {name: float(cell) if cell else math.nan for name, cell in row.items() if name not in FACTS}
    return Candidate(from_cell(row["candidate"]), epoch, from_cell(row["gate"]), scores)
