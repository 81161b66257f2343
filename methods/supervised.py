"""Training on ground truth: the source model, the fully supervised bound, any weighted sum of losses."""

from collections.abc import Mapping

from torch import Tensor

from dataloader import Batch
from methods.base import METHODS, Method


@METHODS.register()
class Supervised(Method):
    """The weighted sum of the listed losses on one stream, which is what the published lines mean."""

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch = batches[self.streams[0]]
        logits = self.predict(batch)
        terms = self.loss(logits, batch.targets, batch.bounds)
        if self.optimiser:
            self.update(terms["tot"])
        return {name: term.detach() for name, term in terms.items()}, logits.detach()


@METHODS.register()
class NoAdap(Method):
    """The network as it came: one evaluation, no step."""

    streams = ()
    needs_weights = True
    supervision = "none"
