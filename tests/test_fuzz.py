"""Some mutants of each kind of input: read as what they are, or refused in a sentence. More of them: make torture."""

import os

import numpy as np
import pytest

from tests.tools import (
    chaos_programs,
    fuzz_archives,
    fuzz_runs,
    fuzz_slices,
    fuzz_tables,
    fuzz_volumes,
    fuzzing,
    torture,
)

FUZZERS = [(fuzz_slices, 400), (fuzz_volumes, 270), (fuzz_tables, 200), (fuzz_archives, 180), (fuzz_runs, 15)]


@pytest.mark.parametrize(("fuzzer", "count"), FUZZERS)
def test_no_mutant_ends_in_a_traceback_or_in_another_value(fuzzer, count):
    tallies = fuzzer.campaign(count, 1)
    assert [fault for tally in tallies for fault in tally.wrong] == []
    assert sum(tally.read + tally.refused for tally in tallies) == count
    assert min(sum(tally.read for tally in tallies), sum(tally.refused for tally in tallies)) > count // 10


WRONG = {
    "traceback": lambda: 1 / 0,
    "silent wrong": lambda: "another value",
    "foreign code": lambda: str(os.system("true") and ""),
    "memory or time": lambda: str(np.ones(2**29).sum() and ""),  # 4 GiB
}


@pytest.mark.parametrize("way", WRONG)
def test_what_is_wrong_is_told_by_its_way(way):
    tally = fuzzing.run("x", 2, 0, lambda rng: None, WRONG[way])
    assert dict(tally.ways) == {way: 2}
    assert len(tally.wrong) == 2
    assert torture.as_table([tally]).splitlines()[2].split() == ["|", "x", "|", "2", "|", "0", "|", "0", "|"] + [
        word for each in fuzzing.WAYS for word in ("2" if each == way else "0", "|")
    ]


def test_the_kinds_that_torture_runs_are_those_asked_for():
    assert torture.kinds_of("archives", "tar.") == ["tar.gz", "tar.bz2", "tar.xz"]
    assert torture.kinds_of("slices", "archives") == []
    assert torture.programs_of("KILLS: plot") == ["plot", "plot colour"]
    assert {kind for fuzzer in torture.FUZZERS for kind in torture.kinds_of(fuzzer, "")} > {".npy", "DICOM", "hostile"}


def test_programs_that_are_killed_end_with_the_same_bytes_when_typed_again():
    """More of them, and make too: make torture."""
    found = chaos_programs.campaign(3, 1, ("slicer", "unpack", "size_priors"))
    assert [said for each in found for said in each.wrong] == []
    assert sum(each.killed() for each in found) > 0
    assert all(each.ends for each in found)


def test_what_a_kill_left_or_changed_is_seen(tmp_path):
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name[0])
    (tmp_path / "ended/.b.part-0").touch()
    assert chaos_programs.differences(tmp_path / "whole", tmp_path / "ended") == [
        ".b.part-0 is left over",
        "a.txt differs",
    ]
