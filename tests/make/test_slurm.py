"""The worked example of make/slurm/ on a real Slurm of one node, set up for these tests and taken down after them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import write_site

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are started as root"),
]

# One node of one CPU, two partitions: a job in `high` pre-empts one in `low`, which has 30 seconds to end.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost CPUs=1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""

TOY = r"""
SET     := toy
VOLUMES :=
DATA    := data/toy
include make/begin.mk
TRN     = cesource
FOLDERS = [('IMG', png_transform, False), ('GT', gt_transform, False)]
COMMON  = --target_dataset data/toy --target_folders "$(FOLDERS)" --grp_regex '(Case\d+)_(\d+)' --n_class 2 --cpu \
          --network UNet:nG=4 --batch_size 4 --n_epoch 100 --target_losses "[('CrossEntropy', {}, 1)]"
$(RD)/cesource: private OPT = --model_weights=""
include make/rules.mk
"""


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


class Cluster:
    """A running Slurm, and a folder in which the toy experiment can be made."""

    def __init__(self, folder, checkout):
        self.checkout = checkout
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = outside | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words):
        done = subprocess.run(words, cwd=self.checkout, env=self.environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    def job(self, number):
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def output(self, number):
        path = self.checkout / f"slurm-{number}.out"
        return path.read_text() if path.exists() else ""

    def is_over(self, number):
        return self.job(number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED")

    def begin(self, run, *words):
        """The number of a job that makes `run`, and has the first epoch behind it."""
        script = ("make/slurm/run.sbatch", "toy.make", f"CC={sys.executable}", "THREADS=1")
        number = self.run("sbatch", "--parsable", "--partition=low", "--cpus-per-task=1", *script, *words, run).strip()
        begun = self.checkout / f"{run}_tmp" / "last.pkl"
        wait_until(lambda: begun.exists() or self.is_over(number), 120, lambda: self.output(number))
        assert begun.exists(), self.output(number)
        return number

    def finish(self, number):
        """State and restarts of the job once it is over, and what it said."""
        wait_until(lambda: self.is_over(number), 120, lambda: self.output(number))
        found = self.job(number)
        return (found["JobState"], int(found["Restarts"])), self.output(number)


def start(stack, folder, environment, *words):
    """A daemon, stopped when the stack is closed."""
    log = stack.enter_context((folder / f"{words[0]}.out").open("w"))
    daemon = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    stack.callback(stop, daemon)


def stop(daemon):
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder, checkout = tmp_path_factory.mktemp("slurm"), tmp_path_factory.mktemp("checkout")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, controller=free_port(), node=free_port()))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    packages = ("processes", "files", "datasets", "nets", "methods", "engine", "analysis", "preprocess", "selection")
    copied = ("*.py", "make/*.*", "make/slurm/*", "study/**/*.*", *(f"{package}/**/*.py" for package in packages))
    for pattern in copied:
        for path in ROOT.glob(pattern):
            (checkout / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, checkout / path.relative_to(ROOT))
    write_site(checkout / "data" / "toy", inside=200, outside=60, seed=1)
    (checkout / "sizes").mkdir()
    (checkout / "sizes" / "toy.csv").touch()
    (checkout / "toy.make").write_text(TOY)
    made = Cluster(folder, checkout)
    with ExitStack() as stack:
        files = (f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed"))
        start(stack, folder, made.environment, "munged", "-F", "--force", f"--socket={folder}/munge.socket", *files)
        start(stack, folder, made.environment, "slurmctld", "-D")
        start(stack, folder, made.environment, "slurmd", "-D", "-N", "localhost")
        try:
            wait_until(lambda: "idle" in made.run("sinfo", "--noheader", "--format=%T"), 30, lambda: "")
        except AssertionError:
            last = [path.read_text()[-300:] for path in sorted(folder.glob("*.out"))]
            pytest.skip(f"Slurm's daemons do not start here: {last}")
        stack.callback(empty, made)
        yield made


def empty(cluster):
    """Ends every job and waits for it, as a job outlives the daemons."""
    for number in cluster.run("squeue", "--noheader", "--format=%i").split():
        cluster.run("scancel", number)
    wait_until(lambda: not cluster.run("squeue", "--noheader"), 30, lambda: cluster.run("squeue"))


@pytest.fixture(scope="module")
def undisturbed(cluster):
    """The run, made on the node of a cluster by a make that runs elsewhere."""
    words = (f"CC={sys.executable}", "RD=results/whole", "THREADS=1", "results/whole/cesource")
    said = cluster.run("make", "-f", "toy.make", "LAUNCH=srun --partition=low", *words)
    assert (cluster.checkout / "results/whole/cesource/last.pkl").exists(), said
    return cluster.checkout / "results/whole/cesource"


def log_of(run):
    return pd.read_csv(run / "IMG_target_metrics.csv").drop(columns="seconds")


def network(run):
    return torch.load(run / "last.pkl", weights_only=True)["net"]


def test_launch_runs_the_training_as_a_job(cluster, undisturbed):
    assert len(log_of(undisturbed)) == 100
    assert cluster.run("squeue", "--noheader", "--states=all", "--format=%T").split() == ["COMPLETED"]


def test_a_pre_empted_job_goes_on_and_ends_as_if_undisturbed(cluster, undisturbed):
    job = cluster.begin("results/toy/cesource")
    assert "done" in cluster.run("srun", "--partition=high", "echo", "done")
    state, said = cluster.finish(job)
    assert state == ("COMPLETED", 1), said
    assert re.search(r"Stopped in epoch \d+, after step .*Going on after epoch \d+\.", said, re.S), said
    assert [path.name for path in (cluster.checkout / "results" / "toy").iterdir()] == ["cesource"]
    run = cluster.checkout / "results" / "toy" / "cesource"
    pd.testing.assert_frame_equal(log_of(run), log_of(undisturbed), check_exact=True)
    first, second = network(run), network(undisturbed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_cancelled_job_stays_cancelled_and_a_failed_one_failed(cluster):
    job = cluster.begin("results/other/cesource", "RD=results/other")
    cluster.run("scancel", job)
    state, said = cluster.finish(job)
    assert state == ("CANCELLED", 0), said
    job = cluster.run(
        "sbatch", "--parsable", "--cpus-per-task=1", "make/slurm/run.sbatch", "toy.make", "no_run"
    ).strip()
    state, said = cluster.finish(job)
    assert state == ("FAILED", 0), said
    assert "No rule to make target" in said


def test_a_study_goes_through_as_jobs_that_wait_for_one_another(cluster):
    words = ("toy.make", f"CC={sys.executable}", "THREADS=1", "EPC=2", "SEEDS=0 1")
    said = cluster.run("make/slurm/study.sbatch", "--partition=low", "--cpus-per-task=1", *words)
    page = said.split()[-1]
    assert page.isdecimal(), said
    state, told = cluster.finish(page)
    logs = "".join(path.read_text() for path in sorted(cluster.checkout.glob("slurm-*_*.out")))
    assert state == ("COMPLETED", 0), told + logs
    table = (cluster.checkout / "results/toy/study/headline.txt").read_text()
    assert "2 seeds" in table
    assert "missing" not in table
