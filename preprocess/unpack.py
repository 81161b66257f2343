"""Archives, checked and unpacked: what their owners hand out on registration -> a folder of volumes.

    python -m preprocess.unpack --lineage data/acdc.lineage --dest data/acdc_volumes --skip '*_4d.nii.gz'

The lineage file lists the archives in the format of md5sum, `<md5>  <path>` a line, and says behind `#` where they
come from; where their owners tell no checksum a `-` stands in its place. zip, tar, tar.gz, tar.bz2 and tar.xz, member
by member, so that memory stays flat. DEST appears when it is whole, or not at all; what was unpacked is noted in it, in
archives.json.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import errno
import fnmatch
import gzip
import hashlib
import json
import lzma
import re
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO

from tqdm import tqdm

from files.faults import Fault, describe_faults
from files.zip_entries import read_entries
from preprocess.new_set import refuse_existing, whole_folder
from processes.errors import UserError
from utils import ProgramParser, counted, listing, run_program

BROKEN = (  # what reading an archive raises when it is damaged, locked with a password or of an unknown kind
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
    *(zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError),
)
CHUNK = 2**20  # bytes in memory at a time
NOTE = "archives.json"  # the md5 of what was unpacked
MOST = 2_000_000  # files in an archive
SWELLS, SLACK = 200, 2**30  # its content: at most so many times as large as the archive, and these bytes


# ------------------------------------------------------------------------------------------------------ lineage


@dataclass(frozen=True)
class Lineage:
    """The archives of a data set, path -> md5 (None: not known), and in words where to get them."""

    archives: dict[Path, str | None]
    origin: str


def read_lineage(path: Path) -> Lineage:
    """Reads a lineage file; paths in it are relative to the working folder, as for md5sum. Raises UserError."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").split("\n")]
    archives, odd = {}, []
    for line in lines:
        match = re.fullmatch(r"([0-9a-fA-F]{32}|-) [ *](.+)", line)
        if match:
            archives[Path(match[2])] = None if match[1] == "-" else match[1].lower()
        elif line and line[0] != "#":
            odd.append(line)
    if odd or not archives:
        raise UserError(
            f"{path}: expected lines of an md5, two blanks and the path of an archive, and comments behind #; "
            f"got {listing(odd) or 'no archive'}."
        )
    return Lineage(archives, " ".join(line.lstrip("# ") for line in lines if line.startswith("#")))


def check_archives(lineage: Lineage, accept_checksum: bool = False) -> dict[Path, str]:
    """The md5 of each. Raises UserError that lists all that are missing or of another (accepted: only a warning)."""
    missing = [("archives that are not there", str(path)) for path in lineage.archives if not path.is_file()]
    there = {path: md5(path) for path in lineage.archives if path.is_file()}
    other = [
        ("archives of another md5", f"{path} ({found}, not {lineage.archives[path]})")
        for path, found in there.items()
        if lineage.archives[path] not in (None, found)
    ]
    if missing or (other and not accept_checksum):
        hint = " A newer release has another md5: --accept_checksum takes it as it is." if other else ""
        raise UserError(f"Nothing was unpacked, {describe_faults(missing + other)}{hint} {lineage.origin}".strip())
    if other:
        print(f"Warning: unpacked all the same, {describe_faults(other)}", file=sys.stderr)
    return there


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


# ---------------------------------------------------------------------------------------------------- unpacking


@dataclass(frozen=True)
class Member:
    """One entry of an archive that is no folder; a link or a device is not plain."""

    path: PureWindowsPath  # reads / and \\ alike, and knows drives: whatever system packed the archive
    is_plain: bool
    open: Callable[[], IO[bytes]]

    def is_wanted(self, skip: Sequence[str]) -> bool:
        """Whether no pattern matches its path (* crosses folders), and it is no shadow that macOS left."""
        shadow = any(part == "__MACOSX" or part.startswith("._") for part in self.path.parts)
        return not shadow and not any(fnmatch.fnmatchcase(self.path.as_posix(), pattern) for pattern in skip)


def _members(path: Path) -> Iterator[Member]:
    """The files of an archive, each to be read before the next is asked for."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for entry in read_entries(archive):
                kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where no Unix packed it
                if not entry.is_dir():
                    is_plain = kind in (0, stat.S_IFREG)
                    yield Member(PureWindowsPath(entry.filename), is_plain, partial(archive.open, entry))
    else:
        with tarfile.open(path) as archive:
            archive.fileobj = last = _Last(archive.fileobj)
            for entry in archive:
                if not entry.isdir():
                    yield Member(PureWindowsPath(entry.name), entry.isreg(), partial(archive.extractfile, entry))
            if len(last.block) < tarfile.BLOCKSIZE or any(last.block):
                raise tarfile.ReadError("it ends before its end mark")
            while last.read(CHUNK):  # what is behind it is empty, but for the checksum of a compressed one
                pass


class _Last:
    """A file that remembers what was read of it last.

    The tarfile module takes a header that is damaged or cut off for the end of the archive, unless it is the first.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell, self.close = file, file.seek, file.tell, file.close
        self.block = b""

    def read(self, size: int) -> bytes:
        self.block = self.file.read(size)
        return self.block


def _unpack_archive(path: Path, root: Path, skip: Sequence[str]) -> tuple[int, list[Fault]]:
    """Unpacks the wanted files of one archive below `root`: their number, and those that are refused.

    Raises UserError for an archive made to fill the disk.
    """
    number, faults, room = 0, [], SWELLS * path.stat().st_size + SLACK
    with closing(_members(path)) as members:
        for member in tqdm(members, path.name, unit=" files", disable=None):
            if not member.is_wanted(skip):
                continue
            shown = f"{path}: {member.path.as_posix()}"
            if member.path.anchor or ".." in member.path.parts:
                faults.append(("leads out of the folder", shown))
            elif not member.is_plain:
                faults.append(("is a link or a special file", shown))
            elif PureWindowsPath(NOTE) in (member.path, *member.path.parents):
                faults.append(("has the name of the note on what was unpacked", shown))
            else:
                number += 1
                try:
                    room -= _copy(member, root.joinpath(*member.path.parts), room)
                except (FileExistsError, NotADirectoryError):
                    faults.append(("stands where another file stands already", shown))
                except (ValueError, OSError) as error:  # a NUL in a name, a name too long, a place before the file
                    if isinstance(error, OSError) and error.errno not in (
                        errno.EINVAL,
                        errno.ENAMETOOLONG,
                        errno.EISDIR,
                    ):
                        raise
                    faults.append(("cannot be unpacked under its name", f"{shown} ({error})"))
            if room < 0 or number > MOST:
                raise UserError(
                    f"{path} unpacks to more than {SWELLS} times its size, or to more than {MOST} files (at "
                    f"{member.path.as_posix()}): no archive of images does. Nothing of it was kept; fetch it again "
                    "from its owner, or unpack it by hand if you trust it."
                )
    return number, faults


def _copy(member: Member, target: Path, room: int) -> int:
    """Writes the file, or its first `room` bytes and one chunk, and returns how many."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with target.open("xb") as file, member.open() as content:
        while size <= room and (chunk := content.read(CHUNK)):
            size += file.write(chunk)
    return size


def unpack(lineage: Lineage, dest: Path, skip: Sequence[str] = (), accept_checksum: bool = False) -> int:
    """Unpacks the archives into the new folder `dest` and returns the number of files.

    Raises UserError if `dest` is there, if archives are missing, others or damaged, and one that lists every member
    that a sound archive would not hold; then nothing is left.
    """
    refuse_existing(dest, "--dest")
    digests = check_archives(lineage, accept_checksum)
    with whole_folder(dest) as made:
        made.mkdir(parents=True)
        number, faults = 0, []
        for path in lineage.archives:
            try:
                count, found = _unpack_archive(path, made, skip)
            except (*BROKEN, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of the system; bz2 tells of damage as one without a number
                said = " ".join(str(error).split())
                raise UserError(
                    f"{path} cannot be unpacked ({type(error).__name__}: {said}); it should be a whole zip or tar "
                    "without a password: download it again."
                ) from error
            number, faults = number + count, faults + found
        if faults or not number:
            what = describe_faults(faults) if faults else f"no file in {listing(lineage.archives)} is left to unpack."
            raise UserError(f"Nothing was unpacked into {dest}: {what}")
        (made / NOTE).write_text(json.dumps({path.name: digest for path, digest in digests.items()}, indent=1) + "\n")
    return number


# ------------------------------------------------------------------------------------------------- command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ProgramParser("python -m preprocess.unpack", description=__doc__)
    add = parser.add_argument
    add("--lineage", type=Path, required=True, help="file that lists the archives with their md5")
    add("--dest", type=Path, required=True, help="folder for what is in them; must not exist")
    skip = "files to leave out, by their path in the archive; * crosses folders, as in '*/orig/*'"
    add("--skip", nargs="+", default=[], metavar="GLOB", help=skip)
    accept = "go on, with a warning, where an archive has another md5 than is listed: it was packed anew"
    add("--accept_checksum", action="store_true", help=accept)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    lineage = read_lineage(args.lineage)
    number = unpack(lineage, args.dest, args.skip, args.accept_checksum)
    print(f"{args.dest}: {counted(number, 'file')} out of {listing(lineage.archives)}")


if __name__ == "__main__":
    run_program(main)
