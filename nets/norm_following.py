"""Batch norms that normalise by statistics which follow what they see, slowly: those of RoTTA (Yuan et al., CVPR 2023).

With each batch both statistics move by a share of the way, μ ← (1 − α) μ + α μ_batch and σ² likewise, and the batch is
normalised by what they are then. So a batch of one patient, all alike, is not normalised by itself alone.
"""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nets.norm_mixing import normalised, widened


def following_norm(alpha: float, norm: _BatchNorm, maps: Tensor) -> Tensor:
    """(B, C, …) -> (B, C, …), after the norm's statistics took on their share of this batch's (biased variance).

    The gradient flows through that share.
    """
    wide = widened(maps)
    variance, mean = torch.var_mean(wide, (0, *range(2, maps.ndim)), correction=0)
    mean = torch.lerp(norm.running_mean.to(mean), mean, alpha)
    variance = torch.lerp(norm.running_var.to(variance), variance, alpha)
    norm.running_mean.copy_(mean.detach())
    norm.running_var.copy_(variance.detach())
    return normalised(norm, wide, mean, variance).to(maps.dtype)
