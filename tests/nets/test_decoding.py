"""Masks of the highest expected Dice: against every mask there is, in float64, and a literal transcription."""

from itertools import product

import numpy as np
import pytest
import torch

from nets.decoding import DECODERS, LEAST, dice_optimal
from nets.probabilities import log_probabilities, most_probable


def log_p_of(*foreground):
    """(1, K, N) log-probabilities of one row of N pixels, from those of the classes from 1 up."""
    p = torch.tensor(foreground, dtype=torch.float64)
    return torch.cat([1 - p.sum(0, keepdim=True), p]).clamp_min(1e-300).log()[None]


def masks_of(pixels):
    return np.array(list(product((0, 1), repeat=pixels)), bool)


def approximate(p, mask):
    """The Dice to expect of a mask, as RMA has it."""
    return 2 * p[mask].sum() / (p.sum() + mask.sum() + 1)


def exact(p, mask, truths):
    """The mean Dice of a mask over all truths, each as probable as independent pixels make it; empty on empty is 0."""
    chance = np.where(truths, p, 1 - p).prod(1)
    both, either = (truths & mask).sum(1), truths.sum(1) + mask.sum()
    return float((chance * 2 * both / np.maximum(either, 1)).sum())


@pytest.mark.parametrize("seed", range(12))
def test_no_other_mask_of_a_tiny_image_has_a_higher_expected_dice(seed):
    """As it is approximated; and of what it is, less than one in a hundred is lost."""
    rng = np.random.default_rng(seed)
    p, every = rng.beta(0.7, 0.7, 8) if seed % 2 else rng.random(8) * 0.7, masks_of(8)
    p[seed % 8] = LEAST + 0.1
    found = dice_optimal(log_p_of(p.tolist()))[0].numpy() == 1
    assert approximate(p, found) == pytest.approx(max(approximate(p, mask) for mask in every[1:]), abs=1e-12)
    best = max(exact(p, mask, every) for mask in every)
    assert best - 0.01 < exact(p, found, every) <= best + 1e-12


def test_pixels_below_one_half_belong_to_the_mask_of_an_unsure_network():
    """Σp = 2.2. One pixel gives 1.2 / 4.2 = 0.286, two 2 / 5.2 = 0.385, … five 4.4 / 8.2 = 0.537."""
    log_p = log_p_of([0.6, 0.4, 0.4, 0.4, 0.4])
    assert dice_optimal(log_p)[0].tolist() == [1] * 5
    assert most_probable(log_p)[0].tolist() == [1, 0, 0, 0, 0]


def test_a_class_that_nowhere_passes_one_half_is_absent():
    assert dice_optimal(log_p_of([0.49, 0.4, 0.4], [0.5, 0.1, 0.1])).tolist() == [[0, 0, 0]]


def literal(p):
    """(F, N) probabilities -> class numbers, one pixel at a time, and how many of them two classes claimed."""
    masks, classes = [], range(len(p))
    for of_class in p:
        order = sorted(range(len(of_class)), key=lambda j: -of_class[j])
        scores = [2 * sum(of_class[j] for j in order[:n]) / (sum(of_class) + n + 1) for n in range(1, len(order) + 1)]
        count = 1 + scores.index(max(scores))
        masks.append(set(order[:count]) if max(of_class) > LEAST else set())
    label, contested = [], 0
    for j in range(len(p[0])):
        claims = [k for k in classes if j in masks[k]]
        gains = {}
        contested += len(claims) > 1
        for k in claims if len(claims) > 1 else []:
            own = [i for i in masks[k] if sum(i in mask for mask in masks) == 1]
            before = 2 * sum(p[k][i] for i in own) / (sum(p[k]) + len(own) + 1)
            gains[k] = 2 * (sum(p[k][i] for i in own) + p[k][j]) / (sum(p[k]) + len(own) + 2) - before
        label.append(0 if not claims else 1 + (max(gains, key=gains.get) if gains else claims[0]))
    return label, contested


def test_classes_that_claim_one_pixel_are_told_apart_as_in_the_formula():
    rng, contested = np.random.default_rng(0), 0
    for _ in range(20):
        logits = torch.from_numpy(rng.normal(0, 1.5, (2, 4, 3, 5)))
        found = dice_optimal(log_probabilities(logits))
        for row, label in zip(logits.softmax(1)[:, 1:].flatten(2), found.flatten(1), strict=True):
            expected, between_two = literal(row.tolist())
            assert label.tolist() == expected
            contested += between_two
    assert contested > 20


def test_a_network_that_is_sure_is_decoded_as_ever():
    logits = 50 * torch.randn(3, 4, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dice_optimal(log_probabilities(logits)), most_probable(logits))


def test_a_volume_is_one_image_and_each_of_a_batch_is_its_own():
    log_p = log_probabilities(torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(1)))
    whole = dice_optimal(log_p)
    assert whole.shape == (2, 4, 5, 6)
    assert whole.dtype == most_probable(log_p).dtype
    for row in range(2):
        assert torch.equal(whole[row : row + 1], dice_optimal(log_p[row : row + 1]))
    assert torch.equal(dice_optimal(log_p.flatten(2)).view(whole.shape), whole)


def test_equal_probabilities_stay_together():
    assert dice_optimal(log_p_of([0.7] * 4 + [0.01] * 3)).tolist() == [[1, 1, 1, 1, 0, 0, 0]]


def test_the_default_is_the_most_probable_class():
    assert DECODERS["argmax"] is most_probable
