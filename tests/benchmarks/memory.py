"""Peak memory of a process that goes once through a streamed set, for a set and one ten times larger.

Each in a process of its own, after another one has made the cache. The slices are links to a few, since only their
number and their size matter.
"""

import multiprocessing
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datasets.streams import Stream
from engine.cost import peak_memory
from tests.benchmarks.items import BATCH, one_epoch, open_set
from tests.benchmarks.sets import draw_slice, save_slice, settle, slice_name
from tests.benchmarks.table import Row

LINKS = 10_000  # to one file; a file system allows some tens of thousands


def link_set(root: Path, count: int, size: int) -> None:
    """`count` slices of size x size in train, made of one for every LINKS."""
    rng = np.random.default_rng(0)
    for start in range(0, count, LINKS):
        for folder, array in zip(("IMG", "GT"), draw_slice(rng, size), strict=True):
            path = root / "train" / folder
            path.mkdir(parents=True, exist_ok=True)
            save_slice(path / "first.png", array)
            for number in range(start, min(start + LINKS, count)):
                os.link(path / "first.png", path / f"{slice_name(number)}.png")
            (path / "first.png").unlink()
    settle()


def go_through(root: Path) -> float:
    """MiB at the most, of a process that does this alone."""
    torch.set_num_threads(1)
    one_epoch(Stream(open_set(root, "png"), BATCH, torch.device("cpu")))
    return peak_memory()


def peak(root: Path, times: int = 2) -> float:
    """Of the last of so many processes; the first makes the cache."""
    for _ in range(times):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(go_through, root).result()
    return found


def measure(options: Namespace) -> Iterator[Row]:
    many, size = (40, 32) if options.quick else (options.slices, 256)
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (many // 10, many):
            root = Path(temporary) / str(count)
            link_set(root, count, size)
            peaks.append(peak(root, 1 if options.quick else 2))
    stored = 2 * many * size * size / 2**20
    what, against = f"peak, {many:,} slices streamed", f"{many // 10:,} slices"
    yield Row("memory", what, against, peaks[1], peaks[0], "MiB", peaks[0] / peaks[1], f"{stored:,.0f} MiB of slices")
