"""N4: a known field is found, and what it cannot take the logarithm of does no harm."""

import numpy as np
import pytest

from preprocess.slicing.bias_field import correct_bias

PLACE = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (6, 18, 16)], indexing="ij"))
TISSUE = np.where((PLACE**2).sum(0) < 0.6, 200, 100) + np.random.default_rng(0).normal(0, 3, PLACE.shape[1:])
FIELD = np.exp(0.4 * PLACE[1] + 0.2 * PLACE[2] ** 2)


def drift_left(corrected, where=np.s_[:]):
    """Standard deviation of the logarithm of what is left of the field, its scale apart."""
    return float(np.log((corrected / TISSUE)[where]).std())


@pytest.mark.parametrize("shrink", [1, 2])
def test_a_known_field_is_taken_out(shrink):
    biased = (TISSUE * FIELD).astype(np.float32)
    before = biased.copy()
    corrected = correct_bias(biased, shrink)
    assert (corrected.dtype, corrected.shape) == (np.float32, biased.shape)
    assert drift_left(corrected) < 0.15 * drift_left(biased)
    np.testing.assert_array_equal(biased, before)
    np.testing.assert_array_equal(correct_bias(biased, shrink), corrected)


def test_the_order_of_the_axes_does_not_matter():
    biased = TISSUE * FIELD
    turned = correct_bias(biased.transpose(2, 0, 1)).transpose(1, 2, 0)
    np.testing.assert_allclose(turned, correct_bias(biased), rtol=1e-3)


def test_voxels_at_and_below_zero_do_not_bend_the_field():
    biased = (TISSUE * FIELD).astype(np.float32)
    corrected = {}
    for value in (0, -500):
        biased[:, :6] = value
        corrected[value] = correct_bias(biased)
    assert not corrected[0][:, :6].any()
    assert (corrected[-500][:, :6] < 0).all()
    np.testing.assert_array_equal(corrected[0][:, 6:], corrected[-500][:, 6:])
    assert drift_left(corrected[0], np.s_[:, 6:]) < 0.2 * drift_left(biased, np.s_[:, 6:])


@pytest.mark.parametrize("value", [0, -3, 7])
def test_a_flat_volume_stays_flat(value):
    np.testing.assert_array_equal(correct_bias(np.full((4, 9, 8), value, np.int16)), np.full((4, 9, 8), value))


def test_a_single_slice():
    corrected = correct_bias((TISSUE * FIELD)[3:4])
    assert corrected.shape == (1, 18, 16)
    assert (corrected > 0).all()
