"""CoTTA: what is taught and learnt, against the formula written out in float64; what goes back to the source."""

import copy

import pytest
import torch

import methods.cotta as module
from datasets.streams import Batch
from methods.averaging import follow
from processes.errors import UserError
from tests.methods.test_pseudo_label import Toy, build, images
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"


class Brighter:
    """In place of the views: the n-th that is drawn adds n tenths."""

    def __init__(self):
        self.drawn = 0

    def draw(self, count, shape, generator):
        self.drawn += 1
        return self

    def image(self, image, part):
        return image + self.drawn / 10


def make(*flags, axes=2, n_class=2, losses=CROSS_ENTROPY):
    return build(*flags, method="cotta", losses=losses, net=Toy(axes, n_class), n_class=n_class)


def batch_of(shape, n_class, seed=1):
    return Batch(images(3, seed, shape, n_class)[0], [None], [None], torch.arange(3))


@pytest.mark.parametrize(("shape", "n_class"), [((8, 10), 2), ((8, 10), 4), ((4, 6, 8), 3)])
@pytest.mark.parametrize("confidence", ["0", "1"])
def test_the_student_learns_what_the_teacher_says_of_the_views(shape, n_class, confidence, monkeypatch):
    """Of three views, the second mirrored, where the source network is not confident, else of the images alone."""
    monkeypatch.setattr(module, "VIEW", Brighter())
    flags = ("--views", "3", "--confidence", confidence, "--restored", "0")
    method, batch = make(*flags, axes=len(shape), n_class=n_class), batch_of(shape, n_class)
    with torch.no_grad():
        method.net.classifier.weight.mul_(2)  # so that teacher, student and source are three
        method.student.classifier.weight.mul_(0.5)
    teacher, twin, source = (copy.deepcopy(net).double() for net in (method.net, method.student, method.source))
    image = batch.image.double()
    with torch.no_grad():
        sure = source(image).softmax(1).max(1).values.mean().item()
        views = [teacher(image + 0.1), teacher((image + 0.2).flip(-1)).flip(-1), teacher(image + 0.3)]
        taught = sum(view.softmax(1) for view in views) / 3 if confidence == "1" else teacher(image).softmax(1)
    log_p = twin(image).log_softmax(1)
    total = -sum((taught[:, k] * log_p[:, k]).mean() for k in range(n_class))
    total.backward()
    terms, logits = method.step({"target": batch})
    assert terms["tot"].item() == pytest.approx(total.item(), rel=1e-5)
    assert terms["source_confidence"].item() == pytest.approx(sure, rel=1e-5)
    grad = method.student.classifier.weight.grad.double()
    torch.testing.assert_close(grad, twin.classifier.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits.softmax(1).double(), taught, rtol=1e-4, atol=1e-6)


def test_the_teacher_follows_the_student_and_is_the_network():
    method, batch = make("--ema", "0.9", "--l_rate", "0.1"), batch_of((8, 10), 2)
    expected, before = copy.deepcopy(method.net), copy.deepcopy(method.net)
    for _ in range(2):
        method.begin_step(0, seed=3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "restore", lambda *_: None)
            method.step({"target": batch})

        follow(expected, method.student, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(method.net.parameters(), expected.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(method.net.parameters(), before.parameters(), strict=True))
    assert [method.net.training, method.student.training, method.source.training] == [False, True, False]


def test_a_share_of_the_weights_goes_back():
    weights, source = [torch.ones(40, 50), torch.ones(300)], [torch.zeros(40, 50), torch.zeros(300)]
    module.restore(weights, source, 0.1, torch.Generator().manual_seed(0))
    gone = [1 - float(each.mean()) for each in weights]
    assert all(0.05 < share < 0.15 for share in gone)
    assert set(torch.cat([each.flatten() for each in weights]).tolist()) == {0, 1}
    kept = torch.ones(5)
    module.restore([kept], [torch.zeros(5)], 0.0, torch.Generator())
    assert kept.tolist() == [1] * 5


def test_all_of_it_goes_back_to_the_source_network_and_not_to_the_teacher():
    method, batch = make("--restored", "1", "--ema", "0.5", "--l_rate", "0.1"), batch_of((8, 10), 2)
    start = copy.deepcopy(method.net)
    for _ in range(2):
        method.step({"target": batch})
    assert all(torch.equal(a, b) for a, b in zip(method.student.parameters(), start.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(method.net.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(8, 10), (4, 6, 8)])
def test_no_step_looks_at_a_value(shape):
    method, batch = make("--optimiser", "sgd", axes=len(shape)), batch_of(shape, 2)
    with Watch():
        method.step({"target": batch})


@pytest.mark.parametrize("flags", [("--ema", "1.1"), ("--confidence", "-1"), ("--restored", "2"), ("--views", "0")])
def test_numbers_out_of_range_are_refused(flags):
    with pytest.raises(UserError, match=f"{flags[0]} is "):
        make(*flags)
