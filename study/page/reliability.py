"""How often what a network says with a probability is true, before and after an adaptation, a panel a row."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from analysis.evaluated import REGIONS, TEMPERED, evaluated_folder, is_evaluated, read_reliability
from processes.errors import UserError
from study.page.charts import BLUE, GREY, VERMILLION, panels
from study.page.template import fill
from study.reading import Study

LOOKS = {
    "before": {"color": GREY, "width": 2},
    "after": {"color": BLUE, "width": 2.5},
    "tempered": {"color": VERMILLION, "width": 2, "dash": "dash"},
}
LEAST = 1e-3  # share of the pixels of a curve; a bin with fewer is left out, as its frequency is chance


def reliability(study: Study) -> Markup:
    """The section. Raises UserError where no run was evaluated."""
    tables = {row: _table(study, row) for row in study.rows}
    tables = {row: table for row, table in tables.items() if not table.empty}
    if not tables:
        raise UserError("No run was evaluated for its calibration yet: python -m study.evaluate --run <run>.")
    region = _region(list(tables.values()))
    lower = study.asked.lower
    curves = {
        row: {name: pooled(table, name, region) for name in ("after", "tempered")} for row, table in tables.items()
    }
    before = curves[lower]["after"] if lower in curves else pd.DataFrame()
    shown = [row for row in curves if row != lower] or [lower]
    figure, places = panels(
        [_title(row, curves[row]["after"]) for row in shown], "probability that is said", "how often it is true"
    )
    for row, place in zip(shown, places, strict=True):
        figure.add_trace(_diagonal(), *place)
        for name, curve in ({"before": before} | curves[row]).items():
            if not curve.empty:
                figure.add_trace(_line(name, curve), *place)
    figure.update_xaxes(range=[0, 1], dtick=0.5)
    figure.update_yaxes(range=[0, 1], dtick=0.5)
    tempered = any(not curves[row]["tempered"].empty for row in shown)
    seeds = sorted({seed for row, seed in study.runs if row in tables and is_evaluated(study.runs[row, seed].folder)})
    words = {
        "panels": len(shown),
        "lower": lower if not before.empty else "",
        "gap": _gap(before),
        "tempered": tempered,
    }
    return fill("reliability.html", figure=figure, region=region, seeds=seeds, **words)


def _table(study: Study, row: str) -> pd.DataFrame:
    """The curves of a row, those of all seeds below one another, with `name`: after, tempered, or '' of no interest."""
    tables = [pd.DataFrame()]
    for run in study.of_row(row).values():
        if is_evaluated(run.folder):
            which = run.standing_for("chosen")
            names = {which: "after", f"{which}{TEMPERED}": "tempered"}
            table = read_reliability(evaluated_folder(run.folder))
            tables.append(table.assign(name=table["which"].map(names).fillna("")))
    return pd.concat(tables)


def _region(tables: Sequence[pd.DataFrame]) -> str:
    """The band round the structures where every row has it; else the image, most of which is background."""
    image, band = REGIONS
    return band if all((table["region"].eq(band) & table["n"].gt(0)).any() for table in tables) else image


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
