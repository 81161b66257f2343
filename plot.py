"""Pictures of finished runs: curves, losses, box plots, histograms, sizes, the panel of slices, the film over epochs.

    python plot.py curves --runs results/spine/noadap results/spine/sfda --column val_dice_3d --out curves.png

Everything is drawn from the run folders alone, except `panel` and `gif`, which also need the images.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

from analysis.plots.canvas import EPOCHS, STYLE
from analysis.plots.draws import plot_draws
from analysis.plots.epochs import plot_array, plot_column, plot_losses, plot_weights
from analysis.plots.patients import plot_boxes, plot_histogram, plot_sizes
from analysis.plots.pictures import make_film, plot_panel, write_coloured
from analysis.plots.threshold import plot_threshold
from analysis.run import Run, open_runs
from analysis.tables.draws import DRAWS
from metrics import SCORES
from processes.errors import UserError
from processes.ownership import refuse_input
from utils import run_program


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    kinds = parser.add_subparsers(dest="kind", required=True)

    def add(kind: str, several: bool, help: str) -> argparse.ArgumentParser:
        command = kinds.add_parser(kind, help=help, description=help, allow_abbrev=False)
        runs = ("--runs", {"nargs": "+"}) if several else ("--run", {"nargs": 1, "dest": "runs"})
        command.add_argument(runs[0], type=Path, required=True, help="results/<set>/<run>", **runs[1])
        command.add_argument("--out", type=Path, required=True)
        return command

    curves = add("curves", True, "one column of the log, or one raw array, over epochs")
    source = curves.add_mutually_exclusive_group()
    source.add_argument("--column", default="val_dice_3d", help="of the log (default: %(default)s)")
    source.add_argument("--array", help="a raw array (epochs, cases, classes) of the run, such as val_3d_hd95.npy")
    curves.add_argument("--classes", type=int, nargs="+", help="those of --array to average (default: --metric_axis)")
    add("losses", False, "every loss term over epochs")
    add("weights", True, "the weights of the losses over epochs")
    add("threshold", True, "the threshold of pseudo labels over iterations, and its prior")
    boxes = add("boxes", True, "a score per patient and run")
    boxes.add_argument("--score", choices=SCORES, default="dice")
    histogram = add("histogram", True, "how a score is distributed over patients, or an array over its slices")
    source = histogram.add_mutually_exclusive_group()
    source.add_argument("--score", choices=SCORES, default="dice")
    source.add_argument("--array", help="a raw array (epochs, cases, classes) of the run, such as val_dice.npy")
    for command in (boxes, histogram):
        command.add_argument("--class", dest="only", type=int, help="one class instead of the mean of all")
    add("sizes", False, "predicted, true and prior sizes")
    panel = add("panel", True, "images with truth and predictions")
    film = add("gif", False, "predictions over epochs")
    for command in (panel, film):
        command.add_argument("--slices", type=int, default=3, help="how many")
        command.add_argument("--data", type=Path, help="the set's folder, if it moved since the run")
    colour = add("colour", False, "saved masks as coloured pictures, in the folder --out")
    draws = add("draws", True, "Dice over the number of labelled volumes, every draw of them a dot")
    draws.add_argument("--draws", metavar="REGEX", required=True, help=DRAWS)
    for command in (boxes, histogram, panel, colour, draws):
        command.add_argument("--which", choices=EPOCHS, default="last", help="best_3d was chosen with target labels")
    args = parser.parse_args(argv)
    if args.kind == "curves" and args.classes and not args.array:
        raise UserError("--classes chooses classes of an --array; a --column of one class has its number in its name.")
    return args


def _images_of(run: Run, args: argparse.Namespace) -> Iterable[Path]:
    """The folders of the set that the run was evaluated on."""
    return (getattr(args, "data", None) or Path(run.provenance["dataset"]["path"])).glob("*/*/")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    runs = open_runs(args.runs)
    if args.kind != "colour":  # which makes a folder, that must be new or its own
        refuse_input(args.out, [path for run in runs for path in [*run.own_files, *_images_of(run, args)]], "--out")
    draw: dict[str, Callable[[], None]] = {
        "curves": lambda: (
            plot_array(runs, args.array, args.classes, args.out)
            if args.array
            else plot_column(runs, args.column, args.out)
        ),
        "losses": lambda: plot_losses(runs[0], args.out),
        "weights": lambda: plot_weights(runs, args.out),
        "threshold": lambda: plot_threshold(runs, args.out),
        "boxes": lambda: plot_boxes(runs, args.score, args.which, args.out, args.only),
        "histogram": lambda: plot_histogram(runs, args.array or args.score, args.which, args.out, args.only),
        "sizes": lambda: plot_sizes(runs[0], args.out),
        "panel": lambda: plot_panel(runs, args.out, args.slices, args.which, args.data),
        "gif": lambda: make_film(runs[0], args.out, args.slices, args.data),
        "colour": lambda: write_coloured(runs[0], args.which, args.out),
        "draws": lambda: plot_draws(runs, args.draws, args.which, args.out),
    }
    with mpl.rc_context(STYLE):
        draw[args.kind]()


if __name__ == "__main__":
    run_program(main)
