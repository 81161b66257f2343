"""What lies in sets of slices or volumes, and what is wrong with it, before anybody trains on them.

    python -m preprocess.data_report --data data/prostate_source data/prostate_target --out results/prostate/data-report

Writes report.txt (problems first), numbers.json, slices.csv (one row a slice), histograms.png, ratios.png and a montage
of each set into the folder. The sets need neither manifest.csv nor dataset.json nor ground truth.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from analysis.plots.canvas import STYLE
from analysis.tables.table import NOTHING, aligned, boxed
from datasets.trained_on import describe_orders
from files.faults import Fault
from preprocess.survey.pictures import class_ratios, plot_levels, plot_montage, plot_ratios
from preprocess.survey.problems import find_problems, find_unchecked
from preprocess.survey.sets import AS_READ, Survey, survey_set
from processes.errors import UserError
from processes.ownership import begin, refuse_taken
from processes.quoting import csv_text
from utils import ProgramParser, atomic_write, listing, run_program

PROGRAM, NUMBERS = "data_report", "numbers.json"
QUANTILES = (0, 10, 50, 90, 100)
MOST_LISTED = 8  # offenders of a problem in the text; the json has them all
ALL_IS_WELL = "No problem found."
CHECKED_IS_WELL = "Nothing is wrong with what was checked."


def report(surveys: Sequence[Survey], prior: Path | None, out: Path) -> str:
    """Writes all of it into `out` and returns the text."""
    problems, unchecked = find_problems(surveys, prior), find_unchecked(surveys, prior)
    begin(out, PROGRAM)
    with mpl.rc_context(STYLE):
        draw(surveys, out)
    with atomic_write(out / "slices.csv", "w") as file:
        rows = [row for survey in surveys for row in slice_rows(survey)]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        file.write(csv_text([columns, *([row.get(key, "") for key in columns] for row in rows)]))
    with atomic_write(out / NUMBERS, "w") as file:
        sets = {survey.set_name: summarise(survey) for survey in surveys}
        numbers = {"problems": group(problems), "not_checked": unchecked, "sets": sets}
        json.dump(numbers, file, indent=1)
        file.write("\n")
    text = as_text(surveys, problems, unchecked)
    with atomic_write(out / "report.txt", "w") as file:
        file.write(text)
    return text


def draw(surveys: Sequence[Survey], out: Path) -> None:
    """Draws the pictures for which there is something to show."""
    plot_levels(surveys, out / "histograms.png")
    if any(len(survey.class_counts()) and survey.n_class > 1 for survey in surveys):
        plot_ratios(surveys, out / "ratios.png")
    for survey in surveys:
        if any(item.images for item in survey.items):
            plot_montage(survey, out / f"montage_{survey.set_name}.png")


def group(problems: Sequence[Fault]) -> dict[str, list[str]]:
    """Kind of fault -> the items that have it, each kind once, in order."""
    groups: dict[str, list[str]] = {}
    for what, which in problems:
        groups.setdefault(what, []).append(which)
    return groups


# ------------------------------------------------------------------------------------------------ numbers


def slice_rows(survey: Survey) -> Iterator[dict[str, Any]]:
    """One row per slice and image folder."""
    for item in survey.items:
        counts = {} if item.pixels is None else {f"class{k}": int(item.pixels[k]) for k in range(survey.n_class)}
        for image in item.images.values():
            levels = {key: f"{getattr(image, key):.6g}" for key in ("low", "high", "mean", "sd")}
            yield {
                "set": survey.set_name,
                "split": item.split,
                "slice": item.name,
                "patient": item.patient,
                "folder": image.folder,
                "size": "x".join(map(str, image.size)),
                "channels": image.channels,
                **levels,
                **counts,
            }


def summarise(survey: Survey) -> dict[str, Any]:
    """The numbers of a set in plain types."""
    return {
        "phantom": survey.phantom,
        "uses_labels": survey.card.get("uses_labels"),
        "images": survey.images,
        "labels": survey.labels or None,
        "n_class": survey.n_class,
        "sizes": {"x".join(map(str, size)): n for size, n in Counter(i.size for i in survey.items).most_common()},
        "spacing": None if survey.spacing is None else {p: list(mm) for p, mm in survey.spacing.items()},
        "splits": {split: summarise_split(survey, split) for split in survey.splits},
        "ratios": {k: quantiles(class_ratios(survey, k)) for k in range(1, survey.n_class)},
        "levels": {folder: levels(survey, folder) for folder in survey.images},
    }


def summarise_split(survey: Survey, split: str) -> dict[str, Any]:
    items, counts = survey.of(split), survey.class_counts(split)
    return {
        "patients": len({item.patient for item in items}),
        "slices": len(items),
        "labelled": len(counts),
        "empty": int((counts[:, 1:].sum(1) == 0).sum()) if len(counts) else None,
        "slices_with_class": (counts > 0).sum(0).tolist(),
        "pixels": counts.sum(0).tolist(),
    }


def quantiles(values: np.ndarray) -> list[float]:
    """The QUANTILES of values (N,); none of no value."""
    return np.percentile(values, QUANTILES).tolist() if len(values) else []


def levels(survey: Survey, folder: str) -> dict[str, Any]:
    images = [item.images[folder] for item in survey.items if folder in item.images]
    if not images:
        return {}
    sample = np.concatenate([image.sample for image in images])
    return {
        "channels": images[0].channels,
        "lowest": min(image.low for image in images),
        "highest": max(image.high for image in images),
        "percentiles 1 50 99": np.percentile(sample, (1, 50, 99)).tolist(),
        "mean": float(np.mean([image.mean for image in images])),
    }


# ------------------------------------------------------------------------------------------------ text


def as_text(surveys: Sequence[Survey], problems: Sequence[Fault], unchecked: Sequence[str]) -> str:
    """Problems first, then what could not be looked at, then the tables."""
    lines = [f"Data report: {listing([survey.root for survey in surveys])}"]
    if made_up := [survey.set_name for survey in surveys if survey.phantom]:
        lines += boxed([f"PHANTOM: made-up images in {listing(made_up)}; nothing here says anything about real ones."])
    used = [(survey.set_name, survey.card["uses_labels"]) for survey in surveys if survey.card.get("uses_labels")]
    lines += [f"LABELS SHAPED THE IMAGES of {name}: {how}." for name, how in used]
    turned = [
        (survey.set_name, describe_orders(survey.orders, survey.directions)) for survey in surveys if survey.directions
    ]
    lines += [f"{name}: {told}" for name, told in turned if told]
    groups = group(problems)
    lines += ["", f"PROBLEMS ({len(groups)})" if groups else CHECKED_IS_WELL if unchecked else ALL_IS_WELL]
    for number, (what, which) in enumerate(groups.items(), 1):
        times = f" ({len(which)} times)" if len(which) > 1 else ""
        lines += [f"{number:3}. {what}{times}", f"     {listing(which, MOST_LISTED)}"]
    lines += [f"Not checked: {what}." for what in unchecked]
    for heading, header, rows in (
        sets_table(surveys),
        census_table(surveys),
        ratio_table(surveys),
        level_table(surveys),
    ):
        if rows:
            lines += ["", heading, *aligned(header, rows)]
    return "\n".join([*lines, ""])


Table = tuple[str, list[str], list[list[str]]]  # heading, header, rows


def sets_table(surveys: Sequence[Survey]) -> Table:
    rows = []
    for survey in surveys:
        for split in survey.splits:
            found, items = summarise_split(survey, split), survey.of(split)
            empty = (
                NOTHING if found["empty"] is None else f"{found['empty']} ({found['empty'] / found['labelled']:.0%})"
            )
            sizes = listing(("x".join(map(str, s)) for s in dict.fromkeys(item.size for item in items)), 3)
            counts = [str(found[key]) for key in ("patients", "slices", "labelled")]
            rows.append([survey.set_name, split, *counts, empty, sizes, spacing_words(survey, split)])
    header = ["set", "split", "patients", "slices or volumes", "labelled", "empty", "size", "mm: slices, W, H"]
    return "Splits", header, rows


def spacing_words(survey: Survey, split: str) -> str:
    """'3–3.6, 0.62, 0.62', the range along each axis."""
    if survey.spacing is None:
        return "unknown (no manifest.csv)"
    found = np.array([survey.spacing[item.patient] for item in survey.of(split)])
    ends = [(f"{low:.3g}", f"{high:.3g}") for low, high in zip(found.min(0), found.max(0), strict=True)]
    return ", ".join(low if low == high else f"{low}–{high}" for low, high in ends)


def census_table(surveys: Sequence[Survey]) -> Table:
    rows = []
    for survey in surveys:
        for split in survey.splits:
            counts = survey.class_counts(split)
            for k in range(survey.n_class) if len(counts) else ():
                shown, pixels = int((counts[:, k] > 0).sum()), int(counts[:, k].sum())
                share = f"{100 * pixels / counts.sum():.3g}"
                label = f"{k} {survey.class_name(k)}".removesuffix(f" class {k}")
                rows.append([survey.set_name, split, label, str(shown), str(pixels), share])
    header = ["set", "split", "label", "slices showing it", "pixels", "% of pixels"]
    return "Labels", header, rows


def ratio_table(surveys: Sequence[Survey]) -> Table:
    rows = []
    for survey in surveys:
        for k in range(1, survey.n_class):
            found = quantiles(100 * class_ratios(survey, k))
            rows += [[survey.set_name, survey.class_name(k), *(f"{value:.3g}" for value in found)]] if found else []
    header = ["set", "class", "least", "10%", "median", "90%", "most"]
    return "Class ratios, % of a slice, over the slices that show the class", header, rows


def level_table(surveys: Sequence[Survey]) -> Table:
    rows = []
    for survey in surveys:
        for folder in survey.images:
            if found := levels(survey, folder):
                values = [found["lowest"], *found["percentiles 1 50 99"], found["highest"], found["mean"]]
                channels = str(found["channels"])
                rows.append([survey.set_name, folder, channels, *(f"{value:.3g}" for value in values)])
    header = ["set", "folder", "channels", "least", "1%", "median", "99%", "most", "mean"]
    return f"Grey levels {AS_READ} (first channel; percentiles of a sample)", header, rows


# ------------------------------------------------------------------------------------------------ command line


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ProgramParser("python -m preprocess.data_report", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="the sets, source first")
    add("--out", type=Path, required=True, help="folder of the report")
    add("--images", nargs="+", default=(), metavar="FOLDER", help="folders of images (default: the card's, or all)")
    add(
        "--labels",
        default="",
        metavar="FOLDER",
        help="folder of ground truth (default: the card's, or GT and the like)",
    )
    add(
        "--grp_regex",
        default="",
        metavar="REGEX",
        help="patient and slice number in a name (default <patient>_<number>)",
    )
    add("--sizes", type=Path, metavar="CSV", help="class-ratio prior of the last set")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    if lost := [str(root) for root in args.data if not root.is_dir()]:
        raise UserError(f"There is no folder {listing(lost)}: --data names sets, such as data/prostate_source.")
    refuse_taken(args.out, PROGRAM, "--out", NUMBERS)
    surveys = [survey_set(root, args.images, args.labels, args.grp_regex) for root in args.data]
    print(report(surveys, args.sizes, args.out))
    print(f"{args.out}: report.txt, numbers.json, slices.csv and the pictures")


if __name__ == "__main__":
    run_program(main)
