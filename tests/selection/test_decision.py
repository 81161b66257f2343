"""One candidate out of several: the most consistent that has not collapsed, and the source network where none is."""

import sys

import numpy as np
import pytest

from files.run_names import DECIDING, WITNESSES
from selection import decision
from selection.candidates import REFRESH, SOURCE, Candidate
from selection.decision import decide
from selection.validators import VALIDATORS, Evidence

PATIENTS, CLASSES = 6, 3
NAMES = (SOURCE, REFRESH)  # of the networks that one starts from


def candidates(count):
    names = [*NAMES, *(f"epoch {5 * number}" for number in range(1, count - len(NAMES) + 1))]
    return [Candidate(name, max(0, 5 * (place - len(NAMES) + 1)), dict) for place, name in enumerate(names)]


def evidence(sizes, prior=None):
    """sizes: (C, K) pixels of each class in every patient."""
    sizes = np.repeat(np.array(sizes, float)[:, None], PATIENTS, 1)
    expected = np.ones((PATIENTS, CLASSES), bool)
    told = np.full((PATIENTS, CLASSES), np.nan) if prior is None else np.tile(prior, (PATIENTS, 1))
    return Evidence({"size": sizes}, [[]] * len(sizes), [], expected, told, np.ones(len(sizes), bool), 0, 1)


def choose(monkeypatch, scores, sizes=None, prior=None, **more):
    """scores: validator -> (C,) or (C, P) values, the same for every class; all other validators know nothing."""
    count = len(next(iter(scores.values())))
    nothing = np.full((count, PATIENTS, CLASSES), np.nan)

    def value(name):
        if name not in scores:
            return nothing
        values = np.array(scores[name], float).reshape(count, -1, 1)
        return np.broadcast_to(values, nothing.shape)

    known = {name: (lambda seen, name=name: value(name)) for name in VALIDATORS}
    monkeypatch.setattr(decision, "VALIDATORS", known)
    sizes = [[900, 50, 50]] * count if sizes is None else sizes
    return decide(evidence(sizes, prior), candidates(count), **more)


def test_the_most_consistent_candidate_is_chosen(monkeypatch):
    choice = choose(monkeypatch, {"cmr_ei": [0.5, 0.6, 0.8, 0.7]})
    assert choice.place == 2
    assert "epoch 5" in choice.reason
    assert "0.800" in choice.reason
    assert "0.600" in choice.reason  # of the better of source network and refresh
    assert choice.alone == {"cmr_ei": 2}


def test_continuity_from_slice_to_slice_counts_as_much(monkeypatch):
    assert choose(monkeypatch, {"cmr_ei": [0.5, 0.4, 0.6, 0.5], "continuity": [0.1, 0.1, 0.2, 0.4]}).place == 3


def test_of_equal_ones_the_earliest_is_chosen(monkeypatch):
    assert choose(monkeypatch, {"cmr_ei": [0.5, 0.5, 0.7, 0.7, 0.7]}).place == 2
    assert choose(monkeypatch, {"cmr_ei": [0.5, 0.5, 0.5, 0.5]}).place == 0


def test_the_better_start_is_kept_where_no_epoch_is_more_consistent(monkeypatch):
    choice = choose(monkeypatch, {"cmr_ei": [0.5, 0.7, 0.6, 0.6]})
    assert choice.place == 1
    assert "no epoch" in choice.reason


def test_an_improvement_of_few_patients_is_no_improvement(monkeypatch):
    start, better = np.full(PATIENTS, 0.6), np.array([0.61, 0.61, 0.61, 0.61, 0.1, 0.1])
    assert np.median(better) > np.median(start)
    choice = choose(monkeypatch, {"cmr_ei": [start, start - 0.1, better]})
    assert choice.place == 0
    assert "not surely better" in choice.reason


def test_borders_at_no_stronger_edges_speak_against_a_candidate(monkeypatch):
    """It is sure of what the image does not show."""
    choice = choose(monkeypatch, {"cmr_ei": [0.5, 0.4, 0.9, 0.7], "edge": [2, 2, 2, 2.1]})
    assert choice.place == 3
    assert "no stronger edges" in choice.gate[2]
    assert "no stronger edges" in choice.reason
    assert choice.gate[3] == ""


def test_edges_of_few_patients_speak_for_nothing(monkeypatch):
    usual, other = np.full(PATIENTS, 2.0), np.array([1.9, 1.9, 1.9, 2.1, 2.1, 2.1])
    assert choose(monkeypatch, {"cmr_ei": [0.5, 0.4, 0.9], "edge": [usual, usual, other]}).place == 0


def test_a_refresh_that_leaves_the_edges_is_no_start(monkeypatch):
    scores = {"cmr_ei": [0.5, 0.7, 0.6], "edge": [2, 1.5, 2.1]}
    choice = choose(monkeypatch, scores)
    assert choice.place == 2  # compared with the source network, than which it is better
    assert choice.gate == ["", "", ""]
    assert choose(monkeypatch, scores | {"edge": [2, 2, 2.1]}).place == 1


BELIEVED = {"cmr_ei": [0.5, 0.6, 0.9, 0.7], "source": [1, 0.7, 0.5, 0.8], "refresh": [0.7, 1, 0.5, 0.9]}
FOR_IT = {"continuity": [0.5, 0.5, 0.6, 0.7], "edge": [1, 1, 1, 1.1], "contrast": [1, 1, 1.1, 1.2]}
FOR_IT |= {"mixval": [0.5, 0.5, 0.5, 0.6]}


def test_where_source_and_refresh_agree_the_source_network_is_kept(monkeypatch):
    """However sure the others are."""
    choice = choose(monkeypatch, BELIEVED)
    assert choice.place == 0
    assert "agree (Dice 0.70)" in choice.reason
    assert "epoch 5 is not surely above it by continuity, edge, contrast, mixval" in choice.reason


def test_a_source_network_that_is_believed_is_outvoted_by_all_witnesses(monkeypatch):
    choice = choose(monkeypatch, BELIEVED | FOR_IT)
    assert choice.place == 3  # the most consistent is at no stronger edges
    assert "the image speaks for it too" in choice.reason
    assert choice.gate == [""] * 4
    for missing in FOR_IT:
        assert choose(monkeypatch, BELIEVED | FOR_IT | {missing: [1] * 4}).place == 0
    assert choose(monkeypatch, BELIEVED | FOR_IT | {"cmr_ei": [0.8, 0.6, 0.9, 0.7]}).place == 0


def test_single_pictures_have_no_continuity_and_outvote_nothing(monkeypatch):
    choice = choose(monkeypatch, BELIEVED | FOR_IT | {"continuity": [np.nan] * 4})
    assert choice.place == 0
    assert "above it by continuity" in choice.reason


def test_a_refresh_can_outvote_the_source_network_too(monkeypatch):
    witnesses = {name: [0.5, 0.6, 0.5, 0.5] for name in FOR_IT}
    assert choose(monkeypatch, BELIEVED | witnesses).place == 1


def test_two_patients_do_not_outvote_a_source_network_that_is_believed(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PATIENTS", 3)
    assert choose(monkeypatch, BELIEVED | FOR_IT).place == 3
    monkeypatch.setattr(sys.modules[__name__], "PATIENTS", 2)
    choice = choose(monkeypatch, BELIEVED | FOR_IT)
    assert choice.place == 0
    assert "so few patients (at least 3)" in choice.reason


def test_what_the_gate_holds_back_outvotes_nobody(monkeypatch):
    usual = [900, 50, 50]
    choice = choose(monkeypatch, BELIEVED | FOR_IT, [usual, usual, usual, [1000, 0, 0]])
    assert choice.place == 0
    assert "missing" in choice.gate[3]


def test_edges_hold_no_source_network_back_where_adaptations_begin(monkeypatch):
    """None of them has learnt to be sure. From CT to MR the borders of the better one lie at weaker edges."""
    scores = {"cmr_ei": [0.5, 0.4, 0.9, 0.7], "edge": [2, 2, 1, 1]}
    assert choose(monkeypatch, scores).place == 0
    choice = choose(monkeypatch, scores, is_start=True)
    assert choice.place == 2
    assert not any(choice.gate)
    kept = choose(monkeypatch, scores | {"cmr_ei": [0.9, 0.4, 0.5, 0.7]}, is_start=True)
    assert kept.place == 0
    assert "no other network that may be chosen is more consistent" in kept.reason


def test_a_refresh_stands_for_the_source_network_whatever_its_edges_where_adaptations_begin(monkeypatch):
    scores = {"cmr_ei": [0.5, 0.7, 0.6], "edge": [2, 1.5, 2.1]}
    assert choose(monkeypatch, scores, is_start=True).place == 1


def test_of_single_pictures_a_start_is_outvoted_by_all_who_know(monkeypatch):
    scores = BELIEVED | FOR_IT | {"continuity": [np.nan] * 4}
    assert choose(monkeypatch, scores, is_start=True).place == 3
    assert choose(monkeypatch, scores | {"contrast": [1, 1, 1, 0.9]}, is_start=True).place == 0
    monkeypatch.setattr(sys.modules[__name__], "PATIENTS", 2)
    assert choose(monkeypatch, scores, is_start=True).place == 0


def test_without_a_refresh_the_grey_levels_on_both_sides_are_a_witness(monkeypatch):
    scores = {"cmr_ei": [0.5, 0.9, 0.7], "contrast": [1, 0.5, 1]}
    assert choose(monkeypatch, scores).place == 1  # the refresh
    monkeypatch.setattr(sys.modules[__name__], "NAMES", (SOURCE,))
    choice = choose(monkeypatch, scores)
    assert choice.place == 2
    assert "grey levels" in choice.gate[1]


def test_where_they_do_not_agree_the_source_network_is_lost(monkeypatch):
    scores = {"cmr_ei": [0.5, 0.4, 0.9, 0.7], "source": [1, 0.6, 0.5, 0.8], "refresh": [0.6, 1, 0.5, 0.9]}
    choice = choose(monkeypatch, scores)
    assert choice.place == 2
    assert not any(choice.gate)


def test_without_an_edge_anywhere_consistency_decides(monkeypatch):
    assert choose(monkeypatch, {"cmr_ei": [0.5, 0.4, 0.9], "edge": np.full(3, np.nan)}).place == 2


@pytest.mark.parametrize(
    ("sizes", "words"), [([1000, 0, 0], "missing"), ([30, 940, 30], "class 1"), ([999, 0.5, 0.5], "class 1")]
)
def test_what_has_collapsed_is_held_back(monkeypatch, sizes, words):
    """One class everywhere is the same under every disturbance."""
    usual = [900, 50, 50]
    choice = choose(monkeypatch, {"cmr_ei": [0.5, 0.5, 0.6, 1.0]}, [usual, usual, usual, sizes])
    assert choice.place == 2
    assert words in choice.gate[3]
    assert choice.gate[:3] == ["", "", ""]
    assert words in choice.reason


def test_a_prior_speaks_for_sizes_that_the_source_network_does_not_have(monkeypatch):
    sizes = [[998, 1, 1], [998, 1, 1], [900, 50, 50]]
    scores = {"cmr_ei": [0.5, 0.5, 0.9]}
    assert choose(monkeypatch, scores, sizes).place == 0
    assert choose(monkeypatch, scores, sizes, prior=[0.9, 0.05, 0.05]).place == 2


def test_where_all_have_collapsed_a_start_is_kept(monkeypatch):
    gone = [1000, 0, 0]
    choice = choose(monkeypatch, {"cmr_ei": [0, 0, 0]}, [[900, 50, 50], gone, gone])
    assert choice.place == 0


def test_nothing_known_keeps_the_source_network(monkeypatch):
    choice = choose(monkeypatch, {"cmr_ei": np.full(3, np.nan)})
    assert choice.place == 0
    assert choice.alone == {}


def test_the_deciding_validators_are_there():
    assert {*DECIDING, *WITNESSES} <= {*VALIDATORS}
