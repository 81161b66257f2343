"""What a finished run cost, read back: cost.json of the run, or its log where it is of before."""

import math
from collections.abc import Mapping

from analysis.run import Run
from files.foreign import read_json
from files.run_names import COST
from utils import fits

PARTS = ("seconds", "updates", "memory_mib", "gpu_memory_mib", "energy_joules")


def cost_of(run: Run) -> dict[str, float]:
    """Each of PARTS, NaN where the run does not tell: of all its starts, epochs, scores and choice together.

    memory_mib: the most that the process held; gpu_memory_mib: that torch held on its GPU; energy_joules: of its GPUs.
    A run of before tells the seconds of its epochs alone. Raises UserError for a file that is no JSON.
    """
    path = run.folder / COST
    if not path.is_file():
        seconds = float(run.metrics["seconds"].sum()) if "seconds" in run.metrics else math.nan
        return dict.fromkeys(PARTS, math.nan) | {"seconds": seconds}
    told = read_json(path, "remove it")
    told = told if fits(told, Mapping[str, float | None]) else {}
    return {name: math.nan if told.get(name) is None else float(told[name]) for name in PARTS}
