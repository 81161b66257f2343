"""Slow transcriptions in float64 of what `selection` measures, pixel by pixel, and a small world to try them on."""

import itertools
from collections import deque
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import nn

from engine.arguments import get_args
from methods.settings import Settings
from selection.measuring import Measured, measure, per_patient
from selection.validators import Evidence
from selection.views import MIXED, VIEWS
from utils import settings_of

PASSES = ("clean", *VIEWS)
MADE = (*sorted(PASSES, key=("clean", "dropout").__contains__, reverse=True), "mixture")  # in this order
EPS = 1e-10


@cache
def settings(n_class=2, **more):
    """Those of a run on the CPU."""
    words = f"--target_dataset x --workdir x --n_class {n_class} --grp_regex x --target_folders x --target_losses x"
    return replace(settings_of(Settings, vars(get_args([*words.split(), "--cpu"]))), **more)


class Small(nn.Module):
    """A convolution, and a classifier with a bias of its own for each class; it notes what it is given and says."""

    def __init__(self, n_class, axes, channels=1, bias=None, seed=0, gain=4.0):
        super().__init__()
        torch.manual_seed(seed)
        convolution = nn.Conv2d if axes == 2 else nn.Conv3d
        self.body = convolution(channels, 12, 3, padding=1)
        self.classifier = convolution(12, n_class, 1)
        self.calls, self.computed = [], 0
        with torch.no_grad():
            self.classifier.weight *= gain
            self.classifier.bias.copy_(torch.zeros(n_class) if bias is None else torch.tensor(bias))

    def features(self, image):
        self.computed += 1
        return [self.body(image).tanh()]

    def forward(self, image, size=None):
        logits = self.classifier(self.features(image)[-1])
        self.calls.append((image.clone(), logits.clone()))
        return logits


@dataclass
class Said:
    """What a candidate said of N images: pass -> (N, K, …) logits, and (N, …) classes of each one's partner."""

    logits: dict[str, np.ndarray]
    partners: np.ndarray
    measured: Measured

    def p(self, name):
        """(N, K, …)."""
        e = np.exp(self.logits[name] - self.logits[name].max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def label(self, name):
        """(N, …)."""
        return self.logits[name].argmax(1)


def say(net, images, batches, temperatures=None, **more):
    """Measures the network, of which a `Small` notes the passes. batches: lists of rows of the images (N, C, …)"""
    net.calls.clear()
    given = ((images[rows], torch.tensor(rows)) for rows in batches)
    measured = measure(net, given, settings(net.classifier.out_channels, **more), temperatures)
    logits = {name: np.zeros((len(images), *net.calls[0][1].shape[1:])) for name in (*PASSES, "mixture")}
    partners = np.zeros((len(images), *images.shape[2:]), int)
    assert len(net.calls) == 7 * len(batches)
    for number, rows in enumerate(batches):
        calls = net.calls[7 * number : 7 * number + 7]
        for name, (image, answer) in zip(MADE, calls, strict=True):
            logits[name][rows] = answer.double()
            assert image.shape == images[rows].shape
        logits["flip"][rows] = logits["flip"][rows][..., ::-1]
        for place, row in enumerate(rows):
            other = images[rows[(place + 1) % len(rows)]] if len(rows) > 1 else images[row].flip(-1)
            torch.testing.assert_close(calls[-1][0][place], MIXED * images[row] + (1 - MIXED) * other)
        clean = logits["clean"][rows].argmax(1)
        partners[rows] = np.roll(clean, -1, 0) if len(rows) > 1 else clean[..., ::-1]
    return Said(logits, partners, measured)


# ------------------------------------------------------------------------------------------- borders and pieces


def within(place, shape, pixels):
    """The places of the box around one, cut at the sides of the image."""
    return itertools.product(
        *(range(max(0, i - pixels), min(n, i + pixels + 1)) for i, n in zip(place, shape, strict=True))
    )


def near(label, k, pixels, inside):
    """Places of class k with another class in their box, or of another class with class k in it."""
    return [
        place
        for place in np.ndindex(label.shape)
        if (label[place] == k) == inside
        and any((label[other] == k) != inside for other in within(place, label.shape, pixels))
    ]


def grey_levels(image):
    """(C, …) -> (…): the mean over channels, each divided by its range."""
    image = image.astype(float)
    levels = [(one - np.percentile(one, 1)) / max(np.ptp(np.percentile(one, [1, 99])), EPS) for one in image]
    return np.mean(levels, 0)


def steepness(grey):
    slopes = [np.gradient(grey, axis=axis) for axis in range(grey.ndim) if grey.shape[axis] > 1]
    return np.sqrt(sum((slope**2 for slope in slopes), np.zeros(grey.shape)))


def piece_of(mask, start):
    """The places that can be reached from one by steps through faces, inside the mask."""
    found, waiting = {start}, deque([start])
    while waiting:
        place = waiting.popleft()
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = (*place[:axis], place[axis] + step, *place[axis + 1 :])
            inside = all(0 <= i < n for i, n in zip(other, mask.shape, strict=True))
            if inside and mask[other] and other not in found:
                found.add(other)
                waiting.append(other)
    return found


def largest_piece(mask):
    sizes, left = [], set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True))
    while left:
        piece = piece_of(mask, next(iter(left)))
        sizes.append(len(piece))
        left -= piece
    return max(sizes)


def filled(plane):
    """How many pixels a mask (W, H) has once all that is not joined to the outside is filled."""
    return plane.size + 2 * sum(plane.shape) + 4 - len(piece_of(~np.pad(plane, 1), (0, 0)))


# ------------------------------------------------------------------------------------------------ a small world


@dataclass
class World:
    """Some candidates, what they said of the images, and the evidence that is made of it."""

    images: torch.Tensor
    rows: dict[str, list[int]]  # patient -> its rows, in the order of its slices
    said: list[Said]
    seen: Evidence
    temperatures: list[float]

    def over(self, c, patient, what, name):
        """The pixels of a patient: (n, K) probabilities or (n,) classes of a pass."""
        values = np.stack([getattr(self.said[c], what)(name)[row] for row in self.patient_rows(patient)])
        return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]) if what == "p" else values.ravel()

    def patient_rows(self, patient):
        return list(self.rows.values())[patient]

    def volumes(self, c, patient):
        """Each (D, W, H): the stack of a patient's slices, or its volumes one by one."""
        maps = [self.said[c].label("clean")[row] for row in self.patient_rows(patient)]
        return maps if maps[0].ndim == 3 else [np.stack(maps)]


def evidence(said, patients, numbers, n_class, prior=None, **more):
    """The evidence of what candidates said of images that are slices of these patients, with these numbers."""
    order = list(dict.fromkeys(patients))
    rows = [
        sorted((row for row, each in enumerate(patients) if each == patient), key=lambda row: numbers[row])
        for patient in order
    ]
    parts = [per_patient(each.measured.sums, patients) for each in said]
    sums = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    shape = (len(order), n_class)
    masks = [each.measured.masks for each in said]
    settled = {"expected": np.ones(shape, bool), "pool": np.ones(len(said), bool), "source": 0} | more
    return Evidence(sums, masks, rows, prior=np.full(shape, 1 / n_class) if prior is None else prior, **settled)


def smooth_images(shape, seed):
    """Random images (N, C, …) in which neighbours are alike, with grey levels between about 0 and 200."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=shape)
    for axis in range(2, len(shape)):
        found = found + np.roll(found, 1, axis) + np.roll(found, 2, axis)
    return torch.from_numpy(20 * found / max(found.std(), EPS) + 100).float() / 30


@cache
def world(axes, n_class, channels=1):
    """Five candidates, of which one sees background alone and one never the last class; three patients."""
    patients, numbers = ["b", "a", "b", "c", "a", "b"], [7, 1, 5, 0, 0, 6]
    batches = [[4, 0, 3], [5, 1], [2]]
    images = smooth_images((6, channels, *((9, 7) if axes == 2 else (3, 6, 5))), seed=n_class)
    images = images - images.mean()
    last = [0.0] * (n_class - 1) + [-50.0]
    biases = [None, None, None, [50.0] + [0.0] * (n_class - 1), last]
    temperatures = [0.5 + 0.4 * k for k in range(n_class)]
    nets = [Small(n_class, axes, channels, bias, seed) for seed, bias in enumerate(biases)]
    said = [say(net, images, batches, temperatures) for net in nets]
    rng = np.random.default_rng(n_class)
    prior = rng.dirichlet(np.ones(n_class), size=3)
    prior[1, -1] = np.nan
    prior[2, 0] = 0
    pool = np.array([True, True, False, True, True])
    seen = evidence(said, patients, numbers, n_class, prior, pool=pool, refresh=2)
    rows = {"b": [2, 5, 0], "a": [4, 1], "c": [3]}
    return World(images, rows, said, seen, temperatures)
