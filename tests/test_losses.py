"""Closed forms in float64, gradients, and what every loss owes: a good prediction costs less than a bad one."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from datasets.distance_maps import signed_distance_maps
from losses import LOSSES
from methods.objective import LossSum
from methods.terms import (
    Term,
    build_loss,
    check_classes,
    check_company,
    check_folders,
    check_ignore,
    parse_losses,
)
from nets.probabilities import max_normalised_proportion, mean_proportion, one_hot
from processes.errors import UserError

B, K, W, H = 3, 4, 5, 6
SIZE_LOSSES = ["EntKLProp", "KLPropInv", "NaivePenalty"]


@pytest.fixture
def logits():
    return torch.randn(B, K, W, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def label():
    return torch.randint(K, (B, W, H), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bounds():
    sizes = torch.rand(B, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sizes = sizes / sizes.sum(1, keepdim=True) * W * H
    return torch.stack([sizes, 1.1 * sizes], 2)


@pytest.fixture
def exact(bounds):
    """Bounds without room."""
    return bounds[:, :, :1].expand(-1, -1, 2)


def maps_of(label, n_class=K):
    """(B,K,…) float64 signed distance maps of label maps."""
    return torch.from_numpy(np.stack([signed_distance_maps(each, n_class) for each in label.numpy()])).double()


def target_of(loss, label):
    """What the loss's folder would hold."""
    return maps_of(label) if loss.needs_maps else label


def good_logits(label, n_class=K):
    return 8.0 * one_hot(label, n_class, torch.float64)


# -- equal to the formulas, written out slowly ------------------------------------------------------------


def test_cross_entropy_is_the_published_formula(logits, label):
    p, y, omega = logits.softmax(1), one_hot(label, K, torch.float64), torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = -torch.einsum("k,bkwh,bkwh->", omega.double(), y, (p + 1e-10).log()) / (y.sum() + 1e-10)
    got = LOSSES.build("CrossEntropy", idc=[0, 1, 2, 3], weights=omega.tolist())(logits, label)
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)


def test_cross_entropy_counts_the_classes_of_idc_alone(logits, label):
    picked = torch.isin(label, torch.tensor([1, 3]))
    expected = F.cross_entropy(logits, label, reduction="none")[picked].mean()
    assert LOSSES.build("CrossEntropy", idc=[1, 3])(logits, label).item() == pytest.approx(expected.item(), abs=1e-9)


def test_cross_entropy_ignores_its_index(logits, label):
    holes = label.clone()
    holes[:, :2] = 255
    expected = F.cross_entropy(logits, holes, ignore_index=255)
    assert LOSSES.build("CrossEntropy")(logits, holes).item() == pytest.approx(expected.item(), abs=1e-9)


def test_cross_entropy_ignores_the_index_of_torch(logits, label):
    """-100, which no slice holds; a label that a caller of one's own put there is left out."""
    expected = F.cross_entropy(logits, label)
    loss = LOSSES.build("CrossEntropy", ignore_index=-100)
    assert loss(logits, label).item() == pytest.approx(expected.item())
    holes = label.clone()
    holes[:, :2] = -100
    assert loss(logits, holes).item() == pytest.approx(F.cross_entropy(logits, holes).item())


def test_entropy_of_some_classes_is_by_what_they_have_of_the_image(logits):
    """As published: -Σ ν p log p / Σ p."""
    p, nu = logits.softmax(1)[:, [1, 3]], torch.tensor([0.5, 2.0]).double()
    expected = -torch.einsum("k,bkwh,bkwh->", nu, p, p.log()) / p.sum()
    got = LOSSES.build("SelfEntropy", idc=[1, 3], weights=[0.5, 2])(logits, None)
    assert got.item() == pytest.approx(expected.item(), abs=1e-9)


def test_entropy_is_the_published_formula(logits):
    p, nu = logits.softmax(1), torch.tensor([0.1, 0.9, 0.4, 0.2]).double()
    expected = -torch.einsum("k,bkwh,bkwh->", nu, p, (p + 1e-10).log()) / (B * W * H)
    got = LOSSES.build("SelfEntropy", weights=nu.tolist())(logits, None)
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)


def test_entropy_of_a_uniform_prediction_is_log_k():
    uniform = torch.zeros(1, K, W, H, dtype=torch.float64)
    assert LOSSES.build("SelfEntropy")(uniform, None).item() == pytest.approx(math.log(K))


@pytest.mark.parametrize(("fn", "power"), [("soft_size", 1), ("norm_soft_size", 1), ("norm_soft_size", 2)])
def test_entklprop_is_the_published_formula(logits, exact, fn, power):
    p = logits.softmax(1)
    if fn == "soft_size":
        predicted = torch.einsum("bkwh->bk", p) / (W * H)
    else:
        relative = (p / (p.amax(1, keepdim=True) + 1e-10)) ** power
        sizes = torch.einsum("bkwh->bk", relative)
        predicted = sizes / sizes.sum(1, keepdim=True)
    prior = exact[:, :, 0] / (W * H)
    kl = (predicted * ((predicted + 1e-10).log() - (prior + 1e-10).log())).sum() / B
    entropy = -(p * (p + 1e-10).log()).sum() / (B * W * H)
    got = LOSSES.build("EntKLProp", lamb_se=2, lamb_consprior=0.5, fn=fn, power=power)(logits, None, exact)
    assert got["prior"].item() == pytest.approx(0.5 * kl.item(), abs=1e-6)
    assert got["entropy"].item() == pytest.approx(2 * entropy.item(), abs=1e-6)


def test_absent_tag_costs_23_per_unit_of_share():
    logits = torch.zeros(1, 2, W, H, dtype=torch.float64)  # half of the image is predicted foreground
    absent = torch.tensor([[[W * H, W * H], [0.0, 0.0]]], dtype=torch.float64)
    got = LOSSES.build("EntKLProp")(logits, None, absent)["prior"].item()
    assert got == pytest.approx(0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 10 * math.log(10)), abs=1e-6)


def test_prior_on_another_canvas_becomes_a_ratio_by_its_own_sum(logits, exact):
    loss = LOSSES.build("EntKLProp")
    assert loss(logits, None, exact)["prior"].item() == pytest.approx(loss(logits, None, 7 * exact)["prior"].item())


def test_klpropinv_is_the_other_direction(logits, exact):
    predicted, prior = logits.softmax(1).flatten(2).mean(2), exact[:, :, 0] / (W * H)
    expected = (prior * ((prior + 1e-10).log() - (predicted + 1e-10).log())).sum(1).mean()
    assert LOSSES.build("KLPropInv")(logits, None, exact).item() == pytest.approx(expected.item(), abs=1e-9)


def test_klpropinv_published_way_round_adds_up_over_the_batch(logits, exact):
    predicted, prior = logits.softmax(1).flatten(2).mean(2), exact[:, :, 0] / (W * H)
    expected = (predicted * ((predicted + 1e-10).log() - (prior + 1e-10).log())).sum()
    got = LOSSES.build("KLPropInv", direction="predicted")(logits, None, exact)
    assert got.item() == pytest.approx(expected.item(), abs=1e-9)


def test_a_pasted_klpropinv_says_which_way_it_goes():
    assert LOSSES.build("KLPropInv").note == LOSSES.build("KLPropInv", direction="predicted", curi=True).note == ""
    assert "KL(prior || predicted) here" in LOSSES.build("KLPropInv", curi=True, inv_consloss=False).note
    with pytest.raises(UserError, match="PreciseBounds"):
        LOSSES.build("KLPropInv", curi=False)


def test_ratios_over_the_batch_may_differ_from_image_to_image():
    """What SHOT asks for: each class as often as another in the data, not in each image."""
    sure = 40.0 * one_hot(torch.tensor([[[0, 0]], [[1, 1]]]), 2, torch.float64)
    uniform = torch.ones(2, 2, 2, dtype=torch.float64)
    by_image = LOSSES.build("EntKLProp")(sure, None, uniform)["prior"]
    over_all = LOSSES.build("EntKLProp", over="batch")(sure, None, uniform)["prior"]
    assert by_image.item() == pytest.approx(math.log(2), abs=1e-6)
    assert over_all.item() == pytest.approx(0, abs=1e-9)


def test_curi_false_takes_the_prior_from_the_ground_truth(logits, label):
    true = one_hot(label, K, torch.float64).flatten(2).sum(2)
    from_truth = LOSSES.build("EntKLProp", curi=False)(logits, label, None)["prior"]
    from_bounds = LOSSES.build("EntKLProp")(logits, None, torch.stack([true, true], 2))["prior"]
    assert from_truth.item() == pytest.approx(from_bounds.item())


def test_penalty_is_zero_inside_its_bounds_and_quadratic_outside(logits):
    size = logits.softmax(1).flatten(2).sum(2)
    inside = torch.stack([size - 1, size + 1], 2)
    above, below = torch.stack([size + 2, size + 3], 2), torch.stack([size - 3, size - 2], 2)
    costs = {"sum": B * 2 * 2**2 / (W * H) ** 2, "mean": 2 * 2**2 / (W * H) ** 2, "pixels": 2**2 / (W * H)}
    for reduction, cost in costs.items():
        loss = LOSSES.build("NaivePenalty", idc=[1, 2], reduction=reduction)
        assert loss(logits, None, inside).item() == 0
        assert loss(logits, None, above).item() == pytest.approx(cost)
        assert loss(logits, None, below).item() == pytest.approx(cost)


def test_a_penalty_that_may_be_of_either_published_code_says_what_it_is_taken_for():
    assert "'reduction': 'pixels'" in LOSSES.build("NaivePenalty").note
    assert LOSSES.build("NaivePenalty", reduction="sum").note == LOSSES.build("NaivePenalty", curi=True).note == ""


def test_dice_by_hand():
    label = torch.tensor([[[0, 1], [1, 1]]])
    logits = 40.0 * one_hot(torch.tensor([[[0, 0], [1, 1]]]), 2, torch.float64)
    # class 0: 2·1/(2+1), class 1: 2·2/(2+3)
    assert LOSSES.build("DiceLoss")(logits, label).item() == pytest.approx(1 - (2 / 3 + 4 / 5) / 2, abs=1e-6)


def test_generalised_dice_is_the_published_formula(logits, label):
    p, y = logits.softmax(1), one_hot(label, K, torch.float64)
    w = 1 / (y.flatten(2).sum(2) + 1e-10) ** 2
    inter, both = (w * (p * y).flatten(2).sum(2)).sum(1), (w * (p + y).flatten(2).sum(2)).sum(1)
    expected = (1 - 2 * (inter + 1e-10) / (both + 1e-10)).mean()
    assert LOSSES.build("GeneralizedDice")(logits, label).item() == pytest.approx(expected.item(), abs=1e-6)


def test_generalised_dice_teaches_an_image_without_the_organ():
    """A blob predicted where there is none: by hand, and pushed down as much as published it is not."""
    label = torch.zeros(1, W, H, dtype=torch.long)
    logits = torch.zeros(1, 2, W, H, dtype=torch.float64)
    logits[0, 1, :2, :2] = 40.0
    logits[0, 0] = 40.0 - logits[0, 1]
    n, blob = W * H, 4
    assert LOSSES.build("GeneralizedDice")(logits, label).item() == pytest.approx(1 - 2 * (n - blob) / (2 * n))
    logits = torch.zeros_like(logits).requires_grad_()
    pushed = {}
    for legacy in (False, True):
        (gradient,) = torch.autograd.grad(LOSSES.build("GeneralizedDice", legacy=legacy)(logits, label), logits)
        pushed[legacy] = gradient[0, 1, 0, 0].item()
    assert pushed[False] > 1e-3
    assert pushed[True] < 1e-9


@pytest.mark.parametrize("name", ["DiceLoss", "GeneralizedDice"])
@pytest.mark.parametrize(("n_class", "idc"), [(2, [1]), (3, [1, 2]), (3, [2])])
def test_an_image_without_any_of_the_classes_costs_what_is_predicted_of_them(name, n_class, idc):
    """Of no pixel 0, no reward below; pushed down alike wherever it is predicted; published: 1 or -1, no gradient."""
    label = torch.zeros(2, W, H, dtype=torch.long)
    x = torch.randn(2, n_class, W, H, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    loss, published = LOSSES.build(name, idc=idc), LOSSES.build(name, idc=idc, legacy=True)
    share = x.softmax(1)[:, idc].mean((0, 2, 3)).sum().item()
    assert loss(x, label).item() == pytest.approx(share if name == "GeneralizedDice" else share / len(idc))
    gap = torch.zeros_like(x)
    gap[:, 0] = 10.0
    assert loss(gap, label).item() == pytest.approx(0, abs=1e-4)
    assert published(gap, label).item() > 0.5
    assert loss(3 * gap, label).item() == pytest.approx(0, abs=1e-9)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(loss(x, label), x)
    (theirs,) = torch.autograd.grad(published(x, label), x)
    assert (ours[:, 0] < 0).all()  # the background grows in each pixel
    assert ours.abs().sum() > 1e-2 > 1e-6 > theirs.abs().sum()


def test_dice_of_an_absent_class_beside_one_that_is_there():
    """By hand: the one that is there as ever, the absent one by its share of the image; `smooth` is the old formula."""
    label = torch.tensor([[[0, 1], [1, 1]]])
    logits = 40.0 * one_hot(torch.tensor([[[2, 0], [1, 1]]]), 3, torch.float64)
    loss = LOSSES.build("DiceLoss", idc=[1, 2])(logits, label)
    assert loss.item() == pytest.approx((1 - 4 / 5 + 1 / 4) / 2, abs=1e-6)
    smooth = LOSSES.build("DiceLoss", idc=[1, 2], smooth=1)(logits, label)
    assert smooth.item() == pytest.approx((1 - 5 / 6 + 1 - 1 / 2) / 2, abs=1e-6)


def test_generalised_dice_of_an_absent_class_still_teaches_the_others():
    label = torch.zeros(1, W, H, dtype=torch.long)
    label[:, 1:3, 1:3] = 1  # class 2 is absent
    logits = torch.zeros(1, 3, W, H, dtype=torch.float64, requires_grad=True)
    LOSSES.build("GeneralizedDice")(logits, label).backward()
    assert logits.grad[0, 1, 1, 1] < -1e-4


def test_focal_loss_with_gamma_zero_is_cross_entropy(logits, label):
    assert LOSSES.build("FocalLoss", gamma=0)(logits, label).item() == pytest.approx(
        LOSSES.build("CrossEntropy")(logits, label).item()
    )


def test_focal_loss_is_the_formula(logits, label):
    p = logits.softmax(1).gather(1, label[:, None])
    expected = -((1 - p) ** 2 * p.log()).mean()
    assert LOSSES.build("FocalLoss", gamma=2)(logits, label).item() == pytest.approx(expected.item(), abs=1e-9)


def test_neg_cross_entropy_reads_uniform_images_alone(logits, label):
    label[1] = 0  # one image is background from edge to edge
    expected = F.cross_entropy(logits[1:2], label[1:2])
    loss = LOSSES.build("NegCrossEntropy", idc=[0])
    assert loss(logits, label).item() == pytest.approx(expected.item())
    assert loss(logits[[0, 2]], label[[0, 2]]).item() == 0


def test_bcegdice_with_lamb_is_the_published_sum(logits, label):
    got = LOSSES.build("BCEGDice", lamb=0.3)(logits, label)
    assert got["ce"].item() == LOSSES.build("CrossEntropy")(logits, label).item()
    assert got["gdice"].item() == pytest.approx(0.3 * LOSSES.build("GeneralizedDice")(logits, label).item())
    with pytest.raises(UserError, match="leave one of them out"):
        LOSSES.build("BCEGDice", lamb=0.3, alpha=0.5)


def test_bcegdice_is_the_mean_of_its_two_parts(logits, label):
    got = LOSSES.build("BCEGDice")(logits, label)
    assert got["ce"].item() == pytest.approx(0.5 * LOSSES.build("CrossEntropy")(logits, label).item())
    assert got["gdice"].item() == pytest.approx(0.5 * LOSSES.build("GeneralizedDice")(logits, label).item())


def test_proportions_sum_to_one_and_uncertain_pixels_count_more(logits):
    probs = logits.softmax(1)
    assert torch.allclose(max_normalised_proportion(probs).sum(1), torch.ones(B, dtype=torch.float64))
    flat = torch.tensor([0.9, 0.1]).double().view(1, 2, 1, 1)
    unsure = torch.tensor([0.6, 0.4]).double().view(1, 2, 1, 1)
    both = torch.cat([flat, unsure], 3)
    assert max_normalised_proportion(both)[0, 1] > mean_proportion(both)[0, 1]


def test_boundary_loss_is_the_formula_and_its_gradient_the_map_by_its_count(logits, label):
    maps, idc = maps_of(label), [1, 3]
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
    maps, loss = maps_of(label), LOSSES.build("BoundaryLoss")
    at_truth = loss(5 * good_logits(label), maps)
    assert at_truth[""].item() == pytest.approx(at_truth["lowest"].item(), abs=1e-9)
    assert at_truth["lowest"] < 0
    for seed in range(5):
        other = torch.randn(B, K, W, H, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert loss(other, maps)[""] > at_truth["lowest"]


def test_what_is_only_shown_counts_for_nothing(logits, label):
    specs = parse_losses("[('CrossEntropy', {}, 2), ('SurfaceLoss', {}, 0.5)]")
    total = LossSum([Term(build_loss(s), s.weight) for s in specs])
    got = total(logits, [label, maps_of(label)], [None, None])
    assert list(got) == total.columns == ["tot", "CrossEntropy", "BoundaryLoss", "BoundaryLoss_lowest"]
    assert got["tot"].item() == pytest.approx((got["CrossEntropy"] + got["BoundaryLoss"]).item())
    assert got["BoundaryLoss_lowest"].item() == pytest.approx(0.5 * maps_of(label).clamp_max(0).mean().item())


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


def test_a_folder_that_does_not_fit_its_loss_is_refused():
    losses = [build_loss(spec) for spec in parse_losses("[('CrossEntropy', {}, 1), ('BoundaryLoss', {}, 1)]")]
    check_folders(losses, [False, True])
    with pytest.raises(UserError, match="BoundaryLoss needs distance maps"):
        check_folders(losses, [False, False])
    with pytest.raises(UserError, match="CrossEntropy needs class numbers"):
        check_folders(losses, [True, True])


def test_a_loss_that_would_count_the_ignored_label_is_refused():
    check_ignore([LOSSES.build("CrossEntropy"), LOSSES.build("SelfEntropy")], 255)
    check_ignore([LOSSES.build("DiceLoss")], None)
    with pytest.raises(UserError, match="DiceLoss does not leave these pixels out"):
        check_ignore([LOSSES.build("DiceLoss")], 255)
    with pytest.raises(UserError, match="--ignore 254"):
        check_ignore([LOSSES.build("CrossEntropy")], 254)


# -- soft labels --------------------------------------------------------------------------------------------

SEGPL = "[('DiceLoss', {'idc': [1], 'smooth': 1}, 0.5), ('CrossEntropy', {'idc': [0, 1]}, 0.5)]"
TAKE_SHARES = [name for name in LOSSES if LOSSES[name].takes_shares]


@pytest.fixture
def soft():
    """(B,K,W,H) shares that add up to 1."""
    return torch.rand(B, K, W, H, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(1)


def segpl(logits, target):
    total = LossSum([Term(build_loss(spec), 0.5) for spec in parse_losses(SEGPL)])
    return total(logits, [target, target], [None, None])["tot"]


@pytest.mark.parametrize("is_soft", [False, True])
def test_the_loss_of_bayesian_pseudo_labels_is_its_sigmoid_form(is_soft, label, soft):
    """½ soft Dice (smooth 1, a sample) + ½ binary cross-entropy on one output f, whose softmax partner is 0."""
    y = soft[:, 1] / soft[:, :2].sum(1) if is_soft else label.clamp_max(1).double()
    f = torch.randn(B, W, H, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    dice, cross = [], []
    for image, truth in zip(f.sigmoid().flatten(1).tolist(), y.flatten(1).tolist(), strict=True):
        pairs = list(zip(image, truth, strict=True))
        dice.append(1 - (2 * sum(p * t for p, t in pairs) + 1) / (sum(p + t for p, t in pairs) + 1))
        cross += [-(t * math.log(p) + (1 - t) * math.log(1 - p)) for p, t in pairs]
    expected = 0.5 * np.mean(dice) + 0.5 * np.mean(cross)
    target = torch.stack([1 - y, y], 1) if is_soft else y.long()
    assert segpl(torch.stack([torch.zeros_like(f), f], 1), target).item() == pytest.approx(expected, abs=1e-9)


def test_both_forms_of_a_label_map_are_one_loss(logits, label):
    for name, params in (("CrossEntropy", {"idc": [1, 3], "weights": [2, 0.5]}), ("DiceLoss", {"smooth": 1})):
        loss = LOSSES.build(name, **params)
        hard, given = loss(logits, label), loss(logits, one_hot(label, K))
        assert given.item() == pytest.approx(hard.item(), abs=1e-9)


def test_cross_entropy_of_shares_by_hand(logits, soft):
    soft[:, :, :2] = 0  # no class has any of these pixels: they are to be ignored
    log_p, omega = logits.log_softmax(1), torch.tensor([2.0, 0.5]).double()
    expected = -torch.einsum("k,bkwh,bkwh->", omega, soft[:, [1, 3]], log_p[:, [1, 3]]) / soft[:, [1, 3]].sum()
    got = LOSSES.build("CrossEntropy", idc=[1, 3], weights=[2, 0.5])(logits, soft)
    assert got.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("name", TAKE_SHARES)
def test_pixels_without_a_share_count_nowhere(name, logits, label):
    """The loss is that of the pixels that are left; here the first row of each image is not."""
    shares = one_hot(label, K, torch.float64)
    shares[:, :, 0] = 0
    found = LOSSES.build(name)(logits, shares)
    assert found.item() == pytest.approx(LOSSES.build(name)(logits[:, :, 1:], label[:, 1:]).item(), abs=1e-9)


@pytest.mark.parametrize("idc", [None, [1, 2]])
@pytest.mark.parametrize("name", TAKE_SHARES)
def test_gradient_through_both_the_prediction_and_the_shares(name, idc, logits, soft):
    loss = LOSSES.build(name, idc=idc)
    inputs = [each[:2, :, :2, :3].clone().requires_grad_() for each in (logits, soft)]
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y), inputs)


def test_a_smooth_dice_of_nothing_predicted_as_nothing_costs_nothing():
    nothing = torch.zeros(1, W, H, dtype=torch.long)
    sure = torch.zeros(1, 2, W, H)
    sure[:, 0] = 40
    assert LOSSES.build("DiceLoss", idc=[1], smooth=1)(sure, nothing).item() == 0


# -- over the registry --------------------------------------------------------------------------------------


def total(loss, logits, label, bounds):
    value = loss(logits, target_of(loss, label), bounds)
    return sum(value[term] for term in loss.terms) if isinstance(value, dict) else value


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradient_is_right(name, logits, label, bounds):
    label[0] = 0
    loss = LOSSES.build(name)
    small = logits[:2, :, :2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: total(loss, x, label[:2, :2, :3], bounds[:2]), small)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ShapeMoments"])  # of which an epoch decides
def test_good_costs_less_than_bad(name, label):
    label[0] = 0
    true = one_hot(label, K, torch.float64).flatten(2).sum(2)
    bounds = torch.stack([0.99 * true, 1.01 * true], 2)
    wrong = good_logits((label + 1) % K)
    loss = LOSSES.build(name)
    if name == "SelfEntropy":
        wrong = torch.zeros_like(wrong)
    assert total(loss, good_logits(label), label, bounds) < total(loss, wrong, label, bounds)


@pytest.mark.parametrize("name", list(LOSSES))
def test_three_axes_and_half_precision(name, label, bounds):
    logits = torch.randn(B, K, W, H, 2, generator=torch.Generator().manual_seed(0))
    volume = label[..., None].expand(-1, -1, -1, 2)
    loss = LOSSES.build(name)
    full, half = total(loss, logits, volume, 2 * bounds), total(loss, logits.bfloat16(), volume, 2 * bounds)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), abs=0.05)


@pytest.mark.parametrize("name", list(LOSSES))
def test_terms_are_what_is_returned(name, logits, label, bounds):
    loss = LOSSES.build(name)
    value = loss(logits, target_of(loss, label), bounds)
    assert tuple(value) == (*loss.terms, *loss.shown) if isinstance(value, dict) else loss.terms == ("",)


# -- sums and OPT strings -----------------------------------------------------------------------------------


def test_two_losses_add_up_and_the_trailing_weight_counts(logits, label, bounds):
    specs = parse_losses("[('CrossEntropy', {'idc': [0,1,2,3]}, 2), ('EntKLProp', {}, 'B', {}, 'soft_size', 50)]")
    got = LossSum([Term(build_loss(s), s.weight) for s in specs])(logits, [label, None], [None, bounds])
    ce = LOSSES.build("CrossEntropy")(logits, label)
    adapt = LOSSES.build("EntKLProp")(logits, None, bounds)
    assert got["tot"].item() == pytest.approx((2 * ce + 50 * (adapt["entropy"] + adapt["prior"])).item())
    assert got["EntKLProp_prior"].item() == pytest.approx(50 * adapt["prior"].item())


def test_the_same_loss_twice_keeps_two_columns():
    specs = parse_losses("[('SelfEntropy', {}, 1), ('SelfEntropy', {'idc': [1]}, 1)]")
    total = LossSum([Term(build_loss(s)) for s in specs])
    assert total.columns == ["tot", "SelfEntropy", "SelfEntropy#2"]


def test_published_tuple_without_lamb_conspred_builds():
    line = (
        "[('EntKLProp', {'lamb_se':1, 'lamb_consprior':1,'ivd':True,'weights_se':[0.1,0.9],'idc_c': [1],'curi':True,"
        "'power': 1},'PredictionBounds', {'margin':0,'dir':'high','idc':[0,1],'predcol':'dumbpredwtags','power': 1,"
        " 'mode':'percentage','sep':',','sizefile':'sizes/prostate.csv'},'norm_soft_size',1)]"
    )
    (spec,) = parse_losses(line)
    assert build_loss(spec).proportion is max_normalised_proportion
    assert spec.bounds_params["sizefile"] == "sizes/prostate.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[('EntKLProp', {}, 1)]", "needs a bound"),
        ("[('CrossEntropi', {}, 1)]", "Did you mean 'CrossEntropy'"),
        ("[('CrossEntropy', {'idx': [0]}, 1)]", "Did you mean 'idc'"),
        ("[('EntKLProp', {}, 'B', {}, 'hard_size', 1)]", "no size function 'hard_size'"),
        ("[('SelfEntropy', {})]", "Cannot read the loss"),
        ("[]", "at least one"),
        ("[('SelfEntropy', {}, open('x'))]", "nothing in it is run"),
        ("[('SelfEntropy', {}, 1)", "never closed"),
    ],
)
def test_a_bad_line_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        [build_loss(spec) for spec in parse_losses(text)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("('DiceLoss', {'idc': 1}, 1)", "'idc' takes a list of whole numbers or None, not 1"),
        ("('DiceLoss', {'idc': [1.5], 'smooth': 'a'}, 1)", r"not \[1.5\]; 'smooth' takes a number or None, not 'a'"),
        ("('CrossEntropy', {'weights': 2}, 1)", "'weights' takes a list of numbers or None, not 2"),
        ("('CrossEntropy', {'ignore_index': None}, 1)", "'ignore_index' takes a whole number, not None"),
        ("('FocalLoss', {'gamma': 1e999}, 1)", "'gamma' takes a number, not inf"),
        ("('HausdorffLoss', {'inner': 2}, 1)", "'inner' takes True or False, not 2"),
        ("('NaivePenalty', {'reduction': 'avg'}, 'B', {}, None, 1)", "'sum' or 'mean' or 'pixels' or None, not 'avg'"),
        ("('NaivePenalty', {'fn': 'soft_size'}, 'B', {}, 'norm_soft_size', 1)", "has two size functions"),
        ("('DiceLoss', {3: 1}, 1)", "Cannot read the loss"),
        ("('DiceLoss', {}, True)", "the weight is a number"),
        ("('DiceLoss', {}, 'B', [1], None, 1)", "Cannot read the loss"),
        ("('DiceLoss', {}, 5, {}, None, 1)", "Cannot read the loss"),
        ("('DiceLoss', {[1]: 2}, 1)", "Cannot read"),
    ],
)
def test_a_parameter_of_another_type_is_refused_when_the_loss_is_built(line, message):
    with pytest.raises(UserError, match=message):
        [build_loss(spec) for spec in parse_losses(f"[{line}]")]


def test_a_size_function_reaches_the_losses_that_measure_sizes_alone():
    """Published losses take it all and use it where they measure; twice the same is once."""
    first = "('CrossEntropy', {}, None, None, 'soft_size', 1)"
    specs = parse_losses(f"[{first}, ('NaivePenalty', {{'fn': 'soft_size'}}, 'B', {{}}, 'soft_size', 1)]")
    assert [getattr(build_loss(spec), "proportion", None) for spec in specs] == [None, mean_proportion]


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("idc", [[K], [-1], [1, 1], []])
def test_classes_that_are_not_there_are_refused_before_any_data(name, idc):
    if not LOSSES.takes(name, "idc") or name == "KLPropInv":
        return  # KLPropInv: published lines carry it without effect
    with pytest.raises(UserError, match=f"{LOSSES[name].__name__}: .*(idc|classes)"):
        check_classes([LOSSES.build(name, idc=idc)], K)


def test_all_losses_that_do_not_fit_the_classes_are_listed():
    losses = [LOSSES.build("CrossEntropy", weights=[1, 2]), LOSSES.build("EntKLProp", weights_se=[1])]
    with pytest.raises(UserError, match="CrossEntropy: .*one weight a class.* EntKLProp: .*one weight a class"):
        check_classes(losses, K)
    check_classes([LOSSES.build(name) for name in LOSSES], K)


def test_wrong_number_of_weights_is_refused(logits, label):
    with pytest.raises(UserError, match="one weight a class"):
        LOSSES.build("CrossEntropy", weights=[1, 1])(logits, label)


WRONG = [
    ("CrossEntropy", {}, (2, 5, 4), None),
    ("DiceLoss", {}, (2, 4), None),
    ("BoundaryLoss", {"force": True}, (2, 3), None),
    ("HausdorffLoss", {}, (1, 4, 4), None),
    ("EntKLProp", {}, None, (2, 2)),
    ("NaivePenalty", {}, None, (3, 2, 2)),
]


@pytest.mark.parametrize(("name", "params", "target", "bounds"), WRONG)
def test_a_loss_asserts_the_shapes_at_its_door(name, params, target, bounds):
    given = [shape if shape is None else torch.zeros(shape, dtype=torch.long) for shape in (target, bounds)]
    with pytest.raises(AssertionError, match=r"torch\.Size"):
        LOSSES.build(name, **params)(torch.zeros(2, 2, 4, 4), *given)
