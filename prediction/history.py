"""How a network came about: from its source training to the run that it is taken from, as far as files still tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError
from utils import fits, sha256_of

FLAGS = ("method", "target_dataset", "source_dataset", "target_losses", "n_epoch", "l_rate", "seed", "debug", "inputs")


@dataclass(frozen=True)
class Step:
    """One training, or evaluation: the file of its network, what that tells, and what it started from.

    start: the file of the weights, "" for random ones
    is_there: whether that is still the same file
    """

    file: Path
    state: Mapping[str, Any]
    start: str
    is_there: bool

    def told(self) -> dict[str, Any]:
        """For the manifest, in plain types."""
        identity = self.state.get("identity", {})
        flags = {name: identity[name] for name in FLAGS if name in identity}
        return flags | {"started_from": self.start or None, "epoch": self.state.get("epoch")}


def history_of(file: Path, state: Mapping[str, Any]) -> list[Step]:
    """The steps that led to a checkpoint, the last of them first; they end where a file is gone, or is another now."""
    steps, seen = list[Step](), set[str]()
    while True:
        identity = state.get("identity", {})
        start = str(identity.get("model_weights") or "")
        sha256 = (identity.get("inputs") or {}).get("model_weights")
        start_state = _same(Path(start), sha256) if start and sha256 not in seen else None
        steps.append(Step(file, state, start, start_state is not None))
        if start_state is None:
            return steps
        seen.add(sha256)
        file, state = Path(start), start_state


def _same(path: Path, sha256: str | None) -> dict[str, Any] | None:
    """The checkpoint, if the file is still the one that was read; None for one that cannot be read, too."""
    try:
        return load_checkpoint(path) if path.is_file() and sha256_of(path) == sha256 else None
    except UserError:
        return None


def choice_in(steps: list[Step]) -> Mapping[str, Any] | None:
    """The last choice among networks, and why; None where nothing was chosen."""
    return next((step.state["choice"] for step in steps if "choice" in step.state), None)


def prior_in(steps: list[Step]) -> dict[str, Any] | None:
    """What the last step that knew sizes was told of them; None where none was.

    losses: the line that names table, column and bounds; of_losses: digest of what these were
    mean_pixels: of each class, over the slices of whom there is a size, where the run's folder still tells
    """
    for step in steps:
        identity = step.state.get("identity", {})
        if "sizefile" in str(identity.get("target_losses")):
            digests = {key: value for key, value in identity.get("inputs", {}).items() if key.startswith("bounds")}
            told = {"losses": identity["target_losses"], "sha256": digests}
            return told | {"mean_pixels": _mean_sizes(step.file.parent / "prior_sizes.npy")}
    return None


def _mean_sizes(path: Path) -> list[float] | None:
    """(K,) means over the slices in the array (S, K); None where there are none."""
    try:
        sizes = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    known = sizes[~np.isnan(sizes).any(1)] if sizes.ndim == 2 else sizes[:0]
    return [round(float(mean), 3) for mean in known.mean(0, dtype=np.float64)] if len(known) else None


def is_of_debugging(steps: list[Step]) -> bool:
    """Whether a step read ten slices a set, as --debug does."""
    return any(fits(flag := step.state.get("identity", {}).get("debug", False), bool) and flag for step in steps)
