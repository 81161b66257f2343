"""Volumes read from their files: NIfTI and all else that nibabel knows, MetaImage, NRRD, and DICOM series.

Arrays keep the voxel axes as stored, unless other directions are asked for. Cutting along axis `a` gives planes
(W, H): W is the first of the two remaining axes, H the second. A `stack` is a volume with the cutting axis first:
(N, W, H). A DICOM series is a folder.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from files.faults import Fault, VolumeFault
from files.formats import files_of, format_of, nifti, open_volume
from files.formats.volume import Volume, not_3d, refusing
from files.grey_levels import must_fit
from files.grids import RADIOLOGICAL, Grid, deviation, place, turn
from files.nifti_headers import Header, header_at, qform_in_mm, states_no_place, unsheared
from files.volume_names import header_of
from utils import sha256_of

KEPT = 0.9  # share of its foreground that a label keeps when it is placed on another grid


def read_grid(path: Path, channel: int | None = None, directions: str | None = None, is_label: bool = False) -> Grid:
    """The grid of a volume, or of this channel of a 4D one, from its header alone. Raises VolumeFault.

    directions: of the axes, as in 'LPS' (None: as stored)
    """
    return _grid_of(open_volume(path), path, channel, directions, is_label)


def _grid_of(volume: Volume, path: Path, channel: int | None, directions: str | None, is_label: bool = False) -> Grid:
    shape = volume.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if channel is not None:
        (count,), shape = shape[3:4] or (1,), shape[:3] + shape[4:]
        if channel >= count:
            raise VolumeFault(f"has no channel {channel}, they count from 0 (change --channel)", f"{path} has {count}")
    if len(shape) != 3 or 0 in shape:
        raise not_3d(shape, path, is_label)
    lengths = np.linalg.norm(volume.affine[:3, :3], axis=0)  # the matrix of a microscope's volume is small all over
    if not (np.isfinite(volume.affine).all() and abs(np.linalg.det(volume.affine[:3, :3])) > 1e-9 * lengths.prod()):
        raise VolumeFault("has a matrix of voxels to mm that cannot be inverted", str(path))
    grid = Grid(shape, volume.affine)
    if not directions:
        return grid
    turned = grid.turned(directions)
    if turned.directions() != directions:
        raise VolumeFault(
            "lies too obliquely for its axes to have directions (--orient stored leaves them as they are)", str(path)
        )
    return turned


def read_header(path: Path) -> Header:
    """Where a volume lies, as a NIfTI header states it: its own, or for another format one made of it.

    Raises VolumeFault.
    """
    if format_of(path) is nifti:
        with refusing(path):
            image = nib.load(header_of(path))
        if isinstance(image, nib.Nifti1Pair):  # or one of its subclasses: NIfTI-1 and 2, a file or two
            return image.header
        if isinstance(image, nib.AnalyzeImage):  # which states no place, unless SPM laid a .mat next to it
            header = nib.Nifti1Header.from_header(image.header)
            if np.allclose(header.get_best_affine(), image.affine):
                return header
    return header_at(open_volume(path).affine)


def read_viewed_header(path: Path) -> Header:
    """The header for a mask that shall lie on the volume in ITK and its viewers. Raises VolumeFault.

    ITK takes the numbers of an NRRD or a MetaImage for mm, whatever unit they state, and heeds the unit of a NIfTI. So
    the mask of one in another unit has these numbers, and no unit.
    """
    if format_of(path) is nifti or (units := open_volume(path).units) == (1, 1, 1):
        return read_header(path)
    header = header_at(np.diag([*(1 / unit for unit in units), 1]) @ open_volume(path).affine)
    header.set_xyzt_units("unknown")
    return header


NOWHERE = "states no place (its qform and sform have code 0), and where nibabel guesses it"
WRITE_IT = "make sure which voxel belongs to which, and write the header of the other file into it"


def displaced(
    paths: Mapping[str, Path],
    grids: Mapping[str, Grid],
    reference: str,
    tolerance_mm: float,
    remedy: str = "resample one of them, or raise --tolerance",
) -> Iterator[Fault]:
    """The volumes of a patient that do not lie on the grid of the `reference`, one of them."""
    wanted = grids[reference]
    for role, grid in grids.items():
        if (apart := deviation(wanted, grid, tolerance_mm)) is None:
            continue
        nowhere = _placeless(paths[role], paths[reference]) if grid.shape == wanted.shape else None
        if nowhere:
            yield f"{NOWHERE} {reference} and {role} do not lie on one grid ({WRITE_IT})", f"{nowhere} ({apart})"
        else:
            what = f"does not lie on the grid of its {reference} volume ({remedy})"
            yield what, f"{paths[role]} ({apart})"


def _placeless(*paths: Path) -> Path | None:
    """The first of these files that states no place."""
    return next((path for path in paths if states_no_place(read_header(path))), None)


def unsure_place(
    image: Path, label: Path, channel: int | None, tolerance_mm: float, directions: str | None = RADIOLOGICAL
) -> Fault | None:
    """What is unsure of the places of an image and its label, which lie apart: one states none, or one states two.

    By its header a label must not be resampled then: it may fit voxel by voxel, and would be put aside.

    directions: in which their axes are compared (None: as stored)
    Raises VolumeFault.
    """
    grid, drawn = read_grid(image, channel, directions), read_grid(label, None, directions, is_label=True)
    apart = deviation(grid, drawn, tolerance_mm)
    if apart is None:
        return None
    if nowhere := _placeless(label, image):
        return f"{NOWHERE} image and label do not lie on one grid ({WRITE_IT})", f"{nowhere} ({apart})"
    return _on_the_qform(image, grid, drawn, channel, tolerance_mm, directions) or _two_places(
        image, label, tolerance_mm
    )


def _two_places(image: Path, label: Path, tolerance_mm: float) -> Fault | None:
    """The fault of an image or a label whose sform and qform are two places: by which of them are the labels moved?

    A qform knows no shear: that it is the sform without it is no second place.
    """
    for path, channel in ((label, None), (image, 0)):
        header, grid = read_header(path), read_grid(path, channel, is_label=path == label)
        if header["qform_code"] and header["sform_code"]:
            second = Grid(grid.shape, qform_in_mm(header))
            apart = min(first.distance(second) for first in (grid, Grid(grid.shape, unsheared(grid.affine))))
            if apart > grid.allows(tolerance_mm):
                what = "states two places, sform and qform, and by the first image and label lie apart"
                return f"{what} (write one of the two into both)", f"{path} ({apart:.3g} mm apart)"
    return None


def _on_the_qform(
    image: Path, grid: Grid, drawn: Grid, channel: int | None, tolerance_mm: float, directions: str | None
) -> Fault | None:
    """The fault of an image whose sform and qform are two places, where its label lies on the qform.

    So it is after a registration that changed the sform alone, when the label was drawn in a viewer that reads the
    qform: voxel by voxel it fits, and by the sform, which counts here, it lies aside.

    grid, drawn: of the image and the label, their axes in these directions
    """
    header, stored = read_header(image), read_grid(image, channel)
    if not (header["qform_code"] and header["sform_code"]):
        return None
    second = Grid(stored.shape, qform_in_mm(header))
    second = second.turned(directions) if directions else second
    allowed, apart = grid.allows(tolerance_mm), grid.distance(second)
    if apart <= allowed or drawn.shape != second.shape or second.distance(drawn) > allowed:
        return None
    what = "states two places, sform and qform, and its label lies on the qform (write one of the two into both)"
    return what, f"{image} ({apart:.3g} mm apart)"


def read_voxels(path: Path, channel: int = 0) -> np.ndarray:
    """The voxels (X, Y, Z) as stored; of a 4D volume those of the channel. Raises VolumeFault."""
    return _voxels_of(open_volume(path), channel)


def _voxels_of(volume: Volume, channel: int) -> np.ndarray:
    voxels = volume.voxels()
    return voxels.reshape(*voxels.shape[:3], -1)[..., channel]


def read_stack(
    path: Path, axis: int, is_label: bool = False, channel: int = 0, directions: str | None = None
) -> np.ndarray:
    """The voxels, cutting axis first: (N, W, H), each plane in one piece; of a 4D volume those of the channel.

    Small integers stay what they are; other images become float32, and labels keep their type. Raises VolumeFault
    for an unreadable file, colours, NaN or infinity, and images of numbers too wide for float32.
    """
    volume = open_volume(path)
    voxels = _voxels_of(volume, channel)
    if directions:
        voxels = turn(voxels, _grid_of(volume, path, channel, None).directions(), directions)
    return _stacked(voxels, axis, is_label, path)


def read_placed(path: Path, axis: int, target: Grid) -> tuple[np.ndarray, float]:
    """The labels of a volume on another grid, cutting axis first: (N, W, H); the share of the foreground kept.

    The nearest label at each voxel; the share is by volume, in mm³. Raises VolumeFault, also where less than KEPT of
    the foreground lies within the other grid.
    """
    volume = open_volume(path)
    grid, labels = _grid_of(volume, path, None, None, is_label=True), _stacked(_voxels_of(volume, 0), 0, True, path)
    placed = place(labels, grid, target)
    before, after = (np.count_nonzero(part) * g.voxel_volume() for part, g in ((labels, grid), (placed, target)))
    share = after / before if before else 1.0
    if share < KEPT:
        what = f"would lose more than {1 - KEPT:.0%} of its labelled volume on the grid of its image"
        raise VolumeFault(what, f"{path} (keeps {share:.0%})")
    return np.ascontiguousarray(np.moveaxis(placed, axis, 0)), share


def _stacked(voxels: np.ndarray, axis: int, is_label: bool, path: Path) -> np.ndarray:
    keep = is_label or (voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2)
    if not keep:
        must_fit(voxels, path)
    kind = voxels.dtype.newbyteorder("=") if keep else np.dtype(np.float32)
    stack = np.moveaxis(np.asarray(voxels), axis, 0)
    # planes that lie scattered over the volume are put together by one copy: one by one they would read it N times
    upright = stack[tuple(slice(None, None, -1 if step < 0 else 1) for step in stack.strides)]
    in_one_piece = upright[:1].flags.forc and upright.strides[0] == max(upright.strides)
    is_flipped = min(stack.strides) < 0  # what runs backwards through memory is slow to work on
    stack = stack.astype(kind, order="K" if in_one_piece else "C", copy=is_flipped)
    if stack.dtype.kind == "f" and not (np.isfinite(stack.min()) and np.isfinite(stack.max())):
        bad = sum(int((~np.isfinite(plane)).sum()) for plane in stack)
        raise VolumeFault("has voxels that are NaN or infinite", f"{path} ({bad} of {stack.size})")
    return stack


def sha256(path: Path) -> str:
    """The SHA-256 of a volume: of its file, or of the digests and names of its files. Raises VolumeFault."""
    files = files_of(path)
    digests = [sha256_of(each) for each in files]
    if files == [path]:
        return digests[0]
    listed = "".join(f"{digest}  {each.name}\n" for digest, each in zip(digests, files, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()
