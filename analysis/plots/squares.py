"""A square of figures: what each line is worth in each column, as colours with the figures on them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from numpy.typing import NDArray

from processes.quoting import for_chart

LEAST = 0.05  # of what signed figures reach to: smaller ones are not made to look large
DARK = 1.5  # of red, green and blue together, below which figures are white


def draw_square(
    chart: Axes, values: NDArray[np.float64], lines: Sequence[str], columns: Sequence[str], signed: bool = False
) -> None:
    """Draws values (lines, columns) between 0 and 1, in hundredths; NaN is left blank.

    signed: they are differences, of either sign
    """
    reach = max([LEAST, *np.abs(values[np.isfinite(values)])])
    norm = TwoSlopeNorm(0, -reach, reach) if signed else Normalize(0, 1)
    shown = chart.imshow(values, norm=norm, cmap="PuOr_r" if signed else "cividis", aspect="auto")
    chart.set_xticks(range(len(columns)), [for_chart(name) for name in columns], rotation=45, ha="right")
    chart.set_yticks(range(len(lines)), [for_chart(name) for name in lines])
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = sum(shown.cmap(shown.norm(value))[:3]) < DARK
            words = f"{100 * value:+.0f}" if signed else f"{100 * value:.0f}"
            chart.text(column, line, words, ha="center", va="center", size=8, color="white" if dark else "black")
