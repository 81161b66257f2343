"""Checks of single steps: none waits for the device, a GPU finds what a CPU does, and the same bits again if asked."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from engine.epoch import train_epoch
from engine.evaluation import class_counts
from nets.precision import set_up_machine
from processes.errors import UserError
from tests.gpu.checks import Figure, Place
from tests.gpu.sites import LEARNING, build, loss_lines, losses_of
from tests.modes import Draws, Watch

CLOSE = 5e-3  # most by which a loss of an epoch may differ, relative to the CPU's (to 1 where that is smaller)
LOOSE = 0.5  # the same of a method that draws numbers on its device, where a GPU draws others
DRY = 3  # losses in the dry form


@contextmanager
def no_waiting(place: Place) -> Iterator[None]:
    """Inside it a wait is an error: as CUDA tells it, or on a CPU an operator that would be one."""
    if not place.on_gpu:
        with Watch():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def attempt(what: str, work: Callable[[], Figure]) -> Figure:
    """The figure, or what was raised as a fault: the next of a list is tried all the same."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  whatever one of them raises
        told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Figure(what, "failed", note=told, fault=f"{what}: {told}")


def sync(place: Place) -> Iterable[Figure]:
    """An epoch of each method in which the host waits for nothing, after one that chose cuDNN's algorithms."""
    precision = "bf16" if place.on_gpu else "fp32"
    more = ["--precision", precision] + ([] if place.on_gpu else ["--optimiser", "sgd"])  # Adam's fused step is hidden

    def one(name: str) -> Figure:
        method, streams, args = build(place, place.device, name, losses_of(name), *more)
        set_up_machine(args.precision, deterministic=False)
        train_epoch(method, streams, 0, args.seed)
        # read before, as the order of an epoch is copied once; a second stream may have more batches
        steps = list(zip(*(stream.epoch(1) for stream in streams.values()), strict=False))
        with no_waiting(place):
            for step, found in enumerate(steps):
                method.begin_step(1, seed=step)
                _, logits = method.step({name: batch for name, (batch, _) in zip(streams, found, strict=True)})
                if method.segments:
                    class_counts(logits.argmax(1), found[0][1], args.n_class)
        return Figure(f"{name}: steps in {precision} that wait for nothing", len(steps), "steps")

    return (attempt(name, lambda name=name: one(name)) for name in LEARNING)


def methods(place: Place) -> Iterable[Figure]:
    """Each method's losses of one epoch in float32, deterministic where it can be, against those of the CPU."""
    return (attempt(name, lambda name=name: against_the_cpu(place, name)) for name in LEARNING)


def against_the_cpu(place: Place, name: str) -> Figure:
    drawn = Draws(torch.device(place.device).type)
    theirs = an_epoch(place, "cpu", name)
    ours = an_epoch(place, place.device, name, drawn)
    gap = float(np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))))
    allowed = LOOSE if drawn.seen and place.on_gpu else CLOSE
    note = f"allowed {allowed:g}" + (f"; draws on its device: {', '.join(sorted(drawn.seen))}" if drawn.seen else "")
    fault = "" if gap <= allowed else f"{name}: the losses differ by {gap:.2g} from the CPU's, more than {allowed:g}"
    return Figure(f"{name}: largest difference of a loss from the CPU's", gap, "relative", note, fault)


def an_epoch(place: Place, device: str, name: str, drawn: Draws | None = None) -> np.ndarray:
    """(steps, terms) what a method found in its first epoch."""
    try:
        set_up_machine("fp32", deterministic=True)
        method, streams, args = build(place, device, name, losses_of(name), "--precision", "fp32")
    except UserError:  # one that cannot be deterministic says so
        torch.use_deterministic_algorithms(False)
        method, streams, args = build(place, device, name, losses_of(name), "--precision", "fp32")
    with drawn or nullcontext():
        return train_epoch(method, streams, 0, args.seed)["terms"]


def deterministic(place: Place) -> Iterable[Figure]:
    """Each loss for an epoch under --deterministic, twice: no operator is refused, and the bits are the same."""
    set_up_machine("fp32", deterministic=True)
    lines = loss_lines()
    chosen = list(lines)[:DRY] if place.dry else list(lines)

    def one(name: str) -> Figure:
        found = []
        for _ in range(2):
            method, streams, args = build(place, place.device, "supervised", lines[name], "--precision", "fp32")
            found.append(train_epoch(method, streams, 0, args.seed)["terms"])
        same = np.array_equal(*found, equal_nan=True)
        fault = "" if same else f"{name}: two runs under --deterministic differ"
        return Figure(f"{name}: steps with the same bits twice", len(found[0]), "steps", fault=fault)

    return (attempt(name, lambda name=name: one(name)) for name in chosen)
