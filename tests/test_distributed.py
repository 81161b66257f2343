"""Several processes train as one would: the same losses, the same scores, one writer, and one end for all."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CROSS_ENTROPY, FOLDERS

from distributed import Team

ROOT = Path(__file__).parents[1]
PARTIAL = "[('CrossEntropy', {'idc': [1]}, 0.5), ('DiceLoss', {}, 1)]"  # neither divides by the images alone


def adapting(prior):
    bounds = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    return f"[('EntKLProp', {{}}, 'PredictionBounds', {bounds}, 'norm_soft_size', 1)]"


def command(processes, dataset, workdir, losses, *more):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [
        *(sys.executable, *(torchrun if processes > 1 else []), "main.py", "--target_dataset", str(dataset)),
        *("--target_losses", losses, "--target_folders", FOLDERS, "--grp_regex", r"(Case\d+)_(\d+)"),
        *("--n_class", "2", "--network", "UNet:nG=4", "--batch_size", "5", "--n_epoch", "5", "--l_rate", "1e-3"),
        *("--workdir", str(workdir), "--cpu", *map(str, more)),
    ]


def train(*args):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*args), cwd=ROOT, env=environment, capture_output=True, text=True)


def table(run, name="IMG_target_metrics.csv"):
    return pd.read_csv(run / name)


@pytest.fixture(scope="module")
def source(sites, tmp_path_factory):
    run = tmp_path_factory.mktemp("source") / "cesource"
    done = train(1, sites[0], run, CROSS_ENTROPY, "--l_rate", "1e-2")
    assert done.returncode == 0, done.stderr
    return run / "last.pkl"


@pytest.mark.parametrize("count", [1, 2, 5, 24])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_a_batch(count, world):
    parts = [list(range(count))[Team(rank, world).share(count)] for rank in range(world)]
    assert list(itertools.chain(*parts)) == list(range(count))
    assert max(map(len, parts)) == -(-count // world)


@pytest.mark.parametrize("method", ["sfda", "supervised", "adversarial", "mixup", "pseudo_label"])
def test_two_processes_are_one(sites, source, tmp_path, method):
    """20 steps, the last of each epoch with a single image: then one process has it, and the other has none."""
    losses = adapting(sites[2]) if method == "sfda" else PARTIAL
    more = ("--method", method, "--model_weights", source, "--augment", "--saveim", "--do_hd")
    more += ("--augmentation", "{'flip': True, 'rotate': 0}" if method == "sfda" else "{'flip': True, 'rotate': 45}")
    if method == "adversarial":
        more += ("--source_dataset", sites[0], "--lambda_adv", "1e-2", "1e-3", "--d_stride", "1", "--d_width", "4")
    if method == "pseudo_label":
        more += ("--unlabelled_dataset", sites[0], "--unlabelled_split", "train", "--batch_u", "3")
        more += ("--warmup_start", "0", "--threshold", "learnt")
    for name, number in (("alone", 1), ("team", 2)):
        done = train(number, sites[1], tmp_path / name, losses, *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch   5/5") == 1
    alone, team = tmp_path / "alone", tmp_path / "team"
    first, second = (np.load(run / "tra_loss.npy") for run in (alone, team))
    assert first.shape[:2] == (5, 4)
    np.testing.assert_allclose(second[:2], first[:2], rtol=1e-6, atol=1e-5)
    # later, rounding may lift a pixel over the threshold of the pseudo labels: one of the 480 that an image has
    np.testing.assert_allclose(second, first, rtol=1e-6, atol=3e-3 if method == "pseudo_label" else 1e-5)
    pd.testing.assert_frame_equal(
        table(alone).drop(columns="seconds"), table(team).drop(columns="seconds"), rtol=1e-2, atol=1e-2
    )
    scores = [table(run, "patients_last.csv") for run in (alone, team)]
    assert scores[0].patient.tolist() == scores[1].patient.tolist()
    assert np.allclose(scores[0].dice, scores[1].dice, atol=1e-2)


def test_a_team_goes_on_where_one_process_stopped(sites, tmp_path):
    """The number of processes is no part of a run's identity."""
    run, prefix = tmp_path / "run", (sites[1], tmp_path / "run", CROSS_ENTROPY, "--resume")
    stopped = subprocess.Popen(command(1, *prefix), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (run / "last.pkl").exists(), stopped)
    stopped.send_signal(signal.SIGTERM)
    stopped.wait()
    done = train(2, *prefix)
    assert done.returncode == 0, done.stderr
    assert "Going on" in done.stdout or "Every epoch is done" in done.stdout
    assert table(run).epoch.tolist() == list(range(5))


def test_one_that_dies_takes_the_others_along_and_the_run_goes_on(sites, tmp_path):
    args = (2, sites[1], tmp_path / "run", CROSS_ENTROPY, "--resume", "--n_epoch", "15")
    team = subprocess.Popen(command(*args), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "run" / "last.pkl").exists(), team)
    members = workers(team.pid)
    assert len(members) == 2
    os.kill(members[1], signal.SIGKILL)
    assert team.wait(timeout=60) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)
    done = train(*args)
    assert done.returncode == 0, done.stderr
    assert "Going on after epoch" in done.stdout
    assert table(tmp_path / "run").epoch.tolist() == list(range(15))


def test_bad_input_is_said_once(sites, tmp_path):
    done = train(2, tmp_path / "nowhere", tmp_path / "run", CROSS_ENTROPY)
    assert done.returncode != 0
    assert done.stderr.count("nowhere/train does not exist") + done.stderr.count("nowhere/val does not exist") == 1
    assert not (tmp_path / "run").exists()


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "ended too early"
        time.sleep(0.01)


def workers(pid):
    """Processes that torchrun (`pid`) started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()]
