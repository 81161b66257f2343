"""Closed forms, the definition written out with scipy, and the cases in which there is no distance."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from distance_maps import signed_distance_maps


def written_out(label, n_class, spacing=None):
    """The definition, two transforms per class, in float64."""
    maps = np.zeros((n_class, *label.shape))
    for k in range(n_class):
        mask = label == k
        if mask.any() and not mask.all():
            outer = distance_transform_edt(~mask, sampling=spacing)
            inner = distance_transform_edt(mask, sampling=spacing)
            maps[k] = np.where(mask, 1 - inner, outer)
    return maps


def organs(n_class, side=256):
    """Lobed organs that touch and cut each other, one of them reaching over the border."""
    w, h = np.mgrid[:side, :side] / side
    label = np.zeros((side, side), np.uint8)
    for k in range(1, n_class):
        angle = np.arctan2(w - 0.25 * k, h - 0.5)
        label[np.hypot(w - 0.25 * k, h - 0.5) < 0.15 + 0.03 * np.sin(3 * angle + k)] = k
    return label


def test_half_plane():
    label = np.repeat(np.arange(10) >= 4, 7).reshape(10, 7).astype(np.uint8)
    to_the_class = np.array([4, 3, 2, 1, 0, -1, -2, -3, -4, -5.0])
    maps = signed_distance_maps(label, 2)
    assert maps.dtype == np.float32
    assert maps.shape == (2, 10, 7)
    assert np.array_equal(maps[1], np.broadcast_to(to_the_class[:, None], (10, 7)))
    assert np.array_equal(maps[0], 1 - maps[1])


@pytest.mark.parametrize("place", [(0, 0), (200, 311), (511, 511)])
def test_single_pixel_in_a_large_empty_slice(place):
    label = np.zeros((512, 512), np.int64)
    label[place] = 1
    w, h = np.mgrid[:512, :512]
    maps = signed_distance_maps(label, 2)
    assert np.abs(maps[1] - np.hypot(w - place[0], h - place[1])).max() < 1e-4
    assert maps[1][place] == 0  # its nearest neighbour is 1 away


def test_disc_is_a_cone_around_its_edge():
    w, h = np.mgrid[:101, :101]
    radius = np.hypot(w - 50, h - 50)
    maps = signed_distance_maps((radius <= 30).astype(np.uint8), 2)
    assert np.abs(maps[1] - 0.5 - (radius - 30)).max() < 1


@pytest.mark.parametrize("n_class", [2, 4, 5])
def test_equals_the_definition_on_organs_and_on_noise(n_class):
    noise = np.random.default_rng(0).integers(n_class, size=(256, 256))
    rare = np.random.default_rng(1).choice(n_class, (256, 256), p=[0.999, *[0.001 / (n_class - 1)] * (n_class - 1)])
    for label in (organs(n_class), noise, rare):
        assert np.abs(signed_distance_maps(label, n_class) - written_out(label, n_class)).max() < 1e-4


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 30), (0.5, 0.5)), ((40, 30), (0.4, 1.5)), ((6, 40, 30), None), ((6, 40, 30), (5, 0.7, 0.7))],
)
def test_equals_the_definition_in_volumes_and_with_a_spacing(shape, spacing):
    label = np.random.default_rng(0).choice(3, shape, p=[0.9, 0.08, 0.02])
    assert np.abs(signed_distance_maps(label, 3, spacing) - written_out(label, 3, spacing)).max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (2, 2)])
def test_slices_a_pixel_wide(shape):
    label = np.zeros(shape, np.uint8)
    label[-1, -1] = 1
    assert np.allclose(signed_distance_maps(label, 2), written_out(label, 2))


def test_absent_class_has_zeros_and_changes_no_other_map():
    label = organs(2)
    maps = signed_distance_maps(2 * label, 4)
    assert not maps[1].any()
    assert not maps[3].any()
    assert np.array_equal(maps[[0, 2]], signed_distance_maps(label, 2))


@pytest.mark.parametrize("k", [0, 2])
def test_class_that_fills_the_slice_has_zeros(k):
    assert not signed_distance_maps(np.full((5, 6), k), 3).any()


def test_same_label_map_gives_the_same_bits_wherever_it_lies_in_memory():
    label, rng, elsewhere = organs(3, 120), np.random.default_rng(0), []
    expected = signed_distance_maps(label, 3)
    for _ in range(50):
        elsewhere.append(np.empty(rng.integers(100_000)))
        assert np.array_equal(signed_distance_maps(label.copy(), 3), expected)


def test_memory_order_does_not_matter():
    label = organs(3)[:, :100]
    assert np.array_equal(signed_distance_maps(np.asfortranarray(label), 3), signed_distance_maps(label.copy(), 3))


@pytest.mark.parametrize("label", [np.zeros((4, 4), np.float32), np.full((4, 4), 3), np.full((4, 4), -1)])
def test_what_is_no_class_number_is_refused(label):
    with pytest.raises(ValueError, match=r"class numbers 0\.\.2"):
        signed_distance_maps(label, 3)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 0), (1, np.nan)])
def test_spacing_is_one_positive_length_per_axis(spacing):
    with pytest.raises(ValueError, match="spacing"):
        signed_distance_maps(np.zeros((4, 4), np.uint8), 2, spacing)
