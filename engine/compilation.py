"""`--compile`: the network compiled, if it compiles and a trial step gains by it."""

import math
import time

import torch

from datasets.streams import Batch, Stream
from methods.base import Method


def try_to_compile(method: Method, stream: Stream) -> None:
    """Times a step of the network as it is and compiled, on one batch, and keeps the faster; nothing else changes.

    A network that does not compile, or is no faster for it, stays as it is, with one line that says so. On a GPU the
    compiled network is replayed as a CUDA graph, since all batches but the last have one shape, where the method has
    `one_pass`. Several processes decide together, by the slowest of them.
    """
    batch, _ = stream.batch(torch.arange(min(stream.batch_size, len(stream.slices))), shared=True)
    plain, buffers = method.model, {name: value.clone() for name, value in method.module.named_buffers()}
    graphs, failure = batch.image.is_cuda and method.team.world == 1 and method.one_pass, None
    method.net.train()
    try:
        eager = _timed(method, batch)
        method.model = torch.compile(plain, dynamic=False, mode="reduce-overhead" if graphs else None)
        compiled = _timed(method, batch)
    except Exception as error:  # noqa: BLE001  a compiler fails in any way it likes, and the run must not
        eager, compiled, failure = 0.0, math.inf, type(error).__name__
    eager, compiled = (method.team.slowest(seconds, method.settings.device) for seconds in (eager, compiled))
    if compiled >= eager:
        method.model = plain
    if math.isinf(compiled):
        verdict = f"failed ({failure or 'in another process'}), so the network runs uncompiled"
    else:
        verdict = f"{eager / compiled:.2f} times as fast in a trial step, so "
        verdict += "compiled" if compiled < eager else "not"
    for name, value in method.module.named_buffers():
        value.copy_(buffers[name])
    method.module.zero_grad(set_to_none=True)
    if method.team.leads:
        print(f"--compile: {verdict}.", flush=True)


def _timed(method: Method, batch: Batch) -> float:
    """Seconds of one step forward and back, after two that may compile and record."""
    for _ in range(3):
        begin = time.perf_counter()
        logits = method.predict(batch).float().sum()
        if logits.requires_grad:
            logits.backward()
        if batch.image.is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - begin
