"""Pseudo labels that several views of an image agree on (UPL-SFDA: Wu et al., TMI 2023), source-free.

The network sees each image in four positions, turned by quarters of a circle, each time without other channels of the
map that its decoder begins with. Brought back to the image's place, the four predictions p_r have a mean p̄. Where a
class is more probable in it than τ, and a class of the foreground lies in its largest piece, that is the pseudo label;
other pixels have none. With L_y, the losses of the OPT line,
    L = mean_r L_y(p_r, pseudo label) + λ H(p̄),       H(p̄) = −(1/K) Σ_k p̄_k log2 p̄_k, mean over the pixels
The entropy is that of the mean: it falls where the positions agree, and not only where each is sure.

Quarters of a circle need square slices of square pixels. Others are mirrored along either axis, and along both, which
turns them round. A set that does not tell its spacing is taken for one of square pixels. Volumes are moved within
their planes.

The published network has four copies of its decoder, one a position, with dropout of single values in the first block,
and predicts with the mean of the four. Here one decoder sees all positions, and so one network is kept, which predicts
by itself; dropout takes whole channels. Published labels come from a pass of their own, before the one that learns;
here from the same. Published, background too is cut to its largest piece.

Pieces are found on the CPU: a step waits for the device once, for the labels of the batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from dataloader import AnyStream
from datasets.streams import Batch
from methods.base import METHODS, Method
from methods.feature_dropout import WithDropout
from methods.objective import LossSum
from methods.settings import flag
from methods.shares import check_losses
from nets.probabilities import log_probabilities, one_hot
from processes.errors import UserError
from processes.team import ALONE, Team

Move = Callable[[Tensor], Tensor]  # of maps (…, W, H)
POSITIONS = 4


@METHODS.register()
class UPL(Method):
    """One network, four positions of each image, labels where they agree."""

    labelled = ()
    needs_weights = True
    supervision = "none"

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        tau: float = flag(0.95, "mean probability from which on a class is believed")
        entropy_weight: float = flag(1.0, "λ of the entropy of the mean prediction")
        dropout: float = flag(0.5, "share of the channels that the decoder begins without")
        pieces: Literal["largest", "all"] = flag("largest", "of a class of the foreground in an image: believed pieces")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        check_settings(settings)
        check_losses(loss, settings.method)
        super().__init__(net, loss, settings, team, WithDropout(net))
        self.generator, self.square_pixels = torch.Generator(settings.device), True

    @property
    def columns(self) -> list[str]:
        return [*self.loss.columns, "entropy", "pseudo_share"]

    def meet(self, streams: Mapping[str, AnyStream]) -> None:
        spacings = (streams["target"].slices.spacing or {}).values()
        self.square_pixels = all(abs(w - h) <= 1e-3 * w for _, w, h in spacings)

    def images_at_once(self, rows: Mapping[str, int]) -> int:
        return POSITIONS * super().images_at_once(rows)

    def step(self, batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
        batch, settings = batches["target"], self.settings
        logits = self.positions(batch)
        mean = log_probabilities(logits.flatten(0, 1)).exp().unflatten(0, logits.shape[:2]).mean(1)
        shares = one_hot(self.pseudo_label(mean.detach()), settings.n_class)
        repeat = partial(torch.repeat_interleave, repeats=POSITIONS, dim=0)
        bounds = [bound if bound is None else repeat(bound) for bound in batch.bounds]
        terms = self.loss(logits.flatten(0, 1), [repeat(shares)] * len(self.loss.losses), bounds)
        terms["entropy"] = settings.entropy_weight * entropy_in_bits(mean)
        terms["tot"] = terms["tot"] + terms["entropy"]
        self.update(terms["tot"])
        terms["pseudo_share"] = shares[:, 1:].sum(1).mean()
        return {name: terms[name].detach() for name in self.columns}, mean.detach().log()

    def positions(self, batch: Batch) -> Tensor:
        """(B, R, K, …) logits of the whole batch in each of the R positions, brought back to the images' place."""
        count, image = len(batch.rows), batch.image
        moves = moves_of(image.shape[-2] == image.shape[-1] and self.square_pixels)
        generator = self.generator.manual_seed(self.step_seed)
        kept = torch.rand(POSITIONS, count, self.module.channels, generator=generator, device=image.device)
        kept = (kept >= self.settings.dropout) / (1 - self.settings.dropout)
        with self.settings.autocast():
            moved = torch.cat([there(image) for there, _ in moves])
            logits = self.model(self.settings.laid_out(moved), kept[:, self.team.share(count)].flatten(0, 1))
        seen = logits.unflatten(0, (POSITIONS, len(image)))
        own = [back(maps) for (_, back), maps in zip(moves, seen, strict=True)]
        return self.team.gather(torch.stack(own, 1), count)

    def pseudo_label(self, probs: Tensor) -> Tensor:
        """(B, K, …) mean probabilities -> (B, …) uint8 labels, K where there is none."""
        n_class, (confidence, best) = probs.shape[1], probs.max(1)
        label = torch.where(confidence > self.settings.tau, best, n_class).to(torch.uint8)
        if self.settings.pieces == "all":
            return label
        kept = [largest_pieces(each, n_class) for each in label.cpu().numpy()]
        return torch.from_numpy(np.stack(kept)).to(label.device, non_blocking=True)


def moves_of(quarters: bool) -> list[tuple[Move, Move]]:
    """Four ways to move maps (…, W, H), each with its way back: quarters of a circle, or mirror images."""
    if quarters:
        turn = partial(torch.rot90, dims=(-2, -1))
        return [(partial(turn, k=k), partial(turn, k=-k)) for k in range(POSITIONS)]
    mirrors = [partial(torch.flip, dims=dims) for dims in ((), (-1,), (-2,), (-2, -1))]
    return [(mirror, mirror) for mirror in mirrors]


def entropy_in_bits(probs: Tensor) -> Tensor:
    """Scalar: −(1/K) Σ_k p_k log2 p_k, the mean over images and pixels of (B, K, …); its gradient is finite at 0."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log2()).mean()


def largest_pieces(label: np.ndarray, n_class: int) -> np.ndarray:
    """A label map (W, H) or (D, W, H) whose classes of the foreground keep their largest pieces; others become n_class.

    The pixels of a piece touch by their sides.
    """
    kept = label.copy()
    for k in range(1, n_class):
        pieces, count = ndimage.label(label == k)
        if count > 1:
            kept[(pieces > 0) & (pieces != 1 + np.bincount(pieces.ravel())[1:].argmax())] = n_class
    return kept


def check_settings(settings: UPL.Settings) -> None:
    """Raises UserError that names a number out of range."""
    limits = {"tau": (0.5, 1), "dropout": (0, 1)}
    for name, (low, high) in limits.items():
        if not low <= (value := getattr(settings, name)) < high:
            raise UserError(f"--{name} is {value:g}; it is at least {low:g} and below {high:g}.")
    if settings.entropy_weight < 0:
        raise UserError(f"--entropy_weight is {settings.entropy_weight:g}; it is at least 0.")
