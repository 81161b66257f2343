"""Every benchmark runs at a tiny size and gives its rows; no time is judged here."""

import csv
import math

import pytest
from PIL import Image

from benchmarks import run, surfaces, table
from benchmarks.table import ABSENT, Row
from utils import UserError


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(rows, folder) of the whole suite."""
    folder = tmp_path_factory.mktemp("bench")
    return run.main(["--quick", "--out", str(folder)]), folder


def of(rows, subject):
    return [row for row in rows if row.subject == subject]


def test_every_subject_has_its_rows(bench):
    rows, _ = bench
    pairs = {(row.what.split(" ", 1)[1], row.against) for row in of(rows, "surfaces")}
    assert pairs == {(name, package) for name in surfaces.PAIRS for package in surfaces.MODULES}
    assert {row.what.split()[0] for row in of(rows, "losses")} == {"CrossEntropy", "EntKLProp"}
    assert {row.what.split()[1] for row in of(rows, "distance maps")} == {"K=2", "K=4"}
    assert {row.against for row in of(rows, "slicing")} == {"nibabel loop", "scikit-image loop"}
    assert {row.what.split(" ", 1)[1] for row in of(rows, "items")} == {
        *(f"{suffix}, --cache {where}" for suffix in ("png", "nii") for where in ("ram", "stream")),
        "50 slices",
    }
    assert [(row.what, row.against) for row in of(rows, "memory")] == [("peak, 40 slices streamed", "4 slices")]
    assert {(row.what, row.against) for row in of(rows, "training")} == {
        (f"Dimwit, {method}{what}", against)
        for method in ("supervised", "sfda")
        for what, against in (
            ("", "bare step"),
            ("", "naive loop"),
            (": outside the step", "-"),
            (": peak memory", "bare step"),
        )
    }


def test_the_numbers_are_finite_and_positive(bench):
    for row in bench[0]:
        for value in (row.ours, row.reference, row.ratio):
            assert value is None or (math.isfinite(value) and value > 0)
        assert (row.reference is None) == (row.ratio is None)


def test_the_same_numbers_come_out_as_of_the_references(bench):
    gaps = [float(row.note.split()[2]) for row in bench[0] if row.note.startswith("differs by")]
    assert len(gaps) == 2 * len(surfaces.PAIRS) + 8
    assert max(gaps) < 1e-4


def test_table_and_picture_are_written(bench):
    rows, folder = bench
    (text,), (table_path,), (picture,) = (list(folder.glob(f"*{suffix}")) for suffix in (".txt", ".csv", ".png"))
    written = text.read_text(encoding="utf-8")
    assert written.startswith(table.describe_machine())
    with table_path.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["what"], row["against"]) for row in read] == [(row.what, row.against) for row in rows]
    assert [float(row["ours"]) for row in read] == [row.ours for row in rows]
    for row in rows:
        assert row.what in written
    with Image.open(picture) as image:
        assert image.width > 500


def test_a_package_that_is_not_installed_has_a_row_that_says_so():
    (row,) = table.compare("surfaces", "close", lambda: None, {"nowhere": None}, 1)
    assert (row.reference, row.ratio, row.note) == (None, None, ABSENT)
    assert ABSENT in table.as_text([row])[-1]
    assert not surfaces.is_installed("nowhere_to_be_found")


def test_an_unknown_subject_is_an_error():
    with pytest.raises(UserError, match="--only names surface, .*'surfaces'"):
        run.main(["--only", "surface"])


def test_a_ratio_is_the_median_over_the_rounds():
    assert table.better([1.0, 2.0, 1.0], [3.0, 8.0, 10.0]) == 4
    assert table.times(0.9876) == "0.988x"
    assert table.times(1234.5) == "1,234x"


def test_no_round_begins_when_patience_is_over():
    calls = []
    table.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3
    table.in_turns({"c": lambda: calls.append("c")}, 3, patience=-1.0)
    assert calls.count("c") == 1


def test_a_bar_of_one_row_can_be_drawn():
    figure = table.draw([Row("items", "one", "another", 1.0, 2.0, "ms", 2.0)], "a machine")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["items", "one, against another"]
