"""Images per second of an epoch: ours, the bare network step on random tensors, and a naive loop.

The bare step (forward, loss, backward, optimiser) is the ceiling. The naive loop decodes and checks every item again,
fetches loss and Dice from the device after each batch, and ends the epoch with MedPy's HD95. Each network and method
is measured in a process of its own, whose peak memory is then theirs; the three take turns.
"""

import math
import multiprocessing
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dataloader import Reading, open_data
from datasets.streams import Batch, Stream
from engine.arguments import get_args
from engine.compilation import try_to_compile
from engine.cost import peak_memory
from engine.epoch import train_epoch
from main import build_method, build_objective, demand_of
from methods.base import Method
from nets.precision import set_up_machine
from tests.benchmarks.losses import check_simplex, hard, slow_cross_entropy, slow_entropy_and_prior
from tests.benchmarks.sets import FOLDERS, REGEX, SLICES, NaiveSet, write_set
from tests.benchmarks.table import Row, better, in_turns, seconds
from utils import settings_of

METHODS = {
    "supervised": "[('CrossEntropy', {'idc': [0, 1]}, 1)]",
    "sfda": (
        "[('EntKLProp', {'lamb_se': 1, 'lamb_consprior': 1}, 'PredictionBounds', "
        "{'sizefile': 'PRIOR', 'predcol': 'val_gt_size'}, 'norm_soft_size', 1)]"
    ),
}
NAIVE_PART = 8  # its epochs are as much shorter
NAIVE_STEP = 8.0  # s: where a bare step takes longer, the naive loop is left out, as it would show nothing but it


class Trial:
    """One network and method, ready to train: what this benchmark touches of the pipeline is all here."""

    def __init__(self, root: Path, network: str, method: str, options: Namespace) -> None:
        argv = f"--target_dataset {root} --workdir {root}/run --n_class 2 --network {network} --method {method}".split()
        argv += [f"--batch_size={options.batch}", f"--precision={options.precision}", f"--device={options.device}"]
        argv += ["--target_folders", FOLDERS["png"], "--grp_regex", REGEX, "--compile", str(options.compile)]
        argv += ["--target_losses", METHODS[method].replace("PRIOR", str(root / "prior.csv"))]
        self.args = get_args([*argv, "--model_weights", "none"])
        set_up_machine(self.args.precision, self.args.deterministic)
        loss = build_objective(self.args)
        streams, val = open_data(demand_of(self.args), settings_of(Reading, vars(self.args)), loss.bounds)
        self.all = streams["target"]
        self.method: Method = build_method(self.args, loss, val.slices.shape[0])
        if self.args.compile:
            try_to_compile(self.method, self.all)
        self.method.begin_epoch(0)
        batch, _ = self.all.batch(torch.arange(self.args.batch_size))
        self.batch = replace(batch, image=torch.rand_like(batch.image))
        self.cuda = self.args.device.startswith("cuda")
        self.shares: list[float] = []  # of each of our epochs, outside forward, backward and optimiser
        self.memory: dict[str, float] = {}  # MiB: of our first epoch, and of the bare steps before it
        self.shorten(1)

    def shorten(self, steps: int) -> None:
        """Epochs of so many steps from now on."""
        every, size = self.all, self.args.batch_size
        part = every.slices.keep(range(steps * size))
        self.stream = Stream(part, size, every.device, with_targets=every.with_targets, workers=every.workers)
        self.steps = len(self.stream)

    def ours(self) -> None:
        """An epoch, with a look at the clock before and after each step."""
        inside, step = [], self.method.step

        def timed(batches: Mapping[str, Batch]) -> tuple[dict[str, Tensor], Tensor]:
            begin = self.now()
            found = step(batches)
            inside.append((begin, self.now()))
            return found

        self.method.step = timed
        begin = self.now()
        train_epoch(self.method, {"target": self.stream}, 0, self.args.seed)
        end = self.now()
        if self.cuda:
            torch.cuda.synchronize()
        self.method.step = step
        self.memory.setdefault("ours", self.peak_memory())
        self.shares.append(1 - sum(lasted(*pair) for pair in inside) / lasted(begin, end))

    def bare(self) -> None:
        """As many steps of the network on one and the same batch of noise, which is on the device."""
        method, image = self.method, self.batch.image
        if self.args.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        for _ in range(self.steps):
            with method.settings.autocast():
                logits = method.model(image)
            method.update(method.loss(logits, self.batch.targets, self.batch.bounds)["tot"])
        if "ours" not in self.memory:
            self.memory["bare step"] = self.peak_memory()

    def now(self) -> "torch.cuda.Event | float":
        """A point in time: on the GPU's own clock where there is one, as the CPU runs ahead of it."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def peak_memory(self) -> float:
        """MiB: since the last call on a GPU, since the process began on a CPU."""
        if not self.cuda:
            return peak_memory()
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak


def lasted(begin: "torch.cuda.Event | float", end: "torch.cuda.Event | float") -> float:
    return begin.elapsed_time(end) if isinstance(begin, torch.cuda.Event) else end - begin


# -------------------------------------------------------------------------------------------- the naive loop


def naive_epoch(trial: Trial, items: NaiveSet) -> None:
    """One epoch as the published code goes about it, on the same network, which runs uncompiled."""
    method, device, size = trial.method, trial.args.device, trial.args.batch_size
    order = np.random.default_rng(0).permutation(len(items.names))
    predicted, true = {}, {}
    for rows in np.split(order, range(size, len(order), size)):
        image, mask, bounds = (
            torch.stack(parts).to(device) for parts in zip(*(items[row] for row in rows), strict=True)
        )
        method.optimiser.zero_grad()
        with method.settings.autocast():
            logits = method.net(image)
        loss = slow_loss(trial.args.method, logits.float(), mask, bounds)
        loss.backward()
        method.optimiser.step()
        loss.item()
        prediction = hard(torch.softmax(logits.detach().float(), 1), checks=True)
        naive_dice(prediction, mask).cpu()
        for row, one, other in zip(rows, prediction.cpu().numpy(), mask.cpu().numpy(), strict=True):
            predicted[row], true[row] = one[1].astype(bool), other[1].astype(bool)
    naive_distances(predicted, true)


def slow_loss(method: str, logits: Tensor, mask: Tensor, bounds: Tensor) -> Tensor:
    if method == "sfda":
        return slow_entropy_and_prior(logits, bounds.float(), checks=True)
    return slow_cross_entropy(logits, mask, checks=True)


def naive_dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, K) Dice of one-hot masks (B, K, W, H)."""
    check_simplex(prediction)
    check_simplex(truth)
    both = torch.einsum("bkwh,bkwh->bk", prediction.float(), truth.float())
    return 2 * both / (torch.einsum("bkwh->bk", prediction.float()) + torch.einsum("bkwh->bk", truth.float()))


def naive_distances(predicted: Mapping[int, np.ndarray], true: Mapping[int, np.ndarray]) -> None:
    """HD95 of every patient."""
    if not find_spec("medpy"):
        return
    from medpy.metric import binary

    for first in range(0, len(true), SLICES):
        volumes = [
            np.stack([part[row] for row in range(first, min(first + SLICES, len(true)))]) for part in (predicted, true)
        ]
        if all(volume.any() for volume in volumes):
            binary.hd95(*volumes)


# -------------------------------------------------------------------------------------------- measuring


def busy(work: Callable[[], object]) -> float:
    """Share of the time that the GPU computes or copies, as the profiler sees it."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        total = 1e6 * seconds(work)
    spans = [event.time_range for event in seen.events() if event.device_type == DeviceType.CUDA]
    covered = reached = 0.0
    for span in sorted(spans, key=lambda span: span.start):
        covered += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return covered / total


def measure_one(network: str, method: str, options: Namespace) -> list[Row]:
    """The rows of one network and method; for a process of its own."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "set"
        names = write_set(root, options.batch * options.steps, options.size)
        trial = Trial(root, network, method, options)
        trial.bare()
        step = seconds(trial.bare)
        slow = step > NAIVE_STEP
        trial.shorten(max(1, min(options.steps, int(options.seconds / (3 * options.rounds * step)))))
        works, images = {"bare step": trial.bare, "ours": trial.ours}, trial.steps * options.batch
        counts = dict.fromkeys(works, images)
        if not slow:
            for warm_up in works.values():
                warm_up()
            some = names[: max(options.batch, images // NAIVE_PART)]
            works["naive loop"] = partial(naive_epoch, trial, NaiveSet(root, some, "png", 2, checks=True))
            counts["naive loop"] = len(some)
        spent = in_turns(works, options.rounds, patience=math.inf)
        times = {work: [time / counts[work] for time in spent[work]] for work in works}
        return describe(trial, f"{network}, {method}", times) + gpu_rows(trial, f"{network}, {method}")


def describe(trial: Trial, name: str, times: Mapping[str, list[float]]) -> list[Row]:
    """Describes what the trials found. `times` are seconds per image."""
    rate = {work: 1 / statistics.median(spent) for work, spent in times.items()}
    rows = [
        Row("training", name, work, rate["ours"], rate[work], "images/s", better(times["ours"], times[work]))
        for work in ("bare step", "naive loop")
        if work in times
    ]
    share = 100 * statistics.median(trial.shares)
    ours, bare = trial.memory["ours"], trial.memory["bare step"]
    rows.append(Row("training", f"{name}: outside the step", "-", share, None, "% of time", None))
    rows.append(Row("training", f"{name}: peak memory", "bare step", ours, bare, "MiB", bare / ours))
    return rows


def gpu_rows(trial: Trial, name: str) -> list[Row]:
    if not trial.cuda:
        return []
    return [Row("training", f"{name}: GPU busy", "-", 100 * busy(trial.ours), None, "% of time", None)]


def measure(options: Namespace) -> Iterator[Row]:
    """Every network with every method, each in a new process, which leaves the memory of the others out."""
    for network in options.networks:
        for method in METHODS:
            if options.quick:
                yield from measure_one(network, method, options)
                continue
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                yield from pool.submit(measure_one, network, method, options).result()
