"""Planes cut to the size of slices, and slices put back where they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from skimage.transform import resize

from datasets.set_tables import affine_of
from files.grids import Grid, turn
from processes.errors import UserError
from utils import doubled, listing


@dataclass(frozen=True)
class Frame:
    """Which part of its plane a slice shows: all of the plane is resampled, then cropped or padded.

    Pixel i of the slice has its centre at pixel (offset + i + 1/2) step - 1/2 of the plane, along each axis.

    shape    of the plane (W, H)
    scaled   of the plane resampled (W, H)
    size     of the slice (W, H)
    offset   pixels of the resampled plane before the slice; below 0 it is padding
    """

    shape: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @classmethod
    def centred(
        cls,
        shape: tuple[int, int],
        scaled: tuple[int, int],
        size: tuple[int, int] | None,
        multiple: int | None,
        centre: tuple[float, float] | None = None,
    ) -> "Frame":
        """The frame that cuts the resampled plane to this size (W, H), or to its own, padded up to a multiple.

        centre: the pixel (W, H) of the plane to cut round; by default its middle
        """
        wanted = size or scaled
        if multiple:
            wanted = tuple(-(-n // multiple) * multiple for n in wanted)
        if centre is None:
            offset = ((have - want) // 2 for have, want in zip(scaled, wanted, strict=True))
        else:
            steps = (m / n for n, m in zip(shape, scaled, strict=True))
            places = ((at + 0.5) * step for at, step in zip(centre, steps, strict=True))
            offset = (round(place - want / 2) for place, want in zip(places, wanted, strict=True))
        return cls(shape, scaled, wanted, tuple(offset))

    @property
    def step(self) -> tuple[float, float]:
        """Pixels of the plane from one pixel of the slice to the next."""
        return tuple(n / m for n, m in zip(self.shape, self.scaled, strict=True))

    def take(self, plane: np.ndarray, fill: float = 0) -> np.ndarray:
        """Cuts the slice (W, H) out of its plane (W, H), with `fill` where the plane has no pixel."""
        return self.cut(self.resample(plane), fill)

    def resample(self, plane: np.ndarray) -> np.ndarray:
        """(W, H) `shape` -> (W, H) `scaled`: the plane at its new size.

        An image (float32) is smoothed along an axis that shrinks and interpolated linearly, by scikit-image: unlike the
        widened kernels of Pillow and torch, that puts nothing a fraction of a pixel aside. Class numbers are those of
        the nearest pixel.
        """
        if plane.shape == self.scaled:
            return plane
        if plane.dtype.kind != "f":
            return _nearest(plane, self.scaled)
        return resize(plane, self.scaled, order=1, mode="edge", anti_aliasing=True, preserve_range=True)

    def cut(self, plane: np.ndarray, fill: float = 0) -> np.ndarray:
        """Cuts the slice (W, H) `size` out of its plane (W, H) `scaled`, with `fill` where the plane has no pixel."""
        if plane.shape == self.size:
            return plane
        out = np.full(self.size, fill, plane.dtype)
        inside, there = self._overlap()
        out[there] = plane[inside]
        return out

    def put_back(self, pixels: np.ndarray) -> np.ndarray:
        """(W, H) `size` -> (W, H) `shape`: lays the slice back on its plane.

        A resampled plane gets the nearest pixels; what was not cut is 0.
        """
        plane = np.zeros(self.scaled, pixels.dtype)
        inside, there = self._overlap()
        plane[inside] = pixels[there]
        return _nearest(plane, self.shape)

    def _overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The common part of the resampled plane and the slice: where it lies in the one, and where in the other."""
        axes = zip(self.scaled, self.size, self.offset, strict=True)
        spans = [(max(o, 0), max(min(o + w, h), max(o, 0)), o) for h, w, o in axes]
        return tuple(slice(lo, hi) for lo, hi, _ in spans), tuple(slice(lo - o, hi - o) for lo, hi, o in spans)


def _nearest(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(W, H) -> (W, H) `size`: the pixel at the centre of each new one, or the further of two that are equally near."""
    picked = [(2 * np.arange(want) + 1) * have // (2 * want) for have, want in zip(plane.shape, size, strict=True)]
    return plane[np.ix_(*picked)]


def plane_affine(affine: np.ndarray, axis: int, index: int, frame: Frame) -> np.ndarray:
    """The (4, 4) matrix of one slice: its axes W, H and the cutting axis, its pixel (0, 0) as the origin."""
    w, h = (a for a in range(3) if a != axis)
    corner = np.zeros(3)
    corner[[axis, w, h]] = index, *((o + 0.5) * s - 0.5 for o, s in zip(frame.offset, frame.step, strict=True))
    out = affine[:, [w, h, axis, 3]] * [*frame.step, 1, 1]
    out[:3, 3] = nib.affines.apply_affine(affine, corner)
    return out


def restore(slices: Mapping[int, np.ndarray], rows: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """One patient's slices in the volume they came from.

    slices: slice number -> (W, H) array as cut or resampled; rows: their rows of manifest.csv, one each. Returns the
    volume on the original grid (of the slices' dtype, 0 where nothing was cut, nearest pixels where the planes were
    resampled) and its affine (4, 4). Raises UserError if slices and rows do not belong together.
    """
    volume, grid = np.moveaxis(restack(slices, rows), 0, int(rows[0]["axis"])), grid_of(rows[0])
    if not grid.stored:
        return volume, grid.affine
    return turn(volume, grid.directions(), grid.stored), grid.turned(grid.stored).affine


def restack(slices: Mapping[int, np.ndarray], rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    """(N, W, H) one patient's slices stacked in the directions in which they were cut, the cutting axis first.

    slices, rows: as for `restore`. Raises UserError if they do not belong together.
    """
    if not rows or len({(row["patient"], row["source"]) for row in rows}) != 1:
        raise UserError(
            f"Expected rows of one patient's volume, got {listing(sorted({row['source'] for row in rows})) or 'none'}."
        )
    numbers = [int(row["index"]) for row in rows]
    odd = sorted(set(numbers) ^ set(slices)) or doubled(numbers)
    if odd:
        raise UserError(
            f"Slices and rows of {rows[0]['patient']} do not pair up one to one; slices at fault: {listing(odd)}."
        )
    axis, grid = int(rows[0]["axis"]), grid_of(rows[0])
    shape = grid.shape
    stack = np.zeros([shape[axis], *shape[:axis], *shape[axis + 1 :]], next(iter(slices.values())).dtype)
    for number, row in zip(numbers, rows, strict=True):
        frame = _frame_of(row, grid)
        if slices[number].shape != frame.size:
            raise UserError(
                f"Slice {row['slice']} was cut to {frame.size}, but {slices[number].shape} came to put back."
            )
        stack[number] = frame.put_back(slices[number])
    return stack


def grid_of(row: Mapping[str, str]) -> Grid:
    """The grid of the volume that a row of manifest.csv tells of."""
    return Grid(tuple(int(row[f"shape{axis}"]) for axis in range(3)), affine_of(row), row.get("stored") or None)


def _frame_of(row: Mapping[str, str], grid: Grid) -> Frame:
    """The frame of a row of manifest.csv; its spacing against the grid's tells how the plane was resampled."""
    w, h = (axis for axis in range(3) if axis != int(row["axis"]))
    spacing, new = grid.spacing(), {w: float(row["spacing_w"]), h: float(row["spacing_h"])}
    scaled = tuple(round(grid.shape[axis] * spacing[axis] / new[axis]) for axis in (w, h))
    width, height, offset_w, offset_h = (int(row[name]) for name in ("width", "height", "offset_w", "offset_h"))
    return Frame((grid.shape[w], grid.shape[h]), scaled, (width, height), (offset_w, offset_h))
