"""What the fuzzers share: mutants, made one by one from a seed and a number, and shown to a reader in a child process.

A mutant may be read as what it is, or refused by UserError or VolumeFault. All else is wrong: another error, a reader
that knows better (`look` tells), code that the mutant brought (FOREIGN), more than LIMIT bytes of memory, more than
SECONDS, the end of the process.

Each fuzz_<kind>.py here has KINDS and `campaign(count, seed)`, and prints what it found; torture.py runs all:

    python -m tests.tools.fuzz_slices --mutations 10000 --seed 1
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from files.faults import VolumeFault
from files.formats import dicom_decoder
from processes.errors import UserError

LIMIT = 2**30  # bytes that a reader may take beside what the process has
SECONDS = 20  # of the processor; on a machine that others share, ten times as many by the clock
EXTREMES = [0, 1, 2**7, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
WORDS = ["", "nan", "inf", "-1", "0", "1e400", "1e-400", "9" * 30, "null", "[]", "{}", "x", "é", "\0", '"', "0,5"]
WORDS += ["2.5", "true", "-0.0", "[1, 0]", "#", ";", "\t", "\n", "1_0", "٣"]
VALUES = [None, True, 0, -1, 1, 2.5, 1e400, 2**70, "", "x", "é", "1", [], [1], [None], [[0, 1]], {}, {"a": 1}]
WAYS = ("traceback", "silent wrong", "foreign code", "memory or time")  # of being wrong
FOREIGN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class")
OURS = ("git", "uname")  # programs that a run asks about itself
DECODER = dicom_decoder.__file__  # likewise a program of ours
OUT_OF_MEMORY = ("MemoryError", "o allocate", "bad_alloc")  # words of numpy, ITK and the system


@dataclass
class Tally:
    """Of one kind of file: how many mutants were read, and refused with which words; and what was wrong with others.

    ways: how many were wrong in each of WAYS
    """

    kind: str
    read: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    ways: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)

    def __str__(self):
        lines = [f"{self.kind}: {self.read} read, {self.refused} refused, {len(self.wrong)} wrong"]
        lines += [f"    {count:5} {what}" for what, count in self.faults.most_common(8)]
        return "\n".join([*lines, *self.wrong[:20]])


def mutated(content, rng, length=None):
    """One to four changes of these bytes, or of the first `length` of them."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, max(min(length or len(data), len(data)), 1)))
        match rng.integers(0, 8):
            case 0 | 1:
                data[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 2:
                data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << int(rng.integers(0, 8))])
            case 3:
                data[at : at + 1] = b""
            case 4:
                data[at:at] = bytes([int(rng.choice(list(b"0123456789- .")))])
            case 5:
                data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
            case 6:
                size, order = int(rng.choice([2, 4, 8])), str(rng.choice(["little", "big"]))
                data[at : at + size] = (int(rng.choice(EXTREMES)) % 2 ** (8 * size)).to_bytes(size, order)
            case _ if rng.random() < 0.2:
                data = data[:at]
    return bytes(data)


def mutated_text(text, rng):
    """One to three changes of words or lines of a text, now and then in another encoding."""
    for _ in range(rng.integers(1, 4)):
        lines = text.split("\n")
        at = int(rng.integers(0, len(lines)))
        match rng.integers(0, 6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[int(rng.integers(0, len(lines)))])
            case 2:
                lines[at] = _other_words(lines[at], rng)
            case 3:
                lines[at] = lines[at][: int(rng.integers(0, len(lines[at]) + 1))]
            case 4:
                lines = "\n".join(lines).replace(*rng.choice([",;", ",\t", "\"'", ":=", ".,", "[(", "}]"]))
                lines = lines.split("\n")
            case _:
                place = int(rng.integers(0, len(lines[at]) + 1))
                lines[at] = lines[at][:place] + str(rng.choice(WORDS)) + lines[at][place:]
        text = "\n".join(lines)
    encoding = str(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, errors="replace")


def mutated_json(value, rng):
    """A value of JSON, with one to three of the values in it made others or taken out."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.integers(1, 4)):
        places = list(_places(value))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return json.dumps(value, indent=1).encode()


def _places(value):
    """Every place in a value of JSON: what holds it, and under which key."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _other_words(line, rng):
    """One of the line's cells made another."""
    mark = str(rng.choice([",", ":", " ", '"']))
    cells = line.split(mark)
    cells[int(rng.integers(0, len(cells)))] = str(rng.choice(WORDS))
    return mark.join(cells)


def run(kind, count, seed, mutate, look):
    """The Tally of `count` mutants: mutate(rng) writes one, look() reads it and says what is wrong with what it read.

    In a child process; where that ends, it goes on with another behind the mutant that ended it.
    """
    tally, number, context = Tally(kind), 0, multiprocessing.get_context("fork")
    while number < count:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_in_child, args=(theirs, range(number, count), seed, mutate, look))
        child.start()
        theirs.close()
        try:
            while number < count:
                _enter(tally, number, *ours.recv())
                number += 1
        except EOFError:
            child.join()
            too_long = child.exitcode in (-signal.SIGALRM, -signal.SIGPROF)
            why = f"longer than {SECONDS} s" if too_long else f"exit code {child.exitcode}"
            _enter(tally, number, "memory or time", f"the process ended: {why}")
            number += 1
        child.join()
    return tally


def _enter(tally, number, outcome, words):
    if outcome == "read":
        tally.read += 1
    elif outcome == "refused":
        tally.refused += 1
        tally.faults[words] += 1
    else:
        tally.ways[outcome] += 1
        tally.wrong.append(f"{tally.kind} {number}: {words}")


def _in_child(pipe, numbers, seed, mutate, look):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say beside what they raise
    ran = _watch_for_foreign_code()
    for number in numbers:
        mutate(np.random.default_rng([seed, number]))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
        ran.clear()
        outcome = _outcome(look)
        pipe.send(("foreign code", "; ".join(ran)) if ran else outcome)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    pipe.close()


def _watch_for_foreign_code():
    """What python tells of code and programs that are started from now on, as it comes in, ours left out."""
    ran = []

    def note(event, args):
        is_ours = event == "subprocess.Popen" and (Path(str(args[0])).name in OURS or DECODER in args[1])
        if event in FOREIGN and not is_ours:
            ran.append(f"{event} {args}")

    sys.addaudithook(note)
    return ran


def _outcome(look):
    try:
        complaint = look()
    except (UserError, VolumeFault) as error:
        words = " ".join(map(str, error.args))
        if any(each in words for each in OUT_OF_MEMORY):
            return "memory or time", f"more than {LIMIT >> 20} MiB: {words}"
        return "refused", _shortened(error)
    except MemoryError as error:
        return "memory or time", f"more than {LIMIT >> 20} MiB: {error}"
    except Exception as error:  # noqa: BLE001  whatever else it is, it is a fault of ours
        return "traceback", f"{type(error).__name__}: {error}"
    return ("silent wrong", complaint) if complaint else ("read", "")


def _shortened(error):
    """The words of a refusal without the name of the file and what stood in it: what kind it is."""
    if isinstance(error, VolumeFault):
        return error.fault[0]
    words = [
        word for word in str(error).split() if "/" not in word and not any(c.isdigit() or c in "'\"" for c in word)
    ]
    return " ".join(words)[:80]


def main(doc, campaign):
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10000, help="in all, the kinds in equal parts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tallies = campaign(args.mutations, args.seed)
    print(*tallies, sep="\n")
    sys.exit(any(tally.wrong for tally in tallies))


def each_kind(kinds, count, seed):
    """The tallies of a campaign: kinds is name -> (folder -> mutate, look)."""
    tallies = []
    for kind, make in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            tallies.append(run(kind, max(count // len(kinds), 1), seed, *make(Path(folder))))
    return tallies
