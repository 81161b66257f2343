"""Chooses among the networks of a run, or of several, on the target's training images.

No ground truth is opened, or with --select_with that of a few patients alone (labelled.py).

Written into a folder:
    chosen.pkl      the network, with the reason for it, as a checkpoint
    selection.csv   a row a candidate: every validator's score, why the gate held it back, which would have taken it
    selection.txt   one paragraph: what was chosen, and why
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader import AnySet, Reading, open_images, rows_of, splits_of
from datasets.grey_matching import SourceLevels, levels_to_match, match_set, with_share
from datasets.streams import Stream
from datasets.volumes import WholeStream
from files.run_names import CHOSEN, SELECTION, candidates_of
from methods.settings import Settings
from nets.base import Network, batch_norms
from nets.bundle import Bundle, read_bundle
from nets.checkpoint_files import load_checkpoint, of_a_network, save_checkpoint
from nets.filling import fitting_weights
from nets.norm_mixing import mixes_norms, mixing
from networks import build_network
from processes.quoting import csv_text
from selection.candidates import REFRESH, SOURCE, Candidate, refreshed
from selection.decision import Choice, decide, decide_by_labels
from selection.labelled import Labelled, Selecting, open_labelled, patients_who_choose
from selection.measuring import Measured, measure, per_patient
from selection.validators import Evidence
from utils import atomic_write

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
    patients = patients_who_choose(reading, selecting) if selecting.select_with else ()
    if len(slices) > MOST:
        looked_at = np.linspace(0, len(slices) - 1, MOST).astype(int).tolist()
        slices = slices.keep(sorted({*looked_at, *rows_of(slices, patients)}))
    labelled = open_labelled(slices, patients, reading, selecting) if patients else None
    told = [bound.mean(2) for bound in slices.bounds if bound is not None]
    sizes = next((each for each in told if np.ptp(each.sum(0) / each.sum()) > LEAST), None)
    return Target(slices, sizes, reading, labelled)


def choose(
    target: Target,
    net: Network,
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
        net.mixes = candidate.mixes
        measured.append(measure(net, target.batches(candidate.levels), settings, temperatures))
    shares = None if bundle is None else bundle.image_shares
    seen = _evidence(target, measured, candidates, shares)
    if target.labelled is None:
        return decide(seen, candidates)
    return decide_by_labels(seen, candidates, target.labelled.scores(seen.masks), target.labelled.patients)


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


@dataclass(frozen=True)
class Pool:
    """Files of networks to choose from.

    source   weights of the source network
    around   the checkpoint that tells the rest where these, or their refresh, are chosen
    others   name of a candidate -> the epochs that it has behind it, and its checkpoint
    share    by which the images are matched that the source network and its refresh see; None: as `around` tells
    """

    source: Path
    around: Path
    others: Mapping[str, tuple[int, Path]]
    share: float | None = None


def choose_epoch(
    run: Path, reading: Reading, settings: Settings, network: str, priors: Sequence[Any], selecting: Selecting
) -> str:
    """Chooses among the networks that a run kept (--keep_every), writes the choice into its folder, and tells it.

    network: as --network names it. Raises UserError for a candidate that is missing or torn, and for images that
    cannot be read.
    """
    kept = candidates_of(run)
    others = {f"epoch {epoch}": (epoch, path) for epoch, path in kept.items() if epoch}
    return choose_among(run, Pool(kept[0], kept[0], others), reading, settings, network, priors, selecting)


def choose_among(
    folder: Path,
    pool: Pool,
    reading: Reading,
    settings: Settings,
    network: str,
    priors: Sequence[Any],
    selecting: Selecting,
) -> str:
    """Chooses among the networks of a pool, the source network's refresh with them; otherwise as `choose_epoch`."""
    target = open_target(reading, priors, selecting)
    built = (network, target.slices.shape[0], reading.n_class)
    net = build_network(*built).to(reading.device)
    settings = laid_out(net, settings)
    source = fitting_weights(net, pool.source, *built)
    around = load_checkpoint(pool.around)
    levels = levels_to_match(around, pool.share)
    candidates = [Candidate(SOURCE, 0, lambda: source, levels, net.mixes)]
    if batch_norms(net):
        net.load_state_dict(source)
        statistics = refreshed(net, (image for image, _ in target.batches(levels)), settings)
        candidates.append(Candidate(REFRESH, 0, lambda: statistics, levels, net.mixes))
    for name, (epoch, path) in pool.others.items():
        state, weights = load_checkpoint(path), partial(fitting_weights, net, path, *built)
        candidates.append(Candidate(name, epoch, weights, levels_to_match(state, None), mixes_norms(state["network"])))
    choice = choose(target, net, candidates, settings, read_bundle(around))
    chosen = candidates[choice.place]
    if chosen.name in pool.others:
        around = load_checkpoint(pool.others[chosen.name][1])
    told = of_a_network(around) | {"net": chosen.weights(), "epoch": chosen.epoch - 1}
    told["preprocessing"] = with_share(told["preprocessing"], chosen.share)
    told["network"] = mixing(told["network"], chosen.mixes)
    save(folder, choice, candidates, told)
    return choice.reason


def laid_out(net: Network, settings: Settings) -> Settings:
    """Puts the network, and by these settings its images, into the memory layout in which a CPU infers faster.

    On a GPU the layout is that of the run.
    """
    if not settings.channels_last and not (settings.device == "cpu" and net.keeps_channels_last):
        return settings
    net.to(memory_format=torch.channels_last if net.axes == 2 else torch.channels_last_3d)
    return replace(settings, channels_last=1)


def save(folder: Path, choice: Choice, candidates: Sequence[Candidate], checkpoint: dict[str, Any]) -> None:
    """Writes a choice down, the network last: where that is, all is there."""
    labelled = [json.dumps(choice.labelled, ensure_ascii=False)] if choice.labelled else []
    rows = [["candidate", "epoch", "chosen", "gate", *choice.scores, "taken_by", *["labelled" for _ in labelled]]]
    for place, candidate in enumerate(candidates):
        cells = ["" if np.isnan(scores[place]) else f"{scores[place]:.6g}" for scores in choice.scores.values()]
        takers = " ".join(name for name, taken in choice.alone.items() if taken == place)
        is_chosen = int(place == choice.place)
        rows.append([candidate.name, candidate.epoch, is_chosen, choice.gate[place], *cells, takers, *labelled])
    with atomic_write(folder / f"{SELECTION}.csv", "w") as file:
        file.write(csv_text(rows))
    with atomic_write(folder / f"{SELECTION}.txt", "w") as file:
        file.write(f"{choice.reason}\n")
    told = {"candidate": candidates[choice.place].name, "epoch": candidates[choice.place].epoch, "why": choice.reason}
    if choice.labelled:
        told |= {"labelled": list(choice.labelled)}
        checkpoint |= {"labelled": sorted({*checkpoint.get("labelled", ()), *choice.labelled})}
    save_checkpoint(folder / CHOSEN, checkpoint | {"choice": told})
