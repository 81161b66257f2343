"""What the training loop asks of a method."""

from argparse import Namespace, _ArgumentGroup
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dataloader import Batch
from distributed import ALONE, Team
from losses import LossSum
from utils import Registry

METHODS = Registry("method", naming=str.lower)  # class SFDA is --method sfda
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Method:
    """One way to learn: the streams it consumes, the flags it adds, one `step`.

    `main.py` owns epochs, evaluation, logging and saving; the method owns its optimisers and extra networks.
    """

    streams: ClassVar[tuple[str, ...]] = ("target",)  # what a step consumes; the first sets an epoch's length
    sees_truth: ClassVar[bool] = True  # whether its batches carry ground truth
    needs_weights: ClassVar[bool] = False  # whether it starts from a trained network
    supervision: ClassVar[str] = "full"  # of the training images, for the report

    @staticmethod
    def add_arguments(group: _ArgumentGroup) -> None:
        """The flags that only this method has."""

    def __init__(self, net: nn.Module, loss: LossSum, args: Namespace, team: Team = ALONE) -> None:
        self.net, self.loss, self.args, self.team = net, loss, args, team
        self.model = team.wrap(net)  # the same network as it is called in training: shared out, perhaps compiled
        trainable = [p for p in net.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(trainable, args) if trainable else None
        self.scaler = torch.amp.GradScaler(enabled=args.precision == "fp16" and args.device.startswith("cuda"))

    @property
    def columns(self) -> list[str]:
        """Names of the terms that a step returns, "tot" first; the log's columns."""
        return self.loss.columns

    def rate(self) -> float:
        """This epoch's learning rate, NaN where nothing learns."""
        return self.optimiser.param_groups[0]["lr"] if self.optimiser else float("nan")

    def begin_epoch(self, epoch: int, caution: float = 1.0) -> None:
        """Training mode, and this epoch's learning rate, times `caution`."""
        self.net.train()
        for group in self.optimiser.param_groups if self.optimiser else []:
            group["lr"] = learning_rate(epoch, self.args) * caution

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """One update. Returns the detached terms, still on the device, and the first stream's logits (B,K,W,H)."""
        raise NotImplementedError

    def predict(self, batch: Batch) -> Tensor:
        """(B,K,W,H) logits of the whole batch, whoever holds its images."""
        image = batch.image
        if self.args.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with self.precision():
            logits = (self.model if self.net.training else self.net)(image)
        return self.team.gather(logits, len(batch.rows))

    def precision(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; the losses compute in fp32 whatever it is."""
        dtype = AUTOCAST.get(self.args.precision)
        return torch.autocast(self.args.device.split(":")[0], dtype) if dtype else nullcontext()

    def update(self, total: Tensor) -> None:
        """Backward and optimiser step."""
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs beside the network's weights: tensors and plain types."""
        return {
            "optimiser": self.optimiser.state_dict() if self.optimiser else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.optimiser:
            self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])


def make_optimiser(parameters: list[nn.Parameter], args: Namespace) -> torch.optim.Optimizer:
    """Adam (or AdamW) with the published betas, in one fused pass over the parameters."""
    kind = torch.optim.AdamW if args.adamw else torch.optim.Adam
    return kind(parameters, lr=args.l_rate, betas=(0.9, 0.999), weight_decay=args.weight_decay, fused=True)


def learning_rate(epoch: int, args: Namespace) -> float:
    """Linear warm-up over the first `n_warmup` epochs, times `lr_decay` every `lr_decay_epoch` epochs.

    `--flr`, or a decay of 0 as published lines write it, keeps the rate fixed.
    """
    warmup = min(1.0, (epoch + 1) / (args.n_warmup + 1))
    fixed = args.flr or args.lr_decay == 0
    return args.l_rate * warmup * (1.0 if fixed else args.lr_decay ** (epoch // args.lr_decay_epoch))
