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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

import main as training
from dataloader import Reading
from datasets.grey_matching import levels_to_match
from engine.arguments import get_args
from methods.settings import Settings
from nets.checkpoint_files import load_checkpoint
from networks import build_network
from processes.lock import locked
from selection import choosing
from selection.candidates import SOURCE, Candidate
from selection.labelled import UNLABELLED
from selection.looks import LOOKS
from selection.target import open_target
from tests.studies.choices import TIMES, in_every_look, look, scored_flags, source_network, true_dice, watched
from tests.studies.pairs import RECIPES, USUAL, Pair, longer, method_flags, prior_of
from tests.studies.recipe_tables import PLAIN, write_tables
from tests.studies.records import Record
from tests.studies.sites import make_site
from tests.studies.starts import Start, among_file, patient_points, start_file
from utils import ProgramParser, run_program, settings_of

# ----------------------------------------------------------------------------------------------------------- the study


def measure(pair: Pair, seed: int, recipe: str, out: Path) -> Start:
    """Trains what is not there and scores it."""
    weights = source_network(pair, seed, out, recipe)
    supervised = source_network(replace(pair, source=pair.target), seed, out).with_name("last.pkl")
    shown, flags = in_every_look(weights), scored_flags(pair, pair.target, seed, weights, out)
    share, why = look(flags)
    print(f"{pair.source} to {pair.target}, seed {seed}, {recipe}: {why}", flush=True)
    return Start(
        scores(scored_flags(pair, pair.source, seed, weights, out), shown[:1])[0],
        np.stack(scores(flags, shown)),
        list(LOOKS.values()).index(share),
        scores(flags, [Candidate(SOURCE, 0, lambda: load_checkpoint(supervised)["net"])])[0],
    )


def scores(flags: list[str], shown: Sequence[Candidate]) -> list[np.ndarray]:
    return [patient_points(dice) for dice in true_dice(get_args(flags), shown)]


def compare(pair: Pair, name: str, seed: int, recipes: Sequence[str], out: Path) -> Record:
    """What is seen without labels of the source networks of these recipes, each in its look, and of their refreshes."""
    starts = {recipe: Start.read(start_file(out, recipe, name, seed)) for recipe in recipes}
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
        called = SOURCE if recipe == USUAL else recipe
        source = Candidate(called, 0, partial(dict, state["net"]), levels)
        candidates += [source, choosing.refresh_of(source, seen_by, net, settings)]
    with watched(found := []):
        choosing.choose(seen_by, net, candidates, settings, None, is_start=True)
    [(evidence, _, choice)] = found
    *truth, as_is = true_dice(args, [*candidates, replace(candidates[0], levels=None)])
    return Record.of(evidence, candidates, choice, np.stack(truth), as_is)


def get_options(argv: Sequence[str] | None) -> Namespace:
    parser = ProgramParser("python -m tests.studies.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", choices=PLAIN, default=PLAIN, metavar="PAIR")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--compare", action="store_true", help="and look at all source networks of a pair, unlabelled")
    company = "recipes that stand beside the usual one in the last table"
    parser.add_argument("--company", nargs="+", choices=RECIPES, default=["slaug"], metavar="NAME", help=company)
    parser.add_argument("--times", type=int, default=1, help=TIMES)
    parser.add_argument("--tables", action="store_true", help="train nothing")
    return parser.parse_args(argv)


def work(options: Namespace, recipes: Sequence[str], out: Path) -> None:
    """Makes what is not there."""
    for name, seed in product(options.pairs, options.seeds):
        pair = longer(name, options.times)
        for recipe in recipes:
            file = start_file(out, recipe, name, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            with locked(file.parent, wait=True):
                if not file.is_file():
                    measure(pair, seed, recipe, out).save(file)
        file = among_file(out, name, seed)
        if options.compare and not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            compare(pair, name, seed, recipes, out).save(file)


def main(argv: Sequence[str] | None = None) -> None:
    options = get_options(argv)
    recipes, out = [USUAL, *(name for name in options.recipes if name != USUAL)], options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks of a few thousand pixels
    if not options.tables:
        work(options, recipes, out)
    write_tables(out, recipes, options.pairs, options.seeds, options.company)


if __name__ == "__main__":
    run_program(main)
