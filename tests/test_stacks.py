"""Distances between slices: a plane lies at its number, so a slice that was left out is no neighbour less."""

from argparse import Namespace

import numpy as np
import pytest
from conftest import FOLDERS
from PIL import Image

from dataloader import open_slices, parse_folders
from evaluation import Evaluation, score_patients_of
from score_masks import sliced_references
from stacks import are_places, gaps, stack

REGEX = r"(case\d+)_(\d+)"
SPACING = 3.0


def make_set(root, numbers):
    """Two patients with slices of these numbers, 3 mm from each other, the organ in number 2 alone."""
    rows = ["slice,spacing_slice,spacing_w,spacing_h"]
    for patient in ("case04", "case05"):
        for number in numbers:
            label = np.zeros((16, 16), np.uint8)
            label[4:9, 4:9] = int(number) == 2
            for folder, array in (("IMG", 40 + 100 * label), ("GT", label)):
                path = root / "val" / folder / f"{patient}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            rows.append(f"{patient}_{number},{SPACING},1,1")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return open_slices(root, "val", parse_folders(FOLDERS, 1), 2, REGEX)


def scores(slices, there=6):
    """Of a prediction that is the truth of slice 2, in the slice of another number."""
    true = slices.labels(range(len(slices)))
    predicted = np.zeros_like(true)
    for row, (patient, number) in enumerate(zip(slices.patients, slices.numbers, strict=True)):
        if number == there:
            predicted[row] = true[slices.names.index(f"{patient}_2")]
    counts = [np.stack([(m == k).sum((1, 2)) for k in (0, 1)], 1) for m in (predicted, true)]
    both = np.stack([((predicted == k) & (true == k)).sum((1, 2)) for k in (0, 1)], 1)
    found = Evaluation(slices.names, slices.patients, {}, both, *counts, counts[0], predicted, None)
    args = Namespace(scores="volume", n_class=2, nsd_tolerance=2.0, jobs=1, ignore=None)
    return score_patients_of(found, slices, args)


def test_a_gap_keeps_its_distance(tmp_path):
    whole = scores(make_set(tmp_path / "whole", range(9)))
    without = scores(make_set(tmp_path / "without", (0, 1, 2, 6, 7, 8)))
    assert [(row["hd95"], row["assd"]) for row in without] == [(12.0, 12.0)] * 2
    assert without == whole


def test_a_set_with_all_its_slices_is_stacked_as_ever():
    planes = [np.full((3, 4), n, np.uint8) for n in range(5)]
    assert np.array_equal(stack(planes, range(7, 12)), np.stack(planes))
    assert np.array_equal(stack(planes[:1], [40]), np.stack(planes[:1]))
    gapped = stack(planes[:3], [2, 3, 6])
    assert gapped.shape == (5, 3, 4)
    assert gapped[:, 0, 0].tolist() == [0, 1, 0, 0, 2]
    assert gaps([2, 3, 6]) == [4, 5]


@pytest.mark.parametrize("numbers", [("2", "02", "6"), ("2", "6", "20230101")])
def test_numbers_that_are_no_places_give_no_distance(tmp_path, numbers):
    slices = make_set(tmp_path, numbers)
    assert not are_places(slices.numbers[:3])
    for row in scores(slices):
        assert np.isnan([row["hd95"], row["assd"], row["nsd"], row["diagonal"]]).all()
        assert (row["dice"], row["predicted"]) == (0.0, 25)


def test_saved_masks_are_scored_at_their_numbers_too(tmp_path):
    slices = make_set(tmp_path, (0, 1, 2, 6))
    references = sliced_references(slices)
    assert list(references) == ["case04", "case05"]
    assert all(each.numbers == [0, 1, 2, 6] for each in references.values())
    assert slices.keep([3, 2]).numbers == [6, 2]


class Compared(str):
    """A name that counts how often it is compared with another."""

    times = 0

    def __eq__(self, other):
        Compared.times += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_sums_of_patients_take_as_many_looks_as_there_are_slices():
    """Each slice is its own patient where nothing tells whose it is: a comparison of each with each takes seconds."""
    names = [Compared(f"p{number % 300}") for number in range(600)]
    counts = [np.random.default_rng(seed).integers(0, 9, (600, 2)).astype(float) for seed in range(3)]
    found = Evaluation(names, names, {}, *counts, counts[1], None, None)
    patients, sums = found.per_patient()
    assert patients == [f"p{number}" for number in range(300)]
    assert np.array_equal(sums, [each[:300] + each[300:] for each in counts])
    Compared.times = 0
    found.dice_3d()
    assert Compared.times < 10 * len(names)


def test_a_patient_without_truth_leaves_the_sums_of_the_others():
    counts = np.array([[5.0, 1.0], [np.nan, np.nan], [4.0, 2.0]])
    found = Evaluation(["a", "b", "c"], ["a", "b", "a"], {}, counts, counts, counts, counts, None, None)
    assert np.array_equal(found.per_patient()[1][0], [[9, 3], [np.nan, np.nan]], equal_nan=True)
