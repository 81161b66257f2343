"""Denoised pseudo labels (DPL: Chen et al., MICCAI 2021): a source network learns its own labels where they hold.

The labels are those of the source network, and stay as they are. Its logits are computed ten times, each time without
other channels of the map f that its classifier reads; p is their mean probability, ŷ = argmax p, u the standard
deviation of the probability of ŷ over the passes, at logits halved. A pixel is learnt from if
    u < 0.05,   ŷ is the class whose prototype is nearest to f,   and p_ŷ is above a quantile of the class
The prototype of a class is its mean feature, weighted by p, over its pixels with u < 0.05; prototypes and quantiles are
of the whole set, and are measured before the first step. L are the losses of the OPT line on these pixels. The network
that learns sees other grey levels, noise and blank boxes, as in the published code.

Before all that the batch norms of the labelling network take the statistics of the set. The published network makes
its labels in training mode, with those of each batch. So here the label of an image depends on that image alone, and
is computed again when the image is shown: it need not be stored, and moves with crops and augmentations.

What differs: K classes in a softmax. A quantile takes the place of the published 0.75, below which a pixel of the
fundus is background. The published prototypes are those of a batch. Published dropout is in the network's decoder; here
it is on the classifier's map, so that any network has it and ten passes cost little more than one. `--method cpr`
refines these labels by a learnt affinity.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataloader import AnyStream
from datasets.augmentation import STRONG_VIEW
from datasets.streams import Batch
from methods.averaging import frozen
from methods.base import METHODS, Method
from methods.denoising import (
    Guess,
    Passes,
    believed,
    counted_bins,
    prototypes,
    quantile_bins,
    weighted_features,
)
from methods.feature_dropout import reweighted, width_of
from methods.objective import LossSum
from methods.refresh import refresh
from methods.settings import flag
from methods.shares import check_losses
from nets.probabilities import one_hot
from processes.errors import UserError
from processes.team import ALONE, Team

SEED = 0  # of the channels that are dropped, the same for every image and run


@METHODS.register()
class Denoised(Method):
    """Labels of the source network, made once, and learnt where they are certain and look like their class."""

    labelled = ()
    needs_weights = True
    supervision = "none"

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        passes: int = flag(10, "with other channels dropped each, of which a label is the mean")
        dropout: float = flag(0.1, "share of the channels that a pass lacks")
        most_spread: float = flag(0.05, "u from which on a pixel is left out")
        quantile: float = flag(0.4, "share of the pixels of each class that is left out, the least confident first")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        check_settings(settings)
        check_losses(loss, settings.method)
        self.source, n_class = frozen(copy.deepcopy(net)), settings.n_class
        super().__init__(net, loss, settings, team)
        self.generator = torch.Generator(settings.device)
        drawn = torch.rand(settings.passes, width_of(net.classifier), generator=torch.Generator().manual_seed(SEED))
        self.kept = ((drawn >= settings.dropout) / (1 - settings.dropout)).to(settings.device)
        self.prototypes = torch.full((n_class, self.kept.shape[1]), torch.nan, device=settings.device)
        self.bins = torch.zeros(n_class, dtype=torch.int64, device=settings.device)
        self.unsure: list[int] = []  # classes without a prototype

    @property
    def columns(self) -> list[str]:
        return [*self.loss.columns, "pseudo_share", "believed"]

    @property
    def notes(self) -> list[str]:
        lost = [
            f"No pixel is labelled {k} by the source network, or none of these stands dropout: the run learns nothing "
            f"of class {k}. A higher --most_spread than {self.settings.most_spread:g} believes more."
            for k in self.unsure
        ]
        return super().notes + lost

    # -- before the first step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def meet(self, streams: Mapping[str, AnyStream]) -> None:
        refresh(self.source, self._features, (batch.image for batch, _ in streams["target"].epoch(0)))
        sums, counts = 0, 0
        for batch, _ in streams["target"].epoch(0):
            guess, features = self.guess(batch.image)
            found = weighted_features(guess, features, self.settings.n_class, self.settings.most_spread)
            sums = sums + self.team.gather(found, len(batch.rows)).sum(0)
            counts = counts + self.team.gather(counted_bins(guess, self.settings.n_class), len(batch.rows)).sum(0)
        self.prototypes, self.bins = prototypes(sums), quantile_bins(counts, self.settings.quantile)
        self.unsure = [k for k, weight in enumerate(sums[:, -1].tolist()) if not weight]

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch, settings, count = batches["target"], self.settings, len(batches["target"].rows)
        shares = one_hot(self.pseudo_label(batch), settings.n_class)
        view = STRONG_VIEW.draw(count, batch.image.shape[1:], self.generator.manual_seed(self.step_seed))
        with settings.autocast():
            logits = self.model(settings.laid_out(view.image(batch.image, self.team.share(count))))
        logits = self.team.gather(logits, count)
        terms = self.loss(logits, [shares] * len(self.loss.losses), batch.bounds)
        self.update(terms["tot"])
        terms |= {"pseudo_share": shares[:, 1:].sum(1).mean(), "believed": shares.sum(1).mean()}
        return {name: terms[name].detach() for name in self.columns}, logits.detach()

    @torch.no_grad()
    def pseudo_label(self, batch: Batch) -> Tensor:
        """(B, …) labels of the whole batch, K where a pixel is left out."""
        guess, features = self.guess(batch.image)
        keep = believed(guess, features, self.prototypes, self.bins, self.settings.most_spread)
        return self.team.gather(torch.where(keep, guess.label, self.settings.n_class), len(batch.rows))

    def guess(self, image: Tensor) -> tuple[Guess, Tensor]:
        """Of this process's images (b, C, …): what the source network says, and features (b, F, …) of each pixel."""
        passes, features = self.passes(image)
        return passes.guess(), features

    def passes(self, image: Tensor) -> tuple[Passes, Tensor]:
        """The passes over these images (b, C, …), and features (b, F, …) of each pixel."""
        maps, passes = self._features(image), Passes()
        for kept in self.kept:
            with self.settings.autocast():
                logits = self.source.classifier(reweighted(maps, kept))
            passes.add(self.source.on_image(logits.float(), image))
        return passes, self.source.on_image(maps.float(), image)

    def _features(self, image: Tensor) -> Tensor:
        """(b, F, …): the map that the classifier of the source network reads."""
        with self.settings.autocast():
            return self.source.with_features(self.settings.laid_out(image))[1]


def check_settings(settings: Denoised.Settings) -> None:
    """Raises UserError that names a number out of range."""
    for name in ("dropout", "quantile"):
        if not 0 <= (value := getattr(settings, name)) < 1:
            raise UserError(f"--{name} is {value:g}; it lies between 0 and 1, 1 left out.")
    if not 2 <= settings.passes <= 1000:
        raise UserError(f"--passes is {settings.passes}; a spread needs 2 at least, and 1000 are the most.")
    if settings.most_spread <= 0:
        raise UserError(f"--most_spread is {settings.most_spread:g}; it must be above 0.")
