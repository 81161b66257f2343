"""Size priors: makes sizes/<set>.csv, says how far a prior is from the truth, scales priors.

    python -m preprocess.size_priors make --data data/X --out sizes/X.csv --n_class 2 --constant 8000
    python -m preprocess.size_priors check --sizes sizes/X.csv --column dumbpredwtags
    python -m preprocess.size_priors scale --sizes sizes/X.csv --column dumbpredwtags --factors 0.5 2

One size a class is estimated, from constants ("anatomical knowledge") or from the source's labels. With tags a slice
gets the sizes of the classes that it shows, without tags every slice gets all of them; the background is the rest of
the slice (Bateson et al. 2020 and 2022). Of a set of volumes (preprocess.volume_set) all of this is by volume and in
voxels. sizes/README.md lists the columns.
"""

import argparse
import csv
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataloader import SPLITS, SUFFIXES, read_card, read_slice, stem
from size_table import ORACLE, TRUE_SIZES, SizeTable, read_size_table, write_size_table
from utils import UserError, listing, run_program

WITH_TAGS, WITHOUT_TAGS = "dumbpredwtags", "dumbprednotags"
SPACINGS = ("spacing_slice", "spacing_w", "spacing_h")
EPS = 1e-10  # in the logarithms, as in the losses


# ------------------------------------------------------------------------------------------------ the slices


@dataclass(frozen=True)
class Slices:
    """The slices of some splits of a set: names (N), pixels of the whole slice (N,), pixels per class (N,K) or None."""

    root: Path
    names: list[str]
    area: np.ndarray
    counts: np.ndarray | None
    spacing: np.ndarray | None  # (N, 2) mm, of volumes (N, 3)
    axes: int = 2  # 3 of volumes

    def pixel_mm(self) -> np.ndarray:
        """(N,) mm² of a pixel, or mm³ of a voxel. Raises UserError without a manifest."""
        if self.spacing is None:
            raise UserError(
                f"Sizes in mm need the pixel spacing, and there is no {self.root / 'manifest.csv'}: slice the volumes "
                "with the project's slicer, or give the sizes in pixels (--constant)."
            )
        return self.spacing.prod(axis=1)


def measure_slices(root: Path, folder: str, n_class: int | None, splits: Sequence[str] = SPLITS) -> Slices:
    """Counts the pixels of each class in every label of the splits; `n_class` None: images, measured only in area.

    Raises UserError that lists the offenders: no such folder, a slice in two splits, an unreadable file, a label
    outside 0..K-1.
    """
    paths, axes = _find_files(root, folder, splits), 3 if read_card(root).get("volumetric") else 2

    def measure(path: Path) -> tuple[int, np.ndarray | None] | str:
        try:
            pixels = read_slice(path)
            return int(np.prod(pixels.shape[-axes:])), None if n_class is None else _count(pixels, n_class, axes)
        except UserError as error:
            return str(error)
        except ValueError as error:
            return f"{path} {error}"

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(measure, paths), "sizes", len(paths), disable=None, unit="slice"))
    faults = [fault for fault in found if isinstance(fault, str)]
    if faults:
        raise UserError(f"{root}: {len(faults)} faulty files in {folder}: {listing(faults, 8)}")
    names = [stem(path.name) for path in paths]
    area = np.array([pixels for pixels, _ in found])
    counts = None if n_class is None else np.stack([sizes for _, sizes in found])
    return Slices(root, names, area, counts, read_spacing(root, names, axes), axes)


def _find_files(root: Path, folder: str, splits: Sequence[str]) -> list[Path]:
    folders = [root / split / folder for split in splits]
    lost = [place for place in folders if place.parent.is_dir() and not place.is_dir()]
    if lost:
        raise UserError(
            f"Every split needs its {folder} folder; there is no {listing(lost)}. Mend --data or --folder; where the "
            "set has no labels, give its images: --folder IMG --unlabelled."
        )
    paths = [path for place in folders if place.is_dir() for path in sorted(place.iterdir())]
    paths = [path for path in paths if path.name.endswith(SUFFIXES) and not path.name.startswith(".")]
    if not paths:
        raise UserError(
            f"There is no slice ({', '.join(SUFFIXES)}) in {listing(folders)}. Mend --data and --folder; where the "
            "set has no labels, give its images: --folder IMG --unlabelled."
        )
    home: dict[str, list[Path]] = {}
    for path in paths:
        home.setdefault(stem(path.name), []).append(path)
    twice = [f"{same[0]} and {same[1]}" for same in home.values() if len(same) > 1]
    if twice:
        raise UserError(f"{len(twice)} slices are there twice, the csv knows them by name alone: {listing(twice, 5)}.")
    return paths


def _count(label: np.ndarray, n_class: int, axes: int = 2) -> np.ndarray:
    """(W,H) or (D,W,H) class numbers -> (K,) pixels. Raises ValueError in words that follow the file's name."""
    if label.ndim != axes:
        raise ValueError(f"has shape {label.shape}, not the {'(D, W, H)' if axes == 3 else '(W, H)'} of a label map")
    values, counts = np.unique(label, return_counts=True)
    outside = [f"{value:g}" for value in values if value not in range(n_class)]
    if outside:
        raise ValueError(f"holds the labels {listing(outside)}, outside 0..{n_class - 1} (--n_class {n_class})")
    sizes = np.zeros(n_class, np.int64)
    sizes[values.astype(np.int64)] = counts
    return sizes


def read_spacing(root: Path, names: Sequence[str], axes: int = 2) -> np.ndarray | None:
    """(N, axes) mm from manifest.csv: spacing_w, spacing_h, and of volumes spacing_slice; None where there is none."""
    path = root / "manifest.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            name, columns = ("name", SPACINGS) if axes == 3 else ("slice", SPACINGS[1:])
            rows = {stem(row[name]): [float(row[column]) for column in columns] for row in csv.DictReader(file)}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: expected numbers in {' and '.join(columns)} ({error!r}).") from error
    lost = [name for name in names if name not in rows or not all(0 < mm < np.inf for mm in rows[name])]
    if lost:
        raise UserError(
            f"{path} has no row with a spacing above 0 for {len(lost)} of {len(names)} slices: {listing(lost)}. "
            "Remove it, or slice the set again."
        )
    return np.array([rows[name] for name in names])


# ------------------------------------------------------------------------------------------------ estimators


@dataclass(frozen=True)
class Estimate:
    """One size per slice and foreground class, (N, K-1) pixels, how it was come by and what it had to see."""

    pixels: np.ndarray
    words: str
    supervision: str = "none"


def estimate_sizes(args: argparse.Namespace, slices: Slices) -> Estimate:
    """The estimator that the flags name, on these slices. Raises UserError for flags that do not fit together."""
    ones = np.ones((len(slices.names), 1))
    if args.source_mean is not None:
        return _mean_of_source(args, slices)
    if args.constant is not None:
        sizes = _one_a_class("--constant", args.constant, args.n_class)
        return Estimate(ones * sizes, f"constant {_words(sizes)} pixels")
    if slices.axes == 3:
        if args.constant_mm2 is not None or args.extent_mm is not None:
            raise UserError(f"{slices.root} is a set of volumes: give --constant_mm3 alone, not an area or an extent.")
        areas = _one_a_class("--constant_mm3", args.constant_mm3, args.n_class)
        words = f"constant {_words(areas)} mm3"
    elif args.constant_mm2 is not None:
        areas = _one_a_class("--constant_mm2", args.constant_mm2, args.n_class)
        words = f"constant {_words(areas)} mm2"
    else:
        volumes = _one_a_class("--constant_mm3", args.constant_mm3, args.n_class)
        extents, shape = ball_diameter(volumes), "the diameter of a ball"
        if args.extent_mm is not None:
            extents, shape = _one_a_class("--extent_mm", args.extent_mm, args.n_class), "given"
        areas = volumes / extents
        words = f"constant {_words(volumes)} mm3 over {_words(extents)} mm ({shape})"
    return Estimate(areas / slices.pixel_mm()[:, None], words)


def ball_diameter(volume: np.ndarray) -> np.ndarray:
    """d = (6 V / π)^(1/3), what an organ of that volume spans through the slices when nothing else is known."""
    return np.cbrt(6 * volume / np.pi)


def _one_a_class(flag: str, values: Sequence[float], n_class: int) -> np.ndarray:
    if len(values) != n_class - 1 or not all(0 < value < np.inf for value in values):
        raise UserError(
            f"{flag} expects one number above 0 for each class but the background, {n_class - 1} with --n_class "
            f"{n_class}; got {_words(values)}."
        )
    return np.array(values, dtype=np.float64)


def _words(numbers: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)


def _mean_of_source(args: argparse.Namespace, slices: Slices) -> Estimate:
    """Mean size of each class over the source's training slices that show it.

    In mm2 where both sets have a manifest, otherwise as a share of the slice.
    """
    source = measure_slices(args.source_mean, args.source_folder or args.folder, args.n_class, ("train",))
    in_mm = source.spacing is not None and slices.spacing is not None
    unit = source.pixel_mm() if in_mm else 1 / source.area
    shown = source.counts > 0
    absent = [k for k in range(1, args.n_class) if not shown[:, k].any()]
    if absent:
        raise UserError(
            f"{args.source_mean}: no training label shows class {listing(absent)}; its mean size is unknown."
        )
    means = (source.counts * unit[:, None]).sum(axis=0)[1:] / shown.sum(axis=0)[1:]
    back = slices.pixel_mm() if in_mm else 1 / slices.area
    measure = f"mm{slices.axes}" if in_mm else "of the slice"
    words = f"mean of the labelled slices of {args.source_mean}: {_words(means)} {measure}"
    return Estimate(means / back[:, None], words, "source labels")


# ------------------------------------------------------------------------------------------------ make


def make(args: argparse.Namespace) -> None:
    """Writes the csv. Raises UserError if it is there already, and for whatever the data lack."""
    _refuse_existing(args.out)
    if args.extent_mm is not None and args.constant_mm3 is None:
        raise UserError("--extent_mm says what a volume spans: it goes with --constant_mm3.")
    slices = measure_slices(args.data, args.folder, None if args.unlabelled else args.n_class)
    estimate = estimate_sizes(args, slices)
    foreground = np.maximum(np.rint(estimate.pixels), 1)
    too_large = [n for n, size, area in zip(slices.names, foreground.sum(1), slices.area, strict=True) if size >= area]
    if too_large:
        raise UserError(
            f"The sizes of the classes ({estimate.words}) leave no background in {len(too_large)} of "
            f"{len(slices.names)} slices: {listing(too_large, 5)}. Give smaller ones; check their unit."
        )
    tags, origin = _read_tags(args, slices)
    columns: dict[str, np.ndarray] = {}
    notes: dict[str, tuple[str, str]] = {}  # column -> estimator, supervision
    if tags is not None:
        columns[WITH_TAGS] = _fill_background(foreground * tags, slices.area)
        seen = "" if estimate.supervision == "none" else f"{estimate.supervision}, "
        notes[WITH_TAGS] = (f"{estimate.words}, where the tag is on", f"{seen}image-level tags ({origin})")
    columns[WITHOUT_TAGS] = _fill_background(foreground, slices.area)
    notes[WITHOUT_TAGS] = (f"{estimate.words}, in every slice", estimate.supervision)
    if slices.counts is not None:
        columns[TRUE_SIZES] = slices.counts
        notes[TRUE_SIZES] = (f"pixels counted in {args.folder}", ORACLE)
    _write(args.out, slices.names, columns, _origin(args.data), notes)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} is there and is never overwritten: move it away, or write to another --out.")


def _read_tags(args: argparse.Namespace, slices: Slices) -> tuple[np.ndarray | None, str]:
    """(N, K-1) whether the slice shows the class, and where that comes from; None where nothing tells."""
    if args.tags is not None:
        table = read_size_table(args.tags, "tags", args.n_class)
        table.require(slices.names)
        return np.stack([table[name] for name in slices.names])[:, 1:] > 0, f"from {args.tags}"
    if slices.counts is not None:
        return slices.counts[:, 1:] > 0, f"read off {args.folder}"
    return None, ""


def _fill_background(foreground: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(N, K-1) pixels, (N,) pixels of the slice -> (N, K)."""
    return np.concatenate([area[:, None] - foreground.sum(axis=1, keepdims=True), foreground], axis=1)


def _origin(root: Path) -> str:
    return f"{root} (phantom)" if read_card(root).get("phantom") else str(root)


def _write(
    out: Path,
    names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    origin: str,
    notes: Mapping[str, tuple[str, str]],
) -> None:
    comments = {"made from": origin, "made by": shlex.join(["python", "-m", "preprocess.size_priors", *sys.argv[1:]])}
    for column, (estimator, supervision) in notes.items():
        comments |= {f"estimator {column}": estimator, f"supervision {column}": supervision}
    filled = {column: dict(zip(names, rows.tolist(), strict=True)) for column, rows in columns.items()}
    write_size_table(out, filled, comments)
    print(f"{out}: {len(names)} slices, {', '.join(f'{c} [{notes[c][1]}]' for c in columns)}")


# ------------------------------------------------------------------------------------------------ check


@dataclass(frozen=True)
class Distance:
    """How far a prior is from the truth, over the slices that it does not leave out."""

    n_slice: int
    kl_prior_truth: float  # mean over the slices, nats
    kl_truth_prior: float
    ratio: np.ndarray  # (K,) pixels of the prior over pixels of the truth, in the slices that show the class
    n_positive: np.ndarray  # (K,) slices that show the class
    n_missed: np.ndarray  # (K,) of them, those to which the prior gives no pixel
    n_false: np.ndarray  # (K,) slices without the class to which the prior gives pixels


def compare(prior: SizeTable, truth: SizeTable) -> Distance:
    """Raises UserError if no slice has both."""
    names = [name for name in prior.sizes if name not in prior.skipped | truth.skipped]
    truth.require(names)
    if not names:
        raise UserError(f"{prior.path}: every list of '{prior.column}' or '{truth.column}' is all zero.")
    p, q = (np.stack([table.ratios(name) for name in names]) for table in (prior, truth))
    sizes, true_sizes = (np.stack([table[name] for name in names]) for table in (prior, truth))
    shown, given = true_sizes > 0, sizes > 0
    with np.errstate(invalid="ignore"):
        ratio = (sizes * shown).sum(axis=0) / true_sizes.sum(axis=0)
    return Distance(
        len(names),
        divergence(p, q),
        divergence(q, p),
        ratio,
        shown.sum(axis=0),
        (shown & ~given).sum(axis=0),
        (given & ~shown).sum(axis=0),
    )


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over N of Σ_k first_k [log(first_k + ε) − log(second_k + ε)], both (N,K) ratios."""
    return float((first * (np.log(first + EPS) - np.log(second + EPS))).sum(axis=1).mean())


def check(args: argparse.Namespace) -> None:
    """Prints the distance and the oddities of the two columns."""
    prior = read_size_table(args.sizes, args.column)
    n_class = len(next(iter(prior.sizes.values())))
    truth = read_size_table(args.sizes, args.truth, n_class)
    found = compare(prior, truth)
    print(f"{args.sizes}: '{args.column}' [{prior.supervision}] against '{args.truth}', {found.n_slice} slices")
    if prior.skipped:
        print(f"left out by the prior (all-zero lists): {len(prior.skipped)} slices")
    print(f"KL(prior || truth) = {found.kl_prior_truth:.4f}   KL(truth || prior) = {found.kl_truth_prior:.4f}   (mean)")
    print("class  slices showing it  prior/truth pixels  tag agreement  missed  false")
    for k in range(n_class):
        agreement = 1 - (found.n_missed[k] + found.n_false[k]) / found.n_slice
        print(
            f"{k:>5}  {found.n_positive[k]:>17}  {found.ratio[k]:>18.3f}  {agreement:>13.2%}  "
            f"{found.n_missed[k]:>6}  {found.n_false[k]:>5}"
        )
    for table in (prior, truth):
        print(_describe_sums(table))


def _describe_sums(table: SizeTable) -> str:
    """One line: the sums of the lists, which should be the pixels of the slice."""
    sums = {name: float(sizes.sum()) for name, sizes in table.sizes.items() if name not in table.skipped}
    values, counts = np.unique(list(sums.values()), return_counts=True)
    common = values[counts.argmax()]
    odd = [f"{name} ({total:g})" for name, total in sums.items() if total != common]
    words = f"the lists of '{table.column}' sum to {common:g} pixels"
    return f"{words}, but {len(odd)} do not: {listing(odd, 5)}" if odd else words


# ------------------------------------------------------------------------------------------------ scale


def scale_sizes(sizes: np.ndarray, factor: float) -> np.ndarray:
    """(N,K) pixels, the foreground times `factor`, the background the rest of the slice's own sum.

    Where the foreground would outgrow the slice, its classes share the slice in their proportions.
    """
    total = sizes.sum(axis=1, keepdims=True)
    given = sizes[:, 1:]
    foreground = np.where(given > 0, np.maximum(np.rint(given * factor), 1), 0)  # a tag stays on
    wanted = foreground.sum(axis=1, keepdims=True)
    shared = np.floor(foreground * total / np.maximum(wanted, 1))
    return _fill_background(np.where(wanted > total, shared, foreground), total[:, 0])


def scale(args: argparse.Namespace) -> None:
    """Writes the column and its scaled copies to a new csv."""
    out = args.out or args.sizes.with_name(f"{args.sizes.stem}_scaled.csv")
    _refuse_existing(out)
    if not all(0 < factor < np.inf for factor in args.factors) or len(set(args.factors)) < len(args.factors):
        raise UserError(f"--factors expects different numbers above 0, got {_words(args.factors)}.")
    prior = read_size_table(args.sizes, args.column)
    names = list(prior.sizes)
    sizes = np.stack([prior.sizes[name] for name in names])
    estimator = prior.comments.get(f"estimator {args.column}", f"as in {args.sizes}")
    columns, notes = {args.column: sizes}, {args.column: (estimator, prior.supervision)}
    for factor in args.factors:
        column = f"{args.column}_x{factor:g}"
        columns[column] = scale_sizes(sizes, factor)
        notes[column] = (f"{estimator}; foreground x{factor:g}", prior.supervision)
    _write(out, names, columns, prior.comments.get("made from", str(args.sizes)), notes)


# ------------------------------------------------------------------------------------------------ command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the three commands."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.size_priors", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=words, description=words, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    _add_make(command(make, "write a size csv for every slice of a set"))
    sub = command(check, "print how far a prior is from the truth")
    sub.add_argument("--sizes", type=Path, required=True, help="the csv")
    sub.add_argument("--column", required=True, help="the prior")
    sub.add_argument("--truth", default=TRUE_SIZES, help="the column of true sizes (%(default)s)")
    sub = command(scale, "write a prior with its foreground scaled, for sensitivity runs")
    sub.add_argument("--sizes", type=Path, required=True, help="the csv")
    sub.add_argument("--column", required=True, help="the prior")
    sub.add_argument("--factors", type=float, nargs="+", default=[0.5, 0.75, 1.5, 2])
    sub.add_argument("--out", type=Path, help="new csv (<sizes>_scaled.csv)")
    return parser.parse_args(argv)


def _add_make(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", type=Path, required=True, help="the target set, with its splits inside")
    sub.add_argument("--out", type=Path, required=True, help="the csv to write")
    sub.add_argument("--folder", default="GT", help="the labels' folder in each split (%(default)s)")
    sub.add_argument("--n_class", type=int, required=True, help="K, the background included")
    sub.add_argument("--unlabelled", action="store_true", help="--folder holds images: no true sizes, no tags in them")
    sub.add_argument("--tags", type=Path, help="csv with val_ids and tags, such as [1, 0]: which classes a slice shows")
    sizes = sub.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--constant", type=float, nargs="+", help="pixels, one number for each foreground class")
    sizes.add_argument("--constant_mm2", type=float, nargs="+", help="area in a slice; needs manifest.csv")
    sizes.add_argument("--constant_mm3", type=float, nargs="+", help="volume of the organ; needs manifest.csv")
    sizes.add_argument("--source_mean", type=Path, help="source set: mean size in its training slices")
    sub.add_argument("--extent_mm", type=float, nargs="+", help="what the organ spans across slices (else a ball's)")
    sub.add_argument("--source_folder", help="the labels' folder of the source (as --folder)")


def main() -> None:
    args = parse_args()
    args.run(args)


if __name__ == "__main__":
    run_program(main)
