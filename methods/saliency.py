"""A source network that transfers, with the saliency of SLAug (Su et al., AAAI 2023): two views of each image a step.

The first view x follows one random curve of grey levels, x' a curve for each class. A third is x where a change of x
changes the loss most, s near 1, and x' elsewhere. The network learns from the first and the third:
    L = L(x) + L(s x + (1 − s) x')
s is the gradient of L(x) at x, the root of its mean square over the channels, averaged in a few cells a side, with
a cubic B-spline between them, from 0 to 1 in each image. It costs one more forward and backward pass a step.

`--augment` changes the images before, as anywhere; curves of its own would come on top of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloader import AnyStream
from datasets.augmentation import Augmentation
from datasets.random_convolutions import smooth_field
from datasets.streams import Batch
from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import flag
from methods.supervised import Supervised
from nets.base import POOLS
from nets.probabilities import EPS
from processes.errors import UserError
from processes.team import ALONE, Team

WHOLE = Augmentation(rotate=0, contrast=0, gamma=0, curves=1)
BY_CLASS = Augmentation(rotate=0, contrast=0, gamma=0, label_curves=1)


@METHODS.register()
class Saliency(Supervised):
    """Supervised learning on two views of each image, the second blended by how steep the loss on the first is."""

    one_pass = False

    @dataclass(frozen=True, kw_only=True)
    class Settings(Supervised.Settings):
        saliency_grid: int = flag(3, "cells along each side of an image in which the steepness of the loss is averaged")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        if not 1 <= settings.saliency_grid <= 64:
            raise UserError(f"--saliency_grid is {settings.saliency_grid}; it is 1 to 64.")
        super().__init__(net, loss, settings, team)
        self.generator = torch.Generator(settings.device)

    def meet(self, streams: Mapping[str, AnyStream]) -> None:
        _, _, *of_losses = streams["target"].slices.folders
        if all(spec.is_map for spec in of_losses):
            raise UserError(
                "--method saliency follows the classes of an image, and no loss here reads label maps: add one that "
                "does, such as CrossEntropy, and its folder."
            )

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch = batches["target"]
        whole, by_class = self.views(batch)
        logits = self.predict(replace(batch, image=whole.requires_grad_()))
        terms = self.loss(logits, batch.targets, batch.bounds)
        self.differentiate(terms["tot"])
        blend = torch.lerp(by_class, whole.detach(), saliency(whole.grad, self.settings.saliency_grid))
        again = self.loss(self.predict(replace(batch, image=blend)), batch.targets, batch.bounds)
        self.update(again["tot"], fresh=False)
        return {name: (terms[name] + again[name]).detach() for name in terms}, logits.detach()

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This process's images (b, C, …) with a curve each, and with a curve a class."""
        count, shape, n_class = len(batch.rows), batch.image.shape[1:], self.settings.n_class
        share, generator = self.team.share(count), self.generator.manual_seed(self.step_seed)
        label = next(each for each in batch.targets if each is not None and not each.is_floating_point())
        whole = WHOLE.draw(count, shape, generator).image(batch.image, share)
        by_class = BY_CLASS.draw(count, shape, generator, n_class).image(batch.image, share, label[share])
        return whole.detach(), by_class


def saliency(gradient: Tensor, cells: int) -> Tensor:
    """(B, 1, …) in 0..1 of the gradient of a loss (B, C, …) at its images; 0 where it is 0 or not finite."""
    axes = tuple(range(1, gradient.ndim))
    gradient = torch.nan_to_num(gradient.float(), 0.0, 0.0, 0.0)
    largest = gradient.abs().amax(axes, keepdim=True)
    steep = (gradient / largest.clamp_min(torch.finfo(torch.float32).tiny)).square().mean(1, keepdim=True).sqrt()
    pooled = POOLS[gradient.ndim - 2](steep, cells)
    around = F.pad(pooled, [1, 1] * (gradient.ndim - 2), mode="replicate")  # the spline ends within its points
    return smooth_field(around / around.amax(axes, keepdim=True).clamp_min(EPS), gradient.shape[2:])
