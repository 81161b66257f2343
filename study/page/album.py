"""The volumes that the page holds for its viewer: bytes, cut to a common box, upright, zipped, in base 64."""

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from analysis.evaluated import Scan, evaluated_folder, read_scan
from analysis.plots.views import View, axis_codes, upright
from analysis.run import Run
from processes.errors import UserError

LARGEST = 192  # pixels along a side of a slice; a larger one is thinned out
BUDGET = 16 * 2**20  # letters of all volumes together: the page stays below 25 MB
SHADES = 16  # grey levels of the entropy differ by so much: no eye sees less, and it is a third as long
Corner = np.ndarray  # (3,) of a box in the whole volume


class Album:
    """What several runs of one seed make of the same patients; a patient's image and truth are in it once.

    runs   row -> its run, evaluated; `lower`, the row without adaptation, comes with each other row where it is there
    """

    def __init__(self, runs: Mapping[str, Run], lower: str, budget: int = BUDGET) -> None:
        self.runs, self.lower, self.budget = runs, lower, budget
        self.letters = 0
        self.patients: dict[str, dict] = {}
        self.made: dict[str, dict[str, dict[str, str]]] = {}
        self.scans = cache(lambda row, patient: read_scan(evaluated_folder(runs[row].folder), patient))

    def add(self, row: str, patients: Sequence[str]) -> bool:
        """Takes the patients of a row in; none of them where the album then held more than the budget.

        The first row is taken in whatever it holds.
        """
        images = {name: self._image(name) for name in patients if name not in self.patients}
        wanted = [(each, name) for each in (self.lower, row) if each in self.runs for name in patients]
        masks = {key: self._made(*key) for key in wanted if key[1] not in self.made.get(key[0], {})}
        letters = sum(
            len(text) for each in [*images.values(), *masks.values()] for text in each.values() if isinstance(text, str)
        )
        if self.made and self.letters + letters > self.budget:
            return False
        self.letters += letters
        self.patients |= images
        for (each, name), made in masks.items():
            self.made.setdefault(each, {})[name] = made
        return True

    def as_data(self) -> dict:
        """What the viewer reads, but for its rows."""
        return {"classes": max(run.n_class for run in self.runs.values()), "patients": self.patients, "made": self.made}

    def _image(self, patient: str) -> dict:
        """Its image and truth, and the slice in which most is true."""
        scans = [self.scans(row, patient) for row in self.runs]
        image, truth = (
            self._common(patient, [getattr(scan, name) for scan in scans], scans) for name in ("image", "truth")
        )
        view = self._view(patient)
        spacing = scans[0].spacing[[0, 2, 1]] if view.swap else scans[0].spacing
        return {
            "shape": [*image.shape],
            "spacing": [float(each) for each in spacing],
            "start": int((truth > 0).sum((1, 2)).argmax()),
            "image": packed(image),
            "truth": packed(truth),
        }

    def _made(self, row: str, patient: str) -> dict[str, str]:
        """The mask and the entropy of a row."""
        scan = self.scans(row, patient)
        entropy = (scan.entropy // SHADES * SHADES).astype(np.uint8)
        mask, entropy = (self._common(patient, [each], [scan]) for each in (scan.mask, entropy))
        return {"mask": packed(mask), "entropy": packed(entropy)}

    def _common(self, patient: str, volumes: Sequence[np.ndarray], scans: Sequence[Scan]) -> np.ndarray:
        """(D, H, W) as shown: the box that holds the scans of all rows, filled from these, the first on top."""
        low, high = self._box(patient)
        box = np.zeros(high - low, np.uint8)
        for volume, scan in reversed([*zip(volumes, scans, strict=True)]):
            place = tuple(slice(at, at + length) for at, length in zip(scan.corner - low, volume.shape, strict=True))
            box[place] = volume
        step = math.ceil(max(box.shape[1:]) / LARGEST)
        return self._view(patient)(box[:, ::step, ::step])

    def _box(self, patient: str) -> tuple[Corner, Corner]:
        scans = [self.scans(row, patient) for row in self.runs]
        if len({tuple(scan.size) for scan in scans}) > 1:
            raise UserError(
                f"The runs were evaluated on images of {patient} of different sizes, so their masks do not lie on one "
                "another; evaluate them again on the same data."
            )
        low = np.min([scan.corner for scan in scans], 0)
        return low, np.max([scan.corner + scan.image.shape for scan in scans], 0)

    def _view(self, patient: str) -> View:
        """Upright, where the data set is still there and tells how its slices lie."""
        run = next(iter(self.runs.values()))
        name = next((name for name in run.names if patient in name), "")
        try:
            codes = axis_codes(Path(run.provenance["dataset"]["path"]), name)
        except (OSError, UserError):
            codes = ""
        return View((slice(None), slice(None)), *upright(codes), 1.0)


def packed(volume: np.ndarray) -> str:
    """Bytes as text; the same for the same bytes."""
    return base64.b64encode(gzip.compress(np.ascontiguousarray(volume).tobytes(), mtime=0)).decode()
