"""Where a class lies in an image and how far it spreads, and what is usual of that, estimated anew after every epoch.

Shapes: B images of A axes, F classes; a shape is its centroid and its spread, (2, A) in mm.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nets.probabilities import EPS


def shapes_of(probs: Tensor, spacing_mm: Tensor) -> tuple[Tensor, Tensor]:
    """(B, F, …) probabilities -> areas (B, F) in pixels, and shapes (B, F, 2, A) in mm.

    The centroid is c = Σ p x / Σ p, from the middle of the first pixel on, the spread √(Σ p (x − c)² / Σ p).

    spacing_mm: (B, A) of a pixel along each axis
    """
    axes = range(2, probs.ndim)
    area = probs.flatten(2).sum(2)
    shapes = []
    for axis in axes:
        shares = probs.sum([other for other in axes if other != axis]) if len(axes) > 1 else probs
        shares = shares / area.clamp_min(EPS).unsqueeze(2)  # b f n
        place = torch.arange(probs.shape[axis], dtype=probs.dtype, device=probs.device)
        centre = (shares * place).sum(2, keepdim=True)
        spread = (shares * (place - centre) ** 2).sum(2).clamp_min(EPS).sqrt()
        shapes.append(torch.stack([centre.squeeze(2), spread], 2))
    return area, torch.stack(shapes, 3) * spacing_mm.to(probs.dtype)[:, None, None]


class UsualShape:
    """The mean shape of each class over the images of the epoch before. In the first epoch nothing is usual.

    A class of which no image counted keeps the shape that was usual before.
    """

    factors: None = None  # on a prior, of which there is none

    def __init__(self) -> None:
        self.mean: Tensor | None = None  # (F, 2, A) float64, NaN where nothing is known
        self.sums: Tensor | None = None  # (F, 2, A) float64 over this epoch's images
        self.counts: Tensor | None = None  # (F,) float64: the images that counted

    def begin_epoch(self, epoch: int) -> None:
        """Takes over what the last epoch saw; before the first epoch it is as if nothing was seen."""
        if epoch and self.sums is not None and self.counts is not None:
            known, counts = self._known(self.sums), self.counts[:, None, None]
            self.mean = torch.where(counts > 0, self.sums / counts.clamp_min(1), known)
        elif not epoch:
            self.mean = None
        self.sums = self.counts = None

    def _known(self, like: Tensor) -> Tensor:
        return torch.full_like(like, torch.nan) if self.mean is None else self.mean.to(like.device)

    def near(self, shapes: Tensor, counted: Tensor) -> Tensor:
        """What is usual of shapes (B, F, 2, A), in their shape; the shapes themselves where nothing is known.

        counted: (B, F) bool, those that in a step which learns count for the next epoch
        """
        seen = shapes.detach()
        usual = self._known(seen[0]).to(seen.dtype).expand_as(seen)
        if torch.is_grad_enabled():  # in an evaluation it is not
            sums = torch.where(counted[..., None, None], seen, 0).sum(0, dtype=torch.float64)
            counts = counted.sum(0, dtype=torch.float64)
            self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
            self.counts = counts if self.counts is None else self.counts.to(counts.device) + counts
        return torch.where(usual.isnan(), seen, usual)

    def state(self) -> dict[str, Any]:
        """What a resume needs."""
        held = {"mean": self.mean, "sums": self.sums, "counts": self.counts}
        return {name: values for name, values in held.items() if values is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for what cannot be a state of this."""
        mean, sums, counts = (
            state[name].double().clone() if name in state else None for name in ("mean", "sums", "counts")
        )
        shapes = [each.shape for each in (mean, sums) if each is not None]
        fits = all(len(shape) == 3 and shape[1] == 2 and shape == shapes[0] for shape in shapes)
        fits = fits and (sums is None) == (counts is None) and (mean is None or not mean.isinf().any())
        if sums is not None and counts is not None:
            fits = fits and counts.shape == sums.shape[:1] and bool(sums.isfinite().all() and (counts >= 0).all())
        if not fits:
            raise ValueError("the state of a shape that is estimated anew is none")
        self.mean, self.sums, self.counts = mean, sums, counts
