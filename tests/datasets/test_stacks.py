"""Distances between slices: a plane lies at its number, so a slice that was left out is no neighbour less."""

import numpy as np
import pytest
from conftest import FOLDERS
from PIL import Image

from dataloader import tell_places
from datasets.slices import open_slices
from datasets.stacks import about_places, are_places, gaps, stack
from datasets.transforms import parse_folders
from engine.evaluation import Evaluation, Scoring, score_patients_of
from preprocess.survey.sets import survey_set
from score_masks import sliced_references
from utils import tell_once

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
    scoring = Scoring(n_class=2, metric_axis=[1], scores="volume", ignore=None, nsd_tolerance=2.0, jobs=1)
    return score_patients_of(found, slices, scoring)


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


# ------------------------------------------------------------------------------------- what is told of places


def test_numbers_in_steps_and_gaps_are_told():
    stepped, gapped = {"a": [100, 110, 120], "b": [0, 1, 2]}, {"a": [0, 1, 5, 6, 8], "b": [3, 4]}
    [line] = about_places(stepped)
    assert "1 of 2 patients are numbered in steps, a (by 10)" in line
    [line] = about_places(gapped)
    assert "Slices lack between others in 1 of 2 patients, a (4, 3 in a row)" in line
    assert about_places(gapped, whole=False) == []
    assert about_places({"a": [4, 5, 6], "b": [2]}) == []
    [line] = about_places({"a": [0, 10, 20]}, contradicted=["a"])
    assert "1 of 1 patient have numbers that are not their places" in line


def write_manifest(root, index=lambda n: n, origin=lambda n: 0.0):
    rows = ["slice,index,affine,spacing_slice,spacing_w,spacing_h"]
    for path in sorted((root / "val" / "IMG").iterdir()):
        number = int(path.stem.split("_")[1])
        affine = f"1 0 0 0 0 1 0 0 0 0 3 {origin(number)} 0 0 0 1"
        rows.append(f"{path.stem},{index(number)},{affine},{SPACING},1,1")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return open_slices(root, "val", parse_folders(FOLDERS, 1), 2, REGEX)


@pytest.mark.parametrize(
    ("places", "is_denied"),
    [
        ({}, False),
        ({"index": lambda n: n - 2}, False),  # counted from another slice on
        ({"origin": lambda n: 7 + SPACING * n}, False),
        ({"origin": lambda n: 7 - SPACING * n}, False),
        ({"index": lambda n: n // 2}, True),
        ({"origin": lambda n: SPACING * n / 2}, True),
    ],
)
def test_the_manifest_may_deny_the_places_that_the_numbers_tell(tmp_path, places, is_denied):
    make_set(tmp_path, (2, 4, 6))
    slices = write_manifest(tmp_path, **places)
    assert slices.contradicted == ({"case04", "case05"} if is_denied else set())
    for row in scores(slices):
        assert np.isnan(row["hd95"]) == is_denied
        assert row["hd95"] == 12 or is_denied
    survey = survey_set(tmp_path, regex=REGEX)
    assert any("not their places by manifest.csv" in what for what, _ in survey.faults) == is_denied


def test_a_run_says_once_that_slices_are_numbered_in_steps(tmp_path, capsys):
    slices = make_set(tmp_path, (2, 12, 22))
    tell_once.cache_clear()
    for _ in range(2):
        tell_places(slices, debug=False)
    assert capsys.readouterr().err.count("2 of 2 patients are numbered in steps, case04 (by 10), case05 (by 10)") == 1
    tell_places(slices, debug=True)  # of which few slices are read
    (tmp_path / "dataset.json").write_text('{"split_unit": "slice blocks"}')  # whose gaps are on purpose
    tell_places(slices, debug=False)
    assert not capsys.readouterr().err
