"""A network over an image larger than what it is given at a time: windows that overlap, and their mean."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from processes.errors import UserError

LEAST = 2.0**-24 / 10  # of the weights in nnU-Net, whose numbers are of 16 bits and ten times as large


def sliding_window(
    predict: Callable[[Tensor], Tensor], image: Tensor, window: Sequence[int], overlap: float = 0.5, batch: int = 1
) -> Tensor:
    """log of the weighted mean of the windows' softmax probabilities, (B, K, *size) float32 on the image's device.

    A further log_softmax leaves it unchanged. A window that covers the image gives the log_softmax of its logits.

    predict: (b, C, *window) -> logits (b, K, *window)
    image: (B, C, *size) with one, two or three spatial axes. One that is smaller than the window is padded at its far
        end with its border, as the crops of a training are, and the result cut back. Of no image (a process of a team
        without a share) one call tells K.
    overlap: share of a window that its neighbour covers too, at least
    batch: windows at a time
    Raises UserError for an overlap outside 0..1.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap is a share of a window, 0 to below 1; got {overlap:g}.")
    count, channels, *size = image.shape
    if not count:
        n_class = predict(image.new_zeros(1, channels, *window)).shape[1]
        return image.new_empty(0, n_class, *size, dtype=torch.float32)
    missing = [max(wanted - there, 0) for wanted, there in zip(window, size, strict=True)]
    if any(missing):
        image = F.pad(image, [n for axis in reversed(missing) for n in (0, axis)], mode="replicate")
    corners = list(itertools.product(*map(starts, image.shape[2:], window, itertools.repeat(overlap))))
    mean = predict(image).float().log_softmax(1) if len(corners) == 1 else _mean(predict, image, window, corners, batch)
    return mean[(..., *map(slice, size))]


def _mean(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    corners: Sequence[tuple[int, ...]],
    batch: int,
) -> Tensor:
    """(B, K, *size) log probabilities of an image (B, C, *size) that windows at these corners cover."""
    weight = gaussian(window).to(image.device)
    total = weights = None
    for first in range(0, len(corners), batch):
        places = [
            (..., *(slice(at, at + length) for at, length in zip(corner, window, strict=True)))
            for corner in corners[first : first + batch]
        ]
        shares = predict(torch.cat([image[place] for place in places])).float().softmax(1)
        if total is None:
            total = shares.new_zeros(len(image), shares.shape[1], *image.shape[2:])
            weights = torch.zeros_like(total[0, 0])
        for place, share in zip(places, shares.split(len(image)), strict=True):
            total[place] += share * weight
            weights[place] += weight
    smallest = torch.finfo(torch.float32).tiny  # of a share that float32 has as 0: its log stays finite
    return (total / weights).clamp_min(smallest).log()


def sliding_logits(
    predict: Callable[[Tensor], Tensor], image: Tensor, window: Sequence[int], overlap: float, batch: int
) -> Tensor:
    """log_softmax of the weighted mean of the windows' logits, as nnU-Net predicts: (B, K, *size) float32.

    predict, overlap, batch: as of `sliding_window`; image: no smaller than the window

    Windows begin at the nearest whole voxel, and weights have their middle at half a side, rounded down.
    """
    count, _, *size = image.shape
    places = [_nearest_starts(*each, overlap) for each in zip(size, window, strict=True)]
    corners = [(row, *corner) for row in range(count) for corner in itertools.product(*places)]
    weight = gaussian(window, [length // 2 for length in window]).clamp_min(LEAST).to(image.device)
    total = weights = None
    for first in range(0, len(corners), batch):
        parts = [
            (row, ..., *(slice(at, at + length) for at, length in zip(corner, window, strict=True)))
            for row, *corner in corners[first : first + batch]
        ]
        logits = predict(torch.stack([image[part] for part in parts])).float()
        if total is None:
            total = logits.new_zeros(count, logits.shape[1], *size)
            weights = torch.zeros_like(total[:, :1])
        for part, each in zip(parts, logits, strict=True):
            total[part] += each * weight
            weights[part] += weight
    return (total / weights).log_softmax(1)


def _nearest_starts(size: int, window: int, overlap: float) -> list[int]:
    """As `starts`, each at the nearest whole voxel (of two the even one)."""
    steps = math.ceil((size - window) / (window * (1 - overlap)))
    return [round((size - window) / steps * i) for i in range(steps + 1)] if steps else [0]


def starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis that is no shorter: evenly spaced, from its first voxel to its last."""
    step = max(window * (1 - overlap), 1)
    steps = -int((window - size) // step)
    return [i * (size - window) // steps for i in range(steps + 1)] if steps else [0]


def gaussian(window: Sequence[int], middle: Sequence[float] | None = None) -> Tensor:
    """(*window) float32 weights around 1 in the middle, or elsewhere, their deviation an eighth of each side.

    So has nnU-Net. Half a side is four deviations, so that no weight is 0: along three axes they are above exp(-24).
    """
    weight = torch.ones((), dtype=torch.float64)
    for length, centre in zip(window, middle or [(length - 1) / 2 for length in window], strict=True):
        place = torch.arange(length) - centre
        weight = weight[..., None] * torch.exp(-0.5 * (place.double() / (length / 8)) ** 2)
    return weight.float()
