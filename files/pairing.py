"""The files of a set: found by patterns, and paired by the patient in their names."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from files.faults import Fault
from files.listing import composed
from files.volume_names import FILE_NAME, header_of
from processes.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
NO_VOLUME = (
    "is a picture, where volumes are read (preprocess.new_dataset makes a set of pictures, which main.py trains and is "
    "scored on; docs/data.md, Folders of 2D pictures)"
)


@dataclass(frozen=True)
class Case:
    """The files of one patient: role (what the volume is for, see SliceSpec.folders) -> path."""

    patient: str
    paths: dict[str, Path]


def find_files(pattern: str) -> list[Path]:
    """Files that match the pattern, sorted; folders (of DICOM series) if it ends in '/'. '|' parts several patterns.

    Capital and small letters are the same in a file's name (not in its folder's): archives mix `_segmentation` and
    `_Segmentation`. `**` stands for any number of folders. A name that is there as it is written is no pattern: so
    folders may have brackets in their names. Hidden files are left out, like the `._*` shadows that some archives
    carry. Of a header and its voxels in two files, both of which match, the header is found: they are one volume.
    """
    found = {path for each in pattern.split("|") for path in _matching(each)}
    return sorted(path for path in found if (header := header_of(path)) == path or header not in found)


def _matching(pattern: str) -> Iterator[Path]:
    """What matches one pattern, in any order."""
    wanted = Path(pattern)
    is_wanted = Path.is_dir if pattern.endswith("/") else Path.is_file
    if is_wanted(wanted):
        yield wanted
        return
    for folder in _folders(wanted.parent):
        name = glob.escape(wanted.name) if is_wanted(folder / wanted.name) else wanted.name
        for path in folder.iterdir():
            if _matches(path.name, name) and not path.name.startswith(".") and is_wanted(path):
                yield path


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(composed(name.lower()), composed(pattern.lower()))


def _folders(pattern: Path) -> Iterator[Path]:
    """The folders that match; of each part of the pattern, in each of them, the one that is there as it is written."""
    if pattern.is_dir():
        yield pattern
    elif pattern.name:
        for parent in _folders(pattern.parent):
            name = glob.escape(pattern.name) if (parent / pattern.name).is_dir() else pattern.name
            found = glob.glob(f"{glob.escape(str(parent))}/{name}", recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
            yield from (path for path in map(Path, found) if path.is_dir())


BRACKETS = " (what stands in [ ] are letters to choose from, as in [0-9]; a [ in a name is written [[])"


def read_id(path: Path, pattern: re.Pattern[str]) -> str | None:
    """The groups of the pattern's match joined, or None.

    Looked for in the file's name, or in the whole path if the pattern holds a '/'.
    """
    match = pattern.search(composed(path.as_posix() if "/" in pattern.pattern else path.name))
    return "".join(group or "" for group in match.groups()) if match else None


def read_patients(text: str) -> tuple[str, ...]:
    """The patients in a list, or in a file of their names, which lines, blanks, commas, semicolons or quotes separate.

    Raises UserError for a file that is not written in UTF-8; a byte-order mark is no part of a name.
    """
    if not set(text) & set(",;") and os.path.isfile(text):  # noqa: PTH113  false, not an error, for a long text
        content = Path(text).read_bytes()
        try:
            if b"\0" in content:
                raise UserError(f"{text} is written in UTF-16, as PowerShell's > does; save it as UTF-8.")
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            byte = content[error.start]
            raise UserError(
                f"{text} is not written in UTF-8 but perhaps in Latin-1 (byte 0x{byte:02x} at {error.start}); save it "
                "as UTF-8."
            ) from error
    return tuple(dict.fromkeys(name for name in re.split(r"[\s,;\"']+", composed(text)) if name))


def compile_pattern(flag: str, pattern: str) -> re.Pattern[str]:
    """The regular expression of a flag. Raises UserError if it is none or has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{flag} '{pattern}' is no regular expression: {error}.") from error
    if not compiled.groups:
        raise UserError(
            f"{flag} '{pattern}' has no group: put brackets round the part that is wanted, as in (Case\\d+)."
        )
    return compiled


def _hint(pattern: str) -> str:
    """Why a pattern may match nothing."""
    if any(map(os.path.isdir, glob.glob(pattern, recursive=True))):  # noqa: PTH207  as above
        return " but a folder does (that of a DICOM series is written with a / at the end)"
    return BRACKETS if "[" in pattern else ""


def _no_id(patient: re.Pattern[str]) -> str:
    """A sentence: the name holds no id."""
    if patient.pattern == FILE_NAME:
        return (
            "a file's name is the patient's id, of letters, digits, . _ and - (or give --patient), which is not so in"
        )
    where = "the path" if "/" in patient.pattern else "the file's name (in the whole path if there is a / in it)"
    return f"--patient '{patient.pattern}' must find an id of letters, digits, . _ and - in {where}, but does not in"


def pair(
    patterns: Mapping[str, str], patient: re.Pattern[str], pictures: bool = False
) -> tuple[list[Case], list[Fault]]:
    """The patients of a set, sorted by name, and what is wrong with the files.

    `patterns`: role -> glob. A file belongs to the patient that its name says. Faults: a pattern without a file,
    a picture, a name without a patient, two files for one place, a patient who lacks a role.

    pictures: pictures are paired, in place of volumes
    """
    faults: list[Fault] = []
    named: dict[str, list[tuple[Path, str | None]]] = {}
    for role, pattern in patterns.items():
        named[role] = [(path, read_id(path, patient)) for path in find_files(pattern)]
        if not named[role]:
            faults.append(no_match(role, pattern))
    cases, more = by_patient(named, patient, pictures)
    lacking = "pictures without {}" if pictures else "patients without {} volume"
    for case in cases:
        more += [
            (f"{lacking.format(role)} (no file of '{pattern}')", case.patient)
            for role, pattern in patterns.items()
            if role not in case.paths
        ]
    return cases, faults + more


def no_match(role: str, pattern: str) -> Fault:
    """The fault of a pattern that finds nothing."""
    return f"no file matches{_hint(pattern)}", f"{role} '{pattern}'"


def by_patient(
    named: Mapping[str, Iterable[tuple[Path, str | None]]], patient: re.Pattern[str], pictures: bool = False
) -> tuple[list[Case], list[Fault]]:
    """The patients of these files, sorted by name, and what is wrong with the files; some may lack a role.

    named: role -> (file, whose it is: None or no id where nothing tells) by the expression `patient`
    pictures: they are what is paired
    """
    found: dict[str, dict[str, Path]] = {}
    faults: list[Fault] = []
    for role, files in named.items():
        for path, name in files:
            if path.suffix.lower() in PICTURES and not pictures:
                faults.append((NO_VOLUME, str(path)))
            elif not is_id(name):
                faults.append((_no_id(patient), str(path)))
            elif role in found.setdefault(name, {}):
                what = (
                    f"two files for {role} of one patient (narrow the pattern; or tell them apart by a --patient with "
                    "a / in it, which reads the whole path, as in '([^/]+)/(Case\\d+)')"
                )
                faults.append((what, f"{found[name][role]} and {path}"))
            else:
                found[name][role] = path
    return [Case(name, found[name]) for name in sorted(found)], faults + _alike(found)


def is_id(name: str | None) -> bool:
    """Whether a patient may be called so."""
    return bool(name and re.fullmatch(r"[\w.-]+", name))


def _alike(names: Iterable[str]) -> list[Fault]:
    """The patients whose names differ only in capitals: one person perhaps, whose files on some disks are one file."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(name.casefold(), []).append(name)
    what = "patients whose names differ only in capital letters (rename the files, or narrow the pattern)"
    return [(what, " and ".join(group)) for group in groups.values() if len(group) > 1]
