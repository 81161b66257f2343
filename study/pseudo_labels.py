"""One temperature for a network on images without labels, from labels that it gives itself (PseudoCal)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.calibration.temperature import fit_temperature
from methods.base import infer
from nets.probabilities import log_probabilities, most_probable
from selection.views import mixed
from study.cases import Shown

SHARE = 0.65  # of the image whose prediction is the label, in a mixture of two
PIXELS = 2**18  # that the temperature is fitted to, at most


@dataclass(frozen=True)
class Fitted:
    """A temperature, the number of pixels of mixtures that it was fitted to, and the share that got their label."""

    temperature: float
    pixels: int
    agreement: float


@torch.inference_mode()
def fit_without_labels(shown: Shown, images: Iterator[tuple[Tensor, Tensor]], number: int) -> Fitted | None:
    """The temperature of least log loss on mixtures of two images; None where all pixels are given one class.

    images: `number` images in batches (B, C, …) on the device, in random company, and their rows (B,)

    Each image a is mixed with another one b: x = 0.65 a + 0.35 b. Pixels that the network gives one class in a and
    another in b are kept, so that one of the two is no background, and the class in a is their label: how far the
    network still says so of the mixture stands for how often it is right (Hu et al., ICML 2024, whose images of one
    class are pixels here).
    """
    net, settings = shown.method.net, shown.method.settings
    net.eval()
    most, kept = max(1, PIXELS // number), []

    def said_of(image: Tensor) -> Tensor:
        with settings.autocast():
            return log_probabilities(infer(net, image, settings))

    for image, _ in images:
        first = most_probable(said_of(image))
        mixture, partner = mixed(image, SHARE)
        second = partner(first.unsqueeze(1)).squeeze(1)
        for log_p, label, other in zip(said_of(mixture).flatten(2), first.flatten(1), second.flatten(1), strict=True):
            at = torch.nonzero(label != other)[:, 0]
            at = at[:: -(-len(at) // most) or 1]
            kept.append((log_p[:, at].cpu().numpy(), label[at].cpu().numpy()))
    scores, labels = (np.concatenate(each, -1) for each in zip(*kept, strict=True))
    if not len(labels):
        return None
    return Fitted(fit_temperature(scores, labels), len(labels), float((scores.argmax(0) == labels).mean()))
