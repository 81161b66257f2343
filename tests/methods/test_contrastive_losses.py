"""Contrastive losses: who attracts and repels whom, and what it costs, against the paper's formula pair by pair."""

import itertools
import math

import pytest
import torch

from methods.contrastive_losses import (
    LEAST,
    PLACES,
    REGIONS,
    cut_regions,
    global_loss,
    global_pairs,
    local_loss,
    local_pairs,
    neighbours,
)
from processes.errors import UserError

CPU = torch.device("cpu")
GLOBAL = {"GR": 2, "GD-": 3, "GD": 2}  # versions of a batch


def embeddings(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cost(anchor, positive, negatives, temperature):
    """l(a, b), as it is written in the paper."""

    def e(other):
        return math.exp(torch.cosine_similarity(anchor, other, dim=0).item() / temperature)

    return -math.log(e(positive) / (e(positive) + sum(e(negative) for negative in negatives)))


def literal_global(z, strategy, temperature):
    """z: (V,m,S,E)."""
    n_versions, n_volumes, n_parts, _ = z.shape
    total, bs = 0.0, n_volumes * n_parts
    for i, s in itertools.product(range(n_volumes), range(n_parts)):
        j, everything = (
            (i + 1) % n_volumes,
            list(itertools.product(range(n_versions), range(n_volumes), range(n_parts))),
        )
        if strategy == "GR":
            pairs, divisor = [((0, i), (1, i))], 2 * bs
            negatives = [z[each] for each in everything if each[1:] != (i, s)]
        else:
            pairs, divisor = [((a, i), (b, i)) for a, b in ((0, 1), (0, 2), (1, 2))], 3 * bs
            negatives = [z[each] for each in everything if each[2] != s]
        if strategy == "GD":
            pairs, divisor = [((0, i), (1, i)), ((0, i), (0, j)), ((0, j), (1, j)), ((1, i), (1, j))], 4 * bs / 2
        for a, b in pairs:
            total += cost(z[*a, s], z[*b, s], negatives, temperature) + cost(z[*b, s], z[*a, s], negatives, temperature)
    return total / divisor


def literal_local(f, strategy, temperature):
    """f: (2,m,S,17,E)."""
    _, n_volumes, n_parts, _, _ = f.shape
    total, bs = 0.0, n_volumes * n_parts
    for i, s, (u, region) in itertools.product(range(n_volumes), range(n_parts), enumerate(REGIONS)):
        first, second = f[0, i, s], f[1, i, s]
        pairs, n_near = [(first, second), (second, first)], 5
        if strategy == "LD":
            others = {(i + 1) % n_volumes, (i + 2) % n_volumes} - {i}
            pairs, n_near = [(first, second), *((first, f[0, j, s]) for j in others)], 4
        near = neighbours(region, n_near)
        for ours, theirs in pairs:
            negatives = [each[v] for v in near for each in (ours, theirs)]
            total += cost(ours[u], theirs[u], negatives, temperature)
    return total / 13 / (2 * bs)


# -- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("n_volumes", [2, 3, 4])
@pytest.mark.parametrize(("strategy", "n_versions"), GLOBAL.items())
def test_global_losses_are_the_paper_s(strategy, n_versions, n_volumes, temperature):
    z = embeddings(n_versions, n_volumes, 3, 5)
    found = global_loss(z.flatten(1, 2), strategy, 3, temperature)["tot"].item()
    assert found == pytest.approx(literal_global(z, strategy, temperature), rel=1e-7)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize(("strategy", "n_volumes"), [("LR", 1), ("LR", 2), ("LD", 2), ("LD", 3), ("LD", 4)])
def test_local_losses_are_the_paper_s(strategy, n_volumes, temperature):
    f = embeddings(2, n_volumes, 2, 17, 5)
    found = local_loss(f.flatten(1, 2), strategy, 2, temperature)["tot"].item()
    assert found == pytest.approx(literal_local(f, strategy, temperature), rel=1e-7)


def loss_of(strategy, z, temperature=0.1):
    return (global_loss if strategy in GLOBAL else local_loss)(z, strategy, 2, temperature)


def some(strategy, **more):
    """Embeddings of two volumes of two partitions."""
    places = [len(PLACES)] * (strategy not in GLOBAL)
    return embeddings(GLOBAL.get(strategy, 2), 4, *places, 6, **more)


STRATEGIES = [*GLOBAL, "LR", "LD"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients(strategy):
    z = some(strategy).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss_of(strategy, z)["tot"], z, fast_mode=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lengths_count_for_nothing_and_versions_may_change_places(strategy):
    z = some(strategy)
    lengths = some(strategy, seed=1)[..., :1].abs() + 0.1
    expected = loss_of(strategy, z)["tot"]
    assert torch.allclose(loss_of(strategy, lengths * z)["tot"], expected)
    if strategy != "LD":  # whose anchors are all in the first view
        assert torch.allclose(loss_of(strategy, z.flip(0))["tot"], expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_volumes_and_parts_counts_for_nothing(strategy):
    z = some(strategy).unflatten(1, (2, 2))
    expected = loss_of(strategy, z.flatten(1, 2))["tot"]
    for axis in (1, 2):
        assert torch.allclose(loss_of(strategy, z.flip(axis).flatten(1, 2))["tot"], expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_are_finite_in_fp32_at_any_temperature(strategy):
    z = some(strategy).bfloat16().requires_grad_()
    terms = loss_of(strategy, z, temperature=1e-3)
    terms["tot"].backward()
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms["tot"].isfinite()
    assert z.grad.isfinite().all()


def test_the_log_shows_the_mean_cosine_of_pairs_and_of_negatives():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1, 1)  # two views, alike; two slices, at right angles
    terms = global_loss(z, "GR", 2, 0.5)
    assert terms["positive"] == 1
    assert terms["negative"] == 0
    assert terms["tot"].item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))


# -- who is with whom ------------------------------------------------------------------------------------------------


def global_sets(strategy):
    """Of two volumes (1, 2) of two partitions (a, b), whose views end in ' and '': pairs, and negatives by anchor."""
    names = [slice_ + mark for mark in ("", "'", "''") for slice_ in ("1a", "1b", "2a", "2b")]
    pairs, negatives = global_pairs(strategy, 4, 2, CPU)
    repelled = {names[row]: {names[i] for i in mask.nonzero().flatten()} for row, mask in enumerate(negatives)}
    return [(names[a], names[b]) for a, b in pairs], repelled


def test_simclr_repels_all_other_slices():
    pairs, negatives = global_sets("GR")
    views = [(name, f"{name}'") for name in ("1a", "1b", "2a", "2b")]
    assert sorted(pairs) == sorted(views + [(b, a) for a, b in views])
    assert negatives["1a"] == negatives["1a'"] == {"1b", "1b'", "2a", "2a'", "2b", "2b'"}


def test_without_cross_volume_pairs_three_versions_attract_each_other_and_no_partition_repels_itself():
    pairs, negatives = global_sets("GD-")
    of_1a = [pair for pair in pairs if "1a" in pair[0]]
    assert sorted(of_1a) == sorted(itertools.permutations(("1a", "1a'", "1a''"), 2))
    assert len(pairs) == 4 * len(of_1a)
    a, b = ({f"{volume}{part}{mark}" for volume in "12" for mark in ("", "'", "''")} for part in "ab")
    assert {frozenset(negatives[name]) for name in a} == {frozenset(b)}
    assert {frozenset(negatives[name]) for name in b} == {frozenset(a)}


def test_the_same_partition_of_the_next_volume_attracts():
    pairs, negatives = global_sets("GD")
    square = [("1a", "1a'"), ("1a", "2a"), ("2a", "2a'"), ("1a'", "2a'")]
    both = [*square, *((b, a) for a, b in square)]
    assert sorted(pair for pair in pairs if "a" in pair[0]) == sorted(2 * both)  # each volume is the other's next
    assert negatives["1a"] == negatives["2a'"] == {"1b", "1b'", "2b", "2b'"}


def test_of_an_odd_number_of_volumes_the_last_is_followed_by_the_first():
    pairs, _ = global_pairs("GD", 3 * 2, 2, CPU)
    across = {(a, b) for a, b in pairs.tolist() if a % 6 != b % 6 and max(a, b) < 6}
    assert across == {(a, b) for a, b in itertools.product(range(6), repeat=2) if a % 2 == b % 2 and a != b}


@pytest.mark.parametrize("n_volumes", [2, 3, 4])
def test_local_partners_are_the_own_other_view_and_the_next_two_volumes(n_volumes):
    n = 2 * n_volumes
    pairs = local_pairs("LD", n, 2, CPU).tolist()
    for i in range(n):
        expected = {i + n, *((i + 2 * step) % n for step in (1, 2))} - {i}
        found = [b for a, b in pairs if a == i]
        assert set(found) == expected
        assert len(found) == len(expected)
    assert local_pairs("LR", n, 2, CPU).tolist() == [[i, (i + n) % (2 * n)] for i in range(2 * n)]


# -- regions ---------------------------------------------------------------------------------------------------------

# By quarters of the way along W and H, as published.
LISTED = {
    (0, 0): "02 11 12 20 21", (0, 2): "00 04 11 13 22", (0, 4): "02 12 13 23 24",
    (2, 0): "00 11 22 40 31", (2, 2): "11 13 31 33 20", (2, 4): "04 22 44 13 33",
    (4, 0): "20 21 42 31 32", (4, 2): "22 40 44 31 33", (4, 4): "23 24 42 33 32",
    (1, 1): "00 02 20 22 13", (1, 3): "02 04 11 22 24",
    (3, 1): "20 22 40 42 33", (3, 3): "22 24 42 44 31",
}  # fmt: skip


def test_neighbours_are_the_published_ones():
    assert set(REGIONS) == set(LISTED)
    for region in REGIONS:
        assert sorted("{}{}".format(*PLACES[i]) for i in neighbours(region, 5)) == sorted(LISTED[region].split())
        assert neighbours(region, 4) == neighbours(region, 5)[:4]


def test_regions_of_the_published_map_begin_at_0_11_22_33_and_44():
    w, h = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    cut = cut_regions(torch.stack([w, h])[None]).view(len(PLACES), 2, 3, 3)
    for (quarter_w, quarter_h), region in zip(PLACES, cut, strict=True):
        assert torch.equal(region[0], (11 * quarter_w + torch.arange(3))[:, None].expand(3, 3))
        assert torch.equal(region[1], (11 * quarter_h + torch.arange(3)).expand(3, 3))


@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (16, 10), (40, 40)])
def test_regions_lie_inside_a_map_and_differ(shape):
    cut = cut_regions(torch.arange(math.prod(shape)).view(1, 1, *shape))
    assert cut.shape == (1, 17, 9)
    assert len({tuple(region) for region in cut[0].tolist()}) == 17


@pytest.mark.parametrize("shape", [(LEAST - 1, 48), (48, LEAST - 1)])
def test_a_map_too_small_for_regions_is_refused(shape):
    with pytest.raises(UserError, match="at least 8 pixels.*--local_blocks"):
        cut_regions(torch.zeros(1, 1, *shape))
