"""How a source network is shown the target's images: as they are, or with grey levels brought to the source's.

Matched levels mend a gap of contrast, and undo a harmless difference of content; between modalities bright and dark may
have changed places too. Which of these it is nobody knows beforehand. So the source network looks at the target's
training images in each way, without a label:

    home          it is at home where it and its batch-norm refresh say the same
    consistency   how much of what it says stays when an image is disturbed, and from one slice to the next
    edge          how steep the image is at its borders
    contrast      how well its borders part the grey levels

Images stay as they are unless the network is at home in another look, with borders at edges no weaker. If it is at home
on the images as they are, two of the three scores must be surely better too. Of several such looks the most consistent
is taken. A network without batch norms has no refresh; it counts as one that is at home everywhere.

Where the rule comes from: docs/choices.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import Reading
from datasets.grey_matching import SourceLevels, knows_levels, levels_to_match
from files.run_names import DECIDING
from methods.settings import Settings
from nets.base import Network, batch_norms
from nets.checkpoint_files import load_checkpoint
from nets.filling import fitting_weights
from networks import build_network
from selection.candidates import SOURCE, Candidate, Weights, refreshed
from selection.decision import BELIEVED, CHANCE, by_patient, chance_of_none, mean_of_scores
from selection.labelled import UNLABELLED
from selection.measuring import Measured, measure, predicted
from selection.target import Target, evidence_of, laid_out, open_target
from selection.validators import VALIDATORS, Evidence, dice_with, middle

LOOKS = {"as they are": 0.0, "matched to the source's": 1.0, "matched with bright and dark exchanged": -1.0}
WITNESSES = ("consistency", "edge", "contrast")


@dataclass(frozen=True)
class Look:
    """What a source network says of the P patients in one look.

    name, share   of `LOOKS`
    agreement     Dice with its refresh, 0 where neither predicts anything; None without batch norms
    scores        of `WITNESSES`, (P,) each, higher is better; nothing where nobody asks for them
    """

    name: str
    share: float
    agreement: float | None
    scores: dict[str, np.ndarray]

    @property
    def is_home(self) -> bool:
        return self.agreement is None or self.agreement >= BELIEVED

    @property
    def consistency(self) -> float:
        return float(middle(self.scores["consistency"][None])[0])

    def is_surely_better(self, other: "Look", witness: str) -> bool:
        """Whether it most probably is, by one of the witnesses, of the same patients."""
        return chance_of_none(self.scores[witness] - other.scores[witness], 0) <= CHANCE


def find_look(
    weights: Path, reading: Reading, settings: Settings, network: str, priors: Sequence[Any]
) -> tuple[float, str]:
    """The share by which the target's images are to be matched, see datasets/grey_matching.py, and a paragraph why.

    weights: of the source network; network: as --network names it
    priors: as in `open_target`
    """
    state = load_checkpoint(weights)
    if not knows_levels(state):
        return 0.0, f"Grey levels stay as they are: {weights} does not tell those that it learnt from."
    levels = {name: levels_to_match(state, share) for name, share in LOOKS.items()}
    target = open_target(reading, priors, UNLABELLED)
    built = (network, target.slices.shape[0], reading.n_class)
    net = build_network(*built).to(reading.device)
    settings = laid_out(net, settings)
    own = fitting_weights(net, weights, *built)
    look, why = best_look([_look_at(target, net, own, name, told, settings) for name, told in levels.items()])
    return look.share, why


def _look_at(
    target: Target, net: Network, weights: Weights, name: str, levels: SourceLevels | None, settings: Settings
) -> Look:
    """What it says in one look; a look other than the images as they are has no scores where it is not at home."""
    agreement = _agreement(target, net, weights, levels, settings)
    if levels and agreement is not None and agreement < BELIEVED:
        return Look(name, LOOKS[name], agreement, {})
    net.load_state_dict(weights)
    seen = _seen(target, measure(net, target.batches(levels), settings, None))
    found = {score: by_patient(score, VALIDATORS[score](seen), seen.expected) for score in (*DECIDING, *WITNESSES[1:])}
    found["consistency"] = mean_of_scores([found[score] for score in DECIDING])
    return Look(name, LOOKS[name], agreement, {witness: found[witness][0] for witness in WITNESSES})


def _agreement(
    target: Target, net: Network, weights: Weights, levels: SourceLevels | None, settings: Settings
) -> float | None:
    """Dice of the network with its batch-norm refresh, the median over patients; None without batch norms."""
    if not batch_norms(net):
        return None
    net.load_state_dict(weights)
    masks = predicted(net, target.batches(levels), settings)
    refreshed(net, (image for image, _ in target.batches(levels)), settings)
    others = predicted(net, target.batches(levels), settings)
    sizes = [np.bincount(mask.ravel(), minlength=target.reading.n_class) for mask in masks]
    seen = _seen(target, Measured({"size": np.stack(sizes)}, masks))
    dice = middle(by_patient("refresh", dice_with(seen, others.__getitem__), seen.expected))
    return float(np.nan_to_num(dice[0]))


def _seen(target: Target, measured: Measured) -> Evidence:
    return evidence_of(target, [measured], [Candidate(SOURCE, 0, dict)], None)


def best_look(looks: Sequence[Look]) -> tuple[Look, str]:
    """The look to start from, and a paragraph that says why. looks: the images as they are first"""
    as_is, *others = looks
    free = [look for look in others if _may_replace(look, as_is)]
    best = max(free, key=lambda look: look.consistency, default=as_is)
    where = "at home on them" if as_is.is_home else "not at home on them as they are"
    why = f"the source network is {where}, and no other look is surely better"
    if best is not as_is:
        why = "the source network is at home there" + ("" if as_is.is_home else ", and not on them as they are")
    return best, f"Grey levels, decided without labels: {best.name}, as {why} ({'; '.join(map(_told, looks))})."


def _may_replace(look: Look, as_is: Look) -> bool:
    if not look.is_home or as_is.is_surely_better(look, "edge"):
        return False
    return not as_is.is_home or sum(look.is_surely_better(as_is, witness) for witness in WITNESSES) >= 2


def _told(look: Look) -> str:
    agreed = [] if look.agreement is None else [f"agrees with its refresh to {look.agreement:.2f}"]
    consistent = []
    if look.scores:
        found = not np.isnan(look.consistency)
        consistent = [f"is consistent to {look.consistency:.2f}" if found else "finds nothing"]
    return f"{look.name} it {', '.join([*agreed, *consistent])}"
