"""3D Slicer (https://slicer.readthedocs.io, "Segmentations"): a folder of volumes and segmentations, `.seg.nrrd`.

Layout: <case>.nrrd (or another format) and <case>.seg.nrrd, in any folder below. The header of a segmentation has a
name and a label for each segment (Segment0_Name, Segment0_LabelValue). Slicer may store no more of the grid than is
segmented, so the labels are placed on their images by geometry. Segments that overlap lie in several layers, which are
refused: they have no one label a voxel.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import nrrd

from files.foreign import reading
from files.pairing import find_files
from files.volume_names import ENDINGS
from preprocess.layouts.layout import LAYOUTS, Asked, SiteFiles, as_pattern, plain_name, require_files, shown
from processes.errors import UserError
from utils import listing

ENDING = ".seg.nrrd"
CURE = "export it from Slicer again, as .seg.nrrd"


@LAYOUTS.register()
def slicer(folder: Path, asked: Asked) -> SiteFiles:
    """3D Slicer: a folder with <case>.nrrd and <case>.seg.nrrd"""
    label = as_pattern(folder, f"**/*{ENDING}")
    masks = require_files(label, "a segmentation of Slicer's is saved as <case>.seg.nrrd")
    images = [_image_of(mask) for mask in masks]
    endings = {image.name[len(mask.name) - len(ENDING) :] for image, mask in zip(images, masks, strict=True)}
    return SiteFiles(
        (_pattern_of(folder, images, endings),),
        label,
        rf"^(.+?)(?:\.seg\.nrrd|{'|'.join(map(re.escape, sorted(endings)))})$",
        class_names=_names(masks),
        place_labels=True,
        notes=(f"{folder.name}: labels are placed on their images by geometry, as Slicer stores a part of the grid",),
    )


def _image_of(mask: Path) -> Path:
    """The volume of a segmentation. Raises UserError unless one lies next to it."""
    case = mask.name[: -len(ENDING)]
    beside = (path for path in mask.parent.iterdir() if path.name.startswith(f"{case}.") and path != mask)
    found = [path for path in beside if path.name[len(case) :].lower() in ENDINGS]
    found = [path for path in found if path in find_files(str(path))]
    if len(found) != 1:
        there = listing(path.name for path in found) if found else "none"
        raise UserError(f"{mask} needs one volume next to it, {case}.nrrd or in another format; there is {there}.")
    return found[0]


def _pattern_of(folder: Path, images: Sequence[Path], endings: Iterable[str]) -> str:
    """The shortest pattern of these images that no segmentation matches; else each by its name."""
    for names in (each for ending in endings for each in (f"*{ending}", f"*[!g]{ending}")):
        pattern = as_pattern(folder, f"**/{names}")
        if set(find_files(pattern)) == set(images):
            return pattern
    return "|".join(as_pattern(path.parent, path.name) for path in images)


def _names(masks: Sequence[Path]) -> dict[int, str]:
    """Label -> name of the segment, which must be the same in every file. Raises UserError."""
    names: dict[int, str] = {0: "background"}
    first: dict[int, Path] = {}
    for path in masks:
        for label, name in _segments(path).items():
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{path} has the label {label} for '{name}', and {first[label]} for '{names[label]}'. Slicer "
                    "numbers segments in their order: bring them into one order in every file, and export them again."
                )
            first.setdefault(label, path)
    return names


def _segments(path: Path) -> dict[int, str]:
    """Label -> name of each segment that a header tells of. Raises UserError."""
    with reading(path, CURE), path.open("rb") as file:
        header = nrrd.read_header(file)
    found: dict[int, str] = {}
    for key, value in header.items():
        if match := re.fullmatch(r"Segment(\d+)_LabelValue", str(key)):
            name = header.get(f"Segment{match[1]}_Name", f"segment {match[1]}")
            if not re.fullmatch(r"\d{1,5}", str(value)) or int(value) in {0, *found}:
                raise UserError(
                    f"{path}: segment {shown(name)} has the label {shown(value)}, where each has one of its own from 1 "
                    f"up (those that overlap lie in several layers: save them as one labelmap); {CURE}."
                )
            found[int(value)] = plain_name(name, path)
    return found
