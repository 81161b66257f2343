"""Prototype-anchored alignment: pixels drawn to the source network's own prototypes, and these to pixels.

Stage 1 of ProtoContra (Yu et al., MICCAI 2023). The prototypes are the rows μ_k of the classifier, a convolution of one
pixel, which stands still. With features f_i and the class prior π, over all pixels i of a batch,
    cost_ki = 1 − cos(μ_k, f_i)
    L = ½ · mean_i Σ_k cost_ki s_ki + ½ · Σ_k π_k Σ_i cost_ki t_ki
    s = softmax over k of μ_k·f_i / T + ln π_k,    t = softmax over i of μ_k·f_i / T
π begins as the prior sizes of the batch's images, where a loss is told any, else uniform. It follows what is predicted:
π ← (1 − β) π + β · mean_i s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.streams import Batch
from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import flag
from methods.sfda import SFDA
from nets.base import Network
from nets.probabilities import EPS, prior_ratios
from processes.errors import UserError
from processes.team import ALONE, Team


class WithFeatures(nn.Module):
    """A network that also gives the map which its classifier read."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, W, H) -> logits (B, K, W, H), features (B, *, w, h)"""
        return self.net.with_features(image)


def alignment(features: Tensor, prototypes: Tensor, prior: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two halves of the loss: pixels to prototypes, and prototypes to pixels.

    features: (N, *) of pixels; prototypes: (K, *); prior: (K,) ratios
    """
    close = prototypes @ features.T  # k n
    cost = 1 - F.normalize(prototypes, dim=1) @ F.normalize(features, dim=1).T
    by_class, by_pixel = posterior(close, prior, temperature), (close / temperature).softmax(1)
    return (cost * by_class).sum(0).mean() / 2, (prior * (cost * by_pixel).sum(1)).sum() / 2


def posterior(close: Tensor, prior: Tensor, temperature: float) -> Tensor:
    """(K, N) products of prototypes and features -> (K, N) probabilities of the classes under a prior (K,)."""
    return (close / temperature + (prior + EPS).log().unsqueeze(1)).softmax(0)


@METHODS.register()
class PrototypeAlignment(SFDA):
    """Alignment to the rows of a frozen classifier; the listed losses tell the prior, and what validation measures."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(SFDA.Settings):
        trainable: Literal["features", "bn"] = flag(
            "features", "what adapts: all but the classifier, or scale and shift of the batch norms"
        )
        temperature: float = flag(0.1, "T, by which products of prototypes and features are divided")
        prior_rate: float = flag(0.001, "β, how much of the class prior a step replaces by what is predicted")

    settings: Settings

    def __init__(self, net: Network, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        classifier = getattr(net, "classifier", None)
        is_pointwise = isinstance(classifier, nn.Conv2d | nn.Conv3d) and set(classifier.kernel_size) == {1}
        if not is_pointwise or len(classifier.weight) != settings.n_class:
            raise UserError(
                "--method prototype_alignment takes the rows of the classifier for prototypes of the classes, and that "
                f"of {type(net).__name__} is no convolution of one pixel with a row a class: take UNet or ResidualUNet."
            )
        if settings.temperature <= 0 or not 0 <= settings.prior_rate <= 1:
            raise UserError(
                f"--temperature is above 0, and --prior_rate from 0 to 1; got {settings.temperature:g} and "
                f"{settings.prior_rate:g}."
            )
        super().__init__(net, loss, settings, team, WithFeatures(net))
        self.drift = torch.ones(settings.n_class, device=settings.device)  # of π from where it begins, by class

    @property
    def columns(self) -> list[str]:
        return ["tot", "pixels", "prototypes"]

    def see(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, K, W, H) logits and (B, *, w, h) features of the whole batch, in training."""
        with self.settings.autocast():
            logits, features = self.model(self.settings.laid_out(batch.image))
        return self.team.gather(logits, len(batch.rows)), self.team.gather(features, len(batch.rows))

    def predict(self, batch: Batch, size: Sequence[int] | None = None) -> Tensor:
        return self.see(batch)[0] if self.net.training else super().predict(batch, size)

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, features = self.see(batch)
        inside = tuple(map(slice, logits.shape[2:]))  # without the padding; of a coarser map, all
        flat = features[(..., *inside)].float().transpose(0, 1).flatten(1).T
        rows = self.net.classifier.weight.detach().flatten(1).float()
        prior = self.follow(flat.detach(), rows, self.begun_at(batch))
        terms = dict(
            zip(("pixels", "prototypes"), alignment(flat, rows, prior, self.settings.temperature), strict=True)
        )
        return logits, terms | {"tot": terms["pixels"] + terms["prototypes"]}

    def begun_at(self, batch: Batch) -> Tensor:
        """(K,) what the prior of a batch begins as: its mean prior sizes, or the same share for each class."""
        for part, bounds in zip(self.loss.losses, batch.bounds, strict=True):
            if part.compares_ratios and bounds is not None:
                return prior_ratios(bounds, torch.float32).mean(0)
        return torch.full_like(self.drift, 1 / len(self.drift))

    @torch.no_grad()
    def follow(self, features: Tensor, prototypes: Tensor, start: Tensor) -> Tensor:
        """(K,) the prior of a batch, once it has followed what is predicted. Shapes: as in `alignment`; start (K,)."""
        before = start * self.drift / (start * self.drift).sum()
        seen = posterior(prototypes @ features.T, before, self.settings.temperature).mean(1)
        prior = torch.lerp(before, seen, self.settings.prior_rate)
        self.drift = torch.where(start > 0, self.drift * prior / before.clamp_min(EPS), self.drift).clamp(EPS, 1 / EPS)
        return prior

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"drift": self.drift}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        drift = state["drift"].to(self.drift)
        if drift.shape != self.drift.shape or not bool((drift > 0).all() & drift.isfinite().all()):
            raise ValueError("the drift of a class prior is none")
        self.drift = drift
