"""Medical Segmentation Decathlon (http://medicaldecathlon.com), and nnU-Net v1, which kept its layout: `TaskNN_Name`.

Layout: dataset.json; imagesTr/<case>.nii.gz, labelsTr/<case>.nii.gz; imagesTs as imagesTr. Several images of a patient
are one 4D file; dataset.json names them ("modality") and the classes ("labels"), each by its number. Next to each file
may lie a ._* shadow, as macOS writes; hidden files are never read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files.foreign import read_json
from files.pairing import find_files
from preprocess.layouts.layout import (
    LAYOUTS,
    Asked,
    SiteFiles,
    as_pattern,
    case_count_told,
    chosen_of,
    plain_name,
    require_files,
    shown,
)
from processes.errors import UserError

CARD, ENDING = "dataset.json", ".nii.gz"
MOST_CLASSES = 255


@LAYOUTS.register()
def decathlon(folder: Path, asked: Asked) -> SiteFiles:
    """a task of the Decathlon: a folder TaskNN_Name with its dataset.json"""
    path = folder / CARD
    card = read_json(path, "expected the dataset.json of a task of the Decathlon")
    names, contrasts = _numbered(card, "labels", path), _numbered(card, "modality", path)
    if len(names) < 2 or len(names) > MOST_CLASSES or 0 not in names:
        raise UserError(
            f'{path} must name the background, 0, and at least one class in its "labels"; there is {shown(names)}.'
        )
    if sorted(contrasts) != list(range(len(contrasts))):
        raise UserError(f'{path} must number its "modality" from 0 without a gap; there is {shown(contrasts)}.')
    where = "imagesTr" if (folder / "imagesTr").is_dir() else "imagesTs"
    images, label = as_pattern(folder / where, f"*{ENDING}"), as_pattern(folder / "labelsTr", f"*{ENDING}")
    files = require_files(images, f"it is where a task has its images, which end in {ENDING}")
    several = len(contrasts) > 1
    contrast = chosen_of(list(contrasts.values()), asked.contrast, f"{folder} has several images of a patient")
    told = case_count_told(card, len(files)) if where == "imagesTr" else []
    return SiteFiles(
        (images,),
        label if where == "imagesTr" and (folder / "labelsTr").is_dir() and find_files(label) else None,
        r"(?:imagesTr|imagesTs|labelsTr)/([^/]+)\.nii\.gz$",
        channel=list(contrasts.values()).index(contrast) if several else None,
        class_names=names,
        modality=contrast,
        notes=tuple(f"{folder.name}: {words}" for words in told),
    )


def _numbered(card: Mapping[str, Any], key: str, path: Path) -> dict[int, str]:
    """Number -> name, in the order of the numbers. Raises UserError for anything else."""
    told = card.get(key)
    if isinstance(told, dict) and told and all(isinstance(each, int | list) for each in told.values()):
        raise UserError(f'{path} names its "{key}" the other way round, as nnU-Net v2 does: --nnunet.')
    if not isinstance(told, dict) or not told or not all(name.isascii() and name.isdigit() for name in told):
        raise UserError(f'{path} must list its "{key}" by their numbers, as in {{"0": "…"}}; there is {shown(told)}.')
    numbers = {int(number): plain_name(name, path) for number, name in told.items() if len(number) < 6}
    if len(numbers) != len(told):
        raise UserError(f'{path} has one number twice, or a huge one, in "{key}": {shown(told)}.')
    return dict(sorted(numbers.items()))
