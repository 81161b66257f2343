"""Two views of each image that must agree: a step against itself written out."""

import copy

import pytest
import torch
import torch.nn.functional as F

import methods.ipa as module
from datasets.streams import Batch
from processes.errors import UserError
from tests.methods.test_pseudo_label import Toy, build, images
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"


def make(*flags, axes=2, n_class=2):
    return build(*flags, method="ipa", losses=CROSS_ENTROPY, net=Toy(axes, n_class), n_class=n_class)


def batch_of(shape, n_class):
    image, label = images(3, 1, shape, n_class)
    return Batch(image, [label], [None], torch.arange(3))


@pytest.mark.parametrize(("shape", "n_class"), [((12, 16), 2), ((12, 16), 4), ((6, 8, 9), 3)])
def test_a_step_is_the_loss_on_both_views_and_their_divergence(shape, n_class):
    method, batch = make("--agreement", "3", axes=len(shape), n_class=n_class), batch_of(shape, n_class)
    twin, label = copy.deepcopy(method.net).double(), batch.targets[0]
    logits = [twin(view.double()) for view in method.views(batch)]
    p = [each.softmax(1) for each in logits]
    middle = (p[0] + p[1]) / 2
    apart = sum((middle * (middle.log() - each.log())).sum() / middle.numel() for each in p) / 2
    total = sum(F.cross_entropy(each, label) for each in logits) / 2 + 3 * apart
    total.backward()
    terms, found = method.step({"target": batch})
    assert [*terms] == method.columns
    assert terms["tot"].item() == pytest.approx(total.item(), rel=1e-5)
    assert terms["apart"].item() == pytest.approx(3 * apart.item(), rel=1e-4)
    torch.testing.assert_close(method.net.body.weight.grad.double(), twin.body.weight.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.double(), logits[0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 16), (6, 8, 9)])
def test_the_views_are_two_blended_place_by_place_each_way_round(shape, monkeypatch):
    """With a 1 and a 3 in place of the random networks, their sum is 4 everywhere; each has both."""
    shown = iter((1.0, 3.0))

    class Flat:
        def draw(self, count, shape, generator):
            self.level = next(shown)
            return self

        def image(self, image, part):
            return torch.full_like(image, self.level)

    monkeypatch.setattr(module, "SEEN", Flat())
    first, second = make(axes=len(shape)).views(batch_of(shape, 2))
    torch.testing.assert_close(first + second, torch.full_like(first, 4))
    for view in first:
        assert view.min() == pytest.approx(1)
        assert view.max() == pytest.approx(3)
    assert not torch.equal(first[0], first[1])


def test_each_step_sees_other_views_and_the_same_step_the_same():
    method, batch = make(), batch_of((12, 16), 2)
    seen = []
    for seed in (1, 2, 1):
        method.begin_step(0, seed)
        seen.append(method.views(batch)[0])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_predictions_that_agree_are_not_apart():
    log_p = torch.randn(2, 3, 5, 6, dtype=torch.float64).log_softmax(1)
    assert module.divergence(log_p, log_p).item() == pytest.approx(0, abs=1e-9)
    sure = torch.tensor([[[[0.0]], [[-200.0]]]], dtype=torch.float64)
    found = module.divergence(sure, sure.flip(1))
    assert found.item() == pytest.approx(50 - torch.log(torch.tensor(2.0)).item() / 2, rel=1e-6)


def test_the_gradient_of_the_divergence():
    logits = [torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *each: module.divergence(*(z.log_softmax(1) for z in each)), logits)


def test_no_step_looks_at_a_value():
    method = make("--optimiser", "sgd")
    with Watch():
        method.step({"target": batch_of((12, 16), 2)})


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(UserError, match="--agreement is"):
        make("--agreement", weight)
