"""Runs scored patient by patient: Dice, distances, the share of the gap that a run closes, tests between runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.run import Run, unique
from analysis.statistics.claims import share_of_gap
from analysis.statistics.intervals import percentile_interval
from analysis.statistics.tests import holm, smallest_p, wilcoxon
from analysis.tables.choice import NAMED, blocks_of, choice_notes, headline, make_summary
from analysis.tables.facts import facts, marks, notes_of, progress, supervision, warnings_of
from analysis.tables.harm import find_harm, harm_note, on_other_images
from analysis.tables.price import COLUMN, NOTE, find_prices, price_words
from analysis.tables.table import NOTHING, Comparison, Report, number
from metrics import DISTANCES, SCORES, average_classes, summarise
from processes.errors import UserError

DEFAULT_REFERENCE = "sfda"
SEED = 0  # of the bootstrap
SIGNIFICANT = 0.05  # a test that cannot come to so small a p is not made
MANY_PATIENTS = 20  # with fewer, the bootstrap interval is too narrow
HD95 = "HD95 is the larger of the two directed 95th percentiles"
PENALISED = "HD95 penalised: the mean with the volume's diagonal for each missed or false structure."
OLD_ASSD = "old ASSD: the run is of the time when MASD was called ASSD; it stands under its name of today."
IOU = "IoU: Dice / (2 - Dice), of each patient and class, then averaged as Dice is."


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
    worse_than: str = ""  # the network as it came, where that scores higher
    price: float = math.nan  # of a source network: its mean Dice less that of `cesource`

    @property
    def images(self) -> frozenset[str]:
        return frozenset(self.dice)

    @property
    def score(self) -> float:
        return self.mean["dice"]["mean"]

    @property
    def dice(self) -> dict[str, float]:
        """Patient -> Dice, mean of the classes."""
        return {row["patient"]: row["dice"] for row in self.rows["mean"]}

    @property
    def mean(self) -> dict[str, dict[str, float]]:
        return self.scores["mean"]


def read_entry(run: Run, which: str, iou: bool = False) -> Entry:
    """The run's scores: the mean over the classes of its metric axis, and class by class; `iou`: that one too."""
    rows = [row for row in run.patients(which) if row["class"] in run.metric_axis]
    if not rows:
        raise UserError(f"{run.folder} scored none of the classes {run.metric_axis} of its --metric_axis.")
    groups = by_class(rows)
    scores = {name: {score: summarise(group, score) for score in SCORES} for name, group in groups.items()}
    if iou:
        overlaps = by_class([row | {"dice": row["dice"] / (2 - row["dice"])} for row in rows])
        scores = {name: each | {"iou": summarise(overlaps[name], "dice")} for name, each in scores.items()}
    return Entry(run, which, groups, scores, {name: mean_interval(group) for name, group in groups.items()})


def mean_interval(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """95 % of the mean Dice, by a bootstrap over patients."""
    return percentile_interval([row["dice"] for row in rows], np.random.default_rng(SEED))


def by_class(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """'mean' or a class number -> one row a patient."""
    scored = sorted({row["class"] for row in rows})  # without the background, whatever the axis says
    return {"mean": average_classes(rows)} | {str(k): [row for row in rows if row["class"] == k] for k in scored}


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
            entry.gap[name] = share_of_gap(value, bottom, top)


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
        if smallest_p(len(apart)) < SIGNIFICANT:
            entry.p = wilcoxon(apart)
            tested.append(entry)
    for entry, p in zip(tested, holm([entry.p for entry in tested]), strict=True):
        entry.p = p


# ------------------------------------------------------------------------------------------------ words


def mean_sd(summary: Mapping[str, float], count: int, digits: int) -> str:
    """'0.853 ± 0.021', with '(n = 9)' where fewer than `count` have a value."""
    spread = f" ± {number(summary['sd'], digits)}" if math.isfinite(summary["sd"]) else ""
    fewer = f" (n = {summary['n']})" if 0 < summary["n"] < count else ""
    return number(summary["mean"], digits) + spread + fewer


def interval_words(interval: tuple[float, float]) -> str:
    return f"{number(interval[0])} to {number(interval[1])}" if math.isfinite(interval[0]) else NOTHING


def make_columns(entries: Sequence[Entry], runs: Sequence[Run]) -> dict[str, Callable[[Entry], str]]:
    """Heading -> how to fill the cell. A column that would say nothing is left out."""
    unit = "/".join(unique(runs, lambda run: run.unit))
    classes = list(dict.fromkeys(k for entry in entries for k in entry.scores if k != "mean"))
    columns: dict[str, Callable[[Entry], str]] = {
        "run": lambda entry: entry.run.name,
        "supervision": lambda entry: supervision(entry.run),
        "epoch": lambda entry: progress(entry.run, entry.which),
        "Dice": lambda entry: mean_sd(entry.mean["dice"], len(entry.dice), 3),
        "IoU": lambda entry: mean_sd(entry.mean["iou"], len(entry.dice), 3),
        "95 % of the mean": lambda entry: interval_words(entry.interval["mean"]),
        COLUMN: price_words,
        "gap closed": lambda entry: f"{100 * entry.gap['mean']:.0f} %" if has_gap(entry) else NOTHING,
    }
    for k in classes if len(classes) > 1 else ():
        columns[f"Dice, {runs[0].class_name(int(k))}"] = lambda entry, k=k: (
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
        "marks": lambda entry: ", ".join(patient_marks(entry, runs)),
    }
    shown = {
        "IoU": any("iou" in entry.mean for entry in entries),
        "95 % of the mean": any(math.isfinite(entry.interval["mean"][0]) for entry in entries),
        COLUMN: any(math.isfinite(entry.price) for entry in entries),
        "gap closed": any(map(has_gap, entries)),
        "HD95 penalised": any(map(has_failures, entries)),
        "marks": any(patient_marks(entry, runs) for entry in entries),
    }
    return {name: fill for name, fill in columns.items() if shown.get(name, True)}


def has_gap(entry: Entry) -> bool:
    return math.isfinite(entry.gap.get("mean", math.nan))


def has_failures(entry: Entry) -> bool:
    return bool(entry.mean["dice"]["misses"] or entry.mean["dice"]["false_structures"])


def patient_marks(entry: Entry, runs: Sequence[Run]) -> list[str]:
    harm = [f"worse than {entry.worse_than}"] if entry.worse_than else []
    return marks(entry.run, entry.which, runs) + harm + distance_marks(entry.run, runs)


def distance_marks(run: Run, runs: Sequence[Run]) -> list[str]:
    units = [f"distances in {run.unit}"] if len(unique(runs, lambda each: each.unit)) > 1 else []
    return units + ["old ASSD"] * run.has_old_assd


def nsd_tolerance(runs: Sequence[Run]) -> str:
    return " or ".join(unique(runs, lambda run: f"{run.nsd_tolerance:g} {run.unit}"))


def make_warnings(entries: Sequence[Entry], runs: Sequence[Run]) -> list[str]:
    """What stands above the table, loudly."""
    warnings = warnings_of(runs)
    if any(len(entry.dice) == 1 for entry in entries):
        warnings.append("One patient: no spread, no interval, no test.")
    if on_other_images(entries):
        warnings.append("Not every run was evaluated on the same patients; compare with care.")
    return warnings


def make_notes(blocks: Mapping[str, Sequence[Entry]], runs: Sequence[Run], comparison: Comparison) -> list[str]:
    """How the numbers came about, and what the table has no room for."""
    entries, head = [entry for block in blocks.values() for entry in block], blocks[headline(blocks)]
    named = NAMED[headline(blocks)]
    notes = [
        "Scores are per patient, in 3D, averaged over the foreground classes, then mean ± sd over patients.",
        f"{HD95}; ASSD is the mean of the distances of both directions pooled, MASD the mean of the two directed "
        "means; NSD is the share of both surfaces within the tolerance.",
        "Missed: a true structure of which nothing was predicted. False: a predicted one that is not there. Both are "
        "Dice 0 and NSD 0 and have no distance, whose n is then smaller. Neither true nor predicted: left out.",
    ]
    notes += [IOU] * comparison.iou
    notes += [OLD_ASSD] * any(run.has_old_assd for run in runs)
    if any(map(has_failures, entries)):
        notes.append(PENALISED)
    if any(len(entry.dice) > 1 for entry in entries):
        few = min(len(entry.dice) for entry in entries) < MANY_PATIENTS
        notes.append("95 % of the mean: bootstrap over patients." + " With so few patients it is too narrow." * few)
        notes.append(f"Worst patient, {named}: {'; '.join(map(worst, head))}.")
    if any(map(has_gap, entries)):
        notes.append(
            f"Gap closed: (run - {comparison.lower}) / ({comparison.upper} - {comparison.lower}) of the mean Dice."
        )
    notes += [NOTE] * any(math.isfinite(entry.price) for entry in entries)
    if tested := [entry for entry in head if math.isfinite(entry.p)]:
        reference = choose_reference(runs, comparison)
        by_order = not comparison.reference and reference != DEFAULT_REFERENCE
        found = "; ".join(f"{entry.run.name} {entry.wins}:{entry.losses}, p = {entry.p:.2g}" for entry in tested)
        notes.append(
            f"Patients on whom {reference} is better:worse in the {named}, and p of Wilcoxon's signed-rank "
            f"test after Holm, against {found}."
            + f" {reference} is the first of the runs; --reference names another."
            * by_order
        )
    return notes + harm_note(entries, "Dice") + notes_of(runs, blocks)


def worst(entry: Entry) -> str:
    known = {patient: value for patient, value in entry.dice.items() if math.isfinite(value)}
    patient = min(known, key=lambda name: known[name], default="")
    return f"{entry.run.name} {patient} {known[patient]:.3f}" if known else f"{entry.run.name} {NOTHING}"


def patient_facts(entry: Entry) -> dict[str, Any]:
    """The facts of one line of the csv. `epoch` counts from 0, as in the log; distances are in `distance_unit`."""
    run = entry.run
    more = {"distance_unit": run.unit, "nsd_tolerance": run.nsd_tolerance, "patients": len(entry.dice)}
    return facts(run, entry.which) | {"worse_than": entry.worse_than} | more


def score_cells(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """score -> what metrics.summarise says, as cells of the csv."""
    cells = {f"{score}_{key}": summary[key] for score, summary in scores.items() for key in ("mean", "sd", "n")}
    cells |= {f"{score}_penalised_mean": scores[score]["penalised_mean"] for score in DISTANCES}
    return cells | {key: scores["dice"][key] for key in ("misses", "false_structures")}


def csv_lines(entry: Entry) -> list[dict[str, Any]]:
    """The lines of the csv: one for the mean of the classes, one per class."""
    lines = []
    for name, scores in entry.scores.items():
        line = patient_facts(entry) | {"class": name} | score_cells(scores)
        line |= dict(zip(("dice_low", "dice_high"), entry.interval[name], strict=True))
        line["gap_closed"] = entry.gap.get(name, math.nan)
        lines.append(line | {"p": math.nan})
    lines[0]["p"] = entry.p
    return lines


def make_patient_report(runs: Sequence[Run], comparison: Comparison) -> Report:
    """Makes the report of runs scored patient by patient."""
    headings = blocks_of(runs)
    blocks = {which: [read_entry(run, which, comparison.iou) for run in runs] for which in headings}
    reference = choose_reference(runs, comparison)
    for block in blocks.values():
        close_gaps(block, comparison.lower, comparison.upper)
        find_harm(block, comparison.lower)
        find_prices(block)
        compare(block, reference)
    entries = [entry for block in blocks.values() for entry in block]
    columns = make_columns(entries, runs)
    return Report(
        " / ".join(unique(runs, lambda run: run.set_name)),
        make_warnings(entries, runs),
        list(columns),
        [(headings[which], [[fill(e) for fill in columns.values()] for e in block]) for which, block in blocks.items()],
        choice_notes(runs) + make_notes(blocks, runs, comparison),
        [line for entry in entries for line in csv_lines(entry)],
        make_summary(blocks, columns, "Dice", lambda entry: [entry.run]),
    )


def choose_reference(runs: Sequence[Run], comparison: Comparison) -> str:
    """The run that was asked for; else sfda; where there is none, the first."""
    known = [run.name for run in runs]
    return comparison.reference or (DEFAULT_REFERENCE if DEFAULT_REFERENCE in known else known[0])
