"""Which part of the names of files and folders is the patient, where nobody says so or a file's name does not."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from files.pairing import BRACKETS, compile_pattern, find_files, pair, read_id
from processes.errors import UserError

WORD = re.compile(r"[A-Za-z]*[-_]?\d+")  # what ids look like: case01, sub-02, 17
FOLDERS = (
    "[^/]*/[^/]*$",
    "[^/]*/[^/]*/[^/]*$",
    "[^/]*/",
)  # behind an id in: a file's folder, the one above, any
ANY_NAME = (r"^(.+?)(?:\.nii|\.nii\.gz|\.mha|\.mhd|\.nrrd|\.hdr)?$", r"^([^_.]+)[_.]")  # all of it; up to the first _
# of pictures: the name without its ending, or without a word for what the file is; one picture is one case
STEM = r"^(.+)\.[^.]+$"
KIND = "(?i:masks?|labels?|seg|segmentation|segmented|gt|groundtruth|annotation|annotated|manual1?|images?|img)"
PICTURE_NAMES = (STEM, rf"^(.+?)(?:[_-]{KIND})*\.[^.]+$", rf"^(?:{KIND}[_-])*(.+?)(?:[_-]{KIND})*\.[^.]+$")
ANY_FOLDER = (r"([^/]+)/[^/]*$", r"([^/]+)/[^/]*/[^/]*$")


def find_patient(patterns: Mapping[str, str], typed: str | None, site: str) -> tuple[str, list[str]]:
    """An expression that gives every file of a site an id, and every patient one file a role; and what is to be said.

    patterns: role -> glob
    typed: by the user. It is kept where it finds ids in the names, and where none is found anywhere: the faults say so
    Raises UserError where nothing is typed and nothing fits.
    """
    files = [path for pattern in patterns.values() for path in find_files(pattern)]
    if typed is not None:
        compiled = compile_pattern("--patient", typed)
        if not files or "/" in typed or any(read_id(path, compiled) for path in files):
            return typed, []
        found = next((each for each in _in_folders(typed) if _fits(patterns, each)), None)
        if found is None:
            return typed, []
        return found, [
            f"--patient {found} at the {site}: the ids are in the names of folders, as {_example(files, found)}"
        ]
    if not files:
        glob = next(iter(patterns.values()))
        raise UserError(f"No file matches '{glob}', the images of the {site}{BRACKETS if '[' in glob else ''}.")
    for each in _candidates(files):
        if _fits(patterns, each):
            return each, [f"--patient {each} at the {site}, found by itself: {_example(files, each)}; check"]
    raise UserError(
        f"No part of the names tells which files of the {site} are of one patient (as {files[0]}): give --patient "
        "REGEX, whose group is the id in the file's name, or, with a / in it, in the whole path."
    )


def find_pictures(patterns: Mapping[str, str], typed: str | None, site: str) -> tuple[str, str | None, list[str]]:
    """An expression that gives every picture an id; one whose group is the patient, or None; what is to be said.

    patterns: role -> glob
    typed: by the user, for pictures or for patients of several pictures
    Where nothing fits, the faults of pairing the files by it say so.
    """
    files = [path for pattern in patterns.values() for path in find_files(pattern)]
    compiled = compile_pattern("--patient", typed) if typed is not None else None
    if compiled and (_fits(patterns, typed, pictures=True) or not all(read_id(path, compiled) for path in files)):
        return typed, None, []
    others = (each for each in _candidates(files) if each != ANY_NAME[0])  # which takes a.png and a.jpg for two
    found = next((each for each in (*PICTURE_NAMES, *others) if _fits(patterns, each, pictures=True)), None)
    if found is None:  # what is whole by the best of them is left out of the faults
        found = min(PICTURE_NAMES, key=lambda each: len(pair(patterns, re.compile(each), pictures=True)[1]))
    if compiled is None:
        return found, None, [f"one picture is one patient at the {site}, as {_example(files, found)}; else --patient"]
    images = find_files(next(iter(patterns.values())))
    people = {read_id(path, compiled) for path in images}
    said = f"--patient {typed}: {len(images)} pictures of {len(people)} patients at the {site}; all of a patient stay"
    return found, typed, [f"{said} in one split, and each is scored by itself"]


def _fits(patterns: Mapping[str, str], patient: str, pictures: bool = False) -> bool:
    """Whether every file is of one patient, and every patient has one file of each role."""
    cases, faults = pair(patterns, re.compile(patient), pictures)
    return bool(cases) and not faults


def _in_folders(patient: str) -> Iterator[str]:
    start = f"(?:^|/){patient[1:]}" if patient.startswith("^") else patient
    yield from (start + behind for behind in FOLDERS)


def _candidates(files: list[Path]) -> Iterator[str]:
    """Expressions for ids, what is usual first: words with numbers in the names, names, words and names of folders."""
    yield from _words(path.name for path in files)
    yield from ANY_NAME
    for level, behind in enumerate(FOLDERS[:2]):
        names = [path.parents[level].name for path in files if len(path.parents) > level]
        yield from (word + behind for word in _words(names) if len(names) == len(files))
    yield from (word + FOLDERS[-1] for word in _words(path.parent.as_posix() for path in files))
    yield from ANY_FOLDER


def _words(names: Iterable[str]) -> Iterator[str]:
    """The words with a number that all names have, but for the number: (case\\d+) of case01_t2 and case02_mask."""
    shapes: dict[str, int] = {}
    count = 0
    for name in names:
        count += 1
        found = [re.sub(r"\d+", lambda _: r"\d+", re.escape(word).replace(r"\-", "-")) for word in WORD.findall(name)]
        for shape in dict.fromkeys(found):
            shapes[shape] = shapes.get(shape, 0) + 1
    yield from (f"({shape})" for shape, held in shapes.items() if held == count)


def _example(files: list[Path], patient: str) -> str:
    path = files[0]
    return f"{path.as_posix()} is of {read_id(path, re.compile(patient))}"
