"""A source network that transfers: two views of an image that must agree, IPA (CSDG: Ouyang et al., TMI 2022).

Two random convolutional networks show each image twice, g and g' (GIN, datasets/random_convolutions.py). A smooth
random field b, from 0 to 1, blends them place by place, and once more the other way round, so tissues that look alike
in the one view do not in the other:
    v = b g + (1 − b) g',     v' = (1 − b) g + b g'
The network learns from both, and to say the same of both; the mean is over pixels and classes, p̄ = (p + p') / 2:
    L = ½ [L(v) + L(v')] + ½ λ [mean p̄ (log p̄ − log p) + mean p̄ (log p̄ − log p')]
It costs one more forward and backward pass a step. The published code has a third view, g'' alone, and learns labels
from v only.

`--augment` changes the images before, as anywhere; random networks of its own would come on top of these.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datasets.augmentation import Augmentation
from datasets.changes import Lots
from datasets.random_convolutions import FIELD, smooth_field
from datasets.streams import Batch
from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import flag
from methods.supervised import Supervised
from nets.probabilities import EPS, log_probabilities
from processes.errors import UserError
from processes.team import ALONE, Team

SEEN = Augmentation(rotate=0, contrast=0, gamma=0, gin=1)


@METHODS.register()
class IPA(Supervised):
    """Supervised learning on two blends of two views of each image, and that the predictions on them agree."""

    one_pass = False

    @dataclass(frozen=True, kw_only=True)
    class Settings(Supervised.Settings):
        agreement: float = flag(10.0, "λ, the weight of what two views of an image differ by")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        if not 0 <= settings.agreement < float("inf"):
            raise UserError(f"--agreement is {settings.agreement}; it is a number from 0 up.")
        super().__init__(net, loss, settings, team)
        self.generator = torch.Generator(settings.device)

    @property
    def columns(self) -> list[str]:
        return [*self.loss.columns, "apart"]

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits (B, K, …) of the first views, and the terms of the loss."""
        logits, others = (self.predict(replace(batch, image=view)) for view in self.views(batch))
        first, second = (self.loss(each, batch.targets, batch.bounds) for each in (logits, others))
        terms = {name: (first[name] + second[name]) / 2 for name in first}
        apart = self.settings.agreement * divergence(log_probabilities(logits), log_probabilities(others))
        return logits, terms | {"tot": terms["tot"] + apart, "apart": apart}

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two views (b, C, …) of each image of this process, which are each other's with the field turned round."""
        count, shape, size = len(batch.rows), batch.image.shape[1:], batch.image.shape[2:]
        share, generator = self.team.share(count), self.generator.manual_seed(self.step_seed)
        seen, other = (SEEN.draw(count, shape, generator).image(batch.image, share) for _ in range(2))
        points = Lots(count, tuple(shape), generator).normal(1, *[FIELD] * len(size))
        field = smooth_field(points[share], size)
        return torch.lerp(other, seen, field), torch.lerp(seen, other, field)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Scalar: how far two predictions, log-probabilities (B, K, …), are from their mean; 0 where they are the same."""
    mean = (log_p.exp() + log_q.exp()) / 2
    return (mean * ((mean + EPS).log() - (log_p + log_q) / 2)).mean()
