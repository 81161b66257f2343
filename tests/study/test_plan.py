"""What make would train, and how long that takes by what is there."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
from fake_runs import make_run, make_set

from processes.errors import UserError
from processes.ownership import MADE
from study.asking import Asked
from study.plan import (
    Lasted,
    Training,
    ask_make,
    describe,
    describe_progress,
    estimate,
    read_history,
    read_trainings,
    time_words,
    write_plan,
)

COMMANDS = r"""
Finished with other arguments than these, and kept: results/x/noadap (seed 0); main.py is not run.
python -m processes.lock once sizes/x.csv -- python -m preprocess.size_priors make --out sizes/x.csv
OMP_NUM_THREADS=1 python -m processes.lock renew r/seed0/cesource --  srun python -O main.py --network UNet \
   --target_losses "[('A', {'b': 1}, 1)]" --seed 0 --n_epoch 20 --network=ENet --debug && { X progress --folder r; }
python -m processes.lock renew r/seed0/evaluated/sfda/calibration.csv -- python -m study.evaluate --run r/seed0/sfda
python -m processes.lock renew r/seed0/noadap -- python main.py --method noadap --n_epoch 150
"""


def test_trainings_are_read_off_the_commands():
    source, noadap = read_trainings(COMMANDS)
    assert (str(source.folder), source.row, source.length) == ("r/seed0/cesource", "cesource", 20)
    assert source.flags["--network"] == "ENet"
    assert source.flags["--target_losses"] == "[('A', {'b': 1}, 1)]"
    assert (source.flags["--debug"], source.flags["--seed"]) == ("", "0")
    assert "--folder" not in source.flags
    assert (noadap.row, noadap.length) == ("noadap", 1)  # it learns nothing, whatever the line says


def training(row, n_epoch=10, **flags):
    return Training(Path("r/seed0") / row, {"--n_epoch": str(n_epoch)} | {f"--{k}": v for k, v in flags.items()})


def test_a_training_takes_as_long_an_epoch_as_its_like():
    history = [
        Lasted(training("sfda", 10, method="sfda"), 100),
        Lasted(training("sfda", 5, method="sfda"), 100),
        Lasted(training("entropy", 10, method="sfda"), 10),
        Lasted(training("fs", 10, network="ENet"), 7),
    ]
    assert estimate(training("sfda", 4, method="sfda"), history) == pytest.approx(4 * 15)  # of its own row: 10 and 20
    assert estimate(training("klprop", 3, method="sfda"), history) == pytest.approx(3 * (10 + 20 + 1) / 3)
    assert math.isnan(estimate(training("fs", 10, network="UNet"), history))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ([3600, 5400], "about 2.5 hours of training, one run after the other"),
        ([60, 30], "about 2 min of training, one run after the other"),
        ([60, math.nan, math.nan], "about 1 min of training, and 2 runs of a kind that was not trained here yet, one"),
        ([math.nan], "how long that takes is known when the first is done"),
    ],
)
def test_hours_are_told_and_what_is_not_known(seconds, words):
    assert time_words(seconds).startswith(words)


@pytest.fixture
def folder(tmp_path):
    """A study, in which one run of three epochs of 1.5 s is done, and the same run outside of it."""
    data = make_set(tmp_path / "toy", n_patient=1, n_slice=1, size=(16, 16))
    command = ["python", "main.py", "--method", "sfda", "--n_epoch", "3"]
    run = make_run(tmp_path / "results/study/seed0/sfda", data, n_epoch=3, pictures=False, command=command)
    (run / "last.pkl").touch()
    shutil.copytree(run, tmp_path / "results/sfda")
    broken = shutil.copytree(run, tmp_path / "results/broken")
    (broken / "provenance.json").write_text("{")
    return tmp_path / "results/study"


def test_history_is_the_finished_runs_of_the_study_and_beside_it(folder):
    assert [(lasted.training.row, lasted.seconds) for lasted in read_history(folder)] == [("sfda", 4.5)] * 2
    (folder / "seed0/sfda/cost.json").write_text(json.dumps({"seconds": 60}))
    assert [lasted.seconds for lasted in read_history(folder)] == [60, 4.5]
    (folder / "seed0/sfda/last.pkl").unlink()
    assert [lasted.seconds for lasted in read_history(folder)] == [4.5]


def test_the_plan_says_how_many_runs_and_how_long(folder):
    asked = Asked("toy", ("sfda", "fs"), (0, 1))
    planned = [
        Training(folder / "seed1" / row, {"--method": "sfda", "--n_epoch": "300"}) for row in ("cesource", "sfda")
    ]
    assert describe(folder, asked, planned) == (
        f"{folder}: 2 rows (sfda fs) x 2 seeds (0 1). To be trained: 2 runs, 1 of them to start from; about 15 min of "
        "training, one run after the other."
    )
    assert describe(folder, asked, []).endswith("Every run is there.")


def test_progress_counts_what_was_made_since_the_plan(folder):
    """A run that is made again counts once it is made again."""
    flags = {"--method": "sfda", "--n_epoch": "3"}
    planned = [Training(folder / "seed0/sfda", flags), Training(folder / "seed1/sfda", flags)]
    note = folder / "seed0/sfda" / MADE
    note.touch()
    os.utime(note, (1e9, 1e9))
    write_plan(folder, planned)
    assert describe_progress(folder).startswith("Study: 0 of 2 runs done; left: about 1 min of training")
    note.touch()
    assert describe_progress(folder).startswith("Study: 1 of 2 runs done; left: about 1 min of training")
    (folder / "seed1/sfda").mkdir(parents=True)
    (folder / "seed1/sfda" / MADE).touch()
    assert describe_progress(folder) == "Study: 2 of 2 runs done."


def test_a_make_that_refuses_is_quoted(tmp_path):
    script = tmp_path / "make.py"
    script.write_text("import sys\nsys.exit('prostate.make:7: *** no such line.  Stop.')\n")
    with pytest.raises(UserError, match=r"Nothing was started, as make refuses: prostate\.make:7: \*\*\* no such line"):
        ask_make(f"'{sys.executable}' '{script}'", [0])


def test_make_is_asked_for_every_seed(tmp_path):
    script = tmp_path / "make.py"
    script.write_text("import sys\nprint('x renew', sys.argv[1][3:] + '/sfda -- python main.py', *sys.argv[2:])\n")
    found = ask_make(f"'{sys.executable}' '{script}' RD={tmp_path}/seed{{seed}} --seed {{seed}}", [0, 7])
    assert [each.folder for each in found] == [tmp_path / "seed0/sfda", tmp_path / "seed7/sfda"]
    assert [each.flags for each in found] == [{"--seed": "0 -n"}, {"--seed": "7 -n"}]
