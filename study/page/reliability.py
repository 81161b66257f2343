"""How often what a network says with a probability is true, before and after an adaptation, a panel a row."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from analysis.evaluated import REGIONS, TEMPERED, evaluated_folder, is_evaluated, read_reliability
from processes.errors import UserError
from study.calibration import band_words
from study.page.charts import BLUE, GREY, VERMILLION, panels
from study.page.results import Tables, table
from study.page.template import fill
from study.reading import Study

LOOKS = {
    "before": {"color": GREY, "width": 2},
    "after": {"color": BLUE, "width": 2.5},
    "tempered": {"color": VERMILLION, "width": 2, "dash": "dash"},
}
NAMES = ("after", "tempered")  # the chosen network, as it is and at another temperature
IMAGE, BAND = REGIONS
LEAST = 1e-3  # share of the pixels of a curve; a bin with fewer is left out, as its frequency is chance


def reliability(study: Study, tables: Tables) -> Markup:
    """The section. Raises UserError where no run was evaluated."""
    bins = {row: _bins(study, row) for row in study.rows}
    bins = {row: own for row, own in bins.items() if not own.empty}
    if not bins:
        raise UserError("No run was evaluated for its calibration yet: python -m study.evaluate --run <run>.")
    region, lower = _region(list(bins.values())), study.asked.lower
    curves = {row: {name: pooled(own, name, region) for name in NAMES} for row, own in bins.items()}
    before = curves[lower]["after"] if lower in curves else pd.DataFrame()
    shown = [row for row in curves if row != lower] or [lower]
    return fill(
        "reliability.html",
        figure=_draw({row: {"before": before} | curves[row] for row in shown}),
        panels=len(shown),
        band=band_words(study) if region == BAND else "",
        lower=lower if not before.empty else "",
        gap=_gap(before),
        tempered=any(not curves[row]["tempered"].empty for row in shown),
        seeds=sorted({seed for (_, seed), run in study.runs.items() if is_evaluated(run.folder)}),
        scores=table("calibration", study, tables) if "calibration" in tables else "",
    )


def _draw(curves: Mapping[str, Mapping[str, pd.DataFrame]]) -> go.Figure:
    """A panel a row, with those of its curves that there are."""
    titles = [_title(row, own["after"]) for row, own in curves.items()]
    figure, places = panels(titles, "probability that is said", "how often it is true")
    for own, place in zip(curves.values(), places, strict=True):
        for trace in [_diagonal(), *(_line(name, curve) for name, curve in own.items() if not curve.empty)]:
            figure.add_trace(trace, *place)
    figure.update_xaxes(range=[0, 1], dtick=0.5)
    figure.update_yaxes(range=[0, 1], dtick=0.5)
    return figure


def _bins(study: Study, row: str) -> pd.DataFrame:
    """The curves of a row, those of all seeds below one another, with `name`: after, tempered, or '' of no interest."""
    found = [pd.DataFrame()]
    for run in study.of_row(row).values():
        if is_evaluated(run.folder):
            which = run.standing_for("chosen")
            names = {which: "after", f"{which}{TEMPERED}": "tempered"}
            bins = read_reliability(evaluated_folder(run.folder))
            found.append(bins.assign(name=bins["which"].map(names).fillna("")))
    return pd.concat(found)


def _region(tables: Sequence[pd.DataFrame]) -> str:
    """The band round the structures where every row has it; else the image, most of which is background."""
    return BAND if all((table["region"].eq(BAND) & table["n"].gt(0)).any() for table in tables) else IMAGE


def pooled(table: pd.DataFrame, name: str, region: str) -> pd.DataFrame:
    """Columns confidence, frequency and n, a row a bin, classes and seeds together by their numbers of pixels."""
    own = table[(table["name"] == name) & (table["region"] == region) & (table["n"] > 0)]
    sums = own.assign(confidence=own["confidence"] * own["n"], frequency=own["frequency"] * own["n"])
    sums = sums.groupby("bin")[["confidence", "frequency", "n"]].sum()
    means = sums.assign(confidence=sums["confidence"] / sums["n"], frequency=sums["frequency"] / sums["n"])
    return means[means["n"] > LEAST * means["n"].sum()]


def _gap(curve: pd.DataFrame) -> float:
    """The mean distance of said and true, over the pixels; NaN of no curve."""
    if curve.empty:
        return np.nan
    return float(np.average((curve["confidence"] - curve["frequency"]).abs(), weights=curve["n"]))


def _title(row: str, curve: pd.DataFrame) -> str:
    return row if curve.empty else f"{row}  {_gap(curve):.3f}"


def _diagonal() -> go.Scatter:
    return go.Scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "width": 1, "dash": "dot"}, hoverinfo="skip"
    )


def _line(name: str, curve: pd.DataFrame) -> go.Scatter:
    return go.Scatter(
        x=curve["confidence"].round(4).tolist(),
        y=curve["frequency"].round(4).tolist(),
        mode="lines+markers",
        line=LOOKS[name],
        marker={"size": 5, "color": LOOKS[name]["color"]},
        hovertemplate=f"{name}: said %{{x:.2f}}, true %{{y:.2f}}<extra></extra>",
    )
