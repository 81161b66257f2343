"""Scores against numbers worked by hand, two independent libraries, and symmetries that must hold."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

import metrics
from metrics import (
    DISTANCES,
    Outcome,
    SurfaceDistances,
    assd,
    average_classes,
    confusion_counts,
    dice,
    hausdorff_95,
    hausdorff_95_pooled,
    masd,
    nsd,
    relative_volume_error,
    score_patient,
    score_patients,
    summarise,
    surface_distances,
)

NAN = math.nan


def mask(shape, *boxes):
    """A boolean array, true in each box of slices or at each index."""
    made = np.zeros(shape, bool)
    for box in boxes:
        made[box] = True
    return made


def blob(shape, seed, share=0.2, smooth=2.0):
    """A ragged random mask that covers about this share of the array."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), smooth)
    return field > np.quantile(field, 1 - share)


# ------------------------------------------------------------------------------------------------ counting


def test_dice_by_hand():
    # I = 2, P = 3, T = 5 -> 4/8; no overlap -> 0; both empty -> NaN; perfect -> 1
    found = dice(np.array([[2, 0], [0, 7]]), np.array([[3, 4], [0, 7]]), np.array([[5, 1], [0, 7]]))
    np.testing.assert_array_equal(found, [[0.5, 0.0], [NAN, 1.0]])
    assert dice(1, 1, 3) == 0.5


def test_relative_volume_error_by_hand():
    found = relative_volume_error(np.array([6, 2, 0, 3, 0]), np.array([4, 4, 4, 0, 0]))
    np.testing.assert_array_equal(found, [0.5, -0.5, -1.0, NAN, NAN])


def test_confusion_counts_by_hand():
    prediction = np.array([[0, 1, 1], [2, 2, 2]])
    truth = np.array([[0, 0, 1], [2, 1, 2]])
    for found, expected in zip(
        confusion_counts(prediction, truth, 4), ([1, 1, 2, 0], [1, 2, 3, 0], [2, 2, 2, 0]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kinds", [("uint8", "uint8"), ("uint64", "int64"), ("uint8", "uint64"), ("int16", "uint8")])
def test_confusion_counts_hold_for_every_integer_type(kinds):
    # 19 * 20 + 19 does not fit in eight bits
    prediction, truth = (np.arange(20).astype(kind) for kind in kinds)
    for counts in confusion_counts(prediction, truth, 20):
        np.testing.assert_array_equal(counts, np.ones(20))


def test_confusion_counts_refuse_what_is_no_label_map():
    labels = np.array([0, 1, 255])
    with pytest.raises(ValueError, match=r"truth must hold class numbers 0..1; it holds 0..255"):
        confusion_counts(np.zeros(3, int), labels, 2)
    with pytest.raises(ValueError, match=r"prediction must hold class numbers 0..1; it holds -1..0"):
        confusion_counts(np.array([-1, 0]), np.zeros(2, int), 2)
    with pytest.raises(ValueError, match=r"prediction must hold class numbers 0..1; its type is float64"):
        confusion_counts(np.zeros(3), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        confusion_counts(np.zeros(3, int), np.zeros(2, int), 2)


# ------------------------------------------------------------------------------------------------ surfaces


@pytest.mark.parametrize(
    ("shape", "there", "spacing", "distance"),
    [
        ((5, 5), (2, 1), (2.0, 0.5), 2.0),
        ((5, 5), (1, 2), (0.5, 2.0), 2.0),
        ((4, 5, 5), (1, 1, 3), (3.0, 7.0, 1.0), 2.0),
        ((4, 5, 5), (2, 3, 4), (3.0, 2.0, 1.0), math.sqrt(9 + 16 + 9)),
    ],
)
def test_two_voxels(shape, there, spacing, distance):
    found = surface_distances(mask(shape, (1,) * len(shape)), mask(shape, there), spacing)
    assert hausdorff_95(found) == hausdorff_95_pooled(found) == assd(found) == pytest.approx(distance, rel=1e-14)
    assert nsd(found, distance) == 1
    assert nsd(found, 0.99 * distance) == 0


def test_shifted_squares():
    # Two 3x3 squares, the second one row of 2 mm further down. Of the 8 voxels of the first surface, the top
    # row is 2 mm away; the middle of the bottom row lies in the hollow of the other, 1 mm from its side.
    one, two = mask((6, 5), np.s_[1:4, 1:4]), mask((6, 5), np.s_[2:5, 1:4])
    found = surface_distances(one, two, (2.0, 1.0))
    for directed in (found.prediction_to_truth, found.truth_to_prediction):
        np.testing.assert_array_equal(np.sort(directed), [0, 0, 0, 0, 1, 2, 2, 2])
    assert hausdorff_95(found) == 2
    assert assd(found) == 7 / 8
    assert [nsd(found, tolerance) for tolerance in (0, 1, 1.5, 2)] == [4 / 8, 5 / 8, 5 / 8, 1]


def test_shifted_cubes():
    # As above with 26 voxels: nine 1.5 mm away, one in the hollow at 1 mm (along the second axis), 16 shared.
    one, two = mask((6, 5, 5), np.s_[1:4, 1:4, 1:4]), mask((6, 5, 5), np.s_[2:5, 1:4, 1:4])
    found = surface_distances(one, two, (1.5, 1.0, 3.0))
    np.testing.assert_array_equal(np.sort(found.prediction_to_truth), [0] * 16 + [1] + [1.5] * 9)
    assert hausdorff_95(found) == 1.5
    assert assd(found) == pytest.approx(14.5 / 26, rel=1e-14)
    assert nsd(found, 1) == 17 / 26


def test_assd_pools_and_masd_averages_the_directions():
    # One voxel against a row of four that begins there, 1 mm apart: there 0; back 0, 1, 2 and 3 mm.
    found = surface_distances(mask((1, 4), np.s_[0, 0]), mask((1, 4), np.s_[0, :]), (1.0, 1.0))
    assert assd(found) == 6 / 5
    assert masd(found) == (0 + 6 / 4) / 2


def test_beyond_the_border_is_outside():
    # A 5x5 mask that fills the array has a ring of 16 surface voxels around the one in the middle.
    found = surface_distances(np.ones((5, 5), bool), mask((5, 5), (2, 2)), (1.0, 1.0))
    np.testing.assert_allclose(
        np.sort(found.prediction_to_truth), [2] * 4 + [math.sqrt(5)] * 8 + [math.sqrt(8)] * 4, rtol=1e-14
    )
    np.testing.assert_array_equal(found.truth_to_prediction, [2])


def test_empty_room_around_changes_nothing():
    prediction, truth = blob((6, 20, 22), 0), blob((6, 20, 22), 1)
    spacing = (3.0, 0.7, 0.7)
    wide = surface_distances(np.pad(prediction, 5), np.pad(truth, 5), spacing)
    found = surface_distances(prediction, truth, spacing)
    for direction in ("prediction_to_truth", "truth_to_prediction"):
        wider, directed = (np.sort(getattr(distances, direction)) for distances in (wide, found))
        np.testing.assert_allclose(wider, directed, rtol=1e-12)


def test_conventions_by_hand():
    # One way 0, 1, … 20: its 95th percentile is 19, its mean 10. The other way nineteen times 0.
    # Pooled: 40 values, twenty 0 and 1 … 20; the percentile at place 0.95 * 39 = 37.05 is 18.05.
    found = SurfaceDistances(np.arange(21.0), np.zeros(19))
    assert hausdorff_95(found) == pytest.approx(19)
    assert hausdorff_95(SurfaceDistances(np.zeros(19), np.arange(21.0))) == pytest.approx(19)
    assert hausdorff_95_pooled(found) == pytest.approx(18.05)
    assert masd(found) == pytest.approx(5)
    assert assd(found) == pytest.approx(210 / 40)
    assert nsd(found, 2) == pytest.approx((3 + 19) / 40)


def test_percentile_interpolates():
    assert hausdorff_95(SurfaceDistances(np.array([0.0, 1.0]), np.array([0.0]))) == pytest.approx(0.95)


def test_nsd_tolerance_is_met_by_equality_in_spite_of_rounding():
    # 0.7 - 0.4 is a little less than 0.3 and 3 * 0.1 a little more
    for start in range(20):
        one, two = mask((30,) * 3, (start, 0, 0)), mask((30,) * 3, (start + 3, 0, 0))
        assert nsd(surface_distances(one, two, (0.1, 0.1, 0.1)), 0.3) == 1


@pytest.mark.parametrize("shape", [(5,), (2, 3, 3, 3)])
def test_surfaces_have_two_or_three_axes(shape):
    with pytest.raises(ValueError, match="masks \\(W,H\\) or \\(S,W,H\\); these have the shape"):
        surface_distances(np.ones(shape, bool), np.ones(shape, bool), (1.0,) * len(shape))


def test_surfaces_with_an_empty_mask():
    something, nothing = mask((4, 4), (1, 1), (1, 2)), mask((4, 4))
    for found in (surface_distances(something, nothing, (1, 1)), surface_distances(nothing, something, (1, 1))):
        np.testing.assert_array_equal(found.pooled, [math.inf, math.inf])
        assert math.isnan(hausdorff_95(found))
        assert math.isnan(hausdorff_95_pooled(found))
        assert math.isnan(assd(found))
        assert math.isnan(masd(found))
        assert nsd(found, 100) == nsd(found, math.inf) == 0
    found = surface_distances(nothing, nothing, (1, 1))
    assert found.pooled.size == 0
    assert all(math.isnan(score) for score in (hausdorff_95(found), assd(found), masd(found), nsd(found, 1)))


def corners(shape, size):
    """Two boxes of this size in opposite corners."""
    return mask(shape, tuple(slice(size) for _ in shape)), mask(shape, tuple(slice(-size, None) for _ in shape))


SHAPES = [
    pytest.param(blob((9, 40, 41), 3), blob((9, 40, 41), 4), id="close"),
    pytest.param(*corners((9, 40, 41), 4), id="opposite corners"),
    pytest.param(*corners((41, 9, 40), 4)[::-1], id="opposite corners, turned"),
    pytest.param(np.ones((20, 22, 9), bool), mask((20, 22, 9), np.s_[8:12, 5:9, 3:6]), id="flooded"),
    pytest.param(blob((9, 40, 41), 3, 0.5, 0.01), mask((9, 40, 41), (4, 20, 20)), id="noise against a voxel"),
    pytest.param(blob((30, 31, 32), 3, 0.001, 0.5), blob((30, 31, 32), 4, 0.001, 0.5), id="strays"),
    pytest.param(blob((40, 41), 3), blob((40, 41), 4), id="2D"),
]


@pytest.mark.parametrize("chunk", [1, metrics.CHUNK])
@pytest.mark.parametrize(("prediction", "truth"), SHAPES)
def test_planes_and_tree_give_the_distances_of_the_transform(prediction, truth, chunk, monkeypatch):
    spacing = (2.5, 0.6, 0.9)[-prediction.ndim :]
    surfaces = [each & ~binary_erosion(each) for each in (prediction, truth)]
    expected = [
        np.sort(distance_transform_edt(~goal, sampling=spacing)[start]) for start, goal in (surfaces, surfaces[::-1])
    ]
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    for sums in (0, math.inf):  # the tree always, the planes always
        monkeypatch.setattr(metrics, "SUMS_A_VOXEL", sums)
        found = surface_distances(prediction, truth, spacing)
        np.testing.assert_allclose(np.sort(found.prediction_to_truth), expected[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(np.sort(found.truth_to_prediction), expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("strays", "used"),
    [pytest.param(0, "_nearest_by_planes", id="none"), pytest.param(500, "_nearest_by_tree", id="500")],
)
def test_only_strays_all_over_take_the_tree(strays, used, monkeypatch):
    prediction, truth = corners((160, 160, 160), 20)
    prediction[tuple(np.random.default_rng(0).integers(160, size=(3, strays)))] = True
    calls = []
    for name in ("_nearest_by_tree", "_nearest_by_planes"):
        original = getattr(metrics, name)
        monkeypatch.setattr(metrics, name, lambda *a, name=name, f=original: calls.append(name) or f(*a))
    surface_distances(prediction, truth, (1, 1, 1))
    assert calls == [used, used]


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ((1.0, 1.0), r"spacing \(1.0, 1.0\) must have one length per axis of the shape \(3, 4, 5\)"),
        (1.0, r"spacing 1.0 must have one length per axis of the shape \(3, 4, 5\)"),
        ((1.0, 0.0, 1.0), r"spacing \(1.0, 0.0, 1.0\) of the shape \(3, 4, 5\) must be positive and finite"),
        ((1.0, -2.0, 1.0), "must be positive and finite"),
        ((1.0, NAN, 1.0), "must be positive and finite"),
        ((1.0, 1.0, math.inf), "must be positive and finite"),
    ],
)
def test_bad_spacing(spacing, message):
    nothing = mask((3, 4, 5))
    with pytest.raises(ValueError, match=message):
        surface_distances(nothing, nothing, spacing)
    with pytest.raises(ValueError, match=message):
        score_patient(nothing.astype(int), nothing.astype(int), 2, spacing, 1.0)


def test_bad_masks_and_tolerance():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\)"):
        surface_distances(mask((3, 4)), mask((4, 3)), (1, 1))
    with pytest.raises(ValueError, match="boolean masks .* int64"):
        surface_distances(mask((3, 4)), np.zeros((3, 4), np.int64), (1, 1))
    with pytest.raises(ValueError, match="zero or positive; it is -1"):
        nsd(SurfaceDistances(np.zeros(1), np.zeros(1)), -1)


# ------------------------------------------------------------------------------------------------ libraries

PAIRS = [
    pytest.param((40, 44), (1.0, 1.0), 0.2, 2.0, id="2D"),
    pytest.param((40, 44), (0.6, 2.0), 0.3, 1.0, id="2D anisotropic"),
    pytest.param((10, 30, 32), (3.6, 0.625, 0.7), 0.2, 2.0, id="3D anisotropic"),
    pytest.param((20, 24, 22), (1.0, 1.0, 1.0), 0.01, 0.5, id="3D strays"),
    pytest.param((8, 20, 20), (2.0, 1.0, 0.5), 0.5, 0.3, id="3D noise"),
]


@pytest.mark.parametrize("seed", [0, 10])
@pytest.mark.parametrize(("shape", "spacing", "share", "smooth"), PAIRS)
def test_agrees_with_medpy(shape, spacing, share, smooth, seed):
    binary = pytest.importorskip("medpy.metric.binary")
    prediction, truth = blob(shape, seed, share, smooth), blob(shape, seed + 1, 1.5 * share, smooth)
    found = surface_distances(prediction, truth, spacing)
    assert found.pooled.max() == pytest.approx(binary.hd(prediction, truth, spacing), rel=1e-6)
    assert hausdorff_95_pooled(found) == pytest.approx(binary.hd95(prediction, truth, spacing), rel=1e-6)
    there = binary.asd(prediction, truth, spacing)
    back = binary.asd(truth, prediction, spacing)
    assert found.prediction_to_truth.mean() == pytest.approx(there, rel=1e-6)
    assert masd(found) == pytest.approx((there + back) / 2, rel=1e-6)
    assert assd(found) == pytest.approx(binary.assd(prediction, truth, spacing), rel=1e-6)
    counts = confusion_counts(prediction, truth, 2)
    assert dice(*counts)[1] == pytest.approx(binary.dc(prediction, truth), rel=1e-6)
    assert relative_volume_error(*counts[1:])[1] == pytest.approx(binary.ravd(prediction, truth), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("seed", [0, 10])
@pytest.mark.parametrize(("shape", "spacing", "share", "smooth"), PAIRS)
def test_agrees_with_monai(shape, spacing, share, smooth, seed):
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    prediction, truth = blob(shape, seed, share, smooth), blob(shape, seed + 1, 1.5 * share, smooth)
    found = surface_distances(prediction, truth, spacing)
    pair = [torch.from_numpy(each)[None, None].float() for each in (prediction, truth)]
    options = {"include_background": True, "spacing": list(spacing)}
    theirs = monai.compute_hausdorff_distance(*pair, percentile=95, **options).item()
    assert hausdorff_95(found) == pytest.approx(theirs, rel=1e-6)
    theirs = monai.compute_average_surface_distance(*pair, symmetric=True, **options).item()
    assert assd(found) == pytest.approx(theirs, rel=1e-6)
    directed = [monai.compute_average_surface_distance(*way, **options).item() for way in (pair, pair[::-1])]
    assert masd(found) == pytest.approx(sum(directed) / 2, rel=1e-6)
    theirs = monai.compute_surface_dice(*pair, [1.1], **options).item()
    assert nsd(found, 1.1) == pytest.approx(theirs, rel=1e-6)


# ------------------------------------------------------------------------------------------------ patients


def label_maps(seed, shape=(6, 20, 22)):
    """A prediction and a truth of four classes: 1 and 2 in both, 3 in neither."""
    maps = []
    for part in (0, 100):
        labels = np.zeros(shape, np.uint8)
        labels[blob(shape, seed + part)] = 1
        labels[blob(shape, seed + part + 1, 0.1)] = 2
        maps.append(labels)
    return tuple(maps)


def test_the_four_cases():
    # 1 hit, 2 missed, 3 made up, 4 absent; the volume measures 6 x 4 x 4 mm.
    truth, prediction = np.zeros((2, 2, 4, 4), int)
    truth[0, 0, :2], prediction[0, 0, :3] = 1, 1
    truth[1, 3, 3], prediction[1, 2, 2] = 2, 3
    rows = score_patient(prediction, truth, 5, (3.0, 1.0, 1.0), tolerance=0.5)
    # In class 1 both surfaces are the whole lines; the third voxel is 1 mm off.
    expected = [
        (1, "hit", 4 / 5, 0.9, 1 / 5, (1 / 3 + 0) / 2, 4 / 5, 0.5, 3, 2),
        (2, "miss", 0, NAN, NAN, NAN, 0, -1, 0, 1),
        (3, "false structure", 0, NAN, NAN, NAN, 0, NAN, 1, 0),
        (4, "true absence", NAN, NAN, NAN, NAN, NAN, NAN, 0, 0),
    ]
    keys = ("class", "outcome", *metrics.SCORES, "predicted", "true")
    for row, values in zip(rows, expected, strict=True):
        found = [row.pop(key) for key in keys]
        assert found.pop(1) == values[1]
        assert found == pytest.approx([value for value in values if not isinstance(value, str)], rel=1e-14, nan_ok=True)
        assert row == {"diagonal": math.sqrt(68)}


def test_perfect_prediction():
    _, truth = label_maps(0)
    for row in score_patient(truth, truth, 3, (3.0, 1.0, 1.0), 0.0):
        assert (row["dice"], row["hd95"], row["assd"], row["nsd"], row["volume_error"]) == (1, 0, 0, 1, 0)


def test_volume_and_slices_do_not_mix():
    # Predicted in the slice beside the true one, 5 mm away: one hit in 3D, one miss and one ghost in 2D.
    prediction, truth = np.zeros((2, 2, 4, 4), int)
    prediction[0, 1, 1] = truth[1, 1, 1] = 1
    (row,) = score_patient(prediction, truth, 2, (5.0, 1.0, 1.0), 1.0)
    assert (row["outcome"], row["dice"], row["hd95"]) == ("hit", 0, 5)
    by_slice = [score_patient(p, t, 2, (1.0, 1.0), 1.0)[0] for p, t in zip(prediction, truth, strict=True)]
    assert [row["outcome"] for row in by_slice] == ["false structure", "miss"]


def same(one, other, keys=metrics.SCORES):
    """Whether two lists of rows hold the same scores, up to rounding."""
    for row, twin in zip(one, other, strict=True):
        assert {key: row[key] for key in keys} == pytest.approx({key: twin[key] for key in keys}, rel=1e-9, nan_ok=True)
    return True


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param(lambda a: a[::-1], id="slices upside down"),
        pytest.param(lambda a: a[:, :, ::-1], id="mirrored"),
        pytest.param(lambda a: np.rot90(a, 2, (1, 2)), id="half turn"),
    ],
)
def test_mirrors_change_nothing(turn):
    pair, spacing = label_maps(2), (3.0, 0.8, 0.5)
    turned = score_patient(*map(turn, pair), 4, spacing, 1.0)
    assert same(score_patient(*pair, 4, spacing, 1.0), turned)


def test_axes_turn_with_their_spacing():
    pair = label_maps(3)
    turned = score_patient(*(np.rot90(each, 1, (0, 2)) for each in pair), 4, (0.5, 0.8, 3.0), 1.0)
    assert same(score_patient(*pair, 4, (3.0, 0.8, 0.5), 1.0), turned)
    wrong = score_patient(*pair, 4, (0.5, 0.8, 3.0), 1.0)
    assert wrong[0]["assd"] != pytest.approx(turned[0]["assd"], rel=1e-3)


def test_distances_scale_with_the_spacing():
    pair = label_maps(4)
    small, large = (score_patient(*pair, 3, np.array([3.0, 0.8, 0.5]) * f, 1.0 * f) for f in (1, 10))
    for row, twin in zip(small, large, strict=True):
        for key in (*DISTANCES, "diagonal"):
            assert twin[key] == pytest.approx(10 * row[key])
        assert twin["nsd"] == row["nsd"]


def test_prediction_and_truth_can_change_places():
    prediction, truth = label_maps(5)
    there = score_patient(prediction, truth, 4, (3.0, 0.8, 0.5), 1.0)
    back = score_patient(truth, prediction, 4, (3.0, 0.8, 0.5), 1.0)
    assert same(there, back, ("dice", "hd95", "assd", "masd", "nsd"))
    assert [(r["predicted"], r["true"]) for r in there] == [(r["true"], r["predicted"]) for r in back]


def cohort():
    return {name: (*label_maps(seed), (3.0, 0.8, 0.5)) for seed, name in enumerate(["z", "a", "m"])}


def test_patients_in_parallel_give_the_same_rows():
    patients = cohort()
    alone = score_patients(patients, 4, 1.0, jobs=1)
    assert [(row["patient"], row["class"]) for row in alone] == [(p, k) for p in "zam" for k in (1, 2, 3)]
    prediction, truth, spacing = patients["a"]
    own = [{"patient": "a", **row} for row in score_patient(prediction, truth, 4, spacing, 1.0)]
    assert repr(alone[3:6]) == repr(own)  # NaN is not equal to itself, but reads the same
    assert repr(score_patients(patients, 4, 1.0, jobs=2)) == repr(alone)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_patient_at_fault_is_named(jobs):
    patients = cohort()
    patients["a"] = (patients["a"][0][1:], *patients["a"][1:])
    with pytest.raises(ValueError, match=r"Patient 'a': .* \(5, 20, 22\) and \(6, 20, 22\)"):
        score_patients(patients, 4, 1.0, jobs)


def test_no_patients_no_rows():
    assert score_patients({}, 2, 1.0, jobs=4) == []


# -------------------------------------------------------------------------------------------------- tables


def row(patient, k, outcome, score, hd95, diagonal=100.0):
    """A row of which only the Dice and the HD95 matter; the other scores follow them."""
    shared = {"patient": patient, "class": k, "outcome": Outcome(outcome), "diagonal": diagonal}
    return {
        **shared,
        "dice": score,
        "nsd": score,
        "volume_error": 0.0,
        "hd95": hd95,
        "assd": hd95 / 2,
        "masd": hd95 / 4,
    }


ROWS = [
    row("a", 1, "hit", 0.9, 2.0),
    row("b", 1, "hit", 0.6, 4.0),
    row("c", 1, "miss", 0.0, NAN, diagonal=60.0),
    row("d", 1, "false structure", 0.0, NAN, diagonal=30.0),
    row("e", 1, "true absence", NAN, NAN),
]


def test_summary_by_hand():
    # HD95: 2 and 4; penalised (2 + 4 + 60 + 30) / 4. Dice: 0.9, 0.6, 0, 0.
    assert summarise(ROWS, "hd95") == pytest.approx(
        {"mean": 3, "sd": math.sqrt(2), "n": 2, "misses": 1, "false_structures": 1, "penalised_mean": 24}
    )
    found = summarise(ROWS, "dice")
    assert (found["mean"], found["penalised_mean"], found["n"]) == (pytest.approx(0.375), pytest.approx(0.375), 4)
    assert found["sd"] == pytest.approx(math.sqrt((0.525**2 + 0.225**2 + 2 * 0.375**2) / 3))


def test_a_miss_never_improves_the_penalised_mean():
    hits = [row("a", 1, "hit", 0.5, 20.0), row("b", 1, "hit", 0.5, 30.0)]
    missed = [hits[0], row("b", 1, "miss", 0.0, NAN)]
    assert summarise(missed, "hd95")["mean"] < summarise(hits, "hd95")["mean"]
    assert summarise(missed, "hd95")["penalised_mean"] > summarise(hits, "hd95")["penalised_mean"]
    assert summarise(missed, "dice")["mean"] < summarise(hits, "dice")["mean"]


def test_summary_of_little():
    one = summarise(ROWS[:1], "dice")
    assert (one["mean"], one["n"]) == (0.9, 1)
    assert math.isnan(one["sd"])
    absent = summarise(ROWS[4:], "hd95")
    assert (absent["n"], absent["misses"], absent["false_structures"]) == (0, 0, 0)
    assert all(math.isnan(absent[key]) for key in ("mean", "sd", "penalised_mean"))
    assert summarise([], "dice")["n"] == 0


def test_averages_over_classes_by_hand():
    rows = [
        row("b", 1, "hit", 0.8, 2.0),
        row("a", 1, "true absence", NAN, NAN),
        row("b", 2, "miss", 0.0, NAN),
        row("a", 2, "true absence", NAN, NAN),
        row("b", 3, "true absence", NAN, NAN),
    ]
    second, first = average_classes(rows)
    assert (second["patient"], first["patient"]) == ("b", "a")
    assert (second["dice"], second["hd95"], second["assd"], second["masd"]) == (0.4, 2, 1, 0.5)
    assert (second["hd95_penalised"], second["assd_penalised"]) == (51, 50.5)
    assert (second["misses"], second["false_structures"]) == (1, 0)
    assert all(
        math.isnan(first[key]) for key in ("dice", "hd95", "assd", "masd", "nsd", "hd95_penalised", "masd_penalised")
    )
    found = summarise([second, first], "hd95")
    assert (found["mean"], found["n"], found["misses"], found["penalised_mean"]) == (2, 1, 1, 51)


def test_rows_of_score_patients_go_through_the_tables():
    rows = score_patients(cohort(), 4, 1.0, jobs=1)
    averages = average_classes(rows)
    expected = np.mean([row["dice"] for row in rows if row["class"] < 3])
    assert summarise(averages, "dice")["mean"] == pytest.approx(expected)
    assert summarise(averages, "hd95")["misses"] == 0
