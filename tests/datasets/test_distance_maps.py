"""Closed forms, the definition written out with scipy, and the cases in which there is no distance."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from datasets.distance_maps import signed_distance_maps


def written_out(label, n_class, spacing=None):
    """The definition, two transforms per class, in float64."""
    maps, half = np.zeros((n_class, *label.shape)), min(spacing or (1,)) / 2
    for k in range(n_class):
        mask = label == k
        if mask.any() and not mask.all():
            outer = distance_transform_edt(~mask, sampling=spacing)
            inner = distance_transform_edt(mask, sampling=spacing)
            maps[k] = np.where(mask, half - inner, outer - half)
    return maps


def as_published(label, n_class, spacing=None):
    """Stored in the type of the one-hot encoding, whole numbers."""
    maps = np.zeros((n_class, *label.shape), np.int32)
    for k in np.unique(label):
        mask = label == k
        outer = distance_transform_edt(~mask, sampling=spacing) * ~mask
        maps[k] = outer - (distance_transform_edt(mask, sampling=spacing) - 1) * mask
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
    to_the_border = np.array([3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5, -4.5, -5.5])
    maps = signed_distance_maps(label, 2)
    assert maps.dtype == np.float32
    assert maps.shape == (2, 10, 7)
    assert np.array_equal(maps[1], np.broadcast_to(to_the_border[:, None], (10, 7)))
    assert np.array_equal(maps[0], -maps[1])


@pytest.mark.parametrize("place", [(0, 0), (200, 311), (511, 511)])
def test_single_pixel_in_a_large_empty_slice(place):
    label = np.zeros((512, 512), np.int64)
    label[place] = 1
    w, h = np.mgrid[:512, :512]
    maps = signed_distance_maps(label, 2)
    assert np.abs(maps[1] - (np.hypot(w - place[0], h - place[1]) - 0.5)).max() < 1e-4


def test_disc_is_a_cone_around_its_edge():
    w, h = np.mgrid[:101, :101]
    radius = np.hypot(w - 50, h - 50)
    off = signed_distance_maps((radius <= 30).astype(np.uint8), 2)[1] - (radius - 30)
    assert np.abs(off).max() < 1
    assert abs(off[np.abs(radius - 30) < 2].mean()) < 0.05  # neither grown nor shrunk


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


@pytest.mark.parametrize("spacing", [(1, 1), (0.3, 0.3), (0.4, 1.5)])
def test_the_sign_is_that_of_the_side(spacing):
    label = np.random.default_rng(0).choice(3, (40, 30), p=[0.6, 0.3, 0.1])
    maps = signed_distance_maps(label, 3, spacing)
    assert all(np.array_equal(maps[k] < 0, label == k) and np.all(maps[k]) for k in range(3))


def test_half_plane_in_mm_has_its_zero_on_the_border():
    label = np.repeat(np.arange(6) >= 3, 4).reshape(6, 4)
    expected = np.array([1.75, 1.05, 0.35, -0.35, -1.05, -1.75])
    for spacing in ((0.7, 0.7), (0.7, 2)):
        assert np.allclose(signed_distance_maps(label, 2, spacing)[1], expected[:, None])
    coarse = signed_distance_maps(label, 2, (2, 0.7))[1]
    assert np.allclose(coarse[2], -coarse[3])  # and so half way between them
    assert np.allclose(np.diff(coarse[:3], axis=0), -2)


@pytest.mark.parametrize("spacing", [None, (0.5, 0.5), (0.3, 0.7)])
def test_legacy_maps_are_the_published_ones(spacing):
    noise = np.random.default_rng(0).choice(4, (60, 50), p=[0.97, 0.01, 0.01, 0.01])
    for label in (organs(4), noise):
        assert np.array_equal(signed_distance_maps(label, 4, spacing, legacy=True), as_published(label, 4, spacing))
    volume = np.random.default_rng(0).choice(2, (5, 20, 20), p=[0.99, 0.01])
    assert np.array_equal(signed_distance_maps(volume, 2, legacy=True), as_published(volume, 2))


@pytest.mark.parametrize("legacy", [False, True])
def test_normalised_maps_end_at_one(legacy):
    label = 2 * organs(2)
    maps = signed_distance_maps(label, 4, legacy=legacy)
    largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
    normalised = signed_distance_maps(label, 4, legacy=legacy, normalise=True)
    assert np.allclose(normalised * largest, maps, atol=1e-5)
    assert np.abs(normalised).max(axis=(1, 2)).tolist() == [1, 0, 1, 0]


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
