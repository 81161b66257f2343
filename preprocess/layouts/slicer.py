"""3D Slicer (https://slicer.readthedocs.io, "Segmentations"): a folder of volumes and segmentations, `.seg.nrrd`.

Layout: <case>.nrrd (or another format) and <case>.seg.nrrd, in any folder below; or a folder a patient with one volume
and one segmentation, as Slicer saves a scene (CT.nrrd, Segmentation.seg.nrrd). The header of a segmentation has a name
and a label for each segment (Segment0_Name, Segment0_LabelValue). Slicer may store no more of the grid than is
segmented, so the labels are placed on their images by geometry. Segments that overlap lie in several layers, which are
refused: they have no one label a voxel.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import nrrd

from files.foreign import reading
from files.pairing import find_files
from files.volume_names import ENDINGS
from preprocess.layouts.layout import (
    LAYOUTS,
    Asked,
    SiteFiles,
    as_pattern,
    pattern_of,
    plain_name,
    require_files,
    shown,
)
from processes.errors import UserError
from utils import listing

ENDING = ".seg.nrrd"
FOLDER = r"([^/]+)/[^/]+$"  # that of a file is the patient
CURE = "export it from Slicer again, as .seg.nrrd"


@LAYOUTS.register()
def slicer(folder: Path, asked: Asked) -> SiteFiles:
    """3D Slicer: a folder with <case>.nrrd and <case>.seg.nrrd, or one a patient, as scenes are saved"""
    label = as_pattern(folder, f"**/*{ENDING}")
    masks = require_files(label, "a segmentation of Slicer's is saved as <case>.seg.nrrd")
    beside = {mask: _volumes_beside(mask) for mask in masks}
    scenes = not any(_called_like(mask, volumes) for mask, volumes in beside.items())
    images = [_image_of(mask, volumes, scenes) for mask, volumes in beside.items()]
    endings = sorted({_ending(image) for image in images})
    names = (each for ending in endings for each in (f"*{ending}", f"*[!g]{ending}"))
    return SiteFiles(
        (pattern_of(folder, images, *(f"**/{each}" for each in names)),),
        label,
        FOLDER if scenes else rf"^(.+?)(?:\.seg\.nrrd|{'|'.join(map(re.escape, endings))})$",
        class_names=_names(masks),
        place_labels=True,
        notes=(f"{folder.name}: labels are placed on their images by geometry, as Slicer stores a part of the grid",),
    )


def _volumes_beside(mask: Path) -> list[Path]:
    """The volumes in the folder of a segmentation."""
    found = (path for path in sorted(mask.parent.iterdir()) if _ending(path) and not path.name.endswith(ENDING))
    return [path for path in found if path in find_files(str(path))]


def _ending(path: Path) -> str:
    """That of a volume's name, as it is written; empty for another file."""
    return next((path.name[-len(each) :] for each in ENDINGS if path.name.lower().endswith(each)), "")


def _called_like(mask: Path, volumes: Sequence[Path]) -> list[Path]:
    case = mask.name[: -len(ENDING)]
    return [path for path in volumes if path.name[: -len(_ending(path))] == case]


def _image_of(mask: Path, volumes: Sequence[Path], is_scene: bool) -> Path:
    """The volume of a segmentation: by its name, or the only one of a scene's folder. Raises UserError without one."""
    others = [path for path in mask.parent.glob(f"*{ENDING}") if path != mask and not path.name.startswith(".")]
    found = _called_like(mask, volumes) or (volumes if is_scene and not others else ())
    if len(found) != 1:
        there = listing(path.name for path in [*volumes, *others]) if volumes or others else "nothing else"
        raise UserError(
            f"{mask} needs its volume next to it, as {mask.name[: -len(ENDING)]}.nrrd or in another format; or each "
            f"patient has a folder with one volume and one segmentation, whatever they are called. There is {there}."
        )
    return found[0]


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
