"""What --volumes names: files by a pattern, the volumes of a folder, DICOM series of an export, a list, or a table.

A series among others is chosen by --series. A patient of an export is called by its PatientID, and each study that has
a chosen series is a case of its own.
"""

import csv
import fnmatch
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from files.faults import Fault, describe_faults
from files.foreign import read_text
from files.formats.dicom_series import UID, Series, files_below, find_series, is_series
from files.pairing import PICTURES, Case, by_patient, find_files, is_id, no_match, read_id
from files.volume_names import header_of, is_volume
from processes.errors import UserError
from utils import doubled, listing

LIST, TABLE = ".txt", ".csv"
LONGEST_UID = 64  # letters
NOT_THERE = "is not there (paths in a list count from the folder you are in, or from that of the list)"


@dataclass
class Channel:
    """What one --volumes names.

    named   files, and folders of one series, whose names tell the patient
    series  those of an export, and whose they are
    lost    what was named and cannot be a volume of anybody
    """

    named: list[Path] = field(default_factory=list)
    series: list[tuple[Series, str]] = field(default_factory=list)
    lost: list[Fault] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Adds a file, a series, or all that lies below a folder."""
        if not path.is_dir():
            self.named.append(path)
            return
        files = list(files_below(path))
        volumes = [file for file in files if is_volume(file)]
        voxels = {file for file in files if header_of(file) != file}
        found, lost = find_series(file for file in files if file not in voxels and not is_volume(file))
        self.lost += lost
        if [series.path for series in found] == [path] or not (found or volumes or lost):
            pictures = [file for file in files if file.suffix.lower() in PICTURES]
            self.named += [path] if found else pictures or [path]  # pictures are told to be none of a volume
        else:
            self.named += volumes
            self.series += [(series, _owner(series, path)) for series in found]


def _owner(series: Series, root: Path) -> str:
    """Whose a series is: by its PatientID, else by the folder below the root that it lies in."""
    below = series.home.relative_to(root).parts
    text = series.first.patient or (below[0] if below else root.resolve().name)
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "patient"


def is_table(volumes: Sequence[str]) -> bool:
    """Whether --volumes is a table of all patients and channels."""
    return len(volumes) == 1 and volumes[0].lower().endswith(TABLE) and os.path.isfile(volumes[0])  # noqa: PTH113


def read_channel(text: str) -> Channel:
    """What one --volumes names, a path or a glob."""
    path, channel = Path(text), Channel()
    if os.path.isdir(text) or names_series(path):  # noqa: PTH112  false, not an error, for a long pattern
        channel.add(path)
    elif path.suffix.lower() == LIST and os.path.isfile(text):  # noqa: PTH113  likewise
        for line in read_text(path).splitlines():
            if line.strip() and not line.startswith("#"):
                place = _located(line.strip(), path)
                if is_there(place):
                    channel.add(place)
                else:
                    channel.lost.append((NOT_THERE, f"{place} (of {path})"))
    else:
        for found in find_files(text):
            channel.add(found)
    return channel


def _located(text: str, file: Path) -> Path:
    """A path that stands in a file."""
    path, beside = Path(text), file.parent / text
    return beside if not is_there(path) and is_there(beside) else path


def is_there(path: Path) -> bool:
    """Whether this names a file, a folder or a series; no name is too long or too odd to ask."""
    return os.path.exists(path) or names_series(path)  # noqa: PTH110


def names_series(path: Path) -> bool:
    return len(path.name) <= LONGEST_UID and is_series(path)


# -------------------------------------------------------------------------------------------- series of an export


def choose(channel: Channel, wanted: str | None) -> dict[tuple[str, str], Series]:
    """(Whose, of which study) -> the series that is wanted. Who has none, or several, is added to what is lost.

    wanted: a pattern of its description, or its SeriesInstanceUID; None: a study has one alone
    Raises UserError where a choice is to be made for everybody.
    """
    studies: dict[tuple[str, str], list[Series]] = {}
    for series, owner in channel.series:
        studies.setdefault((owner, series.first.study), []).append(series)
    fitting = {key: [each for each in group if _fits(each, wanted)] for key, group in studies.items()}
    chosen = {key: group[0] for key, group in fitting.items() if len(group) == 1}
    several = {key: group for key, group in fitting.items() if len(group) > 1}
    if several and (wanted is None or not chosen):
        by = f" that --series '{wanted}' fits" if wanted else ""
        raise UserError(
            f"The folder holds several DICOM series of a study{by}, and one of each is predicted. Choose it with "
            "--series: a pattern of its description, as --series 'T2*', or its SeriesInstanceUID (for an image of "
            f"several channels a --series for each). There are {_told(several.values())}."
        )
    if wanted is not None and studies and not (chosen or several):
        raise UserError(f"--series '{wanted}' fits no series. There are {_told(studies.values())}.")
    what = f"several series that --series '{wanted}' fits (name one by its SeriesInstanceUID in a --series of its own)"
    channel.lost += [(what, f"{owner}: {_told([group])}") for (owner, _), group in several.items()]
    without = {owner for owner, _ in studies} - {owner for owner, _ in [*chosen, *several]}
    channel.lost += [(f"no series that --series '{wanted}' fits", owner) for owner in sorted(without)]
    return chosen


def _fits(series: Series, wanted: str | None) -> bool:
    if wanted is None:
        return True
    if UID.fullmatch(wanted):
        return series.uid == wanted
    return fnmatch.fnmatchcase(series.first.description.lower(), wanted.lower())


def _told(groups: Iterable[Sequence[Series]], limit: int = 30) -> str:
    """The series of some studies: of one each with its UID, of several those of one kind together."""
    groups = list(groups)
    if len(groups) == 1:
        return listing([f"{series} {series.uid}" for series in groups[0]], limit)
    kinds: dict[tuple[str, str], list[int]] = {}
    for series in (series for group in groups for series in group):
        kinds.setdefault((series.first.description, series.first.modality), []).append(series.slices)
    return listing([_of_a_kind(*kind, counts) for kind, counts in kinds.items()], limit)


def _of_a_kind(description: str, modality: str, counts: Sequence[int]) -> str:
    few, many = min(counts), max(counts)
    slices = f"{few} slices" if few == many else f"{few} to {many} slices"
    return f"'{description}' ({modality or 'no modality'}, {slices}, {len(counts)} times)"


def name_studies(chosen: Iterable[Mapping[tuple[str, str], Series]]) -> dict[tuple[str, str], str]:
    """(Whose, of which study) -> the case's name: whose, and where there are several the date or a number."""
    dates: dict[str, dict[str, str]] = {}
    for channel in chosen:
        for (owner, study), series in channel.items():
            dates.setdefault(owner, {}).setdefault(study, series.first.date)
    names = {}
    for owner, studies in dates.items():
        days = list(studies.values())
        by_date = all(day.isdigit() for day in days) and not doubled(days)
        for number, study in enumerate(sorted(studies, key=lambda study: (studies[study], study)), start=1):
            suffix = f"_{studies[study] if by_date else number}" if len(studies) > 1 else ""
            names[owner, study] = f"{owner}{suffix}"
    return names


def cases_of(
    channels: Mapping[str, Channel], wanted: Mapping[str, str | None], patient: re.Pattern[str], by_name: bool
) -> tuple[list[Case], list[Fault], list[Fault]]:
    """The cases by name, those who lack a channel too; what is wrong with all of it; what is wrong with single ones.

    patient: finds the id in a name; by_name: also of a series of an export, in that of its folder
    """
    chosen = {role: choose(channel, wanted[role]) for role, channel in channels.items()}
    names = name_studies(chosen.values())
    named = {
        role: [(path, read_id(path, patient)) for path in channel.named]
        + [
            (series.path, read_id(series.home, patient) if by_name else names[key])
            for key, series in chosen[role].items()
        ]
        for role, channel in channels.items()
    }
    cases, faults = by_patient(named, patient)
    return cases, faults, [fault for channel in channels.values() for fault in channel.lost]


# ---------------------------------------------------------------------------------------------------- a table


@dataclass(frozen=True)
class Table:
    """A csv of patients: the columns with their volumes, and the cells of each patient."""

    path: Path
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def read_table(path: Path) -> Table:
    """A csv with a column `patient` and one with a path for each channel. Raises UserError for any other."""
    text = read_text(path)
    head = next(iter(text.splitlines()), "")
    try:
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise UserError(f"{path} is no csv: {error}.") from error
    columns = rows[0] if rows else []
    place = next((number for number, name in enumerate(columns) if name.lower() == "patient"), None)
    if place is None or len(columns) < 2 or doubled(columns):
        raise UserError(
            f"{path} should have a column 'patient', and one with the path of a volume for each channel, all of "
            f"different names; its first line has {listing(columns) or 'nothing'}."
        )
    if odd := [number for number, row in enumerate(rows, start=1) if len(row) != len(columns)]:
        raise UserError(f"{path} has {len(columns)} columns, and lines of another number of cells: {listing(odd)}.")
    names = [row[place] for row in rows[1:]]
    if wrong := [name for name in names if not is_id(name)]:
        raise UserError(f"{path}: a patient is called by letters, digits, . _ and -; got {listing(map(repr, wrong))}.")
    folded = [name.casefold() for name in names]
    if twice := [name for name in names if folded.count(name.casefold()) > 1]:
        raise UserError(f"{path} has several lines of one patient (capitals aside): {listing(twice)}.")
    cells = [[cell for number, cell in enumerate(row) if number != place] for row in rows[1:]]
    others = [name for number, name in enumerate(columns) if number != place]
    return Table(path, others, sorted(zip(names, cells, strict=True)))


def cases_in(table: Table, wanted: Sequence[str | None]) -> tuple[list[Case], list[Fault]]:
    """The cases of a table, those who lack a volume too, and what is wrong with their volumes.

    wanted: of each column which series, see `choose`
    """
    cases, lost = [], []
    for patient, cells in table.rows:
        paths = {}
        for column, cell, series in zip(table.columns, cells, wanted, strict=True):
            try:
                found = _only_volume(_located(cell, table.path), series) if cell else None
            except UserError as error:
                lost.append((f"{column}: {error}", patient))
                continue
            paths |= {column: found} if found else {}
        cases.append(Case(patient, paths))
    return cases, lost


def _only_volume(path: Path, wanted: str | None) -> Path:
    """The volume that a cell names. Raises UserError for none, and for several."""
    channel = Channel()
    if not is_there(path):
        raise UserError(f"{path} {NOT_THERE}")
    channel.add(path)
    found = [*channel.named, *(series.path for series in choose(channel, wanted).values())]
    if channel.lost:
        raise UserError(describe_faults(channel.lost))
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} volumes, and one is meant: {listing(found, 5)}")
    return found[0]


def lacking(cases: Iterable[Case], roles: Mapping[str, str]) -> Iterator[Fault]:
    """The patients without a volume of some channel. `roles`: channel -> where its volumes were looked for."""
    for case in cases:
        for role, where in roles.items():
            if role not in case.paths:
                yield f"patients without {role} volume (none in '{where}')", case.patient


def nothing_found(roles: Mapping[str, str], channels: Mapping[str, Channel]) -> list[Fault]:
    """A fault for each pattern that finds nothing at all."""
    return [
        no_match(role, roles[role])
        for role, channel in channels.items()
        if not (channel.named or channel.series or channel.lost)
    ]
