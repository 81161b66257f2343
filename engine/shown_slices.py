"""A picture of a few validation slices, the same ones in every epoch: what is predicted, and what is true.

Which slices are shown follows from their order alone, never from a label.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.plots.pictures import draw_frame
from analysis.plots.views import View, make_view
from analysis.run import Run
from dataloader import AnySet
from files.run_names import shown_name
from processes.lock import finished
from utils import atomic_write

NUMBER = 4  # of slices


class Running(Run):
    """A run that is not whole yet, under the name that it will have."""

    @property
    def name(self) -> str:
        return finished(self.folder.resolve()).name


class ShownSlices:
    """Slices of a set as plots take them; of each volume, which counts as one, the middle slice."""

    def __init__(self, slices: AnySet) -> None:
        self.slices, self.root, self.spacing = slices, slices.root, slices.spacing
        self.names, self.patients = slices.names, slices.patients

    def image(self, row: int) -> np.ndarray:
        """(C, W, H) grey levels as the network sees them."""
        image = self.slices.image(row)
        return image if image.ndim == 3 else image[:, image.shape[1] // 2]

    def truth(self, row: int) -> np.ndarray:
        """(W, H) class numbers; where no truth is known, nothing, of the image's size."""
        if not self.slices.has_truth:
            return np.zeros(self.image(row).shape[1:], np.uint8)
        return middle(self.slices.labels([row])[0])


def middle(label: np.ndarray) -> np.ndarray:
    """The middle slice (W, H) of a volume (D, W, H); a slice (W, H) is its own."""
    return label if label.ndim == 2 else label[len(label) // 2]


def rows_shown(patients: Sequence[str]) -> list[int]:
    """Which rows are shown of slices in the order of patient and number: those in the middle of four equal parts.

    With four patients or more, these are parts of the list of patients, and of each patient its middle slice.
    """
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    groups = list(rows.values()) if len(rows) >= NUMBER else [[row] for row in range(len(patients))]
    parts = np.array_split(np.arange(len(groups)), min(NUMBER, len(groups)))
    chosen = [groups[part[len(part) // 2]] for part in parts]
    return [group[len(group) // 2] for group in chosen]


class Shown:
    """Draws the slices of one run."""

    def __init__(self, folder: Path, provenance: dict[str, Any], slices: AnySet) -> None:
        """provenance: what provenance.json of this folder says."""
        self.run, self.slices = Running(folder, provenance), ShownSlices(slices)
        self.views = {row: self._view(row) for row in rows_shown(slices.patients)}

    def _view(self, row: int) -> View:
        """The whole slice; upright, but for one of a volume, whose axes lie as they lie."""
        if self.slices.slices.image(row).ndim == 3:
            return make_view(self.slices, row, [self.slices.truth(row)], whole=True)
        W, H = self.slices.truth(row).shape
        spacing = (1.0, 1.0, 1.0) if self.slices.spacing is None else self.slices.spacing[self.slices.patients[row]]
        return View((slice(0, W), slice(0, H)), False, (False, False), spacing[1] / spacing[2])

    def draw(self, epoch: int, prediction: Sequence[np.ndarray]) -> None:
        """Draws an epoch into the run's folder.

        prediction: class numbers of every slice (W, H), or of every volume (D, W, H)
        """
        masks = [middle(prediction[row]) for row in self.views]
        path = self.run.folder / shown_name(epoch)
        path.parent.mkdir(exist_ok=True)
        frame = draw_frame(self.run, self.slices, self.views, epoch, masks)
        with atomic_write(path) as file:
            frame.save(file, format="png")
