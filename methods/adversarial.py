"""Adversarial adaptation of the output space (AdaptSegNet: Tsai et al., CVPR 2018), and of its entropy (ADVENT).

A segmentation network learns from the labelled source. At the same time a discriminator D learns to tell its
predictions on source and target apart, and the network learns to make them look alike to D. A step has the paper's
phases:
    1  segmenter, source      L_seg(P_s, y_s), the losses of the OPT line; on the coarser levels times λ_seg
    2  segmenter, target      Σ_i λ_adv^i · L_D(D_i(P_t^i), "source"), D standing still
    3  discriminators         ½ L_D(D_i(P_s^i), "source") + ½ L_D(D_i(P_t^i), "target"), the segmenter standing still
L_D is the binary cross-entropy of D's logits (vanilla GAN) or their squared error (least squares). D sees softmax
maps; with `--d_input entropy` it sees −p log p / log K in their place, which is ADVENT (Vu et al., CVPR 2019), and
`--lambda_ent` adds its other half, MinEnt: the mean entropy of the target's prediction.

It shows what access to the source would add to source-free adaptation. It never sees the target's ground truth.
Adversarial training peaks early and then wanders: look at the curve, not at the best epoch, which labels chose.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from datasets.streams import Batch
from methods.base import METHODS, Method
from methods.discriminators import (
    AdversarialSettings,
    Levels,
    check_settings,
    entropy_map,
    running_statistics_kept,
)
from methods.objective import LossSum
from methods.optimisers import load_optimiser
from processes.team import ALONE, Team

SOURCE, TARGET = 1.0, 0.0  # what D says of them, as in the paper (the published code has it the other way round)


@METHODS.register()
class Adversarial(Method):
    """Output-space adaptation: source labels, target images, one discriminator a level."""

    streams = ("target", "source")
    example = ("--d_stride", "1", "--d_width", "4")
    labelled = ("source",)
    supervision = "source labels"
    one_pass = False

    Settings = AdversarialSettings
    settings: AdversarialSettings

    def __init__(self, net: nn.Module, loss: LossSum, settings: AdversarialSettings, team: Team = ALONE) -> None:
        check_settings(settings)
        heads = [net.make_head(level) for level in range(1, len(settings.lambda_adv))]
        groups = [*net.parameter_groups(), *((list(head.parameters()), net.head_rate) for head in heads)]
        super().__init__(net, loss, settings, team, Levels(net, heads).to(settings.device), groups)
        self.discriminators = settings.discriminators().to(settings.device)
        self.d_optimiser = torch.optim.Adam(
            [{"params": list(self.discriminators.parameters()), "initial_lr": settings.d_l_rate}],
            lr=settings.d_l_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.rates.optimisers.append(self.d_optimiser)
        self.gathered = 0  # batches whose gradients wait for their update

    @property
    def columns(self) -> list[str]:
        names = [*self.loss.columns, "entropy"] if self.settings.lambda_ent else self.loss.columns
        for level in range(1, len(self.discriminators) + 1):
            names = [*names, *([f"seg{level}"] if level > 1 else []), f"adv{level}", f"d{level}", f"d{level}_accuracy"]
        return names

    @property
    def notes(self) -> list[str]:
        return [
            *super().notes,
            "d1_accuracy in the log is the share of the discriminator's judgements that are right; 0.5 to 0.8 is fine. "
            "Near 1 it has won and teaches nothing (lower --d_l_rate, or raise --lambda_adv); at 0.5 throughout it has "
            "learnt nothing (raise --d_l_rate).",
        ]

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        source, target = batches["source"], batches["target"]
        self._clear_gradients()
        self.discriminators.requires_grad_(False)
        seen_source, terms = self.learn_source(source)
        logits, seen_target, fooling = self.fool(target)
        self.discriminators.requires_grad_(True)
        telling = self.tell_apart(seen_source, seen_target)
        self._update()
        total = terms["tot"] + fooling["tot"]
        terms |= fooling | telling | {"tot": total}
        return {name: terms[name].detach() for name in self.columns}, logits.detach()

    def learn_source(self, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Phase 1: the segmenter learns from a labelled source batch.

        Returns what the discriminators will see of each level, (B, K, W, H) without a gradient, and the scalar terms.
        """
        with nullcontext() if self.settings.bn_stats == "both" else running_statistics_kept(self.module):
            levels = self.predict_levels(batch)
        terms = self.loss(levels[0], batch.targets, batch.bounds)
        for number, logits in enumerate(levels[1:], 2):
            terms[f"seg{number}"] = self.settings.lambda_seg * self.loss(logits, batch.targets, batch.bounds)["tot"]
            terms["tot"] = terms["tot"] + terms[f"seg{number}"]
        self.backward(terms["tot"])
        return [self.settings.view(logits).detach() for logits in levels], terms

    def fool(self, batch: Batch) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Phase 2: the segmenter learns to make the target look like the source to the discriminators.

        Returns the target's logits (B, K, W, H), what the discriminators see of each level, (B, K, W, H) without a
        gradient, and the scalar terms.
        """
        levels = self.predict_levels(batch)
        seen, terms = [self.settings.view(logits) for logits in levels], {}
        for number, (weight, view, discriminator) in enumerate(
            zip(self.settings.lambda_adv, seen, self.discriminators, strict=True), 1
        ):
            terms[f"adv{number}"] = weight * self.settings.error(self.verdict(discriminator, view), SOURCE)
        if self.settings.lambda_ent:
            terms["entropy"] = self.settings.lambda_ent * entropy_map(levels[0]).sum(1).mean()
        terms["tot"] = torch.stack(list(terms.values())).sum()
        self.backward(terms["tot"])
        return levels[0], [view.detach() for view in seen], terms

    def tell_apart(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> dict[str, Tensor]:
        """Phase 3: the discriminators learn to tell the two sites apart.

        source, target: what they see of each level, (B, K, W, H). Returns the loss of each discriminator and the share
        of its judgements that are right, all scalars.
        """
        terms, border = {}, 0.0 if self.settings.gan == "vanilla" else (SOURCE + TARGET) / 2
        levels = zip(source, target, self.discriminators, strict=True)
        for number, (ours, theirs, discriminator) in enumerate(levels, 1):
            on_source, on_target = self.verdict(discriminator, ours), self.verdict(discriminator, theirs)
            terms[f"d{number}"] = (self.settings.error(on_source, SOURCE) + self.settings.error(on_target, TARGET)) / 2
            right = (on_source > border).float().mean() + (on_target <= border).float().mean()
            terms[f"d{number}_accuracy"] = right / 2
            self.backward(terms[f"d{number}"])
        return terms

    # -- its parts --------------------------------------------------------------------------------------------

    def predict_levels(self, batch: Batch) -> list[Tensor]:
        """(B, C, W, H) images -> logits (B, K, W, H) of each level, of the whole batch, the network's own first."""
        with self.settings.autocast():
            levels = self.model(self.settings.laid_out(batch.image))
        return [self.team.gather(logits, len(batch.rows)) for logits in levels]

    def predict(self, batch: Batch, size: Sequence[int] | None = None) -> Tensor:
        return self.predict_levels(batch)[0] if self.net.training else super().predict(batch, size)

    def verdict(self, discriminator: nn.Module, view: Tensor) -> Tensor:
        """(B, K, W, H) -> (B, 1, w, h): a discriminator's logits, computed at the run's precision, in fp32."""
        with self.settings.autocast():
            return discriminator(view).float()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a scalar loss: that of one batch out of --iter_size."""
        self.scaler.scale(loss / self.settings.iter_size).backward()

    def _clear_gradients(self) -> None:
        if self.gathered == 0:
            for optimiser in self.rates.optimisers:
                optimiser.zero_grad(set_to_none=True)

    def _update(self) -> None:
        self.gathered = (self.gathered + 1) % self.settings.iter_size
        if self.gathered == 0:
            self.team.average(self.discriminators.parameters())
            for optimiser in self.rates.optimisers:
                self.scaler.step(optimiser)
            self.scaler.update()
            self.anchor.pull()

    # -- state ------------------------------------------------------------------------------------------------

    def _learning(self) -> list[nn.Parameter]:
        return [p for optimiser in self.rates.optimisers for group in optimiser.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "discriminators": self.discriminators.state_dict(),
            "d_optimiser": self.d_optimiser.state_dict(),
            "gathered": self.gathered,
            "gradients": [parameter.grad for parameter in self._learning()] if self.gathered else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.discriminators.load_state_dict(state["discriminators"])
        load_optimiser(self.d_optimiser, state["d_optimiser"])
        self.gathered = range(self.settings.iter_size).index(state["gathered"])  # refuses what is not in it
        for parameter, gradient in zip(self._learning(), state["gradients"], strict=self.gathered > 0):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
