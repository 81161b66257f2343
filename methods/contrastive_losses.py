"""What attracts and what repels in contrastive pre-training (Chaitanya et al., NeurIPS 2020).

With s(a, b) = cos(a, b) / τ, an anchor a costs for each of its positives b, among its negatives N,
    l(a, b) = −log( e^s(a,b) / (e^s(a,b) + Σ_{c∈N} e^s(a,c)) ),
and a loss is the sum over all such pairs divided by the number of embeddings (slices or regions) of the batch.

A batch holds one slice out of each of S partitions of m volumes, volume by volume, n = m S slices. It comes in V
versions, the slices as they are or views of them (random transforms), one after another: embedding v n + i is that of
slice i in version v.

Global, one embedding a slice:
    GR     two views of a slice; negatives are both views of all other slices                             (SimCLR)
    GD-    a slice and two views of it, three pairs; negatives are the slices of other partitions, in all versions
    GD     a slice x_i and a view x̃_i, and x_j, x̃_j of the same partition of the next volume (the last one's next is
           the first): pairs (x_i, x̃_i), (x_i, x_j), (x_j, x̃_j), (x̃_i, x̃_j); negatives as in GD-
each pair both ways; in GD a pair (x_i, x̃_i) comes twice, as that of x_i and as that of an x_j. The same partition
shows similar anatomy in all volumes: in GD- and GD it never repels itself.

Local, one embedding for each of 13 regions of a feature map:
    LR     a region in both views of a slice, both ways; negatives are its five neighbours in both views
    LD     a region in the first view of a slice: positives are the same one in the second view, and in the first view
           of the same partition of the next two volumes; negatives are its four nearest in both maps of a pair

The published divisors count a batch size bs: 2 bs for GR, 3 bs for GD-, 13 · 2 bs for LR and LD, where n = bs; and 4 bs
for GD, whose batch is two sets of bs slices: n = 2 bs.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from processes.errors import UserError

VERSIONS = {"GR": (0, 2), "GD-": (1, 2), "GD": (1, 1), "LR": (0, 2), "LD": (0, 2)}  # slices as they are, and views
ACROSS = ("GD", "LD")  # what needs two volumes or more

Place = tuple[int, int]  # of a region along W and H, in quarters of the way from the first to the last
CORNERS: Sequence[Place] = tuple(itertools.product((0, 4), repeat=2))
REGIONS: Sequence[Place] = (*itertools.product((0, 2, 4), repeat=2), *itertools.product((1, 3), repeat=2))
PLACES: Sequence[Place] = (*REGIONS, (1, 2), (2, 1), (2, 3), (3, 2))  # the last four are negatives of corners alone
SIDE = 3  # pixels of a region along each axis
LEAST = 8  # pixels of a map along each axis: on a smaller one two regions would be the same


# ------------------------------------------------------------------------------------------------- pairs


def both_ways(first: Tensor, second: Tensor) -> Tensor:
    """(T,) and (T,) -> (2T, 2): each pair, and each pair the other way round."""
    return torch.cat([torch.stack([first, second], 1), torch.stack([second, first], 1)])


def global_pairs(strategy: str, n_slices: int, n_parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(T,2) anchors and their positives; (Vn,Vn) bool, whether an embedding (column) is a negative of another (row)."""
    x, n_versions = torch.arange(n_slices, device=device), sum(VERSIONS[strategy])
    versions = [x + version * n_slices for version in range(n_versions)]
    if strategy == "GD":
        (x_i, view_i), (x_j, view_j) = versions, [version.roll(-n_parts) for version in versions]
        pairs = [(x_i, view_i), (x_i, x_j), (x_j, view_j), (view_i, view_j)]
    else:
        pairs = list(itertools.combinations(versions, 2))
    kind = (x if strategy == "GR" else x % n_parts).repeat(n_versions)
    return torch.cat([both_ways(*pair) for pair in pairs]), kind[:, None] != kind


def local_pairs(strategy: str, n_slices: int, n_parts: int, device: torch.device) -> Tensor:
    """(T,2) maps whose regions are anchors, and the maps of their positives."""
    x = torch.arange(n_slices, device=device)
    if strategy == "LR":
        return both_ways(x, x + n_slices)
    steps = range(1, min(2, n_slices // n_parts - 1) + 1)  # of two volumes, the next but one is the volume itself
    positives = [x + n_slices, *(x.roll(-step * n_parts) for step in steps)]
    return torch.cat([torch.stack([x, positive], 1) for positive in positives])


def neighbours(region: Place, count: int) -> list[int]:
    """Numbers in PLACES of the nearest regions; of equally near ones those in line along H, then in the order listed.

    A corner has only three of them close by, and takes the places between these, too. Five are the published lists;
    of four, the published code leaves out the last one listed, and this one the farthest.
    """

    def farness(other: Place) -> tuple[int, int]:
        along_w, along_h = abs(other[0] - region[0]), abs(other[1] - region[1])
        return along_w**2 + along_h**2, along_w

    around = [place for place in (PLACES if region in CORNERS else REGIONS) if place != region]
    return [PLACES.index(place) for place in sorted(around, key=farness)[:count]]


@lru_cache
def are_near(count: int, device: torch.device) -> Tensor:
    """(13,17) bool, whether a place is among the `count` neighbours of a region."""
    near = torch.zeros(len(REGIONS), len(PLACES), dtype=torch.bool)
    for number, region in enumerate(REGIONS):
        near[number, neighbours(region, count)] = True
    return near.to(device)


# ------------------------------------------------------------------------------------------------ losses


def global_loss(embeddings: Tensor, strategy: str, n_parts: int, temperature: float) -> dict[str, Tensor]:
    """The terms of `contrast` for (V, n, E) embeddings of slices, by GR, GD- or GD."""
    units = normalised(embeddings).flatten(0, 1)
    pairs, negatives = global_pairs(strategy, embeddings.shape[1], n_parts, units.device)
    anchors, positives = pairs.T
    cosines = units @ units.T
    return contrast(cosines[anchors, positives], cosines[anchors], negatives[anchors], temperature, len(units))


def local_loss(embeddings: Tensor, strategy: str, n_parts: int, temperature: float) -> dict[str, Tensor]:
    """The terms of `contrast` for (2, n, 17, E) embeddings of the regions at PLACES in two views, by LR or LD."""
    units, n_regions = normalised(embeddings).flatten(0, 1), len(REGIONS)
    anchors, positives = local_pairs(strategy, embeddings.shape[1], n_parts, units.device).T
    regions = units[anchors, :n_regions]
    within, across = (torch.einsum("tre,tpe->trp", regions, units[maps]) for maps in (anchors, positives))
    near = are_near(5 if strategy == "LR" else 4, units.device)
    negatives = near.repeat(1, 2).expand(len(anchors), -1, -1)
    same = across.diagonal(dim1=1, dim2=2)
    return contrast(same, torch.cat([within, across], 2), negatives, temperature, len(units) * n_regions)


def normalised(embeddings: Tensor) -> Tensor:
    """(…, E) embeddings -> (…, E) of length 1, in fp32 at least."""
    return F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=-1)


def contrast(positive: Tensor, others: Tensor, negatives: Tensor, temperature: float, count: int) -> dict[str, Tensor]:
    """Scalars: "tot" = Σ l(a, b) / count, and the mean cosine of anchors to their "positive" and to their "negative".

    positive: (…) cosine of each anchor and its positive
    others: (…,M) cosines of the anchor and the rest of the batch; `negatives` (…,M) says which of them count
    """
    repulsion = (others / temperature).masked_fill(~negatives, -torch.inf).logsumexp(-1)
    loss = F.softplus(repulsion - positive / temperature)  # −log(e^s / (e^s + e^r)) = log(1 + e^(r−s))
    negative = (others * negatives).sum() / negatives.sum()
    return {"tot": loss.sum() / count, "positive": positive.mean(), "negative": negative}


# ----------------------------------------------------------------------------------------------- regions


def cut_regions(maps: Tensor) -> Tensor:
    """(B,C,w,h) -> (B,17,9C), the pixels of the region at each of PLACES.

    The last region begins 4 pixels before the end of a map, as published, so that its last row and column are unseen.
    Raises UserError for a map on which regions coincide.
    """
    *_, width, height = maps.shape
    if min(width, height) < LEAST:
        raise UserError(
            f"The local contrastive loss compares {len(REGIONS)} regions of {SIDE}x{SIDE} pixels, for which a feature "
            f"map needs at least {LEAST} pixels along each axis; this one has {width} x {height}. Give more decoder "
            "blocks (--local_blocks), or larger images."
        )
    starts = [((width - 4) * w // 4, (height - 4) * h // 4) for w, h in PLACES]
    return torch.stack([maps[..., w : w + SIDE, h : h + SIDE].flatten(1) for w, h in starts], 1)
