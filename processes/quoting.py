"""How words that came as data are written, so that no format takes them for its own language.

Names of files, folders, classes and sets, and what files next to the data say, may hold anything. Whoever writes them
passes them through the function of the format; whoever opens the file finds them again as words.
"""

import csv
import html
import io
import json
import math
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from processes.errors import UserError

# -------------------------------------------------------------------------------------------- screen, plain text

# what moves the cursor, ends a line or turns the direction of writing; a byte of a name that is no UTF-8
INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

EDGES = re.compile("(\r*)(.*?)(\r*)", re.DOTALL)


def visible(text: object, keep: str = "") -> str:
    r"""The text on one line, every letter of it to be seen: a line break becomes \n, what turns the writing \u202e.

    `keep`: those that stay as they are.
    """
    return INVISIBLE.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), str(text))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class VisibleStream:
    """A text stream to a terminal that no word steers: line breaks and tabs pass, the rest is made visible.

    bars: whether a return of the cursor may begin or end what is written, as it does with the bars of progress
    """

    def __init__(self, stream: TextIO, bars: bool = False) -> None:
        self._stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        before, words, after = EDGES.fullmatch(text).groups() if self._bars else ("", text, "")
        self._stream.write(before + visible(words, keep="\n\t") + after)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# -------------------------------------------------------------------------------------------------- shell, make

# letters that stand for themselves between single quotes of a shell, and in the value of a variable of make but for $
PLAIN = re.compile(r"[\w .,:=+*?@%^/(){}\[\]|<>!~&\\$-]*")
BARE = re.compile(rb"[\w .,:=+*?@%^/(){}\[\]|<>!~&-]")


def for_shell(word: str | Path) -> str:
    """One word of a command for bash, for a person to copy; a path is never taken for a flag."""
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    return _ansi_c(text) if INVISIBLE.search(text) else shlex.quote(text)


def for_recipe(text: str) -> str:
    """One word of a command of bash in the value of a variable of make, or in a recipe, which make expands once.

    Raises UserError for what no command can be given.
    """
    quoted = f"'{text}'" if PLAIN.fullmatch(text) else _ansi_c(text)
    return quoted.replace("$", "$$")


def _ansi_c(text: str) -> str:
    """bash's $'…', in which any byte can be written by its number."""
    if "\0" in text:
        raise UserError(f"No command can be given {text!r}: it holds a letter of number 0.")
    letters = (bytes([byte]) for byte in os.fsencode(text))
    return "$'" + "".join(c.decode() if BARE.fullmatch(c) else f"\\x{c[0]:02x}" for c in letters) + "'"


def for_comment(text: object) -> str:
    """What stands behind the # of a makefile or a csv, or the % of LaTeX: one line, and the next is none of it."""
    return visible(text).rstrip("\\")


# ------------------------------------------------------------------------------------------------------- LaTeX

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "|": r"\textbar{}", "<": r"$<$", ">": r"$>$"}


def for_latex(text: object) -> str:
    r"""Words of a paragraph or a cell; none begins as the option of the \\ or \item before it."""
    words = "".join(LATEX.get(letter, letter) for letter in visible(text))
    return "{}" * words.startswith(("[", "*")) + words


# ------------------------------------------------------------------------------------------------------ charts

CHART_LETTERS = 60  # of one name; a longer one leaves no room for the chart


def for_chart(text: object) -> str:
    """A name in a chart: one line, its middle left out where it is long, and no legend leaves it out.

    (Charts draw every letter as it is, $ included: plots.canvas switches the formulas of matplotlib off.)
    """
    words = visible(text)
    if len(words) > CHART_LETTERS:
        words = f"{words[: CHART_LETTERS // 2]}…{words[1 - CHART_LETTERS // 2 :]}"
    return f" {words}" if words.startswith("_") else words


# ------------------------------------------------------------------------------------------------ Markdown, HTML

MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\\": "&#92;"} | {c: f"\\{c}" for c in "`*[]#$~|"}
EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word means itself
LISTED = re.compile(r"[-+](?=\s|$)|[-=](?=[-=\s]*$)|\d+(?=[.)](\s|$))")  # how a list or a rule begins


def for_markdown(text: object) -> str:
    r"""Words of a heading, a line or a cell. A backslash is an entity, as \| is told in two ways by tables."""
    words = "".join(MARKDOWN.get(letter, letter) for letter in visible(text))
    words = EMPHASIS.sub(r"\\_", words)
    return f"&#{ord(words[0])};{words[1:]}" if LISTED.match(words) else words


def for_html(text: object) -> str:
    """Words of an element, or of an attribute in quotes."""
    return html.escape(visible(text))


def for_script(value: Any) -> str:
    """A value as an expression of a script in an HTML page: nothing in it begins or ends an element."""
    escapes = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}
    return json.dumps(value).translate(escapes)


# --------------------------------------------------------------------------------------------------------- csv

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠#]")  # what a spreadsheet calculates, in wide letters too; a comment

NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.ASCII | re.IGNORECASE)
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # in a file of UTF-8 text


def for_cell(value: Any) -> Any:
    """A cell of a csv file: words that a spreadsheet would take for a formula begin with ', numbers are as they are.

    NaN is an empty cell; what no csv file can hold is told by its number.
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    if not isinstance(value, str):
        return value
    text = UNWRITABLE.sub(lambda match: _escaped(match[0]), value)
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(text: str) -> str:
    """The words of a cell that `for_cell` wrote."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """The text of a csv file, its header being the first row."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(map(for_cell, row) for row in rows)
    return file.getvalue()
