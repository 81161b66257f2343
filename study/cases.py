"""What a network says of a set of images, one patient after another: no more than one patient is held at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from dataloader import AnySet
from datasets.grey_matching import SourceLevels
from datasets.stacks import are_places, stack
from datasets.streams import Stream
from datasets.volumes import VolumeSet, WholeStream
from methods.base import Method
from nets.decoding import DECODERS
from nets.probabilities import log_probabilities
from processes.errors import UserError


@dataclass(frozen=True)
class Shown:
    """A network of a run, and what the images that it sees are matched to."""

    method: Method
    levels: SourceLevels | None

    def is_same(self, other: "Shown") -> bool:
        """Whether both say the same of every image: the same weights, and the same look at it."""
        ours, theirs = (each.method.net.state_dict() for each in (self, other))
        looks = [(each.method.net.mixes, each.levels.share if each.levels else 0.0) for each in (self, other)]
        return looks[0] == looks[1] and all(torch.equal(ours[name], theirs[name]) for name in ours)


@dataclass(frozen=True)
class Case:
    """D planes of one patient's volume, or one picture: what is said of it, and what is true.

    rows     of these planes in the set, or the one row of a volume
    log_p    D times (K, W, H) log-probabilities
    mask, truth, entropy  (D, W, H) uint8: classes, classes or `ignore`, 255 where all classes are equally likely
    numbers  of the planes in the volume, ascending; None where they do not say where the planes lie
    spacing  along D, W and H
    """

    patient: str
    rows: Sequence[int]
    log_p: Sequence[np.ndarray]
    mask: np.ndarray
    truth: np.ndarray
    entropy: np.ndarray
    numbers: Sequence[int] | None
    spacing: tuple[float, float, float]

    def stacked(self, planes: np.ndarray) -> np.ndarray:
        """(D, W, H) -> the same where it lies, with zeros where a plane lacks; one after another if nobody knows."""
        return planes if self.numbers is None else stack(list(planes), self.numbers)

    def unstacked(self, volume: np.ndarray) -> np.ndarray:
        """The planes of the case out of a volume as `stacked` makes it."""
        if self.numbers is None or len(volume) == len(self.mask):
            return volume
        return volume[np.array(self.numbers) - self.numbers[0]]


@dataclass(frozen=True)
class _Said:
    """What is said of one row of the set: (K, D, W, H) log-probabilities, and maps (D, W, H)."""

    row: int
    log_p: np.ndarray
    mask: np.ndarray
    truth: np.ndarray
    entropy: np.ndarray


def cases_of(shown: Shown, stream: Stream | WholeStream, pictures: bool) -> Iterator[Case]:
    """Every case of a stream that goes through its set as it lies.

    pictures: each row is a case of its own, as of pictures that are no planes of a volume

    Raises UserError for probabilities that are no numbers.
    """
    slices = stream.slices

    def whose(said: _Said) -> str | int:
        return said.row if pictures else slices.patients[said.row]

    for _, rows in groupby(_said(shown, stream), whose):
        yield _case(slices, list(rows), pictures)


def _said(shown: Shown, stream: Stream | WholeStream) -> Iterator[_Said]:
    method, volumes = shown.method, isinstance(stream.slices, VolumeSet)
    method.net.eval()
    for batch, truth in stream.epoch(0):
        with torch.inference_mode():
            log_p = log_probabilities(method.predict(batch, truth.shape[1:]))
            mask = DECODERS[method.settings.decode](log_p).to(torch.uint8)
            bits = -(log_p.exp() * log_p).sum(1) / np.log(log_p.shape[1])
            entropy = (bits * 255).round().clamp(0, 255).to(torch.uint8)
            maps = [each.cpu().numpy() for each in (log_p, mask, truth.to(torch.uint8), entropy)]
        for row, scores, *others in zip(batch.rows.tolist(), *maps, strict=True):
            if not np.isfinite(scores).all():
                raise UserError(
                    f"What the network says of {stream.slices.names[row]} is no probability (NaN, or infinite); give "
                    "--precision fp32, or look for what its weights or the image hold."
                )
            if volumes:
                yield _Said(row, scores, *others)
            else:
                yield _Said(row, scores[:, None], *(each[None] for each in others))


def _case(slices: AnySet, said: Sequence[_Said], pictures: bool) -> Case:
    """The case that these rows make."""
    patient, rows = slices.patients[said[0].row], [each.row for each in said]
    mask, truth, entropy = (
        np.concatenate([getattr(each, name) for each in said]) for name in ("mask", "truth", "entropy")
    )
    if pictures or isinstance(slices, VolumeSet):
        numbers = range(len(mask))
    else:
        numbers = [slices.numbers[row] for row in rows]
        numbers = numbers if are_places(numbers) and patient not in slices.contradicted else None
    spacing = (1.0, 1.0, 1.0) if slices.spacing is None else slices.spacing[patient]
    log_p = [plane for each in said for plane in each.log_p.swapaxes(0, 1)]
    return Case(patient, rows, log_p, mask, truth, entropy, numbers, spacing)
