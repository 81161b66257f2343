"""3D Slicer (https://slicer.readthedocs.io, "Segmentations"): a folder of volumes and segmentations, `.seg.nrrd`.

Layout: <case>.nrrd (or another format) and <case>.seg.nrrd, in any folder below; or a folder a patient with one volume
and one segmentation, as Slicer saves a scene (CT.nrrd, Segmentation.seg.nrrd); --contrast and --masks name one of
several by the beginning of its file's name. The header of a segmentation has a name
and a label for each segment (Segment0_Name, Segment0_LabelValue). Slicer may store no more of the grid than is
segmented, so the labels are placed on their images by geometry. Segments that overlap lie in several layers, which are
refused: they have no one label a voxel.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import nrrd

from files.foreign import reading
from files.pairing import find_files, pair
from files.volume_names import ENDINGS, is_volume
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
from utils import counted, listing

ENDING = ".seg.nrrd"
FOLDERS = [rf"([^/]+){'/[^/]+' * level}$" for level in (1, 2, 3)]  # that of a file is the patient, or one above
CURE = "export it from Slicer again, as .seg.nrrd"


@LAYOUTS.register()
def slicer(folder: Path, asked: Asked) -> SiteFiles:
    """3D Slicer: a folder with <case>.nrrd and <case>.seg.nrrd, or one a patient, as scenes are saved"""
    folder = folder if folder.name not in {"", ".."} else folder.resolve()  # whose name may be the patient
    beside, said = _segmentations(folder, asked.masks)
    named = [mask for mask, volumes in beside.items() if _called_like(mask, volumes)]
    images = [_image_of(mask, beside, named, asked.contrast) for mask in beside]
    said += _left_out(folder, images, list(beside), bool(named))
    endings = sorted({_ending(image) for image in images})
    names = [each for ending in endings for each in (f"**/*{ending}", f"**/*[!g]{ending}")]
    names += [f"**/{asked.contrast}{ending}" for ending in endings]
    image = pattern_of(folder, images, *names)
    label = pattern_of(folder, list(beside), f"**/*{ENDING}", f"**/{asked.masks}{ENDING}")
    file = rf"^(.+?)(?:\.seg\.nrrd|{'|'.join(map(re.escape, endings))})$"
    return SiteFiles(
        (image,),
        label,
        _patient(folder, image, label, file),
        class_names=_names(list(beside)),
        place_labels=True,
        notes=(
            f"{folder.name}: labels are placed on their images by geometry, as Slicer stores a part of the grid",
            *(f"{folder.name}: {words}" for words in said),
        ),
    )


def _segmentations(folder: Path, wanted: str | None) -> tuple[dict[Path, list[Path]], list[str]]:
    """Segmentation -> the volumes in its folder; what is to be said. Of several in a folder one may be wanted.

    Raises UserError where there is none.
    """
    what = "a segmentation of Slicer's is saved as <case>.seg.nrrd; a target without any is named by --target GLOB"
    found = require_files(as_pattern(folder, f"**/*{ENDING}"), what)
    count = Counter(mask.parent for mask in found)
    volumes = {home: _volumes_in(home) for home in count}
    if wanted is None:
        return {mask: volumes[mask.parent] for mask in found}, []
    alone = {mask for mask in found if count[mask.parent] == 1}
    kept = [mask for mask in found if mask in alone or mask.name == f"{wanted}{ENDING}"]
    if not kept:
        raise UserError(f"No segmentation is called {wanted}{ENDING} (--masks {wanted}): there is {listing(found, 5)}.")
    lost = sorted({str(mask.parent) for mask in found} - {str(mask.parent) for mask in kept})
    said = [f"LEFT OUT: {listing(lost, 5)}: of several segmentations none is called {wanted}; check"] if lost else []
    if others := sorted({mask.name for mask in kept} - {f"{wanted}{ENDING}"}):
        said.append(f"{listing(others, 5)} is taken where it is the only segmentation, for {wanted}{ENDING}; check")
    return {mask: volumes[mask.parent] for mask in kept}, said


def _volumes_in(folder: Path) -> list[Path]:
    """The volumes in a folder, which are no segmentations."""
    found = (path for path in sorted(folder.iterdir()) if _ending(path) and not path.name.endswith(ENDING))
    return [path for path in found if path in find_files(str(path))]


def _ending(path: Path) -> str:
    """That of a volume's name, as it is written; empty for another file."""
    return next((path.name[-len(each) :] for each in ENDINGS if path.name.lower().endswith(each)), "")


def _stem(path: Path) -> str:
    return path.name[: -len(_ending(path))]


def _called_like(mask: Path, volumes: Sequence[Path]) -> list[Path]:
    return [path for path in volumes if _stem(path) == mask.name[: -len(ENDING)]]


def _image_of(mask: Path, beside: Mapping[Path, Sequence[Path]], named: Sequence[Path], contrast: str | None) -> Path:
    """The volume of a segmentation: by its name, or of a scene's folder the only one, or the one that is asked for.

    named: segmentations that are called like a volume; no folder is a scene's then. Raises UserError without a volume.
    """
    volumes = beside[mask]
    others = [path for path in beside if path.parent == mask.parent and path != mask]
    found = _called_like(mask, volumes)
    if not named and not others:
        found = [path for path in volumes if _stem(path) == contrast] or list(volumes)
    if len(found) == 1:
        return found[0]
    there = listing([*(path.name for path in [*volumes, *others])], 8) if volumes or others else "nothing else"
    rule = "or each patient has a folder with one volume and one segmentation, whatever they are called"
    if found:
        rule += f" (of several volumes --contrast '{_stem(found[0])}' takes one)"
    elif others and not named:
        rule += f" (of several segmentations --masks '{mask.name[: -len(ENDING)]}' takes one)"
    elif named:
        rule = f"for {named[0]} has one of its name, and one folder has names or scenes, not both"
    raise UserError(
        f"{mask} needs its volume next to it, as {mask.name[: -len(ENDING)]}.nrrd or in another format; {rule}. There "
        f"is {there}."
    )


def _left_out(folder: Path, images: Sequence[Path], masks: Sequence[Path], are_named: bool) -> list[str]:
    """A clause that names the volumes without a segmentation; of scenes, whole folders."""
    homes = {mask.parent for mask in masks}
    volumes = [path for path in find_files(as_pattern(folder, "**/*")) if is_volume(path) and path not in images]
    lost = [path for path in volumes if are_named or path.parent not in homes]
    return (
        [f"LEFT OUT: {counted(len(lost), 'volume')} without a segmentation: {listing(lost, 5)}; check"] if lost else []
    )


def _patient(folder: Path, image: str, label: str, file: str) -> str:
    """An expression for the patient: the file's name, or that of a folder. Raises UserError where none tells them."""
    for each in (file, *FOLDERS):
        if not pair({"IMG": image, "GT": label}, re.compile(each))[1]:
            return each
    raise UserError(
        f"{folder}: no names tell one patient from another. Call the files <case>.nrrd and <case>.seg.nrrd, or give "
        f"each patient a folder; names are letters, digits, . _ and -. There is {listing(find_files(label), 3)}."
    )


def _names(masks: Sequence[Path]) -> dict[int, str]:
    """Label -> name of the segment, the same in every file; empty where none tells. Raises UserError."""
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
    return names if len(names) > 1 else {}


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
