"""The DICOM series below a folder, as an archive of images (PACS) exports them: several in one, or one over several.

A series that has a folder of its own is named by the folder. Any other is named by a path that is none on the disk: a
folder, and behind it the SeriesInstanceUID, as in export/1.2.840.113619.2. Its files lie anywhere below that folder.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from files.faults import Fault, VolumeFault
from files.formats.dicom_file import DicomFile, Torn, examine
from utils import listing

UID = re.compile(r"\d+(\.\d+)+")
NO_IMAGES = (
    "SEG",
    "RTSTRUCT",
    "RTDOSE",
    "RTPLAN",
    "PR",
    "KO",
    "SR",
    "DOC",
    "REG",
)  # modalities of what is no image
TORN = "has files that are torn, or no slices of its series (copy it again, or take them out of the folder)"
SETTLED = 10**8  # ns after which a change of a folder has another time than the one before
OURS = ".of-"  # begins the mark of a folder that a program of this project writes to


@dataclass(frozen=True)
class Series:
    """A series of images. `path` names it; `first` is one of its files; `home` is the folder that holds them all."""

    path: Path
    home: Path
    first: DicomFile
    slices: int

    @property
    def uid(self) -> str:
        return self.first.series

    def __str__(self) -> str:
        told = self.first
        number = f", number {told.number}" if told.number else ""
        return f"'{told.description}' ({told.modality or 'no modality'}{number}, {self.slices} slices)"


@dataclass
class _Looked:
    """What was seen of some files: those that are whole, what is wrong with others, and those that are no DICOM."""

    whole: list[DicomFile] = field(default_factory=list)
    torn: list[tuple[Path, Torn]] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


def is_series(path: Path) -> bool:
    """Whether a path names one series among others."""
    return bool(UID.fullmatch(path.name)) and path.parent.is_dir() and not path.exists()


def files_below(folder: Path) -> Iterator[Path]:
    """The files below a folder by their names, but hidden ones and what a program of this project wrote there."""
    known = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen = Path(place).stat()
        if (seen.st_dev, seen.st_ino) in known or any(name.startswith(OURS) for name in names):
            folders.clear()  # a link to a folder above it has no end
            continue
        known.add((seen.st_dev, seen.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(names) if _is_seen(path := Path(place, name)))


def series_of(path: Path) -> list[DicomFile]:
    """The images of the one series that the path names, in any order.

    Raises VolumeFault for a folder with several series or none, and for files that are torn.
    """
    if path.is_dir():
        return _checked(_look(entry for entry in sorted(path.iterdir()) if _is_seen(entry)), path)
    known = _sorted(path.parent)
    looked = _look([*known.of_series.get(path.name, ()), *known.others])
    images = [each for each in looked.whole if each.pixels and each.series == path.name]
    homes = {each.path.parent for each in images}
    ours = _Looked(foreign=[file for file in looked.foreign if file.parent in homes])
    ours.whole = [each for each in looked.whole if _is_of(path.name, each.series, each.path, homes)]
    ours.torn = [(file, error) for file, error in looked.torn if _is_of(path.name, error.series, file, homes)]
    return _checked(ours, path)


@dataclass(frozen=True)
class _Sorted:
    """The files below a folder by their series, and those that are of none; when its folders were last changed."""

    of_series: dict[str, list[Path]]
    others: list[Path]
    changed: dict[Path, int]  # ns

    def holds(self) -> bool:
        """Whether no file came and none went."""
        return all(folder.is_dir() and folder.stat().st_mtime_ns == at for folder, at in self.changed.items())


_KNOWN: dict[Path, _Sorted] = {}


def _sorted(folder: Path) -> _Sorted:
    """Sorted once while its folders are as they were: each of many series is opened several times."""
    known = _KNOWN.get(folder)
    if known is None or not known.holds():
        files = list(files_below(folder))
        homes = {folder, *(home for file in files for home in file.parents if home.is_relative_to(folder))}
        changed = {home: home.stat().st_mtime_ns for home in homes}  # before they are looked at
        looked = _look(files)
        of_series: dict[str, list[Path]] = {}
        for series, file in [(each.series, each.path) for each in looked.whole] + [
            (error.series, file) for file, error in looked.torn
        ]:
            of_series.setdefault(series, []).append(file)
        known = _Sorted(of_series, [*of_series.pop("", ()), *looked.foreign], changed)
        if time.time_ns() - max(changed.values()) > SETTLED:
            _KNOWN[folder] = known
    return known


def _is_seen(entry: Path) -> bool:
    return entry.is_file() and not entry.name.startswith(".")


def _is_of(uid: str, series: str, file: Path, homes: set[Path]) -> bool:
    """Whether a file is, or may be, of a series: one that does not say of which, beside the images of this one."""
    return series == uid if series else file.parent in homes


def _checked(looked: _Looked, path: Path) -> list[DicomFile]:
    images = [each for each in looked.whole if each.pixels]
    series = {each.series for each in images}
    named = {_shape(each.path) for each in images}
    torn = [f"{file.name}: {error}" for file, error in looked.torn]
    for each in looked.whole:  # others without an image are reports, directories and the like
        is_cut = not each.series and _shape(each.path) in named
        if not each.pixels and (each.series in series or is_cut):
            torn.append(f"{each.path.name}: it holds no image")
    torn += [f"{file.name}: it is no DICOM file" for file in looked.foreign if _shape(file) in named]
    if torn:
        raise VolumeFault(TORN, f"{path} ({listing(torn, 5)})")
    if len(series) != 1:
        what = "holds no DICOM series (name the folder that its files lie in)"
        what = "holds several DICOM series (give each a folder of its own)" if series else what
        raise VolumeFault(what, f"{path} ({len(series)})" if series else str(path))
    return images


def _look(paths: Iterable[Path]) -> _Looked:
    looked = _Looked()
    for path in paths:
        try:
            each = _examined(path)
        except Torn as error:
            looked.torn.append((path, error))
            continue
        if each is None:
            looked.foreign.append(path)
        else:
            looked.whole.append(each)
    return looked


def _examined(path: Path) -> DicomFile | None:
    seen = path.stat()
    return _examined_once(path, (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))


@lru_cache(1 << 18)
def _examined_once(path: Path, _: tuple[int, ...]) -> DicomFile | None:
    """Walked once while the file is as it was seen: of a folder with many series it is asked for each of them."""
    return examine(path)


def _shape(path: Path) -> str:
    """What the names of a series have in common: the ending, or where that is a number the name without its digits."""
    ending = path.suffix.lower()
    return ending if ending and not ending[1:].isdigit() else re.sub(r"\d+", "#", path.name)


# ------------------------------------------------------------------------------------------------ what there is


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Fault]]:
    """The series of images among these files, by their first files, and the torn files that are of none of them.

    What is made of images, such as segmentations and reports, is left out.
    """
    looked = _look(files)
    by_uid: dict[str, list[DicomFile]] = {}
    for each in looked.whole:
        if each.pixels and each.modality not in NO_IMAGES:
            by_uid.setdefault(each.series, []).append(each)
    crowd: dict[Path, set[str]] = {}
    for each in looked.whole:
        if each.pixels:
            crowd.setdefault(each.path.parent, set()).add(each.series)
    found = [_series(uid, images, crowd) for uid, images in by_uid.items()]
    homes = {file.path.parent for images in by_uid.values() for file in images}
    what = "is torn, and of no series that can be read (copy it again, or take it out of the folder)"
    lost = [
        (what, f"{file} ({error})")
        for file, error in looked.torn
        if (error.series not in by_uid if error.series else file.parent not in homes)
    ]
    return found, lost


def _series(uid: str, images: list[DicomFile], crowd: dict[Path, set[str]]) -> Series:
    """The series that these files are. `crowd`: the series that each folder holds files of."""
    homes = {each.path.parent for each in images}
    home = Path(os.path.commonpath(homes))
    alone = len(homes) == 1 and len(crowd[home]) == 1
    return Series(home if alone else home / uid, home, images[0], len(images))
