"""Scores of calibration of a network, patient by patient: what stands in calibration.csv and reliability.csv."""

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from analysis.calibration.region import band
from analysis.calibration.scores import reliability_curve, scores_of
from analysis.calibration.sums import NOTHING, Sums, sums_by, sums_of
from analysis.calibration.temperature import tempered
from analysis.evaluated import EVERYONE, REGIONS
from study.cases import Case

Row = list[object]
Key = tuple[str, int, str]  # a version of the network, a class, a region


class Tally:
    """The sums of one network over its cases, at several temperatures: of the patient at hand, and of all so far."""

    def __init__(self, versions: Mapping[str, float], n_class: int, ignore: int | None) -> None:
        """versions: what the network is called -> the temperature that its logits are divided by"""
        self.versions, self.n_class, self.ignore = versions, n_class, ignore
        self.keys: list[Key] = list(product(versions, range(1, n_class), REGIONS))
        self.own: dict[Key, Sums] = dict.fromkeys(self.keys, NOTHING)
        self.whole: dict[Key, Sums] = dict.fromkeys(self.keys, NOTHING)

    def add(self, case: Case) -> None:
        """Adds a case of the patient at hand."""
        for key, sums in self._sums_of(case):
            self.own[key] += sums

    def finish(self, patient: str) -> list[Row]:
        """The rows of calibration.csv of the patient, whose cases are all there; the next case is another's."""
        rows = list(self._rows(patient, self.own))
        self.whole = {key: sums + self.own[key] for key, sums in self.whole.items()}
        self.own = dict.fromkeys(self.keys, NOTHING)
        return rows

    def rows_of_everyone(self) -> list[Row]:
        """The rows of calibration.csv of all patients together."""
        return list(self._rows(EVERYONE, self.whole))

    def _rows(self, patient: str, sums: Mapping[Key, Sums]) -> Iterator[Row]:
        for version, k, region in self.keys:
            found = sums[version, k, region]
            cells = [_cell(value) for value in scores_of(found).values()]
            yield [version, patient, k, region, *cells, found.n, _cell(self.versions[version])]

    def curves(self) -> list[Row]:
        """The rows of reliability.csv."""
        rows: list[Row] = []
        for key in self.keys:
            sums = self.whole[key]
            counts = sums.bins[0].astype(int).tolist()
            for number, (confidence, frequency, n) in enumerate(zip(*reliability_curve(sums), counts, strict=True)):
                rows.append([*key, number, _cell(confidence), _cell(frequency), n])
        return rows

    def _sums_of(self, case: Case) -> Iterator[tuple[Key, Sums]]:
        """The sums of every plane; without a band where nobody knows where the planes lie."""
        bands = {k: self._band(case, k) for k in range(1, self.n_class)}
        for place, (log_p, truth) in enumerate(zip(case.log_p, case.truth, strict=True)):
            counted = np.full(truth.shape, True) if self.ignore is None else truth != self.ignore
            scores, labels = log_p[:, counted], truth[counted]
            for version, temperature in self.versions.items():
                said = scores if temperature == 1 else tempered(scores, temperature)
                for k, near in bands.items():
                    if near is None:
                        yield (version, k, "image"), sums_of(said, labels, k)
                        continue
                    inside, outside = sums_by(said, labels, k, near[place][counted])
                    yield (version, k, "band"), inside
                    yield (version, k, "image"), inside + outside

    def _band(self, case: Case, k: int) -> np.ndarray | None:
        """(D, W, H) the band of a class in the planes of the case."""
        if case.numbers is None:
            return None
        ignored = np.zeros(case.truth.shape, bool) if self.ignore is None else case.truth == self.ignore
        masks = [case.stacked((each == k) & ~ignored) for each in (case.mask, case.truth)]
        return case.unstacked(band(*masks, case.spacing))


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
