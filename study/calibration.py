"""How true the probabilities of a study's rows are, before and after adaptation: the means over its seeds."""

import numpy as np
import pandas as pd

from analysis.calibration.region import WIDTH
from analysis.calibration.scores import SCORES
from analysis.evaluated import EVERYONE, FOLDER, TEMPERED, evaluated_folder, is_evaluated, read_calibration, read_note
from analysis.tables.table import number
from processes.errors import UserError
from study.reading import Key, Study, called

GROUP = ["row", "which", "class", "region"]
SHOWN = ("nll", "brier", "cw_ece", "ace", "tace")  # in words; the csv has the parts of the Brier score too


def calibration_table(study: Study) -> pd.DataFrame:
    """GROUP, seeds (how many), the mean of every score over them, and its standard deviation, <score>_sd.

    Of every network that was evaluated, at its own temperature and at that of study.evaluate; each score of a seed is
    of the pixels of all patients together. Rows stand as the study names them; it is empty where no run is evaluated.
    """
    found = [
        table.assign(row=row) for (row, _), table in _evaluations(study).items() if isinstance(table, pd.DataFrame)
    ]
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
    shown, names = set(), {}
    for (row, _), run in study.runs.items():
        which = run.standing_for("chosen")
        shown |= {(row, which), (row, f"{which}{TEMPERED}")}
        names |= {(row, k): run.class_name(k) for k in range(1, run.n_class)}
    header = ["row", "network", "class", "region", "seeds", *SHOWN]
    rows = []
    for line in calibration_table(study).to_dict("records"):
        row, which = line["row"], line["which"]
        if (row, which) in shown:
            scores = [_in_words(line[score], line[f"{score}_sd"]) for score in SHOWN]
            rows.append([row, which, names[row, line["class"]], line["region"], str(line["seeds"]), *scores])
    return header, rows


def band_words(study: Study) -> str:
    """How wide the band is: '5 mm', or '5 pixels' of sets that state no spacing."""
    tables = _evaluations(study).values()
    units = dict.fromkeys(table.attrs["unit"] for table in tables if isinstance(table, pd.DataFrame))
    return f"{WIDTH:g} {'/'.join(units)}"


def without_calibration(study: Study) -> list[str]:
    """A line each on runs that nobody evaluated, the same wherever the study lies, or whose evaluation is broken."""
    found = _evaluations(study)
    return [f"{called(*key)}: {found[key]}" for key in found if isinstance(found[key], str)]


def _evaluations(study: Study) -> dict[Key, pd.DataFrame | str]:
    """Of each run the scores of all patients together; or in words why there are none, which stops no other table."""
    found: dict[Key, pd.DataFrame | str] = {}
    for key, run in study.runs.items():
        folder = evaluated_folder(run.folder)
        if not is_evaluated(run.folder):
            row, seed = key
            found[key] = f"not evaluated, seed{seed}/{FOLDER}/{row} is not there"
            continue
        try:
            table, note = read_calibration(folder), read_note(folder)
        except UserError as error:
            found[key] = str(error)
            continue
        table = table[(table["patient"] == EVERYONE) & table["class"].between(1, run.n_class - 1)].copy()
        table.attrs["unit"] = note["unit"]
        found[key] = table
    return found


def _in_words(mean: float, sd: float) -> str:
    return number(mean) if np.isnan(sd) else f"{number(mean)} ± {number(sd)}"
