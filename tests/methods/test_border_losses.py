"""The losses of the distance to a border, against their formulas."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from losses import LOSSES
from methods.border_losses import border_distances
from methods.terms import build_loss, check_company, parse_losses
from nets.probabilities import one_hot
from processes.errors import UserError

B, K, W, H = 3, 4, 5, 6


def some_logits(seed):
    return torch.randn(B, K, W, H, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def logits():
    return some_logits(0)


@pytest.fixture
def label():
    return torch.randint(K, (B, W, H), generator=torch.Generator().manual_seed(1))


def test_boundary_loss_is_the_formula_and_its_gradient_the_map_by_its_count(logits, label):
    maps, idc = border_distances(label, K).double(), [1, 3]
    got = LOSSES.build("BoundaryLoss", idc=idc)(logits, maps)
    expected = torch.einsum("bkwh,bkwh->bkwh", logits.softmax(1), maps)[:, idc].mean()
    assert got[""].item() == pytest.approx(expected.item(), abs=1e-9)
    probs = logits.softmax(1).requires_grad_()
    LOSSES.build("BoundaryLoss", idc=idc)(probs.log(), maps)[""].backward()
    by_count = torch.zeros_like(maps)
    by_count[:, idc] = maps[:, idc] / (B * len(idc) * W * H)
    # The softmax in the loss takes log p for logits: what is the same for all classes of a pixel is lost on the way.
    assert torch.allclose(probs.grad, by_count - (by_count * probs.detach()).sum(1, keepdim=True), atol=1e-12)


def test_boundary_loss_is_lowest_at_the_truth_and_says_how_low(label):
    maps, loss = border_distances(label, K).double(), LOSSES.build("BoundaryLoss")
    at_truth = loss(40.0 * one_hot(label, K, torch.float64), maps)
    assert at_truth[""].item() == pytest.approx(at_truth["lowest"].item(), abs=1e-9)
    assert at_truth["lowest"] < 0
    for seed in range(5):
        assert loss(some_logits(seed), maps)[""] > at_truth["lowest"]


def test_hausdorff_loss_is_the_formula(logits, label):
    def distances(classes):
        inside = [[classes[b].numpy() == k for k in range(K)] for b in range(B)]
        signed = [
            [distance_transform_edt(~m) - 0.5 * ~m - distance_transform_edt(m) + 0.5 * m for m in row] for row in inside
        ]
        return torch.from_numpy(np.array(signed))

    p, y = logits.softmax(1), one_hot(label, K, torch.float64)
    expected = ((p - y) ** 2 * (distances(label) ** 2 + distances(p.argmax(1)) ** 2))[:, [1, 2]].mean()
    got = LOSSES.build("HausdorffDTLoss", idc=[1, 2])(logits, label)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("line", "n_class", "alone"),
    [
        ("[('BoundaryLoss', {'idc': [1]}, 1)]", 2, False),
        ("[('BoundaryLoss', {'idc': [0, 1]}, 1)]", 2, False),
        ("[('BoundaryLoss', {'idc': [1], 'force': True}, 1)]", 2, True),
        ("[('BoundaryLoss', {'idc': [0, 1, 2, 3]}, 1)]", 4, True),
        ("[('BoundaryLoss', {}, 1)]", 3, True),
        ("[('BoundaryLoss', {'idc': [1, 2, 3]}, 1)]", 4, False),
        ("[('GeneralizedDice', {}, 1), ('BoundaryLoss', {'idc': [1]}, 0.1)]", 2, True),
    ],
)
def test_the_boundary_loss_alone_is_refused_where_it_collapses(line, n_class, alone):
    losses = [build_loss(spec) for spec in parse_losses(line)]
    if alone:
        check_company(losses, n_class)
    else:
        with pytest.raises(UserError, match="ends in an empty prediction"):
            check_company(losses, n_class)
