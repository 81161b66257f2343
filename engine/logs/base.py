"""What a log has to do that another program shows: the registry, what it is told, and what must be installed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from processes.errors import UserError
from utils import Registry, doubled, listing

LOGS = Registry("log", str.lower)


@dataclass(frozen=True)
class About:
    """What a log says of its run."""

    name: str  # of the run's folder when it is whole
    set_name: str
    parameters: Mapping[str, str]  # flag -> its value
    tags: Mapping[str, str]  # commit, set, seed, …


@dataclass(frozen=True)
class Entry:
    """An epoch that is done."""

    epoch: int  # as in the csv, the first is 0
    values: Mapping[str, float]  # column of the csv -> its cell, where that is not empty
    time: float  # when it was over, in seconds since 1970
    picture: Path | None  # of a few slices, where one was drawn


class Log(ABC):
    """A log in a folder of its own within the folder of its run.

    It is told each epoch once, in order, and after the epoch's checkpoint is on the disk. So after a kill it may lack
    epochs, which it is told then. It holds one too many only where the run went back to an older checkpoint.
    """

    packages: tuple[str, ...]  # that it needs, as they are imported
    install: str  # what pip is told to install for it

    def __init__(self, folder: Path, about: About) -> None:
        """folder: of the log, which this makes."""
        self.folder, self.about = folder, about

    @abstractmethod
    def begin(self, done: int) -> int:
        """Opens the log, a new one or that of a run with so many epochs done; returns how many of them it holds.

        What it holds of later epochs, it forgets.
        """

    @abstractmethod
    def add(self, entry: Entry) -> None:
        """Writes an epoch down; it is on the disk at the end."""

    @abstractmethod
    def end(self, place: Path) -> None:
        """Closes the log of a whole run. From now on its folder may be moved to `place`."""


def names_of(text: str) -> list[str]:
    """The logs that --log names. Raises UserError for an unknown one, and for one whose package is not installed."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if twice := doubled(names):
        raise UserError(f"--log names {listing(twice)} twice; name each log once.")
    for name in names:
        check_installed(name, LOGS[name].packages, LOGS[name].install)
    return names


def check_installed(name: str, packages: Sequence[str], install: str) -> None:
    """Raises UserError where a log needs a package that is not there."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--log {name} needs {listing(missing)}, which the environment does not have: pip install {install}, or "
            f"leave {name} out of --log."
        )
