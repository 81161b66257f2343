"""The classes' shares in a target, estimated from what a source network predicts on its images.

No label of the target is opened. Of the source there are the network, and the class shares, the confusion and the
temperatures that it carries (nets/bundle.py). The estimators are in label_shift.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.grey_matching import levels_to_match, match_set
from datasets.slices import open_slices
from datasets.streams import Stream
from datasets.transforms import parse_image_folder
from datasets.volumes import WholeStream, open_volumes
from nets.bundle import Bundle, read_bundle
from nets.checkpoint_files import load_checkpoint, require
from nets.confidence import scale_by_class, usable
from nets.filling import fitting_weights
from nets.precision import device_of, set_up_machine
from nets.probabilities import log_probabilities, most_probable
from nets.sliding_window import sliding_window
from networks import build_network, ghost_network
from preprocess.priors.cells import Cells, CellTable
from preprocess.priors.label_shift import ClassShares, confusion_of_patients, likelihood_of_patients
from processes.errors import UserError
from utils import fits

BATCH = 8  # slices at a time
WORDS = {
    "em": "shares under which the network's predictions are most likely (EM, Saerens et al. 2002)",
    "mlls": "the same at the temperatures of the source's validation images (MLLS, Alexandari et al. 2020)",
    "bbse": "shares that explain the network's masks by its confusion on the source (BBSE, Lipton et al. 2018)",
}


@dataclass(frozen=True)
class FromNetwork:
    """Shares by the name of the estimator, and why an estimator is left out."""

    shares: dict[str, ClassShares]
    left_out: dict[str, str]
    patients: int


@dataclass(frozen=True)
class SourceNetwork:
    """A network as its checkpoint has it, how it reads an image, and what leaves its source.

    image: folder and transform; crop: (D, W, H) of the windows of a network of volumes, else None
    """

    weights: Path
    state: Mapping[str, Any]
    image: tuple[str, str]
    crop: tuple[int, int, int] | None
    overlap: float
    bundle: Bundle

    @property
    def n_class(self) -> int:
        return self.state["n_class"]

    def net(self, device: str) -> nn.Module:
        """The network in evaluation mode, with its weights."""
        built = self.state["network"], self.state["in_channels"], self.n_class
        theirs = fitting_weights(ghost_network(*built), self.weights, *built)
        net = build_network(*built)
        net.load_state_dict(theirs)
        return net.eval().requires_grad_(False).to(device)


def read_source(weights: Path) -> SourceNetwork:
    """Raises UserError for a checkpoint that was not written by main.py, or tells nothing of its source."""
    state = load_checkpoint(weights)
    require(weights, state, ("network", "in_channels", "n_class", "preprocessing", "identity"))
    bundle = read_bundle(state)
    if bundle is None or bundle.image_shares is None or not np.isfinite(bundle.image_shares).all():
        raise UserError(
            f"{weights} does not tell how often its source shows each class, which every estimate begins with: it is "
            "of an older version, or of no training on labels. Train the source network anew (make … cesource), or "
            "estimate without it (--source_mean, --constant_mm2)."
        )
    told = state["preprocessing"]
    image, crop, overlap = told.get("image"), told.get("crop"), told.get("overlap", 0.5)
    known = fits(image, list[str]) and len(image) == 2 and fits(overlap, float)
    if not known or not (crop is None or (fits(crop, list[int]) and len(crop) == 3 and min(crop) > 0)):
        raise UserError(f"{weights} does not tell how the network reads an image: it was not written by main.py.")
    return SourceNetwork(weights, state, tuple(image), crop and tuple(crop), overlap, bundle)


def estimate_from_network(
    source: SourceNetwork, data: Path, folder: str, regex: str | None = None, device: str | None = None
) -> FromNetwork:
    """Estimates the classes' shares in the training images of a set.

    folder: of the images; regex: the patient in a slice's name (default: as the network's run read it)
    Raises UserError for images that cannot be read, or are not such as the network takes.
    """
    device = device_of(device)
    set_up_machine("fp32", False)
    stream = _images(source, data, folder, regex or str(source.state["identity"].get("grp_regex", ".*")), device)
    slices = stream.slices
    if slices.shape[0] != source.state["in_channels"]:
        raise UserError(
            f"{source.weights} takes images of {source.state['in_channels']} channels, and those of {data}, {folder}, "
            f"have {slices.shape[0]}: name the set that the network is to be adapted to."
        )
    number = {patient: place for place, patient in enumerate(dict.fromkeys(slices.patients))}
    plain, scaled, masks = _predict(source, stream, [number[patient] for patient in slices.patients], device)
    bundle, left_out = source.bundle, {}
    shares = {"em": _likely(plain, bundle.image_shares)}
    if scaled is None:
        left_out["mlls"] = "the source network carries no temperatures"
    else:
        shares["mlls"] = _likely(scaled, bundle.image_shares)
    if bundle.confusion is None or not np.isfinite(bundle.confusion).all():
        left_out["bbse"] = "the source network carries no confusion of its classes"
    else:
        shares["bbse"] = confusion_of_patients(masks, bundle.confusion)
    return FromNetwork(shares, left_out, len(number))


def _likely(table: CellTable, source: np.ndarray) -> ClassShares:
    return likelihood_of_patients(table.probabilities, table.patients, source, pixels=table.pixels)


def _images(source: SourceNetwork, data: Path, folder: str, regex: str, device: str) -> Stream:
    """The training images, each once: no folder of ground truth is named, let alone opened."""
    image = [parse_image_folder(str([(folder, source.image[1], False)]))]
    levels = levels_to_match(source.state, None)
    if source.crop:
        found = open_volumes(data, "train", image, source.n_class, regex, source.crop)
        return WholeStream(match_set(found, levels), torch.device(device))
    found = open_slices(data, "train", image, source.n_class, regex)
    return Stream(match_set(found, levels), BATCH, torch.device(device), shuffle=False)


@torch.inference_mode()
def _predict(
    source: SourceNetwork, stream: Stream, patients: list[int], device: str
) -> tuple[CellTable, CellTable | None, np.ndarray]:
    """What the network says of all pixels, as it is and at its temperatures, and (P, K) pixels of its masks.

    patients: the number of each image's patient
    """
    temperatures = source.bundle.temperatures
    if temperatures is not None and not np.isfinite(temperatures).any():
        temperatures = None
    plain, scaled = Cells(), Cells()
    masks = np.zeros((max(patients) + 1, source.n_class))
    for row, log_p in _each(source, stream, device):
        labels = most_probable(log_p)
        plain.add(patients[row], _pixels(log_p))
        if temperatures is not None:
            scaled.add(patients[row], _pixels(scale_by_class(log_p, labels, usable(temperatures))))
        masks[patients[row]] += torch.bincount(labels.flatten(), minlength=source.n_class).cpu().numpy()
    return plain.table(), None if temperatures is None else scaled.table(), masks


def _each(source: SourceNetwork, stream: Stream, device: str) -> Iterator[tuple[int, Tensor]]:
    """Each image's row in its set, and its (1, K, …) log-probabilities."""
    net = source.net(device)
    for batch, _ in stream.epoch(0):
        windows = source.crop and partial(sliding_window, net, window=source.crop, overlap=source.overlap)
        log_p = log_probabilities((windows or net)(image=batch.image))
        yield from zip(batch.rows.tolist(), log_p.split(1), strict=True)


def _pixels(log_p: Tensor) -> np.ndarray:
    """(1, K, …) log-probabilities -> (N, K) probabilities."""
    return log_p[0].flatten(1).T.exp().cpu().numpy()
