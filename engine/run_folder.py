"""The folder of one run: parameters, provenance, log, raw arrays, checkpoints; whole after any kill.

Order of writing within an epoch: arrays, csv row, best_3d.pkl, a copy of the network (candidates.py), last.pkl. What
last.pkl says is done is done; whatever was written after it belongs to an epoch that will be run again, and is cut off
on resume. Until the run is whole, previous.pkl keeps the checkpoint before, in case last.pkl turns out to be torn. And
paused.pkl keeps the middle of an epoch in which the run was asked to stop.
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from PIL import Image

from files.nifti_headers import Header, header_at, write_nifti
from files.run_names import CANDIDATES
from nets.checkpoint_files import load_checkpoint, require, save_checkpoint
from processes.errors import UserError
from processes.ownership import MADE, RUN, begin, note_made, strangers, visible_names
from processes.quoting import csv_text, for_shell, visible
from utils import atomic_write, fits, listing, sha256_of

# Arguments that may differ between a run and its continuation: they change where and how fast, or what is made of the
# masks when all epochs are done, not what is learnt.
ELSEWHERE = ("workdir", "resume", "device", "cpu", "jobs", "check", "pprint", "cache", "workers")
ELSEWHERE += ("in_memory", "nsd_tolerance", "saveim", "entmap", "dice_3d", "group", "log", "log_images")

# Flags that unfinished runs of before may lack, with the value that is what those did.
NEWER = {"n_target": 0, "keep_every": 0, "select_with": 0, "select_folders": None}
NEWER |= {"anchor": 0.0, "average_last": 1, "decode": "argmax", "match_source": None, "bn_mix": None}

OF_AN_EPOCH = ("epoch", "best", "caution", "alarms", "method", "identity")  # of a checkpoint, apart from the network
ASTRAY = "nonfinite.pkl"  # what a run that is not finite leaves behind
OF_A_PAUSE = ("epoch", "method", "identity", "terms", "counts", "rows")


class RunFolder:
    """A run's folder, fresh or, with `resume`, where a kill left it. Nothing is written before `begin`.

    Raises UserError if the folder holds a run already and `resume` is off, or a run of other arguments or inputs.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """parameters: the value of every flag; inputs: the hash of everything that the run reads."""
        self.path, self.parameters = path, parameters
        self.identity = {k: v for k, v in parameters.items() if k not in ELSEWHERE} | {"inputs": dict(inputs)}
        self.identity = json.loads(json.dumps(self.identity, default=str))
        if (path / "last.pkl").exists() and not parameters["resume"]:
            raise UserError(f"{path} holds a run already. Continue it with --resume, or name another --workdir.")
        self.torn_names: list[str] = []  # of checkpoints that are not whole
        self.slowed_from: float | None = None  # the learning rate of the epochs that are done, if it was a higher one
        self.checkpoint = self._whole("last.pkl") or self._whole("previous.pkl")
        if self.torn_names and not self.checkpoint:
            raise UserError(
                f"No checkpoint in {path} is whole ({listing(self.torn_names)}); remove it (rm -r {for_shell(path)}) "
                "to start anew."
            )
        self.paused = self._whole("paused.pkl") if parameters["resume"] else None
        if self.paused and self.paused["epoch"] != self.epochs_done:
            self.paused = None  # its epoch was finished since

    def _whole(self, name: str) -> dict[str, Any] | None:
        """Reads this checkpoint if it is there and whole. A torn one is told and passed over."""
        if not (self.path / name).exists():
            return None
        try:
            state = load_checkpoint(self.path / name)
            require(self.path / name, state, OF_A_PAUSE if name == "paused.pkl" else OF_AN_EPOCH)
            epoch, n_epoch = state["epoch"], state["identity"].get("n_epoch")
            if fits(n_epoch, int) and not 0 <= epoch < n_epoch:
                raise UserError(f"{self.path / name} is of epoch {epoch}, counted from 0, of a run of {n_epoch}.")
        except UserError as error:
            print(f"{error} It is passed over for the checkpoint before it.", file=sys.stderr)
            self.torn_names.append(name)
            return None
        self._must_be_the_same(state["identity"])
        return state

    def begin(self) -> None:
        """Makes the folder, and writes the arguments down."""
        begin(self.path, RUN)
        self.strangers = strangers(self.path) if (self.path / MADE).exists() else []
        with atomic_write(self.path / "params.txt", "w") as file:
            file.writelines(f"{key}: {visible(value)}\n" for key, value in sorted(self.parameters.items()))

    def differing(self, before: Mapping[str, Any]) -> list[str]:
        """Which arguments and inputs are others than in a checkpoint's identity."""
        before = NEWER | before
        named = {*before, *self.identity} - {*ELSEWHERE}
        return [key for key in sorted(named) if before.get(key) != self.identity.get(key)]

    def _must_be_the_same(self, before: Mapping[str, Any]) -> None:
        other, before = self.differing(before), NEWER | before
        if other == ["l_rate"] and self._goes_on_slower(before):
            self.slowed_from = before["l_rate"]
        elif other:
            changes = [
                _changed_inputs(before.get(key) or {}, self.identity[key])
                if key == "inputs"
                else f"{key}: {before.get(key)!r} -> {self.identity.get(key)!r}"
                for key in other
            ]
            raise UserError(
                f"{self.path} holds a run with other arguments or inputs ({listing(changes, 4)}). Go on with the old "
                f"ones, or remove it (rm -r {for_shell(self.path)}) to start anew."
            )

    def _goes_on_slower(self, before: Mapping[str, Any]) -> bool:
        """Whether the run had stopped because it was not finite, and has a lower rate now, as it was told."""
        rate = before.get("l_rate")
        return (self.path / ASTRAY).exists() and fits(rate, float) and self.identity["l_rate"] < rate

    @property
    def resumes(self) -> bool:
        """Whether steps are done already."""
        return self.checkpoint is not None or self.paused is not None

    @property
    def epochs_done(self) -> int:
        """How many epochs are done."""
        return 0 if self.checkpoint is None else self.checkpoint["epoch"] + 1

    def array(self, name: str, shape: Sequence[int]) -> "EpochArray":
        """The raw array `<name>.npy` of this shape, whose first axis is epochs."""
        return EpochArray(self.path / f"{name}.npy", shape, keep=self.epochs_done > 0)

    def write_array(self, name: str, values: np.ndarray) -> None:
        """Writes values of any shape as float32, to `<name>.npy`."""
        with atomic_write(self.path / f"{name}.npy") as file:
            np.save(file, values.astype(np.float32))

    def write_text(self, name: str, lines: Iterable[str]) -> None:
        with atomic_write(self.path / name, "w") as file:
            file.writelines(f"{line}\n" for line in lines)

    def write_table(self, name: str, rows: Iterable[Iterable[Any]]) -> None:
        """Writes a csv file whose header is the first row."""
        with atomic_write(self.path / name, "w") as file:
            file.write(csv_text(rows))

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads what `write_json` wrote; {} if there is no such file, or it is torn."""
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, [json.dumps(value, indent=1, default=str)])

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Writes a checkpoint of this run: tensors and plain types."""
        self.save_tensors(name, state | {"identity": self.identity})

    def save_tensors(self, name: str, state: dict[str, Any]) -> None:
        """Writes tensors and plain types. The file gets its name only when it is whole."""
        save_checkpoint(self.path / name, state)

    def save_last(self, state: dict[str, Any]) -> None:
        """Writes last.pkl.

        The one before stays as previous.pkl, unless it is torn, so there is a whole one at any moment.
        """
        last, previous = self.path / "last.pkl", self.path / "previous.pkl"
        if last.exists() and "last.pkl" not in self.torn_names:
            spare = self.path / ".previous.pkl.part"
            spare.unlink(missing_ok=True)
            try:
                spare.hardlink_to(last)
            except OSError:  # a file system without links, as of a USB stick or a Windows share
                shutil.copyfile(last, spare)
            spare.replace(previous)
            spare.unlink(missing_ok=True)  # it stays if both names were one file already: after a kill just below
        self.save("last.pkl", state)
        self.torn_names.clear()
        (self.path / "paused.pkl").unlink(missing_ok=True)

    def end(self) -> None:
        """Ends a whole run: removes what only a resume needed, and notes what the run has made."""
        parts = (path for place in (".", CANDIDATES) for path in self.path.glob(f"{place}/.*.part*"))
        for path in (self.path / "previous.pkl", self.path / "paused.pkl", *parts):
            path.unlink(missing_ok=True)
        note_made(self.path, visible_names(self.path) - {*self.strangers})


def _changed_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which inputs are not what they were; their hashes would tell nobody anything."""
    before = before if isinstance(before, Mapping) else {}
    return f"content of: {listing(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))}"


class EpochArray:
    """A float32 .npy file (epochs, …), NaN where nothing was written yet, written epoch by epoch.

    By plain writes: a full disk refuses them with an error, where a mapped page would kill the process.
    """

    def __init__(self, path: Path, shape: Sequence[int], keep: bool) -> None:
        self.path, self.shape = path, tuple(shape)
        if keep and path.exists() and np.load(path, mmap_mode="r").shape == self.shape:
            return
        with atomic_write(path) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)
            nothing = np.full(self.shape[1:], np.nan, "<f4").tobytes()
            for _ in range(self.shape[0]):
                file.write(nothing)

    def write(self, epoch: int, values: np.ndarray) -> None:
        """Writes the values of one epoch, of the array's shape without its first axis.

        They are on the disk at the end.
        """
        content = np.broadcast_to(values, self.shape[1:]).astype("<f4").tobytes()
        with self.path.open("r+b") as file:
            file.seek((epoch - self.shape[0]) * len(content), os.SEEK_END)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


class CsvLog:
    """One row an epoch; columns fixed from row one; every row on the disk before the next epoch starts."""

    def __init__(self, path: Path, columns: Sequence[str], epochs_done: int) -> None:
        self.path, self.columns = path, list(columns)
        text = path.read_text(encoding="utf-8") if epochs_done and path.exists() else ""
        lines = io.StringIO(text, newline="\n").readlines()
        kept = [line for line in lines[: epochs_done + 1] if line.endswith("\n")]
        if kept and kept[0] != ",".join(self.columns) + "\n":
            raise UserError(
                f"{path} was begun by another version of the program, with other columns: "
                f"{listing(sorted(set(kept[0].strip().split(',')) ^ set(self.columns)))}. Finish the run with that "
                "version, or remove it and start it anew."
            )
        if epochs_done and len(kept) != epochs_done + 1:
            raise UserError(
                f"{path} lost rows of the {epochs_done} epochs that are done; remove the run and start it anew."
            )
        with atomic_write(path, "w") as file:
            file.writelines(kept or [",".join(self.columns) + "\n"])

    def append(self, row: Mapping[str, float]) -> None:
        """Appends the row; a NaN is an empty cell."""
        if set(row) != set(self.columns):
            raise KeyError(f"columns differ: {set(row) ^ set(self.columns)}")
        cells = ["" if np.isnan(row[name]) else f"{row[name]:.8g}" for name in self.columns]
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(",".join(cells) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, size)  # a full disk takes half a row
            raise


# ------------------------------------------------------------------------------------------------- pictures


def write_masks(folder: Path, names: Sequence[str], masks: np.ndarray) -> None:
    """Writes one 8-bit PNG per slice; the grey levels are those of `masks` (S, W, H) uint8."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(item: tuple[str, np.ndarray]) -> None:
        name, mask = item
        with atomic_write(folder / f"{name}.png") as file:
            Image.fromarray(mask).save(file, format="png", compress_level=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, zip(names, masks, strict=True)))


def write_volumes(
    folder: Path, names: Sequence[str], masks: Sequence[np.ndarray], headers: Mapping[str, Header] | None
) -> None:
    """Writes one .nii.gz per volume (D, W, H) uint8, placed as the header of its image says, if that is known."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(names, masks, strict=True):
        header = header_at(np.eye(4)) if headers is None else headers[name]
        write_nifti(folder / f"{name}.nii.gz", mask, header)


# ----------------------------------------------------------------------------------------------- provenance


LIBRARIES = (torch, np, scipy)  # that compute what is learnt


def describe_code() -> dict[str, Any]:
    """Commit, uncommitted diff, versions and machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "diff": _git("diff", "HEAD"),
        "code": describe_sources(),
        "versions": {"python": platform.python_version()} | {each.__name__: each.__version__ for each in LIBRARIES},
        "platform": platform.platform(),
        "command": [sys.executable, *sys.argv],
        "threads": torch.get_num_threads(),
    }


ROOT = Path(__file__).parents[1]


def describe_sources() -> str:
    """SHA-256 over the modules of this program that are loaded, tests left out; whether they are committed or not."""
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    here = f"{ROOT}{os.sep}"
    files = [file.removeprefix(here) for file in loaded if file.startswith(here) and file.endswith(".py")]
    code = sorted(Path(file) for file in files if not re.search("(^|/)(tests|site-packages)/", file))
    return hashlib.sha256("".join(f"{path} {sha256_of(ROOT / path)}\n" for path in code).encode()).hexdigest()


def earlier_code(before: Mapping[str, Any], now: Mapping[str, Any], epochs_done: int) -> list[dict[str, Any]]:
    """What epochs were made with that are done already, if that was other code or libraries, the first of them first.

    before: the provenance of the run so far, with an "earlier" of its own
    now: of `describe_code`
    """
    earlier = list(before.get("earlier", []))
    mark = "code" if "code" in before else "commit"  # which older versions have alone
    if before and (before.get(mark) != now[mark] or other_versions(before, now)):
        earlier.append({name: before.get(name) for name in now} | {"until_epoch": epochs_done})
    return earlier


def other_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which libraries are others than before, with both versions; as far as an older run noted them."""
    noted = before.get("versions") or {}
    return [f"{name} {noted[name]} -> {new}" for name, new in now["versions"].items() if noted.get(name, new) != new]


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None  # a copy without its repository still trains
    return done.stdout.strip()
