"""One folder of a split as one array. It is decoded once, in the smallest type that loses nothing, and read in place.

    <split>/.cache/<folder>-<transform>.json         what the folder's listing looked like, and which content that was
    <split>/.cache/<folder>-<transform>-<hash>.npy   the slices of that content, in the order of their names

The hash is taken over the content of the files, the code that makes an array from them, and the spacing where the
transform needs it. That code is the transform's, with the versions of the libraries. So a cache can be old but never
wrong: when the listing (names, sizes, times, inodes, spacing) is not the one noted, the files are read and hashed
again, and decoded again if they or the code differ. Nor can it be torn: an array that is not what was written is made
again. The folder lies inside the split, since make looks at the time stamp of the set's own folder. Where it cannot be
written, the slices are held in memory instead.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from datasets import files as slice_files
from datasets.code_identity import code_hash
from datasets.files import SETTLED, divisor_of, load_slice, narrowest
from datasets.transforms import TRANSFORMS, FolderSpec
from files import cached as cached_file
from files.listing import SliceFile
from files.rows import StoredRows
from processes.errors import UserError
from processes.lock import locked
from utils import about_faulty, atomic_write, counted, tell_once

FORMAT = 3  # of the files below; another number makes every cache again
CHUNK = 64  # slices decoded, written and copied at a time: what bounds the memory


class Plane:
    """The slices of one folder in their stored type, on the disk, in RAM or on the GPU.

    parts: arrays that follow each other, (N1, …), (N2, …): (N, C, W, H) of images, (N, W, H) uint8 of ground truth,
        (N, K, W, H) of maps
    divisor: `decode` divides by it: 255 for 8 bits, 65535 for 16 bits, 1 for values that are used as stored
    """

    def __init__(self, parts: Sequence[Tensor | StoredRows], divisor: float) -> None:
        self.parts, self.divisor = list(parts), divisor
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        # numpy's rule of promotion loses nothing; torch's would put int16 and float16 together as float16
        stored = np.result_type(*(_dtype(part) for part in parts))
        self.dtype = torch.from_numpy(np.empty(0, stored)).dtype

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one slice: (C, W, H), (W, H) or (K, W, H)."""
        return tuple(self.parts[0].shape[1:])

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.on_disk else self.parts[0].device

    @property
    def on_disk(self) -> bool:
        """Whether slices are read when they are asked for."""
        return any(isinstance(part, StoredRows) for part in self.parts)

    @property
    def slice_bytes(self) -> int:
        """How many bytes one slice takes as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def gather(self, rows: Tensor, pin: bool = False) -> Tensor:
        """(B,) rows -> (B, …) slices in their stored type.

        rows: int64, on the plane's device; pin: whether the slices lie in page-locked memory
        """
        if self.device.type != "cpu":
            return self.parts[0].index_select(0, rows)
        found = torch.empty((len(rows), *self.shape), dtype=self.dtype, pin_memory=pin)
        rows = rows.numpy()
        if len(self.parts) == 1:
            _take(self.parts[0], rows, found.numpy())
            return found
        home = np.searchsorted(self.starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            mine = home == number
            theirs = np.empty((mine.sum(), *self.shape), _dtype(part))
            _take(part, rows[mine] - self.starts[number], theirs)
            found.numpy()[mine] = theirs
        return found

    def decode(self, stored: Tensor) -> Tensor:
        """Stored values of any shape -> float32, divided by `divisor`."""
        values = stored.float()
        return values if self.divisor == 1 else values.div_(self.divisor)

    def hold(self, rows: Tensor, device: torch.device) -> "Plane":
        """(B,) rows -> a plane of B slices: a copy of these rows, in their order, on the device."""
        held = torch.empty((len(rows), *self.shape), dtype=self.dtype, device=device)
        for start in range(0, len(rows), CHUNK):
            held[start : start + CHUNK] = self.gather(rows[start : start + CHUNK]).to(device)
        return Plane([held], self.divisor)

    def __add__(self, other: "Plane") -> "Plane":
        return Plane([*self.parts, *other.parts], self.divisor)


def _dtype(part: Tensor | StoredRows) -> np.dtype:
    return part.dtype if isinstance(part, StoredRows) else torch.empty(0, dtype=part.dtype).numpy().dtype


def _take(part: Tensor | StoredRows, rows: np.ndarray, out: np.ndarray) -> None:
    if isinstance(part, StoredRows):
        part.take(rows, out)
    else:  # numpy's, not torch's: it lets go of the interpreter and starts no threads
        np.take(part.numpy(), rows, axis=0, out=out, mode="clip")


# ----------------------------------------------------------------------------------------------- opening


def open_plane(
    files: Sequence[SliceFile],
    spec: FolderSpec,
    n_class: int,
    is_image: bool,
    keep: bool = True,
    ignore: int | None = None,
    spacing: Mapping[SliceFile, tuple[float, float]] | None = None,
) -> tuple[Plane, str]:
    """The slices of these files, in their order, and the SHA-256 of what they were made from.

    keep: whether they are kept in `<split>/.cache`; if not, or where that cannot be written, they are held in memory
    ignore: a label that ground truth may hold besides 0..K-1
    spacing: (W, H) in mm of each file, for a transform in mm

    Raises UserError that lists every file with a fault (unreadable, NaN, another shape or depth, a label outside
    0..K-1, another number of maps than K).
    """
    folder = Folder(files, spec, n_class, is_image, ignore, spacing or {})
    if keep:
        try:
            signature = folder.signature()
            note = _as_noted(folder, signature) or _make(folder, signature)
            return Plane([StoredRows(folder.cache / note["file"], note["array"])], note["divisor"]), note["digest"]
        except OSError as error:
            if error.filename not in {file.path for file in files}:  # else decoding tells, below
                tell_once(f"{folder.cache} cannot be used ({error.strerror}); its slices are held in memory.")
    memory = io.BytesIO()
    divisor, _ = folder.write(memory)
    memory.seek(0)
    return Plane([torch.from_numpy(np.load(memory))], divisor), folder.digest()


def _note(folder: "Folder") -> dict[str, Any]:
    """The cache's note, if there is one of this code with classes that fit; else empty."""
    try:
        note = json.loads((folder.cache / f"{folder.name}.json").read_text(encoding="utf-8"))
        if note["format"] != FORMAT or note["code"] != folder.code:
            return {}
        fits = folder.is_image or all(value < folder.n_class or value == folder.ignore for value in note["values"])
        return note if fits and {"settled", "signature", "digest", "file", "divisor", "array"} <= note.keys() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _as_noted(folder: "Folder", signature: str) -> dict[str, Any]:
    """The note, if nothing points to a change, of the files or of the cache; else empty."""
    note = _note(folder)
    same = note and note["settled"] and note["signature"] == signature
    return note if same and cached_file.is_as_written(folder.cache / note["file"], note["array"]) else {}


def _make(folder: "Folder", signature: str) -> dict[str, Any]:
    """Makes the cache, or finds after a second look that it is right. One process does so at a time."""
    folder.cache.mkdir(exist_ok=True)
    with locked(folder.cache, wait=True):
        if note := _as_noted(folder, signature):
            return note  # made by another process meanwhile
        settled, digest = folder.settled(), folder.digest()
        note = _note(folder)
        same = note and note["digest"] == digest
        if not same or not cached_file.is_whole(folder.cache / note["file"], note["array"]):
            made_of = hashlib.sha256((digest + folder.code).encode()).hexdigest()[:16]
            note = {"format": FORMAT, "digest": digest, "code": folder.code, "file": f"{folder.name}-{made_of}.npy"}
            with atomic_write(folder.cache / note["file"]) as file:
                note["divisor"], note["values"] = folder.write(file)
        note |= {"signature": signature, "settled": settled, "array": cached_file.describe(folder.cache / note["file"])}
        with atomic_write(folder.cache / f"{folder.name}.json", "w") as file:
            json.dump(note, file, indent=1)
        for old in folder.cache.glob(f"{folder.name}-{'[0-9a-f]' * 16}.npy"):
            if old.name != note["file"]:
                old.unlink()  # who has it open keeps it
        return note


# ----------------------------------------------------------------------------------------------- decoding


class WiderTypeError(Exception):
    """A slice does not fit the type that the slices before it fitted."""

    def __init__(self, dtype: np.dtype) -> None:
        super().__init__(str(dtype))
        self.dtype = dtype


@cache
def _code(transform: Callable[..., np.ndarray]) -> str:
    """SHA-256 of what reads a slice and turns it so; it takes as long as to open a small set."""
    return code_hash([slice_files.load_slice, FolderSpec.apply, transform])


@dataclass(frozen=True)
class Folder:
    """The files of one folder, and what is to be made of them."""

    files: Sequence[SliceFile]
    spec: FolderSpec
    n_class: int
    is_image: bool
    ignore: int | None
    spacing: Mapping[SliceFile, tuple[float, float]]  # mm along W and H; empty where nothing depends on it

    @property
    def cache(self) -> Path:
        return Path(self.files[0].path).parents[1] / ".cache"

    @property
    def name(self) -> str:
        """The beginning of the names of the cache's files.

        It tells what the array depends on, apart from the content of the files and the spacing.
        """
        classes = f"-{self.n_class}" if self.spec.is_map else ""
        kind = "" if self.is_image else "-labels"
        return f"{self.spec.folder}-{self.spec.transform}{classes}{kind}".replace("/", "_")

    @cached_property
    def code(self) -> str:
        """SHA-256 of what reads and turns the files."""
        return _code(TRANSFORMS[self.spec.transform])

    def signature(self) -> str:
        """SHA-256 of all that a listing tells of the files."""
        seen = [
            f"{file.path.rsplit('/', 1)[-1]} {file.size} {file.modified} {file.changed} {file.inode} "
            f"{self.spacing.get(file) if self.spacing else None}"
            for file in self.files
        ]
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()

    def settled(self) -> bool:
        """Whether every file is old enough that a change from now on changes its time."""
        newest = max(max(file.modified for file in self.files), max(file.changed for file in self.files))
        return newest < time.time_ns() - SETTLED

    def digest(self) -> str:
        """SHA-256 over names, content (read again) and spacing."""
        whole = hashlib.sha256()
        with ThreadPoolExecutor() as pool:
            for chunk in self._chunks():
                for file, digest in zip(chunk, pool.map(_digest, chunk), strict=True):
                    whole.update(Path(file.path).name.encode() + digest)
                    whole.update(str(self.spacing.get(file, "")).encode())
        return whole.hexdigest()

    def write(self, file: IO[bytes]) -> tuple[float, list[int]]:
        """Writes every slice as one .npy; gives the divisor of the images and the classes of the ground truth."""
        dtype = None
        while True:
            try:
                return self._write_as(file, dtype)
            except WiderTypeError as wider:
                dtype = wider.dtype
                file.seek(0)
                file.truncate()

    def _chunks(self) -> Iterator[Sequence[SliceFile]]:
        for start in range(0, len(self.files), CHUNK):
            yield self.files[start : start + CHUNK]

    def _write_as(self, file: IO[bytes], dtype: np.dtype | None) -> tuple[float, list[int]]:
        """Writes them as `dtype`, or what the first of them need. Raises WiderTypeError where that is too narrow."""
        values: set[int] = set()
        for arrays in self._decoded():
            needed = np.result_type(*(narrowest(array) for array in arrays), *([] if dtype is None else [dtype]))
            if dtype is not None and needed != dtype:
                raise WiderTypeError(needed)
            if not file.tell():
                dtype, first = needed, arrays[0]
                header = {"descr": needed.str, "fortran_order": False, "shape": (len(self.files), *first.shape)}
                np.lib.format.write_array_header_1_0(file, header)
            for array in arrays:
                file.write(array.astype(dtype).tobytes())
            if not (self.is_image or self.spec.is_map):
                values.update(np.unique(arrays).tolist())
        return divisor_of(first) if self.is_image else 1.0, sorted(values)

    def _decoded(self) -> Iterator[list[np.ndarray]]:
        """Slices by the chunk. After a fault the rest is only read, and the end raises UserError with all faults."""
        faults, first = [], None
        with ThreadPoolExecutor() as pool:
            for chunk in self._chunks():
                arrays = []
                for file, (array, fault) in zip(chunk, pool.map(self._load, chunk), strict=True):
                    first = array if first is None else first
                    if fault := fault or _unlike(file, array, first):
                        faults.append(fault)
                    arrays.append(array)
                if not faults:
                    yield arrays
        if faults:
            where = Path(self.files[0].path).parents[1]
            raise UserError(f"{where}: {about_faulty(faults)}")

    def _load(self, file: SliceFile) -> tuple[np.ndarray | None, str]:
        spacing = self.spacing.get(file)
        array, fault = load_slice(Path(file.path), self.spec, self.n_class, self.is_image, self.ignore, spacing)
        return (array[None] if self.is_image and not fault and array.ndim == 2 else array), fault


def _digest(file: SliceFile) -> bytes:
    with open(file.path, "rb") as content:  # noqa: PTH123  a Path costs as much as a small slice
        return hashlib.file_digest(content, "sha256").digest()


def _unlike(file: SliceFile, array: np.ndarray, first: np.ndarray) -> str:
    """What sets the slice apart from the first of the folder; '' if nothing does."""
    if array.shape[-2:] == first.shape[-2:] and array.shape != first.shape:
        return (
            f"{file.path} has {counted(len(array), 'channel')}, not {len(first)}; write all with one number of channels"
        )
    if array.shape != first.shape:
        sizes = [
            str(tuple(size for size in shape if size > 1 or len(shape) < 3)) for shape in (array.shape, first.shape)
        ]
        return f"{file.path} has shape {sizes[0]}, not {sizes[1]}; slice every volume of a set to one size (--size W H)"
    if array.dtype.kind == "u" and array.dtype != first.dtype:
        return f"{file.path} has {8 * array.itemsize} bits a pixel, not {8 * first.itemsize}; write all at one depth"
    return ""
