"""What a study was asked for: its rows, its seeds, and what its rows are compared with, in study.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from files.foreign import read_json
from processes.errors import UserError
from processes.ownership import refuse_file
from utils import atomic_write, doubled, fits

NAME = "study.json"
AGAIN = "ask for the study again: make -f <set>.make study"


@dataclass(frozen=True)
class Asked:
    """What a study is about; its runs lie in seed<seed>/<row> of its folder.

    references   rows that the others are tested against, one family of tests each (those of them that are rows)
    lower, upper   the rows that close nothing and all of the gap
    earlier      rows and seeds that were asked for before in this folder: who looked at results, and then asked for
                 other rows, has made another family of tests
    """

    name: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    references: tuple[str, ...] = ("noadap", "sfda")
    lower: str = "noadap"
    upper: str = "fs"
    earlier: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for rows or seeds that are none, or named twice."""
        for what, names in (("row", self.rows), ("seed", self.seeds)):
            if not names:
                raise UserError(f"A study has at least one {what}; none is named.")
            if twice := doubled(names):
                raise UserError(f"The {what} {twice[0]} is named twice; a study has each once.")
        if wrong := [seed for seed in self.seeds if seed < 0]:
            raise UserError(f"A seed is a whole number of at least 0, not {wrong[0]}.")


KINDS = {"name": str, "rows": Sequence[str], "seeds": Sequence[int], "references": Sequence[str]}
KINDS |= {"lower": str, "upper": str, "earlier": Sequence[Mapping[str, Any]]}


def read_asked(folder: Path) -> Asked:
    """What was asked for in this folder. Raises UserError where nothing was, or where study.json says no such thing."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{path} is not there, so {folder} is no study; {AGAIN}.")
    told = read_json(path, AGAIN)
    wrong = [key for key, kind in KINDS.items() if not fits(told.get(key), kind)]
    if wrong:
        raise UserError(f"{path} says {wrong[0]}: {told.get(wrong[0])!r}, which no study can be of; {AGAIN}.")
    return Asked(**{key: tuple(told[key]) if isinstance(told[key], list) else told[key] for key in KINDS})


def write_asked(folder: Path, asked: Asked) -> Asked:
    """Notes in study.json what is asked for, and keeps what was asked for before; asked again, nothing is written."""
    refuse_file(folder, "--folder")
    before = read_asked(folder) if (folder / NAME).is_file() else None
    if before:
        same = (before.rows, before.seeds) == (asked.rows, asked.seeds)
        former = () if same else ({"rows": list(before.rows), "seeds": list(before.seeds)},)
        asked = Asked(**asdict(asked) | {"earlier": before.earlier + former})
    if asked != before:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / NAME, "w") as file:
            file.write(json.dumps(asdict(asked), indent=1) + "\n")
    return asked
