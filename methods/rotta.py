"""Continual adaptation from a memory of images, sure, recent and of every class: RoTTA (Yuan et al., CVPR 2023).

A teacher's weights are the running average of a student's, and begin as the student's do, at the source network. Each
patient's images are predicted by the teacher, and offered to the memory (methods/memory.py). Then the student sees all
that is remembered with other grey levels, noise and blank boxes, and learns what the teacher says of it as it is:
    L = −Σ_j w_j Σ_ik q_ijk log p_ijk / Σ_j w_j
w_j is the less the older image j is. Batch norms normalise by statistics that follow slowly (nets/norm_following.py).

Published for pictures of one class. Here an image is of the class of the foreground that most of its pixels are, or of
the background without any; its doubt is its mean entropy over log K. The published memory is learnt from once in as
many images as it has places, here at each patient. The published views also move, and the divisor there is the number
of images, not the sum of their weights. The teacher is what is evaluated and saved.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dataloader import Demand
from datasets.augmentation import STRONG_VIEW
from datasets.sampling import PatientByPatient
from datasets.streams import Batch
from losses import CrossEntropy
from methods.anchor import Anchor
from methods.averaging import Student, follow, frozen
from methods.base import METHODS, Method
from methods.memory import Memory
from methods.objective import LossSum
from methods.pixel_filters import pixel_entropy
from methods.settings import flag
from methods.sfda import let_learn
from nets.base import batch_norms
from nets.norm_following import following_norm
from nets.norm_mixing import standing_in
from nets.probabilities import log_probabilities, most_probable, one_hot
from processes.errors import UserError
from processes.team import ALONE, Team


@METHODS.register()
class Rotta(Method):
    """A student learns what its average says of the images in a memory; that average is the network."""

    labelled = ()
    needs_weights = True
    supervision = "none"
    one_pass = False
    example = ("--memory", "6", "--trainable", "all")

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        trainable: Literal["all", "bn", "features"] = flag("bn", "what adapts: as of --method sfda")
        ema: float = flag(0.999, "how much of the teacher's weights a step keeps")
        memory: int = flag(64, "images that are remembered, all of which a step learns from")
        norm_rate: float = flag(0.05, "share of a batch in the statistics of the batch norms")

    settings: Settings

    @classmethod
    def demand(cls, settings: Settings) -> Demand:
        return replace(super().demand(settings), sampler=partial(PatientByPatient, batch_size=settings.batch_size))

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        check_settings(settings)
        if [type(part) for part in loss.losses] != [CrossEntropy]:
            raise UserError("--method rotta learns what its average says: [('CrossEntropy', {}, 1)], nothing else.")
        pupil = Student(net)
        let_learn(pupil.student, settings.trainable)
        super().__init__(frozen(net), loss, settings, team, pupil, pupil.student.parameter_groups())
        if self.optimiser is None:
            raise UserError("--method rotta has nothing to learn: a network without norms needs --trainable all.")
        self.student = pupil.student
        self.norms = batch_norms(net) + batch_norms(pupil)
        self.anchor = Anchor(self.student.parameters(), settings.anchor)  # the teacher follows
        self.memory = Memory(settings.memory, settings.n_class, settings.device)
        self.generator = torch.Generator(settings.device)

    @property
    def columns(self) -> list[str]:
        return [*self.loss.columns, "remembered"]

    def set_modes(self) -> None:
        super().set_modes()
        self.net.eval()

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch, count = batches["target"], len(batches["target"].rows)
        with torch.no_grad():
            said = self.team.gather(self.see(self.net, batch.image), count)
        self.memory.add(self.team.gather(batch.image, count), class_of(said), doubt_of(said))
        image, weight = self.memory.recall()
        taught, logits = self.seen_twice(image)
        shares = taught * weight.view(-1, *[1] * (taught.ndim - 1))
        terms = self.loss(logits, [shares], batch.bounds)
        self.update(terms["tot"], between=partial(self.team.average, self.student.parameters()))
        follow(self.net, self.student, self.settings.ema, buffers=False)
        terms["remembered"] = self.memory.held.float().mean()
        return {name: term.detach() for name, term in terms.items()}, said

    def seen_twice(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of images (N, C, …), which every process has: the teacher's probabilities and the student's logits.

        The student's are of a view of each.
        """
        view = STRONG_VIEW.draw(len(image), image.shape[1:], self.generator.manual_seed(self.step_seed)).image(image)
        with standing_in(self.norms, partial(following_norm, self.settings.norm_rate)):
            with torch.no_grad():
                taught = log_probabilities(self.see(self.net, image)).exp()
            return taught, self.see(self.student, view)

    def see(self, net: nn.Module, image: Tensor) -> Tensor:
        """The logits (b, K, …) of images (b, C, …)."""
        with self.settings.autocast():
            return net(self.settings.laid_out(image))

    # -- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])


def class_of(logits: Tensor) -> Tensor:
    """(B, K, …) -> (B,) int64: the class of the foreground that most pixels are, 0 where none is any."""
    counts = one_hot(most_probable(logits), logits.shape[1]).flatten(2).sum(2)[:, 1:]
    most, label = counts.max(1)
    return torch.where(most > 0, label + 1, 0)


def doubt_of(logits: Tensor) -> Tensor:
    """(B, K, …) -> (B,) mean entropy of the pixels over log K, 0..1."""
    return pixel_entropy(logits).flatten(1).mean(1) / math.log(logits.shape[1])


def check_settings(settings: Rotta.Settings) -> None:
    """Raises UserError for a number out of range."""
    for name in ("ema", "norm_rate"):
        if not 0 <= (value := getattr(settings, name)) <= 1:
            raise UserError(f"--{name} is {value:g}; it lies between 0 and 1.")
    if settings.memory < settings.n_class:
        raise UserError(f"--memory is {settings.memory}; it is {settings.n_class}, a place a class, or more.")
