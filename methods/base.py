"""What the training loop asks of a method."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dataloader import Demand
from datasets.streams import Batch
from methods.objective import LossSum
from methods.optimisers import Groups, load_optimiser, make_optimiser, set_rates
from methods.settings import Settings
from nets.precision import AUTOCAST
from nets.sliding_window import sliding_window
from processes.team import ALONE, Team
from utils import Registry


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


METHODS = Registry("method", naming=snake_case)  # class SFDA is --method sfda, PseudoLabel pseudo_label


class Method:
    """One way to learn: the streams it consumes, the flags it adds, one `step`.

    `main.py` owns epochs, evaluation, logging and saving; the method owns its optimisers and extra networks.
    """

    streams: ClassVar[tuple[str, ...]] = ("target",)  # what a step consumes; the first sets an epoch's length
    labelled: ClassVar[tuple[str, ...]] = ("target",)  # those of them whose batches carry ground truth
    needs_weights: ClassVar[bool] = False  # whether it starts from a trained network
    segments: ClassVar[bool] = True  # whether its logits mean anything yet; those of a pre-training do not
    supervision: ClassVar[str] = "full"  # of the training images, for the report
    example: ClassVar[tuple[str, ...]] = ()  # flags that make it small: the tests try every method with them
    # whether a step is one backward pass into fresh gradients, which a CUDA graph can replay: the first gradients of a
    # step lie in the memory that a second forward pass of the same graph writes over
    one_pass: ClassVar[bool] = True
    Settings: ClassVar[type[Settings]] = Settings  # what it is told: its own flags are declared here

    @classmethod
    def demand(cls, settings: Settings) -> Demand:
        """What a run that learns with these settings wants of the data."""
        return Demand(settings.method, dict.fromkeys(cls.streams, settings.batch_size), cls.labelled, cls.segments)

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        self.net, self.loss, self.settings, self.team = net, loss, settings, team
        self.module = self.extended(net)
        self.model = team.wrap(self.module)  # the same as it is called in training: shared out, perhaps compiled
        self.optimiser = make_optimiser(self.groups(), settings)
        self.caution, self.halvings = 1.0, 0  # factors on the learning rate: after a collapse; by --lr_rule legacy
        self.step_seed = 0
        self.scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16" and settings.device.startswith("cuda"))

    @property
    def notes(self) -> list[str]:
        """What a reader of the log must know."""
        return self.loss.notes

    def extended(self, net: nn.Module) -> nn.Module:
        """The network together with what learns along with it; its call is a forward pass in training."""
        return net

    @property
    def heads(self) -> dict[str, nn.Module]:
        """By name what `extended` added to the network. It learns along, and is kept with the method's state."""
        if self.module is self.net:
            return {}
        return {name: part for name, part in self.module.named_children() if part is not self.net}

    def groups(self) -> Groups:
        """What learns, in groups, each with its factor on --l_rate."""
        return [*self.net.parameter_groups(), *((list(part.parameters()), 1.0) for part in self.heads.values())]

    @property
    def columns(self) -> list[str]:
        """Names of the terms that a step returns, "tot" first; the log's columns."""
        return self.loss.columns

    def moving(self) -> dict[str, float]:
        """What changes from epoch to epoch: "lr" (NaN if nothing learns), and the scheduled weights of the losses."""
        lr = self.optimiser.param_groups[0]["lr"] if self.optimiser else float("nan")
        return {"lr": lr} | self.loss.moving_weights()

    @property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Every optimiser whose learning rate follows the schedule."""
        return [self.optimiser] if self.optimiser else []

    def begin_epoch(self, epoch: int, caution: float = 1.0) -> None:
        """Sets training mode, this epoch's weights of the losses, and its learning rate, times `caution`."""
        self.set_modes()
        self.loss.begin_epoch(epoch)
        self.caution = caution
        self._set_rates(epoch)

    def set_modes(self) -> None:
        """Sets training mode, except for parts that stand still."""
        self.module.train()

    def images_at_once(self, rows: Mapping[str, int]) -> int:
        """The fewest images of a forward pass in training, for the smallest batch of each stream."""
        return min(rows.values())

    def begin_step(self, progress: float, seed: int = 0) -> None:
        """Sets the rate of this step, if it changes by the step. `progress` counts epochs, the running one in part.

        seed: of what a step draws alike in every process of a team (torch's own generator draws something else in each)
        """
        self.step_seed = seed
        if self.settings.lr_rule == "poly":
            self._set_rates(progress)

    def end_epoch(self, epoch: int, best_epoch: int) -> None:
        """Is called after an epoch and its validation. `best_epoch` is the best epoch so far."""
        self.halvings += self.settings.lr_rule == "legacy" and epoch % (best_epoch + 20) == 0

    def _set_rates(self, progress: float) -> None:
        for optimiser in self.optimisers:
            set_rates(optimiser, progress, self.settings, self.caution * 0.5**self.halvings)

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """Makes one update.

        Returns the detached scalar terms, still on the device, and the first stream's logits (B, K, W, H).
        """
        raise NotImplementedError

    def predict(self, batch: Batch, size: Sequence[int] | None = None) -> Tensor:
        """(B, K, W, H) logits of the whole batch, whichever process holds its images.

        size: (W, H) of the logits in evaluation, where it is not that of the images
        """
        with self.precision():
            logits = self.model(self.laid_out(batch.image)) if self.net.training else self.infer(batch.image, size)
        return self.team.gather(logits, len(batch.rows))

    def infer(self, image: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, K, W, H) logits in evaluation mode.

        A volume is seen in windows of --crop, a training batch of them at a time.
        """
        crop, overlap, at_once = self.settings.crop, self.settings.overlap, self.settings.batch_size
        if not crop:
            return self.net(self.laid_out(image), size)
        return sliding_window(lambda part: self.net(self.laid_out(part)), image, crop, overlap, at_once)

    def laid_out(self, image: Tensor) -> Tensor:
        """The images (B, C, W, H) or (B, C, D, W, H) in the memory layout of --channels_last."""
        if not self.settings.channels_last:
            return image
        return image.contiguous(memory_format=torch.channels_last_3d if image.ndim == 5 else torch.channels_last)

    def precision(self) -> AbstractContextManager[Any]:
        """The context of a forward pass at the run's precision. The losses always compute in fp32."""
        dtype = AUTOCAST.get(self.settings.precision)
        return torch.autocast(self.settings.device.split(":")[0], dtype) if dtype else nullcontext()

    def update(self, total: Tensor) -> None:
        """Computes the gradients of a scalar loss and makes an optimiser step."""
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs in addition to the network's weights: tensors and plain types."""
        return {
            "optimiser": self.optimiser.state_dict() if self.optimiser else None,
            "scaler": self.scaler.state_dict(),
            "halvings": self.halvings,
        } | {name: part.state_dict() for name, part in self.heads.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.optimiser:
            load_optimiser(self.optimiser, state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.halvings = state["halvings"]
        for name, part in self.heads.items():
            part.load_state_dict(state[name])
