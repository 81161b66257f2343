"""One scan into the official archive's layout. Apart from the program, so that a worker process starts fast."""

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np

from preprocess.phantom.cohorts import COHORTS
from preprocess.phantom.render import render

Job = tuple[str, int, int]  # kind, number of the site, number of the scan


def write_scan(job: Job, folder: Path, size: str, seed: int) -> None:
    """Writes one scan: its images, its labels, its note."""
    kind, number, scan = job
    site = COHORTS[kind][number]
    volumes, affine = render(site, size, (seed, list(COHORTS).index(kind), number), scan)
    for name, volume in volumes.items():
        save(folder / name, volume, affine)
    if site.note:
        name, text = site.note
        (folder / name.format(site.number(scan))).write_text(text, encoding="utf-8")


def save(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Writes voxels (X, Y, Z[, C]) as .nii or .nii.gz. The bytes are the same each time.

    They hold no time stamp and no file name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    content = image.to_bytes()
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    path.write_bytes(content)
