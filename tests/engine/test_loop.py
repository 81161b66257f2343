"""An epoch: what it may not wait for, precision and compilation, and the thread that writes."""

import itertools
import math
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS
from torch.utils._python_dispatch import TorchDispatchMode

import main as program
from dataloader import Reading
from engine import arguments, begun, compilation
from engine.arguments import get_args
from engine.epoch import Steps, endless, train_epoch
from engine.evaluation import class_counts
from engine.loop import Commits
from losses import LOSSES
from nets.precision import set_up_machine
from processes.errors import UserError
from tests.modes import Watch
from utils import settings_of

PRIOR = "'ConstantBounds', {'values': [400, 80]}, 'norm_soft_size', 1"


def tuple_of(name):
    """What an OPT line says of a loss, with the parameters that it gives as an example."""
    return f"('{name}', {LOSSES[name].example}, {PRIOR if LOSSES[name].needs_bounds else 1})"


EVERY_LOSS = {LOSSES[name].__name__: tuple_of(LOSSES[name].__name__) for name in LOSSES}


def flags(dataset, workdir, losses=CROSS_ENTROPY, *more):
    folders = FOLDERS.replace("('GT', gt_transform, False)]", "('GT', dist_map_transform, False)]")
    folders = folders if "BoundaryLoss" in losses else FOLDERS
    return [
        *("--target_dataset", str(dataset), "--workdir", str(workdir), "--target_losses", losses),
        *("--target_folders", folders, "--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "2", "--network", "UNet:nG=4"),
        *("--batch_size", "4", "--n_epoch", "6", "--l_rate", "1e-2", *map(str, more)),
    ]


def build(dataset, losses=CROSS_ENTROPY, *more):
    """Method, streams and arguments, as main.py builds them."""
    args = get_args(flags(dataset, "unused", losses, *more))
    loss = program.build_objective(args)
    streams, _ = program.open_data(program.demand_of(args), settings_of(Reading, vars(args)), loss.bounds)
    return program.build_method(args, loss, 1), streams, args


def log(run):
    return pd.read_csv(run / "IMG_target_metrics.csv")


# -- nothing in an epoch waits for the device ------------------------------------------------------------------


def test_every_loss_is_watched():
    assert len(EVERY_LOSS) > 12


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_no_step_looks_at_a_value(sites, name):
    sgd = ("--optimiser", "sgd")  # Adam's fused step is not python's to watch
    moves = "{}" if "Bounds" not in EVERY_LOSS[name] else "{'rotate': 0}"  # of which sizes in an image stay the same
    more = ("--cpu", "--augment", "--augmentation", moves, *sgd)
    method, streams, args = build(sites[1], f"[{EVERY_LOSS[name]}]", *more)
    method.begin_epoch(0)
    with Watch():
        for batch, truth in streams["target"].epoch(0):
            _, logits = method.step({"target": batch})
            class_counts(logits.argmax(1), truth, args.n_class)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["gpu", "ram", "stream"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_waits_for_the_gpu(sites, precision, cache):
    losses = f"[{EVERY_LOSS['EntKLProp']}]"
    more = ("--precision", precision, "--cache", cache, "--augment", "--augmentation", "{'rotate': 0}")
    method, streams, args = build(sites[1], losses, *more)
    method.begin_epoch(0)
    train_epoch(method, streams, 0, args.seed)  # cudnn chooses its algorithms
    stream, steps = streams["target"], 0
    batches = stream.epoch(1)
    first, _ = next(batches)  # the epoch's order is copied once, before its first step
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.step({"target": first})
        for batch, truth in batches:
            _, logits = method.step({"target": batch})
            class_counts(logits.argmax(1), truth, args.n_class)
            steps += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == len(stream) - 1


class Orderly(TorchDispatchMode):
    """Refuses what torch refuses on a GPU under deterministic algorithms; torch itself looks on a GPU alone."""

    REFUSED = ("histc", "put_", "scatter_reduce", "kthvalue", "median", "adaptive_avg_pool2d_backward")
    REFUSED += ("max_unpool2d", "grid_sampler_2d_backward", "nll_loss2d_forward")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.strip("_")
        harmless = name == "nll_loss2d_forward" and args[3] == 0  # no reduction: each pixel has a place of its own
        assert harmless or name not in self.REFUSED, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_deterministic_steps_and_scores_are_enough(sites, name):
    method, streams, args = build(sites[1], f"[{EVERY_LOSS[name]}]", "--cpu", "--optimiser", "sgd")
    method.begin_epoch(0)
    batch, truth = next(streams["target"].epoch(0))
    plain = method.loss(method.net.eval()(batch.image), batch.targets, batch.bounds)["tot"].item()
    torch.use_deterministic_algorithms(True)
    try:
        with Orderly():
            again = method.loss(method.net(batch.image), batch.targets, batch.bounds)["tot"].item()
            method.net.train()
            _, logits = method.step({"target": batch})
            class_counts(logits.argmax(1), truth, args.n_class)
    finally:
        torch.use_deterministic_algorithms(False)
    assert again == pytest.approx(plain, rel=1e-5)


# -- precision, layout, compilation ------------------------------------------------------------------------------


def curve(sites, tmp_path, *more):
    run = tmp_path / "-".join(["run", *more])
    program.main(flags(sites[1], run, CROSS_ENTROPY, "--cpu", "--n_epoch", 3, *more))
    return log(run).tra_loss_tot.to_numpy()


@pytest.fixture
def machine():
    """The switches of torch as they were, after the test."""
    places = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))
    before = [(place, name, getattr(place, name)) for place, name in (*places, (torch.backends.cudnn, "benchmark"))]
    yield
    for place, name, value in before:
        setattr(place, name, value)


@pytest.mark.parametrize(("precision", "rounded"), [("auto", True), ("tf32", True), ("fp32", False), ("bf16", True)])
def test_products_are_rounded_on_a_gpu_unless_fp32_is_asked_for(machine, precision, rounded):
    args = get_args(flags("data", "unused", CROSS_ENTROPY, "--cpu", "--precision", precision))
    set_up_machine(args.precision, args.deterministic)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == rounded
    assert torch.backends.cudnn.benchmark
    for more in ((), ("--deterministic",)):
        assert get_args(flags("data", "unused", CROSS_ENTROPY, "--cpu", *more)).precision == "auto"


@pytest.fixture
def gpu(monkeypatch):
    """Says which GPU there is, by its compute capability, to whoever reads a command line."""

    def is_there(*capability):
        monkeypatch.setattr(begun, "network_class", lambda _: SimpleNamespace(keeps_channels_last=True))
        monkeypatch.setattr(arguments, "device_of", lambda _: "cuda")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    return is_there


@pytest.mark.parametrize(
    ("capability", "words", "precision"),
    [
        ((9, 0), (), "bf16"),
        ((8, 0), (), "bf16"),
        ((7, 5), (), "auto"),
        ((9, 0), ("--deterministic",), "fp32"),
        ((7, 5), ("--deterministic",), "fp32"),
        ((9, 0), ("--published", "sfda"), "fp32"),
        ((9, 0), ("--deterministic", "--precision", "bf16"), "bf16"),
        ((9, 0), ("--precision", "auto"), "auto"),
    ],
)
def test_a_gpu_computes_in_bf16_where_it_has_it_and_nothing_is_compared(gpu, capability, words, precision):
    gpu(*capability)
    args = get_args(flags("data", "unused", CROSS_ENTROPY, *words))
    assert (args.precision, args.channels_last) == (precision, int(precision == "bf16"))


def test_a_run_that_goes_on_elsewhere_computes_as_it_began(gpu, tmp_path):
    """On whichever device; the flags that differ would be refused."""
    began = {"precision": "bf16", "channels_last": 1}
    torch.save({"net": {}, "identity": began}, tmp_path / "last.pkl")
    on_cpu = get_args(flags("data", tmp_path, CROSS_ENTROPY, "--cpu", "--resume"))
    assert (on_cpu.precision, on_cpu.channels_last) == ("bf16", 1)
    assert get_args(flags("data", tmp_path, CROSS_ENTROPY, "--cpu")).precision == "auto"
    torch.save({"net": {}, "identity": {"precision": "auto", "channels_last": 0}}, tmp_path / "last.pkl")
    gpu(9, 0)
    later = get_args(flags("data", tmp_path, CROSS_ENTROPY, "--resume"))
    assert (later.precision, later.channels_last) == ("auto", 0)
    torch.save({"net": {}, "identity": {"precision": [], "channels_last": "?"}}, tmp_path / "last.pkl")
    assert get_args(flags("data", tmp_path, CROSS_ENTROPY, "--resume")).precision == "bf16"


def test_bf16_learns_like_fp32(sites, tmp_path):
    fp32, bf16 = curve(sites, tmp_path), curve(sites, tmp_path, "--precision", "bf16")
    assert not np.array_equal(fp32, bf16)
    np.testing.assert_allclose(bf16, fp32, atol=0.03)


def test_the_losses_compute_in_fp32_under_bf16(sites):
    method, streams, _ = build(sites[1], f"[{EVERY_LOSS['EntKLProp']}]", "--cpu", "--precision", "bf16")
    method.begin_epoch(0)
    batch, _ = next(streams["target"].epoch(0))
    terms, logits = method.step({"target": batch})
    assert logits.dtype == torch.bfloat16
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_channels_last_changes_nothing_but_rounding(sites, tmp_path):
    np.testing.assert_allclose(curve(sites, tmp_path, "--channels_last"), curve(sites, tmp_path), rtol=1e-2)


def test_a_network_that_does_not_compile_runs_as_it_is(sites, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler here")

    plain = curve(sites, tmp_path)
    monkeypatch.setattr(compilation.torch, "compile", broken)
    assert np.array_equal(curve(sites, tmp_path, "--compile"), plain)
    assert capsys.readouterr().out.count("--compile: failed (RuntimeError)") == 1


class GpuStream:
    """A stream that says its batches lie on a GPU."""

    slices, batch_size = range(4), 4

    def batch(self, rows, shared):
        return SimpleNamespace(image=SimpleNamespace(is_cuda=True)), None


@pytest.mark.parametrize(("method", "mode"), [("supervised", "reduce-overhead"), ("adversarial", None)])
def test_cuda_graphs_are_for_methods_of_one_pass_a_step(sites, monkeypatch, method, mode):
    more = ("--method", method, *(("--source_dataset", str(sites[0])) if method == "adversarial" else ()))
    modes, (made, _, _) = [], build(sites[1], CROSS_ENTROPY, "--cpu", *more)
    monkeypatch.setattr(compilation.torch, "compile", lambda net, dynamic, mode: modes.append(mode) or net)
    monkeypatch.setattr(compilation, "_timed", lambda *_: 1.0)
    compilation.try_to_compile(made, GpuStream())
    assert modes == [mode]


@pytest.mark.parametrize("others", [math.inf, 3.0])
def test_the_slowest_process_decides_for_all(sites, monkeypatch, capsys, others):
    """This one gains by it; in another it fails, or is slower."""
    method, streams, _ = build(sites[1], CROSS_ENTROPY, "--cpu")
    plain, times, told = method.model, iter([2.0, 1.0]), iter([2.0, others])
    monkeypatch.setattr(compilation.torch, "compile", lambda *args, **kwargs: torch.nn.Sequential(plain))
    monkeypatch.setattr(compilation, "_timed", lambda *_: next(times))
    monkeypatch.setattr(type(method.team), "slowest", lambda *_: next(told))
    compilation.try_to_compile(method, streams["target"])
    assert method.model is plain
    said = "failed (in another process)" if others == math.inf else "0.67 times as fast in a trial step, so not"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_of_two_trial_steps_is_kept(sites, monkeypatch, capsys, faster):
    method, streams, _ = build(sites[1], CROSS_ENTROPY, "--cpu")
    before = {name: value.clone() for name, value in method.net.state_dict().items()}
    plain, other = method.model, torch.nn.Sequential(method.model)
    monkeypatch.setattr(compilation.torch, "compile", lambda *args, **kwargs: other)
    times = iter([1.0, 0.5 if faster else 2.0])
    timed = compilation._timed
    monkeypatch.setattr(compilation, "_timed", lambda *args: (timed(*args), next(times))[1])
    compilation.try_to_compile(method, streams["target"])
    assert method.model is (other if faster else plain)
    assert capsys.readouterr().out.startswith(f"--compile: {'2.00' if faster else '0.50'} times as fast")
    assert all(torch.equal(value, before[name]) for name, value in method.net.state_dict().items())
    assert all(parameter.grad is None for parameter in method.net.parameters())


# -- epochs ------------------------------------------------------------------------------------------------------


def test_the_training_dice_is_that_of_the_turned_image(sites):
    """The metrics' ground truth follows the augmentation: on this site an organ is told by its grey level."""
    _, streams, _ = build(
        sites[1],
        CROSS_ENTROPY,
        "--cpu",
        "--augment",
        "--augmentation",
        "{'gamma': 0, 'contrast': 0, 'flip': True, 'rotate': 45}",
    )
    upright = streams["target"].slices
    for batch, truth in streams["target"].epoch(0):
        assert torch.equal(truth, batch.targets[0])
        assert ((batch.image[:, 0] > 120 / 255) == (truth > 0)).float().mean() > 0.97
        assert not np.array_equal(truth, upright.labels(batch.rows.tolist()))


def test_an_epoch_goes_on_from_its_middle(sites):
    """Steps done, noted, and continued in another process give the epoch that was never interrupted."""
    method, streams, args = build(sites[1], CROSS_ENTROPY, "--cpu", "--augment")
    method.begin_epoch(0)
    whole = train_epoch(method, streams, 0, args.seed)
    again, streams, args = build(sites[1], CROSS_ENTROPY, "--cpu", "--augment")
    again.begin_epoch(0)
    half = Steps()
    for step, (batch, truth) in enumerate(streams["target"].epoch(0)):
        if step < 2:
            terms, logits = again.step({"target": batch})
            counts = class_counts(logits.argmax(1), truth, 2)
            half.add(torch.stack([terms[name] for name in again.columns]), counts, batch.rows)
    rest = train_epoch(again, streams, 0, args.seed, Steps(half.state_dict()))
    assert whole.keys() == rest.keys()
    assert all(np.array_equal(whole[name], rest[name]) for name in whole)


def test_a_second_stream_never_ends(sites):
    _, streams, _ = build(sites[1], CROSS_ENTROPY, "--cpu")
    stream = streams["target"]
    batches = endless(stream, 0)
    first = [next(batches).rows.tolist() for _ in range(2 * len(stream))]
    laps = [sorted(itertools.chain(*first[: len(stream)])), sorted(itertools.chain(*first[len(stream) :]))]
    assert laps[0] == laps[1] == list(range(len(stream.slices)))
    assert first[: len(stream)] != first[len(stream) :]
    later = endless(stream, 0, len(stream) + 1)
    assert next(later).rows.tolist() == first[len(stream) + 1]


# -- the thread that writes --------------------------------------------------------------------------------------


def test_commits_run_one_after_the_other_and_all():
    done, gate = [], threading.Event()

    def work(number):
        gate.wait()
        done.append(number)

    with Commits() as commits:
        commits.submit(work, 0)
        gate.set()
        for number in (1, 2):
            commits.submit(work, number)
    assert done == [0, 1, 2]


def test_a_fault_of_the_writing_is_raised():
    def work():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Commits() as commits:
        commits.submit(work)


def test_what_was_found_before_a_fault_is_still_written():
    done = []

    def epoch():
        with Commits() as commits:
            commits.submit(done.append, 1)
            raise UserError("the loss is not finite")

    with pytest.raises(UserError):
        epoch()
    assert done == [1]
