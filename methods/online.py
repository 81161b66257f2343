"""Online adaptation: one pass over the patients in their order, an update for each, and no more is asked of any image.

TENT minimises the entropy of every pixel, and a few bad steps end it. Its sisters leave out the pixels that do harm:
    SAR    those of high entropy; and it descends where the loss is flat around, not only low (Niu et al., ICLR 2023)
    EATA   the same, the sure count more, and weights that matter are held (Niu et al., ICML 2022)
    DeYO   those that say the same with their surroundings mixed up (Lee et al., ICLR 2024)
All are published for pictures of one class; here a sample is a pixel, and a batch is one patient's.

The log's training scores are the online ones: each patient's slices as they are predicted before they are learnt from.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dataloader import Demand
from datasets.sampling import PatientByPatient
from datasets.streams import Batch
from losses import SelfEntropy
from methods.agreement import self_agreement
from methods.base import METHODS
from methods.climb import climb, put_back
from methods.discriminators import running_statistics_kept
from methods.objective import LossSum
from methods.pixel_filters import (
    FALL,
    NEARLY_SURE,
    certainty_weight,
    mean_over,
    patch_order,
    pixel_entropy,
    probability_fall,
    reordered,
    sure_pixels,
)
from methods.settings import flag
from methods.sfda import SFDA
from methods.springs import Springs
from methods.starting_point import StartingPoint
from nets.probabilities import log_probabilities, most_probable
from processes.errors import UserError
from processes.team import ALONE, Team


@METHODS.register()
class Online(SFDA):
    """Entropy over the pixels that a filter keeps, patient by patient; an epoch is a round over all of them."""

    one_pass = False
    example = ("--trainable", "all")

    @dataclass(frozen=True, kw_only=True)
    class Settings(SFDA.Settings):
        trainable: Literal["all", "bn", "features", "none"] = flag("bn", "what adapts: as of --method sfda")
        online: Literal["sar", "eata", "deyo"] = flag("sar", "which pixels are learnt from, and how")
        fisher: float = flag(2000.0, "eata: how firmly weights that matter are held where they began")
        reset_below: float = flag(0.0, "back to --model_weights where the loss, averaged, is lower (0: never)")
        reset_fall: float = flag(0.0, "the same where its agreement with itself falls by more (0: never)")

    settings: Settings

    @classmethod
    def demand(cls, settings: Settings) -> Demand:
        return replace(super().demand(settings), sampler=partial(PatientByPatient, batch_size=settings.batch_size))

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        super().__init__(net, loss, settings, team)
        self._check(settings)
        self.start = StartingPoint(net, self.optimiser, settings.reset_below, settings.reset_fall)
        self.learnt = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.springs, self.is_first_round = Springs(self.learnt), True
        self.generator = torch.Generator(settings.device)

    def _check(self, settings: Settings) -> None:
        entropy = [part for part in self.loss.losses if isinstance(part, SelfEntropy)]
        if len(entropy) != 1 or len(self.loss.losses) != 1 or entropy[0].idc or entropy[0].weights:
            raise UserError(
                "--method online minimises the entropy of the pixels that --online keeps, and nothing else: give "
                "--target_losses \"[('SelfEntropy', {}, 1)]\"."
            )
        if self.optimiser is None:
            raise UserError(
                f"--method online has nothing to learn with --trainable {settings.trainable}: a network without norms "
                "needs --trainable all."
            )
        if min(settings.fisher, settings.reset_below, settings.reset_fall) < 0:
            raise UserError("--fisher, --reset_below and --reset_fall are numbers from 0 up.")

    @property
    def columns(self) -> list[str]:
        return ["tot", "kept", "reset", *(["held"] if self.settings.online == "eata" else [])]

    def begin_epoch(self, epoch: int, rate_factor: float = 1.0) -> None:
        super().begin_epoch(epoch, rate_factor)
        self.is_first_round = epoch == 0

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch = batches["target"]
        learn = {"sar": self.flat_minimum, "eata": self.held, "deyo": self.by_surroundings}[self.settings.online]
        terms, logits, kept = learn(batch)
        reset = self.start.after_step(terms["tot"].detach(), kept.any(), partial(self._agreement, batch))
        terms |= {"kept": kept.float().mean(), "reset": reset}
        return {name: terms[name].detach() for name in self.columns}, logits.detach()

    def flat_minimum(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """SAR: the gradient is that at θ + ρ g / ‖g‖, where the loss is higher, over pixels that are sure there too."""
        n_class = self.settings.n_class
        logits = self.predict(batch)
        entropy = pixel_entropy(logits)
        kept = sure_pixels(entropy, n_class)
        self.differentiate(self._mean(entropy, kept))
        before = climb(self.learnt)
        with self._unseen():
            entropy = pixel_entropy(self.predict(batch))
        kept = kept & sure_pixels(entropy, n_class)
        total = self._mean(entropy, kept)
        self.update(total, between=partial(put_back, self.learnt, before))
        return {"tot": total}, logits, kept

    def held(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """EATA: sure pixels, the surer the more, and a spring on each weight by its importance."""
        if self.is_first_round:
            self._measure_importance(batch)
        logits = self.predict(batch)
        entropy = pixel_entropy(logits)
        kept = sure_pixels(entropy, self.settings.n_class)
        total = self._mean(entropy * certainty_weight(entropy, self.settings.n_class), kept)
        held = self.settings.fisher * self.springs.energy()
        self.update(total + held)
        return {"tot": total + held, "held": held}, logits, kept

    def _measure_importance(self, batch: Batch) -> None:
        """Measures the springs by the gradient of −log p of the predicted class, over the steps of the first round.

        As published it is measured on the source's images, which are not here.
        """
        with self._unseen():
            log_p = log_probabilities(self.predict(batch))
        self.differentiate(-log_p.gather(1, most_probable(log_p).unsqueeze(1)).mean())
        self.springs.measure(self.scaler.scale(torch.ones((), device=log_p.device)))

    def by_surroundings(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """DeYO: pixels whose class loses probability when the patches around them change places.

        A pixel is followed to where its patch goes, so it is compared with itself in other surroundings.
        """
        n_class = self.settings.n_class
        order = patch_order(batch.image.shape[2:], self.generator.manual_seed(self.step_seed))
        with torch.no_grad(), self._unseen():
            mixed = self.predict(replace(batch, image=reordered(batch.image, order)))
        logits = self.predict(batch)
        entropy = pixel_entropy(logits)
        fall = probability_fall(logits, reordered(mixed, order.argsort()))
        kept = sure_pixels(entropy, n_class, NEARLY_SURE) & (fall > FALL)
        total = self._mean(entropy * (certainty_weight(entropy, n_class) + fall.exp()), kept)
        self.update(total)
        return {"tot": total}, logits, kept

    def _agreement(self, batch: Batch) -> Tensor:
        """Of the network, as it is after the step, with itself: the mean over the batch."""
        with self._unseen():
            found = self_agreement(self.net, batch.image, self.settings, self.generator.manual_seed(self.step_seed))
        return self.team.gather(found, len(batch.rows)).mean()

    def _mean(self, values: Tensor, kept: Tensor) -> Tensor:
        """The mean of the values (B, …) over the pixels that are kept, times the weight of the loss."""
        return self.loss.weights[0] * mean_over(values, kept)

    def _unseen(self) -> AbstractContextManager[None]:
        """A pass whose batch-norm statistics are not remembered: each image counts once."""
        return running_statistics_kept(self.module)

    # -- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.start.state_dict() | {"springs": self.springs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.start.load_state_dict(state)
        self.springs.load_state_dict(state["springs"])
