"""One table over finished runs, on the screen and as text, csv, Markdown and LaTeX.

    python report.py --runs results/spine/noadap results/spine/sfda results/spine/fs --out results/spine/report

writes results/spine/report.{txt,csv,md,tex}. It reads the run folders and nothing else; same folders, same bytes.
"""

import argparse
import csv
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from metrics import DISTANCES, SCORES, average_classes, bootstrap_interval, summarise
from run_files import Run, open_runs, unique
from utils import UserError, atomic_write, run_program

BLOCKS = {
    "last": "Last epoch (nothing was chosen with target labels)",
    "best_3d": "Best epoch (chosen with target labels, hence optimistic)",
}
SEED = 0  # of the bootstrap
PAIRS_NEEDED = 6  # with fewer, the signed-rank test cannot fall below 0.05
MANY_PATIENTS = 20  # with fewer, the bootstrap interval is too narrow
NOTHING = "–"
NOTE_WIDTH = 110


# ------------------------------------------------------------------------------------------------ numbers


@dataclass
class Entry:
    """One run at one of its epochs."""

    run: Run
    which: str
    rows: dict[str, list[dict[str, Any]]]  # 'mean' or a class number -> one row a patient
    scores: dict[str, dict[str, dict[str, float]]]  # the same -> score -> what metrics.summarise says
    interval: dict[str, tuple[float, float]]  # the same -> 95 % of the mean Dice
    gap: dict[str, float] = field(default_factory=dict)  # the same -> share of the gap closed
    p: float = math.nan  # against the reference run
    wins: int = 0  # patients on which the reference run is better
    losses: int = 0

    @property
    def dice(self) -> dict[str, float]:
        """Patient -> Dice, mean of the classes."""
        return {row["patient"]: row["dice"] for row in self.rows["mean"]}

    @property
    def mean(self) -> dict[str, dict[str, float]]:
        return self.scores["mean"]


def read_entry(run: Run, which: str) -> Entry:
    """The run's scores: the mean over the classes of its metric axis, and class by class."""
    rows = [row for row in run.patients(which) if row["class"] in run.metric_axis]
    if not rows:
        raise UserError(f"{run.folder} scored none of the classes {run.metric_axis} of its --metric_axis.")
    groups = {"mean": average_classes(rows)}
    groups |= {str(k): [row for row in rows if row["class"] == k] for k in run.metric_axis}
    scores = {name: {score: summarise(group, score) for score in SCORES} for name, group in groups.items()}
    interval = {name: bootstrap_interval((row["dice"] for row in group), SEED) for name, group in groups.items()}
    return Entry(run, which, groups, scores, interval)


def close_gaps(entries: Sequence[Entry], lower: str, upper: str) -> None:
    """Fills `gap` in one block: (run - lower) / (upper - lower) of the mean Dice, all three on the same patients."""
    named = {entry.run.name: entry for entry in entries}
    if lower not in named or upper not in named:
        return
    low, high = named[lower], named[upper]
    for entry in entries:
        if not entry.dice.keys() == low.dice.keys() == high.dice.keys():
            continue
        for name in entry.scores.keys() & low.scores.keys() & high.scores.keys():
            value, bottom, top = (each.scores[name]["dice"]["mean"] for each in (entry, low, high))
            entry.gap[name] = (value - bottom) / (top - bottom) if top > bottom else math.nan


def compare(entries: Sequence[Entry], reference: str) -> None:
    """Fills `p`, `wins` and `losses`: Wilcoxon's signed-rank test on the patients' Dice, after Holm."""
    base = next((entry for entry in entries if entry.run.name == reference), None)
    tested = []
    for entry in entries if base else ():
        if entry is base or entry.dice.keys() != base.dice.keys():
            continue
        apart = np.array([base.dice[patient] - value for patient, value in entry.dice.items()])
        apart = apart[np.isfinite(apart)]
        entry.wins, entry.losses = int((apart > 0).sum()), int((apart < 0).sum())
        if len(apart) >= PAIRS_NEEDED:
            entry.p = float(wilcoxon(apart).pvalue) if apart.any() else 1.0
            tested.append(entry)
    floor = 0.0
    for rank, entry in enumerate(sorted(tested, key=lambda entry: entry.p)):
        floor = entry.p = min(1.0, max(floor, entry.p * (len(tested) - rank)))


# ------------------------------------------------------------------------------------------------ words


@dataclass(frozen=True)
class Report:
    """The table in words, whatever it is written as."""

    title: str
    warnings: list[str]
    header: list[str]
    blocks: list[tuple[str, list[list[str]]]]  # heading, rows
    notes: list[str]


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def mean_sd(summary: Mapping[str, float], n_patient: int, digits: int) -> str:
    """'0.853 ± 0.021', with '(n = 9)' where some patient has no value."""
    spread = f" ± {number(summary['sd'], digits)}" if math.isfinite(summary["sd"]) else ""
    fewer = f" (n = {summary['n']})" if 0 < summary["n"] < n_patient else ""
    return number(summary["mean"], digits) + spread + fewer


def interval_words(interval: tuple[float, float]) -> str:
    return f"{number(interval[0])} to {number(interval[1])}" if math.isfinite(interval[0]) else NOTHING


def marks(entry: Entry, runs: Sequence[Run]) -> str:
    """What a reader must know before comparing this run with the others."""
    run = entry.run
    words = [word for key, word in (("debug", "DEBUG"), ("oracle", "ORACLE")) if run.provenance.get(key)]
    if run.phantom and not all(other.phantom for other in runs):
        words.append("PHANTOM")
    if no_learning(run):
        words.append("lr 0")
    if len(unique(runs, lambda each: each.set_name)) > 1:
        words.append(f"on {run.set_name}")
    if len(unique(runs, lambda each: each.unit)) > 1:
        words.append(f"distances in {run.unit}")
    return ", ".join(words)


def no_learning(run: Run) -> bool:
    """Whether it is the batch-norm control: trained, with learning rate 0."""
    return run.provenance.get("method") != "noadap" and float(run.params.get("l_rate", "nan")) == 0


def make_columns(entries: Sequence[Entry], runs: Sequence[Run]) -> dict[str, Callable[[Entry], str]]:
    """Heading -> how to fill the cell. A column that would say nothing is left out."""
    unit = "/".join(unique(runs, lambda run: run.unit))
    classes = list(dict.fromkeys(k for run in runs for k in run.metric_axis))
    columns: dict[str, Callable[[Entry], str]] = {
        "run": lambda entry: entry.run.name,
        "supervision": lambda entry: str(entry.run.provenance.get("supervision", NOTHING)),
        "epoch": lambda entry: f"{entry.run.epoch(entry.which) + 1}/{len(entry.run.metrics)}",
        "Dice": lambda entry: mean_sd(entry.mean["dice"], len(entry.dice), 3),
        "95 % of the mean": lambda entry: interval_words(entry.interval["mean"]),
        "gap closed": lambda entry: f"{100 * entry.gap['mean']:.0f} %" if has_gap(entry) else NOTHING,
    }
    for k in classes if len(classes) > 1 else ():
        columns[f"Dice, {runs[0].class_name(k)}"] = lambda entry, k=str(k): (
            mean_sd(entry.scores[k]["dice"], len(entry.dice), 3) if k in entry.scores else NOTHING
        )
    for score in DISTANCES:
        name = f"{score.upper()} ({unit})"
        columns[name] = lambda entry, score=score: mean_sd(entry.mean[score], len(entry.dice), 2)
    columns |= {
        "HD95 penalised": lambda entry: number(entry.mean["hd95"]["penalised_mean"], 2),
        f"NSD ({nsd_tolerance(runs)})": lambda entry: mean_sd(entry.mean["nsd"], len(entry.dice), 3),
        "n": lambda entry: str(len(entry.dice)),
        "missed": lambda entry: str(entry.mean["dice"]["misses"]),
        "false": lambda entry: str(entry.mean["dice"]["false_structures"]),
        "marks": lambda entry: marks(entry, runs),
    }
    shown = {
        "95 % of the mean": any(math.isfinite(entry.interval["mean"][0]) for entry in entries),
        "gap closed": any(map(has_gap, entries)),
        "HD95 penalised": any(map(has_failures, entries)),
        "marks": any(marks(entry, runs) for entry in entries),
    }
    return {name: fill for name, fill in columns.items() if shown.get(name, True)}


def has_gap(entry: Entry) -> bool:
    return math.isfinite(entry.gap.get("mean", math.nan))


def has_failures(entry: Entry) -> bool:
    return bool(entry.mean["dice"]["misses"] or entry.mean["dice"]["false_structures"])


def nsd_tolerance(runs: Sequence[Run]) -> str:
    return " or ".join(unique(runs, lambda run: f"{run.provenance.get('nsd_tolerance', math.nan):g} {run.unit}"))


def make_warnings(entries: Sequence[Entry], runs: Sequence[Run]) -> list[str]:
    """What stands above the table, loudly."""
    warnings = []
    if phantom := [run.name for run in runs if run.phantom]:
        whose = "" if len(phantom) == len(runs) else f" in {', '.join(phantom)}"
        warnings.append(f"PHANTOM: made-up images{whose}; these figures say nothing about patients.")
    if debug := [run.name for run in runs if run.provenance.get("debug")]:
        warnings.append(f"DEBUG: {', '.join(debug)} saw ten slices a set; the figures mean nothing.")
    if any(len(entry.dice) == 1 for entry in entries):
        warnings.append("One patient: no spread, no interval, no test.")
    if any(run.provenance["dataset"].get("split_unit") == "slice blocks" for run in runs):
        warnings.append("Slices of one patient in both splits: no measure of accuracy on new patients.")
    if len(unique(entries, lambda entry: frozenset(entry.dice))) > 1:
        warnings.append("Not every run was evaluated on the same patients; compare with care.")
    return warnings


def make_notes(entries: Sequence[Entry], runs: Sequence[Run], names: argparse.Namespace) -> list[str]:
    """How the numbers came about, and what the table has no room for."""
    notes = [
        "Scores are per patient, in 3D, averaged over the foreground classes, then mean ± sd over patients.",
        "HD95 is the larger of the two directed 95th percentiles, ASSD the mean of the two directed mean distances; "
        "NSD is the share of both surfaces within the tolerance.",
        "Missed: a true structure of which nothing was predicted. False: a predicted one that is not there. Both are "
        "Dice 0 and NSD 0 and have no HD95 or ASSD, whose n is then smaller. Neither true nor predicted: left out.",
    ]
    if any(map(has_failures, entries)):
        notes.append("HD95 penalised: the mean with the volume's diagonal for each missed or false structure.")
    if any(len(entry.dice) > 1 for entry in entries):
        few = min(len(entry.dice) for entry in entries) < MANY_PATIENTS
        notes.append("95 % of the mean: bootstrap over patients." + " With so few patients it is too narrow." * few)
        notes.append(f"Worst patient, last epoch: {'; '.join(map(worst, entries[: len(runs)]))}.")
    if any(map(has_gap, entries)):
        notes.append(f"Gap closed: (run - {names.lower}) / ({names.upper} - {names.lower}) of the mean Dice.")
    if tested := [entry for entry in entries[: len(runs)] if math.isfinite(entry.p)]:
        found = "; ".join(f"{entry.run.name} {entry.wins}:{entry.losses}, p = {entry.p:.2g}" for entry in tested)
        notes.append(
            f"Patients on whom {names.reference} is better:worse in the last epoch, and p of Wilcoxon's signed-rank "
            f"test after Holm, against {found}."
        )
    if any(run.provenance.get("oracle") for run in runs):
        notes.append("ORACLE: the run was told what only target labels tell; it is a bound, no competitor.")
    if any(map(no_learning, runs)):
        notes.append("lr 0: the same run with learning rate 0; what it gains comes from batch-norm statistics alone.")
    return notes


def worst(entry: Entry) -> str:
    known = {patient: value for patient, value in entry.dice.items() if math.isfinite(value)}
    patient = min(known, key=lambda name: known[name], default="")
    return f"{entry.run.name} {patient} {known[patient]:.3f}" if known else f"{entry.run.name} {NOTHING}"


def make_report(blocks: Mapping[str, list[Entry]], runs: Sequence[Run], names: argparse.Namespace) -> Report:
    entries = [entry for block in blocks.values() for entry in block]
    columns = make_columns(entries, runs)
    return Report(
        " / ".join(unique(runs, lambda run: run.set_name)),
        make_warnings(entries, runs),
        list(columns),
        [(BLOCKS[which], [[fill(e) for fill in columns.values()] for e in block]) for which, block in blocks.items()],
        make_notes(entries, runs, names),
    )


# ------------------------------------------------------------------------------------------------ formats


def as_text(report: Report) -> str:
    """For the screen and .txt."""
    rows = [report.header] + [row for _, block in report.blocks for row in block]
    widths = [max(len(row[i]) for row in rows) for i in range(len(report.header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    lines = [report.title]
    if report.warnings:
        width = max(map(len, report.warnings))
        rule = "*" * (width + 8)
        lines += ["", rule, *(f"*** {warning.ljust(width)} ***" for warning in report.warnings), rule]
    for heading, block in report.blocks:
        lines += ["", heading, line(report.header), line(["-" * width for width in widths]), *map(line, block)]
    notes = [textwrap.fill(note, NOTE_WIDTH, initial_indent="- ", subsequent_indent="  ") for note in report.notes]
    return "\n".join([*lines, "", *notes, ""])


def as_markdown(report: Report) -> str:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    lines = [f"### {report.title}", ""]
    lines += [f"> **{warning}**  " for warning in report.warnings]
    for heading, block in report.blocks:
        lines += ["", f"**{heading}**", "", line(report.header), line(["---"] * len(report.header)), *map(line, block)]
    return "\n".join([*lines, "", *(f"- {note}" for note in report.notes), ""])


def as_latex(report: Report) -> str:
    r"""A tabular for \usepackage{booktabs}, the warnings inside it."""
    columns = len(report.header)

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(escape_latex, row)) + r" \\"

    def across(words: str) -> str:
        return rf"\multicolumn{{{columns}}}{{l}}{{{words}}} \\"

    lines = [rf"% {report.title}; needs \usepackage{{booktabs}}", rf"\begin{{tabular}}{{{'l' * columns}}}", r"\toprule"]
    lines += [across(rf"\textbf{{{escape_latex(warning)}}}") for warning in report.warnings]
    lines += [line(report.header)]
    for heading, block in report.blocks:
        lines += [r"\midrule", across(rf"\emph{{{escape_latex(heading)}}}"), *map(line, block)]
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\par\smallskip\footnotesize"]
    return "\n".join([*lines, *map(escape_latex, report.notes), ""])


def escape_latex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "<": r"$<$", ">": r"$>$"}
    return "".join(special.get(letter, letter) for letter in text)


def as_csv(blocks: Mapping[str, list[Entry]]) -> str:
    """One line per block, run and class, with every digit; an empty cell where there is no number."""
    lines = [line for block in blocks.values() for entry in block for line in csv_lines(entry)]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow(
            {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        )
    return file.getvalue()


def csv_lines(entry: Entry) -> list[dict[str, Any]]:
    """`epoch` counts from 0, as in the log; distances are in `distance_unit`."""
    run = entry.run
    facts = {
        "run": run.name,
        "set": run.set_name,
        "chosen": entry.which,
        "epoch": run.epoch(entry.which),
        "epochs": len(run.metrics),
        "supervision": run.provenance.get("supervision", ""),
        **{key: int(bool(run.provenance.get(key))) for key in ("oracle", "debug")},
        "phantom": int(run.phantom),
        "seconds": float(run.metrics["seconds"].sum()) if "seconds" in run.metrics else math.nan,
        "distance_unit": run.unit,
        "nsd_tolerance": run.provenance.get("nsd_tolerance", math.nan),
        "patients": len(entry.dice),
    }
    lines = []
    for name, scores in entry.scores.items():
        line = facts | {"class": name}
        for score, summary in scores.items():
            line |= {f"{score}_{key}": summary[key] for key in ("mean", "sd", "n")}
        line |= {f"{score}_penalised_mean": scores[score]["penalised_mean"] for score in DISTANCES}
        line |= {key: scores["dice"][key] for key in ("misses", "false_structures")}
        line |= dict(zip(("dice_low", "dice_high"), entry.interval[name], strict=True))
        line["gap_closed"] = entry.gap.get(name, math.nan)
        lines.append(line | {"p": math.nan})
    lines[0]["p"] = entry.p
    return lines


# -------------------------------------------------------------------------------------------------- main


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="results/<set>/<run> …")
    parser.add_argument("--out", type=Path, help="path without suffix; without it the table is only printed")
    parser.add_argument(
        "--formats", nargs="+", choices=("txt", "csv", "md", "tex"), default=["txt", "csv", "md", "tex"]
    )
    parser.add_argument("--lower", default="noadap", help="run that closes 0 %% of the gap (default: %(default)s)")
    parser.add_argument("--upper", default="fs", help="run that closes 100 %% (default: %(default)s)")
    parser.add_argument(
        "--reference", default="sfda", help="run that the others are tested against (default: %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    runs = open_runs(args.runs)
    blocks = {which: [read_entry(run, which) for run in runs] for which in BLOCKS}
    for block in blocks.values():
        close_gaps(block, args.lower, args.upper)
        compare(block, args.reference)
    report = make_report(blocks, runs, args)
    text = as_text(report)
    print(text, end="")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        written = {"txt": text, "csv": as_csv(blocks), "md": as_markdown(report), "tex": as_latex(report)}
        for suffix in args.formats:
            with atomic_write(args.out.with_name(f"{args.out.name}.{suffix}"), "w") as file:
                file.write(written[suffix])


if __name__ == "__main__":
    run_program(main)
