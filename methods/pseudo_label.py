"""Bayesian pseudo labels (SegPL and SegPL-VI: Xu et al., MICCAI 2022, MedIA 2024), and their source-free relative.

Few images have ground truth, many have none. One network sees both in one pass, and where its foreground is more
probable than a threshold, its own prediction becomes the label of the images without:
    ŷ = argmax_{k ≥ 1} p_k where that p_k > T_h, else background            (two classes: ŷ = 1[σ(f/T) > T_h])
    L = L_sup(labelled) + β α(t) L_sup(unlabelled, ŷ) + κ α(t) KL           L_sup: the losses of the OPT line
α(t) is 0 until --warmup_start of the training, rises to --alpha over --warmup of it, and stays.

SegPL has a fixed T_h. In SegPL-VI it is a latent variable with the prior N(μ_p, σ_p²) and a posterior N(μ_q, σ_q²) in
256 dimensions. Two linear layers predict the posterior from the pooled map that the classifier reads. A step has one
T_h, the mean of a draw over its images and the dimensions. A step whose pseudo labels cost nothing, or whose T_h lies
outside of (--conf_lower, 1), learns from the ground truth alone.

A T_h that lies further than 2 σ_p from μ_p is μ_p here. The published training has this rule commented out: there a
fresh network draws a T_h near 0, at which nearly everything is foreground, until the KL has moved it. --threshold_draw
published does the same, and draws with the deviation that the layers predict, whatever --post_sd says of the KL.

The KL adds up 256 dimensions and begins in the hundreds, where the other losses are below 1. As published its gradient
goes through the pooled map into the network, which then unlearns to segment; a short training does not come back from
there. So here it ends in the linear layers, unless --threshold_moves network.

A comparison has no gradient, so as published the losses never move T_h: the KL alone does, and the "learnt" threshold
goes to its prior, whatever the images. With --straight_through the label is 1[p > T_h] in value and σ((p − T_h)/s) in
gradient. Then the losses move T_h too, to where the pseudo labels agree with the prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dataloader import Demand
from datasets.streams import Batch
from methods.base import METHODS, Method
from methods.objective import LossSum
from methods.settings import flag
from methods.thresholds import (
    ThresholdSettings,
    WithThreshold,
    check_losses,
    check_settings,
    mean_foreground,
    pseudo_label,
    ramp_up,
    sd_of,
    straight_through,
)
from nets.probabilities import log_probabilities
from processes.team import ALONE, Team


@METHODS.register()
class PseudoLabel(Method):
    """Labelled target images, and images without labels whose labels the network makes up."""

    streams = ("target", "unlabelled")
    supervision = "few labels"

    @dataclass(frozen=True, kw_only=True)
    class Settings(ThresholdSettings):
        batch_u: int = flag(1, "images without labels in a step (0: supervised)")
        warmup_start: float = flag(0.4, "share of the training before α rises")
        warmup: float = flag(0.1, "share of the training in which α rises")

    settings: ThresholdSettings

    @classmethod
    def demand(cls, settings: ThresholdSettings) -> Demand:
        demand = super().demand(settings)
        sizes = demand.streams | ({"unlabelled": settings.batch_u} if "unlabelled" in cls.streams else {})
        return replace(demand, streams={name: size for name, size in sizes.items() if size})

    def __init__(self, net: nn.Module, loss: LossSum, settings: ThresholdSettings, team: Team = ALONE) -> None:
        check_settings(settings)
        check_losses(loss, settings, sized="unlabelled" not in self.streams)
        self.progress, self.generator = 0.0, torch.Generator(settings.device)
        self.makes_labels = len(self.demand(settings).streams) > len(self.labelled)
        self.learns_threshold = self.makes_labels and settings.threshold == "learnt"
        super().__init__(net, loss, settings, team, self.with_threshold(net, settings))

    def with_threshold(self, net: nn.Module, settings: ThresholdSettings) -> nn.Module:
        """The network with the layers that its threshold needs."""
        drawn = settings.post_sd == 0 or settings.threshold_draw == "published"
        wanted = {"mean": settings.post_mu == 0, "log_variance": drawn}
        learnt = [name for name, is_learnt in wanted.items() if is_learnt and self.learns_threshold]
        module = WithThreshold(net, learnt, settings.threshold_moves == "head").to(settings.device)
        if "log_variance" in learnt and settings.post_sd and not settings.straight_through:
            module.head["log_variance"].requires_grad_(False)  # drawn with, and learnt by nothing
        return module

    @property
    def columns(self) -> list[str]:
        names = list(self.loss.columns) if self.labelled else ["tot"]
        names += ["unlabelled", "threshold", "pseudo_share"] if self.makes_labels else []
        return names + (["kl", "prior_mu", "prior_sd"] if self.learns_threshold else [])

    @property
    def notes(self) -> list[str]:
        if self.settings.straight_through or not self.learns_threshold or self.settings.predicts_nothing:
            return super().notes
        return [
            *super().notes,
            "The KL alone moves the threshold, as published, and so to its prior, whatever the images; "
            "--straight_through lets the losses on the pseudo labels move it too.",
        ]

    def begin_step(self, progress: float, seed: int = 0) -> None:
        super().begin_step(progress, seed)
        self.progress = progress

    def images_at_once(self, rows: Mapping[str, int]) -> int:
        return sum(rows.values())  # one pass sees those with labels and those without

    # -- a step -----------------------------------------------------------------------------------------------

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        known = [batches[name] for name in self.labelled]
        unknown = [batch for name, batch in batches.items() if name not in self.labelled]
        logits, head = self.see(known + unknown)
        terms: dict[str, Tensor] = {}
        for batch, seen in zip(known, logits, strict=False):
            terms |= self.loss(seen, batch.targets, batch.bounds)
        for batch in unknown:
            terms |= self.learn_pseudo(batch, logits, head)
        for batch in known:
            terms = self.without_empty(batch, terms)
        parts = [terms[name] for name in ("tot", "unlabelled", "kl") if name in terms]
        terms["tot"] = torch.stack(parts).sum()
        self.update(terms["tot"])
        return {name: terms[name].detach() for name in self.columns}, logits[0].detach()

    def see(self, batches: Sequence[Batch]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """In one pass the logits (B,K,…) of each batch, and what the head says of all their images (ΣB,256)."""
        with self.settings.autocast():
            logits, head = self.model(self.settings.laid_out(torch.cat([batch.image for batch in batches])))
        return self.whole(logits, batches), {name: torch.cat(self.whole(part, batches)) for name, part in head.items()}

    def whole(self, own: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
        """For each batch the rows (B, …) of all processes.

        own: (b, …) this process's share of each batch, one after the other
        """
        parts = own.split([len(batch.image) for batch in batches])
        return [self.team.gather(part, len(batch.rows)) for part, batch in zip(parts, batches, strict=True)]

    def predict(self, batch: Batch, size: Sequence[int] | None = None) -> Tensor:
        return self.see([batch])[0][0] if self.net.training else super().predict(batch, size)

    def learn_pseudo(self, batch: Batch, logits: Sequence[Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scalar terms of the batch without labels. Its logits are the last of `logits`, each (B, K, …)."""
        settings, n_loss = self.settings, len(self.loss.losses)
        terms = self.draw_threshold(logits, head)
        threshold = terms["threshold"]
        probs = log_probabilities(logits[-1].detach() / settings.temperature).exp()
        label = pseudo_label(probs, threshold)
        share = (label > 0).float().mean()
        target = straight_through(probs, threshold) if settings.straight_through else label
        cost = self.loss(logits[-1], [target] * n_loss, batch.bounds or [None] * n_loss)["tot"]
        # Not "is inside", which a NaN is not: it has to reach the guard of the training.
        outside = (threshold <= settings.conf_lower) | (threshold >= 1)
        idle = outside | (cost <= 0) | (share < settings.skip_empty)
        ramp = settings.alpha * ramp_up(self.progress / settings.n_epoch, settings.warmup_start, settings.warmup)
        terms |= {"pseudo_share": share, "unlabelled": (settings.beta * ramp * cost).masked_fill(idle, 0)}
        if self.learns_threshold:
            terms["kl"] = (settings.kl_weight * ramp * terms["kl"]).masked_fill(idle, 0)
        return terms

    def without_empty(self, batch: Batch, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scalar terms.

        Those that are learnt from are 0 if the ground truth has too little foreground (--skip_empty).
        """
        truth = batch.targets[0]
        empty = ((truth > 0) & (truth < self.settings.n_class)).float().mean() < self.settings.skip_empty
        learnt = {*self.loss.columns, "unlabelled", "kl"}
        return {name: term.masked_fill(empty, 0) if name in learnt else term for name, term in terms.items()}

    # -- the threshold ----------------------------------------------------------------------------------------

    def draw_threshold(self, logits: Sequence[Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars: "threshold", and where it is learnt "kl", "prior_mu" and "prior_sd"."""
        if not self.learns_threshold:
            return {"threshold": torch.full((), self.settings.threshold_value, device=logits[0].device)}
        confidence = mean_foreground(logits)
        if self.settings.threshold_moves == "head":
            confidence = confidence.detach()  # or the KL would learn to be unsure
        prior = self.settings.prior(confidence)
        posterior = self.settings.posterior(confidence, head, sum(map(len, logits)))
        # The same in every process, which the state of torch's own generator is not.
        self.generator.manual_seed(self.step_seed)
        noise = torch.randn(posterior.mean.shape, generator=self.generator, device=confidence.device)
        as_published = self.settings.threshold_draw == "published"
        spread_of_draw = sd_of(head["log_variance"]) if as_published else posterior.sd
        threshold = (posterior.mean + noise * spread_of_draw).mean()
        if not as_published:
            threshold = torch.where((threshold - prior.mean).abs() > 2 * prior.sd, prior.mean, threshold)
        kl = posterior.kl(prior)
        kl = kl.mean() if self.settings.predicts_nothing else kl.sum(1).mean()  # numbers, or 256 dimensions
        return {"threshold": threshold, "kl": kl, "prior_mu": prior.mean, "prior_sd": prior.sd}
