"""Pictures of finished runs: curves, losses, box plots, histograms, sizes, the panel of slices, the film over epochs.

    python plot.py curves --runs results/spine/noadap results/spine/sfda --column val_dice_3d --out curves.png

Everything is drawn from the run folders alone, except `panel` and `gif`, which also need the images.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

from analysis import plots
from analysis.plots.canvas import STYLE
from analysis.plots.kinds import KINDS
from analysis.run import Run, open_runs
from processes.ownership import refuse_input
from utils import ProgramParser, run_program

for module in pkgutil.iter_modules(plots.__path__):  # which fills KINDS
    importlib.import_module(f"{plots.__name__}.{module.name}")


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser("plot.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="kind", required=True)
    for name, kind in KINDS.items():
        command = commands.add_parser(name, help=kind.help, description=kind.help)
        runs = ("--runs", {"nargs": "+"}) if kind.several else ("--run", {"nargs": 1, "dest": "runs"})
        command.add_argument(runs[0], type=Path, required=True, help="results/<set>/<run>", **runs[1])
        command.add_argument("--out", type=Path, required=True)
        kind.add_flags(command)
    return parser.parse_args(argv)


def _images_of(run: Run, args: argparse.Namespace) -> Iterable[Path]:
    """The folders of the set that the run was evaluated on."""
    return (getattr(args, "data", None) or Path(run.provenance["dataset"]["path"])).glob("*/*/")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    runs = open_runs(args.runs)
    if args.kind != "colour":  # which makes a folder, that must be new or its own
        refuse_input(args.out, [path for run in runs for path in [*run.own_files, *_images_of(run, args)]], "--out")
    with mpl.rc_context(STYLE):
        KINDS[args.kind].draw(runs, vars(args))


if __name__ == "__main__":
    run_program(main)
