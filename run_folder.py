"""The folder of one run: parameters, provenance, log, raw arrays, checkpoints; whole after any kill.

Order of writing within an epoch: arrays, csv row, best_3d.pkl, last.pkl. What last.pkl says is done is done; whatever
was written after it belongs to an epoch that will be run again, and is cut off on resume.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from utils import UserError, atomic_write, listing

# Arguments that may differ between a run and its continuation: they change where and how fast, not what.
ELSEWHERE = ("workdir", "resume", "device", "cpu", "jobs", "check", "pprint")


class RunFolder:
    """Opens a run's folder, fresh or, with `resume`, where a kill left it.

    Raises UserError if the folder holds a run already and `resume` is off, or a run of other arguments or inputs.
    """

    def __init__(self, path: Path, args: Namespace, inputs: Mapping[str, str]) -> None:
        self.path = path
        self.identity = {k: v for k, v in vars(args).items() if k not in ELSEWHERE} | {"inputs": dict(inputs)}
        self.identity = json.loads(json.dumps(self.identity, default=str))
        self.checkpoint: dict[str, Any] | None = None
        last = path / "last.pkl"
        if last.exists():
            if not args.resume:
                raise UserError(f"{path} holds a run already. Continue it with --resume, or name another --workdir.")
            self.checkpoint = load_checkpoint(last)
            self._must_be_the_same(self.checkpoint.get("identity", {}))
        path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path / "params.txt", "w") as file:
            file.writelines(f"{key}: {value}\n" for key, value in sorted(vars(args).items()))

    def _must_be_the_same(self, begun: Mapping[str, Any]) -> None:
        other = [key for key in sorted({*begun, *self.identity}) if begun.get(key) != self.identity.get(key)]
        if other:
            changes = [f"{key}: {begun.get(key)!r} -> {self.identity.get(key)!r}" for key in other]
            raise UserError(
                f"{self.path} holds an unfinished run with other arguments or inputs ({listing(changes, 4)}). "
                f"Finish it with the old ones, or remove it (rm -r {self.path}) to start anew."
            )

    @property
    def done(self) -> int:
        """How many epochs are done."""
        return 0 if self.checkpoint is None else self.checkpoint["epoch"] + 1

    def array(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """`<name>.npy` as float32 on the disk, NaN where nothing was written yet."""
        path = self.path / f"{name}.npy"
        if self.done and path.exists():
            array = np.lib.format.open_memmap(path, mode="r+")
            if array.shape == tuple(shape):
                return array
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=tuple(shape))
        array[:] = np.nan
        return array

    def write_text(self, name: str, lines: Iterable[str]) -> None:
        with atomic_write(self.path / name, "w") as file:
            file.writelines(f"{line}\n" for line in lines)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, [json.dumps(value, indent=1, default=str)])

    def save(self, name: str, state: dict[str, Any]) -> None:
        """A checkpoint of tensors and plain types, under its name only when whole."""
        with atomic_write(self.path / name) as file:
            torch.save(state | {"identity": self.identity}, file)


class CsvLog:
    """One row an epoch; columns fixed from row one; every row on the disk before the next epoch starts."""

    def __init__(self, path: Path, columns: Sequence[str], done: int) -> None:
        self.path, self.columns = path, list(columns)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if done and path.exists() else []
        kept = [line for line in lines[: done + 1] if line.endswith("\n")]
        if done and len(kept) != done + 1:
            raise UserError(f"{path} lost rows of the {done} epochs that are done; remove the run and start it anew.")
        with atomic_write(path, "w") as file:
            file.writelines(kept or [",".join(self.columns) + "\n"])

    def append(self, row: Mapping[str, float]) -> None:
        """Appends the row; a NaN is an empty cell."""
        if set(row) != set(self.columns):
            raise KeyError(f"columns differ: {set(row) ^ set(self.columns)}")
        cells = ["" if np.isnan(row[name]) else f"{row[name]:.8g}" for name in self.columns]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join(cells) + "\n")
            file.flush()
            os.fsync(file.fileno())


# --------------------------------------------------------------------------------------------- checkpoints


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain types; never runs code. Raises UserError for a missing, torn or foreign file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"The weights {path} do not exist. Train them first (make results/<set>/cesource).") from error
    except Exception as error:  # torch.load raises anything on a torn file
        raise UserError(f"{path} is no checkpoint of this program or is torn ({type(error).__name__}).") from error
    if not isinstance(state, dict) or "net" not in state:
        raise UserError(f"{path} holds no network of this program (no entry 'net').")
    return state


def load_weights(net: nn.Module, path: Path, network: str, in_channels: int, n_class: int) -> None:
    """Fills the network from a checkpoint. Raises UserError naming both sides where they differ."""
    state = load_checkpoint(path)
    theirs = f"{state.get('network')} ({state.get('in_channels')} channels, {state.get('n_class')} classes)"
    ours = f"{network} ({in_channels} channels, {n_class} classes)"
    try:
        net.load_state_dict(state["net"])
    except RuntimeError as error:
        raise UserError(
            f"{path} holds weights of {theirs}, this run has {ours}; give the same --network and --n_class."
        ) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------- pictures


def write_masks(folder: Path, names: Sequence[str], masks: np.ndarray) -> None:
    """One 8-bit PNG a slice, `masks` (S, W, H) uint8, the grey level as it is."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(item: tuple[str, np.ndarray]) -> None:
        name, mask = item
        with atomic_write(folder / f"{name}.png") as file:
            Image.fromarray(mask).save(file, format="png", compress_level=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, zip(names, masks, strict=True)))


# ----------------------------------------------------------------------------------------------- provenance


def describe_code() -> dict[str, Any]:
    """Commit, uncommitted diff, versions and machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "diff": _git("diff", "HEAD"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "platform": platform.platform(),
        "command": [sys.executable, *sys.argv],
        "threads": torch.get_num_threads(),
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, cwd=Path(__file__).parent, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a copy without its repository still trains
    return done.stdout.strip()
