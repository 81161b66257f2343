"""Files that somebody else wrote: whatever goes wrong with one is a sentence that names it and what mends it."""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes.errors import UserError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Refused(ValueError):
    """A file cannot be used. The message is the words that follow its name in a sentence."""


@contextmanager
def reading(path: Path, cure: str) -> Iterator[None]:
    """Turns whatever fails in this block into a UserError on this file, which ends in the cure, a clause.

    Readers raise anything over broken bytes, which no list of errors foresees. What is in words already (UserError, or
    Refused for words that go behind the file's name) stays as it is, and what the system says is no fault of the
    file's: it needs no cure.
    """
    try:
        yield
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # without a number it is a reader's own
            link = f"; it is a link to {path.readlink()}" if path.is_symlink() else ""
            raise UserError(f"{path} cannot be read ({error.strerror}){link}") from error
        raise UserError(f"{path} cannot be read ({in_words(error)}); {cure}.") from error


def in_words(error: Exception) -> str:
    """The complaint of a reader, in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def read_text(path: Path) -> str:
    """Reads a text file in any encoding: the one of its mark, else UTF-8, else Latin-1."""
    content = path.read_bytes()
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def parse_json(path: Path, cure: str) -> Any:
    """What a file of JSON holds. Raises UserError for anything else."""
    with reading(path, cure):
        try:
            return json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise Refused(f"is not JSON: {error}; {cure}.") from error


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """The object that a file of JSON should hold. Raises UserError for anything else."""
    found = parse_json(path, cure)
    if not isinstance(found, dict):
        raise UserError(f"{path} should hold one object of JSON, {{…}}, and holds a {type(found).__name__}; {cure}.")
    return found
