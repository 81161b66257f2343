"""A patient's scan for a viewer: small, cut round what truth and mask give a class, in bytes."""

from pathlib import Path

import numpy as np

from analysis.evaluated import Scan, scan_path
from dataloader import AnySet
from datasets.volumes import VolumeSet
from study.cases import Case
from utils import atomic_write

MARGIN = (2, 16, 16)  # planes and pixels that stay round the foreground
ENDS = (0.5, 99.5)  # percentiles of a patient's grey levels, which become 0 and 255


def scan_of(case: Case, slices: AnySet, which: str, ignore: int | None) -> Scan:
    """The scan of a case, its image the first channel as it is stored, whatever the network sees of it.

    slices: the set that it is of, not matched; which: the network that the case is of
    """
    truth = case.truth if ignore is None else np.where(case.truth == ignore, 0, case.truth)
    mask = case.mask
    if isinstance(slices, VolumeSet):
        image = slices.image(case.rows[0])[0]
    else:
        image = np.stack([slices.image(row)[0] for row in case.rows])
    volumes = [case.stacked(each) for each in (in_bytes(image), truth, mask, case.entropy)]
    size = np.array(volumes[0].shape)
    box = box_round((volumes[1] > 0) | (volumes[2] > 0))
    cut = [np.ascontiguousarray(each[box]) for each in volumes]
    return Scan(*cut, np.array(case.spacing), np.array([side.start for side in box]), size, which)


def in_bytes(image: np.ndarray) -> np.ndarray:
    """Grey levels of any shape -> uint8, the percentiles ENDS being 0 and 255; 0 where all are one level."""
    low, high = np.percentile(image, ENDS)
    if high <= low:
        return np.zeros(image.shape, np.uint8)
    return np.rint((image.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def box_round(mask: np.ndarray) -> tuple[slice, ...]:
    """The box round a mask (D, W, H) and MARGIN beyond it, within the volume; all of that where the mask is empty."""
    if not mask.any():
        return tuple(slice(0, length) for length in mask.shape)
    axes = {*range(mask.ndim)}
    found = []
    for axis, (length, margin) in enumerate(zip(mask.shape, MARGIN, strict=True)):
        planes = np.flatnonzero(mask.any(axis=tuple(axes - {axis})))
        found.append(slice(int(max(0, planes[0] - margin)), int(min(length, planes[-1] + 1 + margin))))
    return tuple(found)


def write_scan(folder: Path, patient: str, scan: Scan) -> None:
    """Writes it into an evaluation's folder."""
    path = scan_path(folder, patient)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, **vars(scan))
