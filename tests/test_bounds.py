"""Bounds on 4x4 masks, worked by hand."""

import numpy as np
import pytest

from bounds import BOUNDS
from processes.errors import UserError

LABEL = np.array(
    [
        [0, 1, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 2],
        [2, 0, 0, 0],
    ]
)  # K = 4: 11 background, 3 of class 1 (its box is 2x2), 2 of class 2 (2x4), no class 3


@pytest.fixture
def sizefile(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text(
        "# supervision prior: a reader\n# supervision: a network\nval_ids;prior;val_gt_size;prior_low;prior_high\n"
        "a;[8,4,3,1];[11,3,2,0];[6,3,2,0];[10,5,4,2]\nb;[0,0,0,0];[16,0,0,0];[16,0,0,0];[16,0,0,0]\n"
    )
    return str(path)


def some_params(name: str, sizefile: str) -> dict:
    return BOUNDS[name].example | ({"sizefile": sizefile} if BOUNDS.takes(name, "sizefile") else {})


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_keeps_the_contract(name, sizefile):
    bound = BOUNDS.build(name, 4, **some_params(name, sizefile))
    label = LABEL if bound.needs_label else None
    limits = bound(label, "a.png")
    assert (limits.shape, limits.dtype) == ((4, 2), np.float64)
    assert (0 <= limits[:, 0]).all()
    assert (limits[:, 0] <= limits[:, 1]).all()
    limits[:] = -1
    assert (bound(label, "a.png") >= 0).all()  # what was given out is the caller's own
    bound.check(["a.png"])
    assert not bound.skips("a.png")
    assert bound.supervision


@pytest.mark.parametrize("name", [n for n in BOUNDS if BOUNDS[n].needs_label])
def test_bounds_from_labels_take_any_type_and_dimension(name, sizefile):
    bound = BOUNDS.build(name, 4, **some_params(name, sizefile))
    expected = bound(LABEL, "a")
    assert np.array_equal(bound(LABEL.astype(np.uint8), "a"), expected)
    assert np.array_equal(bound(LABEL[:, :, None], "a"), expected)
    with pytest.raises(UserError, match="none was given"):
        bound(None, "a")


def test_supervision_is_told_apart(sizefile):
    told = {name: BOUNDS.build(name, 4, **some_params(name, sizefile)).supervision for name in BOUNDS}
    assert all(told.values())
    assert (
        told.items()
        >= {
            "ConstantBounds": "none",
            "TagBounds": "image-level tags",
            "PredictionBounds": "a reader",
            "IntervalBounds": "a reader, a network",
            "PreciseBounds": "oracle (true sizes)",
            "PreciseTags": "oracle (true sizes)",
            "BoxBounds": "bounding boxes",
        }.items()
    )
    assert "oracle" in BOUNDS.build("PredictionBounds", 4, sizefile=sizefile, predcol="val_gt_size").supervision


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 2], [3, 4], [0, 0], [5, 9]], [[1, 2], [3, 4], [0, 0], [5, 9]]),
        ([10, 3, 2.5, (0, 1)], [[10, 10], [3, 3], [2.5, 2.5], [0, 1]]),
        ({1: [60, 2000], 3: 7}, [[0, 0], [60, 2000], [0, 0], [7, 7]]),
        ("uniform", [[1, 1]] * 4),
    ],
)
def test_constant_bounds(values, expected):
    assert BOUNDS.build("ConstantBounds", 4, values=values)(None, "a").tolist() == expected


def test_tag_bounds():
    bound = BOUNDS.build("TagBounds", 4, values={0: [5, 16], 1: [60, 2000], 3: [7, 8]}, idc=[1])
    assert bound(LABEL, "a").tolist() == [[5, 16], [60, 2000], [0, 0], [0, 0]]
    ignored = np.where(LABEL == 1, 255, LABEL).astype(np.uint8)
    assert bound(ignored, "a").tolist() == [[5, 16], [0, 0], [0, 0], [0, 0]]
    assert bound(ignored.astype(np.int64) - 2 * (LABEL == 2), "a").tolist() == [[5, 16], [0, 0], [0, 0], [0, 0]]


def test_a_background_without_limits_gets_what_the_tagged_classes_leave():
    bound = BOUNDS.build("TagBounds", 4, values={1: [2, 5], 3: [1, 1]})
    assert bound(LABEL, "a").tolist() == [[11, 14], [2, 5], [0, 0], [0, 0]]
    assert bound(np.zeros((4, 4)), "a").tolist() == [[16, 16], [0, 0], [0, 0], [0, 0]]
    assert BOUNDS.build("TagBounds", 4, values={1: [2, 50]})(LABEL, "a").tolist() == [[0, 14], [2, 50], [0, 0], [0, 0]]


def test_ratios_need_a_background():
    with pytest.raises(UserError, match="class 0, the background, no size"):
        BOUNDS.build("ConstantBounds", 3, values={1: 5, 2: 6}).take_as_ratios()
    for values in ({0: 9, 1: 5}, "uniform"):
        BOUNDS.build("ConstantBounds", 3, values=values).take_as_ratios()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [[8, 8], [4, 4], [3, 3], [1, 1]]),
        ({"margin": 0.5}, [[8, 12], [4, 6], [3, 4.5], [1, 1.5]]),
        ({"margin": 0.5, "dir": "low"}, [[4, 8], [2, 4], [1.5, 3], [0.5, 1]]),
        ({"margin": 0.5, "dir": "both"}, [[4, 12], [2, 6], [1.5, 4.5], [0.5, 1.5]]),
        ({"margin": 2, "dir": "both", "mode": "abs"}, [[6, 10], [2, 6], [1, 5], [0, 3]]),
        ({"margin": 1.5, "dir": "low"}, [[0, 8], [0, 4], [0, 3], [0, 1]]),
        ({"sep": ",", "idc": [0, 1], "power": 2, "fake": True, "prop": True}, [[8, 8], [4, 4], [3, 3], [1, 1]]),
    ],
)
def test_prediction_bounds(sizefile, params, expected):
    bound = BOUNDS.build("PredictionBounds", 4, sizefile=sizefile, predcol="prior", **params)
    assert bound(None, "a.nii").tolist() == expected
    assert bound.skips("b.png")


def test_prediction_bounds_need_no_file_until_they_are_used(tmp_path):
    bound = BOUNDS.build("PredictionBounds", 2, sizefile=str(tmp_path / "later.csv"), predcol="prior")
    with pytest.raises(UserError, match=r"no size csv .*later.csv"):
        bound.check(["a"])


def test_prediction_bounds_list_missing_slices(sizefile):
    bound = BOUNDS.build("PredictionBounds", 4, sizefile=sizefile, predcol="prior")
    with pytest.raises(UserError, match="no row for 2 of 3 slices: c, d"):
        bound.check(["a", "c", "d"])
    with pytest.raises(UserError, match="no row for 1 of 1 slices: c"):
        bound(None, "c")
    with pytest.raises(UserError, match="expected 2 numbers"):
        BOUNDS.build("PredictionBounds", 2, sizefile=sizefile, predcol="prior").check(["a"])


def test_precise_bounds():
    assert BOUNDS.build("PreciseBounds", 4)(LABEL, "a").tolist() == [[11, 11], [3, 3], [2, 2], [0, 0]]
    percentage = BOUNDS.build("PreciseBounds", 4, margin=0.5, mode="percentage", fn="soft_size", power=1)
    assert percentage(LABEL, "a").tolist() == [[5.5, 16.5], [1.5, 4.5], [1, 3], [0, 0]]
    absolute = BOUNDS.build("PreciseBounds", 4, margin=2, mode="abs")
    assert absolute(LABEL, "a").tolist() == [[9, 13], [1, 5], [0, 4], [0, 2]]


def test_precise_tags():
    bound = BOUNDS.build("PreciseTags", 4, margin=2, mode="abs")
    assert bound(LABEL, "a").tolist() == [[9, 13], [1, 5], [0, 4], [0, 0]]
    bound = BOUNDS.build("PreciseTags", 4, margin=2, mode="abs", neg_value=[0, 3])
    assert bound(LABEL, "a").tolist() == [[9, 13], [1, 5], [0, 4], [0, 3]]


def test_box_bounds():
    bound = BOUNDS.build("BoxBounds", 4, margins=[0.5, 0.75])
    assert bound(LABEL, "a").tolist() == [[8, 12], [2, 3], [4, 6], [0, 0]]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("PredictedBounds", {}, "Did you mean 'PredictionBounds'"),
        ("PredictionBounds", {"sizefile": "s.csv"}, "predcol"),
        ("PredictionBounds", {"sizefile": "s.csv", "predcol": "p", "marign": 0}, "no parameter 'marign'.*'margin'"),
        ("PredictionBounds", {"sizefile": "s.csv", "predcol": "p", "dir": "higher"}, "no dir 'higher'.*'high'"),
        ("PredictionBounds", {"sizefile": "s.csv", "predcol": "p", "dir": ["high"]}, "'dir' takes a word, not"),
        ("PredictionBounds", {"sizefile": "s.csv", "predcol": "p", "margin": -1}, "margin is a number from 0 to 1e"),
        ("PreciseBounds", {"margin": 1e308}, r"margin is a number from 0 to 1e\+09 .*, got 1e\+308"),
        (
            "PredictionBounds",
            {"sizefile": "s.csv", "predcol": "p", "margin": "10%"},
            "'margin' takes a number, not '10%'",
        ),
        ("PreciseBounds", {"mode": "relative"}, "no mode 'relative'.*Known: abs, percentage"),
        ("PreciseTags", {"neg_value": [3, 1]}, "neg_value expects"),
        ("BoxBounds", {"margins": [1, 0.5]}, "margins expects .* got"),
        ("BoxBounds", {"margins": [1]}, "margins expects"),
        ("ConstantBounds", {"values": [1, 2]}, "3 of them"),
        ("ConstantBounds", {"values": "even"}, "or 'uniform'; got 'even'"),
        ("ConstantBounds", {"values": [1, 2, [3, 2]]}, "class 2 expects"),
        ("ConstantBounds", {"values": [1, 2, "3"]}, "class 2 expects"),
        ("TagBounds", {"values": {3: [1, 2]}}, "names class 3; the classes are 0 to 2"),
    ],
)
def test_wrong_parameters(name, params, message):
    with pytest.raises(UserError, match=message):
        BOUNDS.build(name, 3, **params)
