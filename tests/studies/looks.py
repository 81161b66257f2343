"""What is decided about grey levels before anything adapts: each pair and seed, against the labels revealed afterwards.

    python -m tests.studies.looks --out results/choices [--pairs ct-mr ...] [--seeds 0 1 2]

Trains a source network a pair and seed where none is there, and has --match_source auto decide. Then it scores the
source network on the target's validation images in each look. Sources and sites are shared with the study of choices
in the same folder. Prints a row a pair and seed, and the means over the seeds as a table.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.arguments import get_args
from processes.lock import locked
from selection.looks import LOOKS
from tests.studies.choices import in_every_look, look, scored_flags, source_network, true_dice
from tests.studies.pairs import PAIRS
from tests.studies.regret import table
from tests.studies.starts import patient_points
from utils import ProgramParser, run_program


def points(name: str, seed: int, out: Path) -> tuple[list[float], float]:
    """Dice in points of the source network in each of LOOKS, and in the one that is decided on."""
    pair = PAIRS[name]
    weights = source_network(pair, seed, out)
    flags = scored_flags(pair, pair.target, seed, weights, out)
    share, why = look(flags)
    print(f"{name}, seed {seed}: {why}", flush=True)
    dice = [float(np.nanmean(patient_points(each))) for each in true_dice(get_args(flags), in_every_look(weights))]
    return dice, dice[list(LOOKS.values()).index(share)]


def get_options(argv: Sequence[str] | None) -> Namespace:
    plain = [name for name, pair in PAIRS.items() if not (pair.stress or pair.mild)]
    parser = ProgramParser("python -m tests.studies.looks", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=plain, metavar="PAIR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = get_options(argv)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks of a few thousand pixels
    rows = []
    for name in options.pairs:
        found = []
        for seed in options.seeds:
            with locked(out / name / str(seed), wait=True):
                dice, decided = points(name, seed, out)
            found.append([*dice, decided, max(dice)])
        rows.append((name, *np.mean(found, axis=0).tolist()))
    rows.append(("**mean**", *np.mean([row[1:] for row in rows], axis=0).tolist()))
    print(table(("pair", "as they are", "matched", "exchanged", "**decided**", "best"), rows))


if __name__ == "__main__":
    run_program(main)
