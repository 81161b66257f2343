r"""One table over finished runs, on the screen and as text, csv, Markdown and LaTeX.

    python report.py --runs results/spine/noadap results/spine/sfda results/spine/fs --out results/spine/report

writes results/spine/report.{txt,csv,md,tex}. It reads the run folders and nothing else; same folders, same bytes.

    python report.py --runs results/acdc/{random,contrast}_2_{0,1,2} --draws '_\d+$' --out results/acdc/few_labels

has a line for random_2 and one for contrast_2 instead: mean ± sd over the draws that their runs' names end in.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.run import open_runs
from analysis.tables.classes import make_class_report
from analysis.tables.draws import DRAWS, make_draw_report
from analysis.tables.patients import make_patient_report
from analysis.tables.table import Comparison, as_csv, as_latex, as_markdown, as_text
from analysis.tables.unscored import make_unscored_report
from processes.errors import UserError
from processes.ownership import refuse_input
from utils import ProgramParser, atomic_write, nearest, run_program, settings_of, tell_once

LOWER, UPPER = "noadap", "fs"  # the runs that a gap is between, where nothing else is said
FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex, "txt": as_text}  # in order: make's target is the last


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser("report.py", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="results/<set>/<run> …")
    parser.add_argument("--out", type=Path, help="path without suffix; without it the table is only printed")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--lower", default=LOWER, help="run that closes 0 %% of the gap (default: %(default)s)")
    parser.add_argument("--upper", default=UPPER, help="run that closes 100 %% (default: %(default)s)")
    parser.add_argument(
        "--reference",
        help="run (with --draws: experiment or kind) that the others are tested against (default: sfda, "
        "else the first; with --draws: the first)",
    )
    parser.add_argument("--draws", metavar="REGEX", help=DRAWS)
    parser.add_argument("--iou", action="store_true", help="intersection over union of each volume, beside Dice")
    return parser.parse_args(argv)


def tell_of_strangers(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Prints a line on a run to compare with that is none of these, where a flag names it; defaults may be missing."""
    for flag, usual in (("lower", LOWER), ("upper", UPPER), ("reference", None)):
        name = getattr(args, flag)
        if args.draws is None and name not in (usual, *names):
            tell_once(f"--{flag} {name} is none of the runs, so nothing is compared with it.{nearest(name, names)}")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    runs = open_runs(args.runs)
    outs = (
        {suffix: args.out.with_name(f"{args.out.name}.{suffix}") for suffix in FORMATS if suffix in args.formats}
        if args.out
        else {}
    )
    for out in outs.values():
        refuse_input(out, [path for run in runs for path in run.own_files], "--out")
    by_iou = [run.name for run in runs if run.by_iou]
    if 0 < len(by_iou) < len(runs):
        raise UserError(
            f"One table is about one kind of score: {', '.join(by_iou)} of the {len(runs)} runs were scored by IoU, "
            "the others patient by patient. Make two reports."
        )
    if by_iou and (args.draws is not None or args.iou):
        raise UserError(
            f"--draws and --iou are about scores of patients; {', '.join(by_iou)} were scored by the IoU of all images "
            "together. Leave them out."
        )
    tell_of_strangers(args, [run.name for run in runs])
    make_report = make_class_report if by_iou else make_patient_report if args.draws is None else make_draw_report
    scored = [run for run in runs if run.scored or run.provenance.get("pretraining")]
    report = make_report(scored, settings_of(Comparison, vars(args))) if scored else make_unscored_report(runs)
    if blind := [run.name for run in runs if run not in scored]:
        report.notes.append(f"No scores, there was no ground truth: {', '.join(blind)}.")
    print(as_text(report), end="")
    for suffix, out in outs.items():
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out, "w") as file:
            file.write(FORMATS[suffix](report))


if __name__ == "__main__":
    run_program(main)
