"""What a function does, as a number: it changes when its code does, or that of what it calls.

A function is followed through the global names, closures and defaults that its code uses: to other functions, classes
and constants, in whatever module, up to installed libraries. Of those the version counts for the code as it was
compiled, and nothing for its source.
"""

import ast
import dis
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
IMPORT = dis.opmap["IMPORT_NAME"]


def code_hash(roots: Iterable[Any]) -> str:
    """SHA-256 of the code that these functions run, as it was compiled, and of the versions of their libraries.

    What an array that they made depends on.
    """
    return _hash(roots, _Way(_compiled, versions=True))


def source_hash(roots: Iterable[Any]) -> str:
    """SHA-256 of their source without comments, docstrings and words of errors: the same for other libraries."""
    return _hash(roots, _Way(_source, versions=False))


@dataclass(frozen=True)
class _Way:
    """What is said of a function of ours, and whether the versions of libraries count."""

    text: Callable[[FunctionType], str]
    versions: bool

    def version(self, module: str) -> str:
        return str(getattr(sys.modules.get(module.split(".")[0]), "__version__", "")) if self.versions else ""


def _hash(roots: Iterable[Any], way: _Way) -> str:
    seen: dict[int, Any] = {}
    parts = [part for root in roots for part in _reached("", root, way, seen)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _reached(name: str, value: Any, way: _Way, seen: dict[int, Any]) -> Iterator[str]:
    """A line for each thing that this value is made of or uses, each once."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        yield f"{name} = {value!r}"
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # held, as a number is given again once its object is gone
    if said := _said_of(name, value, way):
        yield said
    for each, item in _inside(name, value, way):
        if not each.startswith("__") or isinstance(item, FunctionType):
            yield from _reached(each, item, way, seen)


def _said_of(name: str, value: Any, way: _Way) -> str:
    """The line of the value itself; '' for one that is no more than what is in it."""
    match value:
        case list() | tuple() | dict() | staticmethod() | classmethod() | property():
            return ""
        case ModuleType():
            return f"{name} = module {value.__name__} {way.version(value.__name__)}"
        case FunctionType() | type() if _is_installed(value):
            return f"{name} = {value.__module__}.{value.__qualname__} {way.version(value.__module__)}"
        case FunctionType():
            return f"{name} = {way.text(value)}"
        case set() | frozenset():
            return f"{name} = {sorted(map(repr, value))}"
        case np.ndarray():
            return f"{name} = {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        case re.Pattern():
            return f"{name} = {value.pattern!r} {value.flags}"
    return f"{name} = a {type(value).__qualname__} {getattr(value, '__qualname__', '')}"


def _inside(name: str, value: Any, way: _Way) -> Iterable[tuple[str, Any]]:
    """What the value uses, or is made of."""
    match value:
        case FunctionType() if not _is_installed(value):
            return _used(value, way)
        case type() if not _is_installed(value):
            return [*vars(value).items(), *((base.__name__, base) for base in value.__bases__)]
        case staticmethod() | classmethod():
            return [(name, value.__func__)]
        case property():
            return [(name, value.fget)]
        case functools.partial():
            return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        case list() | tuple():
            return [(f"{name}[{number}]", item) for number, item in enumerate(value)]
        case dict():
            return [(f"{name}[{key!r}]", item) for key, item in value.items()]
    return ()


def _used(function: FunctionType, way: _Way) -> Iterator[tuple[str, Any]]:
    """What a function's code names: globals, attributes of modules of ours, closures, defaults."""
    names = dict.fromkeys(_names(function.__code__))
    for name in names:
        if name in function.__globals__:
            value = function.__globals__[name]
            yield name, value
            if isinstance(value, ModuleType) and not _is_installed(value):
                yield from ((f"{name}.{each}", vars(value)[each]) for each in names if each in vars(value))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # empty: a function that is defined later
            continue
    yield "imports", [_module_file(name, way) for name in _imports(function.__code__)]
    yield "defaults", function.__defaults__
    yield from (function.__kwdefaults__ or {}).items()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _imports(code: CodeType) -> Iterator[str]:
    """The modules that the code imports when it runs."""
    if IMPORT in code.co_code[::2]:  # few do, and to take all apart takes long
        yield from (each.argval for each in dis.get_instructions(code) if each.opcode == IMPORT)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant)


def _module_file(name: str, way: _Way) -> str:
    """What tells one state of a module from another, without importing it: its text, or of a library size and time."""
    try:
        place = Path(getattr(importlib.util.find_spec(name), "origin", None) or "")
        seen = place.stat()
    except (ImportError, ValueError, OSError):
        return name
    if _is_library(str(place)):
        return f"{name} {seen.st_size} {seen.st_mtime_ns}" if way.versions else name
    return f"{name} {hashlib.sha256(place.read_bytes()).hexdigest()}"


def _compiled(function: FunctionType) -> str:
    return _code_text(function.__code__, function.__doc__)


def _code_text(code: CodeType, doc: str | None = None) -> str:
    constants = [_constant_text(each) for each in code.co_consts if not (isinstance(each, str) and each == doc)]
    return repr((code.co_name, code.co_varnames, code.co_names, code.co_code.hex(), constants))


def _constant_text(constant: Any) -> str:
    if isinstance(constant, CodeType):
        return _code_text(constant)
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _source(function: FunctionType) -> str:
    """Its syntax tree without what changes no value; as compiled where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return _compiled(function)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            node.exc = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _is_installed(value: Any) -> bool:
    """Whether it is of Python or of an installed package."""
    module = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
    if place := getattr(module, "__file__", None):
        return _is_library(place)
    return getattr(module, "__name__", "").split(".")[0] in sys.stdlib_module_names


@functools.cache
def _is_library(place: str) -> bool:
    return place.startswith(LIBRARIES) or not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)
