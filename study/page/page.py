"""Writes the page of a study: its sections, what draws them, and nothing that a browser would have to fetch."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from processes.errors import UserError
from study.page.choice import choices
from study.page.curves import curves
from study.page.patients import patients
from study.page.provenance import provenance
from study.page.reliability import reliability
from study.page.results import Tables, results, table
from study.page.sensitivity import sensitivity
from study.page.template import HERE, fill
from study.page.viewer import viewer
from study.reading import Study
from study.tables.words import cautions
from utils import atomic_write, counted


@dataclass(frozen=True)
class Section:
    """A part of the page under its heading; `key` is its address."""

    key: str
    title: str
    body: Markup


Make = Callable[[Study, Tables], Markup]


def of_study(make: Callable[[Study], Markup]) -> Make:
    """A section that needs no table."""
    return lambda study, _: make(study)


def of_table(name: str) -> Make:
    """A section that is one of the tables."""
    return partial(table, name)


SECTIONS: dict[str, tuple[str, Make]] = {
    "results": ("Results", results),
    "ranks": ("Ranks", of_table("ranks")),
    "curves": ("Over epochs", of_study(curves)),
    "patients": ("Patients", of_study(patients)),
    "failures": ("Failures", of_table("failures")),
    "reliability": ("Calibration", reliability),
    "sensitivity": ("Sensitivity", of_study(sensitivity)),
    "viewer": ("Images", of_study(viewer)),
    "choice": ("The choice", of_study(choices)),
    "cost": ("Cost", of_table("cost")),
    "provenance": ("Provenance", of_study(provenance)),
}


def write_page(study: Study, tables: Tables, out: Path) -> None:
    """Writes the page, with the tables of the study by the names of their files.

    A section that has nothing to show says in one line why, and the head says which runs are missing.
    """
    with atomic_write(out, "w") as file:
        file.write(page_of(study, tables))


def page_of(study: Study, tables: Tables) -> str:
    """The page's HTML."""
    runs = list(study.runs.values())
    name = study.asked.name
    lead = f"{counted(len(study.rows), 'row')} of the comparison over {counted(len(study.seeds), 'source seed')}"
    if runs:
        lead += f", scored on {counted(max(len(study.patients(row)) for row in study.rows), study.unit)}"
    return str(
        fill(
            "page.html",
            title=f"{name}: source-free adaptation compared",
            lead=f"{lead}.",
            warnings=cautions(study),
            faults=study.faults,
            sections=[Section(key, title, _body(make, study, tables)) for key, (title, make) in SECTIONS.items()],
            style=_own("page.css"),
            script=_own("page.js"),
            viewer=_own("viewer.js"),
            plotly=_inside_script(get_plotlyjs()),
            datatables=_inside_script(_datatables()),
        )
    )


def _body(make: Make, study: Study, tables: Tables) -> Markup:
    """What the section shows, or the one line that says what it lacks."""
    try:
        return make(study, tables)
    except UserError as error:
        return fill("missing.html", words=str(error))


def _own(name: str) -> Markup:
    """One of the page's own files, as it is."""
    return Markup((HERE / "templates" / name).read_text(encoding="utf-8"))


def _datatables() -> str:
    """The source of DataTables, a module of JavaScript that the package itables carries."""
    package = Path(importlib.util.find_spec("itables").origin).parent
    return (package / "html" / "dt_bundle.js").read_text(encoding="utf-8")


def _inside_script(source: str) -> Markup:
    """JavaScript as it may stand in a script element: no word of it opens or closes one."""
    return Markup(re.sub(r"<(?=!--|/?script)", r"\\x3C", source, flags=re.IGNORECASE))
