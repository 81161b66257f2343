"""Several processes train as one would: the same losses, the same scores, one writer, and one end for all."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS
from torch import nn

import main as program
from engine.candidates import Candidates
from engine.run_folder import RunFolder
from files.run_names import CANDIDATES, candidate_name, candidates_of
from methods.supervised import Supervised
from nets.bundle import QUANTITIES, read_bundle
from nets.checkpoint_files import load_checkpoint
from processes import team as distributed
from processes.team import Team, WholeBatchNorm
from tests.tools.chaos import ASKED, ask_to_stop, before_call

pytestmark = pytest.mark.usefixtures("quick_spawns")

ROOT = Path(__file__).parents[2]
PARTIAL = "[('CrossEntropy', {'idc': [1]}, 0.5), ('DiceLoss', {}, 1)]"  # neither divides by the images alone


DEEP = ("--network", "UNet:nG=4", "--l_rate", "1e-4")  # many batch norms, and steps that let rounding grow little


def adapting(prior):
    bounds = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    return f"[('EntKLProp', {{}}, 'PredictionBounds', {bounds}, 'norm_soft_size', 1)]"


def arguments(dataset, workdir, losses, *more):
    return [
        *("--target_dataset", str(dataset), "--target_losses", losses, "--target_folders", FOLDERS),
        *("--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "2", "--network", "Dimwit", "--batch_size", "5"),
        *("--n_epoch", "5", "--l_rate", "1e-3", "--workdir", str(workdir), "--cpu", *map(str, more)),
    ]


def launch(starter, python, *args, **more):
    """Two processes of `python`, as a makefile starts them; whoever starts them is one of `starter`."""
    flags = ("--standalone", "--no_python", "--nproc_per_node=2")
    torchrun = (starter, "-m", "torch.distributed.run", *flags, python, "main.py")
    return subprocess.Popen([*torchrun, *arguments(*args)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **more)


def train_alone(*args):
    program.main(arguments(*args))


def be_member(rank, port, argv, said):
    """What torchrun sets up, then the program."""
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with said.open("a", buffering=1, encoding="utf-8") as file, redirect_stdout(file):
        program.main(argv)


def train_in_team(dataset, workdir, *args):
    """The same of two processes: forks of this one, which has imported torch already. Returns what they print."""
    store, said = torch.distributed.TCPStore("localhost", 0, is_master=True), workdir.parent / "said.txt"
    fork, argv = multiprocessing.get_context("fork"), arguments(dataset, workdir, *args)
    team = [fork.Process(target=be_member, args=(rank, store.port, argv, said)) for rank in range(2)]
    for member in team:
        member.start()
    for member in team:
        member.join()
    assert [member.exitcode for member in team] == [0, 0]
    return said.read_text(encoding="utf-8")


def table(run, name="IMG_target_metrics.csv"):
    return pd.read_csv(run / name)


@pytest.fixture(scope="module")
def source(sites, tmp_path_factory):
    run = tmp_path_factory.mktemp("source") / "cesource"
    train_alone(sites[0], run, CROSS_ENTROPY, "--l_rate", "1e-1")
    return run / "last.pkl"


@pytest.mark.parametrize("count", [1, 2, 5, 24])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_a_batch(count, world):
    parts = [list(range(count))[Team(rank, world).share(count)] for rank in range(world)]
    assert list(itertools.chain(*parts)) == list(range(count))
    assert max(map(len, parts)) == -(-count // world)


def test_idle_processes_are_counted():
    assert [Team(0, 4).idle(count) for count in (1, 2, 4, 5, 6, 8, 24)] == [3, 2, 0, 1, 1, 0, 0]
    assert Team().idle(1) == 0


@pytest.fixture
def alone(monkeypatch):
    """The sums over the processes are those of this one; what was summed up is kept."""
    sums = []
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda part, *_: sums.append(part))
    return sums


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_batch_normalisation_of_one_process_is_torch_s(alone, momentum):
    torch.manual_seed(0)
    ours = Team(0, 2).synchronise(nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))).double()[0]
    theirs = nn.BatchNorm2d(3, momentum=momentum).double()
    assert isinstance(ours, WholeBatchNorm)
    for each in (ours, theirs):
        nn.init.constant_(each.weight, 1.7)
        nn.init.constant_(each.bias, -0.3)
    for _ in range(3):
        image, weights = (torch.randn(4, 3, 5, 6, dtype=torch.float64) for _ in range(2))
        results = []
        for each in (ours, theirs):
            given = image.clone().requires_grad_()
            made = each(given)
            each.zero_grad()
            (made * weights).sum().backward()
            results.append((made, given.grad, each.weight.grad, each.bias.grad, each.running_mean, each.running_var))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
    image = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ours(x), image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_process_without_an_image_sends_what_the_others_send(alone, dtype):
    """The same sums, of one type, in one order: other processes wait for them."""
    norm, sent = Team(0, 2).synchronise(nn.Sequential(nn.BatchNorm2d(3)))[0], []
    for images in (2, 0):
        alone.clear()
        given = torch.randn(images, 3, 5, 6, dtype=dtype, requires_grad=True)
        norm(given).sum().backward()
        sent.append([(part.dtype, part.shape) for part in alone])
    assert sent[0] == sent[1]
    assert {kind for kind, _ in sent[0]} == {torch.float32}


def test_gradients_outside_the_wrapped_network_are_made_equal(monkeypatch):
    net = nn.Linear(2, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda part, *_: part.add_(torch.tensor([3.0, 2.0, 1.0])))
    Team(0, 2).average(net.parameters())
    assert (net.weight.grad.tolist(), net.bias.grad.tolist()) == ([[2.0, 2.0]], [2.0])
    Team().average(net.parameters())
    assert net.bias.grad.tolist() == [2.0]


@pytest.mark.parametrize(
    ("device", "here", "local", "expected"),
    [
        ("cpu", 0, "2", ("cpu", "gloo")),
        ("cuda", 2, "2", ("cuda:1", "nccl")),
        ("cuda", 1, "2", ("cuda:0", "gloo")),  # NCCL refuses two processes on one GPU
        ("cuda:0", 2, "2", ("cuda:0", "gloo")),
        ("cuda:0", 1, "1", ("cuda:0", "nccl")),  # two machines, one process on each
    ],
)
def test_processes_that_share_a_gpu_speak_over_gloo(monkeypatch, device, here, local, expected):
    rank = "0" if local == "1" else "1"
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    said = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, timeout: said.append(backend))
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    team, own = distributed.join_team(device)
    assert (own, said[-1], team.rank) == (*expected, 1)
    assert said[:-1] == ([own] if device != "cpu" else [])


class NewWrapper:
    def __init__(self, net, forward_sync_buffers=True, broadcast_buffers=None):
        self.buffers = forward_sync_buffers


class OldWrapper:
    def __init__(self, net, broadcast_buffers=True):
        self.buffers = broadcast_buffers


@pytest.mark.parametrize("word", ["forward_sync_buffers", "broadcast_buffers"])
def test_older_and_newer_torch_leave_the_buffers_alone(monkeypatch, word):
    wrapper = {"forward_sync_buffers": NewWrapper, "broadcast_buffers": OldWrapper}[word]
    monkeypatch.setattr(distributed, "DistributedDataParallel", wrapper)
    assert Team(0, 2).wrap(nn.Linear(1, 1)).buffers is False


LOOKS = "{'preset': 'slaug', 'flip': True, 'label_gin': 0.2, 'ipa': 0.2, 'fourier': 0.5, 'blur': 0.3, 'blank': 0.3}"


ALIKE = [
    "sfda",
    "supervised",
    "adversarial",
    "mixup",
    "mix_style",
    "saliency",
    "ipa",
    "pseudo_label",
    "mean_teacher",
    "upl",
    "denoised",
    "cpr",
    "online",
    "cotta",
    "rotta",
    "prototype_alignment",
    "consistency",
]
COUNTED = ("pseudo_label", "adversarial", "mean_teacher", "upl", "denoised", "cpr", "online")
SIZED = ("sfda", "prototype_alignment", "consistency")


@pytest.mark.parametrize("method", ALIKE)
def test_two_processes_are_one(sites, source, tmp_path, method, capsys):
    """12 steps, the last of each epoch with a single image: then one process has it, and the other has none."""
    losses = adapting(sites[2]) if method in SIZED else PARTIAL
    losses = "[('SelfEntropy', {}, 1)]" if method == "online" else losses
    losses = CROSS_ENTROPY if method in ("mean_teacher", "cotta", "rotta") else losses
    more = ("--method", method, "--augment", "--saveim", "--do_hd", "--n_epoch", 3)
    more += DEEP if method == "supervised" else ("--model_weights", source)
    turned = LOOKS if method == "supervised" else f"{{'flip': True, 'rotate': {0 if method in SIZED else 45}}}"
    more += ("--augmentation", turned)
    if method == "online":
        more += ("--reset_fall", "0.02")
    if method == "rotta":
        more += ("--memory", "6")
    if method == "sfda":
        more += ("--match_source", "auto")
    if method == "adversarial":
        more += ("--source_dataset", sites[0], "--lambda_adv", "1e-2", "1e-3", "--d_stride", "1", "--d_width", "4")
    if method == "pseudo_label":
        more += ("--unlabelled_dataset", sites[0], "--unlabelled_split", "train", "--batch_u", "3")
        more += ("--warmup_start", "0", "--threshold", "learnt")
    alone, team = tmp_path / "alone", tmp_path / "team"
    train_alone(sites[1], alone, losses, *more)
    assert capsys.readouterr().out.count("epoch   3/3") == 1
    assert train_in_team(sites[1], team, losses, *more).count("epoch   3/3") == 1
    first, second = (np.load(run / "tra_loss.npy") for run in (alone, team))
    assert first.shape[:2] == (3, 4)
    # steep curves of grey levels, random convolutions and an affinity that learns fast make what rounding differs in
    # larger from step to step, on one processor more than on another; gradients that are not shared would set losses
    # apart ten times as much
    steep = turned == LOOKS or method in ("ipa", "cpr")
    np.testing.assert_allclose(second[:2], first[:2], rtol=1e-6, atol=2e-3 if steep else 1e-5)
    # later, rounding may lift a pixel over the threshold of the pseudo labels, one of the 480 that an image has, or a
    # judgement of a discriminator over one half, one of the thousands whose share is its accuracy
    apart = 3e-3 if method in COUNTED or steep else 1e-5
    np.testing.assert_allclose(second, first, rtol=1e-6, atol=apart)
    pd.testing.assert_frame_equal(
        table(alone).drop(columns="seconds"), table(team).drop(columns="seconds"), rtol=1e-2, atol=1e-2
    )
    scores = [table(run, "patients_last.csv") for run in (alone, team)]
    assert scores[0].patient.tolist() == scores[1].patient.tolist()
    assert np.allclose(scores[0].dice, scores[1].dice, atol=1e-2)
    bundles = [read_bundle(load_checkpoint(run / "last.pkl")) for run in (alone, team)]
    for name in QUANTITIES if method == "supervised" else ():  # the others start from a network
        ones, others = (getattr(bundle, name) for bundle in bundles)
        assert (ones is others is None) or np.allclose(ones, others, rtol=1e-2, atol=1e-2, equal_nan=True), name


def test_a_team_keeps_each_copy_of_its_network_once_and_chooses_once(sites, source, tmp_path, monkeypatch):
    """The one that writes does both, and all score what it chose; the last copy is the bits of last.pkl."""
    wrote, save = tmp_path / "wrote.txt", RunFolder.save_tensors

    def noted(self, name, state):
        with wrote.open("a") as file:
            file.write(f"{os.environ['RANK']} {name}\n")
        save(self, name, state)

    monkeypatch.setattr(RunFolder, "save_tensors", noted)
    monkeypatch.setattr(Candidates, "end", lambda self: None)
    losses, start = "[('SelfEntropy', {}, 1)]", ("--method", "sfda", "--model_weights", source)
    said = train_in_team(sites[1], tmp_path / "run", losses, *start, "--n_epoch", 2, "--keep_every", 1)
    assert said.count("Chosen without labels") == 1
    assert (tmp_path / "run" / "patients_chosen.csv").exists()
    lines = [line for line in wrote.read_text().splitlines() if CANDIDATES in line]
    assert lines == [f"0 {candidate_name(done)}" for done in range(3)]
    copies = [torch.load(path, weights_only=True)["net"] for path in candidates_of(tmp_path / "run").values()]
    first, last = (torch.load(path, weights_only=True)["net"] for path in (source, tmp_path / "run" / "last.pkl"))
    for kept, of in ((copies[0], first), (copies[-1], last)):
        assert all(torch.equal(kept[name], of[name]) for name in of)


def test_a_team_goes_on_where_one_process_stopped(sites, tmp_path, monkeypatch):
    """The number of processes is no part of a run's identity."""
    args = (sites[1], tmp_path / "run", CROSS_ENTROPY, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(7, Supervised.step, ask_to_stop))
        with pytest.raises(SystemExit) as end:
            train_alone(*args)
    assert end.value.code == ASKED
    assert "Going on in epoch 2" in train_in_team(*args)
    assert table(tmp_path / "run").epoch.tolist() == list(range(5))


def test_one_that_dies_takes_the_others_along_and_the_run_goes_on(python, sites, tmp_path):
    args = (sites[1], tmp_path / "run", CROSS_ENTROPY, "--resume", "--n_epoch", "15")
    team = launch(sys.executable, python, *args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "run" / "last.pkl").exists(), team)
    members = workers(team.pid)
    assert len(members) == 2
    os.kill(members[1], signal.SIGKILL)
    assert team.wait(timeout=600) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)
    assert "Going on after epoch" in train_in_team(*args)
    assert table(tmp_path / "run").epoch.tolist() == list(range(15))


def test_bad_input_is_said_once(python, tmp_path):
    team = launch(
        python, python, tmp_path / "nowhere", tmp_path / "run", CROSS_ENTROPY, stderr=subprocess.PIPE, text=True
    )
    _, told = team.communicate()
    assert team.returncode != 0
    assert told.count("nowhere/train does not exist") + told.count("nowhere/val does not exist") == 1
    assert not (tmp_path / "run").exists()


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "ended too early"
        time.sleep(0.01)


def workers(pid):
    """Processes that torchrun (`pid`) started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()]
