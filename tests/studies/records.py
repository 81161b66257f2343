"""What is kept of one run of a study: what was seen of its candidates without labels, and the truth."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from selection.candidates import REFRESH, SOURCE, Candidate
from selection.decision import Choice, Weighed, settle, weigh
from selection.validators import VALIDATORS, Evidence
from utils import atomic_write

PARTS = ("expected", "prior")  # of the evidence, beside its sums
WHOLE = ("names", "epochs", "place", "gate", "truth", "as_is")


@dataclass(frozen=True)
class Record:
    """One run: C candidates, Q patients who were looked at, P others whose labels say what each candidate is worth.

    names, epochs   (C,) of the candidates
    place           of the one that was chosen then
    gate            (C,) why a candidate was held back then, '' where it was not
    truth           (C, P, K) Dice
    as_is           (P, K) Dice of the source network on images as they are, which candidates may see matched
    values          validator -> (C, Q, K)
    evidence        the sums of measuring.py (C, Q, *), and the PARTS
    """

    names: np.ndarray
    epochs: np.ndarray
    place: int
    gate: np.ndarray
    truth: np.ndarray
    as_is: np.ndarray
    values: Mapping[str, np.ndarray]
    evidence: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, seen: Evidence, candidates: Sequence[Candidate], choice: Choice, truth: np.ndarray, as_is: np.ndarray
    ) -> "Record":
        names, epochs = zip(*((each.name, each.epoch) for each in candidates), strict=True)
        values = {name: VALIDATORS[name](seen) for name in VALIDATORS}
        evidence = {**seen.sums, **{part: getattr(seen, part) for part in PARTS}}
        gate = np.array(choice.gate)
        return cls(np.array(names), np.array(epochs), choice.place, gate, truth, as_is, values, evidence)

    @classmethod
    def joined(cls, records: Mapping[str, "Record"]) -> "Record":
        """The candidates of several runs from one source network, by method, which counts once, as does its refresh."""
        first, *_ = every = list(records.values())
        kept = [np.isin(each.names, (SOURCE, REFRESH)) <= (each is first) for each in every]

        def together(parts: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate([part[mask] for part, mask in zip(parts, kept, strict=True)])

        def called(method: str, names: np.ndarray) -> np.ndarray:
            return np.array([name if name in (SOURCE, REFRESH) else f"{method}, {name}" for name in names.tolist()])

        names = together([called(method, one.names) for method, one in records.items()])
        values = {name: together([each.values[name] for each in every]) for name in first.values}
        alike = {part: first.evidence[part] for part in PARTS}
        evidence = {
            name: together([each.evidence[name] for each in every]) for name in first.evidence if name not in PARTS
        }
        own = {name: together([getattr(each, name) for each in every]) for name in ("epochs", "gate", "truth")}
        return cls(names, place=0, as_is=first.as_is, values=values, evidence=evidence | alike, **own)

    def among(self, names: Collection[str]) -> "Record":
        """The candidates of these names alone."""
        kept = np.isin(self.names, list(names))
        values = {name: each[kept] for name, each in self.values.items()}
        evidence = {name: each if name in PARTS else each[kept] for name, each in self.evidence.items()}
        own = {name: getattr(self, name)[kept] for name in ("names", "epochs", "gate", "truth")}
        return replace(self, place=0, values=values, evidence=evidence, **own)

    @cached_property
    def choice(self) -> Choice:
        """What the rule as it is now would choose of what was seen then."""
        return settle(self._weighed, self._candidates)

    @cached_property
    def start(self) -> Choice:
        """As `choice`, of source networks that nothing has adapted."""
        return settle(self._weighed, self._candidates, is_start=True)

    @property
    def may_be_chosen(self) -> np.ndarray:
        """(C,) whether gate.py as it is now lets a candidate through; what a run starts from may always be kept."""
        return self._weighed.passes

    @property
    def _candidates(self) -> list[Candidate]:
        return [Candidate(str(name), int(epoch), dict) for name, epoch in zip(self.names, self.epochs, strict=True)]

    @cached_property
    def _weighed(self) -> Weighed:
        sums = {name: values for name, values in self.evidence.items() if name not in PARTS}
        expected, pool = self.evidence["expected"] > 0, np.ones(len(self.names), bool)
        places = {str(name): place for place, name in enumerate(self.names)}
        starts = places[SOURCE], places.get(REFRESH)
        seen = Evidence(sums, [], [], expected, self.evidence["prior"], pool, *starts)
        return weigh(seen, self._candidates, self.values)

    @property
    def dice(self) -> np.ndarray:
        """(C + 1,) mean Dice over foreground classes and patients, as the reports have it; `as_is` last."""
        every = np.concatenate([self.truth, self.as_is[None]])
        return np.nanmean(np.nanmean(every[:, :, 1:], axis=2), axis=1)

    def save(self, path: Path) -> None:
        whole = {name: getattr(self, name) for name in WHOLE}
        whole |= {f"value {name}": values.astype(np.float32) for name, values in self.values.items()}
        whole |= {f"seen {name}": values.astype(np.float32) for name, values in self.evidence.items()}
        with atomic_write(path) as file:
            np.savez_compressed(file, **whole)

    @classmethod
    def read(cls, path: Path) -> "Record":
        with np.load(path, allow_pickle=False) as file:
            whole = dict(file)
        of = lambda kind: {name.split(" ", 1)[1]: whole[name] for name in whole if name.startswith(f"{kind} ")}  # noqa: E731
        single = {name: whole[name] for name in WHOLE} | {"place": int(whole["place"])}
        return cls(**single, values=of("value"), evidence=of("seen"))
