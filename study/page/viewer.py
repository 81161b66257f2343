"""The images behind the figures: the worst, the median and the best patient of each row, for the viewer to scroll.

The viewer draws with plotly.js, which is in the page anyway: outlines stay lines when they are printed, and no graphics
processor is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from analysis.evaluated import is_evaluated
from processes.errors import UserError
from processes.quoting import visible
from study.page.album import Album
from study.page.patients import Scores, main_row, scores_of, typical
from study.page.template import fill
from study.reading import Study


@dataclass(frozen=True)
class Shown:
    """A patient that the viewer shows for a row; `word`: worst, median or best."""

    row: str
    patient: str
    word: str
    dice: float
    before: float


def viewer(study: Study) -> Markup:
    """The section. Raises UserError where no run was evaluated for it."""
    if study.by_iou:
        raise UserError("The images were scored all together (IoU), so there is no worst and no best one to show.")
    scores = scores_of(study)  # its rows alone: on other images, as of the source, a patient may bear the same name
    seed, rows = _evaluated(study, scores.rows)
    adapted = [row for row in rows if row != study.asked.lower]
    if not adapted:
        raise UserError(
            "Only rows that nothing can be compared with were evaluated, so the viewer has nothing to show."
        )
    first = main_row(study, adapted)
    album = Album({row: study.runs[row, seed] for row in rows}, study.asked.lower)
    shown = {}
    for row in sorted(adapted, key=lambda row: row != first):
        picked = _picked(scores, row, study.asked.lower)
        if album.add(row, [each.patient for each in picked]):
            shown[row] = [_told(each, study) for each in picked]
    data = album.as_data() | {"rows": shown}
    left_out = [row for row in adapted if row not in shown]
    return fill("viewer.html", data=data, rows=list(shown), seed=seed, lower=study.asked.lower, left_out=left_out)


def _evaluated(study: Study, among: Sequence[str]) -> tuple[int, list[str]]:
    """The first seed of which a run of these rows has scans, and its rows that have."""
    for seed in study.seeds:
        rows = [row for row in among if (row, seed) in study.runs and is_evaluated(study.runs[row, seed].folder)]
        if any(row != study.asked.lower for row in rows):
            return seed, rows
    raise UserError("No run was evaluated for the viewer yet: python -m study.evaluate --run <run>.")


def _picked(scores: Scores, row: str, lower: str) -> list[Shown]:
    """The three patients by the row's Dice, the mean over seeds."""
    column = scores.values[:, scores.rows.index(row)]
    before = scores.values[:, scores.rows.index(lower)] if lower in scores.rows else np.full(len(column), np.nan)
    return [
        Shown(row, scores.patients[n], word, float(column[n]), float(before[n]))
        for word, n in typical(scores, row).items()
    ]


def _told(shown: Shown, study: Study) -> dict[str, Any]:
    """What the viewer is told of a patient."""
    before = f"{shown.before:.3f} before ({visible(study.asked.lower)}), " if np.isfinite(shown.before) else ""
    return {
        "name": shown.patient,
        "row": shown.row,
        "before": study.asked.lower,
        "title": f"{shown.word.capitalize()}: {visible(shown.patient)}",
        "words": f"{study.score_name}, mean over seeds: {before}{shown.dice:.3f} after ({visible(shown.row)})",
    }
