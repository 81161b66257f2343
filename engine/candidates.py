"""Copies of an adaptation's network (--keep_every), of which one is chosen without labels when all epochs are done.

    candidates/epoch_0000.pkl     the network before the first step
    candidates/epoch_0005.pkl     after five epochs; so every n of them, and after the last
    chosen.pkl                    the copy that was chosen; once the run has ended, the first and this one are left

A copy is a checkpoint without what a resume needs: the weights are the bits of last.pkl, and "epoch" is what it is
there, the last one that is done counted from 0, so -1 before the first. It is written before last.pkl. So whenever
last.pkl says that an epoch is done, its copy is there, and a later one is of an epoch that will be run again.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from engine.run_folder import RunFolder
from files.run_names import CANDIDATES, CHOSEN, candidate_name, candidates_of
from nets.checkpoint_files import OF_A_NETWORK, load_checkpoint, of_a_network, require
from processes.errors import UserError
from processes.ownership import MADE
from processes.quoting import for_shell


class Candidates:
    """The copies in the folder of one run. Nothing is written before `begin`."""

    def __init__(self, folder: RunFolder, every: int, n_epoch: int) -> None:
        """every: how many epochs from one copy to the next; 0: none is kept."""
        self.folder, self.every, self.n_epoch = folder, every, n_epoch

    def is_due(self, epochs_done: int) -> bool:
        """Whether the network is kept after so many epochs."""
        return self.every > 0 and (epochs_done % self.every == 0 or epochs_done == self.n_epoch)

    def begin(self, start: Callable[[], Mapping[str, Any]]) -> None:
        """Leaves the copies of the epochs that are done, and removes what a kill left beside them.

        start: gives the state before the first step, of which a run without a checkpoint makes its first copy
        Raises UserError for a copy that is missing, torn or of another run. A run that has ended is not asked for its
        copies: once one is chosen, the others may go.
        """
        done, there = self.folder.epochs_done, candidates_of(self.folder.path)
        for part in self.folder.path.glob(f"{CANDIDATES}/.*.part*"):
            part.unlink()
        for number in there if self.every or not self.folder.resumes else ():
            if number > done or not self.is_due(number):
                there[number].unlink()
        if self.every and done < self.n_epoch:
            (self.folder.path / CHOSEN).unlink(missing_ok=True)  # of a last epoch that is made anew
        if self.every and not done:
            self.keep(start() | {"epoch": -1})
        elif self.every and not (done == self.n_epoch and (self.folder.path / MADE).exists()):
            for number in filter(self.is_due, range(done + 1)):
                self._check(number)

    def keep(self, state: Mapping[str, Any]) -> None:
        """Writes the copy out of the state after an epoch, which "epoch" counts from 0, if one is due."""
        if self.is_due(state["epoch"] + 1):
            (self.folder.path / CANDIDATES).mkdir(exist_ok=True)
            self.folder.save(candidate_name(state["epoch"] + 1), of_a_network(state))

    def chosen(self, choose: Callable[[], str]) -> str:
        """Why the network of chosen.pkl was chosen.

        choose: makes that file and says so; it is called unless the file is there and whole, after the last epoch
        Raises UserError where it has to be called, and a copy is missing, torn or of another run.
        """
        if (reason := self._reason()) is None:
            for number in filter(self.is_due, range(self.n_epoch + 1)):
                self._check(number)
            reason = choose()
        return reason

    def _reason(self) -> str | None:
        """What chosen.pkl says of itself; None where it is missing, torn or of another run."""
        path = self.folder.path / CHOSEN
        if not path.exists():
            return None
        try:
            state = load_checkpoint(path)
            require(path, state, (*OF_A_NETWORK, "choice"))
        except UserError as error:
            print(f"{error} It is chosen anew.", file=sys.stderr)
            return None
        return None if self._is_foreign(state["identity"]) else str(state["choice"].get("why"))

    def end(self) -> None:
        """Removes the copies that were not chosen; the first, which shows what the run started from, stays."""
        for number, path in candidates_of(self.folder.path).items():
            if number and self.every:
                path.unlink()

    def _is_foreign(self, identity: Mapping[str, Any]) -> bool:
        """Whether it is another run's; one that went astray goes on at a lower rate."""
        return bool(set(self.folder.differing(identity)) - {"l_rate"})

    def _check(self, number: int) -> None:
        path = self.folder.path / candidate_name(number)
        try:
            state = load_checkpoint(path)
            require(path, state, OF_A_NETWORK)
            if state["epoch"] + 1 != number or self._is_foreign(state["identity"]):
                raise UserError(f"{path} holds another epoch, or is of another run.")
        except UserError as error:
            raise UserError(
                f"{error} It is one of the networks that --keep_every keeps to choose from, and no later epoch can "
                f"make it again: put it back, or remove the run (rm -r {for_shell(self.folder.path)}) to start anew."
            ) from error
