"""What make calls for a study, whose runs lie in FOLDER/seed<seed>/<row>.

    python -m study plan --folder FOLDER --name SET --rows sfda fs --seeds 0 1 --make 'make … {seed}'
    python -m study progress --folder FOLDER
    python -m study report --folder FOLDER
    python -m study sensitivity --folder FOLDER --name SET --rows noadap sfda sfda_prior_x2 --seeds 0 1
    python -m study matrix --folder FOLDER --name SET --rows noadap sfda --seeds 0 --sites BMC UCL HK
    python -m study cross --folder FOLDER --name SET --rows noadap sfda --seeds 0 --sources cesource cesource_gin

A plan says what is to be trained, progress how far that is. A report is tables and a page of what is there, sensitivity
curves over what runs change of sfda. A matrix is every site as source and as target, of runs that lie in
FOLDER/<source>/<target>/seed<seed>/<row>. A cross is source networks that learnt in several ways, each adapted in
several.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.tables.table import as_text
from processes.errors import UserError
from study.asking import Asked, write_asked
from study.calibration import without_calibration
from study.plan import ask_make, describe, describe_progress, write_plan
from study.reading import open_study
from utils import ProgramParser, counted, listing, run_program

ON_SCREEN = ("headline", "comparisons")  # the other tables are files


def plan(args: argparse.Namespace) -> None:
    asked = Asked(args.name, tuple(args.rows), tuple(args.seeds), tuple(args.against))
    trainings = ask_make(args.make, asked.seeds)
    print(describe(args.folder, asked, trainings), flush=True)
    if args.dry:
        return
    if not args.beside:
        write_asked(args.folder, asked)
    if trainings:
        write_plan(args.folder, trainings)


def progress(args: argparse.Namespace) -> None:
    print(describe_progress(args.folder), flush=True)


def report(args: argparse.Namespace) -> None:
    from study.report import PAGE, is_reported, write_report  # here: the progress does not wait for what draws

    study = open_study(args.folder)
    if is_reported(args.folder):
        print(f"{args.folder}: tables and page are there, and nothing has changed since.", flush=True)
    else:
        tables = write_report(study)
        print("\n".join(as_text(tables[name]) for name in ON_SCREEN if name in tables), flush=True)
        if lacking := without_calibration(study):
            print(f"The calibration lacks {counted(len(lacking), 'run')}: {listing(lacking, 4)}.")
        print(f"More: {listing(f'{args.folder}/{name}.txt' for name in tables if name not in ON_SCREEN)}.")
        print(f"All of it on one page: {args.folder / PAGE}", flush=True)
    must_be_whole(args.folder, study.faults)


def sensitivity(args: argparse.Namespace) -> None:
    from study.sensitivity import write_sensitivity  # here: as above

    study = open_study(args.folder, Asked(args.name, tuple(args.rows), tuple(args.seeds)))
    print(as_text(write_sensitivity(study)), flush=True)
    must_be_whole(args.folder, study.faults)


def matrix(args: argparse.Namespace) -> None:
    from study.matrix import open_matrix, write_matrix  # here: as above

    found = open_matrix(args.folder, args.name, args.sites, args.rows, args.seeds)
    print(as_text(write_matrix(found)), flush=True)
    must_be_whole(args.folder, found.faults)


def cross(args: argparse.Namespace) -> None:
    from study.cross import open_cross, write_cross  # here: as above

    found = open_cross(args.folder, args.name, args.sources, args.rows, args.seeds, args.start)
    print(as_text(write_cross(found)), flush=True)
    must_be_whole(args.folder, found.faults)


def must_be_whole(folder: Path, faults: Sequence[str]) -> None:
    """Raises UserError at the end of all, where a run is missing."""
    if faults:
        told = listing((fault.removesuffix(".") for fault in faults), 4)
        raise UserError(
            f"{folder}: what is written says what it lacks, {counted(len(faults), 'run')}: {told}. The same command "
            "makes runs that are not there; one that is broken or left out is made once its folder is removed."
        )


def get_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ProgramParser("python -m study", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=words, description=words)
        sub.add_argument("--folder", type=Path, required=True, help="of the study, results/<set>/study")
        sub.set_defaults(run=run)
        return sub

    sub = command(plan, "say what is to be trained; note what was asked for")
    add_facts(sub)
    sub.add_argument("--against", nargs="*", default=[], help="rows that the others are tested against")
    sub.add_argument("--make", required=True, help="the command that makes the rows of {seed}")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--dry", action="store_true", help="only say it")
    how.add_argument("--beside", action="store_true", help="leave what the study was asked for as it is")
    command(progress, "say how many of the planned runs are done")
    command(report, "write the tables, and print them")
    add_facts(command(sensitivity, "draw curves over what runs change of sfda, and write them as a table"))
    sub = command(matrix, "write what networks of every site are worth at every site, as tables and a picture")
    add_facts(sub)
    sub.add_argument("--sites", nargs="+", required=True, help="each of them is a source, and a target")
    sub = command(cross, "write what each source network is worth, adapted in each way, as tables and a picture")
    add_facts(sub)
    sub.add_argument(
        "--sources", nargs="+", required=True, help="runs that source networks are of, the usual one first"
    )
    sub.add_argument(
        "--start", choices=("best_3d", "last"), default="best_3d", help="which network of these is adapted"
    )
    return parser.parse_args(argv)


def add_facts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", required=True, help="of the set")
    sub.add_argument("--rows", nargs="+", required=True, help="runs that are compared")
    sub.add_argument("--seeds", type=int, nargs="+", required=True, help="of the source networks")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args(argv)
    args.run(args)


if __name__ == "__main__":
    run_program(main)
