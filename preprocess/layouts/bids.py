"""BIDS (https://bids-specification.readthedocs.io): images of subjects, and their masks in a folder of derivatives.

Layout: dataset_description.json; sub-<label>/[ses-<label>/]anat/sub-<label>_…_<suffix>.nii.gz, where the suffix is the
contrast (T1w, T2w, FLAIR, …). Masks end in _dseg: derivatives/<pipeline>/sub-<label>/… beside a
dataset_description.json of their own. A dseg.tsv (index, name) there, or at the top, names the labels.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from files.foreign import read_json, read_text, reading
from files.pairing import find_files
from preprocess.layouts.layout import LAYOUTS, Asked, SiteFiles, as_pattern, chosen_of, plain_name, shown
from processes.errors import UserError
from utils import listing

ABOUT, TABLE, SUFFIX = "dataset_description.json", "dseg.tsv", "dseg"
ENDINGS = (".nii.gz", ".nii")
NO_IMAGES = {SUFFIX, "probseg", "mask", "seg", "defacemask"}
SUBJECT = "(sub-[A-Za-z0-9]+)"
SCAN = "(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)"  # a subject, in one session


@LAYOUTS.register()
def bids(folder: Path, asked: Asked) -> SiteFiles:
    """BIDS: the folder with dataset_description.json, or that of one pipeline's derivatives with masks (_dseg)"""
    about = read_json(folder / ABOUT, "expected the folder of a BIDS data set, or of its derivatives")
    raw, masks = _parts(
        folder, about.get("DatasetType") == "derivative" or folder.absolute().parent.name == "derivatives"
    )
    images = _images(raw)
    what = f"{raw} has images of several contrasts" if images else f"{raw} has no sub-*/…/anat/sub-*_<contrast>.nii.gz"
    contrast = chosen_of(sorted(images) or ["T2w"], asked.contrast if images else "", what)
    files = images[contrast]
    ending = files[0].name[files[0].name.index(".") :]
    label = masks and _label(masks, contrast)
    return SiteFiles(
        (as_pattern(raw, f"sub-*/**/anat/*_{contrast}{ending}"),),
        label,
        SCAN,
        class_names=_names([*([masks] if masks else []), raw]),
        names_all=False,
        group=SUBJECT,
        modality=contrast,
        notes=(f"{folder.name}: masks of {masks}",) if masks else (),
    )


def _parts(folder: Path, is_derivative: bool) -> tuple[Path, Path | None]:
    """The folder of the images, and that of the masks. Raises UserError where several pipelines made masks."""
    if is_derivative:
        above = folder.absolute().parent.parent
        return (above if above != folder and _images(above) else folder), folder
    pipelines = sorted(path for path in (folder / "derivatives").glob("[!.]*") if path.is_dir() and _masks(path))
    if len(pipelines) > 1:
        raise UserError(
            f"{folder} has masks of several pipelines, {listing(path.name for path in pipelines)}: name the folder of "
            f"one, as {pipelines[0]}."
        )
    return folder, pipelines[0] if pipelines else folder if _masks(folder) else None


def _masks(folder: Path) -> list[Path]:
    return [path for ending in ENDINGS for path in folder.glob(f"sub-*/**/*_{SUFFIX}{ending}")]


def _images(folder: Path) -> dict[str, list[Path]]:
    """Suffix -> the images that have it, of the first ending that any has."""
    for ending in ENDINGS:
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.glob(f"sub-*/**/anat/sub-*{ending}")):
            suffix = path.name.removesuffix(ending).rpartition("_")[2]
            if suffix.isalnum() and suffix not in NO_IMAGES:
                found.setdefault(suffix, []).append(path)
        if found:
            return found
    return {}


def _label(masks: Path, contrast: str) -> str:
    """The pattern of the masks; of those for one contrast where their names say for which they are."""
    for names in (f"*_{contrast}_*{SUFFIX}", f"*_{SUFFIX}"):
        for ending in ENDINGS:
            pattern = as_pattern(masks, f"sub-*/**/{names}{ending}")
            if find_files(pattern):
                return pattern
    raise UserError(f"{masks} holds no masks: sub-*/…/sub-*_{SUFFIX}.nii.gz.")


def _names(folders: Sequence[Path]) -> dict[int, str]:
    """Label -> name, by the first table that is there; empty without one. Raises UserError for another table."""
    tables = (path for folder in folders for path in sorted(folder.glob(f"*{TABLE}")) if not path.name.startswith("."))
    path = next(tables, None)
    if path is None:
        return {}
    cure = "expected columns index and name, separated by tabs, as BIDS has them; mend it, or move it away"
    with reading(path, cure):
        rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
        names = {0: "background"}
        for row in rows:
            index = str(row.get("index") or "")
            if not index.isascii() or not index.isdigit() or int(index) in names.keys() - {0}:
                raise UserError(f"{path}: a row has the index {shown(index)}, or has it again; {cure}.")
            names[int(index)] = plain_name(row.get("name"), path)
    return names
