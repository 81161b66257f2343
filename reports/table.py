"""A table in words, and what it is written as: text, csv, Markdown, LaTeX."""

import csv
import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BLOCKS = {
    "last": "Last epoch (nothing was chosen with target labels)",
    "best_3d": "Best epoch (chosen with target labels, hence optimistic)",
}
NOTHING = "–"
NOTE_WIDTH = 110


@dataclass(frozen=True)
class Report:
    """The table in words, whatever it is written as; the csv has every digit instead."""

    title: str
    warnings: list[str]
    header: list[str]
    blocks: list[tuple[str, list[list[str]]]]  # heading, rows
    notes: list[str]
    lines: list[dict[str, Any]]  # of the csv


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def as_text(report: Report) -> str:
    """For the screen and .txt."""
    header, ruler, *rows = aligned(report.header, [row for _, block in report.blocks for row in block])
    lines, shown = [report.title, *boxed(report.warnings)], iter(rows)
    for heading, block in report.blocks:
        lines += ["", heading, header, ruler, *itertools.islice(shown, len(block))]
    notes = [textwrap.fill(note, NOTE_WIDTH, initial_indent="- ", subsequent_indent="  ") for note in report.notes]
    return "\n".join([*lines, "", *notes, ""])


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with their cells in columns: the header, a ruler, the rows."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    cells = [header, ["-" * width for width in widths], *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def boxed(warnings: Sequence[str]) -> list[str]:
    """Warnings in a frame that nobody overlooks, after an empty line; nothing where there is none."""
    if not warnings:
        return []
    width = max(map(len, warnings))
    rule = "*" * (width + 8)
    return ["", rule, *(f"*** {warning.ljust(width)} ***" for warning in warnings), rule]


def as_markdown(report: Report) -> str:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    lines = [f"### {report.title}", ""]
    lines += [f"> **{warning}**  " for warning in report.warnings]
    for heading, block in report.blocks:
        lines += ["", f"**{heading}**", "", line(report.header), line(["---"] * len(report.header)), *map(line, block)]
    return "\n".join([*lines, "", *(f"- {note}" for note in report.notes), ""])


def as_latex(report: Report) -> str:
    r"""A tabular for \usepackage{booktabs}, the warnings inside it."""
    columns = len(report.header)

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(escape_latex, row)) + r" \\"

    def across(words: str) -> str:
        return rf"\multicolumn{{{columns}}}{{l}}{{{words}}} \\"

    lines = [rf"% {report.title}; needs \usepackage{{booktabs}}", rf"\begin{{tabular}}{{{'l' * columns}}}", r"\toprule"]
    lines += [across(rf"\textbf{{{escape_latex(warning)}}}") for warning in report.warnings]
    lines += [line(report.header)]
    for heading, block in report.blocks:
        lines += [r"\midrule", across(rf"\emph{{{escape_latex(heading)}}}"), *map(line, block)]
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\par\smallskip\footnotesize"]
    return "\n".join([*lines, *map(escape_latex, report.notes), ""])


def escape_latex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "<": r"$<$", ">": r"$>$"}
    return "".join(special.get(letter, letter) for letter in text)


def as_csv(report: Report) -> str:
    """Every digit; an empty cell where there is no number."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(report.lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in report.lines:
        writer.writerow(
            {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        )
    return file.getvalue()
