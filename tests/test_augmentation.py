"""Each transform by its closed form, the three kinds of maps against each other, and the draws."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from augmentation import Augmentation, Draw, sampling_grid
from distance_maps import signed_distance_maps
from utils import UserError

OFF = {"flip": False, "rotate": 0, "contrast": 0, "gamma": 0}
RANGES = {
    "flips": {"flip": True},
    "rotation": {"rotate": 180},
    "size": {"scale": 0.5},
    "shift": {"shift": 5},
    "elastic": {"elastic": 2},
    "everything": {"flip": True, "rotate": 30, "scale": 0.2, "shift": 2, "elastic": 1.5},
}


def only(**ranges):
    return Augmentation(**{**OFF, **ranges})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(shape):
    """Distances from the centre of a slice along W and along H."""
    W, H = shape
    return torch.meshgrid(torch.arange(W) - (W - 1) / 2, torch.arange(H) - (H - 1) / 2, indexing="ij")


def disc(shape, radius, centre=(0.0, 0.0)):
    w, h = pixels(shape)
    return (torch.hypot(w - centre[0], h - centre[1]) <= radius).long()


def turned_by(degrees, shape, size=1.0):
    """A draw with one image, turned by so many degrees."""
    size = torch.tensor([size])
    grid = sampling_grid(shape, torch.tensor([math.radians(degrees)]), size, torch.zeros(1, 2, 1, 1), torch.ones(1, 2))
    return Draw(grid=grid, size=size)


def maps_of(label, n_class=2):
    return torch.from_numpy(np.stack([signed_distance_maps(each.numpy(), n_class) for each in label]))


@pytest.fixture
def images():
    return torch.rand(6, 2, 12, 17, generator=seeded(1))


# -- geometry ---------------------------------------------------------------------------------------------


def test_all_off_changes_nothing(images):
    draw, label = only().draw(6, (12, 17), seeded()), images[:, 0].gt(0.5).long()
    assert torch.equal(draw.image(images), images)
    assert torch.equal(draw.label(label), label)
    assert torch.equal(draw.distance(images), images)


def test_flips_move_whole_pixels_and_all_maps_alike(images):
    images = images.repeat(4, 1, 1, 1)
    label = (100 * images[:, 0]).long()
    draw = only(flip=True).draw(24, (12, 17), seeded())
    assert set(map(tuple, draw.flips.tolist())) == {(False, False), (False, True), (True, False), (True, True)}
    for b, flips in enumerate(draw.flips.tolist()):
        axes = [axis for axis, flip in zip((-2, -1), flips, strict=True) if flip]
        for moved, before in (
            (draw.image(images), images),
            (draw.distance(images), images),
            (draw.label(label), label),
        ):
            assert torch.equal(moved[b], before[b].flip(axes))


@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_quarter_turns_are_those_of_rot90(images, quarters):
    square = images[:1, :, :, :12]
    label = (100 * square[:, 0]).long()
    draw = turned_by(90 * quarters, (12, 12))
    assert torch.allclose(draw.image(square), square.rot90(quarters, (2, 3)), atol=1e-5)
    assert torch.equal(draw.label(label), label.rot90(quarters, (1, 2)))


def test_quarter_turn_of_a_rectangle_keeps_lengths():
    label = torch.zeros(1, 21, 11, dtype=torch.int64)
    label[0, 10, 2:9] = 1  # 7 pixels along H through the centre
    turned = turned_by(90, (21, 11)).label(label)
    expected = torch.zeros_like(label)
    expected[0, 7:14, 5] = 1
    assert torch.equal(turned, expected)


def moments(mask):
    """Area, centre and covariance of the pixels of a mask (W,H)."""
    w, h = pixels(mask.shape)
    places = torch.stack([w[mask], h[mask]])
    return places.shape[1], places.mean(1), places.cov(correction=0)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_rotation_is_rigid_on_a_rectangle(shape):
    label = disc(shape, 8, centre=(5, -4)).bool()
    area, centre, covariance = moments(label)
    for turned in only(rotate=180).draw(64, shape, seeded()).label(label.long().expand(64, -1, -1)).bool():
        turned_area, turned_centre, turned_covariance = moments(turned)
        assert turned_area == pytest.approx(area, rel=0.05)
        assert turned_centre.norm().item() == pytest.approx(centre.norm().item(), abs=0.2)
        assert torch.allclose(turned_covariance, covariance, atol=1)  # that of a disc is r²/4 in all directions


def test_beyond_the_border_the_image_goes_on_and_the_label_is_background():
    draw = turned_by(45, (30, 30))
    assert torch.allclose(draw.image(torch.full((1, 1, 30, 30), 7.0)), torch.tensor(7.0))
    turned = draw.label(torch.ones(1, 30, 30, dtype=torch.int64))
    assert turned[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 0, 0, 0]
    w, h = pixels((30, 30))
    assert turned[0][w.abs() + h.abs() < 20].all()
    ignored = draw.label(torch.ones(1, 30, 30, dtype=torch.int64), beyond=255)
    assert torch.equal(ignored, torch.where(turned == 1, 1, 255))


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_size_factor_is_that_of_the_diameter(size):
    grown = turned_by(0, (80, 60), size).label(disc((80, 60), 12)[None])
    assert math.sqrt(grown.sum().item() / math.pi) == pytest.approx(12 * size, abs=0.3)


def test_shift_by_whole_pixels():
    label = torch.arange(35).reshape(1, 5, 7)
    offset = torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1)
    grid = sampling_grid((5, 7), torch.zeros(1), torch.ones(1), offset, torch.ones(1, 2))
    moved = Draw(grid=grid).label(label)
    assert torch.equal(moved[0, :-1, 2:], label[0, 1:, :-2])
    assert not moved[0, -1].any()


def test_grid_flips_as_flips_before_it_would(images):
    flips = torch.tensor([[False, True], [True, False], [True, True]])
    angle, size, offset = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([1.0, 1.2, 0.9]), torch.randn(3, 2, 12, 17)
    grid, flipping = (
        sampling_grid((12, 17), angle, size, offset, sign) for sign in (torch.ones(3, 2), 1 - 2 * flips.float())
    )
    expected = Draw(flips=flips, grid=grid).image(images[:3])
    assert torch.allclose(Draw(grid=flipping).image(images[:3]), expected, atol=1e-4)


def test_elastic_displacements_have_the_asked_spread_and_are_smooth():
    offset = only(elastic=3.0)._draw_offset(500, (24, 33), seeded())
    corners = offset[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.std().item() == pytest.approx(3.0, rel=0.05)
    assert offset.diff(n=2, dim=2).abs().mean() < 0.1 * 3.0


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
def test_image_and_label_move_alike(ranges):
    label = disc((50, 40), 9, centre=(3, -2)).expand(32, -1, -1)
    draw = only(**ranges).draw(32, (50, 40), seeded())
    image, moved = draw.image(label[:, None].float())[:, 0], draw.label(label)
    inside = -maps_of(moved)[:, 1]
    assert moved.ne(label).any()
    assert torch.equal(image.gt(0.5)[inside.abs() > 1.5], moved.bool()[inside.abs() > 1.5])
    assert image.gt(0.5).ne(moved).float().mean() < 0.02


@pytest.mark.parametrize("name", ["flips", "rotation", "size", "shift"])
def test_distance_map_moves_with_the_label(name):
    label = disc((60, 50), 9, centre=(3, -2)).expand(32, -1, -1)
    draw = only(**RANGES[name]).draw(32, (60, 50), seeded())
    moved, truth = draw.distance(maps_of(label)), maps_of(draw.label(label))
    seen = draw.label(torch.ones_like(label)).bool()[:, None].expand_as(moved)  # not from over the border
    assert seen.float().mean() > 0.6
    assert (moved - truth)[seen].abs().max() < (1e-6 if name == "flips" else 1.2)
    assert (moved - truth)[seen].abs().mean() < 0.3


def test_arguments_stay_as_they_are(images):
    label, before = images[:, 0].gt(0.5).long(), images.clone()
    draw = Augmentation(scale=0.2, elastic=1, brightness=0.1, noise=0.1).draw(6, (2, 12, 17), seeded())
    draw.image(images), draw.label(label), draw.distance(images)
    assert torch.equal(images, before)
    assert torch.equal(label, before[:, 0].gt(0.5).long())


# -- grey levels ------------------------------------------------------------------------------------------


def test_contrast_and_gamma_are_a_power_of_a_multiple(images):
    draw = only(contrast=0.5, gamma=1).draw(6, (12, 17), seeded())
    assert torch.allclose(draw.image(images), (images * draw.contrast) ** draw.gamma)
    assert len(draw.contrast.unique()) == len(draw.gamma.unique()) == 6


def test_images_with_negative_values_have_neither_contrast_nor_gamma(images):
    images[::2, 1, 3, 4] = -0.1
    changed = only(contrast=0.5, gamma=1).draw(6, (12, 17), seeded()).image(images)
    assert torch.equal(changed[::2], images[::2])
    assert changed[1::2].ne(images[1::2]).flatten(1).any(1).all()


def test_brightness_is_measured_in_standard_deviations_of_the_channel(images):
    scores = torch.stack([images[:, 0] - 0.5, 10 * images[:, 1]], dim=1)
    draw = only(brightness=0.4).draw(6, (12, 17), seeded())
    offset = draw.image(scores) - scores
    expected = draw.brightness * scores.std((2, 3), correction=0, keepdim=True)
    assert torch.allclose(offset, expected.expand_as(offset), atol=1e-5)


def test_noise_has_its_share_of_the_standard_deviation():
    images = torch.rand(4, 2, 64, 64, generator=seeded(1)) * torch.tensor([1.0, 50.0]).reshape(1, 2, 1, 1)
    added = only(noise=0.2).draw(4, (2, 64, 64), seeded()).image(images) - images
    assert torch.allclose(added.std((2, 3)) / images.std((2, 3)), torch.tensor(0.2), rtol=0.06)
    assert abs(torch.corrcoef(added.transpose(0, 1).flatten(1))[0, 1]) < 0.05  # each channel has its own
    shared = only(noise=0.2).draw(4, (64, 64), seeded()).noise
    assert shared.shape == (4, 1, 64, 64)


# -- draws ------------------------------------------------------------------------------------------------

ALL = Augmentation(rotate=90, scale=0.5, shift=4, elastic=2, contrast=0.3, brightness=0.4, gamma=0.5, noise=0.1)


def test_same_seed_same_result(images):
    first, again, other = (ALL.draw(6, (2, 12, 17), seeded(seed)).image(images) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).flatten(1).all(1).any()


def test_next_draw_of_a_generator_is_another(images):
    generator = seeded()
    first, second = (ALL.draw(6, (2, 12, 17), generator).image(images) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("part", [slice(0, 2), slice(3, 6)])
def test_part_of_a_batch_is_those_rows_of_the_whole(images, part):
    draw, label = ALL.draw(6, (2, 12, 17), seeded()), (4 * images[:, 0]).long()
    assert torch.equal(draw.image(images[part], part), draw.image(images)[part])
    assert torch.equal(draw.label(label[part], part), draw.label(label)[part])
    assert torch.equal(draw.distance(images[part], part), draw.distance(images)[part])


def reaches(values, low, high):
    """Whether a thousand values fill the range and stay in it."""
    margin = 0.01 * (high - low)
    return low <= values.min() < low + margin and high - margin < values.max() <= high


def test_draws_fill_their_ranges():
    draw = ALL.draw(1000, (4, 4), seeded())
    assert reaches(draw.size.log(), -math.log(1.5) - 1e-6, math.log(1.5) + 1e-6)
    assert reaches(draw.contrast, 0.7, 1.3)
    assert reaches(draw.brightness, -0.4, 0.4)
    assert reaches(draw.gamma.log2(), -0.5 - 1e-6, 0.5 + 1e-6)
    assert torch.allclose(
        only(flip=True).draw(1000, (4, 4), seeded()).flips.float().mean(0), torch.tensor(0.5), atol=0.05
    )
    offset = only(shift=4)._draw_offset(1000, (4, 4), seeded())
    assert reaches(offset[:, 0], -4, 4)
    assert reaches(offset[:, 1], -4, 4)


def test_angles_fill_their_range():
    grid = only(rotate=90).draw(1000, (2, 2), seeded()).grid
    along_h, along_w = grid[:, 1, 1].unbind(-1)  # where the pixel at 45 degrees is read
    angle = torch.atan2(along_w, along_h) * 180 / math.pi - 45
    wrapped = (angle + 180) % 360 - 180
    assert reaches(wrapped, -90 - 1e-3, 90 + 1e-3)


def test_defaults_are_flips_45_degrees_contrast_and_gamma():
    draw = Augmentation().draw(1000, (4, 4), seeded())
    assert reaches(draw.contrast, 0.5, 1.5)
    assert reaches(draw.gamma, 0.5, 2)
    assert draw.size is draw.brightness is draw.noise is None
    assert torch.equal(draw.grid, only(flip=True, rotate=45).draw(1000, (4, 4), seeded()).grid)


def test_drawing_makes_all_tensors_on_the_device_of_the_generator():
    with torch.device("meta"):  # where a tensor that names no device ends up
        draw = ALL.draw(6, (2, 12, 17), seeded())
    assert {values.device.type for values in vars(draw).values() if values is not None} == {"cpu"}


def moved_to(device, draw):
    return Draw(**{name: values.to(device) for name, values in vars(draw).items() if values is not None})


class NoHostData(TorchDispatchMode):
    """Refuses tensors of host data, and values read back."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "lift_fresh"}
        return function(*args, **kwargs or {})


def test_drawing_reads_nothing_back():
    generator = seeded()
    with NoHostData():
        ALL.draw(6, (2, 12, 17), generator)


def test_applying_needs_neither_the_values_nor_the_host(images):
    """On the meta device there are no values to wait for, and no tensors of another device are let in."""
    draw, images = moved_to("meta", ALL.draw(6, (2, 12, 17), seeded())), images.to("meta")
    part = slice(0, 3)
    with NoHostData():
        assert draw.image(images[part], part).shape == (3, 2, 12, 17)
        assert draw.label(images[part, 0].long(), part).dtype == torch.int64
        assert draw.distance(images[part], part).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_host_synchronisation_on_a_gpu(images):
    images, generator = images.cuda(), torch.Generator("cuda").manual_seed(0)
    label = (4 * images[:, 0]).long()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw = ALL.draw(6, (2, 12, 17), generator)
        moved = draw.image(images), draw.label(label), draw.distance(images)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    host = moved_to("cpu", draw)
    assert torch.allclose(moved[0].cpu(), host.image(images.cpu()), atol=1e-4)
    assert moved[1].cpu().ne(host.label(label.cpu())).float().mean() < 0.01
    assert torch.allclose(moved[2].cpu(), host.distance(images.cpu()), atol=1e-4)


# -- OPT strings ------------------------------------------------------------------------------------------


def test_read_takes_defaults_for_what_is_left_out():
    assert Augmentation.read("{'rotate': 10, 'elastic': 3}") == Augmentation(rotate=10.0, elastic=3.0)
    assert Augmentation.read("{}") == Augmentation()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'rotat': 10}", r"no augmentation 'rotat'.*Did you mean 'rotate'.*Example"),
        ("{3: 10}", "no augmentation 3"),
        ("['rotate']", "dict of ranges"),
        ("{'rotate': '10'}", r"'rotate' expects a number in 0\.\.180, got '10'.*Example"),
        ("{'rotate': True}", "'rotate' expects a number"),
        ("{'rotate': 181}", "got 181"),
        ("{'rotate': -1}", "got -1"),
        ("{'elastic': 1e999}", "got inf"),
        ("{'contrast': 1.5}", r"number in 0\.\.1,"),
        ("{'flip': 1}", "'flip' expects True or False, got 1"),
        ("{'elastic_points': 4.0}", "whole number"),
        ("{'elastic_points': 1}", "whole number"),
        ("{'rotate': ", "Cannot read"),
    ],
)
def test_read_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        Augmentation.read(text)
