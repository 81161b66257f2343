"""patients_expected.csv: the Dice that may be expected of a run's masks, for each patient of its validation images.

No ground truth is asked for: the images are opened once more by themselves, by what the source bundle of the network
tells (nets/expected_dice.py).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dataloader import AnyStream, Reading, open_images, validation_split
from datasets.grey_matching import SourceLevels
from datasets.grey_quantiles import grey_quantiles, sample_levels
from engine.run_folder import RunFolder
from files.run_names import EXPECTED
from methods.base import Method, infer
from nets.bundle import Bundle
from nets.decoding import DECODED
from nets.expected_dice import ConfidenceSums, Estimate, ExpectedDice, expected_dice, first_to_look_at
from nets.probabilities import log_probabilities
from processes.interrupt import STOP

COLUMNS = ("patient", "class", "expected", "low", "high", "confidence", "grey_distance", "network", "note")


class Expectation:
    """What is expected of the masks of a run that started from a whole network."""

    def __init__(
        self,
        method: Method,
        folder: RunFolder,
        reading: Reading,
        bundle: Bundle | None,
        levels: SourceLevels | None = None,
    ) -> None:
        """bundle: what came with the network that the run started from; levels: what its images are matched to"""
        self.method, self.folder, self.reading, self.levels = method, folder, reading, levels
        self.told = expected_dice(bundle) if method.settings.decode == "argmax" else DECODED

    def write(self, network: str) -> str:
        """Writes the table for what the method's network is now, and says what to look at first.

        network: what it is called, "last" or "chosen". Where the bundle tells nothing, no table is written, one that
        is there is removed, and the reason is said.
        """
        if isinstance(self.told, str):
            (self.folder.path / EXPECTED).unlink(missing_ok=True)
            return f"How good the masks are cannot be told without labels, and there is no {EXPECTED}: {self.told}."
        split = validation_split(self.reading)
        stream = open_images(replace(self.reading, cache="stream"), split, levels=self.levels)
        patients = list(dict.fromkeys(stream.slices.patients))
        found = self._estimate(stream, patients, self.told)
        self.folder.write_table(EXPECTED, [COLUMNS, *rows_of(patients, found, network)])
        return first_to_look_at(patients, found.expected, found.low)

    @torch.inference_mode()
    def _estimate(self, stream: AnyStream, patients: list[str], told: ExpectedDice) -> Estimate:
        """What is expected of these patients."""
        self.method.net.eval()
        slices, settings = stream.slices, self.method.settings
        places = {patient: place for place, patient in enumerate(patients)}
        sums = ConfidenceSums(len(patients), told.temperatures, settings.device)
        for batch, _ in stream.epoch(0):
            STOP.check()
            with settings.autocast():
                logits = infer(self.method.net, batch.image, settings)
            sums.add([places[slices.patients[row]] for row in batch.rows.tolist()], log_probabilities(logits))
        scores, predicted = sums.read()
        rows: dict[str, list[int]] = {patient: [] for patient in patients}
        for row, patient in enumerate(slices.patients):
            rows[patient].append(row)
        levels = np.array([grey_quantiles(sample_levels(slices, rows[patient]))[0] for patient in patients])
        mm3 = None
        if slices.spacing is not None:
            mm3 = predicted * np.array([[np.prod(slices.spacing[patient])] for patient in patients])
        return told.estimate(scores, predicted, told.distance(levels), mm3)


def rows_of(patients: Iterable[str], found: Estimate, network: str) -> Iterable[tuple[Any, ...]]:
    """The lines of the table, one a patient and foreground class."""
    for place, patient in enumerate(patients):
        for of_class, note in enumerate(found.notes[place]):
            cells = [values[place, of_class] for values in (found.expected, found.low, found.high, found.score)]
            numbers = ["" if np.isnan(cell) else f"{cell:.4f}" for cell in (*cells, found.distance[place])]
            yield patient, of_class + 1, *numbers, network, note
