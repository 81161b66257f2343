"""Sets of volumes: the crops that a training draws from them, and the whole volumes of an evaluation.

Layout: `<root>/<split>/<folder>/<case>.{npy,nii,nii.gz}`, the same names in each folder. An image is (D, W, H), or with
its channels first (C, D, W, H); in a NIfTI they come last. Ground truth is (D, W, H) and holds the class numbers
0..K-1. Where the set's dataset.json says {"scale": {"mean": m, "sd": s}}, the network sees (grey level - m) / s.

No volume stays in memory: each is a .npy (volume_files.py) that is mapped for as long as a crop is read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.files import check_ignored, pair_files, parse_volume, read_names
from datasets.set_tables import affine_of, read_card, read_rows, spacing_of_patients
from datasets.slices import SliceSet
from datasets.streams import AHEAD, Batch, Stored, Stream, ahead
from datasets.transforms import TRANSFORMS, FolderSpec, nii_gt_transform, nii_transform, raw_npy_transform
from datasets.volume_files import Size, Volume, VolumeFolder
from files.foreign import reading
from files.nifti_headers import Header, header_at, states_no_place
from processes.errors import UserError
from utils import about_faulty, counted, derived_seed, doubled, fits, listing, tell_once

Box = tuple[Size, Size]  # first voxel and size of a part of a volume; it may reach over the far ends


# ---------------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class VolumePlane:
    """The volumes of one folder, and how they are read.

    Over its far ends a volume goes on with `beyond`, a class number. An image, for which that is None, goes on with
    its border, as it does where it is moved (augmentation.py): the statistics of instance normalisation stay those of
    tissue, and the ground truth has background there, or no class (--ignore).
    """

    volumes: list[Volume]
    dtype: torch.dtype
    beyond: int | None = None
    mean: float = 0.0
    divisor: float = 1.0

    def __len__(self) -> int:
        return len(self.volumes)

    def __add__(self, other: "VolumePlane") -> "VolumePlane":
        return replace(self, volumes=self.volumes + other.volumes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one voxel: (C,) of images, () of ground truth."""
        return self.volumes[0].shape[:-3]

    def read(self, row: int, box: Box | None = None) -> np.ndarray:
        """The part of a volume that the box holds, or all of it: (C, D, W, H) or (D, W, H), in its stored type."""
        start, size = box or ((0, 0, 0), self.volumes[row].size)
        inside = (..., *(slice(at, at + length) for at, length in zip(start, size, strict=True)))
        found = np.array(self.volumes[row].map()[inside])
        missing = [(0, wanted - there) for wanted, there in zip(size, found.shape[-3:], strict=True)]
        if not np.any(missing):
            return found
        how = {"mode": "edge"} if self.beyond is None else {"constant_values": self.beyond}
        return np.pad(found, [(0, 0)] * len(self.shape) + missing, **how)

    def decode(self, stored: Tensor) -> Tensor:
        """Stored values of any shape -> float32, less `mean`, divided by `divisor`."""
        values = stored.float()
        return values if (self.mean, self.divisor) == (0, 1) else values.sub_(self.mean).div_(self.divisor)


@dataclass(kw_only=True)
class VolumeSet(SliceSet):
    """One split: N volumes in the order of patient and name. They differ in size, and crops are taken from them."""

    crop: Size

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D, W, H) of a crop."""
        return *self.planes[self.folders[0]].shape, *self.crop

    @property
    def sizes(self) -> list[Size]:
        """(D, W, H) of each volume."""
        volumes = self.planes[self.folders[0]].volumes
        return [volumes[row].size for row in self.order.tolist()]

    @property
    def headers(self) -> dict[str, Header] | None:
        """Name -> where its voxels lie, by the image's header or by manifest.csv; None if any lacks."""
        volumes = self.planes[self.folders[0]].volumes
        found = {name: volumes[row].header for name, row in zip(self.names, self.order.tolist(), strict=True)}
        return None if any(header is None for header in found.values()) else found

    def image(self, row: int) -> np.ndarray:
        """(C, D, W, H) float32 image of a row."""
        plane = self.planes[self.folders[0]]
        stored = torch.from_numpy(plane.read(int(self.order[row])).astype(np.float32))
        return self.as_seen(plane.decode(stored)[None], [row])[0].numpy()

    def labels(self, rows: Sequence[int], folder: FolderSpec | None = None) -> list[np.ndarray]:
        """(D, W, H) uint8 class numbers, or `ignore`, each: the metrics' ground truth, or that of another folder."""
        plane = self.planes[folder or self.folders[1]]
        return [plane.read(int(self.order[row])).astype(np.uint8, copy=False) for row in rows]


def open_volumes(
    root: Path,
    split: str,
    folders: Sequence[FolderSpec],
    n_class: int,
    regex: str,
    crop: Sequence[int],
    limit: int | None = None,
    *,
    ignore: int | None = None,
) -> VolumeSet:
    """Opens and checks one split; what was examined before is not read again.

    folders: the image, the metrics' ground truth, one per loss; or the image alone, of a split without labels
    regex: its first group is the patient of a volume; without a group each volume is a patient of its own
    limit: keep that many volumes, spread over the set (`--debug`)
    ignore: a label that ground truth may hold besides 0..K-1, for voxels without a class

    Raises UserError that lists every offender: a missing folder or partner file, a name the expression does not
    match, an unreadable file, ground truth of another size than its image, another number of channels than the rest
    have, a label outside 0..K-1, NaN, an empty split; and for a transform that volumes do not have.
    """
    check_ignored(ignore, n_class)
    _check_transforms(folders)
    image, place = folders[0], root / split
    names, files = pair_files(place, sorted({spec.folder for spec in folders}))
    patients = [read.patient for read in read_names(place, names, regex, parse_volume)]
    if twice := doubled(patients):
        raise UserError(
            f"{place} holds several volumes of {listing(twice)}, and scores are by patient, one volume each: let the "
            f"first group of --grp_regex '{regex}' tell the volumes apart."
        )
    rows = sorted(range(len(names)), key=lambda row: (patients[row], names[row]))
    if limit and limit < len(rows):
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, limit).astype(int)]
    names, patients = [names[row] for row in rows], [patients[row] for row in rows]
    opened: dict[FolderSpec, dict[str, Volume]] = {}
    faults: list[str] = []
    for spec in dict.fromkeys(folders):
        of_case = {name: files[spec.folder][row] for name, row in zip(names, rows, strict=True)}
        opened[spec], more = VolumeFolder(of_case, spec, spec == image, n_class, ignore).open()
        faults += more
    faults += _misfits(place, opened, image)
    if faults := list(dict.fromkeys(faults)):  # two losses may read one folder
        raise UserError(f"{place}: {about_faulty(faults, 'volume', len(faults))}")
    if any(volume.affine is not None for volume in opened[image].values()):
        tell_once(_about_orders(place / image.folder, opened[image]))
    scale, headers = _read_scale(root), _read_headers(root)
    opened[image] = {name: replace(v, header=headers.get(name, v.header)) for name, v in opened[image].items()}
    planes = {spec: VolumePlane(list(found.values()), *_reading(spec, image, ignore)) for spec, found in opened.items()}
    planes[image] = replace(planes[image], **scale)
    digests = [volume.digest for found in opened.values() for volume in found.values()]
    return VolumeSet(
        root,
        split,
        names,
        patients,
        [0] * len(names),
        planes,
        torch.arange(len(names)),
        list(folders),
        [None] * max(len(folders) - 2, 0),
        spacing_of_patients(root, names, patients) or _spacing(opened[image], patients),
        hashlib.sha256("".join([*names, *digests, json.dumps(scale)]).encode()).hexdigest(),
        ignore,
        crop=tuple(crop),
    )


def _check_transforms(folders: Sequence[FolderSpec]) -> None:
    """Raises UserError for a transform that makes something of a slice: volumes are read as they are."""
    plain = (nii_transform, nii_gt_transform, raw_npy_transform)
    if wrong := sorted({spec.transform for spec in folders if TRANSFORMS[spec.transform] not in plain}):
        raise UserError(
            f"{listing(wrong)}: of slices alone. Volumes (--crop) are read as they are: name nii_transform for images, "
            "nii_gt_transform for ground truth, and raw_npy_transform for maps (K, D, W, H) that were made beforehand."
        )


def _reading(spec: FolderSpec, image: FolderSpec, ignore: int | None) -> tuple[torch.dtype, int | None]:
    """The type of a plane, and the value that lies beyond its volumes."""
    return (torch.float32, None) if spec == image or spec.is_map else (torch.uint8, ignore or 0)


def _misfits(place: Path, opened: Mapping[FolderSpec, Mapping[str, Volume]], image: FolderSpec) -> Iterator[str]:
    """What is wrong between the folders of a set, and between its volumes."""
    images = opened[image]
    usual = Counter(volume.shape[0] for volume in images.values()).most_common(1)
    for name, volume in images.items():
        if volume.shape[0] != usual[0][0]:
            yield f"{place / image.folder / name} has {counted(volume.shape[0], 'channel')}, most have {usual[0][0]}"
    for spec, volumes in opened.items():
        for name, volume in volumes.items():
            if name not in images or volume is images[name]:
                continue
            if volume.size != images[name].size:
                yield f"{place / spec.folder / name} has size {volume.size}, its image {images[name].size}"
            elif aside := _aside(images[name], volume):
                yield (
                    f"{place / spec.folder / name} does not lie on the grid of its image ({aside}): if its voxels "
                    "belong to those of the image, write the image's header into it; else make the set with python -m "
                    "preprocess.volume_set --place_labels"
                )


def _aside(image: Volume, other: Volume) -> str | None:
    """How another volume of a case lies aside of the image; None where it does not, or either tells no place."""
    if any(each.header is None or states_no_place(each.header) for each in (image, other)):
        return None
    from files.grids import TOLERANCE, Grid, deviation  # here, as .npy, which tell no place, do without scipy

    return deviation(Grid(image.size, image.affine), Grid(other.size, other.affine), TOLERANCE)


def _about_orders(place: Path, images: Mapping[str, Volume]) -> str:
    """A line on volumes that are stored in several orders of voxels; '' where it is one, or none is told."""
    from datasets.trained_on import list_orders, stored_as
    from files.grids import Grid  # here, as above

    told = {
        name: Grid(volume.size, volume.affine)
        for name, volume in images.items()
        if volume.header is not None and not states_no_place(volume.header)
    }
    orders = stored_as(told)
    if len(orders) < 2:
        return ""
    return (
        f"The volumes in {place} are stored in several orders of voxels, {list_orders(orders)}, and are read as they "
        "are stored: turned or mirrored against each other. python -m preprocess.volume_set turns all alike."
    )


def _read_scale(root: Path) -> dict[str, float]:
    """Mean and divisor of the grey levels by dataset.json; empty where it tells none."""
    match read_card(root).get("scale"):
        case None:
            return {}
        case {"mean": mean, "sd": sd} if fits(mean, float) and fits(sd, float) and sd > 0:
            return {"mean": float(mean), "divisor": float(sd)}
        case other:
            raise UserError(
                f"{root / 'dataset.json'}: scale is {other!r}; expected two numbers, the second above 0: "
                '{"mean": 380.5, "sd": 210.0}.'
            )


def _read_headers(root: Path) -> dict[str, Header]:
    """Name -> where each volume lies, by manifest.csv; {} where there is none. An older manifest has affines alone."""
    with reading(root / "manifest.csv", "each row should have the 16 numbers of an affine; make the set again"):
        return {row["name"]: _header_of(row) for row in read_rows(root) if row.get("affine")}


def _header_of(row: Mapping[str, str]) -> Header:
    """The header of a row's affine, and of its qform and the codes of qform and sform, if it has them."""
    codes = tuple(map(int, (row.get("codes") or "1 1").split()))
    return header_at(affine_of(row), affine_of(row, "qform") if row.get("qform") else None, codes)


def _spacing(images: Mapping[str, Volume], patients: Sequence[str]) -> dict[str, tuple[float, float, float]] | None:
    """mm along D, W and H of each patient's first volume, by its header; None where one has no header."""
    affines = [volume.affine for volume in images.values()]
    if any(affine is None for affine in affines):
        return None
    lengths = [tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()) for affine in affines]
    return dict(zip(reversed(patients), reversed(lengths), strict=True))


# ---------------------------------------------------------------------------------------------- batches


class VolumeStream(Stream):
    """Batches of parts of volumes, read ahead; everything follows from seed, epoch and step, as with slices.

    Where several processes share a batch, each reads its share of the images, and all of the ground truth.
    """

    ahead: ClassVar[int] = AHEAD  # batches that are read before they are asked for

    def boxes(self, rows: Tensor, seed: int) -> list[Box]:
        """(B,) rows -> which part of each of these volumes is read. All parts have one size."""
        raise NotImplementedError

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Tensor | None]]:
        """This epoch's batches from step `start` on, each with the metrics' ground truth (B, D, W, H), if any."""
        steps = self.sampler(torch.Generator().manual_seed(derived_seed(self.seed, epoch)))[start:]
        shares = [self.team.share(len(rows)) for rows in steps]
        seeds = [derived_seed(self.seed, epoch, step) for step in range(start, start + len(steps))]
        todo = list(zip(steps, shares, seeds, strict=True))
        stored = ahead([partial(self._read, *each) for each in todo], self.workers, self.ahead)
        for each, found in zip(todo, stored, strict=True):
            yield self._finish(found, *each)

    def batch(self, rows: Tensor, epoch: int = 0, step: int = 0, shared: bool = False) -> tuple[Batch, Tensor | None]:
        """The batch of these rows (B,) as that step would see it, and its ground truth (B, D, W, H) or None.

        shared: whether the batch holds this process's share of the images alone
        """
        share = self.team.share(len(rows)) if shared else slice(None)
        each = rows, share, derived_seed(self.seed, epoch, step)
        return self._finish(self._read(*each), *each)

    def _read(self, rows: Tensor, share: slice, seed: int) -> Stored:
        slices, (image, *truth) = self.slices, self.slices.folders
        parts = list(zip(slices.order[rows].tolist(), self.boxes(rows, seed), strict=True))
        wanted = dict.fromkeys(truth if self.with_targets else truth[:1])
        return Stored(
            self._stack(image, parts, self.needed(share)),
            {spec: self._stack(spec, parts) for spec in wanted},
            [None if bound is None else bound[rows] for bound in self.bounds],
        )

    def _stack(self, spec: FolderSpec, parts: Sequence[tuple[int, Box]], share: slice = slice(None)) -> Tensor:
        plane, (_, (_, size)) = self.slices.planes[spec], parts[0]
        parts = parts[share]
        found = torch.empty(len(parts), *plane.shape, *size, dtype=plane.dtype, pin_memory=self.device.type == "cuda")
        for place, (row, box) in zip(found.numpy(), parts, strict=True):
            place[...] = plane.read(row, box)
        return found


class CropStream(VolumeStream):
    """Draws a random crop of every volume, each time another, at any place with equal chance. It is made like a Stream.

    A crop larger than its volume holds all of it, from its first voxel on.

    Raises UserError where bounds are laid and a volume does not fit into the crop: they tell the sizes in whole
    volumes. Where it fits, what the crop adds to it counts as background in its bounds.
    """

    def __init__(self, slices: VolumeSet, *args: Any, **options: Any) -> None:
        super().__init__(_with_margins(slices), *args, **options)

    def boxes(self, rows: Tensor, seed: int) -> list[Box]:
        generator = torch.Generator().manual_seed(derived_seed(seed, 0))  # the augmentation draws from the seed itself
        crop, sizes = self.slices.crop, self.slices.sizes
        draws = torch.rand(len(rows), 3, generator=generator, dtype=torch.float64).tolist()
        return [
            (tuple(int(u * max(n - c + 1, 1)) for u, n, c in zip(draw, sizes[row], crop, strict=True)), crop)
            for draw, row in zip(draws, rows.tolist(), strict=True)
        ]


class WholeStream(VolumeStream):
    """One whole volume at a time, as they lie: (1, C, D, W, H), each of a size of its own."""

    ahead = 1  # a network takes longer over a volume than the disk, and each is hundreds of MB

    def __init__(self, slices: VolumeSet, device: torch.device, **options: Any) -> None:
        super().__init__(slices, 1, device, shuffle=False, **options)

    def boxes(self, rows: Tensor, seed: int) -> list[Box]:
        return [((0, 0, 0), self.slices.sizes[row]) for row in rows.tolist()]


def _with_margins(slices: VolumeSet) -> VolumeSet:
    """The set with its bounds for crops that hold whole volumes. What lies beyond a volume is more background."""
    if all(bound is None for bound in slices.bounds):
        return slices
    crop, sizes = np.array(slices.crop), np.array(slices.sizes)
    if cut := [f"{slices.names[row]} {slices.sizes[row]}" for row in np.flatnonzero((sizes > crop).any(1))]:
        raise UserError(
            f"A loss compares sizes with bounds of whole volumes, and crops of {slices.crop} hold parts of "
            f"{len(cut)} of them: {listing(cut)}. Raise --crop D W H to the largest, or take a loss without bounds."
        )
    margins = (crop.prod() - sizes.prod(1))[:, None, None]

    def widened(bound: np.ndarray) -> np.ndarray:
        return np.concatenate([bound[:, :1] + margins, bound[:, 1:]], axis=1)

    return replace(slices, bounds=[None if bound is None else widened(bound) for bound in slices.bounds])
