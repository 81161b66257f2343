"""A point a patient in every row, joined: whom an adaptation helps, and whom it harms."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from processes.errors import UserError
from study.page.charts import BLUE, FAINT, VERMILLION, dress, reach
from study.page.template import fill, letters
from study.reading import Study


@dataclass(frozen=True)
class Scores:
    """Scores of the chosen networks of rows on the same images, mean over seeds: (P, R), NaN where it is not known."""

    patients: list[str]
    rows: list[str]
    values: np.ndarray
    others: list[str]  # rows that were scored on other images


def scores_of(study: Study) -> Scores:
    """The scores of all rows that can be compared with each other. Raises UserError where no run is there."""
    there = [row for row in study.rows if study.of_row(row)]
    if not there:
        raise UserError("No run is there yet, so no patient has a score.")
    first = study.asked.lower if study.asked.lower in there else there[0]
    rows = [row for row in there if study.images_of(row) == study.images_of(first)]
    tables = [study.scores(row, study.score).mean(axis=1) for row in rows]
    others = [row for row in there if row not in rows]
    return Scores(list(tables[0].index), rows, np.stack([table.to_numpy() for table in tables], 1), others)


def main_row(study: Study, rows: list[str]) -> str:
    """The row that pictures begin with: the last reference that adapts, else the first row between the bounds."""
    bounds = (study.asked.lower, study.asked.upper)
    told = [row for row in reversed(study.asked.references) if row in rows and row not in bounds]
    return next(iter([*told, *(row for row in rows if row not in bounds), *rows]))


def typical(scores: Scores, row: str) -> dict[str, int]:
    """The 'worst', the 'median' and the 'best' patient of a row, or the 'only' one: their numbers, each once."""
    column = scores.values[:, scores.rows.index(row)]
    order = [int(n) for n in np.argsort(column, kind="stable") if np.isfinite(column[n])]
    if not order:
        return {}
    if len(order) == 1:
        return {"only": order[0]}
    found = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    return {word: n for place, (word, n) in enumerate(found.items()) if n not in [*found.values()][:place]}


def patients(study: Study) -> Markup:
    """The section. Raises UserError where no run is there."""
    scores = scores_of(study)
    row = main_row(study, scores.rows)
    followed = next(iter(typical(scores, row).values()), 0)
    figure = _draw(scores, followed, study.score_name)
    return fill("patients.html", figure=figure, scores=scores, followed=followed, row=row)


def _draw(scores: Scores, followed: int, name: str) -> go.Figure:
    """All patients in one trace, with a gap behind each, the means of the rows, and one patient over them."""
    P, R = scores.values.shape
    places = np.arange(R)
    y = np.concatenate([scores.values.round(4), np.full((P, 1), np.nan)], 1).ravel()
    mode = {"mode": "lines+markers"}
    every = go.Scatter(
        x=np.tile(np.arange(R + 1), P).tolist(),
        y=y.tolist(),
        text=np.repeat([letters(name) for name in scores.patients], R + 1).tolist(),
        line={"color": FAINT, "width": 1},
        marker={"color": FAINT, "size": 5},
        hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        **mode,
    )
    means = go.Scatter(
        x=places.tolist(),
        y=np.nanmean(scores.values, 0).tolist() if P else [],
        mode="markers",
        marker={"symbol": "line-ew", "size": 26, "line": {"color": BLUE, "width": 3}},
        hovertemplate="mean %{y:.3f}<extra></extra>",
    )
    one = go.Scatter(
        x=places.tolist(),
        y=scores.values[followed].tolist(),
        text=[letters(scores.patients[followed])] * R,
        line={"color": VERMILLION, "width": 2.5},
        marker={"color": VERMILLION, "size": 7},
        hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        **mode,
    )
    figure = dress(go.Figure([every, means, one]), 460)
    figure.update_xaxes(tickvals=places.tolist(), ticktext=[letters(row) for row in scores.rows], showgrid=False)
    figure.update_xaxes(range=[-0.4, R - 0.6])
    figure.update_yaxes(title_text=f"{name}, mean over seeds", range=reach(y[np.isfinite(y)].tolist() or [0, 1]))
    return figure
