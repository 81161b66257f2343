"""Each change of grey levels against a slow form of its paper's formula, in float64; and what holds for all of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from datasets.appearance import CHANGES, COARSE, RANGES, AmplitudeMix
from datasets.augmentation import Augmentation
from datasets.changes import Lots
from datasets.curves import CELLS, Curves, bezier_table
from datasets.degradations import REACH, Blanks, Blur, Gradient, Inversion, LocalGamma, LowResolution, Sharpening
from datasets.random_convolutions import FIELD, RandomConvolutions, smooth_field

OFF = {"rotate": 0, "contrast": 0, "gamma": 0}
SLICES, VOLUMES, K = (2, 20, 27), (2, 5, 12, 13), 3
SHAPES = pytest.mark.parametrize("shape", [SLICES, VOLUMES], ids=["slices", "volumes"])


def lots(shape, seed=0, count=4):
    return Lots(count, shape, torch.Generator().manual_seed(seed), K)


def pictures(shape, count=4, low=-1.3, high=2.0):
    """Images of this range, and labels that a reader's pencil drew: classes 0 to 2, and pixels of no class."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, *shape, generator=generator) * (high - low) + low
    label = torch.randint(K, (count, *shape[1:]), generator=generator)
    label[0, ..., :3] = 255
    label[1] = label[1].clamp(max=1)  # lacks a class
    return images, label


def only(change):
    """The change of all images."""
    return replace(change, chosen=torch.ones_like(change.chosen))


# -- curves ------------------------------------------------------------------------------------------------


def bezier(points, x):
    """The value at x of the curve with these two control points, by bisection."""
    (x1, y1), (x2, y2) = points
    low, high = 0.0, 1.0
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if 3 * (1 - t) ** 2 * t * x1 + 3 * (1 - t) * t**2 * x2 + t**3 < x else (low, t)
    return 3 * (1 - low) ** 2 * low * y1 + 3 * (1 - low) * low**2 * y2 + low**3


def test_bezier_tables_are_the_curves_within_a_cell():
    points = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(0))
    points[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # upright in the middle
    for table, each in zip(bezier_table(points).double(), points.double().tolist(), strict=True):
        assert (table[0], table[-1]) == (0, 1)
        assert (table.diff() >= 0).all()
        for cell in range(1, CELLS, 15):
            low, high = (bezier(each, (cell + aside) / CELLS) for aside in (-1, 1))
            assert low - 1e-5 <= table[cell] <= high + 1e-5


def slow_curves(image, label, change, row):
    """One image (C,…) as the released code has it: region by region, in numpy, percentiles and all."""
    result, by_label = np.zeros_like(image), bool(change.by_label[row])
    label = np.where(by_label & (label < K), label, 0)
    for c, channel in enumerate(image):
        low, high = channel.min(), channel.max()
        for k in np.unique(label):
            seen = channel[label == k]
            first, last = seen.min(), seen.max()
            values = np.array([bezier(change.points[row, c, k].tolist(), (x - first) / (last - first)) for x in seen])
            values = 1 - values if change.falls[row, c, k] else values
            share = (first + (last - first) * values - low) / (high - low)
            shift = np.clip(float(change.shift[row, c, k]), -np.percentile(share, 20), 1 - np.percentile(share, 80))
            share = np.clip(share * float(change.scale[row, c, k]) + shift, 0, 1)
            result[c][label == k] = low + (high - low) * share
        dark = by_label & (channel <= low + 0.01 * (high - low))
        result[c][dark] = channel[dark]
    return result


@SHAPES
def test_curves_are_those_of_the_released_code(shape):
    images, label = pictures(shape)
    change = only(Curves.draw([0.5, 0.5], lots(shape, seed=3)))
    change = replace(change, points=0.3 + 0.4 * change.points)  # nowhere steep, where a cell is much
    assert change.by_label.any()
    assert not change.by_label.all()
    changed = change(images, label=label)
    for row in range(len(images)):
        slow = slow_curves(images[row].double().numpy(), label[row].numpy(), change, row)
        assert (
            np.abs(changed[row].numpy() - slow).max() < 0.03 * 3.3
        )  # the percentiles are those of a few hundred pixels
        assert np.abs(changed[row].numpy() - slow).mean() < 0.01 * 3.3


def test_pixels_of_a_class_share_a_curve_that_keeps_or_reverses_their_order():
    images, label = pictures(SLICES, count=40)
    images = images.mul(8).round().div(8)  # so that levels occur many times
    change = Curves.draw([0, 1], lots(SLICES, count=40))
    change, rises = replace(change, shift=0 * change.shift), set()
    changed = change(images, label=label)
    for row, c, k in np.ndindex(40, 2, K):
        there = (label[row] % 255 == k) & (images[row, c] > images[row, c].min() + 0.04)  # no class is background
        levels, place = images[row, c][there].unique(return_inverse=True)
        new = [changed[row, c][there][place == n] for n in range(len(levels))]
        assert all((each == each[0]).all() for each in new)
        steps = torch.stack([each[0] for each in new]).diff() if new else torch.zeros(0)
        assert (steps >= 0).all() or (steps <= 0).all()
        if len(steps):
            rises.add((k, bool(steps.sum() > 0)))
    assert rises == {(0, False), (1, False), (1, True), (2, False), (2, True)}  # the background always falls


def test_curves_of_whole_images_rise_and_see_no_label():
    images, label = pictures(SLICES)
    change = Curves.draw([1, 0], lots(SLICES))
    changed = change(images)
    assert torch.equal(changed, change(images, label=label))
    for before, after in zip(images.flatten(0, 1), changed.flatten(0, 1), strict=True):
        assert (after.flatten()[before.flatten().argsort()].diff() >= -1e-6).all()
        assert before.min() - 1e-5 <= after.min() <= after.max() <= before.max() + 1e-5


def test_an_image_gets_the_curves_of_its_classes_where_both_lots_fall():
    change = Curves.draw([1, 0.5], lots(SLICES, count=1000))
    assert change.chosen.all()
    assert change.by_label.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not change.falls[~change.by_label.flatten()].any()


# -- random networks ---------------------------------------------------------------------------------------


def slow_view(image, change, row, view):
    """One image (C,…) as the released code has it, on the image with mean 0 and standard deviation 1."""
    convolve, maps = (F.conv2d, F.conv3d)[image.ndim - 3], image[None]
    for layer, (kernels, shifts) in enumerate(zip(change.kernels, change.shifts, strict=True)):
        kernel, shift = kernels[row, view].double(), shifts[row, view].double()
        sides = [1] * (image.ndim - 1)
        if not kernel.flatten(2)[..., : kernel[0, 0].numel() // 2].any():  # one of size 1
            kernel = kernel[(..., *(slice(1, 2) for _ in sides))]
        maps = convolve(maps, kernel, padding=kernel.shape[-1] // 2) + shift.view(1, -1, *sides)
        maps = torch.where(maps > 0, maps, 0.01 * maps) if layer < 3 else maps
    alpha = change.strength[row, view].double()
    mixed = alpha * maps[0] + (1 - alpha) * image
    return mixed * (image.square().sum().sqrt() / (mixed.square().sum().sqrt() + 1e-5))


def scored(image):
    axes = tuple(range(1, image.ndim))
    return image.mean(axes, keepdim=True), image.std(axes, correction=0, keepdim=True)


@SHAPES
@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 0.5, 0.5)], ids=str)
def test_random_networks_are_those_of_the_papers(shape, shares):
    images, label = pictures(shape)
    change = only(RandomConvolutions.draw(shares, lots(shape, seed=5)))
    changed = change(images, label=label)
    for row, image in enumerate(images.double()):
        mean, deviation = scored(image)
        views = [slow_view((image - mean) / deviation, change, row, view) for view in range(change.strength.shape[1])]
        expected = views[0]
        if change.by_label[row]:
            for k in (1, 2):
                expected = torch.where(label[row] == k, views[k], expected)
        elif change.field is not None:
            weight = change.field[row].double()
            expected = weight * views[0] + (1 - weight) * views[-1]
        assert torch.allclose(changed[row].double(), mean + deviation * expected, atol=1e-4)


def test_kernels_have_either_size_and_weights_of_deviation_1():
    change = RandomConvolutions.draw([1, 0, 0], lots((1, 8, 8), count=500))
    kernels = torch.cat([kernel.flatten(0, 3) for kernel in change.kernels])
    large = kernels[:, 0, 0].ne(0)
    assert torch.equal(large, kernels[:, 2, 1].ne(0))
    assert kernels[large].std().item() == pytest.approx(1, rel=0.02)
    assert kernels[:, 1, 1].std().item() == pytest.approx(1, rel=0.05)
    by_layer = [kernel.flatten(2)[:, :, 0].ne(0).float().mean().item() for kernel in change.kernels]
    assert np.allclose(by_layer, 0.5, atol=0.07)


@pytest.mark.parametrize("size", [(30, 41), (5, 12, 9)])
def test_the_field_of_ipa_is_a_cubic_spline_from_0_to_1(size):
    points = torch.randn(2, 1, *[FIELD] * len(size), generator=torch.Generator().manual_seed(0))
    field = smooth_field(points, size)
    knots = np.arange(-3, FIELD + 1) - 0.0  # uniform: the n-th basis function is centred at knot n + 2
    for slow, found in zip(points[:, 0].double().numpy(), field[:, 0], strict=True):
        for axis, length in enumerate(size):
            spline = BSpline(knots, slow.swapaxes(0, axis), 3)
            slow = spline(np.linspace(0, FIELD - 3, length)).swapaxes(0, axis)
        assert np.allclose(found.numpy(), (slow - slow.min()) / (slow.max() - slow.min()), atol=1e-5)


# -- amplitudes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 64, 45), (2, 6, 48, 41)])
def test_amplitudes_of_low_frequencies_are_mixed_and_phases_kept(shape):
    images, _ = pictures(shape)
    change = only(AmplitudeMix.draw([1], lots(shape)))
    changed = change(images)
    axes = tuple(range(1, len(shape)))
    spectra = [np.fft.fftn(image.double().numpy(), axes=axes) for image in images]
    low = np.ones(shape[1:], dtype=bool)
    for axis, length in enumerate(shape[1:]):
        along = [1] * (len(shape) - 1)
        along[axis] = length
        low &= np.abs(np.fft.fftfreq(length)).reshape(along) <= COARSE
    for row, spectrum in enumerate(spectra):
        strength, other = float(change.strength[row]), spectra[int(change.other[row])]
        amplitude = (1 - strength) * np.abs(spectrum) + strength * np.abs(other)
        mixed = np.where(low, amplitude, np.abs(spectrum)) * np.exp(1j * np.angle(spectrum))
        expected = np.fft.ifftn(mixed, axes=axes)
        assert np.abs(expected.imag).max() < 1e-9
        assert np.allclose(changed[row].numpy(), expected.real, atol=1e-4)
    assert sorted(change.other.tolist()) == [0, 1, 2, 3]


# -- scanners and filters ----------------------------------------------------------------------------------


def slow_blur(image, deviation):
    """scipy's, of each plane (W,H)."""
    sigma = (0,) * (image.ndim - 2) + (float(deviation),) * 2
    return torch.from_numpy(gaussian_filter(image.double().numpy(), sigma, mode="nearest", radius=REACH))


@SHAPES
def test_blur_is_scipy_s(shape):
    images, _ = pictures(shape)
    change = only(Blur.draw([1], lots(shape)))
    for row, blurred in enumerate(change(images)):
        assert torch.allclose(blurred.double(), slow_blur(images[row], change.deviation[row]), atol=1e-5)


@SHAPES
def test_sharpening_adds_what_another_blur_takes(shape):
    images, _ = pictures(shape)
    change = only(Sharpening.draw([1], lots(shape)))
    for row, (image, sharp) in enumerate(zip(images, change(images), strict=True)):
        smooth = slow_blur(image, change.first[row])
        expected = smooth + float(change.strength[row]) * (smooth - slow_blur(smooth, change.second[row]))
        low, high = (end(image.flatten(1), dim=1).view(-1, *[1] * (image.ndim - 1)) for end in (torch.amin, torch.amax))
        assert torch.allclose(
            sharp.double(), torch.minimum(torch.maximum(expected, low.double()), high.double()), atol=1e-4
        )


def slow_coarse(line, zoom):
    """A line of pixels at low resolution: the nearest pixel at each place of the coarse grid, lines between."""

    def coarse(n):
        return line[min(max(round((n + 0.5) / zoom - 0.5), 0), len(line) - 1)]

    places = [(p + 0.5) * zoom - 0.5 for p in range(len(line))]
    before = [math.floor(place) for place in places]
    return [coarse(n) + (p - n) * (coarse(n + 1) - coarse(n)) for p, n in zip(places, before, strict=True)]


@SHAPES
def test_low_resolution_has_fewer_pixels_and_straight_lines_between(shape):
    images, _ = pictures(shape)
    change = only(LowResolution.draw([1], lots(shape)))
    change = replace(change, zoom=torch.tensor([0.2617, 0.3739, 0.7117, 0.9339]))
    for row, found in enumerate(change(images)):
        zoom, expected = change.zoom[row].item(), images[row].double().numpy()
        for axis in (-2, -1):
            expected = np.apply_along_axis(slow_coarse, axis, expected, zoom)
        assert np.allclose(found.numpy(), expected, atol=1e-4)


def slow_spot(change, row, size):
    places = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in size], indexing="ij")
    apart = [(p - float(c)) / float(s) for p, c, s in zip(places, change.centre[row], change.width[row], strict=True)]
    spot = np.exp(-sum(each**2 for each in apart) / 2)
    return spot / spot.max()


@SHAPES
@pytest.mark.parametrize("kind", [Gradient, LocalGamma])
def test_fields_are_strongest_at_one_place(shape, kind):
    images, _ = pictures(shape)
    change = only(kind.draw([1], lots(shape)))
    for row, found in enumerate(change(images)):
        spot, strength = slow_spot(change, row, shape[1:]), float(change.strength[row])
        for before, after in zip(images[row].double().numpy(), found.numpy(), strict=True):
            if kind is Gradient:
                expected = before + strength * before.std() * spot
            else:
                share = (before - before.min()) / np.ptp(before)
                expected = before.min() + np.ptp(before) * (share * (1 - spot) + share**strength * spot)
            assert np.allclose(after, expected, atol=1e-4)


def test_strengths_of_fields_fill_their_ranges():
    strength = Gradient.draw([1], lots(SLICES, count=2000)).strength.flatten()
    assert strength.abs().min() >= 1
    assert strength.abs().max() <= 5
    assert strength.gt(0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    gamma = LocalGamma.draw([1], lots(SLICES, count=2000)).strength.flatten()
    assert (gamma.lt(0.8) | gamma.gt(1.5)).all()
    assert gamma.lt(1).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_inversion_keeps_the_range_of_each_channel():
    images, _ = pictures(SLICES)
    inverted = only(Inversion.draw([1], lots(SLICES)))(images)
    assert torch.allclose(inverted.amin((2, 3)), images.amin((2, 3)))
    assert torch.allclose(only(Inversion.draw([1], lots(SLICES)))(inverted), images, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 40, 60), (1, 20, 20, 30)])
def test_blanks_are_a_few_boxes_of_the_mean(shape):
    images, _ = pictures(shape, count=200)
    change = Blanks.draw([1], lots(shape, count=200))
    changed = change(images)
    assert set(change.count.tolist()) == {1, 2, 3, 4, 5}
    mean = images.mean(tuple(range(2, images.ndim)), keepdim=True)
    blank = changed.ne(images)
    assert torch.equal(changed, torch.where(blank, mean, images))
    for row in change.count.eq(1).nonzero()[:, 0].tolist():
        places = blank[row, 0].nonzero()
        sides = places.amax(0) - places.amin(0) + 1
        assert sides.prod() == len(places)  # a whole box
        assert all(n // 10 <= side <= n / 3 + 1 for side, n in zip(sides.tolist(), shape[1:], strict=True))


# -- all of them -------------------------------------------------------------------------------------------


def drawn(name, shape, share=1.0, seed=0, count=4):
    return Augmentation(**OFF, **{name: share}).draw(count, shape, torch.Generator().manual_seed(seed), K)


def test_each_range_belongs_to_one_change():
    assert len(set(RANGES)) == len(RANGES)
    assert {name for name in RANGES if drawn(name, SLICES).changes} == set(RANGES)
    assert not Augmentation().draw(4, SLICES, torch.Generator(), K).changes
    assert [kind.mixes for kind in CHANGES].count(True) == 1


@SHAPES
@pytest.mark.parametrize("name", RANGES)
def test_a_seed_says_how_images_look_and_no_look_is_infinite(shape, name):
    images, label = pictures(shape)
    before = images.clone()
    first, again, other = (drawn(name, shape, seed=seed).image(images, label=label) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert first.ne(before).flatten(1).any(1).sum() >= 3
    assert torch.equal(first, other) == (name == "invert")
    assert torch.equal(images, before)
    for constant in (0.0, 0.3, -1000.0, 1e6):
        flat = drawn(name, shape).image(torch.full_like(images, constant), label=label)
        assert torch.allclose(flat, torch.full_like(images, constant), rtol=1e-5, atol=1e-5)
    assert drawn(name, shape).image(images[:0], slice(0, 0), label[:0]).shape == (0, *shape)


@SHAPES
@pytest.mark.parametrize("name", RANGES)
def test_a_range_is_a_probability_and_the_others_stay_as_they_are(shape, name):
    images, label = pictures(shape, count=60)
    draw = drawn(name, shape, share=0.3, count=60)
    (change,) = draw.changes
    changed = draw.image(images, label=label)
    chosen = change.chosen.flatten()
    assert 8 <= chosen.sum() <= 30
    assert torch.equal(changed[~chosen], images[~chosen])
    assert drawn(name, shape, share=0.3, count=2000).changes[0].chosen.float().mean().item() == pytest.approx(
        0.3, abs=0.04
    )
    if not change.mixes:
        part = slice(7, 22)
        assert torch.allclose(draw.image(images[part], part, label[part]), changed[part], atol=1e-5)


def test_one_channel_says_nothing_of_another():
    """Each is changed in its own range; a random network alone sees them together."""
    images, label = pictures(SLICES)
    larger = images * torch.tensor([1.0, 100.0]).view(2, 1, 1)
    for name in set(RANGES) - {"gin", "label_gin", "ipa", "fourier"}:
        once, again = (drawn(name, SLICES).image(each, label=label) for each in (images, larger))
        assert torch.allclose(again[:, 0], once[:, 0], atol=1e-5), name
        assert torch.allclose(again[:, 1], 100 * once[:, 1], atol=1e-2), name
