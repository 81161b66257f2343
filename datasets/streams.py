"""Batches of slices, as a training or an evaluation draws them from a set.

A batch is a gather of rows out of the folders' arrays, read ahead, moved to the device, decoded and augmented there.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from datasets.augmentation import Augmentation
from datasets.sampling import InOrder, Sampler, Shuffled
from datasets.slices import SliceSet
from datasets.transforms import FolderSpec
from processes.team import ALONE, Team
from utils import derived_seed

AHEAD = 4  # batches that are read before they are asked for
Item = TypeVar("Item")


@dataclass
class Batch:
    """What a step sees. `targets` and `bounds` have one entry per loss, None where the method may not look.

    Where several processes share a batch, each holds its share of the images, and everything else of the whole batch.
    """

    image: Tensor  # (B, C, W, H) float32
    targets: list[Tensor | None]  # (B, W, H) int64 class numbers (or the set's `ignore`), or (B, K, W, H) float32 maps
    bounds: list[Tensor | None]  # (B, K, 2) float64, in pixels
    rows: Tensor  # (B,) int64, the row of each slice in its set, on the CPU


@dataclass
class Stored:
    """A batch as it is stored: gathered, perhaps not yet on the device."""

    image: Tensor  # (B, C, W, H) in its stored type
    labels: dict[FolderSpec, Tensor]  # (B, W, H) uint8 class numbers, or (B, K, W, H) maps
    bounds: list[Tensor | None]  # (B, K, 2) float64, in pixels


class Stream:
    """Batches of a set. Order and augmentation depend on seed, epoch and step alone, so a resume needs no state.

    augmentation: None for none, and then `shuffle=False` goes through the set as it lies (evaluation)
    sampler: what draws the batches of an epoch, if not all slices in random order
    with_targets: whether a step may look at the ground truth
    n_class: of the ground truth, background included, for an augmentation that looks at its classes
    workers: threads that read ahead, where the slices are not on the device already
    """

    def __init__(
        self,
        slices: SliceSet,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        *,
        shuffle: bool = True,
        sampler: Sampler | None = None,
        augmentation: Augmentation | None = None,
        with_targets: bool = True,
        n_class: int = 1,
        team: Team = ALONE,
        workers: int = 2,
    ) -> None:
        self.slices, self.batch_size, self.device, self.seed = slices, batch_size, device, seed
        self.sampler = sampler or (Shuffled if shuffle else InOrder)(len(slices), batch_size)
        self.augmentation, self.with_targets = augmentation, with_targets
        self.n_class, self.team, self.workers = n_class, team, workers
        self.bounds = [None if bound is None else torch.from_numpy(bound) for bound in slices.bounds]
        if slices.order.is_cuda:
            self.bounds = [None if bound is None else bound.to(device) for bound in self.bounds]
        self.generator = torch.Generator(device)

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, Tensor | None]]:
        """Yields this epoch's batches from step `start` on.

        Each comes with the metrics' ground truth (B, W, H) int64, or None where there is none.
        """
        steps = self.sampler(torch.Generator().manual_seed(derived_seed(self.seed, epoch)))[start:]
        if not steps:
            return
        lengths = [len(rows) for rows in steps]
        here = torch.cat(steps).to(self.slices.order.device).split(lengths)  # one copy an epoch, none a step
        shares = [self.team.share(len(rows)) for rows in steps]
        reads = [partial(self._gather, rows, share) for rows, share in zip(here, shares, strict=True)]
        away = self.device.type != self.slices.order.device.type
        streamed = away or any(plane.on_disk for plane in self.slices.planes.values())
        streamed = streamed and len(reads) > 1  # there is nothing to read ahead of the only one
        stored = ahead(reads, self.workers) if streamed else (read() for read in reads)
        for step, (rows, share, found) in enumerate(zip(steps, shares, stored, strict=True), start):
            yield self._finish(found, rows, share, derived_seed(self.seed, epoch, step))

    def batch(self, rows: Tensor, epoch: int = 0, step: int = 0, shared: bool = False) -> tuple[Batch, Tensor | None]:
        """The batch of these rows (B,) as that step would see it, and the metrics' ground truth (B, W, H) or None.

        shared: whether the batch holds this process's share of the images alone
        """
        share = self.team.share(len(rows)) if shared else slice(None)
        stored = self._gather(rows.to(self.slices.order.device), share)
        return self._finish(stored, rows, share, derived_seed(self.seed, epoch, step))

    def needed(self, share: slice) -> slice:
        """The images of a batch that are read for this share of it: all, where they are changed by each other."""
        return slice(None) if self.augmentation and self.augmentation.mixes else share

    def _gather(self, rows: Tensor, share: slice) -> Stored:
        slices, pin = self.slices, self.device.type == "cuda" and not self.slices.order.is_cuda
        at, (image, *truth) = slices.order[rows], slices.folders
        wanted = dict.fromkeys(truth if self.with_targets else truth[:1])
        return Stored(
            slices.planes[image].gather(at[self.needed(share)], pin),
            {spec: slices.planes[spec].gather(at, pin) for spec in wanted},
            [None if bound is None else bound[rows] for bound in self.bounds],
        )

    def _finish(self, stored: Stored, rows: Tensor, share: slice, seed: int) -> tuple[Batch, Tensor | None]:
        """Moves a batch to the device, decodes and augments it. One draw turns image and ground truth alike."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        image_spec, *truth = self.slices.folders
        image = self.slices.planes[image_spec].decode(move(stored.image))
        image = self.slices.as_seen(image, rows[self.needed(share)].tolist())
        maps = {
            spec: self.slices.planes[spec].decode(move(label)) if spec.is_map else move(label).long()
            for spec, label in stored.labels.items()
        }
        if self.augmentation:
            generator = self.generator.manual_seed(seed)
            draw = self.augmentation.draw(len(rows), self.slices.shape, generator, self.n_class)
            beyond = self.slices.ignore or 0
            maps = {
                spec: draw.distance(each) if spec.is_map else draw.label(each, beyond=beyond)
                for spec, each in maps.items()
            }
            needed = self.needed(share)
            image = draw.image(image, needed, maps[truth[0]][needed] if truth and self.with_targets else None)
            image = image if needed is share else image[share]
        seen = [maps[spec] if self.with_targets else None for spec in truth[1:]]
        seen = seen if truth else [None] * len(stored.bounds)
        bounds = [None if bound is None else move(bound) for bound in stored.bounds]
        return Batch(image, seen, bounds, rows), maps[truth[0]] if truth else None


def ahead(tasks: Iterable[Callable[[], Item]], workers: int, most: int = AHEAD) -> Iterator[Item]:
    """The results of the tasks in their order, at most `most` of them made before they are asked for."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
