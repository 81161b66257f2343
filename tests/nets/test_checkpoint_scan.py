"""The quick look at a checkpoint's pickle passes what torch.save writes, and nothing that pickletools would refuse."""

import io
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from nets import checkpoint_files
from nets.checkpoint_files import NAMES, SIZES, STORAGES

PLAIN = [1.5, None, True, 2**70, -5, 70000, "ü" * 300, (), (1,), (1, 2, 3, 4), torch.Size([1, 2])]


def pickle_of(state):
    whole = io.BytesIO()
    torch.save(state, whole)
    with zipfile.ZipFile(whole) as archive:
        return archive.read("archive/data.pkl")


@pytest.fixture(scope="module")
def content():
    """Of a network with what Adam keeps, and more objects than one byte counts."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 1, 5, 5)).sum().backward()
    optimiser.step()
    many = {f"name {number}": float(number) for number in range(300)}
    return pickle_of({"net": net.state_dict(), "own": optimiser.state_dict(), "plain": PLAIN, "many": many})


def names_tensors_alone(content):
    told = [what for operation, what, _ in pickletools.genops(content) if operation.name == "GLOBAL"]
    return set(told) <= NAMES | STORAGES


def test_the_sizes_are_those_of_the_operations():
    sizes = {ord(each.code): 1 + (each.arg.n if each.arg else 0) for each in pickletools.opcodes}
    assert all(SIZES[code] == sizes.get(code) for code in range(256) if SIZES[code])


def test_what_torch_saves_passes_at_once(content, monkeypatch):
    monkeypatch.setattr(checkpoint_files.pickletools, "genops", None)
    checkpoint_files._must_name_tensors_alone(content, {})


@pytest.mark.parametrize("value", [np.float64(1), {1}, b"bytes", torch.float32, bytearray(3)], ids=repr)
def test_anything_else_does_not(value):
    found = pickle_of({"net": value})
    assert not checkpoint_files._plainly_names_tensors_alone(found)
    assert not names_tensors_alone(found) or value == {1}  # a set has an operation of its own, which torch refuses


def test_no_damage_passes_that_pickletools_would_refuse(content):
    rng, passed = np.random.default_rng(0), 0
    for _ in range(3000):
        torn = bytearray(content)
        place = int(rng.integers(len(torn)))
        torn[place : place + rng.integers(3)] = rng.bytes(rng.integers(1, 3))
        torn = bytes(torn[: rng.integers(len(torn))] if rng.random() < 0.1 else torn)
        if checkpoint_files._plainly_names_tensors_alone(torn):
            try:
                assert names_tensors_alone(torn)
            except UnicodeDecodeError:  # of a text; torch.load says the same
                continue
            passed += 1
    assert passed > 100
