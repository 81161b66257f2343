"""The flags that name the volumes of two sites: patterns, or the folder of a data set in a layout that is known."""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import preprocess.layouts  # noqa: F401  fills LAYOUTS
from files.pairing import find_files
from files.pictures import is_picture
from preprocess.layouts.layout import LAYOUTS, Asked, SiteFiles
from preprocess.survey.patients import find_patient, find_pictures
from preprocess.survey.sites import roles_of
from processes.errors import UserError
from utils import listing

PLAIN = {"source": "--source", "target": "--target"}


def add_file_flags(add: Callable[..., Any]) -> None:
    """Adds a pair of flags for each layout beside those of plain patterns."""
    add("--source", metavar="GLOB", help="images of the old site (in quotes): volumes, or 2D pictures")
    add("--source_label", metavar="GLOB", help="their labels")
    add("--target", metavar="GLOB", help="images of the new site")
    add("--target_label", metavar="GLOB", help="their labels, if there are any: for scores and bounds alone")
    patient = r"its group is the patient, in the names of files or folders: (case\d+) (default: what fits all of them)"
    add("--patient", metavar="REGEX", help=patient)
    add("--channel", type=int, metavar="N", help="of 4D images, counted from 0")
    for name in LAYOUTS:
        for site, flag in _flags_of(name).items():
            whose = LAYOUTS[name].__doc__ if site == "source" else f"the target, as --{name}"
            add(flag, type=Path, metavar="FOLDER", help=f"the {site}, as {whose}" if site == "source" else whose)
    blind = "leave the target's labels aside, where its data set has some: nothing is scored then"
    add("--no_target_label", action="store_true", help=blind)
    add("--fold", type=int, default=0, metavar="N", help="of a data set's split into folds (default %(default)s)")
    add("--contrast", metavar="NAME", help="which image of a patient, as a data set calls it, where it has several")
    add("--masks", metavar="NAME", help="which masks of a patient, likewise: the end of their names, desc-aseg_dseg")


def _flags_of(layout: str) -> dict[str, str]:
    return {"source": f"--{layout}", "target": f"--target_{layout}"}


def _named(site: str, args: argparse.Namespace) -> dict[str, Any]:
    """Flag -> value of those that name the volumes of a site."""
    flags = [PLAIN[site], *(_flags_of(name)[site] for name in LAYOUTS)]
    told = {flag: getattr(args, flag.removeprefix("--")) for flag in flags}
    return {flag: value for flag, value in told.items() if value is not None}


def files_of(site: str, args: argparse.Namespace) -> SiteFiles:
    """The volumes of source or target. Raises UserError unless exactly one flag names them, and for a broken layout."""
    named, known = _named(site, args), [PLAIN[site], *(_flags_of(name)[site] for name in LAYOUTS)]
    if len(named) != 1:
        given = listing(named) if named else "none"
        raise UserError(f"Say where the volumes of the {site} are, with one of {listing(known)}; given: {given}.")
    ((flag, value),) = named.items()
    label = getattr(args, f"{site}_label")
    if flag == PLAIN[site]:
        if site == "source" and not label:
            raise UserError("--source_label names the labels of the source, which are learnt from; give it.")
        label = None if args.no_target_label and site == "target" else label
        plain = SiteFiles((value,), label, "", args.channel)
        if any(map(is_picture, find_files(value))):
            return _of_pictures(site, plain, args)
        patient, notes = find_patient(roles_of(plain), args.patient, site)
        return replace(plain, patient=patient, notes=tuple(notes))
    if label:
        raise UserError(f"--{site}_label goes with {PLAIN[site]}: {flag} finds the labels by itself.")
    return _of_layout(site, flag, value, args)


def _of_pictures(site: str, plain: SiteFiles, args: argparse.Namespace) -> SiteFiles:
    """Raises UserError for a flag that is for volumes."""
    if args.channel is not None:
        raise UserError(f"--channel is for 4D volumes, and the {site} is pictures; colours become grey by themselves.")
    picture, patient, notes = find_pictures(roles_of(plain), args.patient, site)
    return replace(plain, patient=picture, group=patient, notes=tuple(notes), pictures=True)


def _of_layout(site: str, flag: str, folder: Path, args: argparse.Namespace) -> SiteFiles:
    layout = flag.removeprefix("--").removeprefix("target_")
    typed = [f"--{name}" for name in ("patient", "channel") if getattr(args, name) is not None]
    if typed and args.source is args.target is None:
        raise UserError(f"{typed[0]} is for volumes that --source or --target name; {flag} finds it by itself.")
    is_blind = args.no_target_label and site == "target"
    files = LAYOUTS[layout](folder, Asked(args.fold, args.contrast, args.masks, not is_blind))
    if site == "source" and files.label is None:
        raise UserError(
            f"{flag} {folder} has no labels, and the source is what is learnt from; name another. Expected: "
            f"{LAYOUTS[layout].__doc__}."
        )
    return replace(files, label=None) if is_blind else files


def name_of(args: argparse.Namespace) -> str:
    """The experiment's name, of the folders of its data sets. Raises UserError where they tell none."""
    folders = [value for site in PLAIN for value in _named(site, args).values() if isinstance(value, Path)]
    if len(folders) != len(PLAIN):
        raise UserError("--name is what the experiment is called; give it.")
    names = [re.sub(r"(?i)^(dataset|task)\d+_", "", folder.absolute().name) for folder in folders]
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(dict.fromkeys(names))).lower()
    if not re.fullmatch(r"[a-z][\w-]*", name):
        raise UserError(f"--name: the folders {listing(folders)} give no name that begins with a letter; give one.")
    return name
