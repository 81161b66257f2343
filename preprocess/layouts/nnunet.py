"""nnU-Net v2 (https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md): `DatasetNNN_Name` below nnUNet_raw.

Layout: dataset.json; imagesTr/<case>_<channel, four digits><ending>, labelsTr/<case><ending>; imagesTs as imagesTr.
dataset.json names channels and labels ("labels": name -> number, or the numbers of a region), and the label "ignore".
The split into five folds, splits_final.json, lies in nnUNet_preprocessed/DatasetNNN_Name, or is copied next to it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from files.foreign import parse_json, read_json
from files.pairing import PICTURES, find_files
from files.volume_names import ENDINGS
from preprocess.layouts.layout import (
    LAYOUTS,
    Asked,
    SiteFiles,
    as_pattern,
    case_count_told,
    plain_name,
    require_files,
    shown,
)
from processes.errors import UserError
from utils import counted, listing

CARD, SPLITS = "dataset.json", "splits_final.json"
RAW, PREPROCESSED = "nnUNet_raw", "nnUNet_preprocessed"  # variables that nnU-Net looks its folders up in
BACKGROUND, IGNORE = "background", "ignore"
CURE = "expected the dataset.json that nnU-Net v2 asks for"
MOST_CHANNELS = 64


@LAYOUTS.register()
def nnunet(folder: Path, asked: Asked) -> SiteFiles:
    """nnU-Net v2: a folder DatasetNNN_Name, or its name below $nnUNet_raw"""
    home = _home(folder)
    path = home / CARD
    card = read_json(path, CURE)
    ending, channels = _ending(card, path), _channels(card, path)
    names, ignore, told = read_labels(card.get("labels"), path)
    where = "imagesTr" if (home / "imagesTr").is_dir() else "imagesTs"
    images = tuple(as_pattern(home / where, f"*_{channel:04}{ending}") for channel in range(len(channels)))
    files = require_files(images[0], f"{CARD} there says that files end in {ending}, the channel before it")
    cases = {path.name[: -len("_0000") - len(ending)] for path in files}
    label = as_pattern(home / "labelsTr", f"*{ending}")
    val, about_split = _split(home, cases, asked.fold) if where == "imagesTr" else ((), [])
    counted_cases = case_count_told(card, len(cases)) if where == "imagesTr" else []
    number = re.escape(ending)
    return SiteFiles(
        images,
        label if where == "imagesTr" and (home / "labelsTr").is_dir() and find_files(label) else None,
        rf"(?:images(?:Tr|Ts)/([^/]+)_\d{{4}}|labelsTr/([^/]+)){number}$",
        class_names=names,
        ignore=ignore,
        val=val,
        modality=" + ".join(channels),
        notes=tuple(
            f"{home.name}: {words}" for words in (*_channels_told(channels), *told, *about_split, *counted_cases)
        ),
    )


def _home(folder: Path) -> Path:
    """The folder of the data set. Raises UserError where it is in neither place."""
    raw = os.environ.get(RAW)
    places = [folder, *([Path(raw) / folder] if raw else [])]
    for place in places:
        if (place / CARD).is_file():
            return place
    looked = listing(places) + ("" if raw else " ($nnUNet_raw is not set)")
    raise UserError(f"There is no {CARD} in {looked}: name the folder of one data set of nnU-Net v2, DatasetNNN_Name.")


def _ending(card: Mapping[str, Any], path: Path) -> str:
    """Raises UserError for an ending that no volume has."""
    ending = card.get("file_ending")
    if "dataset" in card:
        raise UserError(
            f'{path} lists its files one by one ("dataset"), wherever they lie. Link them into '
            "imagesTr/<case>_0000.nii.gz and labelsTr/<case>.nii.gz, and take that entry out."
        )
    if ending in PICTURES:
        raise UserError(f"{path} says that its files are pictures ({ending}), where volumes are read.")
    if ending not in ENDINGS - {".dcm"}:
        raise UserError(
            f'{path} must say how its volumes end, as in "file_ending": ".nii.gz"; there is {shown(ending)}.'
        )
    return ending


def _channels(card: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the channels, in their order. Raises UserError for others than 0, 1, 2, …"""
    told = card.get("channel_names", card.get("modality"))
    keys = list(map(str, range(len(told)))) if isinstance(told, dict) else []
    if not keys or len(keys) > MOST_CHANNELS or set(told) != set(keys):
        raise UserError(
            f'{path} must name its channels by their numbers, as in "channel_names": {{"0": "T2"}}; there is '
            f"{shown(told)}."
        )
    return [plain_name(told[key], path) for key in keys]


def _channels_told(channels: Sequence[str]) -> Iterator[str]:
    if len(channels) > 1:
        yield f"{len(channels)} channels, {listing(channels)}, become those of one image"
    if any(name.lower() == "ct" for name in channels):
        yield "CT: percentiles of each volume are taken; --normalise window --window LOW HIGH keeps Hounsfield units"


def read_labels(told: Any, path: Path) -> tuple[dict[int, str], int | None, list[str]]:
    """Label -> name, the label to ignore, and what is to be said of regions. Raises UserError for what is none."""
    if not isinstance(told, dict) or not told:
        raise UserError(
            f'{path} must name its labels, as in "labels": {{"background": 0, "organ": 1}}; there is {shown(told)}.'
        )
    if all(isinstance(name, str) for name in told.values()):
        raise UserError(
            f"{path} names its labels the other way round, as the Decathlon and nnU-Net v1 do: --decathlon."
        )
    sets = {plain_name(name, path): _numbers(value) for name, value in told.items()}
    if wrong := [name for name, numbers in sets.items() if not numbers]:
        raise UserError(
            f"{path}: a label is a number, or a list of those in a region, which is not so of {listing(wrong, 4)}."
        )
    ignore = sets.pop(IGNORE, None)
    labels = sorted({number for numbers in sets.values() for number in numbers} | {0})
    last = labels[-1]
    if sets.get(BACKGROUND) != (0,) or labels != list(range(last + 1)) or len(labels) < 2 or last > 254:
        raise UserError(
            f'{path}: labels run from "background": 0 upwards without a gap, 254 at most; there are {listing(labels)}'
            f"{'' if BACKGROUND in sets else ', none of them named background'}."
        )
    if ignore is not None and ignore != (last + 1,):
        raise UserError(
            f'{path}: the label "ignore" is the one above all others, {last + 1}; there is {listing(ignore)}.'
        )
    regions = {name: numbers for name, numbers in sets.items() if len(numbers) > 1}
    if not regions and len(sets) != len(labels):
        raise UserError(f"{path} gives one label several names: {shown(told, 200)}.")
    return _names(sets, labels), ignore and ignore[0], list(_regions_told(regions))


def _numbers(value: Any) -> tuple[int, ...]:
    """The label, or the labels of a region; () for anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**15 for each in values):
        return ()
    return tuple(dict.fromkeys(values))


def _names(sets: Mapping[str, tuple[int, ...]], labels: Sequence[int]) -> dict[int, str]:
    """Label -> the name of the smallest region that it is in, with its number where that names several."""
    chosen = {}
    for label in labels:
        holding = [name for name, numbers in sets.items() if label in numbers]
        chosen[label] = min(holding, key=lambda name: len(sets[name])) if holding else BACKGROUND
    shared = {name for name in chosen.values() if list(chosen.values()).count(name) > 1}
    return {label: f"{name} ({label})" if name in shared else name for label, name in chosen.items()}


def _regions_told(regions: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if regions:
        each = listing(f"{name} = {'+'.join(map(str, numbers))}" for name, numbers in regions.items())
        first = ",".join(f"{number}:1" for number in next(iter(regions.values())))
        yield (
            f"its regions overlap ({each}), and the networks here give each voxel one class: every label is a class of "
            f"its own; --label_map {first} learns the first region instead"
        )


def _split(home: Path, cases: set[str], fold: int) -> tuple[tuple[str, ...], list[str]]:
    """Who validates by splits_final.json, and what is to be said. Raises UserError for a file of other cases."""
    preprocessed = os.environ.get(PREPROCESSED)
    near = [home.absolute().parent.parent / PREPROCESSED, *([Path(preprocessed)] if preprocessed else [])]
    places = [home / SPLITS, *(place / home.name / SPLITS for place in reversed(near))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return (), [f"no {SPLITS} is there, so who validates is drawn"]
    folds = parse_json(path, f"expected nnU-Net's {SPLITS}, or move it away")
    if not isinstance(folds, list) or not all(map(_is_fold, folds)):
        raise UserError(
            f'{path} must be a list of folds, each {{"train": […], "val": […]}} with names of cases; there is '
            f"{shown(folds)}. Mend it, or move it away."
        )
    if not 0 <= fold < len(folds):
        raise UserError(f"--fold {fold}: {path} has {counted(len(folds), 'fold')}, counted from 0.")
    train, val = folds[fold]["train"], folds[fold]["val"]
    if strange := sorted({*train, *val} - cases):
        raise UserError(
            f"{path} names cases that are not in {home / 'imagesTr'}: {listing(strange, 5)}. Mend it, or move it away."
        )
    if both := sorted({*train} & {*val}):
        raise UserError(f"{path}, fold {fold}: {listing(both, 5)} would train and validate. Mend it, or move it away.")
    more = (
        [f"{listing(aside, 5)} is in neither part of fold {fold} and trains"]
        if (aside := sorted(cases - {*train, *val}))
        else []
    )
    return tuple(sorted(val)), [
        f"fold {fold} of {len(folds)} in {path} says who validates (--fold N takes another)",
        *more,
    ]


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(
        isinstance(fold.get(part), list) and fold[part] and all(isinstance(name, str) for name in fold[part])
        for part in ("train", "val")
    )
