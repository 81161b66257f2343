"""The few patients whose labels choose (--select_with): who they are, and how well each candidate finds their organs.

A choice alone asks for them, no training does. Of the target's labels those of these patients are opened, and only when
all epochs are done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dataloader import AnySet, Reading, images_of, rows_of, splits_of
from datasets.cache import open_plane
from datasets.transforms import FolderSpec, parse_folders
from datasets.volume_files import VolumeFolder
from datasets.volumes import VolumePlane, VolumeSet
from files.listing import SliceFile, look_into
from metrics import dice
from processes.errors import UserError
from utils import about_faulty, counted, listing, read_literal


@dataclass(frozen=True, kw_only=True)
class Selecting:
    """How labels choose, under the names of the flags."""

    select_with: int
    select_folders: str | None
    metric_axis: Sequence[int]


UNLABELLED = Selecting(select_with=0, select_folders=None, metric_axis=())


@dataclass(frozen=True)
class Labelled:
    """P patients of a set of N images, their labels, and the classes that count.

    truth    place of an image among the N -> its (W, H) or (D, W, H) uint8 class numbers, or `ignore`
    """

    patients: tuple[str, ...]
    places: Mapping[int, int]  # of an image -> that of its patient
    truth: Mapping[int, np.ndarray]
    axis: Sequence[int]
    n_class: int

    def scores(self, candidates: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """(C,) mean Dice over the classes, then over the patients; NaN where neither truth nor prediction has any.

        candidates: of each one the uint8 class numbers of the N images
        """
        return np.array([self._score(masks) for masks in candidates])

    def _score(self, masks: Sequence[np.ndarray]) -> float:
        counts = np.zeros((3, len(self.patients), self.n_class))
        for row, truth in self.truth.items():
            known, own = truth < self.n_class, masks[row]
            for count, part in zip(counts, (own[known & (own == truth)], own[known], truth[known]), strict=True):
                count[self.places[row]] += np.bincount(part, minlength=self.n_class)
        of_patients = [_mean(values) for values in dice(*counts)[:, list(self.axis)]]
        return _mean(np.array(of_patients))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def patients_who_choose(reading: Reading, selecting: Selecting) -> tuple[str, ...]:
    """The patients of the target's training images who choose, by name: those of --select_with, drawn by --draw.

    Drawn is among all patients; who has no label for each of his images is passed over. No label is opened.
    Raises UserError where there are no labels, or those of too few patients.
    """
    images = images_of(reading, splits_of("target", reading)[0])
    return _draw(images, _files(images, _folder_of(reading, selecting)), reading.draw, selecting.select_with)


def open_labelled(images: AnySet, patients: Sequence[str], reading: Reading, selecting: Selecting) -> Labelled:
    """Opens the labels of these patients of the images. Raises UserError for labels that do not fit these."""
    spec = _folder_of(reading, selecting)
    files = _files(images, spec)
    rows = rows_of(images, patients)
    wanted = {images.names[row]: files[images.names[row]] for row in rows}
    found = _read_volumes if isinstance(images, VolumeSet) else _read_slices
    truth = dict(zip(rows, found(wanted, spec, reading), strict=True))
    if odd := [
        f"{images.names[row]} {label.shape}" for row, label in truth.items() if label.shape != images.sizes[row]
    ]:
        raise UserError(f"The labels in {spec.folder} are not of the size of their images: {listing(odd)}.")
    places = {row: patients.index(images.patients[row]) for row in rows}
    return Labelled(tuple(patients), places, truth, tuple(selecting.metric_axis), reading.n_class)


def _folder_of(reading: Reading, selecting: Selecting) -> FolderSpec:
    """The folder of ground truth that any of the flags names."""
    for text in (selecting.select_folders, reading.target_folders, reading.val_target_folders):
        if text and isinstance(items := read_literal(text), list) and len(items) > 1:
            return parse_folders(text, len(items) - 2)[1]
    raise UserError(
        f"--select_with {selecting.select_with} chooses by labels, and the folders of the target are its images alone. "
        "Name the labels of these few patients: --select_folders \"[('IMG', png_transform, False), ('GT', "
        'gt_transform, False)]". Or leave --select_with out, and the choice is made without any.'
    )


def _files(images: AnySet, spec: FolderSpec) -> Mapping[str, SliceFile]:
    """Name of an image -> the file of its labels, as far as there is one."""
    folder = images.root / images.split / spec.folder
    return look_into([folder])[0].files if folder.is_dir() else {}


def _draw(images: AnySet, files: Mapping[str, SliceFile], draw: int, number: int) -> tuple[str, ...]:
    lacking = {patient for name, patient in zip(images.names, images.patients, strict=True) if name not in files}
    everybody = sorted(set(images.patients))
    order = np.random.default_rng(draw).permutation(everybody).tolist()
    labelled = [patient for patient in order if patient not in lacking]
    if number > len(labelled):
        have = f"{len(labelled)} {'has' if len(labelled) == 1 else 'have'} labels for each image"
        who = f" ({listing(sorted(labelled))})" if labelled else ""
        raise UserError(
            f"--select_with {number}, but of the {counted(len(everybody), 'patient')} in {images.root / images.split} "
            f"{have}{who}. Give a smaller number, or leave --select_with out: then the choice is made without labels."
        )
    return tuple(sorted(labelled[:number]))


def _read_slices(files: Mapping[str, SliceFile], spec: FolderSpec, reading: Reading) -> Sequence[np.ndarray]:
    """(W, H) each. The cache holds whole folders, so these few are read past it."""
    plane, _ = open_plane(list(files.values()), spec, reading.n_class, False, keep=False, ignore=reading.ignore)
    return plane.gather(torch.arange(len(files))).numpy()


def _read_volumes(files: Mapping[str, SliceFile], spec: FolderSpec, reading: Reading) -> Sequence[np.ndarray]:
    """(D, W, H) each."""
    volumes, faults = VolumeFolder(files, spec, False, reading.n_class, reading.ignore).open()
    if faults:
        raise UserError(about_faulty(faults, "volume", len(faults)))
    plane = VolumePlane([volumes[name] for name in files], torch.uint8)
    return [plane.read(row).astype(np.uint8, copy=False) for row in range(len(plane))]
