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
    raw, masks = _parts(folder)
    images = _images(raw)
    own = _images(masks) if masks and masks != raw else {}
    images = images or own
    if not images:
        raise UserError(f"{raw} has no images: expected sub-*/…/anat/sub-*_<contrast>.nii.gz, as BIDS has them.")
    wanted = asked.contrast and asked.contrast.rpartition("_")[2]
    contrast = chosen_of(sorted(images), wanted, f"{raw} has images of several contrasts")
    if any(_called(path) == asked.contrast for path in own.get(contrast, ())):
        images = own if all(_called(path) != asked.contrast for path in images[contrast]) else images
    files, said = _one_a_scan(images[contrast], asked.contrast, f"{raw} has several {contrast} images", "--contrast")
    truth: list[Path] = []
    if masks and asked.labels:
        truth, more = _truth(masks, files, contrast, asked.masks)
        files, truth, fewer = _with_masks(files, truth)
        said += [*more, *fewer, f"masks of {masks}"]
    where = masks if masks and images is own else raw
    return SiteFiles(
        (_pattern(where, files, f"sub-*/**/anat/*_{contrast}"),),
        _pattern(masks, truth, f"sub-*/**/*_{contrast}_*{SUFFIX}", f"sub-*/**/*_{SUFFIX}") if masks and truth else None,
        SCAN,
        class_names=_names([*([masks] if masks else []), raw], _called(truth[0]) if truth else SUFFIX),
        names_all=False,
        group=SUBJECT,
        modality=contrast,
        notes=tuple(f"{folder.absolute().name}: {words}" for words in said),
    )


def _parts(folder: Path) -> tuple[Path, Path | None]:
    """The folder of the images, and that of the masks. Raises UserError where several pipelines made masks."""
    about, is_pipeline = folder / ABOUT, folder.absolute().parent.name == "derivatives"
    cure = "expected the folder of a BIDS data set, or of its derivatives"
    card = {} if is_pipeline and folder.is_dir() and not about.exists() else read_json(about, cure)
    if is_pipeline or card.get("DatasetType") == "derivative":
        above = folder.absolute().parent.parent
        return (folder if _images(folder) or not _images(above) else above), folder
    pipelines = sorted(path for path in (folder / "derivatives").glob("[!.]*") if path.is_dir() and _masks(path))
    if len(pipelines) > 1:
        raise UserError(
            f"{folder} has masks of several pipelines, {listing(path.name for path in pipelines)}: name the folder of "
            f"one, as {pipelines[0]}."
        )
    return folder, pipelines[0] if pipelines else folder if _masks(folder) else None


def _found(folder: Path, names: str) -> list[Path]:
    """The volumes of such names below a folder, sorted; of one that is there packed and not, the packed one."""
    found = ((path, end) for end in reversed(ENDINGS) for path in folder.glob(names + end))
    return sorted({path.with_name(path.name.removesuffix(end)): path for path, end in found}.values())


def _masks(folder: Path) -> list[Path]:
    return _found(folder, f"sub-*/**/*_{SUFFIX}")


def _images(folder: Path) -> dict[str, list[Path]]:
    """Suffix -> the images that have it."""
    found: dict[str, list[Path]] = {}
    for path in _found(folder, "sub-*/**/anat/sub-*"):
        suffix = _called(path).rpartition("_")[2]
        if suffix.isalnum() and suffix not in NO_IMAGES:
            found.setdefault(suffix, []).append(path)
    return found


def _truth(folder: Path, images: Sequence[Path], contrast: str, wanted: str | None) -> tuple[list[Path], list[str]]:
    """A mask a scan: of anatomy, for one contrast, and in the images' space, where names say so.

    Returns what is to be said of them, too. Raises UserError where several are left.
    """
    found = _masks(folder)
    if not found:
        raise UserError(f"{folder} holds no masks: sub-*/…/sub-*_{SUFFIX}.nii.gz.")
    found = [path for path in found if path.parent.name == "anat"] or found
    found = [path for path in found if f"_{contrast}_" in path.name] or found
    if wanted is None:
        spaces = {_space(path) for path in images}
        found = [path for path in found if _space(path) in spaces] or found
    return _one_a_scan(found, wanted, f"{folder} has several masks", "--masks")


def _one_a_scan(files: Sequence[Path], wanted: str | None, what: str, flag: str) -> tuple[list[Path], list[str]]:
    """Of the files of each scan one: the one that is called as wanted, the only one, or the one in its own space.

    what: of what there are several; flag: it names one. Returns what is to be said of the choice, too. Raises UserError
    where several are left, and for files that are not there, as DataLad leaves those that nobody fetched.
    """
    called = [path for path in files if _called(path) == wanted]
    of_the_scan = [path for path in files if "_space-" not in path.name]
    is_exact = wanted is not None and (flag == "--masks" or "-" in wanted)
    for found in (called if is_exact else [], files, of_the_scan, called):
        if found and len({_scan(path) for path in found}) == len(found):
            break
    else:
        names = sorted({_called(path) for path in files})
        given = f"{flag} {wanted} is not enough" if wanted else "name one"
        raise UserError(f"{what} of a scan, {listing(names)}: {given}, as in {flag} '{names[0]}'.")
    names, said = sorted({_called(path) for path in found}), []
    if is_exact and not called:
        said.append(f"nothing is called {wanted} ({flag}): {listing(names, 5)} is what is there, and taken; check")
    elif len(names) > 1:
        said.append(f"files that are called {listing(names, 5)} are taken for the same, one a scan; check ({flag})")
    if lost := sorted({_scan(path) for path in files} - {_scan(path) for path in found}):
        said.append(f"LEFT OUT: of {listing(lost, 5)} nothing is called {listing(names, 5)}; check ({flag})")
    if gone := [path for path in found if not path.is_file()]:
        if len(gone) == len(found):
            raise UserError(f"{gone[0]} is a link to nothing: the file was not fetched (datalad get); get the data.")
        said.append(
            f"LEFT OUT: {listing((path.name for path in gone), 5)}, links to nothing: not fetched (datalad get)"
        )
    return [path for path in found if path not in gone], said


def _with_masks(images: list[Path], masks: list[Path]) -> tuple[list[Path], list[Path], list[str]]:
    """The images and masks of the scans that have both, and which have not. Raises UserError where none has."""
    scans = [{_scan(path) for path in files} for files in (images, masks)]
    both, said = scans[0] & scans[1], []
    if not both:
        raise UserError(
            f"No scan has an image and a mask: there are {images[0]} and {masks[0]}. A scan is sub-<label>, and "
            "ses-<label> where there are sessions, in both names."
        )
    for which, lacks in zip(scans, ("mask", "image"), strict=True):
        if lost := sorted(which - both):
            said.append(
                f"LEFT OUT: {len(lost)} of {len(which)} scans, which have no {lacks}: {listing(lost, 5)}; check"
            )
    return *([path for path in files if _scan(path) in both] for files in (images, masks)), said


def _scan(path: Path) -> str:
    match = re.match(SCAN, path.name)
    return match[0] if match else path.name


def _space(path: Path) -> str:
    match = re.search("_(space-[A-Za-z0-9]+)_", path.name)
    return match[1] if match else ""


def _called(path: Path) -> str:
    """What a name tells besides its scan and its ending, as in desc-preproc_T1w."""
    return path.name[len(_scan(path)) : path.name.index(".")].removeprefix("_")


def _pattern(folder: Path, files: Sequence[Path], *names: str) -> str:
    """A pattern of these files: one of those given, without their ending, or one that counts a scan's letters."""
    endings = sorted({path.name[path.name.index(".") :] for path in files})
    kinds = sorted({("?" * len(_scan(path)), path.name[len(_scan(path)) :]) for path in files})
    counting = "|".join(f"sub-*/**/{letters}{end}" for letters, end in kinds)
    return pattern_of(folder, files, *("|".join(f"{name}{end}" for end in endings) for name in names), counting)


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
            index = str(row.get("index") or "").strip()
            if not index.isascii() or not index.isdigit() or int(index) in names.keys() - {0}:
                raise UserError(f"{path}: a row has the index {shown(index)}, or has it again; {cure}.")
            names[int(index)] = plain_name(row.get("name"), path)
    return names if len(names) > 1 else {}
