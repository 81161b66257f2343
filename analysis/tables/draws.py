r"""Runs repeated over draws of the labelled volumes, or over seeds: mean ± sd over draws, compared draw by draw.

A regular expression says which part of a run's name is the draw: with '_\d+$', contrast_2_0 and contrast_2_1 are the
draws _0 and _1 of the experiment contrast_2, whose kind is contrast and which had 2 labelled volumes.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.run import Run, unique
from analysis.tables.choice import NAMED, blocks_of, choice_notes, headline, make_summary
from analysis.tables.facts import marks, notes_of, supervision, warnings_of
from analysis.tables.harm import find_harm, harm_note, on_other_images
from analysis.tables.patients import (
    HD95,
    IOU,
    PENALISED,
    Entry,
    distance_marks,
    mean_sd,
    patient_facts,
    read_entry,
    score_cells,
)
from analysis.tables.table import NOTHING, Comparison, Report, number
from metrics import DISTANCES, summarise
from processes.errors import UserError
from utils import nearest

DRAWS = r"what tells the draws of one experiment apart in their names, such as '_\d+$' in contrast_2_0, contrast_2_1"
FAILURES = ("misses", "false_structures")


# -------------------------------------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in their draw."""

    name: str
    runs: dict[str, Run]  # draw -> run

    @property
    def kind(self) -> str:
        """The name without the number of labelled volumes."""
        return re.sub(r"_\d+$", "", self.name)

    @property
    def labelled(self) -> int | None:
        """The number of labelled volumes that the name ends in."""
        match = re.search(r"_(\d+)$", self.name)
        return int(match[1]) if match else None


def group_draws(runs: Sequence[Run], pattern: str) -> list[Experiment]:
    """The experiments in the order of their first runs; a run that the pattern does not match is one by itself.

    Raises UserError where the pattern is none, or where two runs are the same draw of one experiment.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--draws {pattern!r} is no regular expression ({error}). It should match what tells the draws of one "
            r"experiment apart in the names of their runs, as '_\d+$' does in contrast_2_0 and contrast_2_1."
        ) from error
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        match = regex.search(run.name)
        name, draw = regex.sub("", run.name, count=1), match[0] if match else ""
        found.setdefault(name, {}).setdefault(draw, []).append(run)
    if twins := [same for draws in found.values() for same in draws.values() if len(same) > 1]:
        listed = "; ".join(" and ".join(run.name for run in same) for same in twins)
        raise UserError(
            f"With --draws {pattern!r} these are the same draw of one experiment: {listed}. Leave out all but one, or "
            "change the regular expression so that it matches what tells them apart."
        )
    return [Experiment(name, {draw: same[0] for draw, same in draws.items()}) for name, draws in found.items()]


# ------------------------------------------------------------------------------------------------ numbers


@dataclass
class Repeated:
    """One experiment at the same one of its runs' epochs."""

    experiment: Experiment
    which: str
    entries: dict[str, Entry]  # draw -> its run
    scores: dict[str, dict[str, dict[str, float]]]  # 'mean' or a class number -> score -> metrics.summarise over draws
    base: str = ""  # the experiment that it is compared with
    better: int = 0  # draws in which its Dice is higher
    worse: int = 0

    @property
    def mean(self) -> dict[str, dict[str, float]]:
        return self.scores["mean"]

    @property
    def dice(self) -> list[float]:
        """Each draw's Dice, mean over its patients and classes."""
        return [entry.mean["dice"]["mean"] for entry in self.entries.values()]


def read_experiment(experiment: Experiment, which: str, iou: bool = False) -> Repeated:
    entries = {draw: read_entry(run, which, iou) for draw, run in experiment.runs.items()}
    names = dict.fromkeys(name for entry in entries.values() for name in entry.scores)
    scores = {
        name: over_draws([entry.scores[name] for entry in entries.values() if name in entry.scores]) for name in names
    }
    return Repeated(experiment, which, entries, scores)


def over_draws(draws: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """score -> metrics.summarise of the draws' means over patients, as if each draw were a patient."""
    rows = []
    for scores in draws:
        row = {score: summary["mean"] for score, summary in scores.items()}
        row |= {f"{score}_penalised": scores[score]["penalised_mean"] for score in DISTANCES}
        rows.append(row | {failure: scores["dice"][failure] for failure in FAILURES})
    return {score: summarise(rows, score) for score in draws[0]}


def compare(block: Sequence[Repeated], kind: str) -> None:
    """Fills `base`, `better` and `worse`: against the experiment of this kind with as many labelled volumes."""
    bases = {each.experiment.labelled: each for each in block if each.experiment.kind == kind}
    for each in block:
        base = bases.get(each.experiment.labelled)
        if base is None or base is each:
            continue
        pairs = [(entry, base.entries[draw]) for draw, entry in each.entries.items() if draw in base.entries]
        apart = [
            mine.mean["dice"]["mean"] - other.mean["dice"]["mean"]
            for mine, other in pairs
            if mine.dice.keys() == other.dice.keys()
        ]
        if apart:
            each.base = base.experiment.name
            each.better, each.worse = sum(value > 0 for value in apart), sum(value < 0 for value in apart)


def find_harm_by_draw(block: Sequence[Repeated], lower: str) -> None:
    """Fills `worse_than` of each run, compared within its draw; an experiment of one run is of every draw."""
    for draw in dict.fromkeys(draw for each in block for draw in each.entries):
        beside = {each.experiment.name: each.entries.get(draw) or each.entries.get("") for each in block}
        start = beside.get(lower)
        find_harm([entry for entry in beside.values() if entry], start.run.name if start else lower)


def choose_kind(experiments: Sequence[Experiment], reference: str | None) -> str:
    """The kind of experiment that the others are compared with: the one asked for, else that of the first.

    Those that say how many labelled volumes they had come first, as one with all labels has none to be compared with.
    """
    kinds = {each.name: each.kind for each in experiments}
    kinds |= {kind: kind for kind in kinds.values()}
    if reference and reference not in kinds:
        raise UserError(f"--reference {reference} is none of the experiments.{nearest(reference, kinds)}")
    return kinds[reference or min(experiments, key=lambda each: each.labelled is None).name]


# ------------------------------------------------------------------------------------------------ words


def make_columns(entries: Sequence[Repeated], runs: Sequence[Run]) -> dict[str, Callable[[Repeated], str]]:
    """Heading -> how to fill the cell. A column that would say nothing is left out."""
    unit = "/".join(unique(runs, lambda run: run.unit))
    classes = list(dict.fromkeys(k for entry in entries for k in entry.scores if k != "mean"))
    columns: dict[str, Callable[[Repeated], str]] = {
        "experiment": lambda entry: entry.experiment.name,
        "supervision": lambda entry: " / ".join(unique([*entry.experiment.runs.values()], supervision)),
        "draws": lambda entry: str(len(entry.entries)),
        "Dice": lambda entry: mean_sd(entry.mean["dice"], len(entry.entries), 3),
        "each draw": lambda entry: " / ".join(number(value, 2) for value in entry.dice),
        "IoU": lambda entry: mean_sd(entry.mean["iou"], len(entry.entries), 3),
    }
    for k in classes if len(classes) > 1 else ():
        columns[f"Dice, {runs[0].class_name(int(k))}"] = lambda entry, k=k: (
            mean_sd(entry.scores[k]["dice"], len(entry.entries), 3) if k in entry.scores else NOTHING
        )
    columns |= {
        f"HD95 ({unit})": lambda entry: mean_sd(entry.mean["hd95"], len(entry.entries), 2),
        "HD95 penalised": lambda entry: number(entry.mean["hd95"]["penalised_mean"], 2),
        "missed": lambda entry: str(entry.mean["dice"]["misses"]),
        "false": lambda entry: str(entry.mean["dice"]["false_structures"]),
        "marks": lambda entry: "; ".join(experiment_marks(entry, runs)),
    }
    shown = {
        "IoU": any("iou" in entry.mean for entry in entries),
        "HD95 penalised": has_failures(entries),
        "marks": any(experiment_marks(entry, runs) for entry in entries),
    }
    return {name: fill for name, fill in columns.items() if shown.get(name, True)}


def has_failures(entries: Iterable[Repeated]) -> bool:
    return any(entry.mean["dice"][failure] for entry in entries for failure in FAILURES)


def experiment_marks(each: Repeated, runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing; one for all draws, unless they differ; then in how many it is worse."""
    entries = [*each.entries.values()]
    told = [", ".join(marks(entry.run, entry.which, runs) + distance_marks(entry.run, runs)) for entry in entries]
    worse = sum(bool(entry.worse_than) for entry in entries)
    harm = [f"worse than the start in {worse} of {len(entries)} draws"] * (worse > 0)
    return [words for words in dict.fromkeys(told) if words] + harm


def make_warnings(block: Sequence[Repeated], runs: Sequence[Run]) -> list[str]:
    """What stands above the table, loudly."""
    warnings = warnings_of(runs)
    patients = {each.experiment.name: {frozenset(entry.dice) for entry in each.entries.values()} for each in block}
    if mixed := [name for name, sets in patients.items() if len(sets) > 1]:
        warnings.append(f"The draws of {', '.join(mixed)} were not evaluated on the same patients; compare with care.")
    elif on_other_images([entry for each in block for entry in each.entries.values()]):
        warnings.append("Not every experiment was evaluated on the same patients; compare with care.")
    return warnings


def make_notes(blocks: Mapping[str, Sequence[Repeated]], kind: str, comparison: Comparison) -> list[str]:
    """How the numbers came about, and how often one is better than that of `kind`."""
    which, entries = headline(blocks), [entry for block in blocks.values() for entry in block]
    notes = [
        "Scores of a draw are the mean over its patients of the 3D score averaged over the foreground classes; then "
        "mean ± sd over draws: the sd says nothing of how patients differ.",
        f"{HD95}.",
        "Missed: a true structure of which nothing was predicted. False: a predicted one that is not there. All draws' "
        "are counted; they are Dice 0 and have no HD95. Neither true nor predicted: left out.",
    ]
    notes += [IOU] * comparison.iou + [PENALISED] * has_failures(entries)
    if compared := [each for each in blocks[which] if each.base]:
        found = "; ".join(f"{each.experiment.name} than {each.base} {each.better}:{each.worse}" for each in compared)
        notes.append(
            f"Draws in which the mean Dice of the {NAMED[which]} is better:worse, paired by draw, on the same patients "
            f"and with as many labelled volumes: {found}."
            + f" {kind} came first; --reference names another."
            * (not comparison.reference)
        )
    return notes + harm_note([run for each in entries for run in each.entries.values()], "Dice")


def csv_lines(entry: Repeated) -> list[dict[str, Any]]:
    """The lines of the csv: one for the mean of the classes, one per class.

    If draws differ in a fact, it stands for each.
    """
    of_draws = [patient_facts(each) for each in entry.entries.values()]
    first = {"experiment": entry.experiment.name, "draws": len(of_draws)}
    first |= {key: in_common([each[key] for each in of_draws]) for key in of_draws[0]}
    compared = {"base": entry.base, "better": entry.better, "worse": entry.worse}
    lines = []
    for name, scores in entry.scores.items():
        dice = [each.scores[name]["dice"]["mean"] for each in entry.entries.values() if name in each.scores]
        lines.append(first | {"class": name, "dice_of_draws": " / ".join(map(str, dice))} | score_cells(scores))
    return [line | (compared if entry.base and line["class"] == "mean" else dict.fromkeys(compared)) for line in lines]


def in_common(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else " / ".join(map(str, values))


def make_draw_report(runs: Sequence[Run], comparison: Comparison) -> Report:
    """Makes the report of runs repeated over draws."""
    experiments = group_draws(runs, comparison.draws)
    kind = choose_kind(experiments, comparison.reference)
    headings = blocks_of(runs)
    blocks = {which: [read_experiment(each, which, comparison.iou) for each in experiments] for which in headings}
    for block in blocks.values():
        compare(block, kind)
        find_harm_by_draw(block, comparison.lower)
    entries = [entry for block in blocks.values() for entry in block]
    columns = make_columns(entries, runs)
    return Report(
        " / ".join(unique(runs, lambda run: run.set_name)),
        make_warnings(blocks["last"], runs),
        list(columns),
        [(headings[which], [[fill(e) for fill in columns.values()] for e in block]) for which, block in blocks.items()],
        choice_notes(runs) + make_notes(blocks, kind, comparison) + notes_of(runs, blocks),
        [line for entry in entries for line in csv_lines(entry)],
        make_summary(blocks, columns, "Dice", lambda each: [*each.experiment.runs.values()]),
    )
