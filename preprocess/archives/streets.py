"""Street pictures with labels, GTA5 or Cityscapes as published -> a set of pictures that the pipeline trains on.

    python -m preprocess.archives.streets --kind gta5 --root data/streets --dest data/gta5_source \\
        --size 1280 720 --val 500
    python -m preprocess.archives.streets --kind cityscapes --root data/streets --dest data/cityscapes_target \\
        --size 1024 512 --truth_size 2048 1024

Reads ROOT/GTA5/{images,labels}/NNNNN.png, or ROOT/leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and
ROOT/gtFine/{train,val}/<city>/*_gtFine_labelIds.png. Writes DEST/{train,val}/{IMG,GT}/<name>.png: colour pictures,
and the 19 classes that Cityscapes is scored on, 255 where none of them is. DEST/dataset.json says how the set was
made. DEST appears when it is whole, or not at all.

Sizes are width and height, as papers give them; the arrays in the files have the height first, in IMG and GT alike.
The names are NNNNN, which `--grp_regex '(\\d+)'` reads, or <city>_<sequence>_<frame>: `([a-z-]+)_(\\d+_\\d+)`.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from files.decoding import open_picture
from files.faults import Fault
from files.reading import sha256
from preprocess.new_set import refuse, refuse_existing, whole_folder, write_card
from processes.errors import UserError
from processes.pool import in_processes
from utils import ProgramParser, counted, listing, run_program

TOOL = "preprocess.streets 1"  # raised when the same pictures and settings give other files
CLASSES = (  # label id in the published files, name, and Cityscapes' colour; the place in the table is the class number
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "light", (250, 170, 30)),
    (20, "sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
IGNORE = 255
LAST_ID = 34  # the highest label id; 34 is GTA5's licence plate
TRAIN_IDS = np.full(LAST_ID + 1, IGNORE, np.uint8)
TRAIN_IDS[[label for label, _, _ in CLASSES]] = range(len(CLASSES))
PALETTE = [colour for _, _, colour in CLASSES]

SPLITS = ("train", "val")
KINDS = {  # globs of images and labels below the root; GTA5 has no split of its own
    "gta5": {"": ("GTA5/images/*.png", "GTA5/labels/*.png")},
    "cityscapes": {
        split: (f"leftImg8bit/{split}/*/*_leftImg8bit.png", f"gtFine/{split}/*/*_gtFine_labelIds.png")
        for split in SPLITS
    },
}
NAME_END = re.compile(r"(_leftImg8bit|_gtFine_labelIds)?(\.png)?$")


@dataclass(frozen=True)
class StreetSpec:
    """Everything that decides what a set looks like; the fields are the flags of the command line (see its help).

    Raises UserError for settings that contradict each other.
    """

    kind: str
    root: Path
    dest: Path
    size: tuple[int, int]
    truth_size: tuple[int, int] | None = None
    val: int = 0
    train_list: tuple[str, ...] = ()
    val_list: tuple[str, ...] = ()
    seed: int = 0
    phantom: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        splits_itself = "" not in KINDS[self.kind]
        checks = [
            (min(*self.size, *(self.truth_size or self.size)) > 0, "sizes are numbers from 1 upwards"),
            (self.val >= 0, "--val is a number of pictures"),
            (
                bool(self.val) + bool(self.val_list) == 1 or splits_itself,
                "say which pictures validate, with either --val N or --val_list",
            ),
            (not (self.val and splits_itself), f"--val N is not for {self.kind}, which has a val split"),
            (self.jobs > 0, "--jobs is at least 1"),
        ]
        wrong = [text for is_right, text in checks if not is_right]
        if wrong:
            raise UserError(f"Cannot write pictures to {self.dest}: {'; '.join(wrong)}.")

    def label_size(self, split: str) -> tuple[int, int]:
        """Width and height of the ground truth of a split: a network learns at the size of its images."""
        return self.truth_size if self.truth_size and split == "val" else self.size


def colourise(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """(..., 3) uint8 RGB of uint8 class numbers; what has no colour in the palette, like 255, is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[labels]


# ------------------------------------------------------------------------------------------- finding and splitting


@dataclass(frozen=True)
class Picture:
    """An image and its labels as published."""

    name: str
    split: str
    image: Path
    label: Path


def find_pictures(spec: StreetSpec) -> list[Picture]:
    """The pictures of the set by split and name.

    Raises UserError that lists every pattern without a file, image without labels and labels without image.
    """
    found: dict[str, dict[str, tuple[Path, Path]]] = {}
    faults: list[Fault] = []
    for split, patterns in KINDS[spec.kind].items():
        images, labels = (_by_name(spec.root, pattern) for pattern in patterns)
        empty = [pattern for pattern, files in zip(patterns, (images, labels), strict=True) if not files]
        faults += [("no file matches", str(spec.root / pattern)) for pattern in empty]
        if not empty:
            faults += [("has no labels", str(images[name])) for name in sorted(images.keys() - labels)]
            faults += [("labels without an image", str(labels[name])) for name in sorted(labels.keys() - images)]
        found[split] = {name: (images[name], labels[name]) for name in sorted(images.keys() & labels)}
    refuse(faults, spec.dest)
    home = split_pictures({split: found.get(split, found.get("", {})) for split in SPLITS}, spec)
    files = {name: pair for pairs in found.values() for name, pair in pairs.items()}
    return [Picture(name, split, *files[name]) for split in SPLITS for name in home[split]]


def _by_name(root: Path, pattern: str) -> dict[str, Path]:
    return {NAME_END.sub("", path.name): path for path in root.glob(pattern) if not path.name.startswith(".")}


def split_pictures(names: Mapping[str, Collection[str]], spec: StreetSpec) -> dict[str, list[str]]:
    """Split -> the names of its pictures in order. `names`: split -> those that may be in it.

    A list leaves the pictures that it names. --val N are drawn from those to train on, in an order that depends on
    seed and name alone, so that it is the same on every machine; what validates is not trained on. Raises UserError.
    """
    lists = {"train": spec.train_list, "val": spec.val_list}
    unknown = {split: sorted(set(lists[split]) - set(names[split])) for split in SPLITS}
    if any(unknown.values()):
        lost = "; ".join(f"--{split}_list: {listing(some, 40)}" for split, some in unknown.items() if some)
        raise UserError(f"The lists name pictures that are not in {spec.root}: {lost}.")
    chosen = {split: set(lists[split] or names[split]) for split in SPLITS}
    if spec.val:
        chosen["val"] = set(sorted(chosen["train"], key=partial(_draw, seed=spec.seed))[: spec.val])
    chosen["train"] -= chosen["val"]
    if not chosen["train"]:
        raise UserError(f"All {len(chosen['val'])} pictures of {spec.root} validate; none is left to train on.")
    return {split: sorted(some) for split, some in chosen.items()}


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


# ---------------------------------------------------------------------------------------------------- one picture


@dataclass
class ConversionResult:
    """What became of one picture: faults, the digest of both files, which classes are in its ground truth (K,)."""

    faults: list[Fault] = field(default_factory=list)
    digest: str = ""
    holds: np.ndarray | None = None


def convert(picture: Picture, spec: StreetSpec, folder: Path) -> ConversionResult:
    """Writes one picture and its ground truth below `folder`; a file at fault is named instead."""
    result = ConversionResult()
    image, labels = (_read(path, result) for path in (picture.image, picture.label))
    if image:
        image = image.convert("RGB").resize(spec.size, Image.Resampling.BICUBIC)
        _save(image, folder / picture.split / "IMG" / picture.name)
    if labels and (fault := _label_fault(np.asarray(labels))):
        result.faults.append((fault, str(picture.label)))
    elif labels:
        truth = Image.fromarray(TRAIN_IDS[np.asarray(labels)])
        truth = truth.resize(spec.label_size(picture.split), Image.Resampling.NEAREST)
        _save(truth, folder / picture.split / "GT" / picture.name)
        result.holds = np.bincount(np.ravel(truth), minlength=IGNORE + 1)[: len(CLASSES)] > 0
    return result


def _read(path: Path, result: ConversionResult) -> Image.Image | None:
    """The picture as stored: labels are the numbers in the file, whatever palette colours them for the eye."""
    try:
        result.digest += sha256(path)
        with open_picture(path.read_bytes()) as picture:
            picture.load()
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        result.faults.append(("cannot be read (fetch it again)", f"{path} ({error})"))
        return None
    return picture


def _label_fault(ids: np.ndarray) -> str:
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        return "is no picture of label ids, one number a pixel (is it coloured for the eye?)"
    if ids.max() > LAST_ID:
        return f"holds label ids above {LAST_ID} (are these train ids, or instances?)"
    return ""


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path.with_name(path.name + ".png"), compress_level=1)


# -------------------------------------------------------------------------------------------------- the whole set


def convert_set(spec: StreetSpec) -> dict[str, Any]:
    """Writes the set to spec.dest and returns the content of its dataset.json.

    Raises UserError if spec.dest is there already, and one that lists every file at fault; then nothing is left.
    """
    refuse_existing(spec.dest, "--dest")
    pictures = find_pictures(spec)
    with whole_folder(spec.dest) as made:
        for split in {picture.split for picture in pictures}:
            for role in ("IMG", "GT"):
                (made / split / role).mkdir(parents=True)
        work = partial(convert, spec=spec, folder=made)
        results = list(
            tqdm(in_processes(work, pictures, spec.jobs), spec.kind, len(pictures), unit="picture", disable=None)
        )
        refuse([fault for result in results for fault in result.faults], spec.dest)
        card = _card(spec, pictures, results)
        write_card(made, card)
    return card


def _card(spec: StreetSpec, pictures: Sequence[Picture], results: Sequence[ConversionResult]) -> dict[str, Any]:
    """The content of dataset.json."""
    where = np.array([picture.split for picture in pictures])
    holds = np.stack([result.holds for result in results])
    listed = "".join(f"{p.name} {r.digest}\n" for p, r in zip(pictures, results, strict=True))
    return {
        "name": spec.dest.name,
        "modality": "photographs",
        "site": spec.kind,
        "phantom": spec.phantom,
        "n_class": len(CLASSES),
        "class_names": [name for _, name, _ in CLASSES],
        "palette": PALETTE,
        "ignore": IGNORE,
        "label_map": {str(label): number for number, (label, _, _) in enumerate(CLASSES)},
        "images": ["IMG"],
        "labels": "GT",
        "size": spec.size,
        "truth_size": {split: spec.label_size(split) for split in SPLITS},
        "split_unit": "patient",  # a picture of GTA5, a city of Cityscapes
        "split_rule": {
            "train": "list" if spec.train_list else "all others" if spec.kind == "gta5" else "official",
            "val": f"{spec.val} drawn" if spec.val else "list" if spec.val_list else "official",
            "seed": spec.seed,
        },
        "counts": {
            split: {"images": int((where == split).sum()), "images_with_class": holds[where == split].sum(0).tolist()}
            for split in SPLITS
        },
        "sources": {"files": 2 * len(pictures), "sha256": hashlib.sha256(listed.encode()).hexdigest()},
        "tool": TOOL,
    }


# ------------------------------------------------------------------------------------------------ command line


def describe(card: Mapping[str, Any]) -> str:
    """A line on a set for the screen: pictures, size and the classes that training does not see."""
    counts = ", ".join(f"{split} {counted(count['images'], 'picture')}" for split, count in card["counts"].items())
    text = f"{card['name']}: {counts}; {card['size'][0]}x{card['size'][1]}"
    seen = card["counts"]["train"]["images_with_class"]
    lost = [name for name, count in zip(card["class_names"], seen, strict=True) if not count]
    return f"{text}; no {listing(lost)} to train on" if lost else text


def _names(text: str) -> tuple[str, ...]:
    """The pictures that a file names, the first word of each line, with or without folder and ending."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file '{text}'")
    words = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not words:
        raise argparse.ArgumentTypeError(f"'{text}' names no picture")
    return tuple(NAME_END.sub("", Path(word).name) for word in words)


def read_spec(arguments: Sequence[str] | None = None) -> StreetSpec:
    """The settings on the command line. Raises UserError, or exits like argparse."""
    parser = ProgramParser("python -m preprocess.archives.streets", description=__doc__)
    add, pair = parser.add_argument, {"type": int, "nargs": 2, "metavar": ("WIDTH", "HEIGHT")}
    add("--kind", choices=sorted(KINDS), required=True, help="layout of the published files")
    add("--root", type=Path, required=True, help="folder that holds GTA5, or leftImg8bit and gtFine")
    add("--dest", type=Path, required=True, help="folder of the new set; must not exist")
    add("--size", **pair, required=True, help="of images (bicubic) and ground truth (nearest)")
    add("--truth_size", **pair, help="of the val split's ground truth, if it is another")
    add("--val", type=int, default=0, metavar="N", help="pictures held out, drawn with --seed; for gta5")
    for split in SPLITS:
        names = f"take only the pictures that this file names into {split}, one a line"
        add(f"--{split}_list", type=_names, default=(), metavar="FILE", help=names)
    add("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    add("--phantom", metavar="TEXT", help="the pictures are made up: dataset.json says so in these words")
    add("--jobs", type=int, default=os.cpu_count(), help="pictures at a time (default %(default)s)")
    args = vars(parser.parse_args(arguments))
    args.pop("debug")
    sizes = {key: args[key] and tuple(args[key]) for key in ("size", "truth_size")}
    return StreetSpec(**args | sizes)


def main() -> None:
    print(describe(convert_set(read_spec())))


if __name__ == "__main__":
    run_program(main)
