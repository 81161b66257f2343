"""Sizes and shapes of classes against values counted by hand."""

import numpy as np
import pytest
from scipy import ndimage

from datasets.class_measures import class_areas, measure_shapes, summarise_sizes
from nets.bundle import STATISTICS


def test_areas_are_of_each_slice_and_a_label_to_ignore_counts_nowhere():
    labels = np.array([[[0, 1], [1, 2]], [[255, 255], [0, 2]]], np.uint8)
    assert class_areas(labels, 3).tolist() == [[1, 2, 1], [1, 0, 1]]


def test_pieces_touch_by_their_faces():
    labels = np.zeros((3, 5, 5), np.uint8)
    labels[0, 0, :3] = 1
    labels[1, 0, 2] = 1  # above the last of them
    labels[2, 1, 2] = 1  # by an edge alone
    labels[2, 4, 4] = 1
    found = measure_shapes(labels, 2)
    assert found["components"] == [3]
    assert found["largest_component"] == [4 / 6]


def test_holes_are_those_of_slices():
    labels = np.zeros((2, 5, 5), np.uint8)
    labels[0, 1:4, 1:4] = 1
    labels[0, 2, 2] = 0  # enclosed in its slice
    labels[1, 0:3, 0:3] = 1
    labels[1, 0, 1] = 0  # open to the border
    assert measure_shapes(labels, 2)["holes"] == [1 / 16]


def test_holes_are_what_scipy_fills(tmp_path):
    labels = (np.random.default_rng(0).random((4, 20, 20)) < 0.6).astype(np.uint8)
    filled = sum(ndimage.binary_fill_holes(plane).sum() for plane in labels)
    assert filled > labels.sum()
    assert measure_shapes(labels, 2)["holes"] == [(filled - labels.sum()) / labels.sum()]


def test_continuity_goes_from_the_first_slice_of_a_class_to_its_last():
    labels = np.zeros((6, 2, 4), np.uint8)
    labels[1, 0, :4] = 1
    labels[2, 0, :2] = 1  # Dice 2 * 2 / 6 with the one before
    labels[4, 1, :1] = 1  # nothing in between: Dice 0, twice
    labels[5, 1, 2] = 2  # one slice has no neighbour
    found = measure_shapes(labels, 4)["continuity"]
    assert found[0] == pytest.approx((4 / 6 + 0 + 0) / 3)
    assert np.isnan(found[1:]).all()


def test_centre_and_spread_are_shares_of_the_map():
    labels = np.zeros((2, 4, 10), np.uint8)
    labels[0, 1, 2] = labels[0, 1, 4] = 1
    found = measure_shapes(labels, 3)
    assert found["centroid"][0] == pytest.approx([0.25, 1.5 / 4, 3.5 / 10])
    assert found["spread"][0] == pytest.approx([0, 0, 1 / 10])
    assert np.isnan(found["centroid"][1]).all()


SIDES = np.array([[2.0, 3.0, 1.0], [1.0, 1.0, 1.0]])


def sizes(volumes, sides=SIDES):
    """Two patients with slices of 10 pixels: two slices of which one holds 4 of the class, and one without."""
    return summarise_sizes([np.array([[6, 4], [10, 0]]), np.array([[10, 0]])], np.array([10, 10]), sides, volumes)


def of(summary):
    return dict(zip(STATISTICS, summary[0].tolist(), strict=True))


def test_sizes_are_of_those_who_have_the_class():
    found = sizes(volumes=False)
    assert found["patients_with_class"].tolist() == [0.5]
    assert found["image_shares"] == pytest.approx([26 / 30, 4 / 30])
    for name, value in {
        "volume_voxels": 4,
        "volume_mm3": 24,
        "area_pixels": 4,
        "area_mm2": 12,
        "area_share": 0.4,
        "slices_with_class": 0.5,
    }.items():
        assert of(found[name])["mean"] == of(found[name])["median"] == of(found[name])["q95"] == pytest.approx(value)
        assert of(found[name])["count"] == 1
        assert np.isnan(of(found[name])["sd"])


def test_an_image_is_a_slice_or_a_volume():
    assert sizes(volumes=True)["image_shares"] == pytest.approx([(0.8 + 1) / 2, (0.2 + 0) / 2])


def test_nothing_is_in_mm_where_no_spacing_is_told():
    assert not {"volume_mm3", "area_mm2"} & set(sizes(False, None))
