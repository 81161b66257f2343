"""Writes the page of a study: its sections, what draws them, and nothing that a browser would have to fetch."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.tables.facts import warnings_of
from processes.errors import UserError
from study.page.choice import choices
from study.page.curves import curves
from study.page.patients import patients
from study.page.provenance import provenance
from study.page.reliability import reliability
from study.page.template import HERE, fill
from study.page.viewer import viewer
from study.reading import Study
from utils import atomic_write, counted


@dataclass(frozen=True)
class Section:
    """A part of the page under its heading; `key` is its address."""

    key: str
    title: str
    body: Markup


SECTIONS: dict[str, tuple[str, Callable[[Study], Markup]]] = {
    "curves": ("Over epochs", curves),
    "patients": ("Patients", patients),
    "reliability": ("Calibration", reliability),
    "viewer": ("Images", viewer),
    "choice": ("The choice", choices),
    "provenance": ("Provenance", provenance),
}


def write_page(study: Study, out: Path) -> None:
    """Writes the page. A section that has nothing to show says in one line why; so does the head, of missing runs."""
    with atomic_write(out, "w") as file:
        file.write(page_of(study))


def page_of(study: Study) -> str:
    """The page's HTML."""
    runs = list(study.runs.values())
    name = study.asked.name
    lead = f"{counted(len(study.rows), 'row')} of the comparison over {counted(len(study.seeds), 'source seed')}"
    if runs:
        lead += f", scored on {counted(max(len(study.patients(row)) for row in study.rows), 'patient')}"
    return str(
        fill(
            "page.html",
            title=f"{name}: source-free adaptation compared",
            lead=f"{lead}.",
            warnings=warnings_of(runs),
            faults=study.faults,
            sections=[Section(key, title, _body(make, study)) for key, (title, make) in SECTIONS.items()],
            style=_own("page.css"),
            script=_own("page.js"),
            viewer=_own("viewer.js"),
            plotly=_inside_script(get_plotlyjs()),
            datatables=_inside_script(_datatables()),
        )
    )


def _body(make: Callable[[Study], Markup], study: Study) -> Markup:
    """What the section shows, or the one line that says what it lacks."""
    try:
        return make(study)
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
