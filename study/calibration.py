"""How true the probabilities of a study's rows are, before and after adaptation: the means over its seeds."""

import numpy as np
import pandas as pd

from analysis.calibration.scores import SCORES
from analysis.evaluated import EVERYONE, TEMPERED, evaluated_folder, is_evaluated, read_calibration
from analysis.run import Run
from analysis.tables.table import number
from study.reading import Study, called

GROUP = ["row", "which", "class", "region"]
SHOWN = ("nll", "brier", "cw_ece", "ace", "tace")  # in words; the csv has the parts of the Brier score too


def calibration_table(study: Study) -> pd.DataFrame:
    """GROUP, seeds (how many), the mean of every score over them, and its standard deviation, <score>_sd.

    Of every network that was evaluated, at its own temperature and at that of study.evaluate; each score of a seed is
    of the pixels of all patients together. Rows stand as the study names them; it is empty where no run is evaluated.
    """
    found = [_of_run(row, run) for (row, _), run in study.runs.items() if is_evaluated(run.folder)]
    if not found:
        return pd.DataFrame(columns=[*GROUP, "seeds", *SCORES, *(f"{score}_sd" for score in SCORES)])
    grouped = pd.concat(found).groupby(GROUP, sort=False)[list(SCORES)]
    table = grouped.mean().join(grouped.std(ddof=1).add_suffix("_sd"))
    table.insert(0, "seeds", grouped.size())
    table = table.reset_index()
    order = {row: place for place, row in enumerate(study.rows)}
    return table.sort_values("row", key=lambda rows: rows.map(order), kind="stable").reset_index(drop=True)


def calibration_cells(study: Study) -> tuple[list[str], list[list[str]]]:
    """Header and rows in words: of each row its headline network, plain and tempered, a line a class and region.

    A score is the mean over seeds, with its standard deviation where there are several.
    """
    table = calibration_table(study)
    headline = {row: run.standing_for("chosen") for (row, _), run in study.runs.items()}
    names = {k: run.class_name(k) for run in study.runs.values() for k in range(1, run.n_class)}
    header = ["row", "network", "class", "region", "seeds", *SHOWN]
    rows = []
    for line in table.to_dict("records"):
        if line["which"] in (headline[line["row"]], f"{headline[line['row']]}{TEMPERED}"):
            scores = [_in_words(line[score], line[f"{score}_sd"]) for score in SHOWN]
            rows.append([line["row"], line["which"], names[line["class"]], line["region"], str(line["seeds"]), *scores])
    return header, rows


def without_calibration(study: Study) -> list[str]:
    """A line each on runs that nobody evaluated; the same wherever the study lies."""
    top = study.folder.resolve()
    return [
        f"{called(row, seed)}: not evaluated, {evaluated_folder(run.folder).relative_to(top)} is not there"
        for (row, seed), run in study.runs.items()
        if not is_evaluated(run.folder)
    ]


def _of_run(row: str, run: Run) -> pd.DataFrame:
    table = read_calibration(evaluated_folder(run.folder))
    return table[table["patient"] == EVERYONE].assign(row=row)


def _in_words(mean: float, sd: float) -> str:
    return number(mean) if np.isnan(sd) else f"{number(mean)} ± {number(sd)}"
