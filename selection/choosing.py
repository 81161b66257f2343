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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import Reading
from datasets.grey_matching import SourceLevels, levels_to_match, with_share
from files.run_names import CHOSEN, SELECTION, candidates_of
from methods.settings import Settings
from nets.base import Network, batch_norms
from nets.bundle import Bundle, read_bundle
from nets.checkpoint_files import load_checkpoint, of_a_network, save_checkpoint
from nets.filling import fitting_weights
from nets.norm_mixing import mixes_norms, mixing
from networks import build_network
from processes.quoting import csv_text
from selection.candidates import REFRESH, SOURCE, Candidate, name_of_refresh, refreshed
from selection.decision import Choice, decide, decide_by_labels
from selection.labelled import Selecting
from selection.measuring import measure
from selection.target import Target, evidence_of, laid_out, open_target
from utils import atomic_write

BEGINS = f"Adaptations begin at the {SOURCE} network itself, and make its {REFRESH} a candidate."


def choose(
    target: Target,
    net: Network,
    candidates: Sequence[Candidate],
    settings: Settings,
    bundle: Bundle | None,
    is_start: bool = False,
) -> Choice:
    """Measures every candidate, and decides.

    net: is filled with one after the other; bundle: what the source network's training left of its source
    is_start: as of `Pool`
    """
    measured, temperatures = [], None if bundle is None else bundle.temperatures
    if temperatures is not None and not np.isfinite(temperatures).all():
        temperatures = None
    for candidate in candidates:
        net.load_state_dict(candidate.weights())
        net.mixes = candidate.mixes
        measured.append(measure(net, target.batches(candidate.levels), settings, temperatures))
    shares = None if bundle is None else bundle.image_shares
    seen = evidence_of(target, measured, candidates, shares)
    if target.labelled is None:
        return decide(seen, candidates, is_start=is_start)
    return decide_by_labels(seen, candidates, target.labelled.scores(seen.masks), target.labelled.patients)


@dataclass(frozen=True)
class Pool:
    """Files of networks to choose from.

    source   weights of the source network
    around   the checkpoint that tells the rest where these, or their refresh, are chosen
    others   name of a candidate -> the epochs that it has behind it, and its checkpoint
    share    by which the images are matched that the source network and its refresh see; None: as `around` tells
    is_start whether an adaptation is to begin at what is chosen: then the refreshes of the others are candidates too,
             and the source network stands for its own
    """

    source: Path
    around: Path
    others: Mapping[str, tuple[int, Path]]
    share: float | None = None
    is_start: bool = False


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
    around = load_checkpoint(pool.around)
    levels = levels_to_match(around, pool.share)
    found = list(candidates_of_pool(pool, target, net, levels, settings, built))
    candidates = [candidate for candidate, _ in found]
    choice = choose(target, net, candidates, settings, read_bundle(around), pool.is_start)
    if pool.is_start and candidates[choice.place].name == REFRESH:
        choice = replace(choice, place=0, reason=f"{choice.reason} {BEGINS}")
    chosen, file = found[choice.place]
    around = around if file == pool.around else load_checkpoint(file)
    told = of_a_network(around) | {"net": chosen.weights(), "epoch": chosen.epoch - 1}
    told["preprocessing"] = with_share(told["preprocessing"], chosen.share)
    told["network"] = mixing(told["network"], chosen.mixes)
    save(folder, choice, candidates, told)
    return choice.reason


def candidates_of_pool(
    pool: Pool,
    target: Target,
    net: Network,
    levels: SourceLevels | None,
    settings: Settings,
    built: tuple[str, int, int],
) -> Iterator[tuple[Candidate, Path]]:
    """Each candidate with the checkpoint that tells the rest of it.

    net: is filled with what is refreshed; levels: of the source network's images; built: what `net` was built of
    """
    source = fitting_weights(net, pool.source, *built)
    own = [(Candidate(SOURCE, 0, lambda: source, levels, net.mixes), pool.around)]
    for name, (epoch, path) in pool.others.items():
        state, weights = load_checkpoint(path), partial(fitting_weights, net, path, *built)
        candidate = Candidate(name, epoch, weights, levels_to_match(state, None), mixes_norms(state["network"]))
        own.append((candidate, path))
    for candidate, path in own:
        yield candidate, path
        if batch_norms(net) and (pool.is_start or candidate.name == SOURCE):
            yield refresh_of(candidate, target, net, settings), path


def refresh_of(candidate: Candidate, target: Target, net: Network, settings: Settings) -> Candidate:
    """The candidate with the batch-norm statistics of the target's images. net: is filled with it"""
    net.load_state_dict(candidate.weights())
    images = (image for image, _ in target.batches(candidate.levels))
    weights = partial(dict, refreshed(net, images, settings))
    return replace(candidate, name=name_of_refresh(candidate.name), weights=weights)


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
