"""The kinds of pictures that plot.py makes. A kind is a function in a file of this folder that `kind` enters here.

    @kind("sizes", "predicted, true and prior sizes", several=False)
    def plot_sizes(run: Run, out: Path) -> None: ...

adds `python plot.py sizes --run RUN --out FILE`; flags of its own are added by a function of the parser. The function
gets the runs, or the run, and those flags by name that its parameters name.
"""

import inspect
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.plots.canvas import EPOCHS
from analysis.run import Run
from analysis.tables.choice import blocks_of, headline
from metrics import SCORES

Draw = Callable[..., None]  # of the runs, or of one, and flags by name
AddFlags = Callable[[ArgumentParser], None]


@dataclass(frozen=True)
class Kind:
    """What draws it, what the help says of it, whether it is of several runs, and what adds its flags."""

    function: Draw
    help: str
    several: bool
    add_flags: AddFlags

    def draw(self, runs: Sequence[Run], flags: Mapping[str, Any]) -> None:
        """Draws these runs.

        flags: the value of every flag of plot.py; without --which it is the network that counts in their report
        """
        if "which" in flags:
            flags = {**flags, "which": flags["which"] or headline(blocks_of(runs))}
        _, *named = inspect.signature(self.function).parameters
        self.function(runs if self.several else runs[0], **{name: flags[name] for name in named})


KINDS: dict[str, Kind] = {}


def kind(name: str, help: str, *add_flags: AddFlags, several: bool = True) -> Callable[[Draw], Draw]:
    """Decorator: enters a function that draws, under this name."""

    def add_all(parser: ArgumentParser) -> None:
        for add in add_flags:
            add(parser)

    def enter(draw: Draw) -> Draw:
        KINDS[name] = Kind(draw, help, several, add_all)
        return draw

    return enter


# ---------------------------------------------------------------------------------------- flags that kinds share


def of_an_epoch(parser: ArgumentParser) -> None:
    """--which"""
    words = "best_3d reads target labels (default: chosen, where a run chose without labels; else last)"
    parser.add_argument("--which", choices=EPOCHS, help=words)


def of_one_class(parser: ArgumentParser) -> None:
    """--class"""
    parser.add_argument("--class", dest="only", type=int, help="one class instead of the mean of all")


def of_a_score(parser: ArgumentParser) -> None:
    """--score"""
    parser.add_argument("--score", choices=SCORES, default="dice")


def of_slices(parser: ArgumentParser) -> None:
    """--slices, --data"""
    parser.add_argument("--slices", dest="number", metavar="SLICES", type=int, default=3, help="how many")
    parser.add_argument("--data", type=Path, help="the set's folder, if it moved since the run")
