"""python -m preprocess.phantom {prostate,whs,ivd} --dest FOLDER [--size small|full] [--seed 0] [--jobs N]

Makes up a cohort and writes it as NIfTI volumes in the layout of the data set's official archive.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from preprocess.phantom.anatomy import COHORTS
from preprocess.phantom.archive import Job, write_scan
from utils import UserError, run_program

CARD = "phantom.json"
SIZES = ("small", "full")


def make_cohort(kind: str, dest: Path, size: str = "small", seed: int = 0, jobs: int = 1) -> int:
    """Writes the cohort's volumes and phantom.json under `dest`, replacing an older phantom; the number of scans.

    Written to '<dest>_tmp' and moved when whole. Raises UserError if `dest` holds anything but a phantom.
    """
    if dest.exists() and not (dest / CARD).is_file() and not (dest.is_dir() and not any(dest.iterdir())):
        raise UserError(
            f"A phantom was to be written to '{dest}', but that is there already and is none (it has no {CARD}). "
            "Give another --dest, or move what is there away."
        )
    made = dest.with_name(dest.name + "_tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    sites = COHORTS[kind]
    work = [(kind, number, scan) for number, site in enumerate(sites) for scan in range(site.grids[size].scans)]
    for _ in tqdm(_each(work, made, size, seed, jobs), f"phantom {kind}", len(work), unit="scan", disable=None):
        pass
    (made / CARD).write_text(json.dumps({"phantom": size, "kind": kind, "seed": seed}) + "\n", encoding="utf-8")
    if dest.exists():
        shutil.rmtree(dest)
    made.rename(dest)
    return len(work)


def _each(work: list[Job], folder: Path, size: str, seed: int, jobs: int) -> Iterator[None]:
    write = partial(write_scan, folder=folder, size=size, seed=seed)
    if jobs == 1:
        yield from map(write, work)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, work)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got '{text}'")
    return int(text)


def main() -> None:
    """Reads the command line, says loudly that this is made up, writes the cohort."""
    parser = argparse.ArgumentParser("preprocess.phantom", description=__doc__.split("\n\n")[1], allow_abbrev=False)
    parser.add_argument("kind", choices=sorted(COHORTS))
    parser.add_argument("--dest", type=Path, required=True, help="folder to write; only a phantom is replaced")
    parser.add_argument("--size", choices=SIZES, default="small", help="small: 64 pixels wide; full: as published")
    parser.add_argument("--seed", type=_natural, default=0)
    parser.add_argument("--jobs", type=_natural, default=os.cpu_count(), help="scans made at a time")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    scans = make_cohort(args.kind, args.dest, args.size, args.seed, max(1, args.jobs))
    print(f"*** PHANTOM: {scans} made-up scans in {args.dest}. Made-up data, proves nothing about patients. ***")


if __name__ == "__main__":
    run_program(main)
