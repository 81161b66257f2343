"""Consistency under random affine views: a network that says of two views of an image what it should, the same.

DG-TTA (Weihsbach et al., Sensors 2025). Each image is turned, resized and shifted twice at random; both predictions are
brought back to the image's place. Where both views show the image, M, of the foreground probabilities a and b there
    L = 1 − mean over images and classes of 2 Σ_M a b / (½ Σ_M (a + b)²)
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.draw import sampling_grid
from datasets.streams import Batch
from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import flag
from methods.sfda import SFDA
from nets.probabilities import EPS, log_probabilities
from processes.errors import UserError
from processes.team import ALONE, Team


@dataclass(frozen=True)
class View:
    """Where the pixels of a view are read in an image, and those of the image in the view: (B, W, H, 2) each."""

    there: Tensor
    back: Tensor

    def image(self, image: Tensor) -> Tensor:
        """(B, C, …, W, H) images as the view shows them; beyond its border an image goes on with its border pixels."""
        return _read(image, self.there, "border")

    def undo(self, maps: Tensor) -> Tensor:
        """(B, *, …, W, H) maps of the view, brought back; 0 where the view shows nothing of the image."""
        return _read(maps, self.back, "zeros")


def _read(maps: Tensor, grid: Tensor, beyond: str) -> Tensor:
    planes = maps.flatten(1, -3)  # of a volume, those of all channels
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode=beyond, align_corners=False).view_as(maps)


def random_view(count: int, shape: tuple[int, ...], strength: float, generator: torch.Generator) -> View:
    """Draws a view for each of `count` images (…, W, H): turned by up to `strength` radians, 1 ± strength as large, and
    shifted by up to strength of its sides. Volumes are moved within their planes.
    """
    device = generator.device
    draws = strength * (2 * torch.rand(4, count, generator=generator, device=device) - 1)
    angle, size = draws[0], draws[1].exp()
    sides = torch.tensor(shape[-2:], dtype=torch.float32).tolist()
    shift = torch.stack([draws[2] * sides[0], draws[3] * sides[1]], 1)[:, :, None, None]
    ones = torch.ones(count, 2, device=device)
    there = sampling_grid(shape, angle, size, shift, ones)
    # p is read at R(−angle) p / size + shift, so what lies at q came from size · R(angle) (q − shift)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    aside = torch.stack([cos * shift[:, 0] - sin * shift[:, 1], sin * shift[:, 0] + cos * shift[:, 1]], 1)
    back = sampling_grid(shape, -angle, 1 / size, -size[:, None, None, None] * aside, ones)
    return View(there, back)


def disagreement(first: Tensor, second: Tensor, common: Tensor) -> Tensor:
    """Scalar: 1 − the mean soft Dice of the foreground of two (B, K, …) probabilities, over the pixels (B, 1, …)."""
    a, b = ((probs * common)[:, 1:].flatten(2) for probs in (first, second))
    return 1 - (2 * (a * b).sum(2) / (((a + b) ** 2).sum(2) / 2).clamp_min(EPS)).mean()


@METHODS.register()
class Consistency(SFDA):
    """Two views of each image should be told the same; the listed losses tell what validation measures."""

    one_pass = False

    @dataclass(frozen=True, kw_only=True)
    class Settings(SFDA.Settings):
        strength: float = flag(0.05, "of the views: radians, and shares of the size and of the sides")

    settings: Settings

    def __init__(self, net: nn.Module, loss: LossSum, settings: Settings, team: Team = ALONE) -> None:
        if not 0 < settings.strength <= 1:
            raise UserError(f"--strength is above 0 and at most 1; got {settings.strength:g}.")
        if settings.device.startswith("cuda") and torch.are_deterministic_algorithms_enabled():
            raise UserError(
                "--method consistency moves predictions, and torch adds up the gradients of that in any order: "
                "leave --deterministic out."
            )
        super().__init__(net, loss, settings, team)
        self.generator = torch.Generator(settings.device)

    @property
    def columns(self) -> list[str]:
        return ["tot"]

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        count, shape = len(batch.rows), tuple(batch.image.shape[1:])
        self.generator.manual_seed(self.step_seed)  # the same in every process of a team
        views = [random_view(count, shape, self.settings.strength, self.generator) for _ in range(2)]
        share = self.team.share(count)
        probs, seen = [], []
        for view in views:
            own = View(view.there[share], view.back[share])
            log_p = log_probabilities(self.predict(replace(batch, image=own.image(batch.image))))
            probs.append(view.undo(log_p.exp()))
            seen.append(view.undo(torch.ones_like(log_p[:, :1])))
        return probs[0], {"tot": disagreement(*probs, seen[0] * seen[1])}
