"""Pseudo labels refined by their context, CPR (Huai et al., MICCAI 2023): denoised labels, and what cells alike say.

Before the first step the labels of `--method denoised` teach an affinity (methods/affinity.py), which reads the map of
the source network's classifier in cells. Then the mean probability of the passes walks over the cells to those alike. A
pixel is learnt from if the class that is most probable then is also that of the nearest prototype, and above the
quantile of its class.

What differs: a softmax of K classes has one affinity; the published structures have one each. Published cells are those
of the encoder's last map, 16 pixels wide. After the published walk an image is divided by its largest probability; here
the classes add up to 1. The thresholds, below 0.4 and above 0.85, became the quantile, as in `denoised`. When to stop
the published code cannot know; here copies are kept, and one is chosen without labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataloader import AnyStream
from datasets.streams import Batch
from methods.affinity import Affinity, label_of_cells, to_cells, to_pixels
from methods.base import METHODS
from methods.denoised import SEED, Denoised
from methods.denoising import Guess, counted_bins, quantile_bins
from methods.feature_dropout import width_of
from methods.objective import LossSum
from methods.settings import flag
from processes.errors import UserError
from processes.team import ALONE, Team

EPOCHS, RATE, BETAS = 16, 3e-2, (0.9, 0.99)  # of the affinity


@METHODS.register()
class CPR(Denoised):
    """Labels of the source network after a walk to pixels alike, learnt where they are certain."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(Denoised.Settings):
        radius: int = flag(4, "cells: how far apart two are whose affinity is learnt, at most, itself left out")
        walk: int = flag(4, "steps that probabilities walk from cell to cell")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        for name, most in (("radius", 8), ("walk", 64)):
            if not 2 <= (value := getattr(settings, name)) <= most:
                raise UserError(f"--{name} is {value}; it is 2 to {most}.")
        super().__init__(net, loss, settings, team)
        self.affinity: Affinity | None = None  # as long as none is learnt

    # -- before the first step ----------------------------------------------------------------------------------

    def meet(self, streams: Mapping[str, AnyStream]) -> None:
        self.affinity = None
        super().meet(streams)
        self.affinity = self._learnt([self._cells(batch) for batch, _ in streams["target"].epoch(0)])
        counts = 0
        for batch, _ in streams["target"].epoch(0):
            found = counted_bins(self.guess(batch.image)[0], self.settings.n_class)
            counts = counts + self.team.gather(found, len(batch.rows)).sum(0)
        self.bins = quantile_bins(counts, self.settings.quantile)

    @torch.no_grad()
    def _cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the whole batch: the features of its cells (B, F, …), and their labels (B, …), K without any."""
        features = to_cells(self.source.on_image(self._features(batch.image).float(), batch.image))
        label = label_of_cells(self.pseudo_label(batch), self.settings.n_class)
        return self.team.gather(features, len(batch.rows)), label

    def _learnt(self, shown: list[tuple[Tensor, Tensor]]) -> Affinity:
        """An affinity that learnt from these cells; the same in every process, and at each start of a run."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            affinity = Affinity(width_of(self.net.classifier), shown[0][0].ndim - 2, self.settings.radius)
        affinity.to(self.settings.device)
        optimiser = torch.optim.Adam(affinity.parameters(), RATE, BETAS)
        for cells, label in shown * EPOCHS:
            optimiser.zero_grad(set_to_none=True)
            affinity.loss(cells, label, self.settings.n_class).backward()
            self.team.average(affinity.parameters())
            optimiser.step()
        return affinity.requires_grad_(False).eval()

    # -- a step -----------------------------------------------------------------------------------------------

    def guess(self, image: Tensor) -> tuple[Guess, Tensor]:
        """As of `Denoised`; once an affinity is learnt, after the walk, which leaves no spread."""
        if self.affinity is None:
            return super().guess(image)
        passes, features = self.passes(image)
        walked = self.affinity.walk(to_cells(features), to_cells(passes.mean), self.settings.walk)
        confidence, label = to_pixels(walked, image.shape[2:]).max(1)
        return Guess(label, confidence, torch.zeros_like(confidence)), features
