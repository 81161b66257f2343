"""From scores without labels to one candidate, and a sentence that says why.

    gate          what has collapsed is out (gate.py)
    belief        where the source network and its batch-norm refresh say the same, the source network is believed: it
                  is at home on these images. It is kept unless a candidate is above it by all five: the two parts of
                  consistency (below), the edges of the image that its borders lie at (edge), how these part the grey
                  levels (contrast), and that it says of a mixed image what it says of the halves (mixval). Of single
                  pictures, and of fewer than three patients, that is never known
    edges         else a candidate must lie at stronger edges of the image than the network that is kept if no other is
                  chosen. A network without batch norms has no refresh; there it must part the grey levels no less,
                  too (contrast). These an adapted network cannot talk round
    consistency   the mean of two scores: how sure and how much of a prediction stays when the image is disturbed
                  (cmr_ei), and how much from one slice to the next (continuity), which is left out where there are no
                  volumes. The candidate with the highest median over the patients is the best, of equal ones the
                  earliest
    no harm       it must be more consistent than the network that is kept else, on the same patients. This is the
                  source network, or its refresh where that is more consistent and lies at edges as strong

Where adaptations begin (choose.py --start) the candidates are source networks that learnt in several ways, and their
refreshes. None of them was adapted, so none is consistent because it learnt to be: edges hold nothing back, a witness
that knows nothing, as continuity of single pictures, is not asked, and the rest is as above.

Where the labels of a few patients choose (labelled.py), the gate stays. Of what it lets through, the candidate with the
highest Dice on these patients is chosen, of equal ones the earliest.

Where the rule comes from: docs/choices.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from files.run_names import DECIDING, LABELLED, WITNESSES
from selection.candidates import REFRESH, SOURCE, Candidate
from selection.gate import reasons
from selection.validators import VALIDATORS, Evidence, middle
from utils import counted, listing

DRAWS, CHANCE = 2000, 0.2  # of the bootstrap over patients; the chance that a difference is none, at most
FEWEST = 3  # patients who can outvote it: of fewer, not even a sign test comes to such a chance
BELIEVED = 0.7  # Dice of the source network with its refresh from which on it is believed


@dataclass(frozen=True)
class Choice:
    """Which of C candidates was chosen, and on what grounds.

    place    its place
    reason   a paragraph for the log
    gate     for each candidate why it was out; '' where it was not
    scores   validator -> (C,) score, higher is better, NaN where it says nothing
    alone    validator -> the place that it would have chosen alone
    labelled the patients whose labels chose; none where it was made without
    """

    place: int
    reason: str
    gate: Sequence[str]
    scores: Mapping[str, np.ndarray]
    alone: Mapping[str, int]
    labelled: tuple[str, ...] = ()


# Where nothing is predicted of a class that is expected, an overlap is 0, the worst there is.
OVERLAPS = ("cmr_nhd", "cmr_ei", "pairwise", "mixval", "ensv", "sdc", "sdc_calibrated", "one_piece", "no_holes")
OVERLAPS += ("continuity", "edge", "contrast")


def by_patient(name: str, values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(C, P) scores out of a validator's values (C, P, K): the mean over the foreground classes that are expected.

    name: of the validator; expected: (P, K) whether the class is expected in the patient
    """
    expected = np.broadcast_to(expected, values.shape)
    if name in OVERLAPS and np.isfinite(values).any():
        values = np.where(np.isnan(values) & expected, 0, values)
    kept = np.where(expected, values, np.nan)[..., 1:]
    known = np.isfinite(kept)
    total = np.where(known, kept, 0).sum(2)
    return np.where(known.any(2), total / np.maximum(known.sum(2), 1), np.nan)


@dataclass(frozen=True)
class Weighed:
    """What every choice starts from: the gate, and by validator the scores (C, P) of each patient."""

    gate: Sequence[str]
    passes: np.ndarray  # (C,) whether the gate lets it through; the source network and its refresh in any case
    patients: Mapping[str, np.ndarray]

    def is_above(self, name: str, place: int, other: int, seed: int) -> bool:
        """Whether a candidate is most probably better than another one by a validator."""
        scores = self.patients[name]
        return surely_above(scores[place], scores[other], seed)

    def that_know(self) -> list[str]:
        """The witnesses against a source network that is believed, without those that know nothing of these images."""
        return [name for name in (*DECIDING, *WITNESSES) if np.isfinite(self.patients[name]).any()]

    def choose(self, place: int, reason: str, more: Mapping[str, np.ndarray], labelled: Sequence[str]) -> Choice:
        """The choice of this place. more: validator -> (C,) score, before those of `patients`."""
        scores = {**more} | {name: middle(values) for name, values in self.patients.items()}
        alone = {name: int(np.nanargmax(values)) for name, values in scores.items() if np.isfinite(values).any()}
        return Choice(place, reason, self.gate, scores, alone, tuple(labelled))


def weigh(seen: Evidence, candidates: Sequence[Candidate], values: Mapping[str, np.ndarray] | None = None) -> Weighed:
    """What was seen of the candidates, weighed. values: validator -> (C, P, K), where they are known already."""
    gate = reasons(seen)
    passes = np.array([not why for why in gate])
    passes[_starts(candidates)] = True  # one of these is kept where nothing else may be
    seen = replace(seen, pool=passes)
    values = values or {name: VALIDATORS[name](seen) for name in VALIDATORS}
    return Weighed(gate, passes, {name: by_patient(name, values[name], seen.expected) for name in values})


def decide(seen: Evidence, candidates: Sequence[Candidate], seed: int = 0, is_start: bool = False) -> Choice:
    """Chooses one of the candidates without labels.

    seed: of the bootstrap over patients; is_start: whether adaptations are to begin at it, and none has begun
    """
    return settle(weigh(seen, candidates), candidates, seed, is_start)


def settle(weighed: Weighed, candidates: Sequence[Candidate], seed: int = 0, is_start: bool = False) -> Choice:
    """As `decide`, of what is weighed already."""
    consistency = mean_of_scores([weighed.patients[name] for name in DECIDING])
    middles = np.where(weighed.passes, middle(consistency), np.nan)
    start, refresh = _place(candidates, SOURCE), _place(candidates, REFRESH)
    agree = np.nan if refresh is None else middle(weighed.patients["source"])[refresh]
    if agree >= BELIEVED:
        witnesses = weighed.that_know() if is_start else (*DECIDING, *WITNESSES)
        agreed = f"{REFRESH} agree (Dice {agree:.2f})"
        return _against_belief(weighed, middles, candidates, start, agreed, witnesses, seed)
    if refresh is not None and middles[refresh] > middles[start]:
        leaves_edges = not is_start and weighed.is_above("edge", start, refresh, seed)
        start = start if leaves_edges else refresh
    gate = weighed.gate if is_start else _with_witnesses(weighed, candidates, start, seed)
    free = [place for place in _by_epoch(candidates) if not gate[place] and place not in _starts(candidates)]
    best = _highest(middles, [start, *free])
    told = _told(candidates, middles, best, start)
    if best == start:
        why = f"no {'other network' if is_start else 'epoch'} that may be chosen is more consistent"
    elif not surely_above(consistency[best], consistency[start], seed):
        why, best = f"{candidates[best].name} is not surely better: {told}", start
    else:
        why = told
    words = f"Chosen without labels: {candidates[best].name}, as {why}.{_held(candidates, gate)}"
    return replace(weighed, gate=gate).choose(best, words, {}, ())


def _against_belief(
    weighed: Weighed,
    middles: np.ndarray,
    candidates: Sequence[Candidate],
    start: int,
    agree: str,
    witnesses: Sequence[str],
    seed: int,
) -> Choice:
    """The choice where the source network is believed: itself, or the most consistent of those who outvote it.

    middles: (C,) consistency; start: the place of the source network; agree: who agrees with it
    witnesses: by all of which it must be outvoted
    """
    others = [place for place in _by_epoch(candidates) if place != start and weighed.passes[place]]
    doubts = {place: _doubts(weighed, place, start, witnesses, seed) for place in others}
    best = _highest(middles, [start, *(place for place in others if not doubts[place])])
    why = f"it and its {agree}, so it is believed on these images"
    if best != start:
        told = _told(candidates, middles, best, start)
        why = f"{told}, and the image speaks for it too, though {candidates[start].name} and its {agree}"
    elif others:
        next_best = _highest(middles, others)
        why += f"; {candidates[next_best].name} is not surely above it by {listing(doubts[next_best])}"
    words = f"Chosen without labels: {candidates[best].name}, as {why}.{_held(candidates, weighed.gate)}"
    return weighed.choose(best, words, {}, ())


def _doubts(weighed: Weighed, place: int, start: int, witnesses: Sequence[str], seed: int) -> list[str]:
    """By which witnesses a candidate is not surely above the source network; empty where it outvotes it."""
    if weighed.patients[DECIDING[0]].shape[1] < FEWEST:
        return [f"so few patients (at least {FEWEST})"]
    return [name for name in witnesses if not weighed.is_above(name, place, start, seed)]


def _with_witnesses(weighed: Weighed, candidates: Sequence[Candidate], start: int, seed: int) -> list[str]:
    """The gate's reasons, and those that the image gives against the others; the networks one starts from have none.

    start: the place of the one that is kept where no other is chosen
    """
    starts, found = _starts(candidates), list(weighed.gate)
    knows_edges = np.isfinite(weighed.patients["edge"]).any()
    for place in set(range(len(candidates))).difference(starts):
        if not found[place] and knows_edges and not weighed.is_above("edge", place, start, seed):
            found[place] = f"its borders lie at no stronger edges of the image than those of {candidates[start].name}"
        if not found[place] and len(starts) == 1 and weighed.is_above("contrast", start, place, seed):
            found[place] = f"its borders part the grey levels less than those of {candidates[start].name}"
    return found


def _told(candidates: Sequence[Candidate], middles: np.ndarray, best: int, start: int) -> str:
    return f"its consistency is {middles[best]:.3f}, that of {candidates[start].name} {middles[start]:.3f}"


def decide_by_labels(
    seen: Evidence, candidates: Sequence[Candidate], dice: np.ndarray, patients: Sequence[str]
) -> Choice:
    """Chooses the candidate with the highest Dice (C,) on these few labelled patients."""
    weighed = weigh(seen, candidates)
    best = _highest(np.where(weighed.passes, dice, np.nan), _by_epoch(candidates))
    source = seen.source
    why = f"its Dice on them is {dice[best]:.3f}"
    why += f", that of {candidates[source].name} {dice[source]:.3f}" * (best != source)
    if np.isnan(dice[best]):
        why = "neither their labels nor any prediction holds a class that counts"
    whose = f"{counted(len(patients), 'labelled patient')} ({listing(patients)})"
    words = f"Chosen with {whose}: {candidates[best].name}, as {why}.{_held(candidates, weighed.gate)}"
    return weighed.choose(best, words, {LABELLED: dice}, patients)


def _place(candidates: Sequence[Candidate], name: str) -> int | None:
    return next((place for place, one in enumerate(candidates) if one.name == name), None)


def _starts(candidates: Sequence[Candidate]) -> list[int]:
    return [place for place, one in enumerate(candidates) if one.name in (SOURCE, REFRESH)]


def _by_epoch(candidates: Sequence[Candidate]) -> list[int]:
    return sorted(range(len(candidates)), key=lambda place: candidates[place].epoch)


def _highest(values: np.ndarray, order: Sequence[int]) -> int:
    """The place of the highest of the values (C,), of equal ones the first in this order; NaN is the lowest."""
    return max(order, key=lambda place: np.nan_to_num(values[place], nan=-1))


def mean_of_scores(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(C, P) mean of scores (C, P) each; a score that knows nothing of any candidate is left out."""
    known = [part for part in parts if np.isfinite(part).any()]
    return np.mean(known, axis=0) if known else parts[0]


def surely_above(scores: np.ndarray, others: np.ndarray, seed: int) -> bool:
    """Whether scores (P,) of one candidate are most probably above those of another, in the mean over patients."""
    return chance_of_none(scores - others, seed) <= CHANCE


def chance_of_none(gains: np.ndarray, seed: int) -> float:
    """The chance that the mean gain (P,) over patients is none: the share of bootstrap draws in which it is not > 0."""
    known = gains[np.isfinite(gains)]
    if not len(known):
        return 1.0
    draws = np.random.default_rng(seed).integers(0, len(known), (DRAWS, len(known)))
    return float((known[draws].mean(1) <= 0).mean())


def _held(candidates: Sequence[Candidate], gate: Sequence[str]) -> str:
    if not (out := sum(bool(words) for words in gate)):
        return ""
    return f" {out} of {len(candidates)} candidates were held back, such as {_example(candidates, gate)}."


def _example(candidates: Sequence[Candidate], gate: Sequence[str]) -> str:
    place = next(place for place, words in enumerate(gate) if words)
    return f"{candidates[place].name} ({gate[place]})"
