"""Quantiles of grey levels: which pixels they are of, and at which steps."""

import numpy as np
import torch

from datasets.cache import Plane
from datasets.grey_quantiles import LOOKED_AT, SAMPLE, grey_quantiles, sample_levels, spread
from datasets.slices import SliceSet
from datasets.transforms import FolderSpec

IMAGE = FolderSpec("IMG", "png_transform")


def set_of(images, divisor=255):
    count = len(images)
    names, planes = [str(row) for row in range(count)], {IMAGE: Plane([torch.from_numpy(images)], divisor)}
    return SliceSet(None, "train", names, names, [0] * count, planes, torch.arange(count), [IMAGE], [], None, "")


def test_a_quantile_stands_in_the_middle_of_its_share():
    levels = np.arange(257.0)[None]  # a straight line: the quantile q is 256 q
    whole, body = grey_quantiles(levels)
    assert np.allclose(whole[0], np.arange(256) + 0.5)
    assert np.allclose(body[0], 1 + 255 * (np.arange(256) + 0.5) / 256)


def test_a_channel_of_one_level_has_no_body():
    whole, body = grey_quantiles(np.array([[3.0, 3.0], [1.0, 2.0]]))
    assert (whole[0] == 3).all()
    assert np.isnan(body[0]).all()
    assert (body[1] == 2).all()


def test_a_small_patient_is_seen_whole_as_the_network_sees_it():
    images = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)
    assert np.array_equal(np.sort(sample_levels(set_of(images), [1, 0])[0]), np.arange(24, dtype=np.float32) / 255)


def test_a_large_patient_is_seen_in_part():
    side = int(SAMPLE**0.5)
    images = np.zeros((LOOKED_AT + 6, 1, side, side), np.uint8)
    images[:, :, ::2, ::2] = 255  # no step that is even sees anything else
    seen = sample_levels(set_of(images), range(len(images)))
    assert seen.shape[0] == 1
    assert SAMPLE / 4 < seen.shape[1] <= SAMPLE * 1.2


def test_rows_are_spread_over_all():
    assert spread([5, 6, 7], 10) == [5, 6, 7]
    assert spread(range(101), 3) == [0, 50, 100]
    assert spread([4], 1) == [4]
