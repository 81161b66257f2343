"""Sums of a candidate: each against a transcription pixel by pixel, whatever the order of rows; what is kept."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch

from selection.measuring import BAND, by_class, clean_sums, measure, per_patient, spectrum, steepness, surest
from tests.selection.literal import (
    PASSES,
    Small,
    grey_levels,
    near,
    say,
    settings,
    smooth_images,
    world,
)
from tests.selection.literal import steepness as literal_steepness

WORLDS = [(2, 2, 1), (2, 3, 2), (2, 5, 1), (3, 2, 1), (3, 3, 2), (3, 5, 1)]


def clean_of_row(said, row, n_class, temperatures):
    """The sums of the pass over an image as it is."""
    p, label, logits = said.p("clean")[row], said.label("clean")[row], said.logits["clean"][row]
    found = {name: np.zeros(n_class) for name in ("size", "soft", "sure", "entropy", "soft_t", "sure_t")}
    grams = np.zeros((n_class, n_class, n_class))
    for place in np.ndindex(label.shape):
        k, q = label[place], p[(slice(None), *place)]
        cooled = np.exp(logits[(slice(None), *place)] / temperatures[k])
        cooled /= cooled.sum()
        found["size"][k] += 1
        found["soft"] += q
        found["sure"][k] += q[k]
        found["entropy"][k] -= (q * np.log(q)).sum()
        found["soft_t"] += cooled
        found["sure_t"][k] += cooled[k]
        grams[k] += np.outer(q, q)
    return found | {f"gram_{k}": grams[k].ravel() for k in range(n_class)}


def passes_of_row(said, row, n_class):
    """The sums of two passes, of every two, for the foreground; 0 for the background."""
    found = {}
    labels = {name: said.label(name)[row] for name in PASSES}
    for place, one in enumerate(PASSES):
        found[f"size_{one}"] = [k and np.sum(labels[one] == k) for k in range(n_class)]
        for other in PASSES[place + 1 :]:
            both = [k and np.sum((labels[one] == k) & (labels[other] == k)) for k in range(n_class)]
            found[f"both_{one}_{other}"] = both
    for view in PASSES[1:]:
        joint = found[f"joint_{view}"] = np.zeros(n_class)
        for place in np.ndindex(labels[view].shape):
            k = labels["clean"][place]
            if labels[view][place] == k > 0:
                joint[k] += np.sqrt(said.p("clean")[(row, k, *place)] * said.p(view)[(row, k, *place)])
    return found


def mixtures_of_row(said, row, n_class):
    """How often the mixture has the class of its larger part, of the pixels where either part is foreground."""
    found = {name: np.zeros(n_class) for name in ("intra", "intra_hit", "inter", "inter_hit")}
    first, second, answer = said.label("clean")[row], said.partners[row], said.label("mixture")[row]
    for place in np.ndindex(first.shape):
        a, b = first[place], second[place]
        if a:  # of what the larger part shows; of the background nobody asks
            found["intra" if a == b else "inter"][a] += 1
            found["intra_hit" if a == b else "inter_hit"][a] += answer[place] == a
    return found


def borders_of_row(said, row, n_class, image):
    """Numbers, grey levels and steepness of the pixels near the borders."""
    label, grey = said.label("clean")[row], grey_levels(image)
    steep = literal_steepness(grey)
    found = {f"{name}_{power}": [0] for name in ("edge", "near", "in", "out") for power in ("n", 1)}
    found |= {"in_2": [0], "out_2": [0]}
    for k in range(1, n_class):
        inside, outside = near(label, k, BAND, True), near(label, k, BAND, False)
        of_k = {
            "edge": [steep[place] for place in near(label, k, 1, True)],
            "near": [steep[place] for place in inside + outside],
            "in": [grey[place] for place in inside],
            "out": [grey[place] for place in outside],
        }
        for name, values in of_k.items():
            found[f"{name}_n"].append(len(values))
            found[f"{name}_1"].append(np.sum(values))
            if f"{name}_2" in found:
                found[f"{name}_2"].append(np.sum(np.square(values)))
    return found


@pytest.mark.parametrize(("axes", "n_class", "channels"), WORLDS)
def test_every_sum_is_that_of_its_pixels(axes, n_class, channels):
    there = world(axes, n_class, channels)
    for said in there.said:
        sums = said.measured.sums
        for row, image in enumerate(there.images.numpy()):
            expected = clean_of_row(said, row, n_class, there.temperatures) | passes_of_row(said, row, n_class)
            expected |= mixtures_of_row(said, row, n_class) | borders_of_row(said, row, n_class, image)
            assert set(expected) == set(sums)
            for name, values in expected.items():
                np.testing.assert_allclose(sums[name][row], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("axes", "n_class", "channels"), WORLDS)
def test_the_class_numbers_lie_at_their_rows(axes, n_class, channels):
    for said in world(axes, n_class, channels).said:
        masks = said.measured.masks
        assert len(masks) == 6
        assert all(mask.dtype == np.uint8 for mask in masks)
        np.testing.assert_array_equal(np.stack(list(masks)), said.label("clean"))


def test_the_world_is_worth_a_look():
    """Its candidates differ, classes lack, and the views change something: else the tests above would pass for less."""
    there = world(2, 3, 2)
    sizes = np.stack([said.measured.sums["size"].sum(0) for said in there.said])
    assert (sizes[:3] > 0).all()
    assert (sizes[3] > 0).tolist() == [True, False, False]
    assert (sizes[4] > 0).tolist() == [True, True, False]
    sums = there.said[0].measured.sums
    for view in PASSES[1:]:
        assert (sums[f"both_clean_{view}"].sum(0) < sizes[0]).any()
    assert all(sums[name].sum() for name in ("intra", "intra_hit", "inter", "inter_hit"))
    assert (sums["inter_hit"].sum() < sums["inter"].sum()).all()


# --------------------------------------------------------------------------------------------------- passes


class Pixelwise(Small):
    """Each pixel by its own grey level alone."""

    def forward(self, image, size=None):
        return self.classifier(image.repeat_interleave(12, 1))


@pytest.mark.parametrize("axes", [2, 3])
def test_a_flip_makes_no_difference_to_a_network_that_sees_single_pixels(axes):
    images = smooth_images((3, 1, 5, 6, 7)[: axes + 2], 0)
    images = images - images.mean()
    sums = measure(Pixelwise(3, axes), iter([(images, torch.arange(3))]), settings(3), None).sums
    np.testing.assert_array_equal(sums["both_clean_flip"][:, 1:], sums["size"][:, 1:])
    np.testing.assert_array_equal(sums["size_flip"][:, 1:], sums["size"][:, 1:])
    np.testing.assert_allclose(sums["joint_flip"][:, 1:], sums["sure"][:, 1:])
    assert not np.array_equal(sums["both_clean_noise"], sums["size"])


@pytest.mark.parametrize("axes", [2, 3])
def test_measuring_twice_gives_the_same_bits(axes):
    images = smooth_images((4, 2, 4, 9, 8)[: axes + 2], 0)
    net = Small(3, axes, 2)
    first, again = (say(net, images, [[2, 0], [3, 1]], [1, 2, 3]).measured for _ in range(2))
    for name, values in first.sums.items():
        np.testing.assert_array_equal(values, again.sums[name])
    assert list(map(bytes, first.masks)) == list(map(bytes, again.masks))


def test_noise_and_dropped_features_are_other_ones_in_the_next_batch():
    images = smooth_images((1, 1, 9, 8), 0).repeat(2, 1, 1, 1)
    net = Small(3, 2)
    said = say(net, images, [[0], [1]])
    same = {name: np.array_equal(*logits) for name, logits in said.logits.items()}
    assert [name for name in same if not same[name]] == ["noise", "dropout"]


def test_the_network_is_left_in_evaluation_without_hooks():
    net = Small(2, 2).train()
    say(net, smooth_images((2, 1, 6, 5), 0), [[0, 1]])
    assert not net.training
    assert not net.classifier._forward_pre_hooks
    assert "features" not in vars(net)


class Alike(Small):
    """The same network, whose features nobody can ask for."""

    def forward(self, image, size=None):
        logits = self.classifier(self.body(image).tanh())
        self.calls.append((image.clone(), logits.clone()))
        return logits


@pytest.mark.parametrize("crop", [None, (6, 6)])
def test_what_the_classifier_read_is_not_computed_again_and_gives_the_same_bits(crop):
    images, more = smooth_images((4, 1, 8, 9), 0), {"crop": crop}
    nets = Small(3, 2), Alike(3, 2)
    given = [(images[:2], torch.tensor([0, 1])), (images[2:], torch.tensor([2, 3]))]
    found, again = (measure(net, iter(given), settings(3, **more), None) for net in nets)
    for name, values in found.sums.items():
        np.testing.assert_array_equal(values, again.sums[name], err_msg=name)
    assert nets[1].computed == 0
    assert nets[0].computed == len(nets[0].calls) - (0 if crop else len(given))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_sums_at_half_precision_are_about_those_at_full(precision):
    images = smooth_images((2, 1, 16, 15), 0)
    images = images - images.mean()
    net = Small(3, 2, gain=1.0)
    full = say(net, images, [[0, 1]], [1.0, 2.0, 3.0]).measured.sums
    half = say(net, images, [[0, 1]], [1.0, 2.0, 3.0], precision=precision).measured.sums
    assert all(values.dtype == np.float64 for values in half.values())
    for name in ("size", "soft", "sure", "entropy", "soft_t", "sure_t", "joint_noise", "both_clean_dropout"):
        np.testing.assert_allclose(half[name], full[name], rtol=0.05, atol=3)
    assert np.array_equal(half["soft"], full["soft"]) == (precision == "fp32")


@pytest.mark.parametrize("axes", [2, 3])
def test_windows_see_the_views_too(axes):
    """A window of all of the image gives what a pass without windows does; smaller ones give about that."""
    images = smooth_images((2, 1, 6, 8, 10)[: axes + 2], 0)
    images = images - images.mean()
    net = Small(2, axes)
    whole = say(net, images, [[0, 1]]).measured.sums
    given = [(images, torch.arange(2))]
    one = measure(net, iter(given), settings(2, crop=tuple(images.shape[2:])), None).sums
    several = measure(net, iter(given), settings(2, crop=(6,) * axes), None).sums
    for name, values in whole.items():
        np.testing.assert_allclose(one[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(several["both_clean_flip"], whole["both_clean_flip"], rtol=0.2, atol=8)


# ----------------------------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (1, 1), (2, 1), (1, 6, 5), (4, 1, 5), (1, 1, 1)])
def test_an_image_with_a_side_of_one_pixel(size):
    images = smooth_images((2, 1, *size), 0)
    said = say(Small(2, len(size)), images, [[0, 1]])
    for row in range(2):
        for name, values in borders_of_row(said, row, 2, images[row].numpy()).items():
            np.testing.assert_allclose(said.measured.sums[name][row], values, atol=1e-5, err_msg=name)
    assert all(np.isfinite(values).all() for values in said.measured.sums.values())


@pytest.mark.parametrize("level", [0.0, 1e4])
def test_images_of_one_grey_level_give_numbers(level):
    said = say(Small(3, 2), torch.full((2, 1, 6, 5), level), [[0, 1]], [1.0, 1.0, 1.0])
    assert all(np.isfinite(values).all() for values in said.measured.sums.values())
    assert not said.measured.sums["edge_1"].any()


def test_steepness_is_the_norm_of_the_slopes_along_all_axes():
    w, h = np.mgrid[:5, :6]
    plane = torch.from_numpy(3.0 * w + 4.0 * h)
    torch.testing.assert_close(steepness(plane[None]), torch.full((1, 5, 6), 5.0, dtype=torch.float64))
    volume = plane[None, None].repeat(1, 3, 1, 1) + 12 * torch.arange(3).view(1, 3, 1, 1)
    torch.testing.assert_close(steepness(volume), torch.full((1, 3, 5, 6), 13.0, dtype=torch.float64))


def test_sums_over_many_pixels_lose_nothing():
    """2^24 ones are the last that float32 can count one by one."""
    ones = torch.ones(1, 2**24 + 3)
    labels = torch.zeros(1, 2**24 + 3, dtype=torch.int64)
    labels[0, 0] = 1
    assert by_class(ones, labels, 3).tolist() == [[2**24 + 2, 1, 0]]


def test_products_of_a_large_image_are_of_a_sample_in_which_each_pixel_keeps_its_class():
    labels = (torch.arange(300 * 320) % 320 // 7 % 3).view(1, 300, 320)
    p = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    for k, products in spectrum(p, labels).items():
        found, place = products.view(3, 3), int(k[-1])
        assert found.count_nonzero() == 1
        assert 1200 < found[place, place] < 1500


def test_a_byte_is_enough_for_256_classes():
    log_p = torch.zeros(1, 256, 2, 2)
    log_p[0, 255, 0, 0] = log_p[0, 128, 0, 1] = 1
    largest, labels = surest(log_p)
    assert largest.tolist() == [[[1, 1], [0, 0]]]
    assert labels.tolist() == [[[255, 128], [0, 0]]]  # the first of equal ones
    counts = by_class(torch.ones(1, 2, 2), labels, 256)
    assert counts[0, [0, 127, 128, 255]].tolist() == [2, 0, 1, 1]
    assert clean_sums(log_p, labels, [1.0] * 256)["size"].tolist() == counts.tolist()


def test_sums_of_slices_become_those_of_patients():
    sums = {"size": np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]), "gram_0": np.arange(16.0).reshape(4, 4)}
    found = per_patient(sums, ["b", "a", "b", "c"])
    assert found["size"].tolist() == [[6, 8], [3, 4], [7, 8]]
    assert found["gram_0"].tolist() == [[8, 10, 12, 14], [4, 5, 6, 7], [12, 13, 14, 15]]
    assert per_patient(sums, ["a"] * 4)["size"].tolist() == [[16, 20]]


# --------------------------------------------------------------------------------------------------- memory


def measured_with_memory(size, count=6):
    """What is measured of batches of two images, how many tensors as large as an image are there, and bytes kept."""
    images = torch.rand(2, 1, *size)
    images[..., size[1] // 2 :] += 1  # two halves: masks that pack well, as those of organs do
    tensors, kept = [], []

    def batches():
        for number in range(count):
            gc.collect()
            tensors.append(
                sum(type(each) is torch.Tensor and each.numel() >= images[0].numel() for each in gc.get_objects())
            )
            kept.append(tracemalloc.get_traced_memory()[0])
            yield images, torch.arange(2) + 2 * number

    net = Pixelwise(2, 2)
    with torch.no_grad():  # class 1 where it is bright
        net.classifier.weight.copy_(torch.tensor([-1.0, 1]).view(2, 1, 1, 1).expand(2, 12, 1, 1))
        net.classifier.bias.copy_(torch.tensor([12.0, -12]))
    gc.freeze()  # what was there before is looked at no more
    tracemalloc.start()
    try:
        return measure(net, batches(), settings(2), None), tensors, np.array(kept)
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def test_what_is_kept_does_not_grow_with_the_pixels():
    """Between batches there are no tensors but sums, and the class numbers are packed."""
    small, _, kept_of_small = measured_with_memory((32, 24))
    large, tensors, kept = measured_with_memory((192, 160))
    pixels = 2 * 192 * 160
    assert np.stack(list(large.masks)).mean() == 0.5
    assert max(tensors) <= tensors[1]
    assert kept[-1] - kept[2] - (kept_of_small[-1] - kept_of_small[2]) < 3 * pixels / 20  # unpacked: 3 * pixels
    assert sum(len(content) for content, _ in large.masks.parts) < 6 * pixels / 20
    assert all(values.shape == small.sums[name].shape for name, values in large.sums.items())
