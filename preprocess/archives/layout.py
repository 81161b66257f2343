"""From the layout of an archive to the flags of the slicer: what the script of every archive shares."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from files.pairing import find_files
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing.tables import describe
from processes.errors import UserError
from utils import ProgramParser, listing

AXIAL = ("--orient", "LPS")  # axial slices alike however the volumes are stored; --plane or --axis behind it cut others


def slice_archive(archive: ModuleType, argv: Sequence[str] | None = None) -> None:
    """The command line of an archive's script.

    archive: a module with `add_flags(add)`, its own flags, and `flags(args)`, the slicer's. Any flag of the slicer may
    stand behind them, and wins.
    """
    parser = ProgramParser(
        f"python -m {archive.__spec__.name if archive.__spec__ else archive.__name__}",
        description=archive.__doc__,
        epilog="Any flag of python -m preprocess.slice_volumes besides: --dest, --val, --size, --format, …",
    )
    parser.add_argument("--volumes", type=Path, required=True, help="the folder that the archive was unpacked into")
    archive.add_flags(parser.add_argument)
    args, more = parser.parse_known_args(argv)
    if any(word.partition("=")[0] == "--image" for word in more):
        raise UserError(
            "--image is what this script knows of the archive; to choose the files by hand use python -m "
            "preprocess.slice_volumes."
        )
    if not args.volumes.is_dir():
        raise UserError(
            f"--volumes {args.volumes} is no folder; unpack the archive there (python -m preprocess.unpack)."
        )
    print(describe(slice_set(read_spec([*archive.flags(args), *more]))))


def first_there(root: Path, *candidates: str) -> str:
    """The first of these patterns, relative to `root`, that a file matches ('/' at its end: a folder).

    Raises UserError that names all of them: the layouts that are known.
    """
    for pattern in candidates:
        if find_files(f"{root}/{pattern}"):
            return f"{root}/{pattern}"
    raise UserError(
        f"{root} does not look like this archive: expected one of {listing(candidates)} in it. Unpack the whole "
        "archive there, under the names that it came with."
    )


def folder_there(root: Path, name: str) -> Path:
    """The folder of this name, whatever its capitals, at most two levels below `root`. Raises UserError."""
    folders = sorted(path for level in ("*", "*/*") for path in root.glob(level) if path.is_dir())
    for folder in folders:
        if folder.name.lower() == name.lower():
            return folder
    raise UserError(f"{root} has no folder {name}; it has {listing(folder.name for folder in folders) or 'none'}.")
