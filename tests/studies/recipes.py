"""How source networks that learnt in several ways do on a site they have not seen, and at home.

    python -m tests.studies.recipes --out results/choices                              everything, and the tables
    python -m tests.studies.recipes --out results/choices --pairs ct-mr --seeds 0 1    a part of it
    python -m tests.studies.recipes --out results/choices --tables                     the tables of what is there

Trains a source network a site, recipe and seed, and one that learns from the labelled target, for the upper bound.
Then it scores each on the target's validation images, in each look of --match_source, and on those of its own site.
Sites and networks are shared with the study of choices in the same folder. What `python -m tests.studies.choices
--recipe NAME` has adapted there stands in the tables too.

Leaves OUT/recipes/<recipe>/<pair>/<seed>/start.npz and OUT/recipes.md. A recipe is recommended by the pairs of one half
(every other pair in their order) and judged by those of the other half.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

import main as training
from analysis.statistics.claims import gap_closed
from dataloader import Reading
from datasets.grey_matching import levels_to_match
from engine.arguments import get_args
from methods.settings import Settings
from nets.checkpoint_files import load_checkpoint
from networks import build_network
from processes.lock import locked
from selection import choosing
from selection.candidates import REFRESH, SOURCE, Candidate, refreshed
from selection.labelled import UNLABELLED
from selection.looks import LOOKS
from selection.target import open_target
from tests.studies.choices import look, records_of, source_network, true_dice, watched
from tests.studies.pairs import EVERY, PAIRS, RECIPES, USUAL, Pair, common, method_flags, prior_of
from tests.studies.records import Record
from tests.studies.regret import HARM, table
from tests.studies.sites import make_site
from utils import ProgramParser, atomic_write, run_program, settings_of

PLAIN = [name for name, pair in PAIRS.items() if not pair.stress]


@dataclass(frozen=True)
class Start:
    """One source network before anything adapts it: Dice in points of each validation patient, mean over classes.

    own       (Q,) on its own site
    shown     (L, P) on the target, in each of LOOKS
    decided   which of these --match_source auto takes
    upper     (P,) of the last epoch of a network that learnt from the labelled target
    """

    own: np.ndarray
    shown: np.ndarray
    decided: int
    upper: np.ndarray

    @property
    def as_is(self) -> np.ndarray:
        return self.shown[0]

    @property
    def found(self) -> np.ndarray:
        return self.shown[self.decided]

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def read(cls, path: Path) -> "Start":
        with np.load(path, allow_pickle=False) as file:
            whole = dict(file)
        return cls(**whole | {"decided": int(whole["decided"])})


# ----------------------------------------------------------------------------------------------------------- the study


def measure(name: str, seed: int, recipe: str, out: Path) -> Start:
    """Trains what is not there and scores it."""
    pair = PAIRS[name]
    weights = source_network(pair, seed, out, recipe)
    supervised = source_network(replace(pair, source=pair.target), seed, out).with_name("last.pkl")
    state = load_checkpoint(weights)
    shown = [Candidate(SOURCE, 0, lambda: state["net"], levels_to_match(state, share)) for share in LOOKS.values()]
    flags = scored_flags(pair, pair.target, seed, weights, out)
    share, why = look(flags)
    print(f"{name}, seed {seed}, {recipe}: {why}", flush=True)
    return Start(
        scores(scored_flags(pair, pair.source, seed, weights, out), shown[:1])[0],
        np.stack(scores(flags, shown)),
        list(LOOKS.values()).index(share),
        scores(flags, [Candidate(SOURCE, 0, lambda: load_checkpoint(supervised)["net"])])[0],
    )


def scored_flags(pair: Pair, site: str, seed: int, weights: Path, out: Path) -> list[str]:
    """Of main.py, for a network on the validation images of a site."""
    folder = make_site(site, out / "data")
    told = ("--method", "noadap", "--model_weights", str(weights), "--workdir", str(out / "scored"))
    return [*common(site, folder, pair, seed), *told]


def scores(flags: list[str], shown: Sequence[Candidate]) -> list[np.ndarray]:
    return [patient_points(dice) for dice in true_dice(get_args(flags), shown)]


def patient_points(dice: np.ndarray) -> np.ndarray:
    """(P,) Dice in points of each patient, the mean over the foreground classes, out of (P, K)."""
    return 100 * np.nanmean(dice[:, 1:], axis=1)


def compare(name: str, seed: int, recipes: Sequence[str], out: Path) -> Record:
    """What is seen without labels of the source networks of these recipes, each in its look, and of their refreshes."""
    pair, starts = PAIRS[name], {recipe: Start.read(start_file(out, recipe, name, seed)) for recipe in recipes}
    source, target = (make_site(site, out / "data") for site in (pair.source, pair.target))
    sizes = prior_of(pair, source, target, out / name / "sizes.csv")
    weights = source_network(pair, seed, out)
    args = get_args([*scored_flags(pair, pair.target, seed, weights, out), *method_flags("sfda", pair, sizes)])
    reading, settings = settings_of(Reading, vars(args)), settings_of(Settings, vars(args))
    seen_by = open_target(reading, training.priors_of(training.build_objective(args)), UNLABELLED)
    net = build_network(args.network, seen_by.slices.shape[0], args.n_class)
    candidates = []
    for recipe, start in starts.items():
        state = load_checkpoint(source_network(pair, seed, out, recipe))
        levels = levels_to_match(state, list(LOOKS.values())[start.decided])
        net.load_state_dict(state["net"])
        statistics = refreshed(net, (image for image, _ in seen_by.batches(levels)), settings)
        names = (SOURCE, REFRESH) if recipe == USUAL else (recipe, f"{recipe}, {REFRESH}")
        for candidate, own in zip(names, (state["net"], statistics), strict=True):
            candidates.append(Candidate(candidate, 0, partial(dict, own), levels))
    with watched(found := []):
        choosing.choose(seen_by, net, candidates, settings, None)
    [(evidence, _, choice)] = found
    *truth, as_is = true_dice(args, [*candidates, replace(candidates[0], levels=None)])
    return Record.of(evidence, candidates, choice, np.stack(truth), as_is)


# -------------------------------------------------------------------------------------------------------------- tables

Square = Mapping[tuple[str, str], list[Start]]  # of a recipe and a pair, a start a seed


def start_file(out: Path, recipe: str, name: str, seed: int) -> Path:
    return out / "recipes" / recipe / name / str(seed) / "start.npz"


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


def among_file(out: Path, name: str, seed: int) -> Path:
    return out / "recipes" / "among" / name / f"{seed}.npz"


def by_company(out: Path, recipes: Sequence[str], pairs: Sequence[str], seeds: Sequence[int]) -> str:
    """A row a set of recipes: what is chosen without labels among the usual source network, its refresh and theirs."""
    files = [among_file(out, name, seed) for name in pairs for seed in seeds]
    records = [Record.read(file) for file in files if file.is_file()]
    others = [recipe for recipe in recipes if recipe != USUAL and all(recipe in each.names for each in records)]
    if not records or not others:
        return ""
    companies = [(), *((name,) for name in others), *combinations(others, 2), tuple(others)]
    rows = []
    for company in companies:
        seen = [record.among({SOURCE, REFRESH, *company}) for record in records]
        alone = [record.among({SOURCE, REFRESH}) for record in records]
        chosen, usual = (100 * np.array([each.dice[each.choice.place] for each in own]) for own in (seen, alone))
        as_is, best = (100 * np.array([measure(each.dice) for each in seen]) for measure in (lambda d: d[-1], np.max))
        lost = (usual - chosen).max()
        harms = int((as_is - chosen > HARM).sum())
        rows.append((" ".join(company) or "nobody", *map(float, (chosen.mean(), (chosen - usual).mean(), lost)), harms))
        rows[-1] += (float((best - chosen).mean()),)
    head = ("beside the usual one", "chosen", "gain", "worst loss", "harms", "mean regret")
    return f"{len(records)} choices\n\n{table(head, sorted(rows, key=lambda row: -row[1]))}"


# ------------------------------------------------------------------------------------------------ adapted from there


def adapted(out: Path, recipe: str, name: str, seed: int) -> dict[str, Record]:
    """By method, what the study of choices made of this source network."""
    folder = records_of(out, recipe) / name / str(seed)
    return {method: Record.read(file) for method in EVERY if (file := folder / f"{method}.npz").is_file()}


CHOSEN = "chosen of all"


def reached(records: Mapping[str, Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method, and of all of them together: (P,) points of what was chosen, and of the best."""
    found = {}
    for method, record in (dict(records) | {CHOSEN: Record.joined(records)}).items():
        points = [patient_points(dice) for dice in record.truth]
        found[method] = points[record.choice.place], max(points, key=np.nanmean)
    return found


def cross(out: Path, square: Square, seeds: Sequence[int]) -> Iterator[str]:
    """Tables of what the methods reach from each recipe: means over pairs, and pair by pair what is chosen of all."""
    pairs = list(dict.fromkeys(name for _, name in square))
    for recipe in dict.fromkeys(recipe for recipe, _ in square):
        runs = {(name, seed): adapted(out, recipe, name, seed) for name in pairs for seed in seeds}
        methods = [method for method in EVERY if any(method in own for own in runs.values())]
        whole = [name for name in pairs if all(set(methods) <= set(runs[name, seed]) for seed in seeds)]
        if not methods or not whole:
            continue
        found = {
            key: reached({method: own[method] for method in methods}) for key, own in runs.items() if key[0] in whole
        }
        rows = []
        for method in (*methods, CHOSEN):
            share = [closed(square, name, [found[name, seed][method][0] for seed in seeds]) for name in whole]
            best = [closed(square, name, [found[name, seed][method][1] for seed in seeds]) for name in whole]
            points = mean([found[name, seed][method][0].mean() for name in whole for seed in seeds])
            rows.append((method, points, mean(share), min(share), mean(best)))
        head = ("method", "chosen", "gap closed, %", "least", "by the oracle, %")
        yield f"{recipe}: {len(whole)} pairs, {len(seeds)} seeds\n\n{table(head, rows)}"
        yield f"{recipe}, what is chosen of all\n\n{final(square, whole, found, seeds)}"


def final(square: Square, pairs: Sequence[str], found: Mapping, seeds: Sequence[int]) -> str:
    """A row a pair: source, chosen, oracle, fs, and the share of the gap that the choice closes, with its interval."""
    rows = []
    for name in pairs:
        usual = square[USUAL, name]
        lower, upper = (np.stack([getattr(start, part) for start in usual], 1) for part in ("as_is", "upper"))
        chosen, best = (np.stack([found[name, seed][CHOSEN][place] for seed in seeds], 1) for place in (0, 1))
        share = gap_closed(chosen, lower, upper)
        words = "undefined"
        if share:
            ends = f" ({100 * share.low:.0f} to {100 * share.high:.0f})" if share.is_known else ""
            words = f"{100 * share.mean:.0f}{ends}"
        points = (float(np.nanmean(each)) for each in (lower, chosen, best, upper))
        rows.append((name, *points, f"{closed(square, name, list(chosen.T)):.0f}", words))
    return table(("pair", "source", "**chosen**", "oracle", "fs", "gap closed, %", "with interval"), rows)


def write_tables(out: Path, recipes: Sequence[str], pairs: Sequence[str], seeds: Sequence[int]) -> None:
    """Writes and prints OUT/recipes.md."""
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
            words.append(f"chosen among source networks, of pairs {half}: {told}")
    words += cross(out, square, seeds)
    with atomic_write(out / "recipes.md", "w") as file:
        file.write("\n\n".join(words) + "\n")
    print("\n\n".join(words))


def get_options(argv: Sequence[str] | None) -> Namespace:
    parser = ProgramParser("python -m tests.studies.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", choices=PLAIN, default=PLAIN, metavar="PAIR")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--compare", action="store_true", help="and look at all source networks of a pair, unlabelled")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = get_options(argv)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks of a few thousand pixels
    for seed in [] if options.tables else options.seeds:
        for name in options.pairs:
            for recipe in options.recipes:
                file = start_file(out, recipe, name, seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                with locked(file.parent, wait=True):
                    if not file.is_file():
                        measure(name, seed, recipe, out).save(file)
    if options.compare:
        recipes = [USUAL, *(name for name in options.recipes if name != USUAL)]
        for seed in options.seeds:
            for name in options.pairs:
                file = among_file(out, name, seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.is_file():
                    compare(name, seed, recipes, out).save(file)
    write_tables(out, [USUAL, *(name for name in options.recipes if name != USUAL)], options.pairs, options.seeds)


if __name__ == "__main__":
    run_program(main)
