"""The epochs of a run, one after the other: guards, evaluation, and the commit of what was found.

Within an epoch nothing waits for the device: terms and counts stay there until it is over. What an epoch found is
written by a thread of its own while the next epoch trains. Whatever an epoch does follows from (seed, epoch, step),
so a run that goes on after a kill, or in the middle of an epoch, ends with the same bits.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from dataloader import AnyStream
from datasets.streams import Stream
from datasets.volumes import WholeStream
from engine.candidates import Candidates
from engine.epoch import Steps, Trained, train_epoch
from engine.evaluation import Evaluation, Scoring, evaluate
from engine.expectation import Expectation
from engine.mean_network import MeanNetwork
from engine.recorder import Recorder, epoch_line, is_due
from engine.run_folder import ASTRAY, RunFolder
from engine.source_bundle import SourceBundle
from engine.watching import Watch
from methods.base import Method
from metrics import SHOWN
from nets.filling import load_weights
from nets.weight_checks import not_finite
from processes.errors import UserError
from processes.interrupt import Interrupted
from utils import listing, typed

AFTER_COLLAPSE = 0.1  # factor on the learning rate after a collapse that was rolled back


class Commits:
    """Writes one epoch at a time, in a thread of its own; a fault of the writing is raised by the next call."""

    def __init__(self) -> None:
        self.pool, self.pending = ThreadPoolExecutor(1), None

    def __enter__(self) -> "Commits":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType) -> None:
        self.pool.shutdown(wait=True)  # what was found before a fault is still written
        if error is None:
            self.wait()

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        self.wait()
        self.pending: Future[None] | None = self.pool.submit(work, *args)

    def wait(self) -> None:
        """Waits until everything submitted is on the disk."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()


@dataclass(frozen=True, kw_only=True)
class Looping(Scoring):
    """How a run goes from epoch to epoch, under the names of the flags."""

    network: str
    seed: int
    n_epoch: int
    eval_every: int
    on_collapse: str
    entmap: int
    keep_every: int
    average_last: int


class Training:
    """The epochs that are not done yet, then the scores of the last, the best and the chosen network.

    `record` is None in the processes of a team that do not write, `val` for a pre-training, which has no scores.
    """

    def __init__(
        self,
        method: Method,
        streams: dict[str, AnyStream],
        val: Stream | WholeStream | None,
        watch: Watch,
        folder: RunFolder,
        record: Recorder | None,
        looping: Looping,
        beside: Mapping[str, Any],
        choose: Callable[[], str],
        source: SourceBundle | None = None,
        expectation: Expectation | None = None,
    ) -> None:
        """beside: entries of every checkpoint, for who uses the network
        choose: makes chosen.pkl out of the copies that --keep_every keeps, and says why

        source: measures what leaves the source, in the process that writes it; None in a run that has nothing to tell
        expectation: tells without labels how good the masks are, in the process that writes; None where no bundle does
        """
        self.method, self.streams, self.val, self.folder, self.record = method, streams, val, folder, record
        self.looping, self.leads, self.watch = looping, record is not None, watch
        self.beside, self.choose, self.source, self.expectation = beside, choose, source, expectation
        self.in_channels = (val or next(iter(streams.values()))).slices.shape[0]
        self.best: dict[str, Any] = {"epoch": -1, "dice": -1.0, "start": None}  # start: the score before the first step
        self.unchanged: Evaluation | None = None  # of a network that does not learn, which is always the same
        self.rate_factor = 1.0  # factor on the learning rate, smaller after each roll-back
        self.candidates = Candidates(folder, looping.keep_every, looping.n_epoch)
        self.mean = MeanNetwork(method.net, looping.average_last, looping.n_epoch)
        if self.leads:
            self.candidates.begin(self._state)  # before anything is restored
        if folder.epochs_done < looping.n_epoch:
            self._meet_source()
        if folder.checkpoint:
            with fitting(folder.path / "last.pkl"):
                self._restore(folder.checkpoint)
                self.best, self.rate_factor = self.best | folder.checkpoint["best"], folder.checkpoint["caution"]
                self._must_be_possible(folder.epochs_done)
                self.watch.load_state_dict(folder.checkpoint["alarms"])
        self.last_good = self._state() if looping.on_collapse == "rollback" else None

    def _meet_source(self) -> None:
        """Shows the alarms, then the method, the network as --model_weights filled it: before anything is restored."""
        with suppress(Interrupted):  # the first step is told the same, and notes how far the run came
            source = self.watch.meet_source()
            score = source.score(self.looping) if source else np.nan
            self.best["start"] = None if np.isnan(score) else score  # as without ground truth, or without the organ
            self._say(self.watch.training.doubt() if source and not self.folder.resumes else "")
        if self.streams:
            self.method.meet(self.streams)

    def run(self) -> None:
        """Trains the epochs that are left, then scores the last, the best and the chosen network.

        Raises UserError if a loss is not finite or the run collapses, and Interrupted if it was asked to stop.
        """
        done, n_epoch, rate = self.folder.epochs_done, self.looping.n_epoch, self.method.settings.l_rate
        if done and self.leads:
            print(f"Going on after epoch {done}." if done < n_epoch else "Every epoch is done.", flush=True)
        if self.folder.slowed_from is not None:
            self._say(f"From here on --l_rate is {rate:g}; until epoch {done} {self.folder.slowed_from:g}.")
        if self.leads and not done and self.streams:
            print(*self.method.notes, sep="\n", end="\n" * bool(self.method.notes), flush=True)
        with Commits() as commits:
            for epoch in range(done, n_epoch):
                self._epoch(epoch, commits)
        end = self._score("last", keep_entropy=bool(self.looping.entmap)) if self.val else None
        if self.best["epoch"] >= 0:
            self._score_file("best_3d")
        chosen = self._choose() if self.looping.keep_every else None
        if self.leads:
            self.record.logs.end(n_epoch)
            self.folder.end()
            self.candidates.end()
            self._say(self.watch.sum_up())
            self._tell_harm(end, chosen)

    def _choose(self) -> Evaluation:
        """Has one of the copies chosen, by the process that writes, and scores it."""
        try:
            if self.leads:
                print(self.candidates.chosen(self.choose), flush=True)
        except Interrupted:
            print("Stopped while a network was chosen; the same command goes on from there.")
            raise
        self.method.team.wait()
        return self._score_file("chosen")

    def _epoch(self, epoch: int, commits: Commits) -> None:
        begin, trained, evaluation = time.perf_counter(), None, None
        self.method.begin_epoch(epoch, self.rate_factor)
        settings = self.method.moving()  # now: a roll-back also takes the optimiser, and its rate, back
        steps = self._steps_done(epoch)
        try:
            if self.streams:
                trained = train_epoch(self.method, self.streams, epoch, self.looping.seed, steps)
                self._must_be_finite(trained["terms"], steps.rows, epoch)
                self._must_stay_finite(epoch)
                self.mean.end_epoch(epoch)
            evaluation = self._evaluate(epoch)
        except Interrupted:
            commits.wait()
            self._pause(epoch, steps)
            raise
        if trained and self._is_rolled_back(trained, epoch):
            self.mean.end_epoch(epoch)
            evaluation = self._evaluate(epoch)
            self.watch.look_again()
        if evaluation and self.leads:
            self._say(self.watch.one_class.warning(evaluation.everywhere.sum(0), epoch))
        is_best = evaluation is not None and self._is_best(evaluation, epoch)
        self.method.rates.end_epoch(epoch, self.best["epoch"])
        if self.leads:
            state = self._state() | {"epoch": epoch, "best": self.best, "caution": self.rate_factor}
            state["alarms"], settings = self.watch.state_dict(), settings | self.watch.cells(epoch)
            seconds = time.perf_counter() - begin
            commits.submit(self._commit, epoch, trained, evaluation, settings, seconds, state, is_best)

    def _evaluate(self, epoch: int) -> Evaluation | None:
        """Evaluates this epoch. Returns None if --eval_every leaves it out, or if there is nothing to validate on."""
        if not self.val or not is_due(epoch, self.looping.eval_every, self.looping.n_epoch):
            return None
        if self.streams:
            keep_masks = self.leads and self.record.keeps_masks(epoch)
            return evaluate(self.method, self.val, keep_masks, look=self.watch.look)
        self.unchanged = evaluate(self.method, self.val, self.leads, bool(self.looping.entmap))
        return self.unchanged

    def _steps_done(self, epoch: int) -> Steps:
        """The steps that a pause noted, with the method as it was after them; no steps without a pause."""
        paused, self.folder.paused = self.folder.paused, None
        if not paused:
            return Steps()
        with fitting(self.folder.path / "paused.pkl"):
            self._restore(paused)
            steps = Steps(paused, self.method.settings.device)
            steps.check(self.method, len(next(iter(self.streams.values())).slices))
        if self.leads:
            print(f"Going on in epoch {epoch + 1}, after step {len(steps)}.", flush=True)
        return steps

    def _pause(self, epoch: int, steps: Steps) -> None:
        if self.leads and self.streams:
            self.folder.save("paused.pkl", self._state() | steps.state_dict() | {"epoch": epoch})
            print(f"Stopped in epoch {epoch + 1}, after step {len(steps)}; the same command goes on from there.")

    def _is_best(self, evaluation: Evaluation, epoch: int) -> bool:
        """Whether this epoch has the highest score so far. Without ground truth no epoch has."""
        if not self.val.slices.has_truth:
            return False
        score = float(np.nan_to_num(evaluation.score(self.looping), nan=-1.0))
        if 0 <= self.best["epoch"] and score <= self.best["dice"]:
            return False
        self.best = self.best | {"epoch": epoch, "dice": score}  # another dict: the last one is being written
        return True

    def _commit(
        self,
        epoch: int,
        trained: Trained | None,
        evaluation: Evaluation | None,
        settings: Mapping[str, float],
        seconds: float,
        state: dict[str, Any],
        is_best: bool,
    ) -> None:
        """Puts an epoch on the disk, in the order that run_folder.py tells."""
        row = self.record.epoch(epoch, trained, evaluation, settings, seconds)
        if is_best:
            self.folder.save("best_3d.pkl", {k: v for k, v in state.items() if k not in ("method", "mean", "alarms")})
            self.folder.write_text("3dbestepoch.txt", [f"{epoch}, {state['best']['dice']:.6f}"])
        self.candidates.keep(state)
        self.folder.save_last(state)
        self.record.logs.add(epoch + 1)
        print(epoch_line(self.folder.path.name, row, state["best"], self.record.recording), flush=True)

    def _score(self, which: str, keep_entropy: bool = False) -> Evaluation:
        evaluation = self.unchanged or evaluate(self.method, self.val, self.leads, keep_entropy)
        if self.leads:
            self.record.finish(which, evaluation)
        if self.source:
            self.source.enclose(self.folder, f"{which}.pkl")
        if self.expectation and which == ("chosen" if self.looping.keep_every else "last"):
            print(self.expectation.write(which), flush=True)
        return evaluation

    def _score_file(self, which: str) -> Evaluation:
        """Scores the network of <which>.pkl."""
        network = (self.looping.network, self.in_channels, self.looping.n_class)
        load_weights(self.method.net, self.folder.path / f"{which}.pkl", *network)
        return self._score(which)

    # -- the state of a run ---------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        """The network, what it expects of an image, and the method, as they are now, copied to the CPU."""
        state = {
            "network": self.looping.network,
            "in_channels": self.in_channels,
            "n_class": self.looping.n_class,
            "seed": self.looping.seed,
            "net": self.method.net.state_dict(),
            "method": self.method.state_dict(),
            "mean": self.mean.state_dict(),
        }
        return on_cpu(state) | self.beside

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.method.net.load_state_dict(state["net"])
        self.method.load_state_dict(on_cpu(state["method"]))  # a copy: an optimiser writes into what it is given
        self.mean.load_state_dict(state.get("mean", {}))

    def _must_be_possible(self, done: int) -> None:
        """Raises ValueError for numbers out of a checkpoint that no run of so many epochs has."""
        typed(self.best, {"epoch": int, "dice": float})
        if not -1 <= self.best["epoch"] < done:
            raise ValueError(f"{done} epochs are done, and the best is number {self.best['epoch']}")
        if not 0 < self.rate_factor <= 1:
            raise ValueError(f"the rate times {self.rate_factor:g}")

    # -- guards ---------------------------------------------------------------------------------------------

    def _must_be_finite(self, terms: np.ndarray, rows: list[Tensor], epoch: int) -> None:
        bad = np.flatnonzero(~np.isfinite(terms).all(1))
        if not len(bad):
            return
        step = int(bad[0])
        stream = next(iter(self.streams.values()))
        names = [stream.slices.names[row] for row in rows[step]]
        values = dict(zip(self.method.columns, terms[step].tolist(), strict=True))
        if self.leads:
            batch, _ = stream.batch(rows[step], epoch, step)
            kept = {"image": batch.image, "targets": batch.targets, "bounds": batch.bounds}
            self.folder.save_tensors(ASTRAY, on_cpu(kept) | {"names": names, "terms": values})
        raise UserError(
            f"The loss is not finite in epoch {epoch + 1}, step {step + 1}: "
            f"{listing(f'{name} {value:g}' for name, value in values.items())}; slices {listing(names)}. The batch is "
            f"in {self.folder.path / ASTRAY}, and the checkpoint of the epoch before is whole. Look at these "
            "slices, or go on with the same command at a lower --l_rate."
        )

    def _must_stay_finite(self, epoch: int) -> None:
        """Raises UserError if the last update made weights that are not finite. No loss has seen them yet."""
        bad = not_finite(self.method.net.state_dict())
        if bad and self.leads and epoch:
            self.folder.save_tensors(ASTRAY, {"tensors": bad})
        if bad:
            raise UserError(
                f"The network is not finite after epoch {epoch + 1}: {len(bad)} of its tensors hold NaN or infinity, "
                f"such as {listing(bad, 3)}. It is not saved, and what was saved before is whole. Go on with the same "
                "command at a lower --l_rate."
            )

    def _is_rolled_back(self, trained: Trained, epoch: int) -> bool:
        """Says what is alarming in an adaptation without ground truth; does what --on_collapse wants.

        Returns whether the weights were rolled back, and the validation is no longer what they give.
        """
        alarms = self.watch.alarms(trained, epoch)
        is_news = self.watch.is_news(alarms)
        if not alarms:
            self.last_good = self._state() if self.last_good else None
            return False
        what = f"Alarm in epoch {epoch + 1}: {'; '.join(alarms)}."
        if self.looping.on_collapse == "stop":
            saved = "the checkpoint of the epoch before is whole" if epoch else "nothing was saved of the first epoch"
            raise UserError(
                f"{what} --on_collapse stop: {saved}. Lower --l_rate, weigh the prior more (lamb_consprior), or look "
                "at the prior."
            )
        back = self.looping.on_collapse == "rollback"
        if back:
            self.watch.forget(epoch)
            self._restore(self.last_good)
            self.rate_factor *= AFTER_COLLAPSE
            what += f" Back to the epoch before, and on with {self.rate_factor:g} times the learning rate."
        if back or is_news:
            self._say(what)
        return back

    def _say(self, words: str) -> None:
        """Prints a line, once for all processes; nothing if there is nothing to say."""
        if words and self.leads:
            print(words, file=sys.stderr, flush=True)

    def _tell_harm(self, end: Evaluation | None, chosen: Evaluation | None) -> None:
        """Says so if an adaptation ended below the network it started from, as far as ground truth tells."""
        start, score = self.best.get("start"), float("nan") if end is None else end.score(self.looping)
        if start is not None and start - score > SHOWN:
            kind = "mIoU" if self.looping.scores == "iou" else "Dice 3D"
            other = f" That of the chosen network is {chosen.score(self.looping):.3f}." if chosen else ""
            self._say(
                f"This adaptation did harm: {kind} {score:.3f} at the end, {start:.3f} with the network that it "
                f"started from, on the same validation images.{other}"
            )


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turns whatever does not fit in a checkpoint of this run into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"{path} does not hold the state of this run ({type(error).__name__}: {error}): it was damaged, or written "
            f"by another program. Remove it to go on from previous.pkl, if that is there, or remove {path.parent} to "
            "start anew."
        ) from error


def on_cpu(state: Any) -> Any:
    """A copy of nested dicts and lists in which each tensor lies on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [on_cpu(value) for value in state]
    return state
