"""Some hundred mutants of each kind of file: read as what they are, or refused in a sentence."""

import pytest

from tests import fuzz_slices, fuzz_tables, fuzz_volumes


@pytest.mark.parametrize(("fuzzer", "count"), [(fuzz_slices, 400), (fuzz_volumes, 270), (fuzz_tables, 200)])
def test_no_mutant_ends_in_a_traceback_or_in_another_value(fuzzer, count):
    tallies = fuzzer.campaign(count, 1)
    assert [fault for tally in tallies for fault in tally.wrong] == []
    assert sum(tally.read + tally.refused for tally in tallies) == count
    assert min(sum(tally.read for tally in tallies), sum(tally.refused for tally in tallies)) > count // 10
