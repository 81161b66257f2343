"""The study of coverage, small: what it prints for 2,000 studies stands in docs/statistics.md."""

import numpy as np
import pytest

from tests.studies import coverage

# Of 400 studies, a share of 95 % has a standard error of 1.1 points.
LOW, HIGH = 0.95 - 0.035, 0.95 + 0.035


def studies(n_patient, n_seed, situation, n_study=400):
    return coverage.make_studies(n_study, n_patient, n_seed, coverage.SITUATIONS[situation], np.random.default_rng(0))


@pytest.mark.parametrize("design", ["**crossed**", "**bootstrap**"])
@pytest.mark.parametrize(
    "situation", ["patients, little noise", "patients and seeds alike", "seeds, and as much noise"]
)
def test_intervals_hold_the_truth(design, situation, monkeypatch):
    monkeypatch.setattr(coverage, "DRAWS", 300)
    ends = coverage.DESIGNS[design](studies(10, 5, situation), np.random.default_rng(1))
    assert LOW <= coverage.coverage(ends, 0) <= HIGH


def test_what_is_wrong_with_the_plain_ones():
    """Patients alone take three seeds for all that there are; percentiles over three seeds are too close."""
    made = studies(10, 3, "patients and seeds alike")
    assert coverage.coverage(coverage.patients_alone(made, None), 0) < 0.85
    assert coverage.coverage(coverage.by_percentiles(made, np.random.default_rng(1)), 0) < 0.88
    alike = studies(10, 3, "noise alone")
    assert coverage.coverage(coverage.as_published(alike, None), 0) < 0.9


def test_false_positives_are_few(monkeypatch):
    monkeypatch.setattr(coverage, "SIZES", [(10, 3)])
    monkeypatch.setattr(coverage, "SOME", ("patients, and as much noise", "seeds more than patients"))
    found = {row[:2]: row[-1] for row in coverage.false_positives(300, 0)}
    calm, moved = coverage.SOME
    assert all(found[test, calm] < 0.09 for test in ("sign flip", "Wilcoxon", "crossed t", "**p of a claim**"))
    assert found["**p of a claim**", moved] < 0.09
    assert found["sign flip", moved] > 0.3  # seeds that differ look like a difference to a test over patients alone


def test_gaps_and_wins_hold_the_truth(monkeypatch):
    monkeypatch.setattr(coverage, "SIZES", [(10, 5)])
    monkeypatch.setattr(coverage, "SOME", ("patients, and as much noise",))
    ((_, _, defined, held),) = coverage.of_gaps(60, 0)
    assert defined > 0.9
    assert held > 0.88
    found = [*coverage.of_better(100, 0)]
    assert [round(row[1], 2) for row in found] == [0.5, 0.76, 0.9]
    assert min(row[-1] for row in found) > 0.88


def test_coverage_of_known_ends():
    ends = (np.array([-1.0, 0.5, -2.0, 0.0]), np.array([1.0, 2.0, -1.0, 0.0]))
    assert coverage.coverage(ends, 0) == 0.5


def test_a_table_says_between_which_shares_a_design_lies():
    rows = [
        ("a", "x", 5, 3, 0.9),
        ("a", "y", 10, 3, 0.951),
        ("a", "x", 5, 5, 1.0),
        ("b", "x", 5, 3, 0.5),
        ("b", "x", 5, 5, 0.6),
    ]
    assert coverage.spread(rows, 0, "design").splitlines()[2:] == [
        "| a | 90.0 to 95.1 | 100.0 to 100.0 |",
        "| b | 50.0 to 50.0 | 60.0 to 60.0 |",
    ]


def test_false_positives_are_means_over_situations():
    rows = [("a", "x", 5, 3, 0.0), ("a", "y", 5, 3, 0.1), ("a", "x", 10, 3, 0.04)]
    assert coverage.by_patients(rows, "test").splitlines() == [
        "| test | 5 patients | 10 patients |",
        "| --- | --- | --- |",
        "| a | 5.0 | 4.0 |",
    ]
