"""BIDS (https://bids-specification.readthedocs.io): images of subjects, and their masks in a folder of derivatives.

Layout: dataset_description.json; sub-<label>/[ses-<label>/]anat/sub-<label>_…_<suffix>.nii.gz, where the suffix is the
contrast (T1w, T2w, FLAIR, …). Masks end in _dseg: derivatives/<pipeline>/sub-<label>/… beside a
dataset_description.json of their own. A dseg.tsv (index, name) there, or at the top, names the labels. Pipelines,
as fMRIPrep, leave several images and masks of a scan, told apart by words in their names (space-, desc-, acq-, …).
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from files.foreign import read_json, read_text, reading
from preprocess.layouts.layout import LAYOUTS, Asked, SiteFiles, chosen_of, pattern_of, plain_name, shown
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
    wanted = asked.contrast and asked.contrast.rpartition("_")[2]
    contrast = chosen_of(sorted(images) or ["T2w"], wanted if images else "", what)
    files = _one_a_scan(images[contrast], asked.contrast, f"{raw} has several {contrast} images", "--contrast")
    truth = _truth(masks, contrast, asked.masks) if masks else []
    anat = f"sub-*/**/anat/*_{contrast}"
    return SiteFiles(
        (_pattern(raw, files, anat),),
        _pattern(masks, truth, f"sub-*/**/*_{contrast}_*{SUFFIX}", f"sub-*/**/*_{SUFFIX}") if masks else None,
        SCAN,
        class_names=_names([*([masks] if masks else []), raw], _called(truth[0]) if truth else SUFFIX),
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
    """The masks of one ending, the first that any has."""
    found = (sorted(folder.glob(f"sub-*/**/*_{SUFFIX}{ending}")) for ending in ENDINGS)
    return next(filter(None, found), [])


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


def _truth(folder: Path, contrast: str, wanted: str | None) -> list[Path]:
    """A mask a scan: of anatomy, and for one contrast, where names say so. Raises UserError where some are left."""
    found = _masks(folder)
    if not found:
        raise UserError(f"{folder} holds no masks: sub-*/…/sub-*_{SUFFIX}.nii.gz.")
    found = [path for path in found if path.parent.name == "anat"] or found
    found = [path for path in found if f"_{contrast}_" in path.name] or found
    return _one_a_scan(found, wanted, f"{folder} has several masks", "--masks")


def _one_a_scan(files: Sequence[Path], wanted: str | None, what: str, flag: str) -> list[Path]:
    """Of the files of each scan one: the one that is called as wanted, the only one, or the one in its own space.

    what: of what there are several; flag: it names one. Raises UserError where several are left.
    """
    called = [path for path in files if _called(path) == wanted]
    of_the_scan = [path for path in files if "_space-" not in path.name]
    for found in (called if "-" in (wanted or "") else [], files, of_the_scan, called):
        if found and len({_scan(path) for path in found}) == len(found):
            return list(found)
    names = sorted({_called(path) for path in files})
    given = f"{flag} {wanted} is not enough" if wanted else "name one"
    raise UserError(f"{what} of a scan, {listing(names)}: {given}, as in {flag} '{names[0]}'.")


def _scan(path: Path) -> str:
    match = re.match(SCAN, path.name)
    return match[0] if match else path.name


def _called(path: Path) -> str:
    """What a name tells besides its scan and its ending, as in desc-preproc_T1w."""
    return path.name[len(_scan(path)) : path.name.index(".")].removeprefix("_")


def _pattern(folder: Path, files: Sequence[Path], *names: str) -> str:
    """A pattern of these files: one of those given, without their ending, or one that counts a scan's letters."""
    ending = files[0].name[files[0].name.index(".") :]
    kinds = sorted({("?" * len(_scan(path)), _called(path)) for path in files})
    counting = "|".join(f"sub-*/**/{letters}_{called}{ending}" for letters, called in kinds)
    return pattern_of(folder, files, *(f"{name}{ending}" for name in names), counting)


def _names(folders: Sequence[Path], called: str) -> dict[int, str]:
    """Label -> name, by the table that says most of masks which are called so; empty without one.

    desc-aseg_dseg.tsv tells of all that have these words in their names, dseg.tsv of any. Raises UserError for a table
    of something else.
    """
    tables = [path for folder in folders for path in sorted(folder.glob(f"*{TABLE}")) if not path.name.startswith(".")]
    said = [(len(words), path) for path in tables if (words := set(path.stem.split("_"))) <= set(called.split("_"))]
    if not said:
        return {}
    path = max(said, key=lambda each: each[0])[1]
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
