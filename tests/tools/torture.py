"""All that is done to the programs to make them fail, in one command: damaged and hostile input, and kills.

    make torture                                            1,000 inputs of each kind, 10 kills of each program
    python -m tests.tools.torture --count 200 --only archives     of fuzzers or kinds with this in their names
    python -m tests.tools.torture --only kills --kills 50

Input is made from the seed and its number, and read in a process of its own that may take 1 GiB and 20 s (fuzzing.py).
A program is killed at random moments and typed again (chaos_programs.py; of a training: make chaos). Two tables are
printed at the end, and the exit code is 1 if anything in them is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from tests.tools import (
    chaos_programs,
    fuzz_archives,
    fuzz_checkpoints,
    fuzz_options,
    fuzz_runs,
    fuzz_slices,
    fuzz_tables,
    fuzz_volumes,
)
from tests.tools.chaos_programs import in_columns
from tests.tools.fuzzing import WAYS, Tally, each_kind

FUZZERS: dict[str, ModuleType] = {
    "slices": fuzz_slices,
    "volumes": fuzz_volumes,
    "tables": fuzz_tables,
    "runs": fuzz_runs,
    "checkpoints": fuzz_checkpoints,
    "options": fuzz_options,
    "archives": fuzz_archives,
}
HEAD = ("input", "tried", "read as stated", "refused in one paragraph", *WAYS)


def kinds_of(fuzzer: str, only: str) -> list[str]:
    """Those of its kinds of input that are wanted; `only`: words in their names, or ''."""
    return [kind for kind in FUZZERS[fuzzer].KINDS if only.lower() in f"{fuzzer}: {kind}".lower()]


def fuzz(count: int, seed: int, only: str = "") -> list[Tally]:
    """`count` inputs of each wanted kind. The tallies bear the name of the fuzzer too."""
    tallies = []
    for fuzzer, module in FUZZERS.items():
        for kind in kinds_of(fuzzer, only):
            (tally,) = each_kind({kind: module.KINDS[kind]}, count, seed)
            tally.kind = f"{fuzzer}: {kind}"
            print(tally, end="\n\n", flush=True)
            tallies.append(tally)
    return tallies


def as_table(tallies: Sequence[Tally]) -> str:
    lines = [HEAD]
    for tally in tallies:
        tried = tally.read + tally.refused + len(tally.wrong)
        counts = (tried, tally.read, tally.refused, *(tally.ways[way] for way in WAYS))
        lines.append((tally.kind, *(f"{count:,}" for count in counts)))
    return in_columns(lines)


def programs_of(only: str) -> list[str]:
    return [kind for kind in chaos_programs.PROGRAMS if only.lower() in f"kills: {kind}".lower()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "tests.tools.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind (default %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="of each program (default %(default)s)")
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="kinds whose names hold them; 'kills' for the kills"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    tallies = fuzz(args.count, args.seed, args.only)
    kills = chaos_programs.campaign(args.kills, args.seed, programs_of(args.only)) if args.kills else []
    if not tallies and not kills:
        parser.error(f"no kind has '{args.only}' in its name: {', '.join(FUZZERS)}, kills")
    for each in kills:
        print(*(f"{each.kind}: {said}" for said in each.wrong), sep="\n", end="\n" * bool(each.wrong))
    print(f"\nseed {args.seed}\n")
    print(*[as_table(tallies)] * bool(tallies), *[chaos_programs.as_table(kills)] * bool(kills), sep="\n\n")
    sys.exit(any(each.wrong for each in (*tallies, *kills)))


if __name__ == "__main__":
    main()
