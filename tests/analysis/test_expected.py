"""The Dice that was expected, held against the real one: numbers by hand, and the picture of them."""

import csv

import numpy as np
import pytest
from fake_runs import add_selection, make_run, make_set

from analysis.expected import area, rank_correlation, revealed, selective_risk
from analysis.run import open_run
from files.run_names import EXPECTED
from processes.errors import UserError
from processes.quoting import csv_text
from tests.analysis.test_plot import assert_drawn, draw
from tests.analysis.test_report import rescore, simple


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("expected") / "data/toy", n_patient=2, n_slice=2, size=(16, 16))


@pytest.fixture
def run(data, tmp_path):
    """Two classes, whose Dice is 0.4 and 0.6 in the two patients."""
    folder = make_run(tmp_path / "sfda", data, n_epoch=3, n_class=3, pictures=False)
    rescore(folder, simple(0.4, 0.6))
    return folder


def expect(folder, *rows, network="last"):
    """Writes the table; a row: patient, class, expected, low, high."""
    head = ["patient", "class", "expected", "low", "high", "network"]
    (folder / EXPECTED).write_text(csv_text([head, *[[*row, network] for row in rows]]))
    return folder


def real_of(folder, which="last"):
    with (folder / f"patients_{which}.csv").open() as file:
        return {(row["patient"], row["class"]): float(row["dice"]) for row in csv.DictReader(file)}


# -- arithmetic ---------------------------------------------------------------------------------------------------


def test_risk_and_coverage_by_hand():
    trust, risk = np.array([0.2, 0.9, 0.5]), np.array([0.6, 0.1, 0.2])
    assert selective_risk(trust, risk) == pytest.approx([0.1, 0.15, 0.3])
    assert area(selective_risk(trust, risk)) == pytest.approx((0.1 + 0.15 + 0.3) / 3)


def test_of_equally_trusted_patients_any_may_come_first():
    trust = np.array([0.5, 0.9, 0.5, 0.5])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        risk = np.array([0.3, 0.1, 0.6, 0.0])[order]
        assert selective_risk(trust[order], risk) == pytest.approx([0.1, 0.2, 0.7 / 3, 0.25])


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 40, 30])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1.0, 2, 2]), np.array([3.0, 1, 2])) == pytest.approx(-(0.75**0.5))
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3)))


# -- a run --------------------------------------------------------------------------------------------------------


def test_it_is_held_against_the_scores_of_its_network(run):
    real = real_of(run)
    rows = [(patient, k, f"{dice + 0.1:.4f}", f"{dice:.4f}", 1) for (patient, k), dice in real.items()]
    found = revealed(open_run(expect(run, *rows)))
    assert found.real == pytest.approx([*real.values()])
    assert found.expected == pytest.approx(found.real + 0.1, abs=1e-4)
    assert f"off by 0.100 (mean +0.100), {len(rows)} of {len(rows)} within" in found.words()
    chosen = add_selection(run, "epoch 2")
    rescore(chosen, simple(0.1, 0.2), files=["chosen"])
    found = revealed(open_run(expect(chosen, *rows, network="chosen")))
    assert found.real == pytest.approx([*real_of(chosen, "chosen").values()])


def test_what_lacks_either_is_left_out(run):
    rows = [("P0", 1, 0.5, 0, 1), ("P0", 2, "", 0, 1), ("Nobody", 1, 0.5, 0, 1), ("P1", 1, 0.7, 0.69, 0.71)]
    found = revealed(open_run(expect(run, *rows)))
    assert found.patients == ["P0", "P1"]
    assert found.expected.tolist() == [0.5, 0.7]


def test_a_run_of_which_nothing_is_expected(run):
    assert revealed(open_run(run)) is None
    assert revealed(open_run(expect(run))).words() == "no patient has an expected and a real Dice"


@pytest.mark.parametrize("row", [("P0", 1, 1.5, 0, 1), ("P0", "one", 0.5, 0, 1), ("P0", 1, "high", 0, 1)])
def test_a_broken_table_is_named(run, row):
    with pytest.raises(UserError, match=EXPECTED):
        revealed(open_run(expect(run, row)))
    with pytest.raises(UserError, match=EXPECTED):
        revealed(open_run(expect(run, ("P0", 1, 0.5, 0, 1), network="best")))


# -- the picture --------------------------------------------------------------------------------------------------


def test_the_picture_and_its_line(run, tmp_path, capsys):
    expect(run, ("P0", 1, 0.5, 0.2, 0.9), ("P1", 1, 0.7, 0.6, 0.8))
    assert_drawn(draw("risk", tmp_path / "risk.png", "--run", run))
    assert "area under risk and coverage" in capsys.readouterr().out


def test_a_picture_of_nothing_says_so(run, tmp_path, capsys):
    """As of a network of before: make goes on."""
    draw("risk", tmp_path / "risk.png", "--run", run)
    assert f"there is no {EXPECTED}" in capsys.readouterr().out
    draw("risk", tmp_path / "other.png", "--run", expect(run))
    assert "no patient has" in capsys.readouterr().out
