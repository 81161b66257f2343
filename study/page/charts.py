"""What all charts of the page share: their colours, their look, the marks of the three networks of a run.

Colours of letters, axes and grids are the style sheet's, as it knows whether the page is light, dark or printed.
"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from study.page.template import letters

# Of Okabe and Ito's palette, told apart by every kind of colour vision; these are seen on white and on black.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#808080"
FAINT = "rgba(128, 128, 128, 0.6)"
AXIS = {"automargin": True, "ticks": "outside", "ticklen": 4, "zeroline": False, "showline": True, "linecolor": GREY}
AXIS |= {"gridcolor": "rgba(128, 128, 128, 0.22)", "tickcolor": GREY, "title": {"font": {"size": 13}}}
CLEAR = "rgba(0, 0, 0, 0)"
LOOK = {"template": "none", "paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "hovermode": "closest", "showlegend": False}
LOOK |= {"font": {"family": "system-ui, sans-serif", "size": 13}, "margin": {"l": 60, "r": 20, "t": 30, "b": 50}}
PANEL_HEIGHT, PANEL_ACROSS = 210, 4  # pixels; so many panels in a line


def dress(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Gives a chart the look of all."""
    figure.update_layout(LOOK | {"height": height} | layout)
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    return figure


def panels(titles: Sequence[str], x: str, y: str, shared_x: bool = True) -> tuple[go.Figure, list[tuple[int, int]]]:
    """A chart with a panel a name, and where each is: its line and its column. `x` and `y`: words of the axes."""
    across = min(PANEL_ACROSS, len(titles))
    down = -(-len(titles) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        shared_xaxes="all" if shared_x else False,
        shared_yaxes="all",
        subplot_titles=[letters(title) for title in titles],
        horizontal_spacing=0.04,
        vertical_spacing=min(0.3, 42 / (PANEL_HEIGHT * down)),
        x_title=x,
        y_title=y,
    )
    dress(figure, PANEL_HEIGHT * down + 90, margin={"l": 75, "r": 15, "t": 30, "b": 60})
    figure.update_xaxes(automargin=False)  # of many panels, it is half of the time that drawing takes
    figure.update_yaxes(automargin=False)
    figure.update_annotations(font_size=13)
    return figure, [(n // across + 1, n % across + 1) for n in range(len(titles))]


def reach(values: Sequence[float], least: float = 0.05) -> tuple[float, float]:
    """Limits of an axis that shows all of these, with a margin."""
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), least * max(abs(low), abs(high), 1e-6))
    return low - margin, high + margin
