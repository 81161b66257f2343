"""Runs that were evaluated without ground truth: what their logs tell instead of scores."""

import math
from collections.abc import Sequence

from analysis.run import Run
from analysis.tables.facts import marks, notes_of, progress, supervision, warnings_of
from analysis.tables.table import Report, number

NOTE = "Loss of the training; entropy of the validation, 1 where every class is equally likely; pixels of a class."
COLUMNS = {"loss": "tra_loss_tot", "entropy": "val_entropy", "size": "val_size_mean"}


def make_unscored_report(runs: Sequence[Run]) -> Report:
    """Makes a report of the loss, mean entropy and mean size of the last epoch, one line per run."""
    last = [{name: _last(run, column) for name, column in COLUMNS.items()} for run in runs]
    facts = [{"run": run.name, "set": run.set_name, "supervision": supervision(run)} for run in runs]
    rows = [
        [run.name, supervision(run), progress(run, "last"), *(number(value, 4) for value in values.values())]
        for run, values in zip(runs, last, strict=True)
    ]
    marked = [", ".join(marks(run, "last", runs)) for run in runs]
    rows = [[*row, words] for row, words in zip(rows, marked, strict=True)] if any(marked) else rows
    return Report(
        f"{', '.join(dict.fromkeys(run.set_name for run in runs))}: no scores",
        ["NO SCORES: there was no ground truth. Nothing here says how good a run is.", *warnings_of(runs)],
        ["run", "supervision", "epoch", *COLUMNS, *(["marks"] if any(marked) else [])],
        [("Last epoch", rows)],
        [NOTE, *notes_of(runs, ["last"])],
        [fact | values for fact, values in zip(facts, last, strict=True)],
    )


def _last(run: Run, column: str) -> float:
    return float(run.metrics[column].iloc[-1]) if column in run.metrics else math.nan
