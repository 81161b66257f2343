"""What each row cost: time, updates, memory and energy, the mean over its seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.cost import PARTS, cost_of
from analysis.run import Run, open_run
from analysis.tables.table import Report, number
from processes.errors import UserError
from study.reading import Study
from study.tables.words import warnings

HEADER = ["row", "runs", "minutes", "updates", "memory (GiB)", "GPU memory (GiB)", "energy (Wh)"]
SCALES = {"seconds": (60, 1), "updates": (1, 0), "memory_mib": (1024, 2), "gpu_memory_mib": (1024, 2)}
SCALES |= {"energy_joules": (3600, 1)}  # what a cell is divided by, and its digits
NOTES = [
    "Mean over the seeds; minutes: of a whole run, with its scores and its choice, all of its starts together. A row's "
    "cost comes on top of that of the network that it starts from.",
    "Updates: steps of the training. Memory: the most that its process held; GPU memory: that torch held. Energy: what "
    "its GPUs took meanwhile, for whomever, where nvidia-ml-py is installed and they tell; of no CPU.",
    "Times compare where the runs had the same machine to themselves: make -j shares it out among them.",
]


def starts_of(study: Study) -> dict[str, list[Run]]:
    """The runs of the study's seeds that rows start from and that are no rows, by name; where they can be read."""
    found: dict[str, list[Run]] = {}
    for seed in study.seeds:
        weights = {Path(run.start).parent for (_, of), run in study.runs.items() if of == seed and run.start}
        for folder in sorted(weights):
            if folder.name not in study.rows and folder.parent.name == f"seed{seed}":
                try:
                    found.setdefault(folder.name, []).append(open_run(folder))
                except UserError:  # it is gone, and the rows stand without it
                    continue
    return found


def mean_cost(runs: Sequence[Run]) -> dict[str, float]:
    """Each part, NaN where one of the runs does not tell."""
    costs = [cost_of(run) for run in runs]
    return {part: float(np.mean([cost[part] for cost in costs])) if costs else math.nan for part in PARTS}


def words(name: str, runs: Sequence[Run], cost: Mapping[str, float]) -> list[str]:
    cells = (number(cost[part] / scale, digits) for part, (scale, digits) in SCALES.items())
    return [name, str(len(runs)), *cells]


def make_costs(study: Study) -> Report:
    rows = {row: [*runs.values()] for row in study.rows if (runs := study.of_row(row))}
    groups = {"Rows": rows, "What they start from": starts_of(study)}
    costs = {name: mean_cost(runs) for group in groups.values() for name, runs in group.items()}
    blocks = [
        (title, [words(name, runs, costs[name]) for name, runs in group.items()])
        for title, group in groups.items()
        if group
    ]
    lines: list[dict[str, Any]] = [
        {"row": name, "is_row": int(name in rows), "runs": len(runs), **costs[name]}
        for group in groups.values()
        for name, runs in group.items()
    ]
    return Report(f"Cost of {study.asked.name}", warnings(study), HEADER, blocks, NOTES, lines)
