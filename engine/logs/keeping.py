"""The logs that a run keeps beside its csv (--log), each brought up to date after every checkpoint."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from engine.logs.base import LOGS, About, Entry, Log
from files.run_names import shown_name
from processes.errors import UserError
from processes.lock import finished


class Logs:
    """Tells each log what it lacks of the csv. So all hold the same numbers, and a kill makes none of them differ.

    A log that fails ends no run, which may train overnight: it is said once, and the log is opened anew after the next
    epoch.
    """

    def __init__(self, names: Sequence[str], folder: Path, csv: Path, about: About) -> None:
        """folder: of the run; csv: its log, of the epochs that are done."""
        self.folder, self.csv = folder, csv
        self.logs: dict[str, Log] = {name: LOGS[name](folder / name, about) for name in names}
        self.told: dict[str, int] = {}  # log -> how many epochs it holds; one that is not open is not here
        self.failed: set[str] = set()

    def begin(self, done: int) -> None:
        """Opens every log, and tells it the epochs that are done. Raises UserError where one cannot be opened."""
        for name in self.logs:
            try:
                self._tell(name, done)
            except Exception as fault:
                raise UserError(
                    f"--log {name} cannot write to {self.folder / name} ({fault}). Mend that, or leave {name} out of "
                    "--log; nothing of the run is lost."
                ) from fault

    def add(self, done: int) -> None:
        """Tells every log the epochs that it lacks of those that are done."""
        for name in self.logs:
            self._try(name, lambda name=name: self._tell(name, done))

    def end(self, done: int) -> None:
        """Closes the logs of a whole run."""
        self.add(done)
        for name in [*self.told]:
            self._try(name, lambda name=name: self.logs[name].end(finished(self.folder) / name))

    def _tell(self, name: str, done: int) -> None:
        log = self.logs[name]
        told = self.told.pop(name) if name in self.told else log.begin(done)
        for entry in self._entries(told, done):
            log.add(entry)
        self.told[name] = done

    def _entries(self, first: int, done: int) -> Iterator[Entry]:
        """The epochs from this one on. When they were over, the last checkpoint and the durations in the csv tell."""
        rows = pd.read_csv(self.csv).head(done).set_index("epoch", drop=False)
        end = (self.folder / "last.pkl").stat().st_mtime if done else 0.0
        ago = rows["seconds"][::-1].cumsum()[::-1] - rows["seconds"]
        for epoch, row in rows.iloc[first:].iterrows():
            picture = self.folder / shown_name(epoch)
            values = row.dropna().to_dict()
            yield Entry(int(epoch), values, end - ago[epoch], picture if picture.is_file() else None)

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as fault:  # noqa: BLE001  each package raises what it likes, and the run must not end for it
            self.told.pop(name, None)
            if name not in self.failed:
                print(
                    f"--log {name} cannot write to {self.folder / name} ({fault}). The run goes on, its csv is whole, "
                    "and the log is brought up to date as soon as it can be written to.",
                    file=sys.stderr,
                    flush=True,
                )
            self.failed.add(name)
