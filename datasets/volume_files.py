"""Volumes as files: each read and checked once from end to end, and from then on a .npy that is mapped where it lies.

    <split>/.cache/<folder>-<kind>.json                  SHA-256, shape and labels of each file
    <split>/.cache/<folder>-<kind>-<case>-<hash>.npy     a NIfTI, decoded in the smallest type that loses nothing

As with slices (cache.py) a note may be old but is never wrong: a file whose size, times or inode are not those noted is
read and hashed again. It is decoded again if it differs, or if what was decoded is not as it was written. Where the
cache cannot be written, a .npy is checked each time.
"""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from datasets.code_identity import code_hash
from datasets.files import SETTLED, image_fault, label_fault, map_fault, narrowest, values_fault
from datasets.transforms import FolderSpec
from files import cached as cached_file
from files.foreign import reading
from files.listing import SliceFile
from files.nifti_headers import Header, from_text, to_text
from processes.errors import UserError
from processes.lock import locked
from utils import atomic_write, load_npy, whole

FORMAT = 3  # of the notes and of what is decoded; another number makes both again
READERS = 3  # volumes examined at a time, each of which takes a few times its size
Size = tuple[int, int, int]  # voxels along D, W and H
Note = dict[str, Any]


@dataclass(frozen=True)
class Volume:
    """One volume: a .npy on the disk, and what is known of it."""

    path: Path
    digest: str  # sha256 of the file that it is, or was decoded from
    shape: tuple[int, ...]  # (C, D, W, H) of an image or of maps, (D, W, H) of class numbers
    affine: np.ndarray | None  # (4, 4), from voxel numbers to mm
    header: Header | None = None  # where it lies, as a NIfTI's own header states it

    @property
    def size(self) -> Size:
        return self.shape[-3:]

    def map(self) -> np.memmap:
        """The voxels, on the disk until they are looked at. Raises UserError for a file that is not what it was."""
        try:
            return load_npy(self.path, mmap_mode="r").reshape(self.shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} was removed, cut or written to while it was in use ({error}). Start again: what is wrong "
                "with it is then told, or it is made anew, and with --resume a run goes on where it was."
            ) from error


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The voxels (D, W, H) or (C, D, W, H), a .npy mapped; and the (4, 4) matrix from voxel numbers to mm, if known.

    Raises UserError for a picture, a file that cannot be read, and one that holds no numbers.
    """
    if path.suffix.lower() == ".png":
        raise UserError(f"{path} is no volume; those are .npy, .nii or .nii.gz")
    return _read_array(path) if path.suffix.lower() == ".npy" else _read_stated(path)


def _read_array(path: Path) -> tuple[np.ndarray, None]:
    """The voxels of a .npy, which says nothing of mm."""
    with reading(path, "write it again with np.save"):
        voxels = load_npy(path, mmap_mode="r")
    if voxels.dtype.kind not in "biuf":
        raise UserError(f"{path} holds no numbers but complex values, text or the like ({voxels.dtype})")
    return voxels, None


def _read_stated(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a file whose header says where they lie."""
    # here, as a training on slices, which imports this too, should not have to wait for the formats' packages
    from files.faults import VolumeFault
    from files.formats import open_volume

    try:
        volume = open_volume(path)
        voxels = volume.voxels()
    except VolumeFault as error:
        what, which = error.fault
        raise UserError(f"{path} {what}{which.removeprefix(str(path))}") from error
    while voxels.ndim > 4 and voxels.shape[-1] == 1:  # as some writers add
        voxels = voxels[..., 0]
    return voxels if voxels.ndim < 4 else np.moveaxis(voxels, -1, 0), volume.affine


def _read_header(path: Path) -> Header:
    """Where such a file's voxels lie."""
    from files.reading import read_header  # here, as above

    return read_header(path)


def compact(image: np.ndarray) -> np.ndarray:
    """(C, D, W, H) in the smallest type that holds every value; wide numbers count as the float32 they become."""
    is_small = image.dtype.kind in "biu" and image.dtype.itemsize <= 2
    kinds = [narrowest(channel if is_small else channel.astype(np.float32)) for channel in image]
    return np.ascontiguousarray(image, np.result_type(*kinds))


@dataclass(frozen=True)
class VolumeFolder:
    """The files of one folder by case, and what they must hold."""

    files: Mapping[str, SliceFile]
    spec: FolderSpec
    is_image: bool
    n_class: int
    ignore: int | None

    @property
    def holds_labels(self) -> bool:
        return not (self.is_image or self.spec.is_map)

    @property
    def name(self) -> str:
        """The name of what lies in the cache: the folder, and what its files are read as."""
        kind = "image" if self.is_image else "labels" if self.holds_labels else f"maps{self.n_class}"
        return f"{self.spec.folder}-{kind}".replace("/", "_")

    @property
    def cache(self) -> Path:
        return Path(next(iter(self.files.values())).path).parents[1] / ".cache"

    def open(self) -> tuple[dict[str, Volume], list[str]]:
        """The sound volumes by case, and the faults of the others."""
        notes, faults = self._notes(), {}
        if self._unknown(notes):
            try:
                self.cache.mkdir(exist_ok=True)
                with locked(self.cache, wait=True):
                    notes, faults = self._examine(self._notes())
                    with atomic_write(self.cache / f"{self.name}.json", "w") as file:
                        json.dump({"format": FORMAT, "code": _code(), "volumes": notes}, file, indent=1)
            except OSError as error:
                print(f"{self.cache} cannot be used ({error.strerror}); nothing is noted there.", file=sys.stderr)
                notes, faults = self._examine(self._notes(), keep=False)
        for case in self.files.keys() & notes.keys():  # whose labels may have been sound for another --n_class alone
            if fault := values_fault(np.array(notes[case]["labels"]), self.n_class, self.ignore):
                faults[case] = f"{self.files[case].path} {fault}"
        sound = {case: self._volume(case, notes[case]) for case in self.files if case not in faults}
        return sound, [faults[case] for case in self.files if case in faults]

    def _volume(self, case: str, note: Note) -> Volume:
        path = self.cache / note["decoded"] if note["decoded"] else Path(self.files[case].path)
        affine = None if note["affine"] is None else np.array(note["affine"])
        header = from_text(note["header"]) if note["header"] else None
        return Volume(path, note["digest"], tuple(note["shape"]), affine, header)

    # -- notes --------------------------------------------------------------------------------------------

    def _notes(self) -> dict[str, Note]:
        """Case -> what was found in its file."""
        try:
            noted = json.loads((self.cache / f"{self.name}.json").read_text(encoding="utf-8"))
            return noted["volumes"] if (noted["format"], noted["code"]) == (FORMAT, _code()) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _unknown(self, notes: Mapping[str, Note]) -> list[str]:
        """The cases whose files no note vouches for."""
        return [
            case
            for case, file in self.files.items()
            if case not in notes
            or not notes[case]["settled"]
            or notes[case]["file"] != _state(file)
            or not self._is_complete(notes[case])
        ]

    def _is_complete(self, note: Note) -> bool:
        return note["decoded"] is None or cached_file.is_as_written(self.cache / note["decoded"], note["array"])

    # -- examining ----------------------------------------------------------------------------------------

    def _examine(self, notes: dict[str, Note], keep: bool = True) -> tuple[dict[str, Note], dict[str, str]]:
        """The notes, with those of the unknown files made again, and the faults of files that get none, by case.

        keep: whether the cache can be written
        """
        faults = {}
        with ThreadPoolExecutor(READERS) as pool:
            cases = self._unknown(notes)
            pending = {case: pool.submit(self._note, case, notes.pop(case, None), keep) for case in cases}
            for case, note in pending.items():
                try:
                    notes[case] = note.result()
                except UserError as fault:
                    faults[case] = str(fault)
        return notes, faults

    def _note(self, case: str, old: Note | None, keep: bool) -> Note:
        """What is found in a file that is read from end to end. Raises UserError, a clause without its full stop.

        old: an earlier note of the case, perhaps of the same content
        """
        file = self.files[case]
        path, is_settled = Path(file.path), max(file.modified, file.changed) < time.time_ns() - SETTLED
        seen = {"file": _state(file), "settled": is_settled, "digest": _digest(path)}
        if old and (old["file"][0], old["digest"]) == (path.name, seen["digest"]) and self._is_complete(old):
            return old | seen
        voxels, affine = read_volume(path)
        if self.holds_labels and voxels.ndim == 4 and len(voxels) == 1:
            voxels = voxels[0]
        stored, voxels = voxels, whole(voxels) if self.holds_labels else voxels
        if fault := self._fault(voxels):
            raise UserError(f"{path} {fault}")
        is_ready = path.suffix.lower() == ".npy" and (voxels is stored or np.array_equal(voxels, stored))
        if self.is_image and voxels.ndim == 3:
            voxels = voxels[None]
        decoded = None if is_ready else f"{self.name}-{case}-{seen['digest'][:16]}.npy"
        if decoded and not keep:
            raise UserError(f"{path} has to be decoded, into {self.cache}, which cannot be written; take .npy volumes")
        if decoded:
            with atomic_write(self.cache / decoded) as out:
                np.save(out, voxels.astype(np.uint8) if self.holds_labels else compact(voxels))
        if old and old["decoded"] not in (None, decoded):
            (self.cache / Path(old["decoded"]).name).unlink(missing_ok=True)  # whatever a note says: here alone
        return seen | {
            "decoded": decoded,
            "array": decoded and cached_file.describe(self.cache / decoded),
            "shape": list(voxels.shape),
            "labels": np.unique(voxels).astype(int).tolist() if self.holds_labels else [],
            "affine": None if affine is None else affine.tolist(),
            "header": None if affine is None else to_text(_read_header(path)),
        }

    def _fault(self, voxels: np.ndarray) -> str:
        if self.is_image:
            return image_fault(voxels, axes=3)
        if self.spec.is_map:
            return map_fault(voxels, self.n_class, axes=3)
        return label_fault(voxels, self.n_class, self.ignore, axes=3)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _state(file: SliceFile) -> list[str | int]:
    """Name, size, times and inode: what the listing tells of a file's content."""
    return [Path(file.path).name, file.size, file.modified, file.changed, file.inode]


@cache
def _code() -> str:
    """SHA-256 of what decodes a volume, and reads where it lies."""
    # here, as above; and named one by one, since what a function imports as it runs is not followed into
    from files.formats import nifti
    from files.reading import read_header

    return code_hash([read_volume, nifti.open_volume, read_header, compact, whole, VolumeFolder._note])
