"""Soft Dice confidence and temperatures, against values computed by hand and against the definition pixel by pixel."""

import numpy as np
import pytest
import torch

from nets.confidence import (
    EXPONENTS,
    PLAIN,
    ConfidenceTable,
    at_temperatures,
    fit_temperatures,
    real_dice,
    scale_by_class,
    soft_dice,
    soft_dice_confidence,
)
from selection.measuring import clean_sums


def sums_of(log_p):
    """(3, B, K) sums that the soft Dice confidence of images is made of."""
    sums = clean_sums(log_p, log_p.argmax(1))
    return np.stack([sums[name].numpy() for name in ("sure", "soft", "size")])


def table_of(images, patients, n_class):
    table = ConfidenceTable(max(patients) + 1, n_class, "cpu")
    for patient, (log_p, truth) in zip(patients, images, strict=True):
        table.add([patient], log_p, truth)
    return table.read()


def made_up(count=6, n_class=3, sharpness=2.0, seed=0):
    """Images (log-probabilities, truth) whose true classes follow softmax(logits), which are told `sharpness` times."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(count):
        logits = torch.randn(1, n_class, 64, 64, generator=generator) * 2
        logits[:, 0] += 2
        p = logits.softmax(1)[0].flatten(1).T
        truth = torch.multinomial(p, 1, generator=generator).reshape(1, 64, 64)
        images.append(((logits * sharpness).log_softmax(1), truth))
    return images


def test_the_sums_of_one_pixel_each():
    """Pixels with p_1 = .2, .6, .9; the last is predicted and true."""
    p = torch.tensor([[0.8, 0.4, 0.1], [0.2, 0.6, 0.9]])[None, :, :, None]
    own, total, predicted = sums_of(p.log())[:, 0]
    assert own == pytest.approx([0.8, 1.5])
    assert total == pytest.approx([1.3, 1.7])
    assert predicted == pytest.approx([1, 2])
    assert soft_dice_confidence(own, total, predicted) == pytest.approx([1.6 / 2.3, 3.0 / 3.7])
    counts, mass = table_of([(p.log(), torch.tensor([0, 0, 1])[None, :, None])], [0], 2)
    assert counts.tolist() == [[[1, 1], [0, 1]]]
    assert mass[0, :, :, PLAIN] == pytest.approx(np.array([[0.8, 0.2], [0.5, 1.5]]))
    assert real_dice(counts)[0] == pytest.approx([2 / 3, 2 / 3])
    assert soft_dice(counts, mass[..., PLAIN])[0] == pytest.approx([1.6 / 2.3, 3.0 / 3.7])


def test_what_is_never_predicted_has_no_confidence():
    assert soft_dice_confidence(np.zeros(2), np.array([0.0, 3.0]), np.zeros(2)).tolist() == [0, 0]


def test_pixels_without_a_class_count_nowhere():
    ((log_p, truth),) = made_up(1)
    ignored = truth.clone()
    ignored[:, :32] = 255
    half = log_p[:, :, 32:], truth[:, 32:]
    for first, second in zip(table_of([(log_p, ignored)], [0], 3), table_of([half], [0], 3), strict=True):
        assert np.allclose(first, second)


def test_images_are_added_in_parts(monkeypatch):
    images = made_up(2)
    whole = table_of(images, [0, 0], 3)
    monkeypatch.setattr("nets.confidence.CHUNK", 1000)
    for first, second in zip(whole, table_of(images, [0, 0], 3), strict=True):
        assert np.allclose(first, second)


def test_logits_that_were_doubled_are_halved_again():
    """Where the truth follows the probabilities at one temperature, that is what every class is given."""
    images = made_up(30, sharpness=2.0)
    temperatures, residuals = fit_temperatures(*table_of(images, [number // 3 for number in range(30)], 3))
    assert temperatures == pytest.approx([2, 2, 2], abs=0.1)
    assert np.abs(residuals).max() < 1e-9


def test_the_fit_is_what_it_says_pixel_by_pixel():
    images, patients = made_up(6, sharpness=3.0), [0, 0, 1, 1, 2, 2]
    counts, mass = table_of(images, patients, 3)
    temperatures, _ = fit_temperatures(counts, mass)
    scaled = [scale_by_class(log_p, log_p.argmax(1), temperatures) for log_p, _ in images]
    sums = np.zeros((3, 3, 3))
    for patient, log_p in zip(patients, scaled, strict=True):
        sums[:, patient] += sums_of(log_p)[:, 0]
    confidence = soft_dice_confidence(*sums)
    assert confidence == pytest.approx(soft_dice(counts, at_temperatures(mass, temperatures)), abs=2e-5)
    assert confidence[:, 1:].mean(0) == pytest.approx(real_dice(counts)[:, 1:].mean(0), abs=2e-5)
    log_p, truth = torch.cat(scaled), torch.cat([truth for _, truth in images])
    background = log_p.argmax(1) == 0
    assert log_p.exp()[:, 0][background].mean().item() == pytest.approx(
        (truth[background] == 0).double().mean().item(), abs=2e-5
    )


def test_masks_stay_as_they_are():
    ((log_p, _),) = made_up(1)
    scaled = scale_by_class(log_p, log_p.argmax(1), np.array([16.0, 0.5, np.nan]))
    assert torch.equal(scaled.argmax(1), log_p.argmax(1))
    third = (log_p.argmax(1) == 2)[0]
    assert torch.allclose(scaled[0, :, third], log_p[0, :, third], atol=1e-6)
    assert torch.allclose(scaled.exp().sum(1), torch.ones(1, 64, 64), atol=1e-5)


def test_what_no_temperature_reaches_is_told():
    """Every mask is right, and no confidence is quite 1."""
    ((log_p, _),) = made_up(1)
    temperatures, residuals = fit_temperatures(*table_of([(log_p, log_p.argmax(1))], [0], 3))
    assert temperatures[0] == 2.0 ** EXPONENTS[0]
    assert (-0.2 < residuals).all()
    assert (residuals < 0).all()


def test_a_class_without_a_score_has_no_temperature():
    """Class 2 is never predicted, class 1 never true nor predicted."""
    log_p = torch.tensor([0.9, 0.04, 0.06]).log()[None, :, None].repeat(1, 1, 5)
    temperatures, residuals = fit_temperatures(*table_of([(log_p, torch.tensor([[0, 0, 0, 0, 2]]))], [0], 3))
    assert np.isnan(temperatures).tolist() == [False, True, True]
    assert np.isnan(residuals).tolist() == [False, True, True]
    assert temperatures[0] == pytest.approx(np.log(0.9 / 0.05) / np.log(0.8 / 0.1), rel=0.05)
