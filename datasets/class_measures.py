"""How large the classes of a label map are, and of what shape: sizes, pieces, holes, continuity, place.

Of ground truth or of predictions alike. A map of a patient is (D, W, H): its slices one after another.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from nets.bundle import summarise

IN_SLICES = np.zeros((3, 3, 3), bool)  # neighbours by faces within a slice
IN_SLICES[1] = ndimage.generate_binary_structure(2, 1)
MEASURES = {"components": (), "largest_component": (), "holes": (), "continuity": (), "centroid": (3,), "spread": (3,)}


def class_areas(labels: np.ndarray, n_class: int) -> np.ndarray:
    """(D, W, H) uint8 -> (D, K) pixels of each class in each slice; a label to ignore counts nowhere."""
    flat = labels.reshape(len(labels), -1)
    return np.stack([np.bincount(plane, minlength=256)[:n_class] for plane in flat])


def measure_shapes(labels: np.ndarray, n_class: int) -> dict[str, np.ndarray]:
    """Measures the foreground classes of a label map (D, W, H) uint8. F = n_class - 1; NaN for a class that is absent.

    components         (F,) pieces; voxels of a piece touch by their faces
    largest_component  (F,) share of the class in its largest piece
    holes              (F,) pixels that a class encloses in a slice, per voxel of the class
    continuity         (F,) mean Dice of neighbouring slices, from the first to the last that hold the class; NaN of one
    centroid           (F, 3) mean place of its voxels along D, W, H, as a share of the map's size
    spread             (F, 3) standard deviation of their places, likewise
    """
    found = {name: np.full((n_class - 1, *shape), np.nan) for name, shape in MEASURES.items()}
    for k, box in _boxes(labels, n_class):
        mask = labels[box] == k
        sizes = np.bincount(ndimage.label(mask)[0].ravel())[1:]
        found["components"][k - 1] = len(sizes)
        found["largest_component"][k - 1] = sizes.max() / sizes.sum()
        found["holes"][k - 1] = _enclosed(mask) / sizes.sum()
        found["continuity"][k - 1] = _continuity(mask)
        for axis, (part, size) in enumerate(zip(box, labels.shape, strict=True)):
            weight = mask.sum(tuple({0, 1, 2} - {axis}))
            place = (np.arange(part.start, part.stop) + 0.5) / size
            centre = np.average(place, weights=weight)
            found["centroid"][k - 1, axis] = centre
            found["spread"][k - 1, axis] = np.sqrt(np.average((place - centre) ** 2, weights=weight))
    return found


def _boxes(labels: np.ndarray, n_class: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The foreground classes that are there, each with the smallest box that holds it."""
    found = ndimage.find_objects(labels, max_label=n_class - 1)
    return ((k, box) for k, box in enumerate(found, 1) if box is not None)


def _enclosed(mask: np.ndarray) -> int:
    """Pixels of a mask (D, W, H) that fill the holes of its slices, as binary_fill_holes does slice by slice."""
    outside = np.pad(~mask, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    pieces, _ = ndimage.label(outside, IN_SLICES)
    return int((outside & (pieces != pieces[:, :1, :1])).sum())


def _continuity(mask: np.ndarray) -> float:
    if len(mask) < 2:
        return np.nan
    areas, common = mask.sum((1, 2)), (mask[1:] & mask[:-1]).sum((1, 2))
    both = areas[1:] + areas[:-1]
    return float(np.mean(np.divide(2 * common, both, out=np.zeros(len(both)), where=both > 0)))


def summarise_sizes(
    areas: Sequence[np.ndarray], pixels: np.ndarray, sides: np.ndarray | None, volumes: bool
) -> dict[str, np.ndarray]:
    """The sizes of the classes over P patients, under their names in nets/bundle.py.

    areas: of each patient the (D, K) pixels of `class_areas`; pixels: (P,) of one of its slices
    sides: (P, 3) mm of a voxel along D, W, H; None where they are not known, and then no size is in mm
    volumes: whether a patient is one image, not as many as slices
    """
    counts = np.array([part.sum(0) for part in areas], dtype=np.float64)[:, 1:]
    present = np.where(counts > 0, 1.0, np.nan)
    slices = np.concatenate(areas).astype(np.float64)
    shown = np.where(slices[:, 1:] > 0, slices[:, 1:], np.nan)
    depths = np.array([len(part) for part in areas])
    shares = slices / np.repeat(pixels, depths)[:, None]
    images = np.array([part.sum(0) / (size * len(part)) for part, size in zip(areas, pixels, strict=True)])
    found = {
        "image_shares": (images if volumes else shares).mean(0),
        "patients_with_class": (counts > 0).mean(0),
        "slices_with_class": summarise(np.array([(part[:, 1:] > 0).mean(0) for part in areas]) * present),
        "volume_voxels": summarise(counts * present),
        "area_pixels": summarise(shown),
        "area_share": summarise(np.where(shown > 0, shares[:, 1:], np.nan)),
    }
    if sides is None:
        return found
    plane = np.repeat(sides[:, 1:].prod(1), depths)
    return found | {
        "volume_mm3": summarise(counts * present * sides.prod(1)[:, None]),
        "area_mm2": summarise(shown * plane[:, None]),
    }
