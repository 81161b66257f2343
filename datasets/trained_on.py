"""What a network was trained on, in the few numbers of its set's card that tell whether another volume is like it.

    geometry      directions of the axes of slices or volumes (None where they differ), the orders of voxels that the
                  volumes were stored in, and the spacing in mm from slice to slice, along W and along H
    grey_levels   folder -> of each channel the 1st, 50th and 99th percentile of a volume, as it is stored

Spacing and percentiles are [lowest, median, highest] over the training patients.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.set_tables import affine_of, read_rows
from files.grids import Grid
from utils import listing

PERCENTILES = (1, 50, 99)
SAMPLE = 2**15  # voxels, about, that percentiles are taken of
SPACINGS = ("slice", "w", "h")


def grey_levels(voxels: np.ndarray) -> list[float]:
    """The PERCENTILES of a volume, any number of axes, taken from every n-th voxel along each."""
    step = max(1, round((voxels.size / SAMPLE) ** (1 / voxels.ndim)))
    sample = voxels[(slice(None, None, step),) * voxels.ndim]
    return np.percentile(sample.astype(np.float32), PERCENTILES).tolist()


def stored_as(grids: Mapping[str, Grid]) -> dict[str, list[str]]:
    """Order of voxels in the file -> the patients whose volumes are stored in it, the most usual first."""
    found: dict[str, list[str]] = {}
    for patient, grid in grids.items():
        found.setdefault(grid.stored or grid.directions(), []).append(patient)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def describe_geometry(grids: Iterable[Grid], spacings_mm: Iterable[Sequence[float]]) -> dict[str, Any]:
    """Describes the training volumes as they are cut.

    spacings_mm: of each volume, in mm, from slice to slice, along W and along H
    """
    grids = list(grids)
    directions = {grid.directions() for grid in grids}
    orders = stored_as({str(number): grid for number, grid in enumerate(grids)})
    return {
        "directions": directions.pop() if len(directions) == 1 else None,
        "stored": {order: len(which) for order, which in orders.items()},
        "unit": "mm",
        "spacing": dict(zip(SPACINGS, map(_spread, zip(*spacings_mm, strict=True)), strict=True)),
    }


def describe_levels(volumes: Iterable[Sequence[Sequence[float]]]) -> list[dict[str, list[float]]]:
    """Describes the grey levels of each channel.

    volumes: for each training volume the percentiles of its channels
    """
    return [
        {str(percent): _spread(found) for percent, found in zip(PERCENTILES, zip(*channel, strict=True), strict=True)}
        for channel in zip(*volumes, strict=True)
    ]


def _spread(values: Iterable[float]) -> list[float]:
    found = list(values)
    return [float(f"{value:.6g}") for value in (min(found), float(np.median(found)), max(found))]


def read_orders(root: Path) -> tuple[dict[str, list[str]], str | None]:
    """What a set's manifest.csv tells: orders as in `stored_as`, and the directions that all its volumes were cut in.

    None for the latter where they differ; nothing where there is no manifest that tells.
    """
    found, cut = {}, {}
    try:
        for row in read_rows(root):
            grid = Grid((1, 1, 1), affine_of(row), row.get("stored") or None)
            patient = row.get("patient") or row["name"]
            found[patient], cut[patient] = grid, grid.directions()
    except (KeyError, ValueError, np.linalg.LinAlgError):
        return {}, None
    directions = set(cut.values())
    return stored_as(found), directions.pop() if len(directions) == 1 else None


def describe_orders(orders: Mapping[str, Sequence[str]], directions: str | None) -> str:
    """A line on volumes that are stored in several orders of voxels, '' where it is one.

    orders: as `stored_as` has them; directions: of the axes as they were cut, None where they differ
    """
    if len(orders) < 2:
        return ""
    shown = list_orders(orders)
    if directions:
        became = f"all were turned to {directions} before they were cut"
    else:
        became = (
            "they were cut as they are stored, and slices are turned or mirrored against each other; leave --orient "
            "stored out, or give --plane axial"
        )
    return f"The volumes are stored in several orders of voxels, {shown}: {became}."


def describe_guessed(patients: Sequence[str]) -> str:
    """A line on volumes whose headers do not say where their axes run, '' if there are none."""
    if not patients:
        return ""
    return (
        "No directions in the headers (qform and sform have code 0): taken as nibabel takes them, and wrong if they "
        f"run otherwise: {listing(patients, 5)}."
    )


def list_orders(orders: Mapping[str, Sequence[str]]) -> str:
    """How many are in the most usual order, and who is in another."""
    (usual, most), *others = orders.items()
    shown = ", ".join(f"{order}: {listing(which, 5)}" for order, which in others)
    return f"{len(most)} in {usual}; {shown}"
