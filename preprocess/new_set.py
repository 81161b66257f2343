"""A new set of slices, volumes or pictures: its folder is whole or not there, and its card tells how it was made."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from files.faults import Fault, describe_faults
from processes.errors import UserError
from processes.lock import locked_name, sync_folder
from processes.ownership import left_over, new_name
from utils import atomic_write, counted


def refuse_existing(path: Path, flag: str) -> None:
    """Raises UserError if something is where a command is to write; `flag`: what names another place."""
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; remove it, or give another {flag}.")


def refuse_overwriting(path: Path) -> None:
    """Raises UserError if a file that a person may have worked on is there."""
    if os.path.lexists(path):
        raise UserError(f"{path} is there and is never overwritten: move it away, or write to another --out.")


@contextmanager
def whole_folder(dest: Path) -> Iterator[Path]:
    """A place next to `dest`, not yet made. It takes the name of `dest` when the block is over, and goes when it fails.

    Every start has a place of its own, where nothing that outlives a killed one can write. Raises UserError while
    another process makes `dest`, and where it is there.
    """
    with locked_name(dest):
        refuse_existing(dest, "--dest")
        for killed in left_over(dest, "new"):
            shutil.rmtree(killed, ignore_errors=True)
        made = new_name(dest, "new")
        try:
            yield made
            os.sync()  # thousands of small files: one call instead of one a file, before the name that vouches for them
            made.rename(dest)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        sync_folder(dest.parent)


def refuse(faults: Sequence[Fault], dest: Path) -> None:
    """Raises UserError that lists the faults, if there are any."""
    if faults:
        count = counted(len(faults), "fault")
        raise UserError(f"Nothing was written to {dest}, {count}: {describe_faults(faults)}")


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes dataset.json into the folder."""
    write_json(folder / "dataset.json", card)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a note that people read too, an entry a line."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
