"""The steps of an epoch, in order, and what they gave; an epoch that stopped in its middle goes on from there."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataloader import AnyStream
from datasets.streams import Batch
from engine.evaluation import class_counts
from methods.base import Method
from nets.probabilities import most_probable
from processes.interrupt import STOP
from utils import derived_seed

Trained = dict[str, np.ndarray]  # what `train_epoch` returns
COUNTED = (torch.int64, torch.float64)  # what class_counts counts in


class Steps:
    """What the steps of an epoch gave so far, still on the device."""

    def __init__(self, state: Mapping[str, Any] | None = None, device: str = "cpu") -> None:
        self.terms: list[Tensor] = [] if state is None else list(state["terms"].to(device))
        self.counts: list[Tensor] = [] if state is None else [part.to(device) for part in state["counts"]]
        self.rows: list[Tensor] = [] if state is None else list(state["rows"])
        sizes = [rows.numel() for rows in self.rows]
        if len(self.terms) != len(sizes) or [part.shape[1] for part in self.counts] not in ([], sizes):
            raise ValueError(f"{len(self.terms)} steps of {len(sizes)} batches, and counts of {len(self.counts)}")

    def check(self, method: Method, n_rows: int) -> None:
        """Raises ValueError unless these can be steps of the method on a set of so many rows."""
        if len(self) and self.terms[0].shape != (len(method.columns),):
            raise ValueError(f"terms of the shape {tuple(self.terms[0].shape)}")
        if len(self) and bool(self.counts) != method.segments:
            raise ValueError(f"counts of {len(self.counts)} steps")
        if any(part.shape[::2] != (4, method.settings.n_class) or part.dtype not in COUNTED for part in self.counts):
            raise ValueError("counts of another number of classes, or of half pixels")
        if any(rows.ndim != 1 or rows.dtype != torch.int64 for rows in self.rows):
            raise ValueError("rows that are no numbers of slices")
        if any(not 0 <= row < n_rows for rows in self.rows for row in rows.tolist()):
            raise ValueError("rows that are not of this set")

    def __len__(self) -> int:
        return len(self.terms)

    def add(self, terms: Tensor, counts: Tensor | None, rows: Tensor) -> None:
        """Adds a step: (terms,) scalars, (4, B, K) counts of pixels if the method segments, (B,) rows of its slices."""
        self.terms.append(terms)
        self.counts += [] if counts is None else [counts]
        self.rows.append(rows)

    def state_dict(self) -> dict[str, Any]:
        terms = torch.stack(self.terms).cpu() if self.terms else torch.empty(0)
        return {"terms": terms, "counts": [part.cpu() for part in self.counts], "rows": self.rows}

    def trained(self) -> Trained:
        """Fetches what the whole epoch found from the device."""
        return {
            "terms": torch.stack(self.terms).float().cpu().numpy(),
            "sizes": np.array([len(rows) for rows in self.rows]),
            "counts": torch.cat(self.counts, 1).cpu().numpy() if self.counts else None,
            "rows": torch.cat(self.rows).numpy(),
        }


def endless(stream: AnyStream, epoch: int, start: int = 0) -> Iterator[Batch]:
    """Batches without end, from step `start` on: each pass is a new epoch of the stream, in an order of its own."""
    lap, skipped = divmod(start, len(stream))
    while True:
        for batch, _ in stream.epoch(derived_seed(epoch, lap), skipped):
            yield batch
        lap, skipped = lap + 1, 0


def train_epoch(
    method: Method, streams: dict[str, AnyStream], epoch: int, seed: int, steps: Steps | None = None
) -> Trained:
    """One pass over the first stream, from where `steps` ends to the end, added to `steps` as it goes.

    seed: of the run
    Returns "terms" (steps, terms), "sizes" (steps,) slices a step, and "counts" (4, slices, K), or None where the
    method does not segment yet, with "rows" (slices,).
    Raises Interrupted between two steps, if the process was asked to stop.
    """
    steps, settings = Steps() if steps is None else steps, method.settings
    start, (first, *others) = len(steps), streams
    beside = {name: endless(streams[name], epoch, start) for name in others}
    bar = tqdm(
        streams[first].epoch(epoch, start),
        f"epoch {epoch + 1}",
        len(streams[first]),
        leave=False,
        disable=None,
        initial=start,
    )
    # torch.manual_seed notes for devices that are not there who called it, which takes longer than a small step
    seed_all = torch.default_generator.manual_seed if settings.device == "cpu" else torch.manual_seed
    for step, (batch, truth) in enumerate(bar, start):
        STOP.check()
        seed_all(derived_seed(seed, epoch, step, method.team.rank))  # for dropout
        method.begin_step(epoch + step / len(streams[first]), derived_seed(seed, epoch, step))
        values, logits = method.step({first: batch} | {name: next(stream) for name, stream in beside.items()})
        terms = torch.stack([values[name] for name in method.columns])
        counts = class_counts(most_probable(logits), truth, settings.n_class) if method.segments else None
        steps.add(terms, counts, batch.rows)
    return steps.trained()
