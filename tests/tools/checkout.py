"""Parts of this checkout, copied for tests that change or run them elsewhere."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("processes", "files", "datasets", "nets", "methods", "engine", "analysis", "preprocess", "make", "*.py")


def tracked(*patterns):
    """The files that git has or would take, by their path."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if (ROOT / name).is_file()]


def copy_files(names, folder):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def working_folder(folder):
    """The folder with what a makefile needs: the code, linked, and places for data and sizes."""
    for pattern in CODE:
        for path in ROOT.glob(pattern):
            (folder / path.name).symlink_to(path)
    for name in ("data", "sizes"):
        (folder / name).mkdir()
    return folder


def copy_rules(folder):
    """What every makefile needs: the rules, and the lock that they call."""
    return copy_files(tracked("make", "processes"), folder)
