"""Folders of 2D pictures -> a set that the pipeline trains on: grey, of one size or in tiles, split by patients.

    python -m preprocess.picture_set --dest data/nuclei_source --image 'old/images/*.png' --label 'old/masks/*.png' \\
        --patient '^(.+)[.]' --label_map 255:1 --size 256 256 --val 20

Writes DEST/{train,val[,test]}/{IMG,GT}/<picture>_<tile>.png, DEST/dataset.json (how the set was made) and, where the
size of a pixel is given (--spacing), DEST/manifest.csv; without it all distances are in pixels. Each picture is a case
of its own. DEST appears when it is whole, or not at all.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.trained_on import grey_levels
from files.faults import Fault, VolumeFault
from files.grey_levels import Normalisation, count_values
from files.grids import Grid
from files.labels import classes_of
from files.pairing import Case, compile_pattern, pair, read_patients
from files.pictures import read_picture
from preprocess.new_set import refuse, refuse_existing, whole_folder, write_card
from preprocess.slice_volumes import read_names
from preprocess.slicing.case import SlicingResult, Task, image_planes, save_png
from preprocess.slicing.frames import Frame
from preprocess.slicing.spec import IGNORED, SliceSpec
from preprocess.slicing.split import assign_splits, slice_splits
from preprocess.slicing.tables import COLUMNS, describe, make_card
from processes.pool import in_processes
from processes.quoting import csv_text
from utils import ProgramParser, atomic_write, run_program, sha256_of

TOOL = "preprocess.picture_set 1"  # raised when the same pictures and settings give other files
IMAGE = "IMG"
NEAR = 0.9  # of the size: a picture that fills so much of it along one side is padded, not enlarged
OF_VOLUMES = (  # what the card of a set of slices tells besides, for volumes to be cut alike
    *("n4", "channel", "axis", "orient", "stored_as", "guessed_directions", "centre", "resized", "spacing", "cut"),
    *("multiple", "placed_labels", "distance_maps"),
)


@dataclass(frozen=True)
class PictureSpec(SliceSpec):
    """Everything that decides what a set of pictures looks like. Sizes are along (W, H), which are rows and columns.

    size: every picture is scaled to fit, and padded; tile: instead, every picture is cut into tiles of this size
    pixel_mm: the length of a pixel along (W, H), if it is known
    Raises UserError for settings that contradict each other.
    """

    tile: tuple[int, int] | None = None
    pixel_mm: tuple[float, float] | None = None

    def _checks_of_slices(self) -> list[tuple[bool, str]]:
        lengths = self.pixel_mm or (1,)
        return [
            *super()._checks_of_slices(),
            (bool(self.size) != bool(self.tile), "say how large they are, with either --size or --tile"),
            (min(self.tile or (1,)) > 0, "--tile is numbers from 1 upwards"),
            (all(0 < mm < math.inf for mm in lengths), "--spacing is the size of a pixel in mm, above 0"),
            (self.class_count() or not self.label, "--label needs the number of classes: --n_class K or --label_map"),
        ]

    def frames(self, grid: Grid) -> list[Frame]:
        """The parts of a picture that become slices, row by row: the whole of it, or its tiles."""
        shape = grid.shape[:2]
        if not self.tile:
            ratio = min(want / have for want, have in zip(self.size, shape, strict=True))
            ratio = 1 if 1 <= ratio <= 1 / NEAR else ratio
            fitted = (min(want, max(1, round(ratio * n))) for want, n in zip(self.size, shape, strict=True))
            return [Frame.centred(shape, tuple(fitted), self.size, None)]
        rows, columns = (list(_starts(n, side)) for n, side in zip(shape, self.tile, strict=True))
        return [Frame(shape, shape, self.tile, (row, column)) for row in rows for column in columns]

    def frame(self, grid: Grid) -> Frame:
        """Of the first slice; all have its size and its scale."""
        return self.frames(grid)[0]

    def grid_of(self, shape: tuple[int, int]) -> Grid:
        """A picture as a volume of one slice."""
        return Grid((*shape, 1), np.diag([*(self.pixel_mm or (1.0, 1.0)), 1.0, 1.0]))


def _starts(length: int, side: int) -> Iterator[int]:
    """Where the tiles along an axis begin; what they have too much lies evenly on both sides of the picture."""
    count = -(-length // side)
    first = (length - count * side) // 2
    return (first + number * side for number in range(count))


# ---------------------------------------------------------------------------------------------------- one picture


@dataclass
class PictureResult(SlicingResult):
    """What became of one picture; `grid` is None where its image cannot be read."""

    grid: Grid | None = None


def cut_picture(case: Case, home: str, spec: PictureSpec, folder: Path | None) -> PictureResult:
    """Checks a picture and its mask, and writes their slices below `folder` (None: only checks).

    home: its split
    """
    result = PictureResult()
    try:
        pixels = _read(case, IMAGE, result)
        result.grid = spec.grid_of(pixels.shape)
        result.levels[IMAGE] = grey_levels(pixels)
        whole = Frame(pixels.shape, pixels.shape, pixels.shape)
        must_have_greys(pixels, case.paths[IMAGE])
        if spec.normalisation.fit(pixels[None]).width == 0:
            what = "has too few bright pixels for these percentiles (take --normalise minmax, or wider --percentiles)"
            raise VolumeFault(what, str(case.paths[IMAGE]))
        (plane,) = image_planes(pixels[None], whole, case.paths[IMAGE], spec)
        planes = {IMAGE: [frame.take(plane) for frame in spec.frames(result.grid)]}
        if spec.label:
            planes[spec.label_folder] = _mask_planes(case, spec, result)
    except VolumeFault as error:
        result.faults.append(error.fault)
        return result
    for name, slices in planes.items() if folder else ():
        for index, pixels in enumerate(slices):
            save_png(folder / home / name / f"{case.patient}_{index}.png", pixels, spec.bits)
    return result


def _read(case: Case, role: str, result: PictureResult, is_label: bool = False) -> np.ndarray:
    """The pixels of one file, which is noted as a source. Raises VolumeFault."""
    path = case.paths[role]
    pixels = read_picture(path, is_label)
    shown = Path(os.path.relpath(path)).as_posix()
    result.sources.append({"patient": case.patient, "role": role, "path": shown, "sha256": sha256_of(path)})
    return pixels


def _mask_planes(case: Case, spec: PictureSpec, result: PictureResult) -> list[np.ndarray]:
    """The class numbers of each slice, which are counted. Raises VolumeFault."""
    path = case.paths[spec.label_folder]
    labels = _read(case, spec.label_folder, result, is_label=True)
    must_be_alike(labels.shape, result.grid.shape[:2], path)
    (classes,) = classes_of(labels[None], spec.mapping(), path)
    highest = int(classes.max(where=classes != IGNORED, initial=0) if spec.ignore is not None else classes.max())
    if highest >= spec.class_count():
        what = f"has classes outside 0..{spec.class_count() - 1} (raise --n_class, or give --label_map)"
        raise VolumeFault(what, f"{path} (up to {highest})")
    planes = [frame.take(classes) for frame in spec.frames(result.grid)]
    result.pixels = np.stack([count_values(plane, 0, 256) for plane in planes]).astype(np.int64)
    return planes


def must_have_greys(pixels: np.ndarray, path: Path) -> None:
    """Raises VolumeFault for a picture (W, H) of a single grey level."""
    if pixels.min() == pixels.max():
        raise VolumeFault("is a single grey level throughout (leave it out)", str(path))


def find_twins(digests: Mapping[Path, str]) -> list[Fault]:
    """Files with the same content: one picture under two names would train and validate.

    digests: of each file
    """
    groups: dict[str, list[str]] = {}
    for path, digest in sorted(digests.items()):
        groups.setdefault(digest, []).append(str(path))
    what = "pictures that are the same file under several names (leave one of them, and its mask)"
    return [(what, " and ".join(names)) for names in groups.values() if len(names) > 1]


def must_be_alike(mask: tuple[int, ...], image: tuple[int, ...], path: Path) -> None:
    """Raises VolumeFault for a mask (rows, columns) of another size than its image."""
    if mask != image:
        what = "is of another size than its image (is it the mask of that image? make both alike)"
        raise VolumeFault(what, f"{path} ({mask[1]} x {mask[0]}, its image {image[1]} x {image[0]})")


# ------------------------------------------------------------------------------------------------- the whole set


def make_picture_set(spec: PictureSpec) -> dict[str, Any]:
    """Writes the set to spec.dest and returns the content of its dataset.json.

    Raises UserError if spec.dest is there already, and one that lists every picture at fault; then nothing is left.
    """
    refuse_existing(spec.dest, "--dest")
    patient = compile_pattern("--patient", spec.patient)
    spec.mapping()  # a slip in --label_map is told before any picture is read
    globs = {role: glob for roles in spec.folders().values() for role, glob in roles.items()}
    cases, faults = pair(globs, patient, pictures=True)
    whole = [case for case in cases if len(case.paths) == len(globs)]
    home = {} if faults else assign_splits(cases, spec)
    with whole_folder(spec.dest) as made:
        for split in set(home.values()):
            for name in spec.folders():
                (made / split / name).mkdir(parents=True)
        work = partial(_cut, home=home, spec=spec, folder=None if faults else made)
        results = list(tqdm(in_processes(work, whole, spec.jobs), "pictures", len(whole), unit="picture", disable=None))
        images = [source for result in results for source in result.sources if source["role"] == IMAGE]
        faults += find_twins({Path(source["path"]): source["sha256"] for source in images})
        refuse(faults + [fault for result in results for fault in result.faults], spec.dest)
        tasks = [_task(case, result.grid, home, spec) for case, result in zip(whole, results, strict=True)]
        card = _card(spec, tasks, results)
        if spec.pixel_mm:
            _write_manifest(made / "manifest.csv", tasks, results, spec)
        write_card(made, card)
    return card


def _cut(case: Case, home: dict[str, str], spec: PictureSpec, folder: Path | None) -> PictureResult:
    return cut_picture(case, home.get(case.patient, ""), spec, folder)


def _task(case: Case, grid: Grid, home: dict[str, str], spec: PictureSpec) -> Task:
    return Task(case, grid, slice_splits(case, grid, home, spec) * len(spec.frames(grid)))


def _card(spec: PictureSpec, tasks: Sequence[Task], results: Sequence[PictureResult]) -> dict[str, Any]:
    """The content of dataset.json: that of slices, without what holds for volumes alone."""
    card = {key: value for key, value in make_card(spec, tasks, results).items() if key not in OF_VOLUMES}
    if not spec.pixel_mm:
        del card["geometry"]  # nobody knows a length
    shown = {"size": spec.size, "tile": spec.tile, "pixel_mm": spec.pixel_mm}
    pictures = {name: pair and pair[::-1] for name, pair in shown.items()}  # width and height
    return {**card, "size": card["size"][::-1], "pictures": pictures, "tool": TOOL}


def _write_manifest(path: Path, tasks: Sequence[Task], results: Sequence[PictureResult], spec: PictureSpec) -> None:
    """The rows of `slicing.tables.COLUMNS`: of each slice its picture, its part of it, and its pixels in mm."""
    with atomic_write(path, "w") as file:
        file.write(csv_text([COLUMNS]))
        for task, result in zip(tasks, results, strict=True):
            rows = _rows(task, result.sources[0], spec)
            file.write(csv_text([row[name] for name in COLUMNS] for row in rows))


def _rows(task: Task, source: dict[str, str], spec: PictureSpec) -> Iterator[dict[str, Any]]:
    same = {"patient": task.case.patient, "axis": spec.axis, "stored": "", **source}
    same |= dict(zip(("spacing_slice", "spacing_w", "spacing_h"), spec.spacing_of(task.grid), strict=True))
    same |= {f"shape{axis}": n for axis, n in enumerate(task.grid.shape)}
    same["affine"] = " ".join(repr(float(number)) for number in task.grid.affine.ravel())
    same["source"] = source["path"]
    for index, (split, frame) in enumerate(zip(task.splits, spec.frames(task.grid), strict=True)):
        place = dict(zip(("width", "height", "offset_w", "offset_h"), (*frame.size, *frame.offset), strict=True))
        yield {"slice": f"{task.case.patient}_{index}", "split": split, "index": index, **same, **place}


# ------------------------------------------------------------------------------------------------ command line


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser("python -m preprocess.picture_set", description=__doc__)
    _add_files(parser.add_argument_group("pictures").add_argument)
    _add_labels(parser.add_argument_group("grey levels and masks").add_argument)
    _add_split(parser.add_argument_group("split").add_argument)
    add = parser.add_argument_group("other").add_argument
    add("--site", default="", help="written to dataset.json")
    add("--modality", default="", help="written to dataset.json")
    add("--phantom", metavar="TEXT", help="the pictures are made up: dataset.json says so in these words")
    add("--jobs", type=int, default=os.cpu_count(), help="pictures at a time (default %(default)s)")
    return parser


def _add_files(add: Callable[..., Any]) -> None:
    add("--dest", type=Path, required=True, help="folder of the new set; must not exist")
    add("--image", metavar="GLOB", required=True, help="pictures: PNG, JPEG, TIFF, BMP (in quotes)")
    add("--label", metavar="GLOB", help="their masks; without them the set has no ground truth")
    patient = "its groups, joined, are the picture's id; applied to the file name, or to the path if it holds a '/'"
    add("--patient", required=True, metavar="REGEX", help=patient)
    pair_of = {"nargs": 2, "metavar": ("WIDTH", "HEIGHT")}
    add("--size", type=int, **pair_of, help="scale every picture to fit this size, and pad it")
    add("--tile", type=int, **pair_of, help="instead: cut every picture into tiles of this size, the outer ones padded")
    add("--spacing", type=float, **pair_of, help="of a pixel as stored, in mm; without it distances are in pixels")


def _add_labels(add: Callable[..., Any]) -> None:
    kind = "of each picture: to 0..1 by its extremes or by percentiles, which clip (default %(default)s)"
    add("--normalise", choices=("percentile", "minmax"), default="percentile", help=kind)
    percentiles = "for --normalise percentile (default 1 99)"
    add("--percentiles", type=float, nargs=2, default=(1.0, 99.0), metavar=("LOW", "HIGH"), help=percentiles)
    mapping = "label:class pairs, as 255:1; without it labels must be 0..K-1"
    add("--label_map", metavar="MAP", help=mapping)
    add("--others", type=int, metavar="CLASS", help="of labels that --label_map leaves out; without it an error")
    add("--n_class", type=int, metavar="K", help="number of classes, background included")
    add("--ignore", type=int, metavar="LABEL", help="of pixels whose class nobody knows: 255 in the slices")
    names = "of all classes, the background first"
    add("--class_names", type=read_names, default=(), metavar="NAME,NAME…", help=names)


def _add_split(add: Callable[..., Any]) -> None:
    for name in ("val", "test"):
        add(f"--{name}", type=int, default=0, metavar="N", help=f"number of pictures in {name}, drawn with --seed")
        names = f"pictures in {name}: a,b,c, or a file with their names (UTF-8)"
        add(f"--{name}_list", type=read_patients, default=(), metavar="LIST", help=names)
    add("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    group = "pictures stay in one split if its groups read the same in their names (several pictures of one patient)"
    add("--group", metavar="REGEX", help=group)


def read_spec(arguments: Sequence[str] | None = None) -> PictureSpec:
    """The settings on the command line. Raises UserError, or exits like argparse."""
    args = vars(_parser().parse_args(arguments))
    args.pop("debug")
    args["images"] = {IMAGE: args.pop("image")}
    kind, percentiles = args.pop("normalise"), tuple(args.pop("percentiles"))
    args["normalisation"] = (
        Normalisation(kind, percentiles=percentiles) if kind == "percentile" else Normalisation(kind)
    )
    sizes = {"size": args.pop("size"), "tile": args.pop("tile"), "pixel_mm": args.pop("spacing")}
    return PictureSpec(**{name: pair and tuple(pair[::-1]) for name, pair in sizes.items()}, **args)


def main() -> None:
    print(describe(make_picture_set(read_spec())))


if __name__ == "__main__":
    run_program(main)
