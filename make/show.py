"""Prints one run readably, for `make -f prostate.make show RUN=sfda`: flag by flag, and the line that says it.

    show.py RUN FILES MAKEFILE… -- COMMON… -- OPT… -- TYPED…

RUN is its folder, FILES what it is made of, then the makefiles in the order in which make read them, and the flags that
all runs share, the run's own, and those that were typed; of two equal flags the later one counts.
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"\$\((?:call )?(\w+)")
WHOLE = re.compile(r"\$\((?:call )?(\w+)[^()]*\)(?=[\"'\s]|$)")  # nothing but the name
DEFINITION = re.compile(r"(?:override )?(\w+) *[:+?]?=(.*)", re.S)
OF_TARGET = re.compile(r"([^=\t#]+?): *(?:private )?(?:override )?(\w+) *[:+?]?=(.*)", re.S)
WIDTH = 72  # letters of a value's line


@dataclass(frozen=True)
class Definition:
    """A definition in a makefile: what is named, for which targets ('' for all), as which text, and where."""

    name: str
    targets: str
    text: str
    place: str


def logical_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number of its first line, and the line with those that a backslash continues."""
    lines = iter(enumerate(path.read_text(encoding="utf-8").split("\n"), 1))
    for number, line in lines:
        while line.endswith("\\"):
            line = line[:-1] + " " + next(lines, (0, ""))[1].strip()
        yield number, line


def definitions(path: Path) -> Iterator[Definition]:
    for number, text in logical_lines(path):
        if match := DEFINITION.fullmatch(text):
            yield Definition(match[1], "", match[2], f"{path}:{number}")
        elif match := OF_TARGET.fullmatch(text):
            yield Definition(match[2], match[1], match[3], f"{path}:{number}")


ByName = dict[str, list[Definition]]


def is_for(line: Definition, run: str, by_name: ByName) -> bool:
    """Whether a line of targets names this run, alone, by a pattern or in a list."""
    targets = line.targets
    for name in NAME.findall(targets):
        targets += " " + " ".join(other.text for other in by_name.get(name, ()))
    names = re.findall(r"[\w.%-]+", targets)
    return any(re.fullmatch(re.escape(name).replace("%", ".+"), run) for name in names if name.strip("%"))


def in_reach(name: str, run: str, by_name: ByName, visited: set[str]) -> Iterator[Definition]:
    """What defines a name, and the names in that: of the run's own lines the last one alone."""
    if name in visited:
        return
    visited.add(name)
    own = [line for line in by_name.get(name, ()) if line.targets and is_for(line, run, by_name)]
    for line in own[-1:] or [line for line in by_name.get(name, ()) if not line.targets]:
        yield line
        for other in NAME.findall(line.text):
            yield from in_reach(other, run, by_name, visited)


def by_flag(words: list[str]) -> list[tuple[str, list[str]]]:
    """Flags with all of their words, in order."""
    joined: list[tuple[str, list[str]]] = []
    for word in words:
        if re.match(r"--[a-z]", word) or not joined:
            name, has_value, value = word.partition("=")
            joined.append((name, [value] if has_value else []))
        else:
            joined[-1][1].append(word)
    return joined


def place_of(flag: str, value: str, reached: list[Definition]) -> str:
    """Where a flag gets its value: where that stands, by way of the names in it."""
    says = re.compile(rf"{flag}(?![\w-])[ =]*[\"']*(?P<value>.*)", re.S)
    best = _best([line for line in reached if says.search(line.text)], value, flag)
    if not best:
        return ""
    if not value:
        return f"{best.place}  {best.name}"
    text, rest = says.search(best.text)["value"], [line for line in reached if line != best]
    while named := WHOLE.match(text):
        deeper = _best([line for line in rest if line.name == named[1]], value)
        if not deeper:
            break
        best, text = deeper, deeper.text.strip()
        rest.remove(best)
    return f"{best.place}  {best.name}"


def _best(candidates: list[Definition], value: str, flag: str = "") -> Definition | None:
    """The one in whose text the value stands, else its first word; else the last, if it can one that computes it."""
    for part in (value, value.split(" ")[0]):
        if part and (exact := [line for line in candidates if re.search(rf"(^|[\s\"'=]){re.escape(part)}", line.text)]):
            return exact[-1]
    computed = [line for line in candidates if re.search(rf"{flag}[ =]+[\"']*\$\(", line.text)] if flag else []
    return (computed or candidates or [None])[-1]


def sections(words: list[str]) -> list[list[str]]:
    """The words between those that are --, of which there may be none."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def main() -> None:
    run, files, *rest = sys.argv[1:]
    makefiles, common, own, typed = sections(rest)
    by_name: ByName = {}
    for path in map(Path, makefiles):
        for line in definitions(path):
            by_name.setdefault(line.name, []).append(line)
    chosen: dict[str, tuple[str, str]] = {}
    for words, variable in ((common, "COMMON"), (own, "OPT")):
        reached = list(in_reach(variable, Path(run).name, by_name, set()))
        for flag, values in by_flag(words):
            chosen[flag] = (" ".join(values), place_of(flag, " ".join(values), reached))
    for flag, values in by_flag(typed):
        chosen[flag] = (" ".join(values), "the command line")
    print(f"{run} is made of {files or 'nothing'}, by main.py with")
    for flag, (value, place) in chosen.items():
        first, *others = textwrap.wrap(value, WIDTH, break_on_hyphens=False) or [""]
        print(f"  {flag:20} {first:{WIDTH}}  {place}".rstrip())
        for line in others:
            print(f"  {'':20} {line}")


if __name__ == "__main__":
    main()
