"""RoTTA: what is taught and learnt from the memory, against the formula written out in float64."""

import copy
import math

import pytest
import torch
from torch import nn

import methods.rotta as module
from datasets.streams import Batch
from nets.base import batch_norms
from processes.errors import UserError
from tests.methods.test_pseudo_label import Toy, build, images
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"


class Brighter:
    """In place of the views: a tenth is added."""

    def draw(self, count, shape, generator):
        return self

    def image(self, image):
        return image + 0.1


class Normed(Toy):
    """With a batch norm between convolution and classifier."""

    def __init__(self, axes, n_class):
        super().__init__(axes, n_class)
        self.norm = (nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d)(self.classifier.in_channels)

    def with_features(self, image):
        features = self.norm(self.body(image)).relu()
        return self.classifier(features), features

    def parameter_groups(self):
        return [([p for p in self.parameters() if p.requires_grad], 1.0)]


def make(*flags, axes=2, n_class=2, losses=CROSS_ENTROPY):
    return build(*flags, method="rotta", losses=losses, net=Normed(axes, n_class), n_class=n_class)


def batch_of(shape, n_class, seed=1):
    return Batch(images(3, seed, shape, n_class)[0], [None], [None], torch.arange(3))


@pytest.mark.parametrize(("shape", "n_class"), [((8, 10), 2), ((8, 10), 4), ((4, 6, 8), 3)])
def test_the_student_learns_what_the_teacher_says_of_what_is_remembered(shape, n_class, monkeypatch):
    """With all places free and a batch norm that follows; the second step has the images of both."""
    monkeypatch.setattr(module, "STRONG_VIEW", Brighter())
    flags = ("--memory", "40", "--trainable", "all", "--l_rate", "0", "--ema", "1", "--norm_rate", "0.2")
    method = make(*flags, axes=len(shape), n_class=n_class)
    with torch.no_grad():
        method.net.classifier.weight.mul_(2)  # so that teacher and student are two
    teacher, twin = (copy.deepcopy(net).double().eval() for net in (method.net, method.student))
    kept = []
    for seed in (1, 2):
        batch = batch_of(shape, n_class, seed)
        image = batch.image.double()
        said = teacher(image)
        kept = [(each, age + 3) for each, age in kept] + [(each, 3 - n) for n, each in enumerate(image)]
        whole = torch.stack([each for each, _ in kept])
        weight = [math.exp(-age / 40) / (1 + math.exp(-age / 40)) for _, age in kept]
        with torch.no_grad():
            taught = followed(teacher, whole, 0.2).softmax(1)
        log_p = followed(twin, whole + 0.1, 0.2).log_softmax(1)
        each = [-(q * lp).sum(0).mean() for q, lp in zip(taught, log_p, strict=True)]
        total = sum(w * value for w, value in zip(weight, each, strict=True)) / sum(weight)
        twin.zero_grad()
        total.backward()
        terms, logits = method.step({"target": batch})
        assert terms["tot"].item() == pytest.approx(total.item(), rel=1e-5)
        assert terms["remembered"].item() == pytest.approx(len(kept) / 40)
        torch.testing.assert_close(logits.double(), said.detach(), rtol=1e-4, atol=1e-5)
        grad = method.student.classifier.weight.grad.double()
        torch.testing.assert_close(grad, twin.classifier.weight.grad, rtol=1e-3, atol=1e-6)


def followed(net, image, rate):
    """The logits with the statistics of each batch norm moved by hand before it normalises."""
    seen = []
    handles = [
        norm.register_forward_pre_hook(lambda norm, inputs: seen.append(follow_by_hand(norm, inputs[0], rate)))
        for norm in batch_norms(net)
    ]
    logits = net(image)
    for handle in handles:
        handle.remove()
    return logits


def follow_by_hand(norm, maps, rate):
    axes = [0, *range(2, maps.ndim)]
    mean = maps.detach().mean(axes)
    variance = (maps.detach() - mean.view(1, -1, *[1] * (maps.ndim - 2))).square().mean(axes)
    norm.running_mean.mul_(1 - rate).add_(rate * mean)
    norm.running_var.mul_(1 - rate).add_(rate * variance)


def test_the_teacher_follows_the_student_and_keeps_its_own_statistics():
    method, batch = make("--ema", "0.9", "--l_rate", "0.1", "--trainable", "all"), batch_of((8, 10), 2)
    expected = copy.deepcopy(method.net)
    for _ in range(2):
        method.step({"target": batch})
        for own, other in zip(expected.parameters(), method.student.parameters(), strict=True):
            own.copy_(0.9 * own + 0.1 * other.detach())
    for own, other in zip(method.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other.detach())
    for own, other in zip(batch_norms(method.net), batch_norms(method.student), strict=True):
        assert not torch.equal(own.running_mean, other.running_mean)
    assert [method.net.training, method.student.training] == [False, True]


def test_norms_alone_learn_unless_told_otherwise():
    method, batch = make("--l_rate", "0.1"), batch_of((8, 10), 2)
    before = copy.deepcopy(method.student)
    method.step({"target": batch})
    changed = {
        name
        for (name, own), other in zip(method.student.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(own, other)
    }
    assert changed == {"norm.weight", "norm.bias"}


def test_an_image_is_of_the_class_that_most_of_its_foreground_is():
    label = torch.tensor([[0, 0, 0, 2], [0, 1, 1, 2], [0, 0, 0, 0]])
    logits = 20 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).double()
    assert module.class_of(logits).tolist() == [2, 1, 0]
    assert module.doubt_of(logits).tolist() == pytest.approx([0] * 3, abs=1e-6)
    assert module.doubt_of(0 * logits).tolist() == pytest.approx([1] * 3)


@pytest.mark.parametrize("shape", [(8, 10), (4, 6, 8)])
def test_no_step_looks_at_a_value(shape):
    method, batch = make("--optimiser", "sgd", axes=len(shape)), batch_of(shape, 2)
    with Watch():
        method.step({"target": batch})


@pytest.mark.parametrize("flags", [("--ema", "1.1"), ("--norm_rate", "-1"), ("--memory", "1")])
def test_numbers_out_of_range_are_refused(flags):
    with pytest.raises(UserError, match=f"{flags[0]} is "):
        make(*flags)


def test_other_losses_and_a_network_without_norms_are_refused():
    with pytest.raises(UserError, match="nothing else"):
        make(losses="[('CrossEntropy', {}, 1), ('SelfEntropy', {}, 1)]")
    net = Normed(2, 2)
    net.norm = nn.Identity()
    with pytest.raises(UserError, match="nothing to learn"):
        build(method="rotta", losses=CROSS_ENTROPY, net=net)
