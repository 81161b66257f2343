"""What makes the batches of an epoch."""

from collections import Counter

import pytest
import torch

from datasets.sampling import FixedSteps, InOrder, Partitions, Shuffled
from processes.errors import UserError

VOLUMES = ["a"] * 5 + ["b"] * 9 + ["c"] * 4 + ["d"] * 7


def draw(sampler, seed=0):
    return sampler(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 7, 8])
def test_every_row_once(count):
    for sampler in (Shuffled(count, 4), InOrder(count, 4)):
        batches = draw(sampler)
        assert len(batches) == len(sampler)
        assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert torch.cat(draw(InOrder(count, 4))).tolist() == list(range(count))


def test_the_seed_decides():
    for sampler in (Shuffled(20, 3), Partitions(VOLUMES, 8, 4)):
        first, again, other = (torch.cat(draw(sampler, seed)).tolist() for seed in (1, 1, 2))
        assert first == again != other


def test_fixed_steps_begin_anew():
    batches = draw(FixedSteps(Shuffled(5, 2), 2, 7))
    assert [len(rows) for rows in batches] == [2] * 7
    rows = torch.cat(batches).tolist()
    assert sorted(rows[:5]) == sorted(rows[5:10]) == list(range(5))


def test_fixed_steps_put_the_rows_together_once(monkeypatch):
    """Not once for each time that the set was gone through: a set of two, and a thousand steps."""
    copied, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts: copied.append(sum(map(len, parts))) or cat(parts))
    assert len(draw(FixedSteps(Shuffled(2, 4), 4, 1000))) == 1000
    assert sum(copied) == 4000


def test_a_batch_may_be_larger_than_the_set():
    (rows,) = draw(FixedSteps(Shuffled(3, 8), 8, 1))
    assert sorted(Counter(rows.tolist()).values()) == [2, 3, 3]


def test_fixed_steps_keep_groups_whole():
    for rows in draw(FixedSteps(Partitions(VOLUMES, 8, 4), 8, 9)):
        assert [part_of(row)[1] for row in rows.tolist()] == [0, 1, 2, 3] * 2


def part_of(row):
    """Volume and quarter of a row, counted by hand: sizes 5, 9, 4, 7 in four parts, the longer ones first."""
    sizes = {"a": [2, 1, 1, 1], "b": [3, 2, 2, 2], "c": [1, 1, 1, 1], "d": [2, 2, 2, 1]}
    homes = [(volume, part) for volume, counts in sizes.items() for part, n in enumerate(counts) for _ in range(n)]
    return homes[row]


def test_partitions_give_whole_groups():
    sampler = Partitions(VOLUMES, 12, 4)
    assert len(sampler) == 3  # 25 slices, 12 a batch
    for seed in range(20):
        for rows in draw(sampler, seed):
            homes = [part_of(row) for row in rows.tolist()]
            assert [part for _, part in homes] == [0, 1, 2, 3] * 3
            volumes = [volume for volume, _ in homes]
            assert all(len(set(volumes[at : at + 4])) == 1 for at in (0, 4, 8))
            assert len(set(volumes)) == 3


def test_partitions_leave_no_slice_out():
    seen = Counter(row for seed in range(60) for rows in draw(Partitions(VOLUMES, 8, 4), seed) for row in rows.tolist())
    assert set(seen) == set(range(len(VOLUMES)))


@pytest.mark.parametrize(
    ("batch", "parts", "says"),
    [(10, 4, "multiple of n_parts"), (20, 4, "at most 4 times"), (8, 1, "2 or more"), (8, 0, "2 or more")],
)
def test_batches_that_are_no_whole_groups(batch, parts, says):
    with pytest.raises(UserError, match=says):
        Partitions(VOLUMES, batch, parts)


def test_short_volumes_are_named():
    with pytest.raises(UserError, match=r"fewer slices: a \(5\), c \(4\)"):
        Partitions(VOLUMES, 12, 6)
