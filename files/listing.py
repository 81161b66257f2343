"""What lies in a folder of slices or volumes: each file once, whatever the case of its suffix."""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from processes.errors import UserError
from utils import listing, tell_once

SUFFIXES = (".nii.gz", ".nii", ".png", ".npy")
FOREIGN = (  # images that nothing here reads
    *(".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".dcm", ".ima"),
    *(".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mgz", ".npz", ".mat", ".h5"),
)
UNLISTED = re.compile("[\n\r\ud800-\udfff]")  # in a name: what no list of names, one a line, can hold


def composed(name: str) -> str:
    """The name with each accented letter as one character (NFC): some disks, those of macOS, give two (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """The slice's name without its suffix, in capitals or not, `.nii.gz` counted as one; letters as `composed`."""
    small = name.lower()
    for suffix in SUFFIXES:
        if small.endswith(suffix):
            return composed(name[: -len(suffix)])
    return composed(name)


def is_slice(name: str) -> bool:
    """Whether a file of this name is read; hidden files, such as the `._*` of some archives, are not."""
    return name.lower().endswith(SUFFIXES) and name[0] != "."


@dataclass(frozen=True, slots=True)
class SliceFile:
    """One file of a folder, as the folder's listing tells.

    Size and time of writing can be those of another content (copies that keep times, archives without them); the
    change of the inode, which nobody can set, and its number can not.
    """

    path: str
    size: int  # bytes
    modified: int  # ns
    changed: int  # ns
    inode: int


@dataclass(frozen=True)
class Listing:
    """What a folder holds: files by slice, the first of several of one name; which names are there several times; what
    else may have been meant to be read."""

    folder: Path
    files: dict[str, SliceFile]
    twins: list[str]
    foreign: list[str]

    @property
    def about_foreign(self) -> str:
        """A clause on the files that are not read; '' where there are none."""
        if not self.foreign:
            return ""
        count = len(self.foreign)
        what = "an image file that is not read" if count == 1 else f"{count} image files that are not read"
        return f"{self.folder} holds {what} ({listing(self.foreign, 4)})"


def look(folder: Path) -> Listing:
    """Looks at the folder on the disk, once for each file."""
    files: dict[str, SliceFile] = {}
    several: dict[str, list[SliceFile]] = {}
    foreign = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_slice(entry.name):
                file = _as_listed(entry)
                first = files.setdefault(stem(entry.name), file)
                if first is not file:
                    several.setdefault(stem(entry.name), [first]).append(file)
            elif entry.name.lower().endswith(FOREIGN) and entry.name[0] != ".":
                foreign.append(entry.name)
    twins = {name: sorted(several[name], key=lambda file: file.path) for name in sorted(several)}
    files |= {name: first for name, (first, *_) in twins.items()}
    told = [" and ".join(Path(file.path).name for file in each) for each in twins.values()]
    return Listing(folder, files, told, sorted(foreign))


def _as_listed(entry: os.DirEntry) -> SliceFile:
    """The file as it is listed. A link to nothing counts too.

    Whoever reads it tells of it, with all else that is broken.
    """
    try:
        seen = entry.stat()
    except OSError:
        seen = entry.stat(follow_symlinks=False)
    return SliceFile(entry.path, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)


def look_into(folders: Iterable[Path]) -> list[Listing]:
    """Folder -> its listing.

    Raises UserError that lists names which a folder holds several times, or which no list can hold.
    """
    listings = [look(folder) for folder in folders]
    if unfit := [f"{found.folder}/{name}" for found in listings for name in found.files if UNLISTED.search(name)]:
        raise UserError(
            f"{len(unfit)} slices have names with a line break, or of letters that are no UTF-8: {listing(unfit)}. The "
            "lists of slices hold a name a line; rename them."
        )
    twins = [f"{found.folder}: {listing(found.twins)}" for found in listings if found.twins]
    if twins:
        raise UserError(
            "Slices that are there twice, under two suffixes or with an accent in two spellings, and nothing tells "
            f"which is meant: {'; '.join(twins)}. "
            "Move one of each out of the folder."
        )
    return listings


def tell_foreign(listed: Listing) -> None:
    """Prints one line on the files of a folder that are not read."""
    if listed.foreign:
        tell_once(f"{listed.about_foreign}; slices are {', '.join(SUFFIXES)}.")
