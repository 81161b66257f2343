"""Validators: each against its formula written out in float64 over the pixels of a patient, and where nothing is."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from nets.probabilities import EPS
from selection.measuring import BAND, Measured
from selection.validators import VALIDATORS, ensv, mean_of, ratio
from selection.views import VIEWS
from tests.selection.literal import (
    PASSES,
    Said,
    Small,
    evidence,
    filled,
    grey_levels,
    largest_piece,
    near,
    say,
    smooth_images,
    steepness,
    world,
)

pytestmark = pytest.mark.filterwarnings("error")
WORLDS = [(2, 2, 1), (2, 3, 2), (2, 5, 1), (3, 2, 1), (3, 3, 2), (3, 5, 1)]


def share(part, whole):
    return part / whole if whole else np.nan


def literal_mean(values):
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else np.nan


def dice_of(one, other):
    return share(2 * np.sum(one & other), np.sum(one) + np.sum(other))


# ------------------------------------------------------------- of candidate c, a patient and class k of a world


def cmr_nhd(there, c, patient, k):
    label = {name: there.over(c, patient, "label", name) for name in PASSES}
    return literal_mean(
        share(np.sum((label["clean"] == k) & (label[view] == k)), np.sum((label["clean"] == k) | (label[view] == k)))
        for view in VIEWS
    )


def cmr_ei(there, c, patient, k):
    found = []
    for view in VIEWS:
        p, q = there.over(c, patient, "p", "clean")[:, k], there.over(c, patient, "p", view)[:, k]
        one, other = (there.over(c, patient, "label", name) == k for name in ("clean", view))
        total = sum(np.sqrt(p[i] * q[i]) if one[i] and other[i] else 0 for i in np.flatnonzero(one | other))
        found.append(share(total, np.sum(one | other)))
    return literal_mean(found)


def pairwise(there, c, patient, k):
    masks = [there.over(c, patient, "label", name) == k for name in PASSES]
    return literal_mean(dice_of(one, other) for one, other in itertools.combinations(masks, 2))


def mixval(there, c, patient, k):
    hits = {"intra": [], "inter": []}
    said = there.said[c]
    for row in there.patient_rows(patient):
        parts = said.label("clean")[row], said.partners[row], said.label("mixture")[row]
        for a, b, answer in zip(*map(np.ravel, parts), strict=True):
            if a == k and (a > 0 or b > 0):
                hits["intra" if a == b else "inter"].append(float(answer == a))
    return literal_mean(map(literal_mean, hits.values()))


def with_labels(there, c, patient, k, others):
    """Dice with other masks, (n,) class numbers."""
    return dice_of(there.over(c, patient, "label", "clean") == k, others == k)


def ensv_literal(there, c, patient, k):
    voices = np.stack([there.over(v, patient, "label", "clean") for v in np.flatnonzero(there.seen.pool)])
    votes = [[list(pixel).count(each) for each in range(there.seen.n_class)] for pixel in voices.T]
    return with_labels(there, c, patient, k, np.array([counts.index(max(counts)) for counts in votes]))


def source(there, c, patient, k):
    return with_labels(there, c, patient, k, there.over(0, patient, "label", "clean"))


def refresh(there, c, patient, k):
    return with_labels(there, c, patient, k, there.over(2, patient, "label", "clean"))


def soft_dice(p, mask, k):
    return 2 * p[mask, k].sum() / (p[:, k].sum() + mask.sum())


def sdc(there, c, patient, k):
    return soft_dice(there.over(c, patient, "p", "clean"), there.over(c, patient, "label", "clean") == k, k)


def sdc_calibrated(there, c, patient, k):
    p, label = there.over(c, patient, "p", "clean"), there.over(c, patient, "label", "clean")
    cooled = p ** (1 / np.array(there.temperatures)[label])[:, None]
    return soft_dice(cooled / cooled.sum(1, keepdims=True), label == k, k)


def bnm(there, c, patient, k):
    """All pixels of these small images are in the sample; those of a class weigh 1 together."""
    p, label = there.over(c, patient, "p", "clean"), there.over(c, patient, "label", "clean")
    weight = 1 / np.bincount(label)[label]
    return np.linalg.norm(np.sqrt(weight)[:, None] * p, "nuc") / p.shape[1]


def sizes(there, c, patient, k):
    label = there.over(c, patient, "label", "clean")
    return np.sum(label == k) / len(label), there.seen.prior[patient, k]


def prior_kl(there, c, patient, k):
    pairs = [sizes(there, c, patient, each) for each in range(there.seen.n_class)]
    return -sum(predicted * np.log((predicted + EPS) / (prior + EPS)) for predicted, prior in pairs)


def size(there, c, patient, k):
    predicted, prior = sizes(there, c, patient, k)
    return -abs(np.log((predicted + EPS) / (prior + EPS)))


def entropy_of(p):
    return -(p * np.log(p)).sum(-1)


def entropy(there, c, patient, k):
    return -entropy_of(there.over(c, patient, "p", "clean")).mean()


def infomax(there, c, patient, k):
    p = there.over(c, patient, "p", "clean")
    return entropy_of(p.mean(0)) - entropy_of(p).mean()


def at_borders(there, c, patient, k, of_image, *where):
    """The values of the image's pixels that are near a border of the class: (how many pixels, on the inside)."""
    found = []
    for row in there.patient_rows(patient):
        values, label = of_image(grey_levels(there.images[row].numpy())), there.said[c].label("clean")[row]
        found += [values[place] for pixels, inside in where for place in near(label, k, pixels, inside)]
    return np.array(found)


def edge(there, c, patient, k):
    at_edge = at_borders(there, c, patient, k, steepness, (1, True))
    around = at_borders(there, c, patient, k, steepness, (BAND, True), (BAND, False))
    return at_edge.mean() / around.mean() if len(at_edge) else np.nan


def contrast(there, c, patient, k):
    inner, outer = (at_borders(there, c, patient, k, np.asarray, (BAND, inside)) for inside in (True, False))
    return abs(inner.mean() - outer.mean()) / np.sqrt(inner.var() + outer.var()) if len(inner) else np.nan


def of_shapes(score):
    """Of a literal of a mask (D, W, H) that of a candidate, patient and class: the mean over volumes."""

    def found(there, c, patient, k):
        masks = [volume == k for volume in there.volumes(c, patient)]
        return literal_mean(score(mask) for mask in masks if mask.any()) if k else np.nan

    return found


def continuity(mask):
    pairs = list(itertools.pairwise(mask))
    return share(sum(2 * np.sum(a & b) for a, b in pairs), sum(a.sum() + b.sum() for a, b in pairs))


LITERAL = {each.__name__: each for each in (cmr_nhd, cmr_ei, pairwise, mixval, source, refresh, sdc, sdc_calibrated)}
LITERAL |= {each.__name__: each for each in (bnm, prior_kl, size, entropy, infomax, edge, contrast)}
LITERAL |= {
    "ensv": ensv_literal,
    "one_piece": of_shapes(lambda mask: largest_piece(mask) / mask.sum()),
    "no_holes": of_shapes(lambda mask: mask.sum() / sum(filled(plane) for plane in mask)),
    "continuity": of_shapes(continuity),
}


OF_FOREGROUND = ("cmr_nhd", "cmr_ei", "pairwise", "mixval", "edge", "contrast")  # measured of no background


def test_every_validator_has_its_formula_here():
    assert set(LITERAL) == set(VALIDATORS)


@pytest.mark.parametrize(("axes", "n_class", "channels"), WORLDS)
@pytest.mark.parametrize("name", VALIDATORS)
def test_a_score_is_that_of_its_formula(name, axes, n_class, channels):
    there = world(axes, n_class, channels)
    found = VALIDATORS[name](there.seen)
    assert found.shape == (5, 3, n_class)
    assert found.dtype == np.float64
    for c, patient, k in np.ndindex(found.shape):
        expected = np.nan if name in OF_FOREGROUND and not k else LITERAL[name](there, c, patient, k)
        np.testing.assert_allclose(found[c, patient, k], expected, rtol=2e-5, atol=1e-6, err_msg=f"{(c, patient, k)}")
    assert len(np.unique(found[~np.isnan(found)])) > 2


def test_the_literals_know_a_shape_when_they_see_it():
    ring = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], bool)
    assert (largest_piece(ring), filled(ring)) == (8, 10)
    assert continuity(np.stack([ring, ring, ~ring])) == 18 / (9 * 3 + 7)


# ---------------------------------------------------------------------------------------------- masks alone


def seen_masks(masks, patients=None, n_class=3, **more):
    """Evidence of candidates of which only the masks (C, N, …) are known, every slice a patient's own or as told."""
    masks = np.asarray(masks, np.uint8)
    patients = ["a"] * masks.shape[1] if patients is None else patients
    said = []
    for each in masks:
        sizes = np.stack([np.bincount(one.ravel(), minlength=n_class) for one in each])
        said.append(Said({}, None, Measured({"size": sizes.astype(float)}, list(each))))
    return evidence(said, patients, list(range(len(patients))), n_class, **more)


def test_votes_are_counted_pixel_by_pixel_and_a_tie_goes_to_the_lowest_class():
    voices = np.array([[[[0, 1, 2, 2]]], [[[0, 2, 2, 1]]], [[[1, 2, 1, 0]]], [[[1, 1, 1, 2]]], [[[2, 2, 2, 2]]]])
    pool = np.array([True, True, True, True, False])
    winner = [0, 1, 1, 2]
    seen = seen_masks(np.concatenate([voices, [[[winner]]]]), pool=np.append(pool, False))
    found = ensv(seen)
    np.testing.assert_array_equal(found[5, 0], [1, 1, 1])
    assert (found[:5] < 1).any(2).all()
    only = seen_masks(voices, pool=np.eye(5, dtype=bool)[1])
    np.testing.assert_array_equal(ensv(only)[1, 0], [1, 1, 1])


def test_nobody_votes():
    seen = seen_masks(np.ones((2, 3, 1, 4, 4)), pool=np.zeros(2, bool))
    assert np.isnan(ensv(seen)).all()


def test_many_candidates_vote():
    """More than a byte can count: of 266 votes, it would keep 10."""
    masks = np.zeros((366, 1, 2, 2), np.uint8)
    masks[:266] = 1
    found = ensv(seen_masks(masks, n_class=2))
    np.testing.assert_array_equal(found[0, 0], [np.nan, 1])
    np.testing.assert_array_equal(found[-1, 0], [0, 0])


def test_without_a_refreshed_source_nothing_is_said_of_it():
    seen = seen_masks(np.ones((2, 3, 1, 4, 4)))
    assert np.isnan(VALIDATORS["refresh"](seen)).all()
    assert VALIDATORS["refresh"](seen).shape == VALIDATORS["source"](seen).shape


def shape_scores(volume, **more):
    """one_piece, no_holes and continuity of class 1 in the slices of one patient."""
    seen = seen_masks([volume], n_class=2, **more)
    return [VALIDATORS[name](seen)[0, 0, 1] for name in ("one_piece", "no_holes", "continuity")]


def test_shapes_are_those_of_the_stack_of_a_patient():
    ring = np.ones((5, 5), int)
    ring[2, 2] = 0
    apart = np.zeros((5, 5), int)
    apart[0, 0] = apart[4, 4] = apart[3, 3] = 1
    assert shape_scores([ring, ring]) == [1, 24 / 25, 1]
    assert shape_scores([apart, 0 * apart, apart]) == [1 / 6, 1, 0]  # corners do not join pieces
    assert shape_scores([apart, ring]) == [1, 27 / 28, 2 * 3 / 27]
    np.testing.assert_array_equal(shape_scores([apart]), [1 / 3, 1, np.nan])
    np.testing.assert_array_equal(shape_scores([0 * apart, 0 * apart]), [np.nan] * 3)


def test_a_hole_is_one_within_a_slice():
    """A channel through all slices is open in the volume, and closed in each slice."""
    ring = np.ones((4, 4), int)
    ring[1:3, 1:3] = 0
    assert shape_scores([ring, ring, ring])[1] == 12 / 16
    ring[0, 1] = 0
    assert shape_scores([ring, ring, ring])[1] == 1


def test_slices_lie_in_their_order_and_not_in_that_of_their_rows():
    left, right = np.zeros((2, 4, 4), int)
    left[:, :2], right[:, 2:] = 1, 1
    volume = np.array([left, right, left, right])
    seen = seen_masks([volume], n_class=2)
    assert VALIDATORS["continuity"](seen)[0, 0, 1] == 0
    assert VALIDATORS["continuity"](replace(seen, rows=[[0, 2, 1, 3]]))[0, 0, 1] == 2 / 3


def test_volumes_of_a_patient_are_no_neighbours():
    """Two scans: nothing of the one is a piece of the other, or its next slice; they may differ in size."""
    first, second = np.zeros((2, 3, 3, 3), np.uint8)
    first[0], second[2] = 1, 1
    said = [Said({}, None, Measured({"size": np.full((2, 2), 18.0)}, [first, second[:, :2]]))]
    seen = evidence(said, ["a", "a"], [0, 1], 2)
    assert VALIDATORS["one_piece"](seen)[0, 0, 1] == 1
    assert VALIDATORS["continuity"](seen)[0, 0, 1] == 0
    first[1] = 1
    assert VALIDATORS["continuity"](seen)[0, 0, 1] == pytest.approx((2 / 3 + 0) / 2)


# ---------------------------------------------------------------------------------------------- edge cases


def all_scores(said, patients, n_class, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = evidence(said, patients, list(range(len(patients))), n_class, **more)
        return {name: VALIDATORS[name](seen) for name in VALIDATORS}


def constant(n_class, k, axes=2):
    """A network that gives every pixel class k."""
    bias = [0.0] * n_class
    bias[k] = 60.0
    return Small(n_class, axes, bias=bias)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_class_that_nobody_predicts_has_no_score(axes):
    images = smooth_images((3, 1, 4, 7, 8)[: axes + 2], 0)
    said = [say(constant(3, 1, axes), images, [[0, 1, 2]], [1.0, 1.0, 1.0])] * 2
    found = all_scores(said, ["a", "a", "b"], 3, refresh=1)
    undefined = ("cmr_nhd", "cmr_ei", "pairwise", "mixval", "ensv", "source", "refresh", "edge", "contrast")
    for name in (*undefined, "one_piece", "no_holes", "continuity"):
        assert np.isnan(found[name][..., [0, 2]]).all(), name
    for name in ("cmr_nhd", "pairwise", "mixval", "ensv", "source", "refresh", "one_piece", "no_holes"):
        assert (found[name][..., 1] == 1).all(), name
    for name in ("edge", "contrast"):  # its border is that of the image
        assert np.isnan(found[name]).all(), name
    for name in ("sdc", "sdc_calibrated", "bnm", "prior_kl", "size", "entropy", "infomax"):
        assert np.isfinite(found[name]).all(), name
    assert (found["sdc"][..., [0, 2]] == 0).all()
    np.testing.assert_allclose(found["bnm"], 1 / 3, rtol=1e-5)


def test_everything_is_foreground():
    images = smooth_images((2, 1, 7, 8), 0)
    said = [say(constant(2, k), images, [[0, 1]], [1.0, 1.0]) for k in (1, 0)]
    found = all_scores(said, ["a", "b"], 2)
    assert (found["cmr_nhd"][0, :, 1] == 1).all()
    assert (found["ensv"][1, :, 0] == 1).all()  # one voice each, so the lowest class
    assert (found["ensv"][0, :, 1] == 0).all()
    assert (found["size"][:, :, 1] < 0).all()
    assert found["size"][0, 0, 1] == pytest.approx(-np.log(2))


@pytest.mark.parametrize("n_class", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (6, 7), (1, 6, 7), (3, 1, 4)])
def test_one_candidate_one_patient_one_image(n_class, size):
    said = [say(Small(n_class, len(size)), smooth_images((1, 1, *size), 0), [[0]])]
    found = all_scores(said, ["a"], n_class)
    for name, values in found.items():
        assert values.shape == (1, 1, n_class), name
        assert not np.isinf(values).any(), name
    assert np.nanmin(found["source"]) == np.nanmin(found["ensv"]) == 1


def test_a_class_without_a_prior_is_judged_by_everything_else():
    there = world(2, 3, 2)
    seen = replace(there.seen, prior=np.tile([0.5, 0.5, np.nan], (3, 1)))
    assert np.isnan(VALIDATORS["prior_kl"](seen)).all()
    found = VALIDATORS["size"](seen)
    assert np.isnan(found[..., 2]).all()
    assert np.isfinite(found[..., :2]).all()
    for name in set(VALIDATORS) - {"prior_kl", "size"}:
        np.testing.assert_array_equal(VALIDATORS[name](seen), VALIDATORS[name](there.seen))


def test_a_candidate_whose_weights_are_lost_has_no_score_and_hides_no_other():
    """A network that gives NaN for every pixel, beside one that does not."""
    images = smooth_images((2, 1, 7, 8), 0)
    nets = [Small(3, 2), Small(3, 2)]
    with torch.no_grad():
        nets[1].classifier.weight.fill_(torch.nan)
    said = [say(net, images, [[0, 1]], [1.0, 1.0, 1.0]) for net in nets]
    found = all_scores(said, ["a", "b"], 3)
    alone = all_scores(said[:1], ["a", "b"], 3)
    for name in ("sdc", "bnm", "entropy", "infomax"):
        assert np.isnan(found[name][1]).all(), name
    for name in VALIDATORS:
        if name != "ensv":
            np.testing.assert_array_equal(found[name][0], alone[name][0])


def test_the_right_size_is_the_best_by_the_prior_in_each_class():
    """Too small is worse than right too; −τ̂ log(τ̂/τ) of the class alone would have it better."""
    seen = seen_masks(
        np.arange(100).reshape(1, 1, 10, 10) < np.array([0, 5, 10, 20, 100]).reshape(-1, 1, 1, 1), n_class=2
    )
    seen = replace(seen, prior=np.array([[0.9, 0.1]]))
    for name in ("prior_kl", "size"):
        found = VALIDATORS[name](seen)[:, 0]
        assert (np.delete(found, 2, 0) < -1e-3).all()
        np.testing.assert_allclose(found[2], 0, atol=1e-9)


def test_collapse_is_consistent_and_the_size_says_so():
    """What each validator is for: a network of one class agrees with itself, and has no entropy."""
    images = smooth_images((4, 1, 9, 8), 0)
    images = images - images.mean()
    said = [say(net, images, [[0, 1, 2, 3]]) for net in (Small(2, 2), constant(2, 1))]
    found = all_scores(said, ["a", "b", "c", "d"], 2, prior=np.tile([0.6, 0.4], (4, 1)))
    assert (found["entropy"][1] > found["entropy"][0]).all()
    assert (found["cmr_nhd"][1, :, 1] >= found["cmr_nhd"][0, :, 1]).all()
    assert (found["size"][1, :, 0] < found["size"][0, :, 0]).all()
    assert (found["prior_kl"][1].sum(1) < found["prior_kl"][0].sum(1)).all()
    assert (found["bnm"][1] < found["bnm"][0]).all()


def test_a_ratio_is_undefined_where_there_is_no_whole():
    found = ratio(np.array([1.0, 0, np.nan, 3]), np.array([2.0, 0, 1, np.nan]))
    np.testing.assert_array_equal(found, [0.5, np.nan, np.nan, np.nan])
    assert ratio(np.ones((2, 1)), np.full((1, 3), 4.0)).shape == (2, 3)


def test_a_mean_leaves_out_what_is_undefined():
    parts = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(mean_of(iter(parts)), [2, 5, np.nan])
    np.testing.assert_array_equal(mean_of([np.array(0.25), np.array(np.nan)]), 0.25)
