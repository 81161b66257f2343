"""Calibration: numbers by hand, a slow literal transcription of each score, and MONAI's."""

import itertools
import math

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric
from scipy.optimize import minimize_scalar

from analysis.calibration import region
from analysis.calibration.region import WIDTH, band
from analysis.calibration.scores import PARTS, SCORES, equal_mass, reliability_curve, scores_of
from analysis.calibration.sums import BINS, FINE, LEAST, NOTHING, sums_by, sums_of
from analysis.calibration.temperature import MOST, fit_temperature, tempered


def of_two(p, y):
    """The sums of class 1 of two classes, where it has these probabilities."""
    p = np.array(p, float)
    return sums_of(np.log(np.stack([1 - p, p])), np.array(y), 1)


@pytest.fixture(scope="module")
def many():
    """(3, N) log-probabilities of a network that is too sure, and what is true."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (3, 20_000)) + np.array([[2.0], [0], [-1]])
    p = np.exp(logits) / np.exp(logits).sum(0)
    truth = (rng.random(p.shape[1]) > p.cumsum(0)[:2]).sum(0)
    return tempered(logits, 0.5), truth


# -- by hand ------------------------------------------------------------------------------------------------------


def test_four_pixels_by_hand():
    found = scores_of(of_two([0.9, 0.9, 0.3, 0.3], [1, 0, 0, 1]))
    assert found["nll"] == pytest.approx(-math.log(0.9 * 0.1 * 0.7 * 0.3) / 4)
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.09 + 0.49) / 4)
    assert found["cw_ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)
    assert found["ace"] == pytest.approx((0.4 + 0.2) / 2)
    assert found["reliability"] == pytest.approx(0.5 * 0.4**2 + 0.5 * 0.2**2)
    assert found["uncertainty"] == pytest.approx(0.25)
    assert found["resolution"] == pytest.approx(0, abs=1e-12)  # half of each bin is true, as half of all


def test_bins_of_the_average_count_alike_and_those_of_the_expectation_by_their_pixels():
    found = scores_of(of_two([0.1] * 9 + [0.9], [0] * 9 + [0]))
    assert found["cw_ece"] == pytest.approx(0.9 * 0.1 + 0.1 * 0.9)
    assert found["ace"] == pytest.approx((0.1 + 0.9) / 2)


def test_bins_of_equal_mass_by_hand():
    """Thirty pixels at five probabilities: each bin of two holds one of these alone."""
    p = np.repeat([0.02, 0.2, 0.4, 0.6, 0.8], 6)
    y = np.tile([1, 1, 1, 0, 0, 0], 5)
    tace = scores_of(of_two(p, y))["tace"]
    assert tace == pytest.approx(np.mean([0.48, 0.3, 0.1, 0.1, 0.3]), abs=1e-9)


def test_bins_of_equal_mass_leave_out_what_is_improbable():
    assert scores_of(of_two([0.001] * 1000 + [0.5] * 10, [0] * 1000 + [1] * 5 + [0] * 5))["tace"] == pytest.approx(0)
    alone = scores_of(of_two([LEAST / 2] * 3, [0, 0, 1]))
    assert math.isnan(alone["tace"])
    assert alone["ace"] == pytest.approx(abs(1 / 3 - LEAST / 2))


def test_pixels_on_the_border_of_two_bins_of_equal_mass_are_shared():
    fine = np.zeros((3, FINE))
    fine[:, 10], fine[:, 20] = (3, 0.6, 3), (1, 0.9, 0)
    np.testing.assert_allclose(equal_mass(fine, 2), [[2, 2], [0.4, 1.1], [2, 1]])


def test_a_network_that_is_sure_and_right_has_no_error_and_one_that_is_sure_and_wrong_all():
    right, wrong = scores_of(of_two([1 - 1e-9, 1e-9], [1, 0])), scores_of(of_two([1 - 1e-9, 1e-9], [0, 1]))
    assert right == pytest.approx(
        {"nll": 0, "brier": 0, "reliability": 0, "resolution": 0.25, "uncertainty": 0.25}
        | {"cw_ece": 0, "ace": 0, "tace": 0},
        abs=1e-8,
    )
    assert [wrong[name] for name in ("brier", "cw_ece", "ace", "tace")] == pytest.approx([1, 1, 1, 1])
    assert wrong["nll"] == pytest.approx(-math.log(1e-9))


def test_the_log_loss_stays_finite_where_the_probability_is_1_in_every_digit():
    log_p = np.array([[-200.0, 0], [0, -200]], np.float32)
    assert scores_of(sums_of(log_p, np.array([0, 0]), 1))["nll"] == pytest.approx(100)
    three = np.array([[-60.0], [0], [-60]], np.float32)
    assert scores_of(sums_of(three, np.array([2]), 1))["nll"] == pytest.approx(60 - math.log(2))


def test_of_no_pixel_nothing_is_said():
    found = scores_of(NOTHING)
    assert list(found) == list(SCORES)
    assert np.isnan(list(found.values())).all()


# -- against others -----------------------------------------------------------------------------------------------


def transcribed(p, y):
    """Each score as its paper writes it, pixel by pixel."""
    bins = [[] for _ in range(BINS)]
    for confidence, true in zip(p, y, strict=True):
        bins[min(int(confidence * BINS), BINS - 1)].append((confidence, true))
    gap = [abs(np.mean(each, axis=0)[0] - np.mean(each, axis=0)[1]) for each in bins if each]
    share = [len(each) / len(p) for each in bins if each]
    ranked = np.array(sorted((c, t) for c, t in zip(p, y, strict=True) if c > LEAST))
    even = np.array_split(ranked, BINS)
    return {
        "nll": np.mean([-math.log(c if t else 1 - c) for c, t in zip(p, y, strict=True)]),
        "brier": np.mean([(c - t) ** 2 for c, t in zip(p, y, strict=True)]),
        "reliability": sum(s * g**2 for s, g in zip(share, gap, strict=True)),
        "uncertainty": np.mean(y) * (1 - np.mean(y)),
        "cw_ece": sum(s * g for s, g in zip(share, gap, strict=True)),
        "ace": np.mean(gap),
        "tace": np.mean([abs(each[:, 0].mean() - each[:, 1].mean()) for each in even]),
    }


@pytest.mark.parametrize("k", [0, 1, 2])
def test_every_score_is_what_its_paper_writes(many, k):
    log_p, truth = many
    found, slow = scores_of(sums_of(log_p, truth, k)), transcribed(np.exp(log_p[k]), (truth == k).astype(float))
    # bins of equal mass end within a fine bin, not at a pixel
    assert {name: found[name] for name in slow if name != "tace"} == pytest.approx(
        {name: value for name, value in slow.items() if name != "tace"}, rel=1e-9
    )
    assert found["tace"] == pytest.approx(slow["tace"], abs=1e-3)
    assert found["brier"] == pytest.approx(found["reliability"] - found["resolution"] + found["uncertainty"])
    assert all(found[name] >= 0 for name in PARTS)


def test_the_resolution_is_murphy_s_where_bins_hold_one_probability_each():
    rng = np.random.default_rng(1)
    p = rng.choice([0.05, 0.35, 0.7, 0.95], 2000)
    y = (rng.random(2000) < p**2).astype(int)
    murphy = sum((p == each).mean() * (y[p == each].mean() - y.mean()) ** 2 for each in np.unique(p))
    assert scores_of(of_two(p, y))["resolution"] == pytest.approx(murphy)


@pytest.mark.parametrize(("reduction", "score"), [("expected", "cw_ece"), ("average", "ace")])
def test_the_errors_are_those_of_monai(many, reduction, score):
    log_p, truth = many
    metric = CalibrationErrorMetric(num_bins=BINS, calibration_reduction=reduction, metric_reduction="none")
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(truth), 3).T[None, :, None].float()
    metric(y_pred=torch.from_numpy(np.exp(log_p)).float()[None, :, None], y=one_hot)
    theirs = metric.aggregate()[0].numpy()
    assert [scores_of(sums_of(log_p, truth, k))[score] for k in range(3)] == pytest.approx(theirs, abs=1e-5)


def test_pieces_add_up_to_the_whole(many):
    log_p, truth = many
    borders = [0, 1, 700, 701, 12_000, log_p.shape[1]]
    parts = [sums_of(log_p[:, a:b], truth[a:b], 1) for a, b in itertools.pairwise(borders)]
    whole = sums_of(log_p, truth, 1)
    assert scores_of(sum(sums_by(log_p, truth, 1, truth < 2), NOTHING)) == pytest.approx(scores_of(whole), rel=1e-9)
    assert sums_by(log_p, truth, 1, truth < 2)[1].bins[2].sum() == 0
    assert scores_of(sum(parts, NOTHING)) == pytest.approx(scores_of(whole), rel=1e-9)
    np.testing.assert_allclose(reliability_curve(sum(parts, NOTHING)), reliability_curve(whole))
    assert sum(parts, NOTHING).n == whole.n == log_p.shape[1]


# -- the region ---------------------------------------------------------------------------------------------------


def test_the_band_is_what_lies_within_5_mm_of_either_mask():
    rng = np.random.default_rng(2)
    first, second = np.zeros((2, 6, 14, 13), bool)
    first[2, 3:5, 6], second[3, 9, 4:6] = True, True
    spacing = (3.0, 1.25, 1.0)
    places = np.argwhere(first | second) * spacing
    for _ in range(50):
        pixel = tuple(rng.integers(0, first.shape))
        near = np.linalg.norm(places - np.array(pixel) * spacing, axis=1).min() <= WIDTH + 1e-9
        assert band(first, second, spacing)[pixel] == near
    assert band(first, second, spacing)[3, 9, 10]  # 5 mm away
    assert not band(first, second, spacing)[3, 9, 11]


@pytest.mark.parametrize("chunk", [1, 400])
def test_the_band_is_the_same_in_pieces(chunk, monkeypatch):
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 40, 12, 11)) < 0.001
    for masks, spacing in (((first, second), (1.5, 2.0, 0.7)), ((first[:, :, 3], second[:, :, 3]), (1.0, 2.0))):
        whole = band(*masks, spacing)
        with monkeypatch.context() as patch:
            patch.setattr(region, "CHUNK", chunk)
            assert (band(*masks, spacing) == whole).all()


def test_the_band_of_a_plane_and_of_nothing():
    mask = np.zeros((12, 12), bool)
    assert not band(mask, mask, (1, 1)).any()
    mask[0, 0] = True
    assert band(mask, mask, (1, 1)).sum() == sum(i**2 + j**2 <= 25 for i in range(6) for j in range(6))


def test_every_error_lies_in_the_band():
    rng = np.random.default_rng(3)
    first, second = rng.random((2, 4, 9, 9)) < 0.05
    assert band(first, second, (30.0, 30.0, 30.0))[first != second].all()


# -- temperatures ---------------------------------------------------------------------------------------------------


def test_a_temperature_by_hand():
    """Of two classes with the logits 0 and a, and a share q of right labels, the best is a / log(q / (1 − q))."""
    logits = np.tile([[0.0], [4.0]], 10)
    labels = np.array([1] * 8 + [0] * 2)
    assert fit_temperature(logits, labels) == pytest.approx(4 / math.log(4))
    assert fit_temperature(logits, 1 - labels) == pytest.approx(MOST)  # never right: the flattest that there is


def test_a_temperature_undoes_one(many):
    log_p, truth = many
    assert fit_temperature(log_p, truth) == pytest.approx(2, abs=0.06)
    slow = minimize_scalar(
        lambda t: -np.take_along_axis(tempered(log_p, t), truth[None], 0).mean(), bounds=(0.1, 10), method="bounded"
    )
    assert fit_temperature(log_p, truth) == pytest.approx(slow.x, abs=1e-4)
    scores = [scores_of(sums_of(each, truth, 1)) for each in (log_p, tempered(log_p, 2))]
    assert scores[1]["cw_ece"] < scores[0]["cw_ece"] / 3
    assert (tempered(log_p, 2).argmax(0) == log_p.argmax(0)).all()
