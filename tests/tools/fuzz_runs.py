"""Mutates what a run left, tables, arrays and masks: a report or picture of it is made, or refused and not begun.

python -m tests.tools.fuzz_runs --mutations 1000
"""

import contextlib
import io
import json
import shutil
import warnings
from functools import partial

import plot
import report
import score_masks
from processes.errors import UserError
from tests.fake_runs import make_run, make_set
from tests.tools.fuzzing import each_kind, main, mutated, mutated_json, mutated_text

TEXTS = (".csv", ".txt", ".json")
PICTURES = (
    ("curves", "--runs", "--out", "out/x.png"),
    ("curves", "--array", "val_dice.npy", "--runs", "--out", "out/x.png"),
    ("losses", "--run", "--out", "out/x.png"),
    ("boxes", "--runs", "--out", "out/x.png"),
    ("histogram", "--array", "val_dice.npy", "--runs", "--out", "out/x.png"),
    ("sizes", "--run", "--out", "out/x.png"),
    ("panel", "--slices", "1", "--runs", "--out", "out/x.png"),
    ("colour", "--run", "--out", "out/x"),
)
REPORT = (("--runs", "--out", "out/x"), ("--iou", "--runs", "--out", "out/x"))
SCORES = (("--score", "dice", "--run", "--out", "out/x.npy"), ("--score", "hd95", "--run", "--out", "out/x.npy"))


def look_at(program, words, run, out):
    """What is wrong with what the program makes of the run; '' if nothing is."""
    at = next(place for place, word in enumerate(words) if word in ("--run", "--runs")) + 1
    argv = [*words[:at], str(run), *(word.replace("out/", f"{out}/") for word in words[at:])]
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program.main(argv)
        except UserError:
            left = [path.name for path in out.rglob("*") if not path.is_dir() and not path.name.startswith(".of-")]
            if left and words[0] != "colour":  # which writes mask by mask
                return f"{argv}: refused, and left {left}"
            raise
    made = [path for path in out.rglob("*") if not path.is_dir()]
    return "" if made and any(path.stat().st_size for path in made) else f"{argv}: nothing was made"


def _of_program(program, asked, folder):
    run = make_run(folder / "run", make_set(folder / "set", n_patient=2, n_slice=3), n_epoch=2)
    contents = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    held = {}

    def mutate(rng):
        for path, content in contents.items():
            if path.exists() and path.read_bytes() == content:
                continue
            path.write_bytes(content)
        kind = str(rng.choice([".csv", ".txt", ".json", ".npy", ".png"]))
        which = str(rng.choice([str(path) for path in contents if path.suffix == kind]))
        path = run / which.removeprefix(f"{run}/")
        path.write_bytes(_mutant(path.suffix, contents[path], rng))
        held["words"] = asked[int(rng.integers(len(asked)))]

    return mutate, lambda: look_at(program, held["words"], run, folder / "out")


def _mutant(suffix, content, rng):
    if suffix == ".json" and rng.random() < 0.8:
        return mutated_json(json.loads(content), rng)
    if suffix in TEXTS:
        return mutated_text(content.decode(), rng)
    return mutated(content, rng, 140 if suffix == ".npy" and rng.random() < 0.5 else None)


KINDS = {
    "report": partial(_of_program, report, REPORT),
    "plot": partial(_of_program, plot, PICTURES),
    "score_masks": partial(_of_program, score_masks, SCORES),
}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
