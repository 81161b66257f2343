"""What a mean hides: the worst patients, and those whom a run harms."""

import math

import numpy as np

from analysis.statistics.failures import Worst, harmed_patients, seed_means, worst_patients

NAN = math.nan
TABLE = [[0.9, 0.7], [0.2, NAN], [NAN, NAN], [0.5, 0.1], [0.3, 0.3]]


def test_means_over_the_seeds_that_have_a_score():
    np.testing.assert_allclose(seed_means(TABLE), [0.8, 0.2, NAN, 0.3, 0.3])


def test_worst_patients_come_first_and_have_their_worst_seed():
    assert worst_patients(TABLE) == [Worst(1, 0.2, 0.2), Worst(3, 0.3, 0.1), Worst(4, 0.3, 0.3)]
    assert [each.place for each in worst_patients(TABLE, 9)] == [1, 3, 4, 0]
    assert worst_patients([[NAN]]) == []


def test_harm_is_what_a_table_shows():
    start = [[0.9, 0.7], [0.4, NAN], [0.5, 0.5], [0.3005, 0.3005], [0.9, 0.3]]
    assert harmed_patients(TABLE, start).tolist() == [4, 1]
    assert harmed_patients(start, start).tolist() == []
