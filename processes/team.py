"""Several processes that train one network together, and end where one process would.

The processes share out the images of each batch, gather the logits, and compute the loss of the whole batch, every
one of them: so any loss means what it means in one process, by whatever it divides. Batch normalisation takes its
statistics over the whole batch too. Started by torchrun (`make … NPROC=4`).
"""

import inspect
import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

# The leader may be decoding a large data set, or measuring the surfaces of hundreds of volumes, while the others wait.
# This is not what finds a process that died: torchrun ends the others at once.
TIMEOUT = timedelta(hours=12)


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

    def idle(self, count: int) -> int:
        """How many processes have none of `count` images."""
        return sum(len(range(count)[Team(rank, self.world).share(count)]) == 0 for rank in range(self.world))

    def gather(self, local: Tensor, count: int) -> Tensor:
        """Joins the parts (b, …) of all processes in one tensor (count, …). The gradient flows into the own part."""
        return local if self.world == 1 else _Gather.apply(local, count, self)

    def synchronise(self, net: nn.Module) -> nn.Module:
        """The network with batch normalisation over all processes."""
        for module in net.modules() if self.world > 1 else ():
            if isinstance(module, _BatchNorm):
                module.__class__ = WholeBatchNorm
        return net

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network as it is called in training: gradients are averaged over the processes."""
        if self.world == 1 or not any(parameter.requires_grad for parameter in net.parameters()):
            return net
        known = inspect.signature(DistributedDataParallel).parameters
        # the name depends on the age of torch
        buffers = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known)
        return DistributedDataParallel(net, **{buffers: False})

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes the gradients of parameters outside `wrap` the same bits in every process: their mean."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        for gradient, mean in zip(gradients, (whole / self.world).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def slowest(self, value: float, device: str) -> float:
        """The largest of what the processes measured, in all of them."""
        if self.world == 1:
            return value
        whole = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(whole, dist.ReduceOp.MAX)
        return float(whole)

    def heard(self, value: float, device: str) -> float:
        """The value that the leader has, in all processes."""
        if self.world == 1:
            return value
        whole = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(whole, 0)
        return float(whole)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


ALONE = Team()


def join_team(device: str) -> tuple[Team, str]:
    """The team that torchrun announced in the environment, or nobody else; and this process's own device.

    Processes that share a GPU speak over gloo, as NCCL refuses that: it is slower than one process alone, and shows on
    a single GPU that a training on several is right.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE, device
    if device.startswith("cuda"):
        device, is_own = _gpu_of(device, int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") and is_own else "gloo", timeout=TIMEOUT)
    return Team(dist.get_rank(), dist.get_world_size()), device


def _gpu_of(device: str, rank: int) -> tuple[str, bool]:
    """The GPU of process `rank` of this machine, and whether each process here has one of its own."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    here = torch.cuda.device_count()
    return (f"cuda:{rank % here}", together <= here) if device == "cuda" else (device, together == 1)


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


class _Normalise(torch.autograd.Function):
    """Batch normalisation over the images of all processes. Any of them may have none.

    Two sums over the processes forward and one backward, always in float32 or wider: a process without an image sends
    zeros of the type that the others send. Kept for the way back: the input as it came, and vectors of C.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B,C,…) -> the same normalised; the mean (C,), and the variance (C,) over n - 1."""
        wide = input.to(torch.promote_types(input.dtype, torch.float32))  # half precision would sum to a few digits
        axes, shape = _around_channels(input)
        whole = torch.cat([wide.sum(axes), wide.new_full((1,), input.numel() // input.shape[1])])
        dist.all_reduce(whole)
        count, mean = whole[-1], whole[:-1] / whole[-1]
        centred = wide - mean.view(shape)
        squares = (centred * centred).sum(axes)
        dist.all_reduce(squares)
        scale = (squares / count + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, scale, count)
        output = centred * (scale * weight).view(shape) + bias.view(shape)
        unbiased = squares / (count - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return output.to(input.dtype), mean, unbiased

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        input, weight, mean, scale, count = ctx.saved_tensors
        axes, shape = _around_channels(input)
        grad = grad.to(mean.dtype)
        normal = (input.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([grad.sum(axes), (grad * normal).sum(axes)])
        whole = own.clone()
        dist.all_reduce(whole)
        along, across = (part.view(shape) for part in whole / count)
        back = (grad - along - normal * across) * (scale * weight).view(shape)
        return back.to(input.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _around_channels(input: Tensor) -> tuple[list[int], list[int]]:
    """The axes of (B,C,…) but that of the channels, and the shape in which (C,) spreads over it."""
    return [axis for axis in range(input.ndim) if axis != 1], [-1 if axis == 1 else 1 for axis in range(input.ndim)]


class WholeBatchNorm(_BatchNorm):
    """Batch normalisation over the images of all processes, on any device.

    Unlike torch's SyncBatchNorm it never waits for the device, and holds where a process has no image.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of spatial axes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        self._follow(mean, variance)
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics, as torch's own module does."""
        self.num_batches_tracked.add_(1)
        factor = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


def leave_team(team: Team) -> None:
    if team.world > 1:
        dist.destroy_process_group()
