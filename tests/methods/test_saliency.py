"""Two views of each image, the second blended by the saliency of the first: a step against itself written out."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import methods.saliency as module
from datasets.streams import Batch
from processes.errors import UserError
from tests.methods.test_pseudo_label import Toy, build, images
from tests.modes import Watch

CROSS_ENTROPY = "[('CrossEntropy', {}, 1)]"


def make(*flags, axes=2, n_class=2):
    return build(*flags, method="saliency", losses=CROSS_ENTROPY, net=Toy(axes, n_class), n_class=n_class)


def batch_of(shape, n_class):
    image, label = images(3, 1, shape, n_class)
    return Batch(image, [label], [None], torch.arange(3))


@pytest.mark.parametrize(("shape", "n_class"), [((12, 16), 2), ((12, 16), 4), ((6, 8, 9), 3)])
def test_a_step_is_the_loss_on_both_views(shape, n_class):
    method, batch = make(axes=len(shape), n_class=n_class), batch_of(shape, n_class)
    twin, label = copy.deepcopy(method.net).double(), batch.targets[0]
    first, second = (view.double() for view in method.views(batch))
    first.requires_grad_()
    before = F.cross_entropy(twin(first), label)
    (gradient,) = torch.autograd.grad(before, first, retain_graph=True)
    steep = module.saliency(gradient, 3).double()
    after = F.cross_entropy(twin(steep * first.detach() + (1 - steep) * second), label)
    (before + after).backward()
    terms, logits = method.step({"target": batch})
    assert terms["tot"].item() == pytest.approx((before + after).item(), rel=1e-5)
    torch.testing.assert_close(method.net.body.weight.grad.double(), twin.body.weight.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(logits.double(), twin(first).detach(), rtol=1e-4, atol=1e-5)


def test_the_views_are_a_curve_of_the_image_and_curves_of_its_classes():
    """In the first, equal grey levels stay equal and in order; in the second, those of different classes may not."""
    label = torch.zeros(4, 16, 16, dtype=torch.int64)
    label[:, 4:12, 4:12] = 1
    level = torch.linspace(0.2, 1, 16).expand(4, 1, 16, 16).contiguous()
    method = make()
    first, second = method.views(Batch(level, [label], [None], torch.arange(4)))
    assert (first.std(2).abs() < 1e-6).all()
    assert (first.diff(dim=-1) >= -1e-6).all()
    assert (second.std(2) > 1e-3).any()


@pytest.mark.parametrize("shape", [(24, 30), (12, 18, 15)])
def test_saliency_is_smooth_and_high_where_the_loss_is_steep(shape):
    """From 0 to 1 in each image, however small the gradients are; nothing of one that is flat or not finite."""
    corner = (slice(0, shape[0] // 3),) * len(shape)
    gradient = torch.zeros(4, 2, *shape)
    gradient[(0, 0, *corner)] = -3
    gradient[1] = 1e-30 * gradient[0]
    gradient[(2, 1, *corner)] = torch.inf
    found = module.saliency(gradient, 3)
    assert found.shape == (4, 1, *shape)
    assert found[0].amin() == 0
    assert found[0].amax() == pytest.approx(1)
    assert found[(0, 0, *corner)].mean() > 0.5 > found[0, 0, shape[0] // 2 :].max()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert not found[2:].any()


def test_no_step_looks_at_a_value():
    method = make("--optimiser", "sgd")
    with Watch():
        method.step({"target": batch_of((12, 16), 2)})


def test_losses_that_read_no_label_map_are_refused():
    """Before the first step: there are no classes to draw curves for."""
    image, label, distances = (SimpleNamespace(is_map=is_map) for is_map in (False, False, True))
    for folders in ((image, label, label), (image, label, distances, label)):
        make().meet({"target": SimpleNamespace(slices=SimpleNamespace(folders=folders))})
    with pytest.raises(UserError, match="no loss here reads label maps"):
        make().meet({"target": SimpleNamespace(slices=SimpleNamespace(folders=(image, label, distances)))})


def test_a_grid_of_no_cells_is_refused():
    with pytest.raises(UserError, match="--saliency_grid is 0"):
        make("--saliency_grid", "0")
