"""Where the volumes of a patient lie: the grid and the header that they share."""

from collections.abc import Mapping
from pathlib import Path

from files.faults import Fault, VolumeFault
from files.grids import TOLERANCE, Grid
from files.nifti_headers import Header, states_no_place
from files.pairing import Case
from files.reading import displaced, read_grid, read_viewed_header


def common_grid(paths: Mapping[str, Path], channel: int | None, directions: str | None) -> tuple[Grid, Grid]:
    """The grid of a patient's first volume, as it is stored and turned to the directions (None: not turned).

    Raises VolumeFault where the others, turned likewise, do not lie on it.
    """
    grids = {role: read_grid(path, channel, directions) for role, path in paths.items()}
    first = next(iter(grids))
    for what, which in displaced(paths, grids, first, TOLERANCE, "resample one of them"):
        raise VolumeFault(what, which)
    return read_grid(paths[first], channel), grids[first]


def unplaced(patient: str, header: Header, grid: Grid) -> list[Fault]:
    """A fault for a volume whose directions are a guess; [] if they are known."""
    if not states_no_place(header):
        return []
    what = (
        "no directions in the header (qform and sform have code 0): taken as nibabel takes them, and wrong if they run"
    )
    return [(f"{what} otherwise", f"{patient} ({grid.directions()})")]


def first_header(case: Case) -> Header:
    """The header of the first of a patient's volumes."""
    return read_viewed_header(next(iter(case.paths.values())))
