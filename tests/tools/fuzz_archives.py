"""Mutates archives: each must unpack to the files that it states, all of them, inside its folder, or be refused.

A plain tar has no checksum of what is in its files: there only names and number must hold. Hostile ones are sound and
hold names, links and devices that lead elsewhere.

python -m tests.tools.fuzz_archives --mutations 10000
"""

import io
import shutil
import stat
import tarfile
import zipfile
from functools import partial
from unittest.mock import patch

import numpy as np

from preprocess.unpack import NOTE, Lineage, unpack
from processes.errors import UserError
from tests.tools.fuzzing import each_kind, main, mutated

CONTENT = {
    "set/Case00.nii.gz": np.random.default_rng(0).bytes(900),
    "set/Case00_segmentation.nii.gz": bytes(700),
    "set/info/Info.cfg": b"ED: 1\nES: 12\n",
    "set/empty.txt": b"",
    f"set/{'long/' * 24}é.txt": b"a name that takes a second header",
}
PIECES = ("..", ".", "", "a", "b", "~", "C:", "C:\\x", "\\\\host\\x", "..\\..", "é", "\udce9", "con", "a\0b", "x" * 300)
PIECES += ("\u202e", " ", "-rf", "$(touch x)", "\n", NOTE, "__MACOSX", "._a")
SPECIAL = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"x", b"Z")


def zipped(compression):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.mkdir("set")
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(mode, form=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as archive:
        for name, content in CONTENT.items():
            _add(archive, name, content)
    return file.getvalue()


def _add(archive, name, content, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = len(content), kind, link
    archive.addfile(entry, io.BytesIO(content))


IN_HEADER = 100  # letters of a name that tar's own header holds
SEEDS = {
    "zip": [zipped(zipfile.ZIP_STORED), zipped(zipfile.ZIP_DEFLATED)],
    "tar": [tarred("w:"), tarred("w:", tarfile.GNU_FORMAT)],
    "tar.gz": [tarred("w:gz")],
    "tar.bz2": [tarred("w:bz2")],
    "tar.xz": [tarred("w:xz")],
}


# ------------------------------------------------------------------------------------------------- looking


def files(folder):
    """What lies below the folder, by its path in it."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}


def look_at(path, room, expected):
    """What is wrong with what is unpacked below `room`, in which the archive lies; '' if nothing is.

    expected: the files as stated, name -> content (None: whatever it is); None: whatever they are, inside
    """
    dest = room / "in" / "out"
    shutil.rmtree(dest, ignore_errors=True)
    try:
        with patch("os.sync"):
            unpack(Lineage({path: None}, ""), dest)
    except UserError:
        if left := sorted(set(files(room)) - {"in/archive"}):
            return f"refused, and left {left}"
        raise
    if strays := [name for name in files(room) if name != "in/archive" and not name.startswith("in/out/")]:
        return f"outside the folder: {strays}"
    found = {name: each for name, each in files(dest).items() if name != NOTE}
    if odd := [name for name, each in found.items() if not stat.S_ISREG(each.lstat().st_mode)]:
        return f"no plain files: {odd}"
    return _compare({name: each.read_bytes() for name, each in found.items()}, expected)


def _compare(found, expected):
    if expected is None:
        return ""
    if found.keys() != expected.keys() and not _is_another_long_name(found, expected):
        return f"other files: {sorted(found.keys() ^ expected.keys())}"
    other = [name for name, content in expected.items() if content is not None and content != found.get(name)]
    return f"other content: {other}" if other else ""


def _is_another_long_name(found, expected):
    """Whether a name alone differs that a plain tar keeps among its content, of which it has no checksum."""
    told = expected.keys() - found.keys()
    return None in expected.values() and len(found) == len(expected) and all(len(name) > IN_HEADER for name in told)


# ------------------------------------------------------------------------------------------------- mutants


def _of_kind(kind, folder):
    path = folder / "in" / "archive"
    path.parent.mkdir()

    def mutate(rng):
        content = SEEDS[kind][int(rng.integers(len(SEEDS[kind])))]
        if rng.random() < 0.3:  # two whole ones, or one and what is no archive
            content = content + (content if rng.random() < 0.3 else rng.bytes(int(rng.integers(1, 2000))))
        length = int(rng.choice([len(content), 700]))  # of them all, or in the first headers
        path.write_bytes(mutated(content, rng, length) if rng.random() < 0.95 else content)

    expected = dict.fromkeys(CONTENT) if kind == "tar" else CONTENT
    return mutate, partial(look_at, path, folder, expected)


def _hostile(folder):
    """Sound archives of one to four files: of any names, and of a tar of any kinds."""
    path = folder / "in" / "archive"
    path.parent.mkdir()

    def name(rng):
        return "/".join(map(str, rng.choice(PIECES, int(rng.integers(1, 4)))))

    def write_zip(rng):
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(rng.integers(1, 5)):
                entry = zipfile.ZipInfo("x")
                entry.filename = name(rng).replace("\udce9", "é")
                if rng.random() < 0.3:
                    entry.external_attr = (stat.S_IFLNK if rng.random() < 0.5 else stat.S_IFIFO) << 16
                archive.writestr(entry, b"../../x")

    def write_tar(rng):
        with tarfile.open(path, "w:gz" if rng.random() < 0.5 else "w:", format=int(rng.choice([1, 2]))) as archive:
            for _ in range(rng.integers(1, 5)):
                kind = tarfile.REGTYPE if rng.random() < 0.6 else SPECIAL[int(rng.integers(len(SPECIAL)))]
                _add(archive, name(rng), b"content", kind, name(rng).replace("\0", ""))

    def mutate(rng):
        (write_zip if rng.random() < 0.5 else write_tar)(rng)

    return mutate, partial(look_at, path, folder, None)


KINDS = {kind: partial(_of_kind, kind) for kind in SEEDS} | {"hostile": _hostile}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
