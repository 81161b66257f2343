"""Checks of speed and memory: ours against the bare step, precisions and layouts, what a step is spent on.

What is compared takes turns, in blocks of about half a second or in single steps, after two of each in which cuDNN
chooses its algorithms and a compiler compiles. A figure is the median, a ratio the median of the ratios of neighbours.
"""

import io
import os
import shutil
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from losses import CrossEntropy
from methods.discriminators import FCDiscriminator
from nets.precision import AUTOCAST, allow_tf32
from networks import build_network
from tests.benchmarks import augmentation as presets
from tests.benchmarks import sets
from tests.benchmarks.table import better, in_turns, seconds
from tests.benchmarks.training import Trial, busy
from tests.gpu.checks import Figure, Place

BLOCK = 0.5  # s, of a block of steps
ROUNDS, WARM = 9, 2  # blocks that are measured, and before them
COSTLY = 8  # operators that are listed

Loss = Callable[[Tensor], Tensor]  # of logits


def sizes(place: Place, **more: object) -> Namespace:
    """The batch that docs/speed.md asks for, 24x384x384 in bf16, or a tiny one."""
    told = {"batch": 24, "size": 384, "steps": 16, "precision": "bf16", "rounds": ROUNDS, "seconds": 8.0}
    if place.dry:
        told = {"batch": 2, "size": 32, "steps": 2, "precision": "fp32", "rounds": 2, "seconds": 0.5}
        sets.SETTLED = 0  # nothing is measured that a second look of the cache would spoil
    return Namespace(device=place.device, quick=place.dry, **(told | more))


def eager(place: Place) -> Iterator[Figure]:
    for method in ("supervised", "sfda"):
        yield from throughput(place, method, compiled=False)


def compiled(place: Place) -> Iterator[Figure]:
    yield from throughput(place, "sfda", compiled=True)


def throughput(place: Place, method: str, compiled: bool) -> Iterator[Figure]:
    """Images per second and memory of an epoch of ours and of the bare step, and what the GPU does meanwhile."""
    options, network = sizes(place, compile=int(compiled)), "Dimwit" if place.dry else "UNet"
    if place.on_gpu:
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # of a training; the tests' settings are a single one
    root, told = place.folder / f"slices-{options.size}", io.StringIO()
    if not (root / "prior.csv").exists():  # which is written last; a check may have been ended before
        shutil.rmtree(root, ignore_errors=True)
        sets.write_set(root, options.batch * options.steps, options.size)
    with redirect_stdout(told):
        trial = Trial(root, network, method, options)
    name = f"{network} {options.batch}x{options.size}x{options.size} {options.precision}, {method}"
    name += ", compiled" if compiled else ""
    if compiled:
        yield Figure(f"{name}: the trial", told.getvalue().strip())
    trial.bare()
    trial.shorten(max(2, min(options.steps, int(BLOCK * trial.steps / seconds(trial.bare)))))
    works = {"bare step": trial.bare, "ours": trial.ours}
    for work in list(works.values()) * WARM:
        work()
    trial.memory.clear()
    if place.on_gpu:
        torch.cuda.reset_peak_memory_stats()  # the search for algorithms took more
    times, images = in_turns(works, options.rounds, options.seconds), trial.steps * options.batch
    for work, spent in times.items():
        note = f"{len(spent)} blocks of {trial.steps} steps, {images / max(spent):.4g} to {images / min(spent):.4g}"
        yield Figure(f"{name}: {work}", images / statistics.median(spent), "images/s", note)
    yield Figure(f"{name}: ours against the bare step", better(times["ours"], times["bare step"]), "x")
    yield Figure(f"{name}: outside the step", 100 * statistics.median(trial.shares), "% of time")
    for work, spent in trial.memory.items():
        yield Figure(f"{name}: peak memory, {work}", spent, "MiB")
    if place.on_gpu:
        yield Figure(f"{name}: GPU busy", 100 * busy(trial.ours), "% of time")
    for operator, share in costliest(trial.bare, place.on_gpu).items():
        yield Figure(f"{name}: {operator}", share, "% of a bare step")


def costliest(work: Callable[[], object], on_gpu: bool) -> dict[str, float]:
    """Share of the device's time that the dearest operators of some steps take, in per cent.

    On a GPU those that started its kernels; where a graph, or compiled code, starts most of them, the kernels.
    """
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as seen:
        seconds(work)
    events = [event for event in seen.key_averages() if not getattr(event, "is_user_annotation", False)]
    if on_gpu:
        kinds = (DeviceType.CPU, DeviceType.CUDA)
        operators, kernels = (
            {event.key: event.self_device_time_total for event in events if event.device_type == kind} for kind in kinds
        )
        spent = operators if sum(operators.values()) > sum(kernels.values()) / 2 else kernels
    else:
        spent = {event.key: event.self_cpu_time_total for event in events}
    whole = sum(spent.values())
    return {key[:60]: 100 * spent[key] / whole for key in sorted(spent, key=spent.get, reverse=True)[:COSTLY]}


# ------------------------------------------------------------------------------ precisions and memory layouts


class BareStep:
    """Forward, loss, backward and Adam, of a network on one batch of noise. One call is one step."""

    def __init__(self, place: Place, net: nn.Module, shape: tuple[int, ...], way: "Way", loss: Loss) -> None:
        """shape: of the batch, (B, C, W, H) or (B, C, D, W, H)"""
        self.way, self.kind, self.loss = way, torch.device(place.device).type, loss
        layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        layout = layout if way.channels_last else torch.contiguous_format
        self.image = torch.rand(shape, device=place.device).contiguous(memory_format=layout)
        self.net = net.to(place.device).to(memory_format=layout)
        self.optimiser = torch.optim.Adam(self.net.parameters(), 1e-4)

    def __call__(self) -> None:
        allow_tf32(self.way.precision)
        torch.backends.cudnn.benchmark = self.way.searched
        dtype = AUTOCAST.get(self.way.precision)
        with torch.autocast(self.kind, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = self.net(self.image)
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(logits).backward()
        self.optimiser.step()


@dataclass(frozen=True, order=True)
class Way:
    """How a step computes. searched: whether cuDNN looks for the fastest algorithm of each shape"""

    precision: str
    channels_last: bool = False
    searched: bool = True

    def __str__(self) -> str:
        text = f"{self.precision}, channels last {int(self.channels_last)}"
        return text if self.searched else f"{text}, no search for algorithms"


def segmenting(logits: Tensor) -> Tensor:
    """Cross-entropy to a label of class 0 everywhere."""
    return CrossEntropy()(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))


def judging(logits: Tensor) -> Tensor:
    return logits.float().square().mean()


def measured(place: Place, name: str, works: Mapping[Way, BareStep]) -> Iterator[Figure]:
    """The median of single steps that take turns, in ms."""
    options = sizes(place)
    for work in list(works.values()) * WARM:
        work()
    spent = in_turns({str(way): work for way, work in works.items()}, 2 * options.rounds, options.seconds / 2)
    for way, times in spent.items():
        note = f"{len(times)} steps, {1e3 * min(times):.4g} to {1e3 * max(times):.4g}"
        yield Figure(f"{name}, {way}: bare step", 1e3 * statistics.median(times), "ms", note)


def layouts(place: Place) -> Iterator[Figure]:
    """Bare steps of each network in each precision and memory layout, and without the search for algorithms."""
    options = sizes(place)
    flat, both = (options.batch, 1, options.size, options.size), [Way("bf16", True), Way("bf16")]
    every = [*both, Way("fp32"), Way("auto"), Way("bf16", True, False)]
    networks = {"UNet": (flat, every), "ENet": (flat, both), "UNet3D": ((2, 1, 32, 128, 128), both)}
    if place.dry:
        networks = {"UNet:nG=4": ((2, 1, 16, 16), every), "UNet3D:width=2,depth=1": ((2, 1, 8, 8, 8), both)}
    for network, (shape, ways) in networks.items():
        works = {way: BareStep(place, build_network(network, 1, 2), shape, way, segmenting) for way in ways}
        yield from measured(place, f"{network} {'x'.join(map(str, shape))}", works)


def adversarial(place: Place) -> Iterator[Figure]:
    """A discriminator beside the network whose maps it judges, of street scenes and at their size, by precision."""
    ways = [Way("bf16"), Way("auto"), Way("fp32")]
    picture, maps = ((1, 3, 65, 65), (1, 19, 96, 96)) if place.dry else ((1, 3, 1280, 720), (1, 19, 1280, 720))
    nets = {"network": (lambda: build_network("UNet:nG=4" if place.dry else "DeepLabV2", 3, 19), picture, segmenting)}
    nets["discriminator"] = (lambda: FCDiscriminator(19, 4 if place.dry else 64), maps, judging)
    for name, (make, shape, loss) in nets.items():
        works = {way: BareStep(place, make(), shape, way, loss) for way in ways}
        yield from measured(place, f"{name} {'x'.join(map(str, shape))}", works)


def refresh(place: Place) -> list[Figure]:
    """What --bn_stats refresh, which waits for the device in each norm, costs beside an adaptation without it."""
    from tests.gpu.sites import UNIFORM, build  # brings the tests' settings, a single thread among them

    fixed = ("--trainable", "none")
    ways = {"learning": (), "nothing learns": fixed, "nothing learns, refresh": (*fixed, "--bn_stats", "refresh")}
    trials = {name: build(place, place.device, "sfda", UNIFORM, *more)[:2] for name, more in ways.items()}

    def epoch(name: str) -> None:
        method, streams = trials[name]
        for step, (batch, _) in enumerate(streams["target"].epoch(0)):
            method.begin_step(0, seed=step)
            method.step({"target": batch})

    works = {name: (lambda name=name: epoch(name)) for name in trials}
    for work in works.values():
        work()
    spent = in_turns(works, ROUNDS)
    return [Figure(f"sfda, small images: epoch, {name}", 1e3 * statistics.median(spent[name]), "ms") for name in works]


def augmentation(place: Place) -> list[Figure]:
    """What each preset of --augmentation costs beside the step that it feeds."""
    options = sizes(place)
    return [Figure(f"augmentation {row.what}", row.ours, row.unit, row.note) for row in presets.measure(options)]
