"""Three networks of a run side by side: the last, the one chosen with few labels or none, the best by labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.run import Run, unique
from analysis.selection import how_chosen
from analysis.tables.table import BLOCKS, Summary

WITH_CHOICE = {
    "last": "Last epoch (nothing was chosen)",
    "chosen": "Headline: chosen without labels (by what the unlabelled training images say)",
    "best_3d": "Oracle: best epoch (it reads the target's labels, hence optimistic)",
}
NAMED = {"last": "last epoch", "chosen": "chosen network"}


def blocks_of(runs: Sequence[Run]) -> dict[str, str]:
    """Which networks of these runs are compared, and the heading of each block of the table."""
    if not any(run.selection for run in runs):
        return BLOCKS
    by_labels = any(run.selection and run.selection.labelled for run in runs)
    return WITH_CHOICE | ({"chosen": f"Headline: chosen {ways(runs)}"} if by_labels else {})


def ways(runs: Sequence[Run]) -> str:
    """How the networks of these runs were chosen: 'without labels', 'with 2 labelled patients', or both."""
    return " or ".join(map(how_chosen, sorted({len(run.selection.labelled) for run in runs if run.selection})))


def headline(blocks: Mapping[str, Any]) -> str:
    """Which of the blocks counts: 'chosen' where a run chose among networks that it kept, else 'last'."""
    return "chosen" if "chosen" in blocks else "last"


def chosen_name(run: Run) -> str:
    """Which network stands for the run in the headline: 'source', 'epoch 15'; 'last epoch' where nothing was chosen.

    Where labels chose it, it says so.
    """
    if not run.selection:
        return NAMED["last"]
    return run.selection.chosen.name + f", {run.selection.how}" * bool(run.selection.labelled)


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
    every = [run for line in blocks["chosen"] for run in runs_of(line)]
    header = [first, "last epoch", f"chosen {ways(every)}", "oracle (reads labels)", "network", "marks"]
    kept = slice(None if any(row[-1] for row in rows) else -1)
    return Summary(
        f"{score} of the last, the chosen (the headline) and the best network of each run",
        header[kept],
        [row[kept] for row in rows],
        strong=2,
    )


def choice_notes(runs: Sequence[Run]) -> list[str]:
    """What the three columns mean; nothing where nothing was chosen."""
    if not (labelled := [len(run.selection.labelled) for run in runs if run.selection]):
        return []
    among = "of the source network, its batch-norm refresh and the networks kept on the way (--keep_every), the one "
    told = [
        f"Chosen without labels: {among}that the unlabelled training images speak for; selection.txt of each run says "
        "why.",
        f"Chosen with labelled patients (--select_with): {among}with the highest Dice on a few patients of the "
        "training images, whose labels were opened for that alone; selection.txt of each run names them.",
    ]
    told = told[: any(not number for number in labelled)] + told[1:] * any(labelled)
    told[-1] += " A run that kept none stands there with its last epoch." * (len(labelled) < len(runs))
    stayed = any(run.selection and not run.selection.chosen.epoch for run in runs)
    above = " It is one of the epochs: a network from before the first can lie above it." * stayed
    return [
        "Last epoch: where the training ended, whatever it had come to.",
        *told,
        "Oracle: the epoch that scores best here; it reads the labels that it is scored with, so it is a bound."
        + above,
    ]
