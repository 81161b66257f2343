"""python -m preprocess.phantom COHORT --dest FOLDER [--size small|full] [--seed 0] …

Makes up a cohort and writes it in the layout of the data set's official archive.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from preprocess.new_set import whole_folder
from preprocess.phantom import CARD, SIZES
from preprocess.phantom.archive import write_scan
from preprocess.phantom.cohorts import COHORTS, DECATHLON
from preprocess.phantom.decathlon import write_contents
from preprocess.phantom.streets import make_streets
from processes.pool import in_processes
from utils import ProgramParser, run_program


def make_cohort(kind: str, dest: Path, size: str = "small", seed: int = 0, jobs: int = 1) -> int:
    """Writes the cohort's files and phantom.json into the new folder `dest`; the number of scans.

    Raises UserError if `dest` is there: a phantom may have been worked on, too.
    """
    with whole_folder(dest) as made:
        made.mkdir(parents=True)
        count = MAKERS[kind](made, size, seed, jobs)
        (made / CARD).write_text(json.dumps({"phantom": size, "kind": kind, "seed": seed}) + "\n", encoding="utf-8")
    return count


def _make_scans(kind: str, folder: Path, size: str, seed: int, jobs: int) -> int:
    sites = COHORTS[kind]
    work = [(kind, number, scan) for number, site in enumerate(sites) for scan in range(site.grids[size].scans)]
    write = partial(write_scan, folder=folder, size=size, seed=seed)
    for _ in tqdm(in_processes(write, work, jobs), f"phantom {kind}", len(work), unit="scan", disable=None):
        pass
    if kind in DECATHLON:
        write_contents(folder, DECATHLON[kind], list(sites[0].images))
    return len(work)


MAKERS: dict[str, Callable[[Path, str, int, int], int]] = {
    **{kind: partial(_make_scans, kind) for kind in COHORTS},
    "gta5": make_streets,
}


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got '{text}'")
    return int(text)


def main() -> None:
    """Reads the command line, says loudly that this is made up, writes the cohort."""
    parser = ProgramParser("python -m preprocess.phantom", description=__doc__.split("\n\n")[1])
    parser.add_argument("kind", choices=sorted(MAKERS))
    parser.add_argument("--dest", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--size", choices=SIZES, default="small", help="small: quick; full: as published, or nearly")
    parser.add_argument("--seed", type=_natural, default=0)
    parser.add_argument("--jobs", type=_natural, default=os.cpu_count(), help="scans made at a time")
    args = parser.parse_args()
    scans = make_cohort(args.kind, args.dest, args.size, args.seed, max(1, args.jobs))
    print(f"*** PHANTOM: {scans} made-up scans in {args.dest}. Made-up data, proves nothing about real ones. ***")


if __name__ == "__main__":
    run_program(main)
