"""Several processes that train one network together, and end where one process would.

The processes share out the images of each batch, gather the logits, and compute the loss of the whole batch, every
one of them: so any loss means what it means in one process, whatever it divides by. Batch normalisation takes its
statistics over the whole batch too. Started by torchrun (`make … NPROC=4`).
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=30)  # the leader may be decoding a large data set while the others wait


class Team:
    """The processes of one training; this one is number `rank` of `world`."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for the team."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` images: as many as the others, less (down to none) at the end."""
        each = -(-count // self.world)
        return slice(min(self.rank * each, count), min((self.rank + 1) * each, count))

    def gather(self, local: Tensor, count: int) -> Tensor:
        """The parts (b, …) of all processes in one (count, …) tensor, with the gradient of the own part."""
        return local if self.world == 1 else _Gather.apply(local, count, self)

    def synchronise(self, net: nn.Module) -> nn.Module:
        """The network with batch normalisation over all processes."""
        if self.world == 1:
            return net
        if next(net.parameters()).is_cuda:
            return nn.SyncBatchNorm.convert_sync_batchnorm(net)
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = WholeBatchNorm
        return net

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network as it is called in training: gradients are averaged over the processes."""
        if self.world == 1 or not any(parameter.requires_grad for parameter in net.parameters()):
            return net
        return DistributedDataParallel(net, forward_sync_buffers=False)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


ALONE = Team()


def join_team(device: str) -> tuple[Team, str]:
    """The team that torchrun announced in the environment, or nobody else; and this process's own device."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE, device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    return Team(dist.get_rank(), dist.get_world_size()), device


class _Gather(torch.autograd.Function):
    """All parts forward; backward the gradient of the own part, times the number of processes.

    Each process holds the loss of the whole batch, so the parameters' gradient is the sum over the processes of what
    flows into each part. DistributedDataParallel takes the mean: hence the factor.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor, count: int, team: Team) -> Tensor:
        ctx.team, ctx.count = team, count
        each = -(-count // team.world)
        padded = local.new_zeros(each, *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(team.world)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:count]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.team.share(ctx.count)] * ctx.team.world, None, None


class _Sum(torch.autograd.Function):
    """The sum over the processes, forward and backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        whole = grad.clone()
        dist.all_reduce(whole)
        return whole


class WholeBatchNorm(_BatchNorm):
    """Batch normalisation over the images of all processes, on the CPU, where torch's SyncBatchNorm does not run."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of spatial axes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        given = input.dtype
        input = input.to(torch.promote_types(given, torch.float32))  # sums of half precision would be a few digits
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        own = torch.tensor(float(input.numel() // input.shape[1]), dtype=input.dtype)
        count = _Sum.apply(own)
        mean = _Sum.apply(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = _Sum.apply((centred * centred).sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(given)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics, as torch's own module does."""
        self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance, factor)


def leave_team(team: Team) -> None:
    if team.world > 1:
        dist.destroy_process_group()
