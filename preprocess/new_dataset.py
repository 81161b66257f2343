"""A makefile for one's own volumes or 2D pictures: they are looked at; set and split are proposed; nothing is cut yet.

    python -m preprocess.new_dataset --name mine --source 'old/*_t2.nii.gz' --source_label 'old/*_mask.nii.gz' \\
        --target 'new/*_t2.nii.gz' --patient '(case[0-9]+)' --organ_mm2 1500
    python -m preprocess.new_dataset --nnunet Dataset101_Old --target_nnunet Dataset102_New

Writes mine.make, to be edited, and results/mine/volumes.txt, what was found. Target labels (--target_label), where they
are, give scores and bounds; the prior sizes come from the user or from the source's labels, never from them.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from analysis.tables.table import NOTHING, aligned
from files.faults import describe_faults
from files.foreign import parse_json
from files.grids import PLANES, TOLERANCE_RULE
from files.pairing import read_patients
from preprocess.layouts.layout import SiteFiles
from preprocess.phantom import CARD, SIZES
from preprocess.slice_volumes import read_names
from preprocess.survey.files import add_file_flags, files_of, name_of
from preprocess.survey.makefile import makefile_text
from preprocess.survey.picture_sites import make_picture_plan, read_picture_site
from preprocess.survey.plan import Plan, make_plan
from preprocess.survey.sites import Offence, Site, read_site
from preprocess.survey.wishes import Wishes
from processes.errors import UserError
from processes.quoting import visible
from utils import ProgramParser, atomic_write, counted, listing, run_program

SITES = "source", "target"
# whether there is a GPU -> the settings that are not the default here, as make/begin.mk has it
OTHER_SIZE = {
    False: ("full", "as published; without it a small network for 30 and 20 epochs, as no GPU is here"),
    True: ("small", "a first look, a small network for 30 and 20 epochs; without it as published"),
}
NOTES, GEOMETRY = "volumes.txt", "GEOMETRY:"  # what is written, and how it begins


def describe_sites(sites: Sequence[Site]) -> str:
    """What was found: geometry, and the census of the labels."""
    lines = []
    offences = [offence for site in sites for offence in site.offences]
    if offences:
        lines += [
            f"{GEOMETRY} {len(offences)} times a label does not lie where its image lies",
            *offence_table(offences),
        ]
    else:
        lines += [f"{GEOMETRY} every label lies on the grid of its image"]
    files, points = ("pictures", "pixels") if sites[0].files.pictures else ("volumes", "voxels")
    header = ["site", "label", f"{files} that hold it", points]
    rows = [
        [site.name, str(label), f"{site.volumes[label]} of {len(site.cases)}", str(site.voxels[label])]
        for site in sites
        for label in sorted(site.voxels)
    ]
    rows += [[site.name, "no labels", NOTHING, NOTHING] for site in sites if not site.voxels]
    return "\n".join([*lines, "", "LABELS", *aligned(header, rows)])


def offence_table(offences: Sequence[Offence]) -> list[str]:
    header = ["file", "what", "how far", "tolerance"]
    return aligned(header, [[each.file, each.what, each.how_far, each.tolerance] for each in offences])


def describe_plan(plan: Plan) -> str:
    return "\n".join(["PROPOSED", *(f"  - {reason}" for reason in plan.reasons)])


def check_sites(sites: Sequence[Site], makefile: Path, folder: Path) -> None:
    """Raises UserError that lists what stands in the way: files at fault, labels elsewhere than their images."""
    faults = [fault for site in sites for fault in site.faults]
    told = [f"{counted(len(faults), 'fault')}: {describe_faults(faults)}"] if faults else []
    if offences := [offence for site in sites for offence in site.offences]:
        told.append(
            f"{len({offence.file for offence in offences})} labels do not lie where their images lie, all in the "
            f"table above and in {folder / 'volumes.txt'}; resample them, or raise --tolerance."
        )
    if told:
        raise UserError(f"{makefile} was not written. {' '.join(told)}")


def find_phantom(sites: Sequence[Site]) -> str | None:
    """The size of the phantom, small or full, if its card lies next to the volumes or in a folder above; else None.

    Every picture of a phantom must say so. Raises UserError for a card that says neither size.
    """
    folders = {
        folder for site in sites for case in site.cases for path in case.paths.values() for folder in path.parents
    }
    cards = [card for folder in sorted(folders) if (card := folder / CARD).is_file()]
    return next(map(read_phantom, cards), None)


def read_phantom(card: Path) -> str:
    """The size of the phantom whose card this is. Raises UserError: it may be anybody's file."""
    told = parse_json(card, "move it away, if it is of another program")
    size = told.get("phantom") if isinstance(told, dict) else told
    if size not in list(SIZES):
        raise UserError(
            f'{card} should say whether these volumes are made up: preprocess.phantom writes "phantom": '
            f"{' or '.join(SIZES)} in it; there is {visible(repr(size))[:60]}. Is it of another program? Move it away."
        )
    return size


def check_sizes(args: argparse.Namespace, n_class: int) -> None:
    for flag, sizes in (("--organ_mm2", args.organ_mm2), ("--organ_mm3", args.organ_mm3)):
        if sizes and (len(sizes) != n_class - 1 or min(sizes) <= 0):
            raise UserError(
                f"{flag} expects one number above 0 for each class but the background, {n_class - 1} here; got "
                f"{' '.join(f'{size:g}' for size in sizes)}."
            )


def new_dataset(args: argparse.Namespace) -> None:
    """Looks at the volumes, and writes the report and the makefile.

    Raises UserError for volumes at fault, after writing the report and no makefile.
    """
    args.name = args.name or name_of(args)
    makefile, folder = Path(f"{args.name}.make"), Path("results") / args.name
    own = (makefile, *(Path(f"data/{args.name}_{s}") for s in SITES))
    taken = [str(path) for path in own if os.path.lexists(path)]
    if (notes := folder / NOTES).exists() and not notes.read_text("utf-8", "replace").startswith(GEOMETRY):
        taken.append(str(notes))  # of somebody else; those of an earlier start are written again
    if taken:
        raise UserError(
            f"{listing(taken)} is there already and is never overwritten: take another --name, or move it away."
        )
    if not args.tolerance >= 0:
        raise UserError(f"{TOLERANCE_RULE}, got {args.tolerance:g}.")
    named = files_of("source", args), files_of("target", args)
    kept = {each.name: getattr(args, each.name) for each in fields(Wishes) if hasattr(args, each.name)}
    kept |= {"modality": args.modality or " / ".join(dict.fromkeys(each.modality for each in named if each.modality))}
    kept |= {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
    kept |= {name: kept[name] or () for name in ("organ_mm2", "organ_mm3")}
    wishes = Wishes(**kept)
    check_kinds(named, wishes)
    source, target = (_look_at(name, files, wishes, args.jobs) for name, files in zip(SITES, named, strict=True))
    sites = source, target
    text = describe_sites(sites)
    print(text)
    write(folder / NOTES, text + "\n")
    check_sites(sites, makefile, folder)
    wishes = replace(wishes, phantom=find_phantom(sites))
    plan = (make_picture_plan if source.files.pictures else make_plan)(sites, wishes)
    check_sizes(args, plan.classes.n_class)
    print("\n" + describe_plan(plan))
    write(folder / NOTES, f"{text}\n\n{describe_plan(plan)}\n")
    write(makefile, makefile_text(sites, plan, wishes))
    other, words = OTHER_SIZE[Path("/dev/nvidia0").exists()]
    print(
        f"\n{makefile} is written: read it, and edit it. Then\n\n    make -f {makefile} data-report"
        f"      # cuts the slices; look at results/{args.name}/data-report\n    make -f {makefile}                  "
        "# trains, adapts, plots, reports"
        f"\n    make -f {makefile} SIZE={other:<12}      # {words}"
    )


def check_kinds(named: Sequence[SiteFiles], wishes: Wishes) -> None:
    """Raises UserError unless both sites are volumes, or both are pictures, and for a flag of the other kind."""
    kinds = [files.pictures for files in named]
    if len(set(kinds)) > 1:
        picture, volume = SITES if kinds[0] else SITES[::-1]
        raise UserError(
            f"The {picture} is pictures and the {volume} is volumes: a network learns from one kind. Name pictures for "
            "both, or volumes for both."
        )
    if wishes.tile and not kinds[0]:
        raise UserError("--tile is for pictures; slices of volumes are cut to --size.")


def _look_at(name: str, files: SiteFiles, wishes: Wishes, jobs: int) -> Site:
    if files.pictures:
        return read_picture_site(name, files, wishes.label_map is not None, jobs)
    return read_site(name, files, wishes.tolerance, jobs)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text)


def make_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w-]*", text):
        raise argparse.ArgumentTypeError("a name is letters, digits, _ and -, a letter first")
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ProgramParser("python -m preprocess.new_dataset", description=__doc__.splitlines()[0])
    add = parser.add_argument
    name = "of the experiment: NAME.make, data/NAME_source, results/NAME (default: as the folders are called)"
    add("--name", type=make_name, help=name)
    add_file_flags(parser.add_argument_group("volumes").add_argument)
    _add_cutting(parser.add_argument_group("slices, in place of what is proposed").add_argument)
    _add_split(parser.add_argument_group("split, in place of what is proposed").add_argument)
    _add_prior(parser)
    add("--tolerance", type=float, default=0.1, metavar="MM", help="that a label may be off (default %(default)s)")
    add("--modality", default="", help="of the images, for the record")
    add("--jobs", type=int, default=1, help="volumes read at a time")
    return parser.parse_args(argv)


def _add_split(add: Callable[..., Any]) -> None:
    add("--group", metavar="REGEX", help="its group is the person, where one was scanned twice")
    choice = "patients of each site who validate (default: as the data set says, else a fifth)"
    add("--val", type=int, metavar="N", help=choice)
    listed = "who they are, of both sites: a,b,c, or a file with their names"
    add("--val_list", type=read_patients, default=(), metavar="LIST", help=listed)


def _add_cutting(add: Callable[..., Any]) -> None:
    plane = (
        "slices are cut in it, however the volumes are stored (default: the one that they were scanned in, or axial)"
    )
    add("--plane", choices=PLANES, help=plane)
    spacing = (
        "of the pixels, to which slices are resampled; of pictures, that they have (default: none, distances in pixels)"
    )
    add("--spacing", type=float, nargs=2, metavar=("W_MM", "H_MM"), help=spacing)
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="of the slices, in pixels: cut or padded round the centre; pictures are scaled to fit",
    )
    add("--tile", type=int, nargs=2, metavar=("W", "H"), help="of pictures: cut large ones into tiles of this size")
    merged = "label:class pairs for both sites, as 1:1,2:1; what it leaves out becomes background"
    add("--label_map", metavar="MAP", help=merged)
    add("--class_names", type=read_names, default=(), metavar="NAME,NAME…", help="of all classes, the background first")


def _add_prior(parser: argparse.ArgumentParser) -> None:
    organ = parser.add_mutually_exclusive_group()
    mm2 = "area of each class in a slice that shows it (default: the mean of the source's labels)"
    organ.add_argument("--organ_mm2", type=float, nargs="+", metavar="MM2", help=mm2)
    organ.add_argument("--organ_mm3", type=float, nargs="+", metavar="MM3", help="volume of each class")
    tags = "which classes a target slice shows (see preprocess.size_priors --tags)"
    parser.add_argument("--tags", metavar="CSV", help=tags)


def main() -> None:
    new_dataset(parse_args())


if __name__ == "__main__":
    run_program(main)
