"""Which row is best, by three rankings, and how often it would be for other patients and seeds."""

from typing import Any

from analysis.statistics.ranking import Ranking, rank_runs
from analysis.tables.table import Report, number
from processes.errors import UserError
from study.reading import HEADLINE, Study
from study.tables.words import blocks_of, heading, warnings
from utils import counted, listing

PODIUM = 3


def rank_rows(study: Study, rows: list[str]) -> dict[str, Ranking]:
    """Name of the ranking -> the ranks of these rows, by the score that heads the study."""
    return rank_runs([study.scores(row, study.score, HEADLINE).to_numpy() for row in rows])


def words(rankings: dict[str, Ranking], place: int) -> list[str]:
    """The rank by each ranking with that of 95 % of the draws; how often first, and among the first three."""
    first = next(iter(rankings.values()))
    cells = [f"{each.ranks[place]} ({each.low[place]} to {each.high[place]})" for each in rankings.values()]
    return [*cells, *(f"{100 * first.podium(number)[place]:.0f} %" for number in (1, PODIUM))]


def make_ranks(study: Study) -> Report | None:
    """None where no two rows were scored on the same images, or no patient has a score in all of these."""
    blocks, lines, header, taus, counts = [], [], [], [], []
    for images, rows in blocks_of(study).items():
        try:
            rankings = rank_rows(study, rows) if len(rows) > 1 else {}
        except UserError:  # nobody has a score in every row and seed
            continue
        if not rankings:
            continue
        header = ["row", *rankings, "first", f"among {PODIUM}"]
        blocks.append((heading(study, rows, images), [[row, *words(rankings, n)] for n, row in enumerate(rows)]))
        lines += [csv_line(images, row, rankings, n) for n, row in enumerate(rows)]
        counts.append(f"{images}: {ranked_on(next(iter(rankings.values())))}")
        taus.append(f"{images}: {', '.join(f'{name} {number(each.tau, 2)}' for name, each in rankings.items())}")
    if not blocks:
        return None
    notes = [
        f"Ranks by {study.score_name} of the chosen network, 1 is best; in brackets where 95 % of 1000 draws of "
        "patients and seeds lie. Mean then rank: by the mean. Rank then mean: by the mean of the ranks on each "
        "patient. Test then rank: by how many other rows it beats in Wilcoxon's signed-rank test, after Holm "
        "(Wiesenfarth et al. 2021).",
        f"Ranked on what every row has a score of: {listing(counts)}.",
        f"First, among {PODIUM}: share of the draws, by the mean.",
        f"Kendall's tau between the ranking and that of a draw, 1 where it never changes: {listing(taus)}.",
    ]
    return Report(f"Ranks of {study.asked.name}", warnings(study), header, blocks, notes, lines)


def ranked_on(ranking: Ranking) -> str:
    """How many patients and seeds it compares."""
    left_out = f", {counted(ranking.left_out, 'patient')} left out" if ranking.left_out else ""
    return f"{counted(ranking.patients, 'patient')}, {counted(ranking.seeds, 'seed')}{left_out}"


def csv_line(images: str, row: str, rankings: dict[str, Ranking], place: int) -> dict[str, Any]:
    line: dict[str, Any] = {"row": row, "images": images}
    for name, each in rankings.items():
        key = name.replace(" ", "_")
        line |= {key: each.ranks[place], f"{key}_low": each.low[place], f"{key}_high": each.high[place]}
        line |= {f"{key}_first": each.podium(1)[place], f"{key}_among_{PODIUM}": each.podium(PODIUM)[place]}
        line |= {f"{key}_tau": each.tau, "patients": each.patients, "seeds": each.seeds, "left_out": each.left_out}
    return line
