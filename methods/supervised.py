"""Training on ground truth: the source model, the fully supervised bound, any weighted sum of losses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from datasets.streams import Batch
from methods.base import METHODS, Method
from methods.objective import LossSum
from methods.settings import flag
from processes.errors import UserError
from processes.team import ALONE, Team


@METHODS.register()
class Supervised(Method):
    """The weighted sum of the listed losses on one stream, which is what the published lines mean."""

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        logits, terms = self.learn(batches[self.streams[0]])
        if self.optimiser:
            self.update(terms["tot"])
        return {name: term.detach() for name, term in terms.items()}, logits.detach()

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits (B,K,W,H) of a batch, and the terms of the loss."""
        logits = self.predict(batch)
        return logits, self.loss(logits, batch.targets, batch.bounds)

    def differentiate(self, total: Tensor) -> None:
        """Computes the gradients of a scalar loss, for who looks at them or adds to them, and makes no step."""
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()


@METHODS.register()
class Mixup(Supervised):
    """Supervised learning on mixed pairs of images (Zhang et al., ICLR 2018).

    Each image of a batch is mixed with another, λ x + (1 − λ) x', λ ~ Beta(α, α), and learns the labels of both:
    λ L(p, y) + (1 − λ) L(p, y'), which for the cross-entropy is the loss on the mixed labels. The training Dice in the
    log compares the predictions on mixed images with the labels of the one.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Supervised.Settings):
        mixup_alpha: float = flag(0.2, "α of the Beta(α, α) that λ is drawn from")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        if settings.mixup_alpha <= 0:
            raise UserError(
                f"--mixup_alpha is {settings.mixup_alpha:g}; give a number above 0, or --method supervised."
            )
        if settings.batch_size < 2:
            raise UserError("--method mixup mixes images of a batch in pairs: give --batch_size 2 or more.")
        super().__init__(net, loss, settings, team)

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        alpha = self.settings.mixup_alpha
        share = float(np.random.default_rng(self.step_seed).beta(alpha, alpha))
        count = len(batch.rows)
        others = self.team.gather(batch.image, count).flip(0)[self.team.share(count)]
        logits = self.predict(replace(batch, image=share * batch.image + (1 - share) * others))
        first = self.loss(logits, batch.targets, batch.bounds)
        second = self.loss(logits, [_flipped(t) for t in batch.targets], [_flipped(b) for b in batch.bounds])
        return logits, {name: share * first[name] + (1 - share) * second[name] for name in first}


def _flipped(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.flip(0)


@METHODS.register()
class Noadap(Method):
    """The network as it came: one evaluation, no step."""

    streams = ()
    needs_weights = True
    supervision = "none"
