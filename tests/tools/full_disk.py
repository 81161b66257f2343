"""Lets a training fill its disk, at one write after the other, and shows that it ends as if there had been room.

    unshare -rm python -m tests.tools.full_disk FOLDER           at one write of each kind in each folder
    unshare -rm python -m tests.tools.full_disk FOLDER --all     at each

The disk is a tmpfs of a few hundred kilobytes, which needs a mount namespace. A run on a large one tells at which
writes it takes more room than ever before; for some of them the disk is then made so small that only the first page of
the file has room, or nothing. Each time the run must stop with exit code 2 and one paragraph, leave nothing partial,
and, given room, end with the same bits.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import main as program
from nets.checkpoint_files import load_checkpoint
from tests.conftest import write_site
from tests.tools.chaos import arguments, differences
from utils import run_program

PAGE = os.sysconf("SC_PAGE_SIZE")
LARGE = 64 << 20


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self._mount("-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs")

    def resize(self, size: int) -> None:
        self._mount("-o", f"remount,size={size}")

    def used(self) -> int:
        """Bytes, in whole pages."""
        state = os.statvfs(self.path)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, self.path], check=True)


def train(argv: Sequence[str]) -> tuple[int, str]:
    """Exit code, and what was said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(said):
        try:
            run_program(partial(program.main, argv))
        except SystemExit as end:
            return int(end.code), said.getvalue()
    return 0, said.getvalue()


def needs(disk: Disk, argv: Sequence[str]) -> list[tuple[Path, int]]:
    """The writes of a run that take more room than any before them: the file, and a size of the disk too small."""
    found: list[tuple[Path, int]] = []
    most = 0
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        nonlocal most
        if path.is_file() and disk.used() > most:
            most = disk.used()
            beyond = (path.stat().st_size - 1) // PAGE * PAGE
            name = re.sub(r"^\.(.*)\.part-\d+$", r"\1", path.name)
            found.append((path.with_name(name).relative_to(disk.path), most - max(beyond, PAGE)))

    os.fsync = watched
    try:
        code, said = train(argv)
    finally:
        os.fsync = fsync
    assert code == 0, said
    return found


def check_whole(folder: Path) -> None:
    """Every file below the folder is complete."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        match path.suffix:
            case ".pkl":
                load_checkpoint(path)
            case ".npy":
                np.load(path)
            case ".png":
                Image.open(path).load()
            case ".csv":
                text = path.read_text()
                assert text.endswith("\n"), f"{path} ends in half a row"
                assert len({line.count(",") for line in text.splitlines()}) == 1, f"{path} has a broken row"
            case suffix:
                assert not suffix.startswith(".part-"), f"{path} was left"


def fill(disk: Disk, size: int, whole: Path, argv: Sequence[str], run: Path) -> None:
    """One run on a disk of this size, then led to its end on a large one."""
    disk.resize(size)
    code, said = train(argv)
    assert code == 2, f"exit code {code}: {said}"
    *notes, last = said.splitlines()
    assert "No space left" in last, said
    assert all("its slices are held in memory" in note for note in notes), said
    check_whole(disk.path)
    disk.resize(LARGE)
    code, said = train(argv)
    assert code == 0, said
    found = differences(whole, run)
    assert not found, found


def main() -> None:
    parser = argparse.ArgumentParser("tests.tools.full_disk", description="Fill a small disk by a training.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--all", action="store_true", help="not only one write of each kind in each folder")
    args = parser.parse_args()
    os.environ["GIT_DIR"] = os.devnull  # or each run notes the changes of the code, which may change meanwhile
    disk, whole = Disk(args.folder / "disk"), args.folder / "whole"
    site, run = write_site(disk.path / "site", 150, 90, seed=2), disk.path / "run"
    argv = arguments(site, run, "--network", "Dimwit", "--l_rate", 0.1)
    writes = needs(disk, argv)
    shutil.copytree(run, whole)
    if not args.all:
        kinds = [path.name if path.suffix in (".pkl", ".json") else path.suffix for path, _ in writes]
        folders = [re.sub(r"\d", "", str(path.parent)) for path, _ in writes]
        writes = list(dict(zip(zip(folders, kinds, strict=True), writes, strict=True)).values())
    for path, size in writes:
        for folder in (run, *site.glob("*/.cache")):
            shutil.rmtree(folder)
        print(f"{size} bytes, full at {path}", flush=True)
        fill(disk, size, whole, argv, run)


if __name__ == "__main__":
    main()
