"""Denoised pseudo labels: the formulas pixel by pixel, and what is measured before the first step."""

import copy
import math
import re
import statistics

import pytest
import torch

import methods.denoised as module
import methods.denoising as formulas
from datasets.streams import Batch
from nets.base import batch_norms
from networks import build_network
from processes.errors import UserError
from tests.methods.test_mean_teacher import Brighter
from tests.methods.test_pseudo_label import build
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"
SHAPES = [((9, 11), 2), ((9, 11), 4), ((4, 6, 5), 3)]


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pixels(maps):
    """(B, …, M) lists of what lies at each pixel of maps (B, M, …), one after another."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1]).tolist()


# -- formulas -----------------------------------------------------------------------------------------------------


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("shape", "n_class"), SHAPES)
def test_a_guess_is_the_mean_of_the_passes_and_their_spread_at_halved_logits(shape, n_class):
    logits, passes = [drawn(3, n_class, *shape, seed=seed, scale=2) for seed in range(5)], formulas.Passes()
    for each in logits:
        passes.add(each)
    guess = passes.guess()
    found = zip(guess.label.flatten(), guess.confidence.flatten(), guess.spread.flatten(), strict=True)
    for (label, confidence, spread), seen in zip(found, zip(*map(pixels, logits), strict=True), strict=True):
        mean = [statistics.fmean(column) for column in zip(*map(softmax, seen), strict=True)]
        best = mean.index(max(mean))
        halved = [softmax([value / 2 for value in each])[best] for each in seen]
        assert label == best
        assert confidence == pytest.approx(mean[best], rel=1e-10)
        assert spread == pytest.approx(statistics.stdev(halved), rel=1e-6)


def guessed(shape, n_class, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(n_class, (3, *shape), generator=generator)
    numbers = torch.rand(2, 3, *shape, dtype=torch.float64, generator=generator)
    return formulas.Guess(label, 0.3 + 0.7 * numbers[0], 0.1 * numbers[1])


@pytest.mark.parametrize(("shape", "n_class"), SHAPES)
def test_a_prototype_is_the_weighted_mean_feature_of_the_certain_pixels(shape, n_class):
    guess, features = guessed(shape, n_class), drawn(3, 5, *shape)
    sums = [[0.0] * 5 for _ in range(n_class)]
    weights = [0.0] * n_class
    rows = zip(guess.label.flatten().tolist(), guess.confidence.flatten(), guess.spread.flatten(), strict=True)
    for (label, confidence, spread), feature in zip(rows, pixels(features), strict=True):
        if spread < 0.05:
            weights[label] += confidence.item()
            sums[label] = [total + confidence.item() * value for total, value in zip(sums[label], feature, strict=True)]
    found = formulas.prototypes(formulas.weighted_features(guess, features, n_class, 0.05).sum(0))
    for k in range(n_class):
        assert found[k].tolist() == pytest.approx([total / weights[k] for total in sums[k]], rel=1e-5)


def test_a_class_without_a_certain_pixel_has_no_prototype_and_is_nearest_to_nothing():
    guess, features = guessed((6, 5), 2), drawn(3, 4, 6, 5).float()
    found = formulas.prototypes(formulas.weighted_features(guess, features, 3, 0.05).sum(0))
    assert found[2].isnan().all()
    assert found[:2].isfinite().all()
    assert formulas.nearest(features, found).unique().tolist() == [0, 1]


@pytest.mark.parametrize(("shape", "n_class"), SHAPES)
def test_the_nearest_prototype_is_that_of_the_smallest_distance(shape, n_class):
    features, prototypes = drawn(3, 5, *shape), drawn(n_class, 5, seed=1)
    found = formulas.nearest(features, prototypes).flatten().tolist()
    for label, feature in zip(found, pixels(features), strict=True):
        squares = [sum((f - z) ** 2 for f, z in zip(feature, each, strict=True)) for each in prototypes.tolist()]
        assert label == squares.index(min(squares))


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.4, 0.9])
def test_a_quantile_leaves_out_that_share_of_each_class(quantile):
    """As near as the width of a bin lets it, and never more."""
    guess = guessed((40, 50), 3)
    counts = formulas.counted_bins(guess, 3).sum(0)
    assert counts.sum(1).tolist() == guess.label.flatten().bincount().tolist()
    bins = formulas.quantile_bins(counts, quantile)
    for k in range(3):
        left_out = (guess.bin < bins[k])[guess.label == k].double().mean().item()
        assert quantile - 5e-3 < left_out <= quantile or left_out == quantile == 0
        threshold = guess.confidence[guess.label == k].quantile(quantile).item()
        assert bins[k].item() / formulas.BINS == pytest.approx(threshold, abs=3e-3)


def test_equal_confidences_are_kept_or_left_out_together():
    label = torch.zeros(1, 10, dtype=torch.int64)
    sure = formulas.Guess(label, torch.ones(1, 10), torch.zeros(1, 10))
    bins = formulas.quantile_bins(formulas.counted_bins(sure, 2).sum(0), 0.4)
    assert (sure.bin >= bins[0]).all()


@pytest.mark.parametrize(("shape", "n_class"), SHAPES)
def test_a_pixel_is_believed_for_three_reasons_together(shape, n_class):
    guess, features, prototypes = guessed(shape, n_class), drawn(3, 2, *shape), drawn(n_class, 2, seed=1)
    bins = torch.arange(n_class) * 100 + 400
    near = formulas.nearest(features, prototypes)
    found = formulas.believed(guess, features, prototypes, bins, 0.05)
    expected = [
        spread < 0.05 and near == label and int(confidence * 1000) >= bins[label]
        for label, confidence, spread, near in zip(
            *(each.flatten().tolist() for each in (guess.label, guess.confidence, guess.spread, near)), strict=True
        )
    ]
    assert found.flatten().tolist() == expected
    assert 0 < sum(expected) < len(expected)


# -- a run --------------------------------------------------------------------------------------------------------


def network(name="Dimwit:nG=6", n_class=2):
    torch.manual_seed(0)
    net = build_network(name, 1, n_class)
    torch.nn.init.normal_(net.classifier.weight, std=4)  # sure of some pixels
    return net


def make(*flags, losses=CROSS_ENTROPY, n_class=2, name="Dimwit:nG=6"):
    net = network(name, n_class)
    return build(*flags, method="denoised", losses=losses, net=net, n_class=n_class)


def batch_of(shape, seed=1):
    image = torch.rand(3, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return Batch(image, [None], [None], torch.arange(3))


class Stream:
    """Two batches, whatever the epoch."""

    def __init__(self, shape=(8, 10)):
        self.batches = [batch_of(shape, seed) for seed in (1, 2)]

    def epoch(self, epoch):
        return ((batch, None) for batch in self.batches)


def test_the_labelling_network_takes_the_mean_statistics_of_the_set():
    method, stream = make(), Stream()
    before = copy.deepcopy(method.net.state_dict())
    method.meet({"target": stream})
    conv, norm = method.net.body[0], batch_norms(method.source)[0]
    outs = [conv(batch.image).detach() for batch in stream.batches]
    expected = torch.stack([out.mean((0, 2, 3)) for out in outs]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)
    torch.testing.assert_close(norm.running_var, torch.stack([out.var((0, 2, 3)) for out in outs]).mean(0))
    assert norm.momentum == 0.1
    assert not any(part.training for part in method.source.modules())
    assert all(torch.equal(value, before[name]) for name, value in method.net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "shape"), [("Dimwit:nG=6", (8, 10)), ("UNet:nG=4", (9, 10)), ("UNet3D:width=2,depth=1", (4, 5, 6))]
)
def test_prototypes_and_quantiles_are_of_the_whole_set(name, shape):
    """Ten passes one after another, all images in one batch."""
    method, stream = make(name=name), Stream(shape)
    method.meet({"target": stream})
    image = torch.cat([batch.image for batch in stream.batches])
    passes, net = formulas.Passes(), method.source
    with torch.no_grad():
        padded = net.pad(image)
        maps = net.features(padded)[-1]
        inside = tuple(slice(size) for size in shape)
        for kept in method.kept:
            passes.add(net.classifier(maps * kept.view(1, -1, *[1] * net.axes))[(..., *inside)])
    features = maps[(..., *inside)]
    guess = passes.guess()
    sums = formulas.weighted_features(guess, features, 2, 0.05).sum(0)
    torch.testing.assert_close(method.prototypes, formulas.prototypes(sums), equal_nan=True)
    expected = formulas.quantile_bins(formulas.counted_bins(guess, 2).sum(0), 0.4)
    assert (method.bins - expected).abs().max() <= 1  # rounding may put a pixel into the bin beside
    assert method.kept.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert len(method.kept) == 10


def test_the_label_of_an_image_depends_on_that_image_alone_and_stays():
    method, stream = make("--quantile", "0.1", "--most_spread", "0.2"), Stream()
    method.meet({"target": stream})
    batch = stream.batches[0]
    first = method.pseudo_label(batch)
    alone = [method.pseudo_label(Batch(batch.image[i : i + 1], [None], [None], torch.arange(1))) for i in range(3)]
    assert torch.equal(torch.cat(alone), first)
    for _ in range(3):
        method.step({"target": batch})
    assert torch.equal(method.pseudo_label(batch), first)
    assert 1 < len(first.unique())


@pytest.mark.parametrize("losses", [CROSS_ENTROPY, "[('CrossEntropy', {}, 0.5), ('DiceLoss', {}, 0.5)]"])
def test_a_step_learns_the_labels_that_are_believed_and_nothing_else(losses, monkeypatch):
    monkeypatch.setattr(module, "STRONG_VIEW", Brighter())
    method, stream = make("--quantile", "0.1", "--most_spread", "0.2", losses=losses), Stream()
    method.meet({"target": stream})
    batch = stream.batches[0]
    label = method.pseudo_label(batch)
    twin = copy.deepcopy(method.net)
    log_p = twin(batch.image + 0.1).double().log_softmax(1)
    known = label < 2
    total = -log_p.gather(1, label.clamp_max(1).unsqueeze(1)).squeeze(1)[known].mean()
    if "Dice" in losses:
        total = total / 2
        for b in range(3):
            for k in range(2):
                p, y = log_p[b, k].exp()[known[b]], (label[b] == k)[known[b]].double()
                cost = 1 - 2 * (p * y).sum() / (p.sum() + y.sum()) if y.sum() else p.sum() / known[b].numel()
                total = total + cost / 12
    total.backward()
    terms, logits = method.step({"target": Batch(batch.image, [None], [None] * losses.count("('"), batch.rows)})
    assert terms["tot"].item() == pytest.approx(total.item(), rel=1e-5)
    assert terms["believed"].item() == pytest.approx(known.double().mean().item())
    assert 0 < terms["pseudo_share"] < terms["believed"] < 1
    assert logits.shape == (3, 2, 8, 10)
    for ours, theirs in zip(method.net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_a_class_that_nothing_is_learnt_of_is_told():
    told = []
    for lead in (0.0, 1e3):
        method = make("--most_spread", "0.5")
        torch.nn.init.constant_(method.source.classifier.bias[0], lead)  # of class 0
        method.meet({"target": Stream()})
        told.append([re.search(r"class \d", note)[0] for note in method.notes])
    assert told == [[], ["class 1"]]


def test_no_step_looks_at_a_value():
    method, stream = make("--optimiser", "sgd"), Stream()
    method.meet({"target": stream})
    with Watch():
        method.step({"target": stream.batches[0]})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--dropout", "1"), "--dropout is 1"),
        (("--quantile", "-0.1"), "--quantile is -0.1"),
        (("--passes", "1"), "--passes is 1"),
        (("--most_spread", "0"), "--most_spread is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(flags, said):
    with pytest.raises(UserError, match=said):
        make(*flags)
