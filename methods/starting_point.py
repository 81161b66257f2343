"""When an online adaptation has collapsed, and the way back: the network as it came, an optimiser without memory."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MEMORY = 0.9  # of the average of the loss
WINDOW = 5  # agreements whose mean is compared with that of as many before


class Collapse:
    """Two signs that a network has collapsed. Both begin anew once one was seen.

    The average of the loss is below a limit (SAR, Niu et al., ICLR 2023): an entropy that has nearly gone is that of a
    network which says the same of every pixel. As published the average goes on after a reset, and so may reset again
    and again. Or its agreement with itself, the mean of five steps, is lower by more than a fall than that of the five
    before (AETTA, Lee et al., CVPR 2024, where it is an estimate of the accuracy).
    """

    def __init__(self, limit: float, fall: float, device: torch.device) -> None:
        """limit of the average, 0 for none; fall of the agreement, 0 for none"""
        self.limit, self.fall = limit, fall
        self.average = torch.full((), torch.nan, device=device)  # NaN: no step yet
        self.agreements = torch.full((2 * WINDOW,), torch.nan, device=device)  # the latest last

    def seen(self, loss: Tensor, counts: Tensor, agreement: Callable[[], Tensor]) -> Tensor:
        """Whether there is a sign of it after a step, bool and on the device. Never waits for that.

        loss: scalar, taken into the average if the step `counts`; agreement: measures it, 0..1, and is called if asked
        """
        average = torch.where(self.average.isnan(), loss, MEMORY * self.average + (1 - MEMORY) * loss)
        average = torch.where(counts, average, self.average)
        collapsed, agreements = average < self.limit, self.agreements
        if self.fall:
            agreements = torch.cat([agreements[1:], agreement().to(agreements).view(1)])
            before, now = agreements.view(2, WINDOW).mean(1)
            collapsed = collapsed | (before - now > self.fall)
        self.average, self.agreements = (torch.where(collapsed, torch.nan, each) for each in (average, agreements))
        return collapsed


class StartingPoint:
    """The network as it came, and what says when to go back to it."""

    def __init__(
        self, net: nn.Module, optimiser: torch.optim.Optimizer | None, limit: float = 0.0, fall: float = 0.0
    ) -> None:
        """limit, fall: as of `Collapse`; without either nothing is kept"""
        self.net, self.optimiser = net, optimiser
        self.collapse = Collapse(limit, fall, next(net.parameters()).device)
        self.start = {name: value.clone() for name, value in net.state_dict().items()} if limit or fall else {}

    @torch.no_grad()
    def after_step(self, loss: Tensor, counts: Tensor, agreement: Callable[[], Tensor]) -> Tensor:
        """Goes back if the network has collapsed: returns 1 then, else 0, on the device. Never waits for it."""
        if not self.start:
            return torch.zeros_like(self.collapse.average)
        back = self.collapse.seen(loss, counts, agreement)
        for name, value in self.net.state_dict().items():
            value.copy_(torch.where(back, self.start[name], value))
        moments = self.optimiser.state.values() if self.optimiser else ()
        for moment in (each for of_parameter in moments for each in of_parameter.values() if each is not None):
            moment.masked_fill_(back.to(moment.device), 0)
        return back.float()

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.collapse.average, "agreements": self.collapse.agreements}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises KeyError or ValueError for another state."""
        for name, own in self.state_dict().items():
            if state[name].shape != own.shape:
                raise ValueError(f"{name} of the shape {tuple(state[name].shape)}")
            setattr(self.collapse, name, state[name].to(own))
