"""Chooses among the networks of a run, or of several, on the target's training images: no ground truth is opened.

Written into a folder:
    chosen.pkl      the network, with the reason for it, as a checkpoint
    selection.csv   a row a candidate: every validator's score, why the gate held it back, which would have taken it
    selection.txt   one paragraph: what was chosen, and why
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataloader import AnySet, Reading, open_images, splits_of
from datasets.streams import Stream
from datasets.volumes import WholeStream
from files.run_names import CHOSEN, SELECTION, candidates_of
from methods.settings import Settings
from nets.bundle import Bundle, read_bundle
from nets.checkpoint_files import load_checkpoint, save_checkpoint
from networks import build_network
from processes.quoting import csv_text
from selection.candidates import REFRESH, SOURCE, Candidate, Weights, has_batch_norms, refreshed
from selection.decision import Choice, decide
from selection.measuring import Measured, measure, per_patient
from selection.validators import Evidence
from utils import atomic_write

MOST = 2000  # slices that are looked at; of more, evenly spaced ones
LEAST = 1e-4  # between the largest and the smallest share of a prior that says something


@dataclass(frozen=True)
class Target:
    """The training images of the target, and the pixels (N, K) that a prior gives each class; None without a prior."""

    slices: AnySet
    sizes: np.ndarray | None
    reading: Reading

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (B, C, …) on the device, each in random company, the same at each call; and their rows (B,)."""
        device, workers = torch.device(self.reading.device), self.reading.workers
        if self.reading.crop:
            stream = WholeStream(self.slices, device, workers=workers)
        else:
            stream = Stream(self.slices, self.reading.batch_size, device, workers=workers)
        for batch, _ in stream.epoch(0):
            yield batch.image, batch.rows


def open_target(reading: Reading, priors: Sequence[Any]) -> Target:
    """Opens the training images of the target.

    priors: objects of bounds.py whose ratios a loss compares, or None. The first counts that says something of every
    image, and of which no ground truth of these images is part
    """
    slices = open_images(reading, splits_of("target", reading)[0], priors).slices
    if len(slices) > MOST:
        slices = slices.keep(np.linspace(0, len(slices) - 1, MOST).astype(int).tolist())
    told = [bound[:, :, 0] for bound in slices.bounds if bound is not None]
    sizes = next((each for each in told if np.ptp(each.sum(0) / each.sum()) > LEAST), None)
    return Target(slices, sizes, reading)


def choose(
    target: Target,
    net: nn.Module,
    candidates: Sequence[Candidate],
    settings: Settings,
    bundle: Bundle | None,
) -> Choice:
    """Measures every candidate, and decides.

    net: is filled with one after the other; bundle: what the source network's training left of its source
    """
    measured, temperatures = [], None if bundle is None else bundle.temperatures
    if temperatures is not None and not np.isfinite(temperatures).all():
        temperatures = None
    for candidate in candidates:
        net.load_state_dict(candidate.weights())
        measured.append(measure(net, target.batches(), settings, temperatures))
    shares = None if bundle is None else bundle.image_shares
    return decide(_evidence(target, measured, candidates, shares), candidates)


def _evidence(
    target: Target, measured: Sequence[Measured], candidates: Sequence[Candidate], shares: np.ndarray | None
) -> Evidence:
    """shares: (K,) of the source's images that each class has: the prior where the run states none."""
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


def choose_epoch(run: Path, reading: Reading, settings: Settings, network: str, priors: Sequence[Any]) -> str:
    """Chooses among the networks that a run kept (--keep_every), writes the choice into its folder, and tells it.

    network: as --network names it. Raises UserError for a candidate that is missing or torn, and for images that
    cannot be read.
    """
    target = open_target(reading, priors)
    net = build_network(network, target.slices.shape[0], reading.n_class).to(reading.device)
    kept = candidates_of(run)
    candidates = [Candidate(SOURCE, 0, lambda: _weights(kept[0]))]
    if has_batch_norms(net):
        net.load_state_dict(_weights(kept[0]))
        statistics = refreshed(net, (image for image, _ in target.batches()), settings)
        candidates.append(Candidate(REFRESH, 0, lambda: statistics))
    epochs = [epoch for epoch in kept if epoch]
    candidates += [Candidate(f"epoch {epoch}", epoch, lambda path=kept[epoch]: _weights(path)) for epoch in epochs]
    last = load_checkpoint(run / "last.pkl")
    choice = choose(target, net, candidates, settings, read_bundle(last))
    chosen = candidates[choice.place]
    around = load_checkpoint(kept[chosen.epoch]) | {name: last[name] for name in ("bundle",) if name in last}
    save(run, choice, candidates, around | {"net": chosen.weights()})
    return choice.reason


def save(folder: Path, choice: Choice, candidates: Sequence[Candidate], checkpoint: dict[str, Any]) -> None:
    """Writes a choice down, the network last: where that is, all is there."""
    rows = [["candidate", "epoch", "chosen", "gate", *choice.scores, "taken_by"]]
    for place, candidate in enumerate(candidates):
        cells = ["" if np.isnan(scores[place]) else f"{scores[place]:.6g}" for scores in choice.scores.values()]
        takers = " ".join(name for name, taken in choice.alone.items() if taken == place)
        is_chosen = int(place == choice.place)
        rows.append([candidate.name, candidate.epoch, is_chosen, choice.gate[place], *cells, takers])
    with atomic_write(folder / f"{SELECTION}.csv", "w") as file:
        file.write(csv_text(rows))
    with atomic_write(folder / f"{SELECTION}.txt", "w") as file:
        file.write(f"{choice.reason}\n")
    told = {"candidate": candidates[choice.place].name, "epoch": candidates[choice.place].epoch, "why": choice.reason}
    save_checkpoint(folder / CHOSEN, checkpoint | {"choice": told})


def _weights(path: Path) -> Weights:
    return load_checkpoint(path)["net"]
