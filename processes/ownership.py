"""What the program made itself, told by name or by mark: that alone is ever removed, replaced or moved.

    .<name>.<what>-<id>     hidden names, which nobody types, for what is not yet whole and for what was replaced
    .of-<program>           in a folder: begun by this program, and the files in it are its own
    .made                   in the folder of a finished run: the names of what the run wrote

A folder of any other kind is the user's, even if its name looks like ours. Nothing here needs torch.
"""

import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from processes.errors import UserError

RUN = "main.py"  # whose folders are moved into place, see lock.py
MADE = ".made"
RUN_FILES = (MADE, "last.pkl", "previous.pkl", "paused.pkl")  # what tells a run that bears no mark any more


# ---------------------------------------------------------------------------------------------------- by name


def new_name(path: Path, what: str) -> Path:
    """A name next to `path` that nothing has or had."""
    return path.with_name(f".{path.name}.{what}-{secrets.token_hex(4)}")


def left_over(path: Path, what: str) -> list[Path]:
    """What is there under such a name, of this start of the program or of one before."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{what}-[0-9a-f]{{8}}")
    if not path.parent.is_dir():
        return []
    return sorted(found for found in path.parent.iterdir() if pattern.fullmatch(found.name))


def remove(path: Path) -> None:
    """A folder with all that is in it, a file, or a link without what it shows."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- by mark


def visible_names(folder: Path) -> set[str]:
    """The names in it that are not hidden; none where it is not there."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {name for name in names if not name.startswith(".")}


def is_begun(folder: Path, program: str) -> bool:
    return (folder / f".of-{program}").exists()


def refuse_foreign(folder: Path, program: str, flag: str, *known: str) -> None:
    """Raises UserError if a folder that is to be written to is not empty and `program` did not begin it.

    known: files that such a folder may have instead of the mark
    """
    names = sorted(visible_names(folder))
    if names and not is_begun(folder, program) and not any((folder / name).is_file() for name in known):
        some = ", ".join(names[:3]) + ", …" * (len(names) > 3)
        raise UserError(
            f"{folder} is there, and {program} did not begin it (it has no .of-{program}): nothing in it is touched "
            f"({some}). Move it away, or name another {flag}."
        )


def refuse_file(folder: Path, flag: str) -> None:
    """Raises UserError if a file lies where a folder is to be written to, or above it."""
    if file := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        within = "" if file == folder else f", and cannot hold {folder.relative_to(file)}"
        raise UserError(f"{file} is a file{within}: name a folder with {flag}, which is made where it is not there.")


def refuse_taken(folder: Path, program: str, flag: str, *known: str) -> None:
    """Raises UserError unless `program` may write to this folder: for a file in its way, and for a foreign folder."""
    refuse_file(folder, flag)
    refuse_foreign(folder, program, flag, *known)


def begin(folder: Path, program: str) -> None:
    """Makes the folder and marks it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".of-{program}").touch()


def strangers(folder: Path) -> list[str]:
    """What is in the folder of a run and was not made by it, as far as it tells: all where it does not."""
    return sorted(visible_names(folder) - made_by_run(folder))


def made_by_run(folder: Path) -> set[str]:
    """The names of what a finished run wrote."""
    try:
        return set((folder / MADE).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return set()


def note_made(folder: Path, names: Iterable[str]) -> None:
    """Adds these to what a run has made."""
    (folder / MADE).write_text("".join(f"{name}\n" for name in sorted(made_by_run(folder).union(names))), "utf-8")


# ------------------------------------------------------------------------------------------------- of the input


def refuse_input(out: Path, inputs: Iterable[Path], flag: str) -> None:
    """Raises UserError if `out` is one of the files that are read, by whatever name, or lies in one of the folders."""
    for path in inputs:
        place = out.parent if path.is_dir() else out
        if path.exists() and place.exists() and path.samefile(place):
            what = "lies among the files" if path.is_dir() else "is the file"
            raise UserError(f"{flag} {out} {what} that this is made of ({path}), and those are kept: name another.")
