"""What every module needs: errors a user can mend, registries, the OPT-string reader, safe file writing."""

from processes.ctrl_c import ASKED, pressed, tell

import argparse
import ast
import builtins
import difflib
import hashlib
import inspect
import io
import os
import random
import re
import signal
import sys
import threading
import types
import typing
from collections import Counter, abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import IO, Any, get_args, get_origin

import numpy as np

from processes.errors import UserError
from processes.lock import own_part, sync_folder
from processes.quoting import VisibleStream, visible


def listing(names: Iterable[Any], limit: int = 12) -> str:
    """The names in one line, the count of those left out at the end."""
    names = [visible(name) for name in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, … ({len(names) - limit} more)"


def doubled(items: Iterable[Any]) -> list[Any]:
    """What is there several times, in order."""
    return sorted(item for item, times in Counter(items).items() if times > 1)


def counted(number: int, noun: str) -> str:
    """'1 patient', '2 patients': the noun in the singular, with a plural in s."""
    return f"{number} {noun}{'s' * (number != 1)}"


FILE_FIRST = re.compile(r"(\S.*?\.(?:png|npy|nii|nii\.gz)(?= )|)(.*)", re.IGNORECASE | re.DOTALL)


def about_faulty(faults: Sequence[str], kind: str = "file", limit: int = 8) -> str:
    """How many there are, and what is wrong with each: clauses that begin with the file's name.

    What is wrong with several of them, word by word, is said once.
    """
    groups: dict[str, list[str]] = {}
    for fault in faults[:limit]:
        file, what = FILE_FIRST.fullmatch(fault).groups()
        groups.setdefault(what.removesuffix("."), []).append(file)
    same = {what: f" (the same: {', '.join(rest)})" if any(rest) else "" for what, (_, *rest) in groups.items()}
    shown = "; ".join(f"{files[0]}{what}{same[what]}" for what, files in groups.items())
    more = f"; … ({len(faults) - limit} more)" if len(faults) > limit else ""
    return f"{counted(len(faults), f'faulty {kind}')}: {shown}{more}."


def nearest(name: str, known: Iterable[str]) -> str:
    """The part of an error message that helps with a misspelt name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(known)}."


class Registry:
    """Named classes or functions of one kind, filled by decorator, built by name and parameters.

    >>> LOSSES = Registry("loss")
    >>> @LOSSES.register()
    ... class Nothing: ...
    """

    def __init__(self, kind: str, naming: Callable[[str], str] = str, typed: bool = False) -> None:
        """`naming` makes the registered name out of the Python name, as in Registry("method", str.lower).

        typed: whether `build` holds parameters to the types of the signature; entries that look themselves say more
        """
        self.kind, self.naming, self.typed = kind, naming, typed
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, *aliases: str) -> Callable[[Any], Any]:
        """Decorator: enters the class or function under its own name and each alias."""

        def enter(entry: Any) -> Any:
            for name in (self.naming(entry.__name__), *aliases):
                if name in self._entries:
                    raise KeyError(f"{self.kind} '{name}' is registered twice")
                self._entries[name] = entry
            return entry

        return enter

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._entries:
            raise UserError(f"There is no {self.kind} '{name}'.{nearest(str(name), self._entries)}")
        return self._entries[name]

    def takes(self, name: str, parameter: str) -> bool:
        """Whether the entry has this parameter."""
        return parameter in inspect.signature(self[name]).parameters

    def build(self, name: str, *args: Any, **params: Any) -> Any:
        """The entry called with these parameters, each checked against its signature first.

        Raises UserError for an unknown name, an unknown parameter or a missing one. If the registry is `typed`, raises
        it for values that are not of the types that the signature states, too.
        """
        entry = self[name]
        signature = inspect.signature(entry)
        known = {p.name: p.annotation for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        unknown = [key for key in params if key not in known]
        if unknown:
            raise UserError(f"{self.kind} '{name}' has no parameter '{unknown[0]}'.{nearest(unknown[0], known)}")
        wrong = [
            f"'{key}' takes {described(known[key])}, not {value!r}"
            for key, value in params.items()
            if self.typed and not fits(value, known[key])
        ]
        if wrong:
            raise UserError(f"{self.kind} '{name}': {'; '.join(wrong)}.")
        params = {key: as_stated(value, known[key]) for key, value in params.items()}
        try:
            signature.bind(*args, **params)
        except TypeError as error:
            raise UserError(f"{self.kind} '{name}': {error}. Its parameters: {signature}.") from error
        return entry(*args, **params)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type that an annotation states; an annotation of another sort fits whatever comes.

    A number is finite; 0 and 1 are also truth values; a list may be a tuple.
    """
    parts = get_args(kind)
    match get_origin(kind) or kind:
        case types.UnionType | typing.Union:
            return any(fits(value, part) for part in parts)
        case typing.Literal:
            return any(type(value) is type(part) and value == part for part in parts)
        case abc.Mapping:
            return isinstance(value, abc.Mapping) and all(
                fits(key, parts[0]) and fits(each, parts[1]) for key, each in value.items()
            )
        case abc.Sequence:
            return isinstance(value, list | tuple) and all(fits(each, parts[0]) for each in value)
        case builtins.bool:
            return isinstance(value, bool | int) and value in (0, 1)
        case builtins.int:
            return isinstance(value, int) and not isinstance(value, bool)
        case builtins.float:
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        case builtins.str | types.NoneType as exact:
            return isinstance(value, exact)
    return True


def typed(state: Mapping[str, Any], kinds: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of these entries, in this order.

    Raises KeyError for an entry that lacks, and ValueError for one of another type than is stated, see `fits`.
    """
    wrong = [
        f"{name} is {state[name]!r:.40}, expected {described(kind)}"
        for name, kind in kinds.items()
        if not fits(state[name], kind)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(state[name] for name in kinds)


def as_stated(value: Any, kind: Any) -> Any:
    """A whole number as a float, where the annotation knows no whole numbers; any other value as it is."""
    parts = get_args(kind) or (kind,)
    return float(value) if type(value) is int and float in parts and int not in parts else value


def described(kind: Any) -> str:
    """A type in words, for an error message."""
    parts = get_args(kind)
    match get_origin(kind) or kind:
        case types.UnionType | typing.Union:
            return " or ".join(described(part) for part in parts)
        case typing.Literal:
            return " or ".join(repr(part) for part in parts)
        case abc.Mapping:
            return f"a dict of {_PLURALS.get(parts[0], 'values')}"
        case abc.Sequence:
            return f"a list of {_PLURALS.get(parts[0], 'values')}"
    return _WORDS.get(kind, str(kind))


_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word", types.NoneType: "None"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "words"}


# ------------------------------------------------------------------------------------------------- settings

T = typing.TypeVar("T")


def settings_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """The settings of this dataclass out of values by name, such as all flags of a program: each field is one of them.

    A default in the dataclass does not count. Raises KeyError that lists the fields of which there is no value.
    """
    names = [each.name for each in fields(kind)]
    if lacking := [name for name in names if name not in values]:
        raise KeyError(f"{kind.__qualname__} has fields that are no flags: {listing(lacking)}")
    return kind(**{name: values[name] for name in names})


# ---------------------------------------------------------------------------------------------- OPT strings


NAME = re.compile(r"[^\W\d_]\w*(\.[^\W\d_]\w*)*")  # also torch.tensor; no part begins with an underscore


def read_literal(text: str) -> Any:
    """The value of an OPT string: literals, bare or dotted names (which stand for themselves) and sums of lists.

    Nothing is evaluated: a call, an attribute of anything but a name, arithmetic or a comprehension raises
    UserError with the text and the place.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _literal(tree.body, text.strip())
    except SyntaxError as error:
        raise UserError(f"Cannot read {text!r}: {error.msg} at character {error.offset}.") from error
    except (RecursionError, MemoryError, ValueError, TypeError) as error:
        raise UserError(f"Cannot read the {len(text)} characters {text[:80]!r}…: {error}.") from error


def _literal(node: ast.expr, text: str) -> Any:
    def read(child: ast.expr) -> Any:
        return _literal(child, text)

    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute() if NAME.fullmatch(name := ast.unparse(node)):
            return name
        case ast.List():
            return [read(item) for item in node.elts]
        case ast.Tuple():
            return tuple(read(item) for item in node.elts)
        case ast.Dict() if all(node.keys):
            return {read(key): read(value) for key, value in zip(node.keys, node.values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.BinOp(op=ast.Add()):
            left, right = read(node.left), read(node.right)
            if isinstance(left, list) and isinstance(right, list):
                return left + right
    place = ast.get_source_segment(text, node) or text
    raise UserError(
        f"Cannot accept '{place}' at character {node.col_offset + 1} of {text!r}: an OPT string holds "
        "numbers, strings, names, tuples, lists, dicts and sums of lists; nothing in it is run."
    )


# ----------------------------------------------------------------------------------------------- labels

ROUNDING = 1e-3  # a label this near to a whole number is it: floats written under an int16 header are read as 3 ± 7e-10


def whole(labels: np.ndarray) -> np.ndarray:
    """Labels of any shape as whole numbers if all lie within ROUNDING of them, else the labels as they are."""
    if labels.dtype.kind != "f":
        return labels
    nearest = np.rint(labels)
    return nearest if (np.abs(labels - nearest) <= ROUNDING).all() else labels


# ------------------------------------------------------------------------------------------------ files


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is whole and on the disk.

    It is written next to its place under a hidden name of its own, flushed to the disk, then renamed. On any error that
    part goes away, and what stood under the name stays.
    """
    path = Path(path)
    with own_part(path) as (descriptor, part):
        try:
            text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
            with open(descriptor, mode, closefd=False, **text) as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ONE_AT_A_TIME = threading.Lock()


def load_npy(file: str | Path | IO[bytes], **how: Any) -> np.ndarray:
    """The array of a .npy file, never a pickle. `how` goes to np.load, which may raise.

    One thread at a time: `ast` reads the header. Before Python 3.11.8 all threads share its count of how deep it is, so
    two of them at once end now and then in a SystemError.
    """
    with ONE_AT_A_TIME:
        return np.load(file, allow_pickle=False, **how)


# ------------------------------------------------------------------------------------------- randomness


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch (every device)."""
    import torch  # here, as the programs that only read and write volumes should not have to wait for it

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  third-party code draws from the global state
    torch.manual_seed(seed)


def derived_seed(*parts: int) -> int:
    """One seed out of several numbers (run seed, epoch, stream, …), the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


# ---------------------------------------------------------------------------------------------- programs


@cache
def tell_once(text: str) -> None:
    """A line on the screen, the first time that a process has it to say, or none; of several processes one speaks."""
    if text and os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


@contextmanager
def _sigterm_leaves() -> Iterator[None]:
    """SIGTERM raises SystemExit here, as long as this lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _leave:  # who was asked to end is not asked again while it does
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: types.FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # make, its parent and a scheduler each pass theirs on
    raise SystemExit(128 + number)


class ProgramParser(argparse.ArgumentParser):
    """The command line of a program, or of a command of one: `--debug`, flags in full, the description as it stands."""

    def __init__(self, prog: str, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, **{"formatter_class": formatter, "allow_abbrev": False} | options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run_program(main: Callable[[], None]) -> None:
    """Runs a command-line program: what is wrong becomes one paragraph and exit code 2, Ctrl-C a line.

    Wrong is a UserError, a failed write, or too little memory.

    `--debug` on the command line lets the traceback through. A letter that the screen cannot show becomes a question
    mark, and no error; one that would steer it is told by its number. SIGTERM, as of a make that is stopped, ends the
    program as Ctrl-C does: with what is half done tidied away.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            setattr(sys, name, VisibleStream(stream, bars=name == "stderr"))
    try:
        if pressed:  # while a library was imported that took it for a fault of its own, and went on
            raise KeyboardInterrupt
        with _sigterm_leaves():
            main()
    except KeyboardInterrupt:
        pressed.clear()
        tell()
        raise SystemExit(ASKED) from None
    except (UserError, OSError, MemoryError) as error:
        if "--debug" in sys.argv:
            raise
        kinds = {UserError: "", OSError: "The file system refused: ", MemoryError: "The memory does not suffice: "}
        kind = next(words for kind, words in kinds.items() if isinstance(error, kind))
        if os.environ.get("RANK", "0") == "0":  # of several processes, which all found the same fault, one speaks
            print(f"{Path(sys.argv[0]).name}: {kind}{visible(error)}", file=sys.stderr)
        raise SystemExit(2) from None
