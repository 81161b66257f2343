"""Which runs of a table are worse than the network that they adapt, as it came."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from analysis.run import Run
from metrics import SHOWN


class Scored(Protocol):
    """One run at one of its epochs."""

    run: Run
    worse_than: str  # the name of the run that it should not be worse than, if it is

    @property
    def images(self) -> frozenset[str]:
        """The patients or pictures that the run was scored on."""

    @property
    def score(self) -> float:
        """The mean Dice or IoU of the run."""


Entry = TypeVar("Entry", bound=Scored)


def find_harm(block: Sequence[Entry], lower: str) -> None:
    """Fills `worse_than` of each entry that scores lower than its start on the same images of the same set."""
    for entry in block:
        start = start_of(entry, block, lower)
        if start and start.score - entry.score > SHOWN:
            entry.worse_than = start.run.name


def start_of(entry: Entry, block: Sequence[Entry], lower: str) -> Entry | None:
    """The run without adaptation that has the same weights to start from; else the one that is named `lower`."""
    beside = [other for other in block if other is not entry and other.images == entry.images]
    beside = [other for other in beside if other.run.set_name == entry.run.set_name]
    same = [other for other in beside if other.run.adapts_nothing and other.run.start == entry.run.start != ""]
    return next(iter([*same, *(other for other in beside if other.run.name == lower)]), None)


def harm_note(block: Sequence[Entry], score: str) -> list[str]:
    """What the mark means, where it is in the table."""
    names = dict.fromkeys(entry.worse_than for entry in block if entry.worse_than)
    if not names:
        return []
    return [
        f"Worse than {' or '.join(names)}: the mean {score} is lower than that of the run named, on the same images, "
        f"by more than {SHOWN:g}. An adaptation so marked did harm: the network was better as it came."
    ]


def on_other_images(entries: Sequence[Scored]) -> bool:
    """Whether two runs on one set were scored on different images of it; those on another set carry a mark."""
    seen = {(entry.run.set_name, entry.images) for entry in entries}
    return len(seen) > len({name for name, _ in seen})
