"""Losses against the published code: its values and gradients, which were computed once with it, stand here as numbers.

The inputs come from formulas, so that anyone can put them into the published losses: `logits`, `label`, BOUNDS. They were
computed in fp32 by the losses.py of mathilde-b/SFDA (EntKLProp, SelfEntropy, CrossEntropy with weights, NegCrossEntropy,
NaivePenalty, KLPropInv, BCEGDice), of mathilde-b/CDA (NaivePenalty with 'pixels') and of LIVIAETS/boundary-loss (the
others), from the softmax of these logits.
"""

# ruff: noqa: E501
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.distance_maps import signed_distance_maps
from losses import LOSSES
from methods.objective import LossSum
from methods.terms import Term, build_loss, parse_losses
from nets.probabilities import one_hot

B, K, W, H = 3, 3, 8, 10
ENTKL = "'ivd':True,'weights_se':[0.1,0.5,0.4],'idc_c':[1],'power':1"
SIZES = torch.tensor([[50.0, 20, 10], [65, 15, 0], [80, 0, 0]], dtype=torch.float64)
BOUNDS = {
    None: None,
    "exact": SIZES.unsqueeze(-1).expand(-1, -1, 2),
    "within": SIZES.unsqueeze(-1) * torch.tensor([0.9, 1.1], dtype=torch.float64),
    "uniform": torch.full((B, K, 2), W * H / K, dtype=torch.float64),
}


def logits():
    b, k, w, h = np.meshgrid(*map(np.arange, (B, K, W, H)), indexing="ij")
    return torch.from_numpy(2 * np.sin(1 + 0.7 * b + 1.3 * k + 0.9 * w + 0.37 * h))


def label():
    """An image with all classes, one that lacks the last, one of background alone."""
    label = torch.zeros(B, W, H, dtype=torch.long)
    label[0, 2:6, 3:8] = 1
    label[0, 5:7, 1:4] = 2
    label[1, 1:4, 2:7] = 1
    return label


def computed(line, legacy_maps=True):
    """Of a tuple as an OPT line has it: the total, its gradient at two places, and the sum of its absolute values."""
    (spec,) = parse_losses(f"[{line}]")
    loss, x = build_loss(spec), logits().requires_grad_()
    target = label()
    if loss.needs_maps:
        maps = [signed_distance_maps(each.numpy(), K, legacy=legacy_maps) for each in target]
        target = torch.from_numpy(np.stack(maps))
    total = LossSum([Term(loss, spec.weight)])(x, [target], [BOUNDS[spec.bounds]])["tot"]
    (gradient,) = torch.autograd.grad(total, x)
    return total.item(), gradient[0, 1, 3, 4].item(), gradient[2, 2, 5, 6].item(), gradient.abs().sum().item()


# the tuple, (value, gradient at [0,1,3,4], at [2,2,5,6], sum of the absolute gradient)
PUBLISHED = [
    (
        "('EntKLProp', {'lamb_se':1,'lamb_consprior':1,'ivd':True,'weights_se':[0.1,0.5,0.4],'idc_c':[1],'curi':True,'power':1}, 'exact', {}, 'norm_soft_size', 1)",
        (7.54817, 0.00031486, 0.0032153, 3.36256),
    ),
    (
        "('EntKLProp', {'lamb_se':1,'lamb_consprior':1,'ivd':True,'weights_se':[0.1,0.5,0.4],'idc_c':[1],'curi':True,'power':1}, 'exact', {}, 'norm_soft_size', 50)",
        (7.54817, 0.00031486, 0.0032153, 3.36256),
    ),
    (
        "('EntKLProp', {'lamb_se':0.5,'lamb_consprior':2,'ivd':True,'weights_se':[0.1,0.5,0.4],'idc_c':[1],'curi':True,'power':2}, 'exact', {}, 'norm_soft_size', 1)",
        (14.8029, 1.24632e-05, 0.00196369, 8.05205),
    ),
    (
        "('EntKLProp', {'lamb_se':1,'lamb_consprior':1,'ivd':True,'weights_se':[0.1,0.5,0.4],'idc_c':[1],'curi':False,'power':1}, 'exact', {}, 'norm_soft_size', 1)",
        (7.60041, 0.000252312, 0.0032153, 3.38834),
    ),
    (
        "('SelfEntropy', {'idc':[0,1,2],'weights':[0.1,0.5,0.4]}, None, None, None, 1)",
        (0.23016, 0.000405295, 0.000196715, 0.171775),
    ),
    (
        "('SelfEntropy', {'idc':[1,2],'weights':[0.5,0.4]}, None, None, None, 1)",
        (0.341609, 0.000656707, 8.63478e-05, 0.275679),
    ),
    (
        "('CrossEntropy', {'idc':[0,1,2],'weights':[0.1,0.5,0.4]}, None, None, None, 1)",
        (0.25592, -0.00174088, 4.17314e-05, 0.212218),
    ),
    (
        "('CrossEntropy', {'idc':[1,2],'weights':[0.5,0.4]}, None, None, None, 1)",
        (0.774036, -0.0104453, 0, 0.699183),
    ),
    (
        "('NegCrossEntropy', {'idc':[0],'weights':[2]}, None, None, None, 1)",
        (3.54569, 0, 0.00250388, 2.53736),
    ),
    (
        "('NegCrossEntropy', {'idc':[0,1],'weights':[2,0.5]}, None, None, None, 1)",
        (2.98278, 0, 0.00125194, 2.2283),
    ),
    (
        "('NaivePenalty', {'idc':[1,2],'power':1,'curi':True}, 'within', {}, 'soft_size', 1)",
        (0.413143, -0.000758398, 0.000849116, 0.459539),
    ),
    (
        "('NaivePenalty', {'idc':[1],'power':1,'curi':True}, 'within', {}, 'soft_size', 1)",
        (0.0561126, 0, -4.93448e-05, 0.144902),
    ),
    (
        "('NaivePenalty', {'idc':[1],'reduction':'pixels'}, 'within', {}, 'soft_size', 1)",
        (1.49633, 0, -0.00131586, 3.86406),
    ),
    (
        "('NaivePenalty', {'idc':[1,2],'reduction':'pixels'}, 'within', {}, 'soft_size', 1)",
        (5.50857, -0.010112, 0.0113215, 6.12718),
    ),
    (
        "('KLPropInv', {'direction':'predicted','power':1,'curi':True,'idc_c':[1],'ivd':True,'weights_se':[1,1,1],'lamb_se':1,'lamb_consprior':1,'lamb_conspred':0,'inv_consloss':False}, 'uniform', {}, 'norm_soft_size', 1)",
        (0.0423133, -0.00046733, 0.000146288, 0.262585),
    ),
    (
        "('BCEGDice', {'idc':[0,1,2],'lamb':0.3,'weights':[0.1,0.5,0.4],'legacy':True}, None, None, None, 1)",
        (0.545593, -0.00184079, 4.17314e-05, 0.226387),
    ),
    (
        "('CrossEntropy', {'idc': [0, 1, 2]}, 1)",
        (1.53774, -0.00348176, 0.000417314, 1.19809),
    ),
    (
        "('DiceLoss', {'idc': [0, 1, 2], 'legacy': True}, 1)",
        (0.736551, -0.000698239, 0.000121752, 0.172724),
    ),
    (
        "('GeneralizedDice', {'idc': [0, 1, 2], 'legacy': True}, 1)",
        (0.965577, -0.000333023, 1.67796e-27, 0.050954),
    ),
    (
        "('HausdorffLoss', {'idc': [0, 1, 2]}, 1)",
        (3.59163, -0.00158009, 0.0030469, 1.72784),
    ),
    (
        "('CrossEntropy', {'idc': [1, 2]}, 1)",
        (1.61158, -0.0208905, 0, 1.44729),
    ),
    (
        "('DiceLoss', {'idc': [1, 2], 'legacy': True}, 1)",
        (0.897931, -0.00104379, 1.08278e-15, 0.140798),
    ),
    (
        "('GeneralizedDice', {'idc': [1, 2], 'legacy': True}, 1)",
        (0.97006, -0.000327951, 0, 0.0481729),
    ),
    (
        "('HausdorffLoss', {'idc': [1, 2]}, 1)",
        (0.285497, -0.00237013, 0, 0.237297),
    ),
    (
        "('CrossEntropy', {'idc': [1]}, 1)",
        (1.52239, -0.0245771, 0, 1.4149),
    ),
    (
        "('DiceLoss', {'idc': [1], 'legacy': True}, 1)",
        (0.816914, -0.00200697, -7.86357e-16, 0.25763),
    ),
    (
        "('GeneralizedDice', {'idc': [1], 'legacy': True}, 1)",
        (0.816914, -0.00200697, 0, 0.25763),
    ),
    (
        "('HausdorffLoss', {'idc': [1]}, 1)",
        (0.188059, -0.00382598, 0, 0.198358),
    ),
    (
        "('FocalLoss', {'idc':[0,1,2],'gamma':2}, 1)",
        (1.20031, -0.00415822, 3.95322e-05, 1.17675),
    ),
    (
        "('FocalLoss', {'idc':[1,2],'gamma':1.5}, 1)",
        (1.22961, -0.0244592, 0, 1.52525),
    ),
    (
        "('SurfaceLoss', {'idc':[1,2]}, 1)",
        (0.318307, -0.000845715, 0, 0.235604),
    ),
]


@pytest.mark.parametrize(("line", "figures"), PUBLISHED)
def test_value_and_gradient_are_the_published_ones(line, figures):
    assert computed(line) == pytest.approx(figures, rel=1e-4, abs=2e-7)


def test_a_published_weight_of_50_behind_entklprop_counts_for_nothing_and_the_log_says_so():
    """As the published loop has it. Beside another loss it weighs, and a weight of 0 takes the loss out."""

    def total(*weights):
        line = ", ".join(f"('EntKLProp', {{{ENTKL}}}, 'exact', {{}}, 'norm_soft_size', {weight})" for weight in weights)
        specs = parse_losses(f"[{line}]")
        return LossSum([Term(build_loss(spec), spec.weight) for spec in specs])

    def value(*weights):
        n = len(weights)
        return total(*weights)(logits(), [None] * n, [BOUNDS["exact"]] * n)["tot"].item()

    assert value(50) == value(1) > 0
    assert value(0) == 0
    assert value(2, 3) == pytest.approx(5 * value(1))
    assert total(1).notes == total(2, 3).notes == []
    (note,) = total(50).notes
    assert "weight 50 of its tuple counts for nothing" in note
    assert "lamb_consprior" in note


def test_a_prior_that_adds_up_to_less_than_the_image_is_taken_of_its_own_sum():
    """The published ratio is of W·H: with 0.9 of the image, higher by log(1/0.9) per unit predicted of what is there."""
    value, *_ = computed(f"('EntKLProp', {{{ENTKL}, 'silent':False}}, 'within', {{}}, 'norm_soft_size', 1)")
    p = logits().softmax(1)
    sizes = (p / p.amax(1, keepdim=True)).sum((2, 3))
    predicted = sizes / sizes.sum(1, keepdim=True)
    higher = (predicted * (SIZES > 0)).sum(1).mean().item() * np.log(1 / 0.9)
    assert value + higher == pytest.approx(7.617795, rel=1e-6)


# -- the table of docs/parity.md ----------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/parity.md").read_text(encoding="utf-8")


def test_every_parameter_of_the_table_is_one_of_its_loss():
    """Rows of one loss follow each other; those that begin with a dash go with the one above."""
    rows = [
        row.split("|")[1:-1]
        for row in TABLE.partition("## Losses")[2].partition("\n## ")[0].splitlines()
        if "| " in row
    ]
    names, checked = [], 0
    for loss, *_, switch in rows[2:]:
        names = re.findall(r"`(\w+)`", loss) if not loss.strip().startswith("–") else names
        for parameter in re.findall(r"`'(\w+)':", switch):
            assert all(LOSSES.takes(name, parameter) for name in names), (loss, parameter)
            checked += 1
    assert checked > 3


# -- closed forms, in float64 -----------------------------------------------------------------------------------------


def test_the_published_hausdorff_distances_end_at_the_border():
    """By a literal search for the nearest pixel outside; those of the prediction in whole pixels."""
    p, y, x = logits().softmax(1), one_hot(label(), K, torch.float64), logits()

    def nearest(mask):
        places = np.argwhere(~mask)
        found = [[np.sqrt(((places - (w, h)) ** 2).sum(1).min()) for h in range(H)] for w in range(W)]
        return np.array(found) * mask

    expected = []
    for b, k in ((b, k) for b in (0, 1) for k in (1, 2)):
        of_truth = nearest(y[b, k].numpy() == 1) if y[b, k].any() else np.zeros((W, H))
        of_prediction = np.trunc(nearest((x[b].argmax(0) == k).numpy()))
        expected.append(((p[b, k] - y[b, k]).numpy() ** 2 * (of_truth**2 + of_prediction**2)).mean())
    (spec,) = parse_losses("[('HausdorffLoss', {'idc': [1, 2]}, 1)]")
    assert build_loss(spec)(x[:2], label()[:2]).item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_what_is_outside_of_both_shapes_counts_by_both_sides_alone():
    """A pixel far from truth and prediction, which may be both: nothing as published, its distance here."""
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[0, 1:4, 1:4] = 1
    x = (4 * one_hot(target, 2, torch.float64)).requires_grad_()
    for name, params, inner in (
        ("HausdorffLoss", "", True),
        ("HausdorffLoss", "'inner': False, ", False),
        ("HausdorffDTLoss", "", False),
        ("HausdorffDTLoss", "'inner': True, ", True),
    ):
        (spec,) = parse_losses(f"[('{name}', {{{params}'idc': [1]}}, 1)]")
        (gradient,) = torch.autograd.grad(build_loss(spec)(x, target), x)
        assert (gradient[0, 1, 14, 14] == 0) == inner
        assert gradient[0, 1, 2, 2] != 0
