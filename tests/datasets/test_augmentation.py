"""Each transform by its closed form, the three kinds of maps against each other, and the draws."""

import math
import re
from dataclasses import is_dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from datasets import appearance
from datasets.augmentation import GLOBAL_VIEW, LOCAL_VIEW, Augmentation, spell_out
from datasets.distance_maps import signed_distance_maps
from datasets.draw import Draw, equalised, sampling_grid
from datasets.presets import PRESETS
from processes.errors import UserError

OFF = {"flip": False, "rotate": 0, "contrast": 0, "gamma": 0}
RANGES = {
    "flips": {"flip": True},
    "rotation": {"rotate": 180},
    "size": {"scale": 0.5},
    "shift": {"shift": 5},
    "turns": {"turn": 45},
    "crop": {"crop": 0.85},
    "elastic": {"elastic": 2},
    "everything": {"flip": True, "rotate": 30, "scale": 0.2, "shift": 2, "elastic": 1.5},
    "one of all": {"flip": True, "rotate": 30, "scale": 0.2, "turn": 30, "one_of": True},
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
    offset = only(elastic=3.0)._draw_displacement(500, (24, 33), seeded())
    corners = offset[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.std().item() == pytest.approx(3.0, rel=0.05)
    assert offset.diff(n=2, dim=2).abs().mean() < 0.1 * 3.0


def test_turns_are_multiples_and_all_occur():
    square = torch.rand(1, 1, 12, 12, generator=seeded(1))
    turned = only(turn=90).draw(64, (12, 12), seeded()).image(square.expand(64, -1, -1, -1))
    quarters = torch.stack([square[0].rot90(n, (1, 2)) for n in range(4)])
    same = torch.isclose(turned[:, None], quarters, atol=1e-5).flatten(2).all(2)
    assert same.any(1).all()
    assert same.any(0).all()


def test_crop_is_a_part_of_the_slice_resized_to_the_whole():
    w, h = pixels((24, 16))
    images = torch.stack([w, h]).expand(1000, -1, -1, -1)  # that tell where a pixel was read
    draw = only(crop=0.5).draw(1000, (24, 16), seeded())
    read = draw.image(images)
    across = read.amax((2, 3)) - read.amin((2, 3))
    assert torch.allclose(across, torch.tensor([11.5, 7.5]), atol=0.3)  # half the side; less where it meets the border
    centre = read[:, :, 11:13, 7:9].mean((2, 3))
    assert reaches(centre[:, 0], -6.001, 6.001)
    assert reaches(centre[:, 1], -4.001, 4.001)
    assert torch.equal(draw.size, torch.full((1000,), 2.0))


def test_crop_is_resized_bilinearly():
    image, place = torch.rand(1, 2, 24, 16, generator=seeded(1)), torch.tensor([4.0, -3.0]).reshape(1, 2, 1, 1)
    grid = sampling_grid((24, 16), torch.zeros(1), torch.full((1,), 2.0), place, torch.ones(1, 2))
    expected = F.interpolate(image[:, :, 10:22, 1:9], (24, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(Draw(grid=grid).image(image)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5)


def test_one_of_gives_an_image_one_kind_of_move_or_none():
    draw = only(flip=True, rotate=15, scale=0.05, turn=45, one_of=True).draw(10_000, (2, 2), seeded())
    along_w, along_h = (draw.grid[:, 1, 0] - draw.grid[:, 0, 0]).T, (draw.grid[:, 0, 1] - draw.grid[:, 0, 0]).T
    turned = along_h[1].abs() > 1e-4
    flipped = along_h[0] * along_w[1] - along_h[1] * along_w[0] < 0
    moves = torch.stack([draw.size.ne(1), turned, flipped])
    assert moves.sum(0).max() == 1
    expected = torch.tensor([1, 1 + 6 / 8, 1 / 2]) / 5  # two of eight turns and half the flips leave the axes alone
    assert torch.allclose(moves.float().mean(1), expected, atol=0.02)
    assert (along_h[0] < 0)[flipped].all()  # the last axis


def test_one_of_what_is_off_moves_nothing(images):
    assert torch.equal(only(one_of=True).draw(6, (12, 17), seeded()).image(images), images)


def test_elastic_share_is_that_of_the_deformed_images():
    displacement = only(elastic=3, elastic_share=0.3)._draw_displacement(2000, (4, 4), seeded())
    assert displacement.flatten(1).any(1).float().mean().item() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
def test_image_and_label_move_alike(ranges):
    label = disc((50, 40), 9, centre=(3, -2)).expand(32, -1, -1)
    draw = only(**ranges).draw(32, (50, 40), seeded())
    image, moved = draw.image(label[:, None].float())[:, 0], draw.label(label)
    inside = -maps_of(moved)[:, 1]
    assert moved.ne(label).any()
    assert torch.equal(image.gt(0.5)[inside.abs() > 1.5], moved.bool()[inside.abs() > 1.5])
    assert image.gt(0.5).ne(moved).float().mean() < 0.02


@pytest.mark.parametrize("name", ["flips", "rotation", "size", "shift", "turns", "crop"])
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


def test_spread_keeps_the_mean_of_each_channel(images):
    scores = images - 0.5
    draw = only(spread=0.3).draw(6, (12, 17), seeded())
    spread = draw.image(scores)
    assert torch.allclose(spread.mean((2, 3)), scores.mean((2, 3)), atol=1e-6)
    assert torch.allclose(spread.std((2, 3)), scores.std((2, 3)) * draw.spread[:, :, 0, 0])


def test_offset_is_in_grey_levels(images):
    draw = only(offset=0.3).draw(6, (12, 17), seeded())
    assert torch.equal(draw.image(10 * images), 10 * images + draw.offset)


def test_either_is_a_factor_or_an_offset():
    draw = only(contrast=0.5, spread=0.2, brightness=0.1, offset=0.1, either=True).draw(2000, (4, 4), seeded())
    multiplied, added = draw.contrast.ne(1), draw.offset.ne(0)
    assert torch.equal(multiplied, ~added)
    assert torch.equal(multiplied, draw.spread.ne(1))
    assert torch.equal(added, draw.brightness.ne(0))
    assert added.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_clip_cuts_every_image(images):
    images[0, 0, 0, 0] = -0.1
    clipped, free = (only(offset=0.9, clip=each).draw(6, (12, 17), seeded()).image(images) for each in (1.2, 0))
    assert torch.equal(clipped, free.clamp(0, 1.2))
    assert free.min() < 0
    assert free.max() > 1.2


def test_equalised_levels_are_even_and_keep_order_range_and_ties():
    image = torch.tensor([[[5.0, -1.0, 0.0, 5.0], [0.0, 0.5, 0.0, -1.0]]])[None]
    expected = torch.tensor([[[5.0, -1.0, 2.0, 5.0], [2.0, 3.0, 2.0, -1.0]]])[None]  # -1 + 6 (rank - 2) / (8 - 2)
    assert torch.allclose(equalised(image), expected)
    assert torch.equal(equalised(torch.full((1, 2, 3, 3), 7.0)), torch.full((1, 2, 3, 3), 7.0))
    channels = torch.rand(2, 3, 8, 9, 10, generator=seeded()) ** 4 * torch.tensor([1.0, 5.0, 90.0]).reshape(3, 1, 1, 1)
    even = equalised(channels).flatten(2)
    assert torch.equal(even.argsort(-1), channels.flatten(2).argsort(-1))
    for quantile in (0.0, 0.25, 0.5, 1.0):
        low, high = channels.flatten(2).aminmax(dim=-1)
        assert torch.allclose(even.quantile(quantile, dim=-1), low + quantile * (high - low), rtol=1e-3)


def test_equalise_is_a_probability(images):
    images = images.repeat(100, 1, 1, 1)
    draw = only(equalise=0.25).draw(600, (2, 12, 17), seeded())
    changed = draw.image(images)
    chosen = draw.equalise[:, 0, 0, 0]
    assert torch.equal(changed[chosen], equalised(images)[chosen])
    assert torch.equal(changed[~chosen], images[~chosen])
    assert chosen.float().mean().item() == pytest.approx(0.25, abs=0.06)


# -- draws ------------------------------------------------------------------------------------------------

ALL = Augmentation(
    flip=True, rotate=90, scale=0.5, shift=4, elastic=2, contrast=0.3, brightness=0.4, gamma=0.5, noise=0.1
)
NEW = replace(ALL, turn=30, crop=0.8, elastic_share=0.5, equalise=0.5, spread=0.2, offset=0.1, clip=1.5)
SEEN = replace(NEW, **dict.fromkeys(appearance.RANGES, 0.5))
EVERY = [ALL, NEW, replace(NEW, one_of=True, either=True), SEEN]
BOTH = pytest.mark.parametrize("ranges", EVERY, ids=["old", "new", "one", "appearance"])


def test_seeds_go_on_drawing_what_they_always_drew():
    ranges = Augmentation(flip=True, rotate=45, scale=0.5, shift=4, elastic=2, brightness=0.4, noise=0.1)
    moved = ranges.draw(2, (1, 3, 3), seeded()).image(torch.arange(18.0).reshape(2, 1, 3, 3))
    expected = torch.tensor([[7.0507689, 6.3817196, 6.0830898], [4.5418024, 4.1891603, 3.1599560]])
    assert torch.allclose(moved[:, 0, 1], expected, atol=1e-4)


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
    draw, label = NEW.draw(6, (2, 12, 17), seeded()), (4 * images[:, 0]).long()
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
    offset = only(shift=4)._draw_displacement(1000, (4, 4), seeded())
    assert reaches(offset[:, 0], -4, 4)
    assert reaches(offset[:, 1], -4, 4)


def test_angles_fill_their_range():
    grid = only(rotate=90).draw(1000, (2, 2), seeded()).grid
    along_h, along_w = grid[:, 1, 1].unbind(-1)  # where the pixel at 45 degrees is read
    angle = torch.atan2(along_w, along_h) * 180 / math.pi - 45
    wrapped = (angle + 180) % 360 - 180
    assert reaches(wrapped, -90 - 1e-3, 90 + 1e-3)


def test_defaults_are_15_degrees_contrast_and_gamma():
    """And no flip, nor a turn round: classes may be told by their place."""
    draw = Augmentation().draw(1000, (4, 4), seeded())
    assert reaches(draw.contrast, 0.5, 1.5)
    assert reaches(draw.gamma, 0.5, 2)
    assert draw.size is draw.brightness is draw.noise is None
    assert torch.equal(draw.grid, only(rotate=15).draw(1000, (4, 4), seeded()).grid)


@BOTH
def test_drawing_makes_all_tensors_on_the_device_of_the_generator(ranges):
    with torch.device("meta"):  # where a tensor that names no device ends up
        draw = ranges.draw(6, (2, 12, 17), seeded(), n_class=4)
    assert {each.device.type for part in (draw, *draw.changes) for each in tensors(part)} == {"cpu"}


def tensors(drawn):
    """Those of a draw, or of one of its changes."""
    values = [each for value in vars(drawn).values() for each in (value if isinstance(value, tuple) else [value])]
    return [each for each in values if torch.is_tensor(each)]


def moved_to(device, drawn):
    """A draw on another device, or one of its changes, or a value of either."""
    if isinstance(drawn, tuple):
        return tuple(moved_to(device, each) for each in drawn)
    if is_dataclass(drawn):
        return replace(drawn, **{name: moved_to(device, each) for name, each in vars(drawn).items()})
    return drawn.to(device) if torch.is_tensor(drawn) else drawn


class NoHostData(TorchDispatchMode):
    """Refuses tensors of host data, and values read back."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "lift_fresh"}
        return function(*args, **kwargs or {})


@BOTH
def test_drawing_reads_nothing_back(ranges):
    generator = seeded()
    with NoHostData():
        ranges.draw(6, (2, 12, 17), generator, n_class=4)


@BOTH
def test_applying_needs_neither_the_values_nor_the_host(images, ranges):
    """On the meta device there are no values to wait for, and no tensors of another device are let in."""
    draw, images = moved_to("meta", ranges.draw(6, (2, 12, 17), seeded(), n_class=4)), images.to("meta")
    part = slice(0, 3)
    with NoHostData():
        assert draw.image(images[part], part, images[part, 0].long()).shape == (3, 2, 12, 17)
        assert draw.label(images[part, 0].long(), part).dtype == torch.int64
        assert draw.distance(images[part], part).is_meta


@BOTH
@pytest.mark.gpu
def test_no_host_synchronisation_on_a_gpu(images, ranges):
    images, generator = images.cuda(), torch.Generator("cuda").manual_seed(0)
    label = (4 * images[:, 0]).long()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw = ranges.draw(6, (2, 12, 17), generator, n_class=4)
        moved = draw.image(images, label=label), draw.label(label), draw.distance(images)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    draw = replace(draw, equalise=None, changes=())  # which rank, or count in cells, the rounding of the grid
    host = moved_to("cpu", draw)
    assert torch.allclose(draw.image(images).cpu(), host.image(images.cpu()), atol=1e-4)
    assert torch.allclose(equalised(images).cpu(), equalised(images.cpu()), atol=1e-5)
    assert moved[1].cpu().ne(host.label(label.cpu())).float().mean() < 0.01
    assert torch.allclose(moved[2].cpu(), host.distance(images.cpu()), atol=1e-4)


# -- volumes ----------------------------------------------------------------------------------------------


@pytest.fixture
def volumes():
    return torch.rand(16, 2, 5, 12, 17, generator=seeded(2))


def test_volumes_are_flipped_along_three_axes(volumes):
    label = (100 * volumes[:, 0]).long()
    draw = only(flip=True).draw(16, (2, 5, 12, 17), seeded())
    assert draw.flips.any(0).tolist() == [True] * 3
    for b, flips in enumerate(draw.flips.tolist()):
        axes = [axis for axis, flip in zip((-3, -2, -1), flips, strict=True) if flip]
        for moved, before in (
            (draw.image(volumes), volumes),
            (draw.distance(volumes), volumes),
            (draw.label(label), label),
        ):
            assert torch.equal(moved[b], before[b].flip(axes))


def test_planes_of_a_volume_move_alike_and_as_slices_do(volumes):
    draw = replace(NEW, equalise=0, brightness=0, noise=0, contrast=0, gamma=0, spread=0, offset=0, clip=0).draw(
        16, (2, 5, 12, 17), seeded()
    )
    slices, order = Draw(grid=draw.grid, size=draw.size), draw.flips[:, 0]
    assert order.any()
    assert not order.all()
    label = (4 * volumes[:, 0]).long()
    for d in range(5):
        before, labelled = volumes[:, :, d].clone(), label[:, d].clone()
        before[order], labelled[order] = volumes[order, :, 4 - d], label[order, 4 - d]
        assert torch.allclose(draw.image(volumes)[:, :, d], slices.image(before))
        assert torch.allclose(draw.distance(volumes)[:, :, d], slices.distance(before))
        assert torch.equal(draw.label(label)[:, d], slices.label(labelled))


@pytest.mark.parametrize(
    "ranges",
    [{"contrast": 0.5, "gamma": 1}, {"spread": 0.3}, {"brightness": 0.4}, {"offset": 1, "clip": 1}, {"equalise": 0.5}],
)
def test_grey_levels_of_a_volume_are_those_of_its_pixels_in_one_plane(volumes, ranges):
    volumes[0] -= 0.5
    moved = only(**ranges).draw(16, (2, 5, 12, 17), seeded()).image(volumes)
    plane = only(**ranges).draw(16, (2, 60, 17), seeded()).image(volumes.flatten(2, 3))
    assert torch.allclose(moved.flatten(2, 3), plane, atol=1e-6)
    assert moved.ne(volumes).any()


def test_each_voxel_has_its_own_noise(volumes):
    noise = only(noise=0.2).draw(16, (2, 5, 12, 17), seeded()).noise
    assert noise.shape == volumes.shape
    assert len(noise.unique()) > 0.9 * noise.numel()


# -- published settings -----------------------------------------------------------------------------------


def test_docstring_has_the_published_fine_tuning():
    ranges = Augmentation.read(re.search(r"\{.*\}", Augmentation.__doc__, re.DOTALL).group())
    draw = ranges.draw(1000, (1, 16, 16), seeded())
    assert ranges == only(
        flip=True, rotate=15, scale=0.05, turn=45, one_of=True, elastic=5, elastic_points=3, elastic_share=0.5,
        spread=0.2, offset=0.1, either=True,
    )  # fmt: skip
    assert reaches(draw.spread, 0.8, 1.2)
    assert reaches(draw.offset, -0.1, 0.1)
    assert draw.contrast is draw.gamma is draw.noise is None


def test_views_of_the_contrastive_stages():
    images = torch.rand(1000, 1, 10, 7, generator=seeded(1))
    first, second = (LOCAL_VIEW.draw(1000, (1, 10, 7), seeded(seed)) for seed in (1, 2))
    assert reaches(first.spread, 0.7, 1.3)
    assert reaches(first.offset, -0.3, 0.3)
    assert first.grid is first.flips is None  # stage 2: what corresponds stays in place
    mean = images.mean((2, 3), keepdim=True)
    expected = ((images + first.offset) - (mean + first.offset)) * first.spread + mean + first.offset
    assert torch.allclose(first.image(images), expected.clamp(0, 1.5), atol=1e-6)
    assert not torch.equal(first.image(images), second.image(images))
    whole = GLOBAL_VIEW.draw(1000, (1, 10, 7), seeded())
    assert torch.allclose(whole.size, torch.tensor(1.92))
    assert whole.image(images).shape == images.shape


# -- OPT strings ------------------------------------------------------------------------------------------


def test_read_takes_defaults_for_what_is_left_out():
    assert Augmentation.read("{'rotate': 10, 'elastic': 3}") == Augmentation(rotate=10.0, elastic=3.0)
    assert Augmentation.read("{}") == Augmentation()


@pytest.mark.parametrize("name", PRESETS)
def test_read_knows_presets_alone_and_with_changes(name):
    assert Augmentation.read(name) == Augmentation(**PRESETS[name])
    changed = Augmentation.read(f"{{'preset': '{name}', 'rotate': 30, 'flip': True}}")
    assert changed == replace(Augmentation(**PRESETS[name]), rotate=30, flip=True)
    assert Augmentation.read(spell_out(f"{{'preset': {name}, 'scale': 0}}")) == Augmentation(
        **PRESETS[name] | {"scale": 0}
    )


def test_what_names_no_preset_is_noted_as_it_was_written():
    assert spell_out("{'rotate':  5}") == "{'rotate':  5}"


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
        ("{'either': 0}", "'either' expects True or False"),
        ("{'turn': 50}", r"'turn' expects 0, or degrees in 1\.\.360 that divide 360, got 50"),
        ("{'turn': 0.5}", "'turn' expects"),
        ("{'turn': True}", "'turn' expects"),
        ("{'crop': 1.1}", r"'crop' expects a number in 0\.\.1,"),
        ("{'elastic_points': 4.0}", "whole number"),
        ("{'elastic_points': 1}", "whole number"),
        ("{'rotate': ", "Cannot read"),
        ("slag", "no augmentation called 'slag'. Did you mean 'slaug'"),
        ("{'preset': ['gin']}", "no augmentation called"),
        ("{'preset': 'gin', 'gamm': 1}", "no augmentation 'gamm'"),
        ("{'label_curves': 2}", r"'label_curves' expects a number in 0\.\.1, got 2"),
    ],
)
def test_read_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        Augmentation.read(text)
