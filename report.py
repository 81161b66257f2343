"""One table over finished runs, on the screen and as text, csv, Markdown and LaTeX.

    python report.py --runs results/spine/noadap results/spine/sfda results/spine/fs --out results/spine/report

writes results/spine/report.{txt,csv,md,tex}. It reads the run folders and nothing else; same folders, same bytes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reports.classes import make_class_report
from reports.patients import make_patient_report
from reports.table import as_csv, as_latex, as_markdown, as_text
from run_files import open_runs
from utils import UserError, atomic_write, run_program

FORMATS = {"txt": as_text, "csv": as_csv, "md": as_markdown, "tex": as_latex}


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="results/<set>/<run> …")
    parser.add_argument("--out", type=Path, help="path without suffix; without it the table is only printed")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--lower", default="noadap", help="run that closes 0 %% of the gap (default: %(default)s)")
    parser.add_argument("--upper", default="fs", help="run that closes 100 %% (default: %(default)s)")
    parser.add_argument("--reference", help="run that the others are tested against (default: sfda, else the first)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    runs = open_runs(args.runs)
    by_iou = [run.name for run in runs if run.by_iou]
    if 0 < len(by_iou) < len(runs):
        raise UserError(
            f"One table is about one kind of score: {', '.join(by_iou)} of the {len(runs)} runs were scored by IoU, "
            "the others patient by patient. Make two reports."
        )
    report = (make_class_report if by_iou else make_patient_report)(runs, args)
    print(as_text(report), end="")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for suffix in args.formats:
            with atomic_write(args.out.with_name(f"{args.out.name}.{suffix}"), "w") as file:
                file.write(FORMATS[suffix](report))


if __name__ == "__main__":
    run_program(main)
