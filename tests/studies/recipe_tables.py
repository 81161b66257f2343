"""The tables of a study of recipes: how each does at home and away, which start is chosen, what adaptations reach."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from analysis.statistics.claims import gap_closed
from selection.candidates import REFRESH, SOURCE
from tests.studies.pairs import EVERY, PAIRS, USUAL
from tests.studies.records import Record
from tests.studies.regret import HARM, table
from tests.studies.starts import (
    Start,
    among_file,
    beside,
    patient_points,
    records_of,
    start_file,
    start_of,
)
from utils import atomic_write

PLAIN = [name for name, pair in PAIRS.items() if not pair.stress]
Square = Mapping[tuple[str, str], list[Start]]  # of a recipe and a pair, a start a seed


def read_starts(out: Path, recipes: Sequence[str], pairs: Sequence[str], seeds: Sequence[int]) -> Square:
    """What is there of the pairs that every recipe has in every seed; a recipe that has none is left out."""
    files = {
        (recipe, name): [start_file(out, recipe, name, seed) for seed in seeds] for recipe in recipes for name in pairs
    }
    recipes = [recipe for recipe in recipes if any(files[recipe, name][0].is_file() for name in pairs)]
    whole = [name for name in pairs if all(file.is_file() for recipe in recipes for file in files[recipe, name])]
    return {(recipe, name): [*map(Start.read, files[recipe, name])] for recipe in recipes for name in whole}


def closed(square: Square, name: str, values: Sequence[np.ndarray]) -> float:
    """The share in percent of the gap of a pair that these scores close, a seed each; NaN where there is none."""
    usual = square[USUAL, name]
    lower, upper = (np.mean([getattr(start, part) for start in usual]) for part in ("as_is", "upper"))
    return float(100 * (np.mean(values) - lower) / (upper - lower)) if upper > lower else np.nan


def by_recipe(square: Square, pairs: Sequence[str]) -> str:
    """A row a recipe: means over pairs and seeds, at home and on the target, and harms against the usual network."""
    rows = []
    for recipe in dict.fromkeys(recipe for recipe, _ in square):
        starts = {name: square[recipe, name] for name in pairs}
        every = [start for own in starts.values() for start in own]
        points = [mean([getattr(start, part).mean() for start in every]) for part in ("own", "as_is", "found")]
        shares = [closed(square, name, [start.found for start in own]) for name, own in starts.items()]
        lost = [
            usual.as_is.mean() - start.found.mean()
            for name, own in starts.items()
            for usual, start in zip(square[USUAL, name], own, strict=True)
        ]
        harms = sum(each > HARM for each in lost)
        rows.append((recipe, *points, mean(shares), harms, max(0.0, float(max(lost)))))
    head = ("recipe", "own site", "as it is", "grey levels decided", "gap closed, %", "harms", "worst harm")
    return table(head, rows)


def mean(values: Sequence[float]) -> float:
    """Of those that are known; NaN where none is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan


def by_pair(square: Square) -> str:
    """A row a pair: the usual network as it is, each recipe in the grey levels that are decided, the upper bound."""
    recipes = list(dict.fromkeys(recipe for recipe, _ in square))
    rows = []
    for name in dict.fromkeys(name for _, name in square):
        usual = square[USUAL, name]
        own = [mean([start.found.mean() for start in square[recipe, name]]) for recipe in recipes]
        lower, upper = (mean([getattr(start, part).mean() for start in usual]) for part in ("as_is", "upper"))
        rows.append((name, lower, *own, upper))
    return table(("pair", "usual as it is", *recipes, "fs"), rows)


# --------------------------------------------------------------------------------- chosen among several source networks


def by_company(out: Path, recipes: Sequence[str], pairs: Sequence[str], seeds: Sequence[int]) -> str:
    """A row a set of recipes: where adaptations begin, chosen without labels among the usual source network and theirs.

    Gain and loss are against the usual network in its look; harms are against it on images as they are.
    """
    files = [among_file(out, name, seed) for name in pairs for seed in seeds]
    records = [Record.read(file) for file in files if file.is_file()]
    others = [recipe for recipe in recipes if recipe != USUAL and all(recipe in each.names for each in records)]
    if not records or not others:
        return ""
    rows = []
    for company in dict.fromkeys([(), *((name,) for name in others), *combinations(others, 2), tuple(others)]):
        seen = [beside(record, company) for record in records]
        start, usual, as_is, best = 100 * np.array([begins_at(record) for record in seen]).T
        gain, harms = start - usual, int((as_is - start > HARM).sum())
        measured = start.mean(), gain.mean(), max(0, -gain.min()), (best - start).mean()
        rows.append((" ".join(company) or "nobody", *map(float, measured), harms))
    head = ("beside the usual one", "start", "gain", "worst loss", "mean regret", "harms")
    return f"{len(records)} choices\n\n{table(head, sorted(rows, key=lambda row: -row[1]))}"


def begins_at(record: Record) -> tuple[float, float, float, float]:
    """Dice of the start, of the usual source network in its look and as it is, and of the best source network."""
    names, dice = record.names.tolist(), record.dice
    best = max(dice[place] for place, name in enumerate(names) if name != REFRESH)
    return dice[names.index(start_of(record))], dice[names.index(SOURCE)], dice[-1], best


# ------------------------------------------------------------------------------------------------ adapted from there


def adapted(out: Path, recipe: str, name: str, seed: int, company: Sequence[str] | None = None) -> dict[str, Record]:
    """By method, what the study of choices made of this source network, or of the start chosen beside a company."""
    folder = records_of(out, recipe, company) / name / str(seed)
    return {method: Record.read(file) for method in EVERY if (file := folder / f"{method}.npz").is_file()}


CHOSEN = "chosen of all"
Reached = dict[str, tuple[np.ndarray, ...]]  # by method, points of what was chosen, the best and the start, (P,) each


def reached(records: Mapping[str, Record]) -> Reached:
    """By method, and of all of them together: (P,) points of what was chosen, of the best, and of the start."""
    found = {}
    for method, record in (dict(records) | {CHOSEN: Record.joined(records)}).items():
        points = [patient_points(dice) for dice in record.truth]
        start = points[record.names.tolist().index(SOURCE)]
        found[method] = points[record.choice.place], max(points, key=np.nanmean), start
    return found


def shares(
    square: Square, found: Mapping[tuple[str, int], Reached], pairs: Sequence[str], seeds: Sequence[int], method: str
) -> tuple[list[float], list[float]]:
    """The shares in percent of the gap of each pair that the choices of a method close, and that its best would."""
    chosen, best = (
        [closed(square, name, [found[name, seed][method][place] for seed in seeds]) for name in pairs]
        for place in (0, 1)
    )
    return chosen, best


Adapted = Mapping[tuple[str, int], Mapping[str, Record]]  # of a pair and seed, a record a method


def cross(out: Path, square: Square, company: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
    """Tables of what the methods reach from each recipe, and from the start that is chosen beside a company."""
    keys = [(name, seed) for name in dict.fromkeys(name for _, name in square) for seed in seeds]
    for recipe in dict.fromkeys(recipe for recipe, _ in square):
        yield from of_start(recipe, square, {key: adapted(out, recipe, *key) for key in keys}, seeds)
    runs = {key: adapted(out, USUAL, *key, company) for key in keys}
    yield from of_start(f"start chosen beside {' '.join(company)}", square, runs, seeds)


def of_start(start: str, square: Square, runs: Adapted, seeds: Sequence[int]) -> Iterator[str]:
    """Means over pairs that have runs in every seed, a row a method that all of these have; and pair by pair."""
    pairs = list(dict.fromkeys(name for name, _ in runs))
    whole = [name for name in pairs if all(runs[name, seed] for seed in seeds)]
    kept = {key: own for key, own in runs.items() if key[0] in whole}
    methods = [method for method in EVERY if all(method in own for own in kept.values())]
    if not methods or not whole:
        return
    found = {key: reached({method: own[method] for method in methods}) for key, own in kept.items()}
    rows = []
    for method in (*methods, CHOSEN):
        share, best = shares(square, found, whole, seeds, method)
        points = mean([found[name, seed][method][0].mean() for name in whole for seed in seeds])
        rows.append((method, points, mean(share), min(share), mean(best)))
    head = ("method", "chosen", "gap closed, %", "least", "by the oracle, %")
    yield f"{start}: {len(whole)} pairs, {len(seeds)} seeds\n\n{table(head, rows)}"
    yield f"{start}, what is chosen of all\n\n{final(square, whole, found, seeds)}"


def final(square: Square, pairs: Sequence[str], found: Mapping[tuple[str, int], Reached], seeds: Sequence[int]) -> str:
    """A row a pair: source, start, chosen, oracle, fs; the share of the gap that the choice closes, with interval."""
    rows = []
    for name in pairs:
        usual = square[USUAL, name]
        lower, upper = (np.stack([getattr(start, part) for start in usual], 1) for part in ("as_is", "upper"))
        chosen, best, start = (np.stack([found[name, seed][CHOSEN][n] for seed in seeds], 1) for n in range(3))
        share = gap_closed(chosen, lower, upper)
        words = "undefined"
        if share:
            ends = f" ({100 * share.low:.0f} to {100 * share.high:.0f})" if share.is_known else ""
            words = f"{100 * share.mean:.0f}{ends}"
        points = (float(np.nanmean(each)) for each in (lower, start, chosen, best, upper))
        rows.append((name, *points, f"{closed(square, name, list(chosen.T)):.0f}", words))
    return table(("pair", "source", "start", "**chosen**", "oracle", "fs", "gap closed, %", "with interval"), rows)


def write_tables(
    out: Path, recipes: Sequence[str], pairs: Sequence[str], seeds: Sequence[int], company: Sequence[str]
) -> None:
    """Writes and prints OUT/recipes.md. company: recipes that stand beside the usual one in the last table"""
    square = read_starts(out, recipes, pairs, seeds)
    if not square:
        return
    whole = list(dict.fromkeys(name for _, name in square))
    halves = {
        "that recommend": [name for name in whole if PLAIN.index(name) % 2 == 0],
        "that judge": [name for name in whole if PLAIN.index(name) % 2],
        "of both halves": whole,
    }
    words = [f"{len(own)} pairs {half}\n\n{by_recipe(square, own)}" for half, own in halves.items() if own]
    words += [by_pair(square)]
    for half, own in halves.items():
        if told := by_company(out, recipes, own, seeds):
            words.append(f"start chosen among source networks, of pairs {half}: {told}")
    words += cross(out, square, company, seeds)
    with atomic_write(out / "recipes.md", "w") as file:
        file.write("\n\n".join(words) + "\n")
    print("\n\n".join(words))
