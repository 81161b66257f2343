"""Where the figures come from: code, libraries, data and settings of the runs, and when the rows were asked for."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from analysis.run import Run
from analysis.tables.facts import supervision
from processes.errors import UserError
from study.page.template import fill
from study.reading import Study, called
from utils import counted, listing

MOST_NAMED = 4  # runs that are named one by one behind a fact that does not hold for all


def provenance(study: Study) -> Markup:
    """The section. Raises UserError where no run is there."""
    if not study.runs:
        raise UserError("No run is there yet, so there is nothing to tell of where figures come from.")
    facts = {name: _whose(study, read) for name, read in FACTS.items()}
    facts = {name: told for name, told in facts.items() if told}
    return fill(
        "provenance.html", study=study, facts=facts, runs=[_line(study, *key, run) for key, run in study.runs.items()]
    )


def _whose(study: Study, read: Callable[[Run], str]) -> list[tuple[str, str]]:
    """What the runs say, each answer once, and which runs say so; nothing where none says anything."""
    answers = defaultdict(list)
    for key, run in study.runs.items():
        answers[read(run)].append(called(*key))
    if not any(answers):
        return []
    return [(answer or "not noted", _runs(names, len(study.runs))) for answer, names in answers.items()]


def _runs(names: list[str], count: int) -> str:
    if len(names) == count:
        return f"all {counted(count, 'run')}" if count > 1 else "the run"
    return listing(names) if len(names) <= MOST_NAMED else counted(len(names), "run")


def _commit(run: Run) -> str:
    return f"{run.provenance.get('commit') or ''}{' with uncommitted changes' * bool(run.provenance.get('diff'))}"


def _versions(run: Run) -> str:
    versions = run.provenance.get("versions")
    return ", ".join(f"{name} {number}" for name, number in versions.items()) if isinstance(versions, Mapping) else ""


FACTS: dict[str, Callable[[Run], str]] = {
    "Commit": _commit,
    "SHA-256 of the code": lambda run: str(run.provenance.get("code") or ""),
    "Versions": _versions,
    "Machine": lambda run: str(run.provenance.get("platform") or ""),
    "Data set": lambda run: str(run.provenance["dataset"]["path"]),
    "Distances": lambda run: (
        "" if run.by_iou else f"in {run.unit}; NSD with a tolerance of {run.nsd_tolerance:g} {run.unit}"
    ),
    "Begun with other code": lambda run: ", ".join(
        str(each.get("commit")) for each in run.provenance.get("earlier") or ()
    ),
}


def _line(study: Study, row: str, seed: int, run: Run) -> dict[str, Any]:
    """The cells of one run in the table of all."""
    seconds = float(run.metrics["seconds"].sum()) if "seconds" in run.metrics else math.nan
    return {
        "row": row,
        "seed": seed,
        "method": run.provenance.get("method", ""),
        "supervision": supervision(run),
        "epochs": len(run.metrics),
        "minutes": round(seconds / 60, 1) if math.isfinite(seconds) else "",
        "weights": run.start or "random",
        "folder": run.folder.relative_to(study.folder),
    }
