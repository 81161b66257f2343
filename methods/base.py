"""What the training loop asks of a method."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dataloader import AnyStream, Demand
from datasets.streams import Batch
from methods.anchor import Anchor
from methods.objective import LossSum
from methods.optimisers import Groups, Rates, load_optimiser, make_optimiser
from methods.settings import Settings
from nets.sliding_window import sliding_window
from processes.team import ALONE, Team
from utils import Registry, typed


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


METHODS = Registry("method", naming=snake_case)  # class SFDA is --method sfda, PseudoLabel pseudo_label


class Method:
    """One way to learn: the streams it consumes, the `Settings` it is told, one `step`.

    `engine/loop.py` owns epochs, evaluation, logging and saving; the method owns its optimisers and extra networks.
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

    def __init__(
        self,
        net: nn.Module,
        loss: LossSum,
        settings: Settings,
        team: Team = ALONE,
        module: nn.Module | None = None,
        groups: Groups | None = None,
    ) -> None:
        """module: the network together with its heads, which learn along with it; its call is a pass in training

        groups: what learns, in groups, each with its factor on --l_rate (default: the network's, and a group a head)
        """
        self.net, self.loss, self.settings, self.team = net, loss, settings, team
        self.module = net if module is None else module
        parts = {} if module is None else dict(module.named_children())
        self.heads = {name: part for name, part in parts.items() if part is not net}
        self.model = team.wrap(self.module)  # the same as it is called in training: shared out, perhaps compiled
        heads = [(list(part.parameters()), 1.0) for part in self.heads.values()]
        self.optimiser = make_optimiser(groups or [*net.parameter_groups(), *heads], settings)
        self.rates = Rates([self.optimiser] if self.optimiser else [], settings)
        self.anchor = Anchor(net.parameters(), settings.anchor)  # --model_weights, which a resume has read again
        self.step_seed = 0
        self.scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16" and settings.device.startswith("cuda"))

    def meet(self, streams: Mapping[str, AnyStream]) -> None:
        """Looks at all that will be learnt from, if the method has to, with the network as it came.

        It does so before the first step, and again at each start after a kill, before anything is restored.
        """

    @property
    def notes(self) -> list[str]:
        """What a reader of the log must know."""
        return self.loss.notes

    @property
    def columns(self) -> list[str]:
        """Names of the terms that a step returns, "tot" first; the log's columns."""
        return self.loss.columns

    def moving(self) -> dict[str, float]:
        """What changes from epoch to epoch: "lr" (NaN if nothing learns), and what moves of the losses."""
        return {"lr": self.rates.now} | self.loss.moving()

    def begin_epoch(self, epoch: int, rate_factor: float = 1.0) -> None:
        """Sets training mode, this epoch's weights of the losses, and its learning rate, times `rate_factor`."""
        self.set_modes()
        self.loss.begin_epoch(epoch)
        self.rates.begin_epoch(epoch, rate_factor)

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
        self.rates.begin_step(progress)

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """Makes one update.

        Returns the detached scalar terms, still on the device, and the first stream's logits (B, K, W, H).
        """
        raise NotImplementedError

    def predict(self, batch: Batch, size: Sequence[int] | None = None) -> Tensor:
        """(B, K, W, H) logits of the whole batch, whichever process holds its images.

        size: (W, H) of the logits in evaluation, where it is not that of the images
        """
        with self.settings.autocast():
            if self.net.training:
                logits = self.model(self.settings.laid_out(batch.image))
            else:
                logits = infer(self.net, batch.image, self.settings, size)
        return self.team.gather(logits, len(batch.rows))

    def update(self, total: Tensor, between: Callable[[], None] = lambda: None, fresh: bool = True) -> None:
        """Computes the gradients of a scalar loss and makes an optimiser step, which the anchor follows.

        between: is called after the one and before the other; fresh: whether gradients that are there are forgotten
        """
        if fresh:
            self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        between()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.anchor.pull()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs in addition to the network's weights: tensors and plain types."""
        priors = self.loss.state()
        return {
            "optimiser": self.optimiser.state_dict() if self.optimiser else None,
            "scaler": self.scaler.state_dict(),
            "halvings": self.rates.halvings,
            **({"priors": priors} if priors else {}),
        } | {name: part.state_dict() for name, part in self.heads.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.optimiser:
            load_optimiser(self.optimiser, state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        (self.rates.halvings,) = typed(state, {"halvings": int})
        self.loss.load_state(state.get("priors", {}))
        for name, part in self.heads.items():
            part.load_state_dict(state[name])


def infer(net: nn.Module, image: Tensor, settings: Settings, size: Sequence[int] | None = None) -> Tensor:
    """(B, K, W, H) logits in evaluation mode, or of the size (W, H) if that is given.

    A volume is seen in windows of --crop, a training batch of them at a time.
    """
    if not settings.crop:
        return net(settings.laid_out(image), size)
    windows = (settings.crop, settings.overlap, settings.batch_size)
    return sliding_window(lambda part: net(settings.laid_out(part)), image, *windows)
