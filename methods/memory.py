"""Images of the past: every class has its share, the sure and the recent stay (RoTTA, Yuan et al., CVPR 2023).

A class has as many places as any other. A new image of a class that has all of its own takes the place of the worst of
these; of a class that has fewer, an empty place, or, where none is left, that of the worst of the classes with most.
The worst is the one of the highest 1 / (1 + e^(−age)) + doubt, and it stays if the new one is no better. An image's age
is the number of images since, over the number of places.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nets.probabilities import one_hot

EMPTY = -1


class Memory:
    """Up to `places` images, on the device. Nothing here waits for it."""

    def __init__(self, places: int, n_class: int, device: str) -> None:
        self.n_class, self.seen = n_class, 0
        self.images: Tensor | None = None  # (places, C, …) once one came
        self.label = torch.full((places,), EMPTY, device=device)
        self.doubt, self.since = torch.zeros(2, places, device=device)

    @property
    def held(self) -> Tensor:
        """(places,) bool: which are not empty."""
        return self.label != EMPTY

    @property
    def age(self) -> Tensor:
        """(places,) number of images since each, over that of the places."""
        return self.since / len(self.label)

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor, doubts: Tensor) -> None:
        """Images (B, C, …) one after the other, of the classes (B,) int64, with doubts (B,) in 0..1."""
        if self.images is None:
            self.images = images.new_zeros(len(self.label), *images.shape[1:])
        for image, label, doubt in zip(images.split(1), labels.split(1), doubts.float().split(1), strict=True):
            place, taken = self._place(label, doubt)
            fields = (self.images, image), (self.label, label), (self.doubt, doubt), (self.since, doubt * 0)
            for own, new in fields:
                before = own.index_select(0, place)
                own.index_copy_(0, place, torch.where(taken.view(-1, *[1] * (own.ndim - 1)), new, before))
            self.since += self.held
            self.seen += 1

    def _place(self, label: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
        """The place (1,) int64 for an image of this class (1,) and doubt (1,), and whether it gets it (1,)."""
        counts = one_hot(self.label, self.n_class).sum(0)
        least = counts.gather(0, label) < len(self.label) / self.n_class  # of its class there are fewer than its share
        most = (one_hot(self.label, self.n_class) * (counts == counts.max())).any(1)
        rivals = torch.where(least, most, self.label == label)
        badness = torch.where(rivals, self.age.sigmoid() + self.doubt, -torch.inf)
        worst, beaten = badness.argmax().view(1), badness.max() > 0.5 + doubt
        empty = (~self.held).float().argmax().view(1)
        is_free = least & ~self.held.all()
        return torch.where(is_free, empty, worst), is_free | beaten

    def recall(self) -> tuple[Tensor, Tensor]:
        """Images (N, C, …), and by their age the weights (N,) e^(−age) / (1 + e^(−age)).

        N counts the images that were ever shown, up to the places. In an empty place the first image stands again,
        with the weight 0.
        """
        among = slice(min(self.seen, len(self.label)))
        held = self.held[among]
        order = torch.where(held, torch.arange(len(held), device=held.device), 0)
        return self.images.index_select(0, order), torch.where(held, (-self.age[among]).sigmoid(), 0)

    # -- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("images", "label", "doubt", "since", "seen")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for that of another memory."""
        for name in ("label", "doubt", "since"):
            own = getattr(self, name)
            if state[name].shape != own.shape:
                raise ValueError(f"{name} of the shape {tuple(state[name].shape)}")
            own.copy_(state[name])
        images, self.seen = state["images"], state["seen"]
        if images is not None and len(images) != len(self.label):
            raise ValueError(f"{len(images)} images in {len(self.label)} places")
        self.images = None if images is None else images.to(self.label.device)
