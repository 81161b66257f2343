"""The tables of a study, written into its folder."""

import hashlib
import json
from pathlib import Path

from analysis.evaluated import FOLDER as EVALUATED
from analysis.tables.table import Report, as_csv, as_latex, as_markdown, as_text
from processes.errors import UserError
from processes.quoting import csv_text
from study.asking import NAME as ASKED
from study.page.page import write_page
from study.page.sensitivity import NAME as SENSITIVITY
from study.reading import Study
from study.tables.calibrations import make_calibration
from study.tables.cells import every_cell
from study.tables.comparisons import make_comparisons
from study.tables.costs import make_costs
from study.tables.failures import make_failures
from study.tables.headline import make_headline, read_lines
from study.tables.ranks import make_ranks
from utils import atomic_write, listing

FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex, "txt": as_text}
TABLES = ("headline", "comparisons", "calibration", "ranks", "failures", "cost")
CELLS, PAGE, NOTE = "scores.csv", "report.html", ".reported"
READ = ("seed*/*/*", f"seed*/{EVALUATED}/*/*", SENSITIVITY)  # what a report is made of, beside what was asked for
ROOT, ROOMS, CODE = Path(__file__).parents[1], ("analysis", "study"), (".py", ".html", ".css", ".js")


def make_tables(study: Study) -> dict[str, Report]:
    """File name without suffix -> table. Raises UserError where no run is there."""
    if not study.runs:
        raise UserError(f"{study.folder} has no finished run: {listing(study.faults, 4)}.")
    tables = {"headline": make_headline(study, read_lines(study)), "comparisons": make_comparisons(study)}
    tables |= {"calibration": make_calibration(study)}
    tables |= {"ranks": make_ranks(study), "failures": make_failures(study), "cost": make_costs(study)}
    return {name: table for name, table in tables.items() if table is not None}


def write_report(study: Study) -> dict[str, Report]:
    """Writes every table in every format, all scores, and the page; returns the tables. Of others none stays."""
    tables, names = make_tables(study), [CELLS, PAGE]
    for name, table in tables.items():
        names += write_texts(study.folder, name, table)
    for name in {*TABLES} - {*tables}:  # of runs that were asked for before
        for suffix in FORMATS:
            (study.folder / f"{name}.{suffix}").unlink(missing_ok=True)
    with atomic_write(study.folder / CELLS, "w") as file:
        file.write(csv_text(every_cell(study)))
    write_page(study, tables, study.folder / PAGE)
    with atomic_write(study.folder / NOTE, "w") as file:
        file.write(json.dumps({"made_of": fingerprint(study.folder), "files": names}))
    return tables


def write_texts(folder: Path, name: str, table: Report) -> list[str]:
    """Writes a table in every format; returns the names of the files."""
    for suffix, write in FORMATS.items():
        with atomic_write(folder / f"{name}.{suffix}", "w") as file:
            file.write(write(table))
    return [f"{name}.{suffix}" for suffix in FORMATS]


def is_reported(folder: Path) -> bool:
    """Whether tables and page are there, made of what is there now, by the code of now."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return note["made_of"] == fingerprint(folder) and all((folder / name).is_file() for name in note["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def fingerprint(folder: Path) -> str:
    """SHA-256 of what was asked for, of the files of its runs by name, size and time, and of the code that reports."""
    found = hashlib.sha256((folder / ASKED).read_bytes())
    for path in sorted(path for each in READ for path in folder.glob(each)):
        status = path.stat()
        found.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.*")):
        if path.suffix in CODE:
            found.update(path.read_bytes())
    return found.hexdigest()
