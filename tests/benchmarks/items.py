"""One training item out of the data set, against the published way; and opening a set that was opened before."""

import os
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.slices import SliceSet, open_slices, place
from datasets.streams import Stream
from datasets.transforms import parse_folders
from tests.benchmarks.sets import FOLDERS, REGEX, NaiveSet, draw_slice, save_slice, settle, slice_name, write_set
from tests.benchmarks.table import Row, better, in_turns, seconds

BATCH = 8


def open_set(root: Path, suffix: str) -> SliceSet:
    return open_slices(root, "train", parse_folders(FOLDERS[suffix], 1), 2, REGEX)


def one_epoch(stream: Stream) -> None:
    for _ in stream.epoch(0):
        pass


def every_item(items: NaiveSet, count: int) -> None:
    for row in range(count):
        items[row]


def items(root: Path, count: int, size: int, suffix: str, options: Namespace) -> Iterator[Row]:
    """ms of an item, mean over an epoch in batches of 8; of the slow form, over a quarter of the set."""
    names = write_set(root, count, size, suffix)
    slices = open_set(root, suffix)
    for where in ("ram", "stream"):
        device = torch.device("cpu")
        stream = Stream(place({"target": slices}, where, device)["target"], BATCH, device)
        some = count // 4
        works = {"ours": partial(one_epoch, stream)}
        for name, checks in (("slow form", True), ("slow form, unchecked", False)):
            works[name] = partial(every_item, NaiveSet(root, names, suffix, 2, checks), some)
        one_epoch(stream)
        times = in_turns(works, options.rounds)
        own = [1e3 * time / count for time in times.pop("ours")]
        for name, all_ in times.items():
            theirs = [1e3 * time / some for time in all_]
            yield Row(
                "items",
                f"{size}x{size} {suffix}, --cache {where}",
                name,
                statistics.median(own),
                statistics.median(theirs),
                "ms",
                better(own, theirs),
            )


def opening(root: Path, count: int) -> Iterator[Row]:
    """Seconds of the first opening and of the next: a set of links to one slice, as only their number matters."""
    image, mask = draw_slice(np.random.default_rng(0), 32)
    for folder, array in (("IMG", image), ("GT", mask)):
        path = root / "train" / folder
        path.mkdir(parents=True)
        save_slice(path / "first.png", array)
        for number in range(count):
            os.link(path / "first.png", path / f"{slice_name(number)}.png")
        (path / "first.png").unlink()
    settle()
    first, again = (seconds(lambda: open_set(root, "png")) for _ in range(2))
    yield Row("items", f"opening {count:,} slices", "the first time", again, first, "s", first / again)


def measure(options: Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for suffix, size in (("png", 256), ("nii", 384)):
            yield from items(root / suffix, 8 if options.quick else 96, 32 if options.quick else size, suffix, options)
        yield from opening(root / "many", 50 if options.quick else 30_000)
