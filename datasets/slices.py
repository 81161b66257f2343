"""Sets of slices: one split of a set opened and checked, and the bounds that are laid on it.

A set is a row of indices into its folders' arrays (cache.py), wherever those lie: on the disk, in RAM or on the GPU.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.cache import Plane, open_plane
from datasets.files import SliceName, check_ignored, pair_files, read_names
from datasets.set_tables import contradicted, read_rows, spacing_of_patients
from datasets.transforms import FolderSpec
from files.listing import SliceFile
from processes.errors import UserError
from utils import listing, tell_once

GPU_SHARE, RAM_SHARE = 0.3, 0.5  # of the memory that is free now: what resident slices may take


# ---------------------------------------------------------------------------------------------- data sets


@dataclass
class SliceSet:
    """One split: N slices in the order of patient and slice number.

    Raises nothing once it exists; every check is made by `open_slices`.
    """

    root: Path
    split: str
    names: list[str]
    patients: list[str]
    numbers: list[int]  # of each slice in its patient's volume
    planes: dict[FolderSpec, Plane]
    order: Tensor  # n int64: the row of each slice in the planes
    folders: list[FolderSpec]  # the image, the metrics' ground truth, one per loss; the image alone without labels
    bounds: list[np.ndarray | None]  # one per loss: n k 2
    spacing: dict[str, tuple[float, float, float]] | None  # patient -> (between slices, W, H) in mm
    digest: str  # sha256 over every file read
    ignore: int | None = None  # what the ground truth holds where a pixel has no class
    contradicted: frozenset[str] = frozenset()  # patients of whose slices manifest.csv tells other places than numbers
    matching: Callable[[Tensor, Sequence[str]], Tensor] | None = None  # of grey levels: see grey_matching.py

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_truth(self) -> bool:
        """Whether there is ground truth."""
        return len(self.folders) > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, W, H) of an image."""
        return self.planes[self.folders[0]].shape

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """(W, H) of each image."""
        return [self.shape[1:]] * len(self)

    def image(self, row: int) -> np.ndarray:
        """(C, W, H) float32 image of a row."""
        plane = self.planes[self.folders[0]]
        return self.as_seen(plane.decode(plane.gather(self.order[row, None])).cpu(), [row])[0].numpy()

    def as_seen(self, image: Tensor, rows: Sequence[int]) -> Tensor:
        """(B, C, …) decoded images of these rows -> as the network sees them."""
        return image if self.matching is None else self.matching(image, [self.patients[row] for row in rows])

    def labels(self, rows: Sequence[int], folder: FolderSpec | None = None) -> np.ndarray:
        """(B, W, H) uint8 class numbers, or `ignore`: the metrics' ground truth, or that of another folder."""
        return self.planes[folder or self.folders[1]].gather(self.order[list(rows)]).cpu().numpy()

    def truth(self, row: int) -> np.ndarray:
        """(W, H) uint8 class numbers, or `ignore`, of a row."""
        return self.labels([row])[0]

    def keep(self, rows: Sequence[int]) -> "SliceSet":
        """The set of these rows alone."""
        rows = list(rows)
        return replace(
            self,
            names=[self.names[row] for row in rows],
            patients=[self.patients[row] for row in rows],
            numbers=[self.numbers[row] for row in rows],
            order=self.order[rows],
            bounds=[None if bound is None else bound[rows] for bound in self.bounds],
        )

    def hold(self, device: torch.device) -> "SliceSet":
        """The set with its slices copied to the device's memory."""
        planes = {spec: plane.hold(self.order, device) for spec, plane in self.planes.items()}
        return replace(self, planes=planes, order=torch.arange(len(self), device=device))


def open_slices(
    root: Path,
    split: str,
    folders: Sequence[FolderSpec],
    n_class: int,
    regex: str,
    limit: int | None = None,
    *,
    ignore: int | None = None,
    any_truth_size: bool = False,
) -> SliceSet:
    """Opens and checks one split; what was opened before comes out of its cache.

    limit: keep that many slices, spread over the set (`--debug`)
    ignore: a label that ground truth may hold besides 0..K-1, for pixels without a class
    any_truth_size: ground truth, all of one size, need not have that of the images (evaluation alone)

    Raises UserError that lists every offender: a missing folder or partner file, a name the expression does not
    match, different shapes, a label outside 0..K-1, NaN, an unreadable file, an empty split, distances in mm of a
    set without spacing.
    """
    check_ignored(ignore, n_class)
    names, files = pair_files(root / split, sorted({spec.folder for spec in folders}))
    parsed = read_names(root / split, names, regex)
    places = [(read.patient, read.index, name) for read, name in zip(parsed, names, strict=True)]
    order = sorted(range(len(names)), key=places.__getitem__)
    if limit and limit < len(order):
        chosen = [order[i] for i in np.linspace(0, len(order) - 1, limit).astype(int)]
        names, parsed = [names[i] for i in chosen], [parsed[i] for i in chosen]
        files, order = {folder: [paths[i] for i in chosen] for folder, paths in files.items()}, list(range(limit))
    patients = [parsed[i].patient for i in order]
    ordered = [names[i] for i in order]
    numbers, rows = [parsed[i].index for i in order], read_rows(root)
    spacing = spacing_of_patients(root, ordered, patients, rows)
    planes, digests = {}, []
    for spec in dict.fromkeys(folders):
        is_image, paths = spec == folders[0], files[spec.folder]
        in_plane = _in_plane(root, spec, spacing, paths, parsed)
        planes[spec], digest = open_plane(paths, spec, n_class, is_image, not limit, ignore, in_plane)
        digests.append(digest)
    _check_shapes(root / split, folders[1:] or folders if any_truth_size else folders, planes)
    return SliceSet(
        root,
        split,
        ordered,
        patients,
        numbers,
        planes,
        torch.tensor(order),
        list(folders),
        [None] * max(len(folders) - 2, 0),
        spacing,
        hashlib.sha256("".join([*ordered, *digests]).encode()).hexdigest(),
        ignore,
        frozenset(contradicted(rows, ordered, patients, numbers, spacing)),
    )


def _in_plane(
    root: Path,
    spec: FolderSpec,
    spacing: dict[str, tuple[float, float, float]] | None,
    files: Sequence[SliceFile],
    names: Sequence[SliceName],
) -> dict[SliceFile, tuple[float, float]]:
    """(W, H) mm of each file where the transform measures in mm; UserError for a set without spacing."""
    if not spec.in_mm:
        return {}
    if spacing is None:
        raise UserError(
            f"{spec.transform} measures {spec.folder} in mm, and {root} has no manifest.csv, where the spacing stands: "
            "slice the volumes with the project's slicer, or take dist_map_transform, which measures in pixels."
        )
    return {file: spacing[name.patient][1:] for file, name in zip(files, names, strict=True)}


def _check_shapes(folder: Path, specs: Sequence[FolderSpec], planes: dict[FolderSpec, Plane]) -> None:
    """Raises UserError unless the slices of these folders share one (W, H)."""
    expected = planes[specs[0]].shape[-2:]
    for spec in specs:
        if (shape := planes[spec].shape[-2:]) != expected:
            raise UserError(
                f"{folder}: the slices of {spec.folder} have shape {shape}, those of {specs[0].folder} "
                f"{expected}; slice every volume of a set to one size (--size W H)."
            )


def join(sets: Sequence[SliceSet]) -> SliceSet:
    """The slices of several splits of one folder as one set, before bounds are laid on it."""
    first, *others = sets
    for other in others:
        image, others_image = (part.planes[first.folders[0]] for part in (first, other))
        if (image.shape, image.divisor) != (others_image.shape, others_image.divisor):
            raise UserError(
                f"{first.root}: {first.split} and {other.split} differ in the size or depth of their images."
            )
        order = torch.cat([first.order, other.order + len(image)])
        first = replace(
            first,
            split=f"{first.split}+{other.split}",
            names=first.names + other.names,
            patients=first.patients + other.patients,
            numbers=first.numbers + other.numbers,
            planes={spec: plane + other.planes[spec] for spec, plane in first.planes.items()},
            order=order,
            spacing=None if first.spacing is None else first.spacing | (other.spacing or {}),
            contradicted=first.contradicted | other.contradicted,
            digest=hashlib.sha256((first.digest + other.digest).encode()).hexdigest(),
        )
    return first


def lay_bounds(slices: SliceSet, bounds: Sequence[Any], required: bool = True) -> SliceSet:
    """The set, with `bounds` (N, K, 2) in pixels for each loss. Slices that a prior leaves out are dropped.

    Bounds of a loss that measures in mm are (N, K + 2, 2), the size of a pixel behind them.

    bounds: one object of bounds.py per loss, or None
    required: whether a bound must cover every slice, and find the ground truth it reads. If not (in validation), every
        slice stays, such a bound is left out, and its loss is not measured

    Raises UserError for a bound that is required and cannot be looked up.
    """
    laid: list[np.ndarray | None] = []
    kept = np.ones(len(slices), bool)
    for bound, folder in zip(bounds, slices.folders[2:] or [None] * len(bounds), strict=True):
        blind = bound is not None and bound.needs_label and folder is None
        if blind and required:
            raise UserError(
                f"{type(bound).__name__} is made of ground truth, and {slices.root / slices.split} is read without "
                "any: name its folder in --target_folders, or take a bound that needs none (PredictionBounds, "
                "ConstantBounds)."
            )
        covered = None if bound is None or blind else _covered(bound, slices.names, required)
        if covered is None:
            laid.append(None)
            continue
        truth = slices.folders[1] if folder and folder.is_map else folder
        labels = (slices.labels([row], truth)[0] if bound.needs_label else None for row in range(len(slices)))
        limits = np.stack([bound(label, name) for label, name in zip(labels, slices.names, strict=True)])
        if required:
            tell_once(bound.doubt(slices.names, [math.prod(size) for size in slices.sizes]))
        usable = are_usable(bound, limits, covered, slices.names, required)
        limits = np.concatenate([limits, _pixel_sizes(slices)], 1) if bound.with_spacing else limits
        laid.append(limits if usable else None)
        kept &= covered
    if not kept.any():
        raise UserError(f"The size prior leaves out every slice of {slices.root / slices.split} (all-zero lists).")
    slices = replace(slices, bounds=laid)
    return slices if kept.all() else slices.keep(np.flatnonzero(kept).tolist())


def _pixel_sizes(slices: SliceSet) -> np.ndarray:
    """(N, 2, 2) mm, row by row: [[1, between slices], [W, H]]; 1 of a set without spacing."""
    told = [(1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[name] for name in slices.patients]
    return np.array([[(1.0, deep), plane] for deep, *plane in told])


def are_usable(bound: Any, limits: np.ndarray, covered: np.ndarray, names: Sequence[str], required: bool) -> bool:
    """Whether a loss can learn from limits (N, K, 2): they have ratios, where these are compared.

    covered: (N,) bool, the slices that the bound speaks of
    required: raises UserError where there are no ratios; in any case for limits that are no finite numbers
    """
    if not np.isfinite(limits).all():
        raise UserError(
            f"{type(bound).__name__} gives sizes that are no finite numbers of pixels. Take a smaller margin, "
            "or look at the csv."
        )
    nothing = covered & ~limits[:, :, 0].any(1)
    if not (bound.as_ratios and nothing.any()):
        return True
    if not required:
        return False
    raise UserError(
        f"{type(bound).__name__} gives every class the size 0 in {nothing.sum()} of {len(names)} slices, and its "
        f"loss compares the ratios of the classes: {listing(np.array(names)[nothing])}. Give the background a size "
        "there (what the other classes leave of W·H pixels), or a smaller margin."
    )


def _covered(bound: Any, names: Sequence[str], required: bool) -> np.ndarray | None:
    """(N,) which slices the bound speaks of; None if it is not required and does not speak of all."""
    try:
        bound.check(names)
    except UserError:
        if required:
            raise
        return None
    covered = np.array([not bound.skips(name) for name in names])
    return covered if required or covered.all() else None


# ------------------------------------------------------------------------------------- where slices live


def place(sets: dict[str, SliceSet], where: str, device: torch.device, world: int = 1) -> dict[str, SliceSet]:
    """The sets where `--cache` wants them: on the device ("gpu"), in "ram", or left on the disk ("stream").

    "auto" takes the first of these that has room for all of them; `world` processes share the machine's memory.
    """
    needed = sum(len(part) * plane.slice_bytes for part in sets.values() for plane in part.planes.values())
    if where == "auto":
        where = "ram" if needed * world < RAM_SHARE * free_memory() else "stream"
        if device.type == "cuda" and needed < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            where = "gpu"
    if where == "stream":
        return sets
    target = device if where == "gpu" else torch.device("cpu")
    return {name: part.hold(target) for name, part in sets.items()}


def free_memory() -> int:
    """Bytes that this machine can still give."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
