"""Contrastive pre-training on images alone (Chaitanya et al., NeurIPS 2020): the first two of its three stages.

    1  contrastive_global   the encoder, from random weights: slices of the same partition of a volume look alike
    2  contrastive_local    the first decoder blocks, on the encoder of stage 1 as it is (--load_blocks 0): regions that
                            lie in the same place look alike, and unlike those around them
    3  supervised           the whole network, from the encoder and these blocks (--load_blocks 3), on a few labels
What attracts and what repels is said in contrastive_losses.py. The heads that make embeddings out of feature maps go
when a stage is over; the decoder beyond what a stage trains stays as it was drawn.

Where this differs from the published code on purpose: batches are whole groups of full volumes, views are drawn for
each image instead of once a batch, and the frozen encoder keeps its batch-norm statistics, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dataloader import Demand
from datasets.augmentation import GLOBAL_VIEW, LOCAL_VIEW, Augmentation
from datasets.sampling import Partitions
from datasets.streams import Batch
from methods.base import METHODS, Method
from methods.contrastive_losses import ACROSS, VERSIONS, global_loss, local_loss
from methods.embeddings import Embedder, global_head, initialise, local_head
from methods.objective import LossSum
from methods.settings import Settings, flag
from nets.weight_checks import within_memory
from processes.errors import UserError
from processes.team import ALONE, Team

MATCHES = "what is matched with what: see contrastive_losses.py"


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(Settings):
    """What both stages of the pre-training are told; each has a `strategy` with values of its own."""

    strategy: str
    n_parts: int = flag(4, "partitions of a volume along its axis; a batch has a slice of each")
    temperature: float = flag(0.1, "τ, by which cosines are divided")
    embedding: int = flag(128, "numbers in an embedding")


class Contrastive(Method):
    """What both stages share: versions of a batch, their embeddings, and one loss of all of them."""

    labelled = ()
    segments = False
    supervision = "none"
    view: ClassVar[Augmentation]  # what a random view of a slice is
    blocks = 0  # of the decoder, between the encoder and the head
    settings: ContrastiveSettings

    @classmethod
    def demand(cls, settings: ContrastiveSettings) -> Demand:
        groups = partial(Partitions, batch_size=settings.batch_size, n_parts=settings.n_parts)
        return replace(super().demand(settings), sampler=None if settings.strategy == "LR" else groups)

    def __init__(self, net: nn.Module, loss: LossSum, settings: ContrastiveSettings, team: Team = ALONE) -> None:
        check_settings(net, settings)
        self.settings = settings  # what the stages look at
        net.requires_grad_(False)
        for part in self.learning(net):
            part.requires_grad_(True)
        make = partial(self.make_head, net.widths[self.blocks])
        head = within_memory(make, f"The head of --method {settings.method}", "smaller widths or a smaller --embedding")
        head = head.apply(initialise).to(settings.device)
        super().__init__(net, loss, settings, team, Embedder(net, self.blocks, team.synchronise(head)))
        self.generator = torch.Generator(settings.device)

    def learning(self, net: nn.Module) -> list[nn.Module]:
        """The parts of the network that learn; all else stays as it came, its batch-norm statistics too."""
        raise NotImplementedError

    def make_head(self, width: int) -> nn.Module:
        """What makes embeddings out of a map of `width` channels."""
        raise NotImplementedError

    def contrast(self, embeddings: Tensor) -> dict[str, Tensor]:
        """The terms of the log, the loss "tot" first, of the embeddings (V,n,…,E) of all versions of a batch."""
        raise NotImplementedError

    @property
    def columns(self) -> list[str]:
        return ["tot", "positive", "negative"]

    @property
    def notes(self) -> list[str]:
        return [
            "positive and negative in the log are the mean cosines of what is to look alike and of what is not. The "
            "first should rise above the second; both near 1 means that everything is embedded in one point."
        ]

    def set_modes(self) -> None:
        super().set_modes()
        self.net.eval()
        for part in self.learning(self.net):
            part.train()

    def images_at_once(self, rows: Mapping[str, int]) -> int:
        return sum(VERSIONS[self.settings.strategy]) * super().images_at_once(rows)

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], None]:
        batch = batches["target"]
        versions = self.versions(batch)
        with self.settings.autocast():
            embedded = self.model(self.settings.laid_out(torch.cat(versions)))
        own = embedded.float().unflatten(0, (len(versions), len(batch.image))).transpose(0, 1)
        terms = self.contrast(self.team.gather(own, len(batch.rows)).transpose(0, 1))
        self.update(terms["tot"])
        return {name: term.detach() for name, term in terms.items()}, None

    def versions(self, batch: Batch) -> list[Tensor]:
        """This process's images (b, C, W, H) as they are, and views of them, as many as the strategy needs."""
        count, shape = len(batch.rows), batch.image.shape[1:]
        generator, share = self.generator.manual_seed(self.step_seed), self.team.share(count)
        n_plain, n_views = VERSIONS[self.settings.strategy]
        views = [self.view.draw(count, shape, generator).image(batch.image, share) for _ in range(n_views)]
        return [batch.image] * n_plain + views


@METHODS.register()
class ContrastiveGlobal(Contrastive):
    """Stage 1: the encoder learns to tell the partitions of a volume apart, of any volume and in any view."""

    example = ("--n_parts", "2")
    view = GLOBAL_VIEW

    @dataclass(frozen=True, kw_only=True)
    class Settings(ContrastiveSettings):
        strategy: Literal["GR", "GD-", "GD"] = flag("GD", MATCHES)
        head_grid: int = flag(6, "the head sees a map averaged over a grid of N x N")

    settings: Settings

    def learning(self, net: nn.Module) -> list[nn.Module]:
        return submodules(net, net.parts(0))

    def make_head(self, width: int) -> nn.Module:
        return global_head(width, self.settings.head_grid, self.settings.embedding)

    def contrast(self, embeddings: Tensor) -> dict[str, Tensor]:
        return global_loss(embeddings, self.settings.strategy, self.settings.n_parts, self.settings.temperature)


@METHODS.register()
class ContrastiveLocal(Contrastive):
    """Stage 2: the first decoder blocks learn to tell the regions of an image apart; the encoder stands still."""

    needs_weights = True
    view = LOCAL_VIEW

    @dataclass(frozen=True, kw_only=True)
    class Settings(ContrastiveSettings):
        strategy: Literal["LR", "LD"] = flag("LR", MATCHES)
        local_blocks: int = flag(3, "decoder blocks that learn")

    settings: Settings

    @property
    def blocks(self) -> int:
        return self.settings.local_blocks

    def learning(self, net: nn.Module) -> list[nn.Module]:
        return submodules(net, [prefix for prefix in net.parts(self.blocks) if prefix not in net.parts(0)])

    def make_head(self, width: int) -> nn.Module:
        return local_head(width, self.settings.embedding)

    def contrast(self, embeddings: Tensor) -> dict[str, Tensor]:
        return local_loss(embeddings, self.settings.strategy, self.settings.n_parts, self.settings.temperature)


def submodules(net: nn.Module, prefixes: Iterable[str]) -> list[nn.Module]:
    """The parts of the network that have these prefixes in its state dict."""
    return [net.get_submodule(prefix.removesuffix(".")) for prefix in prefixes]


def check_settings(net: nn.Module, settings: ContrastiveSettings) -> None:
    """Raises UserError for a setting out of range, and for a network of volumes."""
    for name, most in {"embedding": 2**14, "head_grid": 2**6, "local_blocks": 2**8, "n_parts": 2**16}.items():
        if not 1 <= (value := getattr(settings, name, 1)) <= most:
            raise UserError(f"--{name} is {value}; it must be at least 1 and at most {most}.")
    if settings.temperature <= 0:
        raise UserError(f"--temperature is {settings.temperature:g}; it must be above 0.")
    strategy, size, n_parts = settings.strategy, settings.batch_size, settings.n_parts
    if strategy in ACROSS and size < 2 * n_parts:
        raise UserError(
            f"--strategy {strategy} matches volumes with each other, and a batch of {size} slices holds one at most: "
            f"give --batch_size {2 * n_parts} or more (2 volumes x --n_parts {n_parts})."
        )
    if net.axes != 2:
        raise UserError(
            f"Contrastive pre-training compares slices, and {type(net).__name__} is a network of volumes: leave --crop "
            "out and take UNet, ResidualUNet or PooledUNet."
        )
