"""A table in words, and what it is written as: text, csv, Markdown, LaTeX."""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from processes.quoting import csv_text, for_comment, for_latex, for_markdown, visible

BLOCKS = {
    "last": "Last epoch (nothing was chosen with target labels)",
    "best_3d": "Best epoch (chosen with target labels, hence optimistic)",
}
NOTHING = "–"
NOTE_WIDTH = 110
LATEX_WIDTH = 84  # letters of \footnotesize across a page of the class article
LATEX_GAP = 3  # letters between two columns


@dataclass(frozen=True)
class Comparison:
    """What runs are compared with, and how, under the names of the flags."""

    lower: str  # the run that closes nothing of the gap, if it is there
    upper: str  # the run that closes all of it, likewise
    reference: str | None  # the run, experiment or kind that the others are tested against, if one was named
    draws: str | None  # regular expression: what tells the draws of one experiment apart in their names
    iou: bool  # whether intersection over union stands next to Dice


@dataclass(frozen=True)
class Summary:
    """A small table above the others; the cells of its column number `strong` are in bold where a format has that."""

    heading: str
    header: list[str]
    rows: list[list[str]]
    strong: int


@dataclass(frozen=True)
class Report:
    """The table in words, the same for text, Markdown and LaTeX; the csv has every digit instead."""

    title: str
    warnings: list[str]
    header: list[str]
    blocks: list[tuple[str, list[list[str]]]]  # heading, rows
    notes: list[str]
    lines: list[dict[str, Any]]  # of the csv
    summary: Summary | None = None


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def as_text(report: Report) -> str:
    """The table as plain text, for the screen and .txt."""
    header, ruler, *rows = aligned(report.header, [row for _, block in report.blocks for row in block])
    lines, shown = [visible(report.title), *boxed(report.warnings)], iter(rows)
    if summary := report.summary:
        lines += ["", summary.heading, *aligned(summary.header, summary.rows)]
    for heading, block in report.blocks:
        lines += ["", heading, header, ruler, *itertools.islice(shown, len(block))]
    notes = [
        textwrap.fill(visible(note), NOTE_WIDTH, initial_indent="- ", subsequent_indent="  ") for note in report.notes
    ]
    return "\n".join([*lines, "", *notes, ""])


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with their cells in columns: the header, a ruler, the rows."""
    header, *rows = ([visible(cell) for cell in row] for row in (header, *rows))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    cells = [header, ["-" * width for width in widths], *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def boxed(warnings: Sequence[str]) -> list[str]:
    """Warnings in a frame that nobody overlooks, after an empty line; nothing where there is none."""
    if not warnings:
        return []
    warnings = [visible(warning) for warning in warnings]
    width = max(map(len, warnings))
    rule = "*" * (width + 8)
    return ["", rule, *(f"*** {warning.ljust(width)} ***" for warning in warnings), rule]


def as_markdown(report: Report) -> str:
    lines = [f"### {for_markdown(report.title)}", ""]
    lines += [f"> **{for_markdown(warning)}**  " for warning in report.warnings]
    if summary := report.summary:
        lines += _markdown_table(summary.heading, summary.header, summary.rows, summary.strong)
    for heading, block in report.blocks:
        lines += _markdown_table(heading, report.header, block)
    return "\n".join([*lines, "", *(f"- {for_markdown(note)}" for note in report.notes), ""])


def _markdown_table(heading: str, header: Sequence[str], rows: Sequence[Sequence[str]], strong: int = -1) -> list[str]:
    """The lines of a table under its heading; the cells of column number `strong` are in bold."""

    def line(row: Sequence[str], strong: int = -1) -> str:
        cells = map(for_markdown, row)
        return "| " + " | ".join(f"**{cell}**" if n == strong else cell for n, cell in enumerate(cells)) + " |"

    body = [line(row, strong) for row in rows]
    return ["", f"**{for_markdown(heading)}**", "", line(header), "|" + " --- |" * len(header), *body]


def as_latex(report: Report) -> str:
    r"""Tabulars for \usepackage{booktabs}, in a group of their own: warnings, the columns in pieces that fit, notes.

    Each piece is as wide as a page of the class `article` is at most, and begins with the first column.
    """
    lines = [rf"% {for_comment(report.title)}; needs \usepackage{{booktabs}}", r"\begingroup\footnotesize"]
    lines += [rf"\noindent\textbf{{{for_latex(warning)}}}\par" for warning in report.warnings]
    if summary := report.summary:
        lines += _tabulars(summary.header, [(summary.heading, summary.rows)], summary.strong)
    lines += _tabulars(report.header, report.blocks)
    if report.notes:
        lines += [r"\begin{itemize}", *(rf"\item {for_latex(note)}" for note in report.notes), r"\end{itemize}"]
    return "\n".join([*lines, r"\endgroup", ""])


def _tabulars(header: Sequence[str], blocks: Sequence[tuple[str, list[list[str]]]], strong: int = -1) -> list[str]:
    """The lines of a table, blocks under their headings, in pieces that fit; column number `strong` is in bold."""
    rows, lines = [row for _, block in blocks for row in block], []

    def line(row: Sequence[str], columns: Sequence[int], strong: int = -1) -> str:
        cells = ((n, for_latex(row[n])) for n in columns)
        return " & ".join(rf"\textbf{{{cell}}}" if n == strong else cell for n, cell in cells) + r" \\"

    for columns in _pieces([max(map(len, cells)) for cells in zip(header, *rows, strict=True)]):
        lines += [r"\par\medskip\noindent", rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule"]
        lines.append(line(header, columns))
        for heading, block in blocks:
            across = rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{for_latex(heading)}}}}} \\"
            lines += [r"\midrule", across, *(line(row, columns, strong) for row in block)]
        lines += [r"\bottomrule", r"\end{tabular}\par"]
    return lines


def _pieces(widths: Sequence[int]) -> list[list[int]]:
    """The columns, of so many letters, in pieces of LATEX_WIDTH at most, the first column in each."""
    pieces, used = [[0]], widths[0]
    for column, width in enumerate(widths[1:], 1):
        used += LATEX_GAP + width
        if used > LATEX_WIDTH and len(pieces[-1]) > 1:
            pieces.append([0])
            used = widths[0] + LATEX_GAP + width
        pieces[-1].append(column)
    return pieces


def as_csv(report: Report) -> str:
    """The table as csv, with every digit, and an empty cell where there is no number.

    The column of candidates is left out where nothing was chosen.
    """
    empty = not any(line.get("candidate") for line in report.lines)
    columns = [name for name in report.lines[0] if name != "candidate" or not empty]
    return csv_text([columns, *([line[name] for name in columns] for line in report.lines)])
