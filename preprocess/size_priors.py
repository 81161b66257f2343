"""Size priors: makes sizes/<set>.csv, says how far a prior is from the truth, scales priors, spoils their tags.

    python -m preprocess.size_priors make --data data/X --out sizes/X.csv --n_class 2 --constant 8000
    python -m preprocess.size_priors make --data data/X --out X_network.csv --n_class 2 --network_weights last.pkl
    python -m preprocess.size_priors check --sizes sizes/X.csv --column dumbpredwtags
    python -m preprocess.size_priors check --sizes X_network.csv --truth_sizes sizes/X.csv
    python -m preprocess.size_priors scale --sizes sizes/X.csv --column dumbpredwtags --factors 0.5 2
    python -m preprocess.size_priors spoil --sizes sizes/X.csv --percent 5 20 --out X_wrong_tags.csv

One size per class is estimated from constants ("anatomical knowledge") or from the source's labels
(priors/estimates.py), or its share from what the source network predicts (priors/from_network.py). With tags
(preprocess.tags) a slice gets the sizes of the classes that it shows. Without tags every slice gets all of them. The
background is the rest of the slice (Bateson et al. 2020 and 2022). For a set of volumes, made by
preprocess.volume_set, all of this is per volume and in voxels. sizes/README.md lists the columns.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.files import check_class_count, parse_name
from datasets.set_tables import read_card
from datasets.size_table import (
    ORACLE,
    TRUE_SIZES,
    WITH_TAGS,
    WITHOUT_TAGS,
    SizeTable,
    read_size_table,
    write_size_table,
)
from preprocess.new_set import refuse_overwriting
from preprocess.priors.checking import as_csv, columns_in, errors_of, in_lines
from preprocess.priors.estimated_columns import BY_NETWORK, columns_of, in_table
from preprocess.priors.estimates import PUBLISHED, Knowledge, estimate_sizes, in_words
from preprocess.priors.measuring import Slices, measure_slices
from preprocess.priors.mistagging import mistag
from preprocess.tags import patient_of, read_tags
from processes.errors import UserError
from utils import ProgramParser, atomic_write, counted, listing, run_program, settings_of

LABELS = "GT"  # their folder in each split, if nothing else is said
EPS = 1e-10  # in the logarithms, as in the losses


# ------------------------------------------------------------------------------------------------ make


@dataclass(frozen=True, kw_only=True)
class Prior(Knowledge):
    """The csv that is made, and of what, under the names of the flags."""

    data: Path
    folder: str | None = None
    n_class: int
    out: Path
    unlabelled: bool = False
    tags: Path | None = None
    network_weights: Path | None = None
    grp_regex: str | None = None
    device: str | None = None


def make(args: argparse.Namespace) -> None:
    """Makes the csv that the flags describe."""
    make_prior(settings_of(Prior, vars(args)))


def make_prior(prior: Prior) -> None:
    """Writes the csv. Raises UserError if it is there already, and for whatever the data lack."""
    refuse_overwriting(prior.out)
    if prior.extent_mm is not None and prior.constant_mm3 is None:
        raise UserError("--extent_mm says what a volume spans: it goes with --constant_mm3.")
    check_class_count([prior.data], prior.n_class)
    if prior.network_weights is not None:
        _make_from_network(prior, prior.network_weights)
        return
    folder = prior.folder or LABELS
    slices = measure_slices(prior.data, folder, None if prior.unlabelled else prior.n_class)
    estimate = estimate_sizes(prior, prior.n_class, folder, slices)
    foreground = np.maximum(np.rint(estimate.pixels), 1)
    too_large = [n for n, size, area in zip(slices.names, foreground.sum(1), slices.area, strict=True) if size >= area]
    if too_large:
        raise UserError(
            f"The sizes of the classes ({estimate.words}) leave no background in {len(too_large)} of "
            f"{len(slices.names)} slices: {listing(too_large, 5)}. Give smaller ones; check their unit."
        )
    tags, origin = _read_tags(prior, slices, folder)
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
        notes[TRUE_SIZES] = (f"pixels counted in {folder}", ORACLE)
    _write(prior.out, slices.names, columns, _origin(prior.data), notes)


def _make_from_network(prior: Prior, weights: Path) -> None:
    """Writes what the source network's own predictions tell; no label is opened, and no true size written."""
    from preprocess.priors.from_network import WORDS, estimate_from_network, read_source  # here, as it brings torch

    if prior.folder and not prior.unlabelled:
        raise UserError(
            "--network_weights looks at images alone and opens no label: name their folder with --folder IMG "
            "--unlabelled, or leave --folder out, and it is that of the network's own images."
        )
    source = read_source(weights)
    if source.n_class != prior.n_class:
        raise UserError(f"{weights} tells {source.n_class} classes apart, and --n_class is {prior.n_class}.")
    folder = prior.folder or source.image[0]
    slices = measure_slices(prior.data, folder, None)
    tags = None if prior.tags is None else read_tags(prior.tags, slices.names, prior.n_class)
    found = estimate_from_network(source, prior.data, folder, prior.grp_regex, prior.device)
    columns: dict[str, np.ndarray] = {}
    notes: dict[str, tuple[str, str]] = {}
    for name, shares in found.shares.items():
        told = f"{WORDS[name]}; of {weights}, {counted(found.patients, 'patient')} of {prior.data}/train/{folder}"
        laid = {name: columns_of(name, shares, slices.area)}
        seen = {name: BY_NETWORK}
        if tags is not None:
            laid[f"{name}_wtags"] = columns_of(f"{name}_wtags", shares, slices.area, tags)
            seen[f"{name}_wtags"] = f"{BY_NETWORK}, image-level tags (from {prior.tags})"
        for column, each in laid.items():
            columns |= each
            notes |= {part: (told if part == column else f"end of the 95 % interval of {column}", seen[column])
                      for part in each}  # fmt: skip
    _write(prior.out, slices.names, columns, _origin(prior.data), notes)
    print(
        *in_table(found.shares, source.bundle.image_shares),
        *(f"{name} is left out: {why}." for name, why in found.left_out.items()),
        sep="\n",
    )


def _read_tags(prior: Prior, slices: Slices, folder: str) -> tuple[np.ndarray | None, str]:
    """(N, K-1) whether the slice shows the class, and where that comes from; None where nothing tells."""
    if prior.tags is not None:
        return read_tags(prior.tags, slices.names, prior.n_class), f"from {prior.tags}"
    if slices.counts is not None:
        return slices.counts[:, 1:] > 0, f"read off {folder}"
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
    print(f"{out}: {counted(len(names), 'slice')}, {', '.join(f'{c} [{notes[c][1]}]' for c in columns)}")


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
    """Prints the distance and the oddities of the two columns; without a column how far off all of them are."""
    if args.column is None:
        check_all(args)
        return
    prior = read_size_table(args.sizes, args.column)
    n_class = len(next(iter(prior.sizes.values())))
    truth = read_size_table(args.truth_sizes or args.sizes, args.truth, n_class)
    found = compare(prior, truth)
    print(
        f"{args.sizes}: '{args.column}' [{prior.supervision}] against '{args.truth}', {counted(found.n_slice, 'slice')}"
    )
    if prior.skipped:
        print(f"left out by the prior (all-zero lists): {counted(len(prior.skipped), 'slice')}")
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


def check_all(args: argparse.Namespace) -> None:
    """Prints, and writes to --out, how far every column is from the truth, and whether its interval holds that."""
    truth = read_size_table(args.truth_sizes or args.sizes, args.truth)
    parsed = {name: parse_name(name, args.grp_regex) if args.grp_regex else None for name in truth.sizes}
    if args.grp_regex and (lost := [name for name, read in parsed.items() if read is None]):
        raise UserError(f"--grp_regex '{args.grp_regex}' does not match {len(lost)} slices: {listing(lost, 5)}.")
    patients = {name: read.patient if read else patient_of(name) for name, read in parsed.items()}
    columns = [name for name in columns_in(args.sizes) if name != args.truth]
    if not columns:
        raise UserError(f"{args.sizes} holds no column of a prior to be compared with '{args.truth}'.")
    if args.out:
        refuse_overwriting(args.out)
    errors = list(errors_of(args.sizes, columns, truth, patients))
    if args.out:
        with atomic_write(args.out, "w") as file:
            file.write(as_csv(errors))
    print(f"{args.sizes} against '{args.truth}' of {truth.path}: sizes over all slices, by the true ones")
    print(*in_lines(errors), sep="\n")


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
    refuse_overwriting(out)
    if not all(0 < factor < np.inf for factor in args.factors) or len(set(args.factors)) < len(args.factors):
        raise UserError(f"--factors expects different numbers above 0, got {in_words(args.factors)}.")
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


# ------------------------------------------------------------------------------------------------ spoil


def spoil(args: argparse.Namespace) -> None:
    """Writes copies of the column with tags in which so many per cent of the tags are wrong to a new csv."""
    refuse_overwriting(args.out)
    if not all(0 <= percent <= 100 for percent in args.percent) or len(set(args.percent)) < len(args.percent):
        raise UserError(f"--percent expects different numbers from 0 to 100, got {in_words(args.percent)}.")
    prior, every = (read_size_table(args.sizes, column) for column in (args.column, args.without))
    names = list(prior.sizes)
    every.require(names)
    tagged, untagged = (np.stack([table.sizes[name] for name in names]) for table in (prior, every))
    if tagged.shape != untagged.shape:
        raise UserError(f"{args.sizes}: '{args.column}' and '{args.without}' are of different numbers of classes.")
    estimator = prior.comments.get(f"estimator {args.column}", f"as in {args.sizes}")
    columns, notes = {}, {}
    for percent in args.percent:
        column = f"{args.column}_wrong{percent:g}"
        columns[column] = mistag(tagged, untagged, percent / 100, args.draw)
        notes[column] = (f"{estimator}; {percent:g} % of the tags wrong, draw {args.draw}", prior.supervision)
    _write(args.out, names, columns, prior.comments.get("made from", str(args.sizes)), notes)


# ------------------------------------------------------------------------------------------------ command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the commands."""
    parser = ProgramParser("python -m preprocess.size_priors", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=words, description=words)
        sub.set_defaults(run=run)
        return sub

    _add_make(command(make, "write a size csv for every slice of a set"))
    sub = command(check, "print how far a prior is from the truth")
    sub.add_argument("--sizes", type=Path, required=True, help="the csv")
    sub.add_argument("--column", help="the prior; without it all columns, with the ends of their intervals")
    sub.add_argument("--truth", default=TRUE_SIZES, help="the column of true sizes (%(default)s)")
    sub.add_argument("--truth_sizes", type=Path, help="the csv that holds it (that of --sizes)")
    sub.add_argument("--grp_regex", help="the patient in a slice's name (default: the name without its number)")
    sub.add_argument("--out", type=Path, help="of all columns: also a csv of them")
    sub = command(scale, "write a prior with its foreground scaled, for sensitivity runs")
    sub.add_argument("--sizes", type=Path, required=True, help="the csv")
    sub.add_argument("--column", required=True, help="the prior")
    sub.add_argument("--factors", type=float, nargs="+", default=[0.5, 0.75, 1.5, 2])
    sub.add_argument("--out", type=Path, help="new csv (<sizes>_scaled.csv)")
    sub = command(spoil, "write a prior some of whose image-level tags are wrong, for sensitivity runs")
    sub.add_argument("--sizes", type=Path, required=True, help="the csv")
    sub.add_argument("--column", default=WITH_TAGS, help="the prior with tags (%(default)s)")
    sub.add_argument("--without", default=WITHOUT_TAGS, help="its sizes in every slice (%(default)s)")
    sub.add_argument("--percent", type=float, nargs="+", default=[5, 10, 20], help="of the tags that are wrong")
    sub.add_argument("--draw", type=int, default=0, help="which tags: the number of the draw")
    sub.add_argument("--out", type=Path, required=True, help="new csv")
    return parser.parse_args(argv)


def _add_make(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", type=Path, required=True, help="the target set, with its splits inside")
    sub.add_argument("--out", type=Path, required=True, help="the csv to write")
    sub.add_argument("--folder", help=f"the labels' folder in each split ({LABELS}; --unlabelled: the images')")
    sub.add_argument("--n_class", type=int, required=True, help="K, the background included")
    sub.add_argument("--unlabelled", action="store_true", help="--folder holds images: no true sizes, no tags in them")
    tags = "csv of which classes a slice shows, as python -m preprocess.tags makes it"
    sub.add_argument("--tags", type=Path, help=tags)
    sizes = sub.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--constant", type=float, nargs="+", help="pixels, one number for each foreground class")
    sizes.add_argument("--constant_mm2", type=float, nargs="+", help="area in a slice; needs manifest.csv")
    sizes.add_argument("--constant_mm3", type=float, nargs="+", help="volume of the organ; needs manifest.csv")
    sizes.add_argument("--published", choices=PUBLISHED, help="the constants of Bateson et al. 2022 for this task")
    sizes.add_argument("--source_mean", type=Path, help="source set: mean size in its training slices")
    source = "the source network's last.pkl: em, mlls and bbse from what it predicts on the target's training images"
    sizes.add_argument("--network_weights", type=Path, help=source)
    sub.add_argument("--grp_regex", help="with it: the patient in a slice's name (that of the network's run)")
    sub.add_argument("--device", help="with it: cpu or cuda (cuda where there is one)")
    sub.add_argument("--extent_mm", type=float, nargs="+", help="what the organ spans across slices (else a ball's)")
    sub.add_argument("--source_folder", help="the labels' folder of the source (as --folder)")


def main() -> None:
    args = parse_args()
    args.run(args)


if __name__ == "__main__":
    run_program(main)
