"""Continual adaptation, patient by patient, to what an average of oneself says of several views: CoTTA.

The teacher's weights are the running average of the student's, and begin as the student's do, at the source network. A
step teaches the student q, what the teacher says of the images:
    L = −mean_i Σ_k q_k log p_k
Where the source network's confidence, the mean over the batch, is below a limit, q is the mean over views of the
images, else what is said of the images themselves. Then a random hundredth of the student's weights goes back to the
source network's. So errors do not add up, and what was learnt first is not forgotten (Wang et al., CVPR 2022).

The published views are of pictures and also move them; these change grey levels, and every other one is the mirror
image, turned back. The teacher of the last step is what is evaluated and saved.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from dataloader import Demand
from datasets.augmentation import Augmentation
from datasets.sampling import PatientByPatient
from datasets.streams import Batch
from methods.anchor import Anchor
from methods.averaging import Student, follow, frozen
from methods.base import METHODS, Method
from methods.mean_teacher import check_losses
from methods.objective import LossSum
from methods.settings import flag
from nets.probabilities import EPS, log_probabilities
from processes.errors import UserError
from processes.team import ALONE, Team

VIEW = Augmentation(rotate=0, contrast=0, gamma=0, spread=0.3, brightness=0.4, noise=0.005)


@METHODS.register()
class Cotta(Method):
    """A student learns from the average of itself, one patient after the other; that average is the network."""

    labelled = ()
    needs_weights = True
    supervision = "none"
    one_pass = False
    example = ("--views", "2", "--restored", "0")

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        ema: float = flag(0.999, "how much of the teacher's weights a step keeps")
        views: int = flag(8, "of the images, over which the teacher's answer is averaged (published: 32)")
        confidence: float = flag(0.92, "mean confidence of the source network from which on the images alone are asked")
        restored: float = flag(0.01, "share of the weights that go back to the source network's after a step")

    settings: Settings

    @classmethod
    def demand(cls, settings: Settings) -> Demand:
        return replace(super().demand(settings), sampler=partial(PatientByPatient, batch_size=settings.batch_size))

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        check_settings(settings)
        check_losses(loss)
        pupil = Student(net)
        super().__init__(frozen(net), loss, settings, team, pupil, pupil.student.parameter_groups())
        self.student, self.source = pupil.student, deepcopy(net)
        self.anchor = Anchor(self.student.parameters(), settings.anchor)  # the teacher follows
        self.generator = torch.Generator(settings.device)

    @property
    def columns(self) -> list[str]:
        return [*self.loss.columns, "source_confidence"]

    def set_modes(self) -> None:
        super().set_modes()
        self.net.eval()

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch, generator = batches["target"], self.generator.manual_seed(self.step_seed)
        taught, confidence = self.teach(batch, generator)
        logits = self.see(self.model, batch.image, len(batch.rows))
        terms = self.loss(logits, [taught] * len(self.loss.losses), batch.bounds)
        self.update(terms["tot"])
        follow(self.net, self.student, self.settings.ema)
        restore(self.student.parameters(), self.source.parameters(), self.settings.restored, generator)
        terms["source_confidence"] = confidence
        return {name: term.detach() for name, term in terms.items()}, (taught + EPS).log()

    @torch.no_grad()
    def teach(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The probabilities (B, K, …) that the student is to learn, and the source network's mean confidence."""
        image, count = batch.image, len(batch.rows)
        confidence = self.probabilities(self.source, image, count).amax(1).mean()
        total = torch.zeros((), device=image.device)
        for number in range(self.settings.views):
            view = VIEW.draw(count, image.shape[1:], generator).image(image, self.team.share(count))
            mirror = [-1] * (number % 2)
            total = total + self.probabilities(self.net, view.flip(mirror), count).flip(mirror)
        plain = self.probabilities(self.net, image, count)
        # Both are there, since to ask first which is wanted would wait for the device.
        return torch.where(confidence < self.settings.confidence, total / self.settings.views, plain), confidence

    def probabilities(self, net: nn.Module, image: Tensor, count: int) -> Tensor:
        """(count, K, …) of a whole batch, of which this process holds the images (b, C, …)."""
        return log_probabilities(self.see(net, image, count)).exp()

    def see(self, net: nn.Module, image: Tensor, count: int) -> Tensor:
        """The logits (count, K, …) of a whole batch, of which this process holds the images (b, C, …)."""
        with self.settings.autocast():
            logits = net(self.settings.laid_out(image))
        return self.team.gather(logits, count)


@torch.no_grad()
def restore(weights: Iterable[Tensor], source: Iterable[Tensor], share: float, generator: torch.Generator) -> None:
    """Sets each number of the weights, with that probability, to what it is in the source."""
    for own, other in zip(weights, source, strict=True) if share else ():
        drawn = torch.rand(own.shape, generator=generator, device=own.device) < share
        own.copy_(torch.where(drawn, other, own))


def check_settings(settings: Cotta.Settings) -> None:
    """Raises UserError for a number out of range."""
    for name in ("ema", "confidence", "restored"):
        if not 0 <= (value := getattr(settings, name)) <= 1:
            raise UserError(f"--{name} is {value:g}; it lies between 0 and 1.")
    if settings.views < 1:
        raise UserError(f"--views is {settings.views}; it is 1 or more.")
