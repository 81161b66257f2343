"""What contrastive pre-training compares: embeddings of whole images, and of regions of a decoder's maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.contrastive_losses import SIDE, cut_regions

HIDDEN = 1024  # units between the encoder and an embedding


class Embedder(nn.Module):
    """The network up to its decoder block `blocks` (0: the encoder alone), and a head that makes embeddings of it."""

    def __init__(self, net: nn.Module, blocks: int, head: nn.Module) -> None:
        super().__init__()
        self.net, self.blocks, self.head = net, blocks, head

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, W, H) images -> (B, …, E) embeddings."""
        return self.head(self.net.decode(self.net.encode(self.net.pad(image)), self.blocks)[-1])


class GridPool(nn.Module):
    """(B,C,w,h) -> (B,C,grid,grid): torch's adaptive average pooling, whose gradient there is not deterministic."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, maps: Tensor) -> Tensor:
        along_w, along_h = (
            F.adaptive_avg_pool1d(torch.eye(size, dtype=maps.dtype, device=maps.device), self.grid)
            for size in maps.shape[-2:]
        )
        return torch.einsum("bcwh,wu,hv->bcuv", maps, along_w, along_h)


class Regions(nn.Module):
    """(B,C,w,h) -> (B,17,9C), by `cut_regions`."""

    def forward(self, maps: Tensor) -> Tensor:
        return cut_regions(maps)


def global_head(width: int, grid: int, embedding: int) -> nn.Module:
    """g1: (B,width,w,h) -> (B,embedding)."""
    hidden = nn.Linear(width * grid**2, HIDDEN, bias=False)
    return nn.Sequential(GridPool(grid), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(HIDDEN, embedding, bias=False))


def local_head(width: int, embedding: int) -> nn.Module:
    """g2 and the layer that all regions share: (B,width,w,h) -> (B,17,embedding)."""
    first, second = (nn.Conv2d(width, width, 1, bias=False) for _ in range(2))
    shared = nn.Linear(SIDE**2 * width, embedding, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), second, Regions(), shared)


def initialise(module: nn.Module) -> None:
    """For `apply`: draws the weights of convolutions and linear layers by Xavier."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
