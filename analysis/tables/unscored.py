"""Runs that were evaluated without ground truth: what their logs tell instead of scores."""

import math
from collections.abc import Sequence

from analysis.run import Run
from analysis.tables.choice import chosen_name
from analysis.tables.facts import marks, notes_of, progress, supervision, warnings_of
from analysis.tables.table import Report, number

NOTE = "Loss of the training; entropy of the validation, 1 where every class is equally likely; pixels of a class."
COLUMNS = {"loss": "tra_loss_tot", "entropy": "val_entropy", "size": "val_size_mean"}


def make_unscored_report(runs: Sequence[Run]) -> Report:
    """Makes a report of the loss, mean entropy and mean size of the last epoch, one line per run."""
    last = [{name: _last(run, column) for name, column in COLUMNS.items()} for run in runs]
    names = [run.selection.chosen.name if run.selection else "" for run in runs]
    facts = [
        {"run": run.name, "set": run.set_name, "candidate": name, "supervision": supervision(run)}
        for run, name in zip(runs, names, strict=True)
    ]
    columns = {"run": [run.name for run in runs], "supervision": [supervision(run) for run in runs]}
    columns["epoch"] = [progress(run, "last") for run in runs]
    columns |= {name: [number(values[name], 4) for values in last] for name in COLUMNS}
    columns["chosen"] = [chosen_name(run) if run.selection else "" for run in runs]
    columns["marks"] = [", ".join(marks(run, "last", runs)) for run in runs]
    columns = {name: cells for name, cells in columns.items() if any(cells) or name not in ("chosen", "marks")}
    chosen = [f"{run.name}: {run.selection.reason}" for run in runs if run.selection]
    return Report(
        f"{', '.join(dict.fromkeys(run.set_name for run in runs))}: no scores",
        ["NO SCORES: there was no ground truth. Nothing here says how good a run is.", *warnings_of(runs)],
        list(columns),
        [("Last epoch", [[*row] for row in zip(*columns.values(), strict=True)])],
        [NOTE, *chosen, *notes_of(runs, ["last"])],
        [fact | values for fact, values in zip(facts, last, strict=True)],
    )


def _last(run: Run, column: str) -> float:
    return float(run.metrics[column].iloc[-1]) if column in run.metrics else math.nan
