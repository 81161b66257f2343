"""From scores without labels to one candidate, and a sentence that says why.

gate       what has collapsed is out (gate.py)
rank       in each trusted validator the candidates are ranked, and the ranks averaged (Borda)
earliest   of those whose average rank is not worse than the best one's by more than its standard error over the
           patients, the one with the fewest epochs
no harm    it must beat the source network, and its batch-norm refresh, on the same patients; else the better of
           these two is kept
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from files.run_names import RANKED
from selection.candidates import REFRESH, SOURCE, Candidate
from selection.gate import reasons
from selection.validators import VALIDATORS, Evidence

PAIRED = ("cmr_nhd", "ensv")  # in which the choice must beat the source network, paired over the patients
DRAWS, CHANCE = 2000, 0.2  # of the bootstrap over patients; the chance that an improvement is none, at most


@dataclass(frozen=True)
class Choice:
    """Which of C candidates was chosen, and on what grounds.

    place    its place
    reason   a paragraph for the log
    gate     for each candidate why it was out; '' where it was not
    scores   validator -> (C,) score, higher is better, NaN where it says nothing
    alone    validator -> the place that it would have chosen alone
    """

    place: int
    reason: str
    gate: Sequence[str]
    scores: Mapping[str, np.ndarray]
    alone: Mapping[str, int]


# Where nothing is predicted of a class that is expected, an overlap is 0, the worst there is.
OVERLAPS = ("cmr_nhd", "cmr_ei", "pairwise", "mixval", "ensv", "sdc", "sdc_calibrated", "one_piece", "no_holes")
OVERLAPS += ("continuity", "edge", "contrast")


def by_patient(name: str, seen: Evidence) -> np.ndarray:
    """(C, P) scores by a validator: the mean over the foreground classes that are expected in the patient."""
    values = VALIDATORS[name](seen)
    expected = np.broadcast_to(seen.expected, values.shape)
    if name in OVERLAPS and np.isfinite(values).any():
        values = np.where(np.isnan(values) & expected, 0, values)
    kept = np.where(expected, values, np.nan)[..., 1:]
    known = np.isfinite(kept)
    total = np.where(known, kept, 0).sum(2)
    return np.where(known.any(2), total / np.maximum(known.sum(2), 1), np.nan)


def middle(values: np.ndarray) -> np.ndarray:
    """(C, P) -> (C,): the median over the patients that have a value; NaN where none has."""
    return np.array([np.median(own[np.isfinite(own)]) if np.isfinite(own).any() else np.nan for own in values])


def ranks(scores: np.ndarray) -> np.ndarray:
    """(C,) scores -> (C,) ranks from 0, the worst, to 1; equal ones share theirs, and NaN is the worst."""
    filled = np.where(np.isnan(scores), -np.inf, scores)
    below = (filled[:, None] > filled).sum(1) + 0.5 * ((filled[:, None] == filled).sum(1) - 1)
    return below / max(len(scores) - 1, 1)


def decide(seen: Evidence, candidates: Sequence[Candidate], seed: int = 0) -> Choice:
    """Chooses one of the candidates. seed: of the bootstrap over patients."""
    gate = reasons(seen)
    starts = [place for place, one in enumerate(candidates) if one.name in (SOURCE, REFRESH)]
    passes = np.array([not why for why in gate])
    passes[starts] = True  # one of these is kept where nothing else may be
    seen = replace(seen, pool=passes)
    patients = {name: by_patient(name, seen) for name in VALIDATORS}
    scores = {name: middle(values) for name, values in patients.items()}
    alone = {name: int(np.argmax(ranks(values))) for name, values in scores.items()}
    mean = np.mean([ranks(np.where(passes, scores[name], np.nan)) for name in RANKED], axis=0)
    best = _earliest(np.where(passes, mean, -1), {name: patients[name] for name in RANKED}, candidates)
    start = max(starts, key=lambda place: mean[place])
    if best in starts:
        words = "no epoch ranks higher"
        return Choice(start, _reason(candidates, start, words, gate), gate, scores, alone)
    chances = {name: _chance(patients[name][best] - patients[name][start], seed) for name in PAIRED}
    doubtful = {name: chance for name, chance in chances.items() if chance > CHANCE}
    told = ", ".join(f"{name} {scores[name][start]:.3f} -> {scores[name][best]:.3f}" for name in PAIRED)
    if doubtful:
        words = f"{candidates[best].name} ranks highest, but is not surely better ({told})"
        return Choice(start, _reason(candidates, start, words, gate), gate, scores, alone)
    return Choice(best, _reason(candidates, best, f"it ranks highest ({told})", gate), gate, scores, alone)


def _earliest(mean: np.ndarray, patients: Mapping[str, np.ndarray], candidates: Sequence[Candidate]) -> int:
    """The place of the earliest candidate within one standard error of the best average rank.

    mean: (C,) average ranks, below 0 for those that are out; patients: validator -> (C, P) scores by patient
    """
    best = int(np.argmax(mean))
    by_patient = [np.stack([ranks(one) for one in values.T], 1)[best] for values in patients.values()]
    own = np.mean(by_patient, axis=0)
    error = own.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else 0.0
    near = np.flatnonzero(mean >= mean[best] - error)
    return int(min(near, key=lambda place: (candidates[place].epoch, -mean[place])))


def _chance(gains: np.ndarray, seed: int) -> float:
    """The chance that the mean gain (P,) over patients is none: the share of bootstrap draws in which it is not > 0."""
    known = gains[np.isfinite(gains)]
    if not len(known):
        return 1.0
    draws = np.random.default_rng(seed).integers(0, len(known), (DRAWS, len(known)))
    return float((known[draws].mean(1) <= 0).mean())


def _reason(candidates: Sequence[Candidate], place: int, why: str, gate: Sequence[str]) -> str:
    out = sum(bool(words) for words in gate)
    held = (
        f" {out} of {len(candidates)} candidates were held back, such as {_example(candidates, gate)}." if out else ""
    )
    return f"Chosen without labels: {candidates[place].name}, as {why}.{held}"


def _example(candidates: Sequence[Candidate], gate: Sequence[str]) -> str:
    place = next(place for place, words in enumerate(gate) if words)
    return f"{candidates[place].name} ({gate[place]})"
