"""The source bundle (nets/bundle.py) of a training on labels: measured when its epochs are done, image by image.

What is in it follows from the network and the images alone, so a run that was killed meanwhile ends with the same.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloader import AnySet, AnyStream
from datasets.class_measures import MEASURES, class_areas, measure_shapes, summarise_sizes
from datasets.grey_quantiles import grey_quantiles, sample_levels, spread
from datasets.set_tables import read_card
from datasets.streams import Stream
from datasets.volumes import VolumeSet, WholeStream
from engine.calibration import calibrate
from engine.evaluation import Scoring
from engine.run_folder import RunFolder
from methods.base import Method, infer
from nets.base import batch_norms
from nets.bundle import QUANTITIES, Bundle, make_bundle, summarise
from nets.checkpoint_files import load_checkpoint
from nets.confidence import PLAIN, ConfidenceTable, at_temperatures, fit_temperatures, real_dice, soft_dice
from nets.probabilities import log_probabilities, one_hot
from nets.sliding_window import starts
from processes.interrupt import STOP
from processes.team import ALONE
from utils import counted

PICTURES = 1000  # whose labels are measured, of a set of pictures
OF_VOLUMES = (*MEASURES, "spread_mm", "volume_voxels", "volume_mm3", "slices_with_class", "patients_with_class")
SEEN = {2: 512, 3: 16}  # slices and volumes whose features are averaged, spread over the set

Values = dict[str, np.ndarray]
Reasons = dict[str, str]


def writes_bundle(method: Method, streams: Mapping[str, AnyStream], starts_whole: bool) -> bool:
    """Whether a run measures its own labels: it learns from those of its first stream, and from no network.

    A run that starts from a whole network hands that network's bundle on: its own labels may be a target's.

    starts_whole: whether all of the network comes from --model_weights
    """
    learns = any(part.needs_target for part in method.loss.losses)
    return method.segments and learns and "target" in streams and "target" in method.labelled and not starts_whole


def handed_on(start: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """Entries of the checkpoint that a run starts from which it hands on, as far as they are there.

    "labelled": the patients whose labels chose its network; and "bundle", if the run starts from the `whole` network
    """
    names = ("labelled", *(["bundle"] if whole else []))
    return {name: entry for name, entry in start.items() if name in names}


class SourceBundle:
    """Measures what leaves the source, and puts it into the checkpoints of its run."""

    def __init__(self, method: Method, train: AnySet, val: AnyStream, scoring: Scoring) -> None:
        """train, val: what the run learns from, and what it is validated on."""
        self.method, self.train, self.val, self.scoring = method, train, val, scoring
        self.pictures, self.n_class = scoring.scores == "iou", scoring.n_class
        self.made: dict[int, dict[str, Any]] = {}  # by epoch

    def enclose(self, folder: RunFolder, name: str) -> None:
        """Adds the bundle to a checkpoint of the run whose network the method holds now, unless it is there already."""
        state = load_checkpoint(folder.path / name)
        known = state.get("bundle") or self.made.get(state["epoch"])
        self.made[state["epoch"]] = known or self.measure().state()
        if "bundle" not in state:
            folder.save(name, state | {"bundle": self.made[state["epoch"]]})

    @torch.inference_mode()
    def measure(self) -> Bundle:
        """Measures source and network. Raises Interrupted if the process was asked to stop."""
        self.method.net.eval()
        values, reasons = self._of_data
        for more, why in (self._of_features(), self._of_validation()):
            values, reasons = values | more, reasons | why
        norms = [norm for norm in batch_norms(self.method.net) if norm.track_running_stats]
        words = {"training": self._words(self.train), "validation": self._words(self.val.slices)}
        return make_bundle(values, words, reasons, sum(2 * norm.num_features for norm in norms))

    def _words(self, slices: AnySet) -> str:
        """Over which images."""
        name = read_card(slices.root).get("name") or slices.root.name
        kind = "volume" if isinstance(slices, VolumeSet) else "picture" if self.pictures else "slice"
        patients = f" of {counted(len(set(slices.patients)), 'patient')}"
        labels = f", labels {slices.folders[1].folder}" if slices.has_truth else ""
        return f"{counted(len(slices), kind)}{patients * (kind == 'slice')}, {name}/{slices.split}{labels}"[:500]

    # -- the images and their labels --------------------------------------------------------------------------

    @cached_property
    def _of_data(self) -> tuple[Values, Reasons]:
        """The quantities that depend on no network."""
        levels = []
        for rows in _rows_by(self.train.patients, self.train.numbers).values():
            STOP.check()
            levels.append(grey_quantiles(sample_levels(self.train, rows)))
        whole, body = _mean(np.array(levels))
        values, reasons = self._sizes()
        return {"grey_quantiles": whole, "grey_quantiles_body": body} | values, reasons

    def _sizes(self) -> tuple[Values, Reasons]:
        """Sizes of the classes, and their shapes where slices make up volumes."""
        cases, slices = self._cases(), self.train
        areas, shapes = self._measured(cases)
        planes = np.array([slices.sizes[rows[0]][-2:] for rows in cases])
        sides = (
            None if slices.spacing is None else np.array([slices.spacing[slices.patients[rows[0]]] for rows in cases])
        )
        values = summarise_sizes(areas, planes.prod(1), sides, isinstance(slices, VolumeSet))
        if sides is not None and shapes:
            views = sides * np.column_stack([[len(part) for part in areas], planes])
            values["spread_mm"] = summarise(shapes["spread"] * views[:, None])
        values |= {name: summarise(found) for name, found in shapes.items()}
        if self.pictures:
            values = {name: found for name, found in values.items() if name not in OF_VOLUMES}
        why = "the set is of pictures, which make up no volume" if self.pictures else "the set tells no spacing"
        return values, {name: why for name in QUANTITIES if name not in values}

    def _cases(self) -> list[list[int]]:
        """The rows of each patient; of pictures, each is a case of its own."""
        if self.pictures:
            return [[row] for row in spread(range(len(self.train)), PICTURES)]
        return list(_rows_by(self.train.patients, self.train.numbers).values())

    def _measured(self, cases: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], Values]:
        """(D, K) areas in each case, and by name the (P, F, …) shapes in all of them; no shapes of pictures."""
        areas, shapes = [], []
        for rows in cases:
            STOP.check()
            labels = self.train.labels(rows)
            labels = labels[0] if isinstance(self.train, VolumeSet) else labels
            areas.append(class_areas(labels, self.n_class))
            shapes += [] if self.pictures else [measure_shapes(labels, self.n_class)]
        return areas, {name: np.array([each[name] for each in shapes]) for name in MEASURES if shapes}

    # -- the network ------------------------------------------------------------------------------------------

    def _of_features(self) -> tuple[Values, Reasons]:
        """Mean feature of each class, where the classifier reads one feature vector a pixel."""
        net, classifier = self.method.net, getattr(self.method.net, "classifier", None)
        if not isinstance(classifier, nn.Conv2d | nn.Conv3d) or set(classifier.kernel_size) != {1}:
            return {}, {"prototypes": "the network's classifier is no convolution of one pixel"}
        train, device = self.train.keep(spread(range(len(self.train)), SEEN[net.axes])), self.val.device
        if isinstance(train, VolumeSet):
            stream = WholeStream(train, device)
        else:
            stream = Stream(train, self.method.settings.batch_size, device, shuffle=False)
        sums = torch.zeros(self.n_class, classifier.in_channels, dtype=torch.float64, device=device)
        counts = torch.zeros(self.n_class, dtype=torch.float64, device=device)
        for batch, truth in stream.epoch(0):
            for image, label in self._windows(batch.image, truth):
                STOP.check()
                padded = net.pad(image)
                with self.method.settings.autocast():
                    features = net.features(self.method.settings.laid_out(padded))[-1]
                if features.shape[2:] != padded.shape[2:]:
                    return {}, {"prototypes": "the classifier reads a map that is coarser than the image"}
                for found, true in zip(features[(..., *map(slice, label.shape[1:]))], label, strict=True):
                    members = one_hot(true[None], self.n_class, torch.float64)[0].flatten(1)
                    sums += members @ found.flatten(1).double().T
                    counts += members.sum(1)
        return {"prototypes": (sums / counts[:, None]).cpu().numpy()}, {}  # 0 / 0 is NaN: a class that is not there

    def _windows(self, image: Tensor, label: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, …) and class numbers (B, …); of volumes in windows, each voxel with its class in one alone."""
        crop = self.method.settings.crop
        if not crop:
            yield image, label
            return
        left = label.clone()
        missing = [max(wanted - there, 0) for wanted, there in zip(crop, label.shape[1:], strict=True)]
        if any(missing):
            image = F.pad(image, [n for axis in reversed(missing) for n in (0, axis)], mode="replicate")
        for corner in itertools.product(*map(starts, image.shape[2:], crop, itertools.repeat(0.0))):
            place = (..., *(slice(at, at + length) for at, length in zip(corner, crop, strict=True)))
            yield image[place], left[place].clone()
            left[place] = self.n_class

    def _of_validation(self) -> tuple[Values, Reasons]:
        """Scores, confidence and temperatures on the images that the run is validated on."""
        names = [name for name, about in QUANTITIES.items() if about.of == "validation"]
        if not self.val.slices.has_truth:
            return {}, dict.fromkeys(names, "the validation images have no labels")
        settings, slices = self.method.settings, self.val.slices
        cases = slices.names if self.pictures else slices.patients
        places = {case: place for place, case in enumerate(dict.fromkeys(cases))}
        table = ConfidenceTable(len(places), self.n_class, self.val.device)
        stream = copy.copy(self.val)
        stream.team = ALONE
        for batch, truth in stream.epoch(0):
            STOP.check()
            with settings.autocast():
                logits = infer(self.method.net, batch.image, settings, truth.shape[1:])
            table.add([places[cases[row]] for row in batch.rows.tolist()], log_probabilities(logits), truth)
        counts, mass = table.read()
        temperatures, residuals = fit_temperatures(counts, mass)
        summaries = {
            "dice": real_dice(counts),
            "sdc": soft_dice(counts, mass[..., PLAIN]),
            "sdc_scaled": soft_dice(counts, at_temperatures(mass, temperatures)),
        }
        values = {name: summarise(each[:, 1:]) for name, each in summaries.items()}
        values["confusion"] = counts.sum(0) / counts.sum()
        rows, found = _rows_by(cases, slices.numbers), (summaries["sdc_scaled"], summaries["dice"])
        levels = self._of_data[0]["grey_quantiles"]
        values |= calibrate(self.method, self.val, [rows[case] for case in places], temperatures, found, levels)
        return values | {"temperatures": temperatures, "temperature_residuals": residuals}, {}


# ------------------------------------------------------------------------------------------------- arithmetic


def _rows_by(patients: Sequence[str], numbers: Sequence[int]) -> dict[str, list[int]]:
    """The rows of each patient, in the order of the slices' numbers."""
    found: dict[str, list[int]] = {}
    for row in sorted(range(len(patients)), key=lambda row: (patients[row], numbers[row])):
        found.setdefault(patients[row], []).append(row)
    return found


def _mean(values: np.ndarray) -> np.ndarray:
    """(N, …) -> (…) mean of what is not NaN; NaN where nothing is left."""
    known = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), known, out=np.full(values.shape[1:], np.nan), where=known > 0)
