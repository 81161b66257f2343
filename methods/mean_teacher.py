"""Class-balanced mean teacher (CBMT: Tang et al., MICCAI 2023): a source network adapts to what its average says.

The teacher's weights are the running average of the student's, and begin as the student's do, at the source network.
It sees the images as they are; where its most probable class of the foreground is more probable than a threshold T,
that is the label, else the label is background. The student sees them with other grey levels, noise and blank boxes,
and learns the labels, with a weight a class:
    L = −Σ_i w_ŷ log p_ŷ / Σ_i w_ŷ         w_0 = 1,   w_k = l_0 / l_k
l_k is the teacher's own mean loss, −log of the probability of the label, over the pixels of the epoch before that it
labels k and is not sure of: 0.2 T < p_fg < 1 − 0.2 (1 − T), where p_fg is what it compares with T. In the first epoch
it is that of the source network. So a class that the teacher is doubtful of does not drown.

The published code has two structures, each against its background, and weighs the background of one of them. There the
teacher is in training mode: its batch norms take the statistics of each batch. Here it is in evaluation mode, with the
statistics of the set at first and the student's later, so a label depends on its image alone. The teacher of the last
step is what is evaluated and saved, as in the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dataloader import AnyStream
from datasets.augmentation import STRONG_VIEW
from datasets.streams import Batch
from losses import CrossEntropy
from methods.anchor import Anchor
from methods.averaging import Student, follow, frozen
from methods.base import METHODS, Method
from methods.objective import LossSum
from methods.refresh import refresh
from methods.settings import flag
from methods.thresholds import pseudo_label
from nets.probabilities import log_probabilities, one_hot
from processes.errors import UserError
from processes.team import ALONE, Team

BAND = 0.2  # how near to 0 and to 1 the uncertain probabilities reach, as a share of the way from the threshold


@METHODS.register()
class MeanTeacher(Method):
    """A student learns from the average of itself; that average is the network."""

    labelled = ()
    needs_weights = True
    supervision = "none"

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        ema: float = flag(0.98, "how much of the teacher's weights a step keeps")
        threshold_value: float = flag(0.75, "probability from which on the teacher's foreground is believed")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        check_settings(settings)
        check_losses(loss)
        pupil = Student(net)
        super().__init__(frozen(net), loss, settings, team, pupil, pupil.student.parameter_groups())
        self.student, self.generator = pupil.student, torch.Generator(settings.device)
        self.anchor = Anchor(self.student.parameters(), settings.anchor)  # the teacher follows
        self.class_weights = torch.ones(settings.n_class, device=settings.device)
        self.doubts = torch.zeros(2, settings.n_class, dtype=torch.float64, device=settings.device)

    @property
    def columns(self) -> list[str]:
        return [*self.loss.columns, "pseudo_share"]

    def moving(self) -> dict[str, float]:
        weights = enumerate(self.class_weights.tolist())
        return super().moving() | {f"class_weight_{k}": weight for k, weight in weights if k}

    def set_modes(self) -> None:
        super().set_modes()
        self.net.eval()

    def meet(self, streams: Mapping[str, AnyStream]) -> None:
        see = partial(self.see, self.net)
        refresh(self.net, see, (batch.image for batch, _ in streams["target"].epoch(0)))
        follow(self.student, self.net, 1.0)  # their weights are the same
        for batch, _ in streams["target"].epoch(0):
            self.teach(batch)

    def begin_epoch(self, epoch: int, rate_factor: float = 1.0) -> None:
        super().begin_epoch(epoch, rate_factor)
        self.class_weights, self.doubts = balance(self.doubts), torch.zeros_like(self.doubts)

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch = batches["target"]
        taught, label = self.teach(batch)
        count, generator = len(batch.rows), self.generator.manual_seed(self.step_seed)
        view = STRONG_VIEW.draw(count, batch.image.shape[1:], generator)
        logits = self.team.gather(self.see(self.model, view.image(batch.image, self.team.share(count))), count)
        weight = self.class_weights.view(-1, *[1] * (label.ndim - 1))
        shares = one_hot(label, self.settings.n_class) * weight
        terms = self.loss(logits, [shares] * len(self.loss.losses), batch.bounds)
        self.update(terms["tot"])
        follow(self.net, self.student, self.settings.ema)
        terms["pseudo_share"] = (label > 0).float().mean()
        return {name: term.detach() for name, term in terms.items()}, taught

    @torch.no_grad()
    def teach(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's logits (B, K, …) of the whole batch, and the labels (B, …); its doubts are noted."""
        logits = self.team.gather(self.see(self.net, batch.image), len(batch.rows))
        log_p, threshold = log_probabilities(logits), self.settings.threshold_value
        label = pseudo_label(log_p.exp(), threshold)
        self.doubts += doubts(log_p, label, threshold)
        return logits, label

    def see(self, net: nn.Module, image: Tensor) -> Tensor:
        """The logits (b, K, …) of the images (b, C, …) that this process holds."""
        with self.settings.autocast():
            return net(self.settings.laid_out(image))

    # -- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"class_weights": self.class_weights, "doubts": self.doubts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("class_weights", "doubts"):
            own = getattr(self, name)
            if state[name].shape != own.shape or not (state[name] >= 0).all():
                raise ValueError(f"{name} of the shape {tuple(state[name].shape)}, or below 0")
            own.copy_(state[name])


def doubts(log_p: Tensor, label: Tensor, threshold: float) -> Tensor:
    """(2, K) float64: the sum of −log p of the label over the uncertain pixels of each class, and their number.

    log_p: (B, K, …) of the teacher; label: (B, …) that it gives
    """
    believed = log_p[:, 1:].exp().amax(1)
    uncertain = (threshold * BAND < believed) & (believed < 1 - (1 - threshold) * BAND)
    cost = -log_p.gather(1, label.unsqueeze(1))
    classes = one_hot(label, log_p.shape[1], torch.bool) & uncertain.unsqueeze(1)
    sums = torch.where(classes, cost, 0).double().transpose(0, 1).flatten(1).sum(1)
    return torch.stack([sums, classes.transpose(0, 1).flatten(1).sum(1).double()])


def balance(doubts: Tensor) -> Tensor:
    """(2, K) sums and numbers -> (K,) weights l_0 / l_k; 1 where the background or the class has no such pixel."""
    sums, counts = doubts
    mean = sums / counts
    known = (counts > 0) & (counts[0] > 0)
    return torch.where(known, mean[0] / mean, 1.0).float()


def check_settings(settings: MeanTeacher.Settings) -> None:
    """Raises UserError for a number out of range."""
    for name in ("ema", "threshold_value"):
        if not 0 <= (value := getattr(settings, name)) < 1:
            raise UserError(f"--{name} is {value:g}; it lies between 0 and 1, 1 left out.")


def check_losses(loss: LossSum) -> None:
    """Raises UserError for losses on ground truth that have no weight a class and pixel."""
    wrong = [type(part).__name__ for part in loss.losses if part.needs_target and not isinstance(part, CrossEntropy)]
    if wrong:
        raise UserError(
            f"--method mean_teacher weighs the classes of a cross-entropy, and {wrong[0]} compares with ground truth "
            "otherwise: give CrossEntropy, as in [('CrossEntropy', {}, 1)]. Losses of the prediction alone may stand "
            "beside it."
        )
