"""The way back for a network whose adaptation has collapsed: all of it as it came, and an optimiser without memory."""

import torch
from torch import Tensor, nn

MEMORY = 0.9  # of the average of the loss


class StartingPoint:
    """The network as it came, and the average of a loss whose fall below a limit says that it collapsed (SAR).

    An entropy that has nearly gone is that of a network which says the same of every pixel. As published the average
    goes on after a reset, and so may reset again and again; here it begins anew.
    """

    def __init__(self, net: nn.Module, optimiser: torch.optim.Optimizer | None, limit: float) -> None:
        """limit: of the average, 0 for no reset; then nothing is kept"""
        self.net, self.optimiser, self.limit = net, optimiser, limit
        self.start = {name: value.clone() for name, value in net.state_dict().items()} if limit else {}
        self.average = torch.full((), torch.nan, device=next(net.parameters()).device)  # NaN: no step yet

    @torch.no_grad()
    def go_back(self, loss: Tensor, counts: Tensor) -> Tensor:
        """Takes the loss of a step, a scalar, into the average if it `counts`, and goes back if that is too low.

        Returns 1 if it went back, else 0, on the device. Never waits for it.
        """
        if not self.limit:
            return torch.zeros_like(self.average)
        average = torch.where(self.average.isnan(), loss, MEMORY * self.average + (1 - MEMORY) * loss)
        average = torch.where(counts, average, self.average)
        back = average < self.limit
        for name, value in self.net.state_dict().items():
            value.copy_(torch.where(back, self.start[name], value))
        moments = self.optimiser.state.values() if self.optimiser else ()
        for moment in (each for of_parameter in moments for each in of_parameter.values() if each is not None):
            moment.masked_fill_(back.to(moment.device), 0)
        self.average = torch.where(back, torch.nan, average)
        return back.float()
