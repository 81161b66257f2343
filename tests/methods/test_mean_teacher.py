"""Class-balanced mean teacher: its weights a class, what the student learns, and what the teacher becomes."""

import copy
import math

import pytest
import torch

import methods.mean_teacher as module
from datasets.augmentation import STRONG_VIEW
from datasets.streams import Batch
from methods.averaging import follow
from nets.probabilities import one_hot
from networks import build_network
from processes.errors import UserError
from tests.methods.test_pseudo_label import Toy, build, images
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"


def make(*flags, axes=2, n_class=2, losses=CROSS_ENTROPY, spread=3):
    net = Toy(axes, n_class)
    torch.nn.init.normal_(net.classifier.weight, std=spread)  # the wider, the surer
    return build(*flags, method="mean_teacher", losses=losses, net=net, n_class=n_class)


def batch_of(shape, n_class, seed=1):
    image, _ = images(3, seed, shape, n_class)
    return Batch(image, [None], [None], torch.arange(3))


class Brighter:
    """In place of the view of a student."""

    def draw(self, count, shape, generator):
        return self

    def image(self, image, part):
        return image + 0.1


class Stream:
    """Two batches, whatever the epoch."""

    def __init__(self, shape, n_class):
        self.batches = [batch_of(shape, n_class, seed) for seed in (1, 2)]

    def epoch(self, epoch):
        return ((batch, None) for batch in self.batches)


def doubts_by_hand(probs, threshold):
    """(K,) sums and numbers over the uncertain pixels, one pixel after another; and the labels."""
    n_class = probs.shape[1]
    sums, counts, labels = [0.0] * n_class, [0] * n_class, []
    for pixel in probs.movedim(1, -1).reshape(-1, n_class).tolist():
        believed = max(pixel[1:])
        label = pixel.index(believed, 1) if believed > threshold else 0
        labels.append(label)
        if 0.2 * threshold < believed < 1 - 0.2 * (1 - threshold):
            sums[label] -= math.log(pixel[label])
            counts[label] += 1
    return sums, counts, labels


@pytest.mark.parametrize(("shape", "n_class"), [((9, 11), 2), ((9, 11), 4), ((4, 6, 5), 3)])
def test_doubts_are_the_mean_loss_of_the_uncertain_pixels_of_each_class(shape, n_class):
    generator = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(5, n_class, *shape, dtype=torch.float64, generator=generator)).softmax(1)
    sums, counts, labels = doubts_by_hand(probs, 0.6)
    found = module.doubts(probs.log(), torch.tensor(labels).view(5, *shape), 0.6)
    assert min(counts) > 0
    assert found[1].tolist() == counts
    assert found[0].tolist() == pytest.approx(sums, rel=1e-12)
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    assert module.balance(found).tolist() == pytest.approx([means[0] / mean for mean in means], rel=1e-6)


def test_a_class_without_an_uncertain_pixel_has_the_weight_1():
    assert module.balance(torch.tensor([[4.0, 3.0, 0.0], [2.0, 3.0, 0.0]])).tolist() == [1, 2, 1]
    assert module.balance(torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 2.0]])).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("shape", "n_class"), [((8, 10), 2), ((8, 10), 4), ((4, 6, 8), 3)])
def test_the_student_learns_the_weighted_labels_of_the_teacher(shape, n_class, monkeypatch):
    """Value, and gradient by what the student predicts, against a loop over the pixels in float64."""
    monkeypatch.setattr(module, "STRONG_VIEW", Brighter())
    method = make("--threshold_value", "0.6", axes=len(shape), n_class=n_class)
    batch, weights = batch_of(shape, n_class), torch.linspace(1, 3, n_class)
    method.class_weights = weights
    with torch.no_grad():
        taught = method.net(batch.image).double().softmax(1)
    labels = doubts_by_hand(taught, 0.6)[2]
    twin = copy.deepcopy(method.student).double()
    log_p = twin(batch.image.double() + 0.1).log_softmax(1).movedim(1, -1).reshape(-1, n_class)
    assert len(set(labels)) == n_class
    total = weight = 0.0
    for pixel, label in zip(log_p, labels, strict=True):
        total, weight = total - weights[label].item() * pixel[label], weight + weights[label].item()
    (total / weight).backward()
    terms, logits = method.step({"target": batch})
    assert terms["tot"].item() == pytest.approx((total / weight).item(), rel=1e-5)
    assert terms["pseudo_share"].item() == pytest.approx(sum(label > 0 for label in labels) / len(labels))
    torch.testing.assert_close(
        method.student.classifier.weight.grad.double(), twin.classifier.weight.grad, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(logits.softmax(1).double(), taught, rtol=1e-4, atol=1e-6)


def test_the_teacher_follows_the_student_and_is_the_network():
    method = make("--ema", "0.9", "--l_rate", "0.1")
    before, batch = copy.deepcopy(method.net), batch_of((8, 10), 2)
    expected = copy.deepcopy(before)
    for _ in range(3):
        method.step({"target": batch})
        follow(expected, method.student, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(method.net.parameters(), expected.parameters(), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(method.net.parameters(), before.parameters(), strict=True)]
    assert all(moved)
    assert [method.net.training, method.student.training] == [False, True]
    assert all(parameter.grad is None for parameter in method.net.parameters())


def noted_by_hand(net, batch):
    with torch.no_grad():
        return torch.tensor(doubts_by_hand(net(batch.image).double().softmax(1), 0.6)[:2], dtype=torch.float64)


def test_the_weights_of_an_epoch_come_from_the_epoch_before_and_the_first_from_the_source_network():
    method, stream = make("--threshold_value", "0.6", n_class=3, spread=1), Stream((16, 20), 3)
    assert method.class_weights.tolist() == [1, 1, 1]
    method.meet({"target": stream})
    noted = sum(noted_by_hand(method.net, batch) for batch in stream.batches)
    method.begin_epoch(0)
    first = method.class_weights.tolist()
    assert first == pytest.approx(module.balance(noted).tolist(), rel=1e-5)
    assert method.moving()["class_weight_2"] == pytest.approx(first[2])
    noted = 0
    for batch in stream.batches:
        noted += noted_by_hand(method.net, batch)
        method.step({"target": batch})
    method.begin_epoch(1)
    assert method.class_weights.tolist() == pytest.approx(module.balance(noted).tolist(), rel=1e-5)
    assert 1 < len({*first, *method.class_weights.tolist()} - {1})


def test_both_begin_with_the_statistics_of_the_set():
    """Which a label then depends on, and no longer on the batch that its image is in."""
    method = build(method="mean_teacher", losses=CROSS_ENTROPY, net=build_network("Dimwit:nG=3", 1, 2))
    stream, conv = Stream((8, 10), 2), method.net.body[0]
    weights = copy.deepcopy([*method.net.parameters()])
    method.meet({"target": stream})
    outs = [conv(batch.image).detach() for batch in stream.batches]
    for net in (method.net, method.student):
        torch.testing.assert_close(net.body[1].running_mean, torch.stack([out.mean((0, 2, 3)) for out in outs]).mean(0))
        assert net.body[1].momentum == 0.1
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
    assert not any(part.training for part in method.net.modules())
    taught = method.teach(stream.batches[0])[0]
    alone = Batch(stream.batches[0].image[:1], [None], [None], torch.arange(1))
    torch.testing.assert_close(method.teach(alone)[0], taught[:1])


def test_losses_of_the_prediction_alone_stand_beside_the_cross_entropy():
    method = make(losses="[('CrossEntropy', {}, 1), ('SelfEntropy', {}, 0.5)]")
    terms, _ = method.step({"target": Batch(images(3, 1)[0], [], [None, None], torch.arange(3))})
    assert terms["tot"].item() == pytest.approx((terms["CrossEntropy"] + terms["SelfEntropy"]).item())
    assert method.columns == ["tot", "CrossEntropy", "SelfEntropy", "pseudo_share"]


def test_a_class_with_twice_the_weight_counts_as_twice_as_many_pixels():
    log_p = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    label = torch.randint(3, (1, 4, 5), generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    method = make(n_class=3)
    found = method.loss(log_p, [one_hot(label, 3) * weight], [None])["tot"].item()
    counted = torch.tensor([1, 2, 4])[label.flatten()]
    repeated = log_p[0].flatten(1).T.repeat_interleave(counted, 0)
    labels = label.flatten().repeat_interleave(counted)
    assert found == pytest.approx(torch.nn.functional.nll_loss(repeated, labels).item(), rel=1e-5)


def test_what_is_evaluated_is_the_teacher():
    method, batch = (
        build(method="mean_teacher", losses=CROSS_ENTROPY, net=build_network("Dimwit:nG=3", 1, 2)),
        batch_of((8, 10), 2),
    )
    method.step({"target": batch})
    with torch.no_grad():
        assert torch.equal(method.predict(batch), method.net(batch.image))
        assert not torch.equal(method.predict(batch), method.student.eval()(batch.image))


@pytest.mark.parametrize("shape", [(8, 10), (4, 6, 8)])
def test_no_step_looks_at_a_value(shape):
    method, batch = make("--optimiser", "sgd", axes=len(shape)), batch_of(shape, 2)
    with Watch():
        method.step({"target": batch})


@pytest.mark.parametrize("flags", [("--ema", "1"), ("--ema", "-0.1"), ("--threshold_value", "1")])
def test_numbers_out_of_range_are_refused(flags):
    with pytest.raises(UserError, match=f"{flags[0]} is .*between 0 and 1"):
        make(*flags)


def test_a_loss_on_ground_truth_without_weights_is_refused():
    with pytest.raises(UserError, match="DiceLoss compares with ground truth otherwise"):
        make(losses="[('DiceLoss', {}, 1)]")


@pytest.mark.parametrize("shape", [(2, 12, 10), (1, 6, 10, 8)])
def test_the_view_of_a_student_leaves_each_pixel_in_its_place(shape):
    """In an image of stripes, negative ones among them, the bright stay brighter than the dark by far."""
    image = torch.full((3, *shape), -50.0)
    image[..., ::2] = 100
    view = STRONG_VIEW.draw(3, shape, torch.Generator().manual_seed(3))
    made = view.image(image)
    medians = [made[..., at::2].flatten(1).median(1).values for at in (0, 1)]
    assert (medians[0] > medians[1] + 40).all()
    assert not torch.allclose(made, image, atol=5)
    assert torch.equal(view.image(image[1:], slice(1, 3)), made[1:])
