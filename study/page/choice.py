"""Which network each run chose, what that cost, and the reasons it wrote down."""

from dataclasses import dataclass

from markupsafe import Markup

from analysis.run import Run
from analysis.tables.choice import chosen_name
from analysis.tables.table import number
from processes.errors import UserError
from study.page.template import fill
from study.reading import NETWORKS, Study


@dataclass(frozen=True)
class Choice:
    """One run's: the mean score over patients of its last, its chosen and its best network, and why it chose."""

    row: str
    seed: int
    name: str
    scores: tuple[float, ...]
    reason: str

    @property
    def cost(self) -> float:
        """What the best network by labels has more."""
        return self.scores[NETWORKS.index("best_3d")] - self.scores[NETWORKS.index("chosen")]


def choices(study: Study) -> Markup:
    """The section. Raises UserError where no run chose."""
    made = [_choice(study, row, seed, run) for (row, seed), run in study.runs.items() if run.selection]
    if not made:
        raise UserError("No run chose among networks that it kept (--keep_every), so every row stands with its last.")
    rows = {row: [choice for choice in made if choice.row == row] for row in study.rows}
    rows = {row: own for row, own in rows.items() if own}
    ways = dict.fromkeys(run.selection.how for run in study.runs.values() if run.selection)
    return fill("choice.html", rows=rows, number=number, score=study.score_name, ways=" or ".join(ways))


def _choice(study: Study, row: str, seed: int, run: Run) -> Choice:
    scores = tuple(float(study.scores(row, study.score, which)[seed].mean()) for which in NETWORKS)
    return Choice(row, seed, chosen_name(run), scores, run.selection.reason)
