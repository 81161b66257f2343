"""The target's training images, which networks are judged by, opened without ground truth; what was seen on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader import AnySet, Reading, drawn_rows, open_images, rows_of, splits_of
from datasets.grey_matching import SourceLevels, match_set
from datasets.streams import Stream
from datasets.volumes import WholeStream
from methods.settings import Settings
from nets.base import Network
from selection.candidates import REFRESH, SOURCE, Candidate
from selection.labelled import Labelled, Selecting, open_labelled, patients_who_choose
from selection.measuring import Measured, per_patient
from selection.validators import Evidence

MOST = 2000  # slices that are looked at; of more, evenly spaced ones
LEAST = 1e-4  # between the largest and the smallest share of a prior that says something


@dataclass(frozen=True)
class Target:
    """The training images of the target, and what is known of them.

    sizes      the pixels (N, K) that a prior gives each class; None without a prior
    labelled   the patients whose labels choose; None where the choice is made without labels
    """

    slices: AnySet
    sizes: np.ndarray | None
    reading: Reading
    labelled: Labelled | None

    @cached_property
    def matched(self) -> dict[float, AnySet]:
        """The images by the share by which they were matched, as far as somebody asked."""
        return {0.0: self.slices}

    def batches(self, levels: SourceLevels | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (B, C, …) on the device, each in random company, the same at each call; and their rows (B,).

        levels: what the images are matched to
        """
        device, workers = torch.device(self.reading.device), self.reading.workers
        share = levels.share if levels else 0.0
        if share not in self.matched:
            self.matched[share] = match_set(self.slices, levels)
        slices = self.matched[share]
        if self.reading.crop:
            stream = WholeStream(slices, device, workers=workers)
        else:
            stream = Stream(slices, self.reading.batch_size, device, workers=workers)
        for batch, _ in stream.epoch(0):
            yield batch.image, batch.rows


def open_target(reading: Reading, priors: Sequence[Any], selecting: Selecting) -> Target:
    """Opens the training images of the target, and the labels of those patients who choose, if any do.

    priors: objects of bounds.py whose ratios a loss compares, or None. The first counts that says something of every
    image, and of which no ground truth of these images is part
    """
    slices = open_images(reading, splits_of("target", reading)[0], priors).slices
    if reading.n_target:
        slices = slices.keep(drawn_rows(slices, "n_target", reading))
    patients = patients_who_choose(reading, selecting) if selecting.select_with else ()
    if len(slices) > MOST:
        looked_at = np.linspace(0, len(slices) - 1, MOST).astype(int).tolist()
        slices = slices.keep(sorted({*looked_at, *rows_of(slices, patients)}))
    labelled = open_labelled(slices, patients, reading, selecting) if patients else None
    told = [bound.mean(2) for bound in slices.bounds if bound is not None]
    sizes = next((each for each in told if np.ptp(each.sum(0) / each.sum()) > LEAST), None)
    return Target(slices, sizes, reading, labelled)


def evidence_of(
    target: Target, measured: Sequence[Measured], candidates: Sequence[Candidate], shares: np.ndarray | None
) -> Evidence:
    """What was measured of the candidates, patient by patient.

    shares: (K,) of the source's images that each class has: the prior where the run states none
    """
    patients = target.slices.patients
    sums = [per_patient(each.sums, patients) for each in measured]
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    expected = np.ones((len(rows), target.reading.n_class), bool)
    prior = np.full(expected.shape, np.nan if shares is None else shares)
    if target.sizes is not None:
        sizes = per_patient({"sizes": target.sizes}, patients)["sizes"]
        prior, expected = sizes / sizes.sum(1, keepdims=True), sizes > 0
    places = {candidate.name: place for place, candidate in enumerate(candidates)}
    return Evidence(
        {name: np.stack([each[name] for each in sums]) for name in sums[0]},
        [each.masks for each in measured],
        list(rows.values()),
        expected,
        prior,
        np.ones(len(candidates), bool),
        places[SOURCE],
        places.get(REFRESH),
    )


def laid_out(net: Network, settings: Settings) -> Settings:
    """Puts the network, and by these settings its images, into the memory layout in which a CPU infers faster.

    On a GPU the layout is that of the run.
    """
    if not settings.channels_last and not (settings.device == "cpu" and net.keeps_channels_last):
        return settings
    net.to(memory_format=torch.channels_last if net.axes == 2 else torch.channels_last_3d)
    return replace(settings, channels_last=1)
