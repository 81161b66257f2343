"""Three networks of a run side by side: the last, the one chosen without labels, the best by labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.run import Run, unique
from analysis.tables.table import BLOCKS, Summary

WITH_CHOICE = {
    "last": "Last epoch (nothing was chosen)",
    "chosen": "Headline: chosen without labels (by what the unlabelled training images say)",
    "best_3d": "Oracle: best epoch (it reads the target's labels, hence optimistic)",
}
NAMED = {"last": "last epoch", "chosen": "chosen network"}


def blocks_of(runs: Sequence[Run]) -> dict[str, str]:
    """Which networks of these runs are compared, and the heading of each block of the table."""
    return WITH_CHOICE if any(run.selection for run in runs) else BLOCKS


def headline(blocks: Mapping[str, Any]) -> str:
    """Which of the blocks counts: 'chosen' where something was chosen without labels, else 'last'."""
    return "chosen" if "chosen" in blocks else "last"


def chosen_name(run: Run) -> str:
    """Which network stands for the run in the headline: 'source', 'epoch 15'; 'last epoch' where nothing was chosen."""
    return run.selection.chosen.name if run.selection else NAMED["last"]


def make_summary(
    blocks: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Callable[[Any], str]],
    score: str,
    runs_of: Callable[[Any], Sequence[Run]],
) -> Summary | None:
    """The score of the three networks of each line, the chosen one in the middle; None where nothing was chosen.

    columns: those of the blocks, of which the first, this score, and the marks are taken; runs_of: those of a line
    """
    if "chosen" not in blocks:
        return None
    first, marks = next(iter(columns)), columns.get("marks", lambda _: "")
    rows = []
    for last, chosen, oracle in zip(*(blocks[which] for which in WITH_CHOICE), strict=True):
        names = " / ".join(unique(runs_of(chosen), chosen_name))
        rows.append([columns[first](last), *map(columns[score], (last, chosen, oracle)), names, marks(chosen)])
    header = [first, "last epoch", "chosen without labels", "oracle (reads labels)", "network", "marks"]
    kept = slice(None if any(row[-1] for row in rows) else -1)
    return Summary(
        f"{score} of the last, the chosen (the headline) and the best network of each run",
        header[kept],
        [row[kept] for row in rows],
        strong=2,
    )


def choice_notes(runs: Sequence[Run]) -> list[str]:
    """What the three columns mean; nothing where nothing was chosen."""
    if not any(run.selection for run in runs):
        return []
    without = " A run that kept none stands there with its last epoch." * any(not run.selection for run in runs)
    stayed = any(run.selection and not run.selection.chosen.epoch for run in runs)
    above = " It is one of the epochs: a network from before the first can lie above it." * stayed
    return [
        "Last epoch: where the training ended, whatever it had come to.",
        "Chosen without labels: of the source network, its batch-norm refresh and the networks kept on the way "
        "(--keep_every), the one that the unlabelled training images speak for; selection.txt of each run says why."
        + without,
        "Oracle: the epoch that scores best here; it reads the labels that it is scored with, so it is a bound."
        + above,
    ]
