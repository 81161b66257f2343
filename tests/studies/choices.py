"""How well a network is chosen without labels: every pair, method and seed, against the labels revealed afterwards.

    python -m tests.studies.choices --out results/choices                            everything, and the tables
    python -m tests.studies.choices --out results/choices --pairs ct-mr --seeds 0 1  a part of it
    python -m tests.studies.choices --out results/choices --tables                   the tables of what is there

Trains a source network a pair and seed, adapts it by each method, and has each run choose one of its epochs, as
main.py does. Then it scores every candidate by the labels of the target's validation images, which nothing before has
read. A run that is there is kept, so the study can be stopped and started again, and several may share the work, each
with pairs or seeds of its own.

Leaves OUT/<pair>/<seed>/<method>.npz, what each validator and the truth say of each candidate, OUT/candidates.csv, and
OUT/tables.md. `python -m tests.studies.choices --help` has the rest.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import shutil
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import main as training
from dataloader import Reading, open_data
from datasets.grey_matching import levels_to_match
from engine.arguments import get_args
from engine.candidates import Candidates
from engine.evaluation import evaluate
from methods.settings import Settings
from nets.checkpoint_files import load_checkpoint, save_checkpoint
from networks import NETWORKS, UNet, build_network
from processes.lock import locked
from selection import choosing
from selection.candidates import SOURCE, Candidate, name_of_refresh
from selection.decision import Choice, decide
from selection.labelled import UNLABELLED
from selection.looks import LOOKS
from selection.target import open_target
from selection.validators import Evidence
from tests.studies.pairs import (
    EVERY,
    METHODS,
    PAIRS,
    RECIPES,
    USUAL,
    Pair,
    common,
    estimate_sizes,
    longer,
    method_flags,
    prior_of,
    source_flags,
)
from tests.studies.records import Record
from tests.studies.regret import write_tables
from tests.studies.sites import make_site
from tests.studies.starts import Start, among_file, beside, records_of, start_file, start_of
from utils import ProgramParser, run_program, settings_of

TIMES = "how often a source network goes through its epochs; each number needs an OUT of its own"


@NETWORKS.register()
class GroupUNet(UNet):
    """The U-Net with group normalisation in place of every batch normalisation: nothing in it can be refreshed."""

    def __init__(self, in_channels: int, n_class: int, *, nG: int = 32) -> None:
        super().__init__(in_channels, n_class, nG=nG)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.GroupNorm(min(4, child.num_features), child.num_features))


# ---------------------------------------------------------------------------------------------------- one adaptation


@contextmanager
def watched(seen: list[tuple[Evidence, Sequence[Candidate], Choice]]) -> Iterator[None]:
    """Inside it a run chooses in this process, what it saw is noted, and the candidates are not removed."""

    def noted(evidence: Evidence, candidates: Sequence[Candidate], **more: bool) -> Choice:
        choice = decide(evidence, candidates, **more)
        seen.append((evidence, candidates, choice))
        return choice

    here = patch.object(training, "run_alone", lambda function, *args: function(*args))
    with here, patch.object(choosing, "decide", noted), patch.object(Candidates, "end", lambda self: None):
        yield


def adapt(flags: list[str], run: Path) -> Record:
    """Adapts by these flags of main.py in the folder `run`, which is removed afterwards."""
    seen: list[tuple[Evidence, Sequence[Candidate], Choice]] = []
    flags = [*flags, "--workdir", str(run)]
    if run.exists():
        shutil.rmtree(run)
    with watched(seen):
        training.main(flags)
    [(evidence, candidates, choice)] = seen
    *truth, as_is = true_dice(get_args(flags), [*candidates, replace(candidates[0], levels=None)])
    record = Record.of(evidence, candidates, choice, np.stack(truth), as_is)
    shutil.rmtree(run)
    return record


def true_dice(args: Namespace, candidates: Sequence[Candidate]) -> list[np.ndarray]:
    """(P, K) Dice of each candidate on each patient of the validation images, whose labels are read here alone."""
    loss = training.build_objective(args)
    demand, reading = replace(training.demand_of(args), streams={}), settings_of(Reading, vars(args))
    sets = {one.share: open_data(demand, reading, loss.bounds, levels=one.levels)[1] for one in candidates}
    method = training.build_method(args, loss, sets[0.0].slices.shape[0])
    found = []
    for candidate in candidates:
        method.net.load_state_dict(candidate.weights())
        found.append(evaluate(method, sets[candidate.share], keep_masks=False).dice_3d())
    return found


# ----------------------------------------------------------------------------------------------------------- the study


def source_network(pair: Pair, seed: int, out: Path, recipe: str = USUAL) -> Path:
    """The network of the best epoch on the source's own validation images, trained if it is not there."""
    how = "" if recipe == USUAL else f"-{recipe}"
    place = out / "sources" / f"{pair.source}-{pair.network.split(':')[0]}{how}-{seed}"
    with locked(place, wait=True):
        if not (place / "whole").is_file():
            folder = make_site(pair.source, out / "data")
            flags = [*common(pair.source, folder, pair, seed), *source_flags(pair, recipe)]
            flags += ["--workdir", str(place / "run")]
            training.main(flags)
            (place / "whole").touch()
    return place / "run" / "best_3d.pkl"


def chosen_start(name: str, seed: int, pair: Pair, company: Sequence[str], out: Path, file: Path) -> tuple[float, str]:
    """Writes the network at which choose.py --start would begin beside these recipes; its look, and its name.

    What it chooses among is what `python -m tests.studies.recipes --compare` has seen.
    """
    taken = start_of(beside(Record.read(among_file(out, name, seed)), company))
    recipe = USUAL if taken == SOURCE else taken.split(", ")[0]
    share = list(LOOKS.values())[Start.read(start_file(out, recipe, name, seed)).decided]
    state = load_checkpoint(source_network(pair, seed, out, recipe))
    if taken == name_of_refresh(recipe):
        args = get_args(scored_flags(pair, pair.target, seed, file, out))
        target = open_target(settings_of(Reading, vars(args)), [], UNLABELLED)
        net = build_network(args.network, target.slices.shape[0], args.n_class)
        source = Candidate(recipe, 0, partial(dict, state["net"]), levels_to_match(state, share))
        state["net"] = choosing.refresh_of(source, target, net, settings_of(Settings, vars(args))).weights()
    save_checkpoint(file, state)
    return share, taken


def study(
    pair: Pair,
    name: str,
    seed: int,
    methods: Sequence[str],
    out: Path,
    recipe: str = USUAL,
    company: Sequence[str] | None = None,
) -> None:
    """Makes the records of one pair and seed that are not there.

    recipe: of the source network, unless a start is chosen beside a company
    """
    folder = records_of(out, recipe, company) / name / str(seed)
    wanted = [method for method in pair.methods if method in methods and not (folder / f"{method}.npz").is_file()]
    if not wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    source, target = (make_site(site, out / "data") for site in (pair.source, pair.target))
    weights = folder / "start.pkl" if company else source_network(pair, seed, out, recipe)
    if company:
        share, taken = chosen_start(name, seed, pair, company, out, weights)
        print(f"{name}, seed {seed}: begins at {taken}", flush=True)
    sizes = prior_of(pair, source, target, folder.parent / "sizes.csv")
    estimated = folder / "estimated.csv"
    if "sfda_em" in wanted and not estimated.is_file():
        estimate_sizes(pair, target, weights, estimated)
    start = [*common(pair.target, target, pair, seed), "--model_weights", str(weights)]
    if not company:
        share, why = look([*start, *method_flags("sfda", pair, sizes), "--workdir", str(folder)])
        print(f"{name}, seed {seed}: {why}", flush=True)
    flags = [*start, "--match_source", str(share)]
    for method in wanted:
        began = time.process_time()
        record = adapt([*flags, *method_flags(method, pair, sizes, estimated)], folder / method)
        record.save(folder / f"{method}.npz")
        print(f"{name}, seed {seed}, {method}: {time.process_time() - began:.0f} s of CPU", flush=True)


def scored_flags(pair: Pair, site: str, seed: int, weights: Path, out: Path) -> list[str]:
    """Of main.py, for a network on the images of a site."""
    folder = make_site(site, out / "data")
    told = ("--method", "noadap", "--model_weights", str(weights), "--workdir", str(out / "scored"))
    return [*common(site, folder, pair, seed), *told]


def in_every_look(weights: Path) -> list[Candidate]:
    """The source network in each of LOOKS."""
    state = load_checkpoint(weights)
    return [Candidate(SOURCE, 0, lambda: state["net"], levels_to_match(state, share)) for share in LOOKS.values()]


def look(flags: list[str]) -> tuple[float, str]:
    """What --match_source auto decides."""
    args = get_args(flags)
    return training.look(args, training.priors_of(training.build_objective(args)))


def get_options(argv: Sequence[str] | None) -> Namespace:
    parser = ProgramParser("python -m tests.studies.choices", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    usual = [name for name, pair in PAIRS.items() if not pair.mild]
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=usual, metavar="PAIR")
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--recipe", choices=RECIPES, default=USUAL, help="how the source networks learnt")
    begin = "adapt what choose.py --start takes of the usual source network and these, of what OUT/recipes/among tells"
    parser.add_argument("--beside", choices=RECIPES, nargs="+", metavar="RECIPE", help=begin)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--times", type=int, default=1, help=TIMES)
    parser.add_argument("--tables", action="store_true", help="train nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = get_options(argv)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks of a few thousand pixels
    for seed in [] if options.tables else options.seeds:
        for name in options.pairs:
            with locked(records_of(out, options.recipe, options.beside) / name / str(seed), wait=True):
                pair = longer(name, options.times)
                study(pair, name, seed, options.methods, out, options.recipe, options.beside)
    write_tables(records_of(out, options.recipe, options.beside))


if __name__ == "__main__":
    run_program(main)
