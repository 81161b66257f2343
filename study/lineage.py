"""The lineage of a cell of a study's tables: files, slices, split, prior, line, code, network, scores, seed by seed.

All of it is read off what the runs noted of themselves. What is still there is hashed again: a link that changed since
is told, and so is one that is gone.
"""

import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.run import Run, open_run
from analysis.statistics.intervals import Interval
from analysis.tables.choice import chosen_name
from analysis.tables.facts import supervision
from datasets.set_tables import read_card
from files.run_names import PATIENTS
from processes.errors import UserError
from processes.quoting import visible
from study.reading import NETWORKS, Study, called, open_study
from utils import ProgramParser, counted, listing, read_literal, sha256_of

WIDTH = 9  # letters that the name of a link takes
SHORT = 16  # letters of a hash that are shown
HEADLINE = "headline.csv"  # the table that has the cell
SAME, CHANGED, GONE = "the same now", "CHANGED since", "not there any more"
NEAR = 1e-6  # between a figure and the same one in a table


def main(argv: Sequence[str] | None = None) -> None:
    parser = ProgramParser("lineage.py", description="Where a figure of a study comes from, link by link.")
    parser.add_argument("folder", type=Path, metavar="STUDY", help="such as results/prostate/study")
    parser.add_argument("--cell", required=True, metavar="ROW,SCORE[,NETWORK]", help=f"network: {', '.join(NETWORKS)}")
    args = parser.parse_args(argv)
    row, score, which = read_cell(args.cell)
    for line in lineage(open_study(args.folder), row, score, which):
        print(line)


def read_cell(text: str) -> tuple[str, str, str]:
    """Row, score and network of a cell; the chosen network where none is named."""
    words = [word.strip() for word in text.split(",")]
    if len(words) not in (2, 3) or not all(words):
        raise UserError(
            f"--cell is a row and a score, as sfda,dice, or with a network, as sfda,dice,last; got '{text}'."
        )
    row, score, which = (*words, "chosen")[:3]
    return row, score, which


def lineage(study: Study, row: str, score: str, which: str) -> Iterator[str]:
    """The lines of it. Raises UserError for a row, a score or a network that the study has not."""
    table, runs = study.scores(row, score, which), study.of_row(row)
    if not runs:
        raise UserError(f"{study.folder} has no finished run of {row}: {listing(study.faults, 4)}.")
    interval = study.interval(row, score, which)
    yield f"{row}, {score} of the network '{which}': {interval.mean:.6g}, {over(interval)}"
    yield in_table(study.folder / HEADLINE, row, score, which, interval.mean)
    told: set[Path] = set()
    for seed, run in runs.items():
        yield f"\n{called(row, seed)}: {run.folder}"
        yield from links(run)
        yield link("network", network(run, which))
        yield link("cell", *cell(run, which, table[seed]))
        yield from origins(run, told)
    for fault in study.faults:
        yield f"\nNot in it: {fault}"


def over(interval: Interval) -> str:
    """Over whom the mean is, and between which ends it would be over others."""
    words = f"the mean over {counted(interval.patients, 'patient')} and {counted(interval.seeds, 'seed')}"
    if interval.left_out:
        words += f" ({interval.left_out} left out, who have no value in some seed)"
    return words + (f"; 95 % interval {interval.low:.6g} to {interval.high:.6g}" if interval.is_known else "")


def in_table(path: Path, row: str, score: str, which: str, mean: float) -> str:
    """What the study's own table says in this cell."""
    if not path.is_file():
        return f"{path} is not there: the figure is of the runs as they are."
    lines = pd.read_csv(path, dtype=str, keep_default_na=False)
    named = {"row": row, "network": which, "score": score, "class": "mean"}
    if (
        not {*named, "mean"} <= set(lines)
        or not (found := lines[(lines[[*named]] == [*named.values()]).all(axis=1)]).size
    ):
        return f"{path} has no such cell."
    cell = found["mean"].iloc[0]
    same = np.isclose(float(cell or "nan"), mean, rtol=NEAR, atol=NEAR, equal_nan=True)
    return f"{path} says the same." if same else f"{path} says {cell}: the runs are others since; make the study again."


def link(name: str, *lines: str) -> str:
    """One link of the chain: its name, and what there is to say of it."""
    return f"  {name:{WIDTH}s}" + f"\n{'':{2 + WIDTH}s}".join(map(visible, lines))


def links(run: Run) -> Iterator[str]:
    """From the files of the images to the code that trained."""
    card = run.provenance["dataset"]
    yield link("input", *inputs(card))
    yield link("slices", *slices(run))
    yield link("split", *split(run, card))
    yield link("prior", *prior(run))
    yield link("line", *flags(run.provenance.get("command") or ()))
    yield link("code", *code(run))


def inputs(card: Mapping[str, Any]) -> Iterator[str]:
    """The files that the slices were cut from."""
    sources = [each for each in card.get("sources") or () if isinstance(each, Mapping) and each.get("sha256")]
    noted = {str(each["path"]): str(each["sha256"]) for each in sources}
    if not noted:
        yield "the set's dataset.json tells no files that it was made of"
        return
    made_up = f", made up (phantom {card['phantom']})" if card.get("phantom") else ""
    folders = sorted({str(Path(path).parent) for path in noted})
    yield f"{counted(len(noted), 'file')} in {listing(folders, 3)}{made_up}: {short(hash_of(noted))} together"
    now = {path: hash_now(Path(path)) for path in noted}
    gone = [path for path in noted if now[path] is None]
    other = [path for path in noted if now[path] not in (None, noted[path])]
    told = [f"{listing(names, 3)}: {what}" for what, names in ((CHANGED, other), (GONE, gone)) if names]
    yield "; ".join(told) if told else SAME


def slices(run: Run) -> Iterator[str]:
    """The slices as the run hashed them, and what turned them."""
    noted = run.provenance.get("inputs") or {}
    sets = [f"{name} {short(noted[name])}" for name in noted if " " not in name and not name.endswith("_weights")]
    codes = {name.removeprefix("code of "): noted[name] for name in noted if name.startswith("code of ")}
    yield f"{run.provenance['dataset']['path']}: {', '.join(sets) or 'not noted'}"
    yield set_now(run.provenance["dataset"])
    yield f"turned by {', '.join(f'{name} {short(codes[name])}' for name in codes) or 'code that was not noted'}"


def set_now(card: Mapping[str, Any]) -> str:
    """Whether the set tells the same of itself as the run noted."""
    root = Path(card["path"])
    if not root.is_dir():
        return GONE
    now = {"path": str(root), "phantom": None} | json.loads(json.dumps(read_card(root)))
    return f"its dataset.json: {SAME if now == card else CHANGED}"


def split(run: Run, card: Mapping[str, Any]) -> Iterator[str]:
    """Who was trained on, who was scored, and who decided that."""
    scored = sorted({entry["patient"] for entry in run.patients("last")})
    trained = run.provenance.get("training_volumes") or []
    yield f"trained on {counted(len(trained), 'patient')}: {listing(trained)}" if trained else "trained on nobody"
    yield f"scored on {counted(len(scored), 'patient')}: {listing(scored)}"
    if both := sorted({*scored} & {*trained}):
        yield f"trained on AND scored: {listing(both)}"
    rule = card.get("split_rule")
    if isinstance(rule, Mapping):
        yield f"by the set: {', '.join(f'{name} {value}' for name, value in rule.items() if value is not None)}"


def prior(run: Run) -> Iterator[str]:
    """What the losses were told of the organ."""
    tables = run.param("target_losses", "[]", size_tables)
    bounds = {name: value for name, value in (run.provenance.get("inputs") or {}).items() if name.startswith("bounds")}
    yield f"supervision: {supervision(run)}"
    for path, column in tables:
        now = hash_now(Path(path))
        yield f"{path}, column {column}: {f'{short(now)} now' if now else GONE}"
    for name, value in bounds.items():
        yield f"{name}, as the run laid them: {short(value)}"


def size_tables(text: str) -> list[tuple[str, str]]:
    """File and column of each table of sizes in a list of losses."""
    found = [
        part for loss in read_literal(text) or [] for part in loss if isinstance(part, dict) and "sizefile" in part
    ]
    return list(dict.fromkeys((str(part["sizefile"]), str(part.get("predcol"))) for part in found))


def flags(command: Sequence[str]) -> Iterator[str]:
    """The program and its flags, a line each; of two equal ones the later counts, so that alone is told."""
    words = [str(word) for word in command[1:]]
    places = [place for place, word in enumerate(words) if word.startswith("--")] + [len(words)]
    given = {words[first].partition("=")[0]: words[first:end] for first, end in itertools.pairwise(places)}
    yield " ".join(words[: places[0]]) or "not noted"
    for parts in given.values():
        yield " ".join(map(quoted, parts))


def quoted(word: str) -> str:
    """A word of a command for a shell, the single quotes of a loss as they are."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def code(run: Run) -> Iterator[str]:
    """What trained: commit, changes that were in no commit, and all modules of the program by content."""
    told = run.provenance
    diff = told.get("diff")
    changes = f", and {counted(len(diff.splitlines()), 'line')} of changes to it in provenance.json" if diff else ""
    yield f"commit {told.get('commit') or 'not known'}{changes}"
    versions = told.get("versions") or {}
    yield ", ".join([f"modules {short(told.get('code') or '')}", *(f"{name} {versions[name]}" for name in versions)])
    for each in told.get("earlier") or ():
        modules = short(each.get("code") or "")
        yield f"until epoch {each.get('until_epoch')} with commit {each.get('commit')}, modules {modules}"


def network(run: Run, which: str) -> str:
    """The checkpoint that was scored."""
    name = f"{run.standing_for(which)}.pkl"
    what = f", {chosen_name(run)}" if which == "chosen" else ""
    now = hash_now(run.folder / name)
    return f"{name}{what}: {short(now) if now else GONE}"


def cell(run: Run, which: str, scores: pd.Series) -> Iterator[str]:
    """The scores of the seed's patients, and their mean."""
    name = PATIENTS[run.standing_for(which)]
    yield f"{name}: {short(hash_now(run.folder / name) or '')}"
    shown = [f"{patient} {value:.6g}" if np.isfinite(value) else f"{patient} none" for patient, value in scores.items()]
    yield f"{listing(shown)}; mean {scores.mean():.6g}"


def origins(run: Run, told: set[Path]) -> Iterator[str]:
    """The network that a run starts from, and its own lineage, which is told once."""
    if not run.start:
        return
    noted, path = (run.provenance.get("inputs") or {}).get("model_weights"), start_of(run)
    now = hash_now(path)
    state = GONE if now is None else SAME if now == noted else CHANGED
    yield link("start", f"{run.start}: {short(noted or now or '')}", state if noted else "not noted then")
    if path in told or not (path.parent / "provenance.json").is_file():
        return
    told.add(path)
    first = open_run(path.parent)
    yield f"\n{path}, which {run.name} starts from:"
    yield from links(first)
    yield from origins(first, told)


def start_of(run: Run) -> Path:
    """Where the weights lie that a run starts from; beside it where the study was moved since."""
    path = Path(run.start)
    beside = run.folder.parent / path.parent.name / path.name
    return beside if beside.is_file() and not path.is_file() else path


@cache
def hash_now(path: Path) -> str | None:
    """SHA-256 of a file, read once for all seeds; None where it is not there."""
    return sha256_of(path) if path.is_file() else None


def hash_of(noted: Mapping[str, str]) -> str:
    """One hash of the names and hashes of files."""
    return hashlib.sha256("".join(f"{noted[path]}  {path}\n" for path in sorted(noted)).encode()).hexdigest()


def short(digest: str) -> str:
    return digest[:SHORT] or "not noted"
