"""The memory of RoTTA, against its rule written out with lists."""

import copy
import math

import pytest
import torch

from methods.memory import Memory
from tests.modes import Watch


class Listed:
    """The same with a list a class, of [image, doubt, age]."""

    def __init__(self, places, n_class):
        self.places, self.lists = places, [[] for _ in range(n_class)]

    def badness(self, item):
        return 1 / (1 + math.exp(-item[2] / self.places)) + item[1]

    def add(self, image, label, doubt):
        new = [image, doubt, 0]
        if len(self.lists[label]) < self.places / len(self.lists):
            largest = max(len(each) for each in self.lists)
            rivals = [each for each in self.lists if len(each) == largest]
            if sum(len(each) for each in self.lists) < self.places:
                rivals = []
        else:
            rivals = [self.lists[label]]
        if rivals:
            items = [(self.badness(item), id(each), item, each) for each in rivals for item in each]
            badness, _, item, holder = max(items)
            if badness > self.badness(new):
                holder.remove(item)
                self.lists[label].append(new)
        else:
            self.lists[label].append(new)
        for item in (item for each in self.lists for item in each):
            item[2] += 1

    def content(self):
        """Image, label, doubt and age of each, in the order of the images."""
        rows = ((item[0], label, item[1], item[2]) for label, items in enumerate(self.lists) for item in items)
        return [number for row in sorted(rows) for number in row]


def content(memory):
    rows = zip(memory.images, memory.label, memory.doubt, memory.since, memory.held, strict=True)
    told = ((i.mean().item(), k.item(), d.item(), s.item()) for i, k, d, s, held in rows if held)
    return [number for row in sorted(told) for number in row]


@pytest.mark.parametrize(("places", "n_class", "favoured"), [(6, 2, 0.5), (7, 3, 0.9), (4, 4, 0.2), (1, 1, 0.0)])
def test_it_remembers_what_the_rule_written_out_does(places, n_class, favoured):
    """Of 60 images in batches of three; the first class comes more often than the others."""
    generator = torch.Generator().manual_seed(places)
    memory, listed = Memory(places, n_class, "cpu"), Listed(places, n_class)
    for batch in range(20):
        images = torch.arange(3 * batch, 3 * batch + 3).float().view(3, 1, 1, 1).expand(3, 1, 2, 3)
        labels = torch.randint(n_class, (3,), generator=generator)
        labels = torch.where(torch.rand(3, generator=generator) < favoured, 0, labels)
        doubts = torch.rand(3, generator=generator)
        memory.add(images, labels, doubts)
        for image, label, doubt in zip(images, labels, doubts, strict=True):
            listed.add(image.mean().item(), label.item(), doubt.item())
        assert content(memory) == pytest.approx(listed.content())
    counts = [int((memory.label == k).sum()) for k in range(n_class)]
    assert max(counts) <= math.ceil(places / n_class)


def test_what_is_older_weighs_less_and_an_empty_place_nothing():
    """Four images of one class in a memory of six places for two: the fourth, no better than the others, is gone."""
    memory = Memory(6, 2, "cpu")
    memory.add(torch.arange(1.0, 5).view(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 0, 0.9]))
    images, weights = memory.recall()
    assert images.flatten().tolist() == [1, 2, 3, 1]
    assert weights.tolist() == pytest.approx([*(1 / (1 + math.exp(age / 6)) for age in (4, 3, 2)), 0])


def test_it_goes_on_from_its_state_and_refuses_another():
    one, other = Memory(3, 2, "cpu"), Memory(3, 2, "cpu")
    other.load_state_dict(one.state_dict())
    assert other.images is None
    first = (torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), torch.rand(2))
    one.add(*first)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    then = (torch.rand(3, 1, 4, 4), torch.tensor([1, 1, 0]), torch.rand(3))
    for memory in (one, other):
        memory.add(*then)
    assert all(torch.equal(a, b) for a, b in zip(one.recall(), other.recall(), strict=True))
    with pytest.raises(ValueError, match="label of the shape"):
        Memory(4, 2, "cpu").load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="2 images in 3 places"):
        other.load_state_dict(one.state_dict() | {"images": torch.zeros(2, 1, 4, 4)})


def test_nothing_looks_at_a_value():
    memory = Memory(3, 2, "cpu")
    with Watch():
        memory.add(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 1, 0]), torch.rand(4))
        memory.recall()
