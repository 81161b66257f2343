"""What a setting does to a row: its mean score over the values of the setting, a panel a setting, a line a row.

The study's folder may hold sensitivity.csv, a line a training: row, parameter (what was varied), value (a number),
seed, and score (the mean over patients, of the score that heads the study's tables); low and high, where there are
such columns, are the ends of an interval over all seeds.
"""

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from files.foreign import reading
from processes.errors import UserError
from processes.quoting import from_cell
from study.page.charts import BLUE, FAINT, GREEN, GREY, VERMILLION, panels
from study.page.template import fill, letters
from study.reading import Study

NAME = "sensitivity.csv"
COLUMNS = ("row", "parameter", "value", "seed", "score")
LOOKS = ((BLUE, "circle", "solid"), (VERMILLION, "square", "dash"), (GREEN, "diamond", "dot"), (GREY, "x", "dashdot"))
NUMBERS = ("value", "score", "low", "high")
LEGEND = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
WIDE = 20  # a setting whose largest value is so many times its smallest is drawn by its logarithm


def sensitivity(study: Study) -> Markup:
    """The section. Raises UserError where no setting was varied."""
    table = read_sensitivity(study)
    parameters = list(dict.fromkeys(table["parameter"]))
    rows = list(dict.fromkeys(table["row"]))
    figure, places = panels(parameters, "value", study.score_name, shared_x=False)
    for parameter, place in zip(parameters, places, strict=True):
        of_it = table[table["parameter"] == parameter]
        for row, own in of_it.groupby("row", sort=False):
            for trace in _traces(row, own, rows.index(row), first=parameter == parameters[0]):
                figure.add_trace(trace, *place)
        if of_it["value"].min() > 0 and of_it["value"].max() > WIDE * of_it["value"].min():
            figure.update_xaxes(type="log", dtick=1, exponentformat="e", row=place[0], col=place[1])
    figure.update_layout(showlegend=True, margin={"b": 100}, legend=LEGEND)
    return fill("sensitivity.html", figure=figure, panels=len(parameters), score=study.score_name)


def read_sensitivity(study: Study) -> pd.DataFrame:
    """COLUMNS, sorted by value. Raises UserError where the file is not there, or broken."""
    path = study.folder / NAME
    if not path.is_file():
        raise UserError(f"No setting was varied: {NAME} is not there; make … sensitivity makes it (docs/makefiles.md).")
    with reading(path, "remove it, or make it again"):
        table = pd.read_csv(path, dtype={"row": str, "parameter": str}, keep_default_na=False)
        if table.empty or not {*COLUMNS} <= {*table}:
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}, and a line a training")
        numbers = {name: pd.to_numeric(table[name]) for name in NUMBERS if name in table}
    words = {name: table[name].map(from_cell) for name in ("row", "parameter")}
    return table.assign(**words, **numbers).sort_values("value", kind="stable")


def _traces(row: str, own: pd.DataFrame, number: int, first: bool) -> list[go.Scatter]:
    """The seeds, and the line of their means."""
    colour, symbol, dash = LOOKS[number % len(LOOKS)]
    means = own.groupby("value")["score"].mean()
    seeds = go.Scatter(
        x=own["value"].tolist(),
        y=own["score"].round(4).tolist(),
        customdata=own["seed"].tolist(),
        mode="markers",
        marker={"color": FAINT, "size": 5},
        showlegend=False,
        hovertemplate="seed %{customdata}, at %{x}: %{y:.3f}<extra></extra>",
    )
    line = go.Scatter(
        x=means.index.tolist(),
        y=means.round(4).tolist(),
        name=letters(row),
        legendgroup=str(number),
        showlegend=first,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"color": colour, "symbol": symbol, "size": 7},
        hovertemplate="mean at %{x}: %{y:.3f}<extra></extra>",
    )
    return [seeds, *_band(own, colour, number), line]


def _band(own: pd.DataFrame, colour: str, number: int) -> list[go.Scatter]:
    """The interval of each mean, where the table has the columns low and high."""
    if not {"low", "high"} <= {*own}:
        return []
    ends = own.groupby("value")[["low", "high"]].first().dropna()
    around = [*ends["high"].round(4), *ends["low"][::-1].round(4)]
    return [
        go.Scatter(
            x=[*ends.index, *ends.index[::-1]],
            y=around,
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line={"width": 0},
            mode="lines",
            legendgroup=str(number),
            showlegend=False,
            hoverinfo="skip",
        )
    ]
