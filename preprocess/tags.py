"""Image-level tags: which classes a slice shows, told by a person who looks at the images.

    python -m preprocess.tags page --data data/X --folder IMG --classes prostate --out tags.html
    python -m preprocess.tags template --data data/X --folder IMG --classes prostate --out tags.csv
    python -m preprocess.tags check --data data/X --folder GT --tags tags.csv --n_class 2

A page is one file that any browser opens, without a connection: all slices of a patient in a row; click the first and
the last slice that shows the organ; it downloads the csv. A template is the same csv for a spreadsheet, with one column
a class: x or 1 where the slice shows it, nothing or 0 where it does not. `python -m preprocess.size_priors make --tags`
reads both. Nothing of this looks at ground truth, but `check`.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import base64
import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.files import SPLITS, image_fault
from datasets.size_table import ID_COLUMN, must_fit, read_size_table
from files.decoding import read_slice
from files.foreign import read_text
from files.listing import stem
from preprocess.new_set import refuse_overwriting
from preprocess.priors.measuring import find_slices, measure_slices
from processes.errors import UserError
from processes.quoting import csv_text, for_html, for_script, from_cell
from utils import ProgramParser, about_faulty, atomic_write, counted, doubled, listing, run_program

YES, NO = ("x", "1", "1.0", "yes", "true"), ("", "0", "0.0", "no", "false")
THUMB = 160  # pixels of a slice on the page, at most
PAGE = Path(__file__).with_name("tags_page.html")

# ------------------------------------------------------------------------------------------------------ reading


def read_tags(path: Path, names: Sequence[str], n_class: int) -> np.ndarray:
    """(N, K-1) bool: whether slice n shows class k+1.

    The csv has val_ids, and "tags" with lists such as [1, 0], background first, or one column for each class but the
    background. Raises UserError that lists every slice without a row, or with two that differ, and every cell that is
    neither yes nor no. It also lists every patient without any mark in a template; write a 0 into one row if that is
    meant.
    """
    rows = _read_rows(path)
    if rows and "tags" in rows[0]:
        table = read_size_table(path, "tags", n_class)
        table.require(names)
        return np.stack([table[name] for name in names])[:, 1:] > 0
    columns = [name for name in (rows[0] if rows else ()) if name != ID_COLUMN]
    if not rows or ID_COLUMN not in rows[0] or len(columns) != n_class - 1:
        raise UserError(
            f"{path}: expected a column {ID_COLUMN} and one for each of the {n_class - 1} classes but the background "
            f"(or one of lists, 'tags'); it has {listing(rows[0]) if rows else 'no rows'}."
        )
    cells: dict[str, list[str]] = {}
    doubled = set()
    for row in rows:
        name, marks = stem(row[ID_COLUMN]), [row[column].strip().lower() for column in columns]
        if cells.setdefault(name, marks) != marks:
            doubled.add(name)
    if doubled:
        raise UserError(
            f"{path} has rows that contradict each other, of {listing(sorted(doubled), 20)}; keep one each."
        )
    _must_be_complete(path, cells, names, columns)
    return np.array([[cell in YES for cell in cells[stem(name)]] for name in names])


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a csv of tags ({error}).") from error
    every = io.StringIO(text, newline="").readlines()
    lines = [line for line in every if line.strip() and not line.startswith("#")]
    separator = max(";,\t", key=lines[0].count) if lines else ","
    rows = csv.DictReader(lines, delimiter=separator)
    return [{str(name): from_cell(str(cell or "")) for name, cell in row.items()} for row in rows]


def _must_be_complete(path: Path, cells: dict[str, list[str]], names: Sequence[str], columns: Sequence[str]) -> None:
    lost = [name for name in names if stem(name) not in cells]
    odd = [
        f"{name} ({column}: '{cell}')"
        for name, row in cells.items()
        for column, cell in zip(columns, row, strict=True)
        if cell not in YES + NO
    ]
    marked = {patient_of(name) for name, row in cells.items() if any(row)}
    bare = sorted({patient_of(stem(name)) for name in names} - marked - {patient_of(stem(name)) for name in lost})
    faults = [
        f"{what}: {listing(which, 20)}"
        for what, which in (
            ("slices without a row", lost),
            ("cells that are neither x, 1, yes nor 0, no or empty", odd),
            ("patients without a mark (0 in one row if they show nothing)", bare),
        )
        if which
    ]
    if faults:
        raise UserError(f"{path} does not tag every slice; {'; '.join(faults)}.")


def patient_of(name: str) -> str:
    """The name of a slice without its number, which _ or - sets apart."""
    return re.sub(r"[_-]\d+$", "", name)


def number_of(name: str) -> int:
    """The number at the end of a slice's name, -1 without one."""
    match = re.search(r"[_-](\d+)$", name)
    return int(match[1]) if match else -1


# ------------------------------------------------------------------------------------------------------ making


def patients(data: Path, folder: str) -> dict[str, list[Path]]:
    """Patient -> the files of the slices, in their order. Raises UserError."""
    found: dict[str, list[Path]] = {}
    for path in find_slices(data, folder, SPLITS):
        found.setdefault(patient_of(stem(path.name)), []).append(path)
    return {name: sorted(found[name], key=lambda path: number_of(stem(path.name))) for name in sorted(found)}


def template(args: argparse.Namespace) -> None:
    """Writes an empty csv. Raises UserError if it is there already."""
    refuse_overwriting(args.out)
    names = [stem(path.name) for paths in patients(args.data, args.folder).values() for path in paths]
    must_fit(args.out, names)
    with atomic_write(args.out, "w") as file:
        file.write(csv_text([[ID_COLUMN, *args.classes], *([name, *[""] * len(args.classes)] for name in names)]))
    print(f"{args.out}: {counted(len(names), 'slice')}; write an x where a slice shows {listing(args.classes)}.")


def page(args: argparse.Namespace) -> None:
    """Writes the html page. Raises UserError if it is there already, and for a slice that cannot be read."""
    refuse_overwriting(args.out)
    found = patients(args.data, args.folder)
    must_fit(args.out, [stem(path.name) for paths in found.values() for path in paths])
    slices, faults = [], []
    for name, paths in found.items():
        images, more = read_images(paths)
        faults += more
        if not faults:
            names = [stem(path.name) for path in paths]
            slices.append({"patient": name, "slices": names, "images": thumbnails(images)})
    if faults:
        raise UserError(f"{args.data}, {args.folder}: {about_faulty(faults)}")
    facts = {"set": args.data.name, "classes": args.classes, "patients": slices}
    written = {"TITLE": for_html(args.data.name), "DATA": for_script(facts)}
    text = re.sub("__(TITLE|DATA)__", lambda match: written[match[1]], PAGE.read_text(encoding="utf-8"))
    with atomic_write(args.out, "w") as file:
        file.write(text)
    count = sum(map(len, found.values()))
    shown = f"{counted(count, 'slice')} of {counted(len(found), 'patient')}"
    print(f"{args.out}: {shown}; open it in a browser, and save the csv from there.")


def read_images(paths: Sequence[Path]) -> tuple[list[np.ndarray], list[str]]:
    """(W, H) or (C, W, H) each, and the faults of those that cannot be used."""
    images, faults = [], []
    for path in paths:
        try:
            image = read_slice(path)
        except UserError as error:
            faults.append(str(error))
            continue
        fault = image_fault(image)
        faults += [f"{path} {fault}"] if fault else []
        images.append(image)
    return images, faults


def thumbnails(images: Sequence[np.ndarray]) -> list[str]:
    """The slices of a patient as data addresses of png, from black to white between the same two grey levels."""
    planes = [(image if image.ndim == 2 else image[0]).astype(np.float32) for image in images]
    low, high = np.percentile(np.concatenate([plane.ravel() for plane in planes]), (0.5, 99.5))
    return [_address(np.clip((plane - low) / max(high - low, 1e-6), 0, 1)) for plane in planes]


def _address(plane: np.ndarray) -> str:
    picture = Image.fromarray((plane.T * 255).astype(np.uint8))  # W runs to the right
    factor = THUMB / max(picture.size)
    if factor < 1:
        picture = picture.resize([max(1, round(n * factor)) for n in picture.size], Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ----------------------------------------------------------------------------------------------------- checking


def check(args: argparse.Namespace) -> None:
    """Prints how often the tags agree with the ground truth, class by class."""
    slices = measure_slices(args.data, args.folder, args.n_class)
    tags, shown = read_tags(args.tags, slices.names, args.n_class), slices.counts[:, 1:] > 0
    print(f"{args.tags} against {args.data}/*/{args.folder}, {counted(len(slices.names), 'slice')}")
    print("class  agree    tagged, not there  there, not tagged")
    for k in range(args.n_class - 1):
        more, fewer = (tags[:, k] & ~shown[:, k]), (shown[:, k] & ~tags[:, k])
        agree = 1 - (more | fewer).mean()
        print(f"{k + 1:>5}  {agree:>6.1%}  {more.sum():>18}  {fewer.sum():>17}")
    wrong = [name for name, bad in zip(slices.names, (tags != shown).any(1), strict=True) if bad]
    if wrong:
        print(f"differ: {listing(wrong, 40)}")


# ------------------------------------------------------------------------------------------------- command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ProgramParser("python -m preprocess.tags", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], words: str, folder: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=words, description=words)
        sub.set_defaults(run=run)
        sub.add_argument("--data", type=Path, required=True, help="the target set, with its splits inside")
        sub.add_argument("--folder", default=folder, help="in each split (%(default)s)")
        return sub

    for run, words in ((page, "write a html page to tag the slices on"), (template, "write a csv to fill in")):
        sub = command(run, words, "IMG")
        sub.add_argument(
            "--classes", nargs="+", required=True, help="names of the classes but the background, in order"
        )
        sub.add_argument("--out", type=Path, required=True, help="must not exist")
    sub = command(check, "compare tags with ground truth", "GT")
    sub.add_argument("--tags", type=Path, required=True)
    sub.add_argument("--n_class", type=int, required=True, help="K, the background included")
    args = parser.parse_args(argv)
    if twice := doubled(getattr(args, "classes", ())):
        raise UserError(
            f"--classes names each class once, in their order; {listing(twice)} stands there several times."
        )
    return args


def main() -> None:
    args = parse_args()
    args.run(args)


if __name__ == "__main__":
    run_program(main)
