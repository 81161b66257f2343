"""The tables of a study as they stand in its csv files, and the differences between rows as a forest plot."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from analysis.tables.table import NOTHING, Report
from processes.errors import UserError
from study.page.charts import BLUE, FAINT, GREY, VERMILLION, dress, reach
from study.page.template import fill, letters
from study.reading import Study
from study.tables.words import warnings

Tables = Mapping[str, Report]  # as study.report names them
Line = Mapping[str, Any]  # of the csv of comparisons
ROW_HEIGHT = 36  # pixels of a row of the forest
CELL = re.compile(r"(.*?)(?: \((.*)\))?", re.DOTALL)  # a number, and behind it an interval or a count in brackets
FIRST = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
MARKS = "marks"  # the column that stands beneath the row's name, as a page is not that wide
LAST_PLACE = -1e9  # where a cell without a number is sorted
SIGNIFICANT, SMALL = 0.05, 0.001  # a p below the second is told as that
LOOKS = {"better": (BLUE, "square"), "worse": (VERMILLION, "square"), "undecided": (GREY, "square-open")}


def results(study: Study, tables: Tables) -> Markup:
    """The section. Raises UserError where the headline was not made."""
    comparisons = tables.get("comparisons")
    families: dict[tuple[str, str], list[Line]] = {}
    for line in comparisons.lines if comparisons else ():
        families.setdefault((line["images"], line["reference"]), []).append(line)
    return fill(
        "results.html",
        headline=table("headline", study, tables),
        forests={key: _forest(study, key[1], family) for key, family in families.items()},
        several=len({images for images, _ in families}) > 1,
        comparisons=table("comparisons", study, tables) if comparisons else "",
        score=study.score_name,
        level=SIGNIFICANT,
    )


# ------------------------------------------------------------------------------------------------ tables


def table(name: str, study: Study, tables: Tables) -> Markup:
    """One of the tables, the row without adaptation told apart. Raises UserError where it was not made."""
    if name not in tables:
        raise UserError(f"There is no table of this: {name}.csv was not made, as runs are missing.")
    return table_of(tables[name], study.asked.lower, warnings(study))


def table_of(report: Report, marked: str = "", told: Sequence[str] = ()) -> Markup:
    """A report as tables that can be sorted, with its warnings above and its notes below.

    marked: the row that is told apart, if it is there; told: warnings that stand at the head of the page
    """
    columns = [*zip(*(row for _, rows in report.blocks for row in rows), strict=True)]
    kept = [n for n, cells in enumerate(columns) if {*cells} - {"", NOTHING} and report.header[n] != MARKS]
    blocks = [
        (title, [([_cell(row[n]) for n in kept], _marks(report, row)) for row in rows]) for title, rows in report.blocks
    ]
    header, numeric = [report.header[n] for n in kept], [_is_of_numbers(columns[n]) for n in kept]
    words = {"warnings": [line for line in report.warnings if line not in told], "notes": report.notes}
    return fill("table.html", header=header, numeric=numeric, blocks=blocks, marked=marked, **words)


def _cell(text: str) -> dict[str, str | float]:
    """A cell: what is large, what is small beside it, and the number that it is sorted by."""
    large, small = CELL.fullmatch(text).groups()
    number = FIRST.match(text)
    small = (small or "").replace(") (", ", ")  # an interval, and the number of patients
    small = small if {*"+-"} & {*small} else small.replace(" to ", "–")
    return {"large": large, "small": small, "order": float(number[0]) if number else LAST_PLACE}


def _marks(report: Report, row: Sequence[str]) -> str:
    return row[report.header.index(MARKS)] if MARKS in report.header else ""


def _is_of_numbers(cells: Sequence[str]) -> bool:
    known = [cell for cell in cells if cell not in ("", NOTHING, "undefined")]
    return all(map(FIRST.match, known)) and bool(known)


# ------------------------------------------------------------------------------------------------ forest


def _forest(study: Study, reference: str, family: Sequence[Line]) -> go.Figure:
    """The differences from a row, one below another, with their intervals and those of the seeds."""
    figure = go.Figure()
    for place, line in enumerate(family):
        figure.add_trace(_seeds(study, line["row"], reference, place))
        figure.add_trace(_interval(line, place))
        figure.add_annotation(_words(line, place))
    dress(figure, ROW_HEIGHT * len(family) + 90, margin={"l": 60, "r": 250, "t": 20, "b": 50})
    figure.add_vline(0, line={"color": GREY, "width": 1.5})
    figure.update_yaxes(tickvals=[*range(len(family))], ticktext=[letters(line["row"]) for line in family])
    figure.update_yaxes(range=[len(family) - 0.5, -0.5], showgrid=False)
    ends = [line[f"difference_{end}"] for line in family for end in ("low", "high")]
    seen = [x for x in [*ends, *(x for trace in figure.data for x in trace.x)] if math.isfinite(x)]
    figure.update_xaxes(title_text=f"difference in {study.score_name}", range=reach([0, *seen]))
    return figure


def verdict(line: Line) -> str:
    """'better' or 'worse' where the tests after Holm say so, else 'undecided'."""
    if not line["p_holm"] <= SIGNIFICANT:
        return "undecided"
    return "better" if line["difference_mean"] > 0 else "worse"


def _seeds(study: Study, row: str, reference: str, place: int) -> go.Scatter:
    """The mean difference of each seed that both have."""
    means = (study.scores(row, study.score) - study.scores(reference, study.score)).mean().dropna()
    return go.Scatter(
        x=means.round(5).tolist(),
        y=[place] * len(means),
        customdata=means.index.tolist(),
        mode="markers",
        marker={"symbol": "line-ns", "size": 13, "line": {"color": FAINT, "width": 2}},
        hovertemplate="seed %{customdata}: %{x:+.3f}<extra></extra>",
    )


def _interval(line: Line, place: int) -> go.Scatter:
    """The mean and its interval, which does not reach anywhere where none is known."""
    mean, low, high = (line[f"difference_{end}"] for end in ("mean", "low", "high"))
    known = math.isfinite(low) and math.isfinite(high)
    colour, symbol = LOOKS[verdict(line)]
    return go.Scatter(
        x=[mean],
        y=[place],
        mode="markers",
        marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2, "color": colour}},
        error_x={
            "array": [high - mean if known else 0],
            "arrayminus": [mean - low if known else 0],
            "color": colour,
            "thickness": 2,
            "width": 5,
        },
        text=[letters(line["row"])],
        hovertemplate="%{text}: %{x:+.3f}<extra></extra>",
    )


def _words(line: Line, place: int) -> dict[str, Any]:
    """The figures of a row, beside the chart."""
    mean, low, high, p = (line[name] for name in ("difference_mean", "difference_low", "difference_high", "p_holm"))
    text = f"{mean:+.3f}" if math.isfinite(mean) else NOTHING
    if math.isfinite(low) and math.isfinite(high):
        text += f" ({low:+.3f} to {high:+.3f})"
    if math.isfinite(p):
        text += f"   p {p:.2g}" if p >= SMALL else f"   p &lt; {SMALL}"
    beside = {"x": 1.01, "xref": "paper", "xanchor": "left", "y": place, "showarrow": False, "font": {"size": 12}}
    return beside | {"text": text}
