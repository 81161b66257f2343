"""Checks of whole runs: what a run is told where nothing is said, from its first step to its choice, and in a team."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import main as program
from engine.arguments import get_args
from files.run_names import COST
from nets.precision import default_precision, set_up_machine
from tests.conftest import CROSS_ENTROPY, all_here
from tests.gpu.checks import Figure, Place
from tests.gpu.sites import UNIFORM, line_of

ALIKE = {"fp32": 1e-4, "bf16": 3e-2}  # most by which a loss of two processes may differ from that of one
CLOSE_DICE = 0.1  # most by which the Dice of a run on a GPU may differ from that on the CPU


def defaults(place: Place) -> list[Figure]:
    """What a run computes with where its line says nothing of it."""
    found = []
    for words, exact in (([], False), (["--deterministic"], True)):
        args = get_args([*line_of(place, "supervised", CROSS_ENTROPY, *words), "--device", place.device])
        set_up_machine(args.precision, args.deterministic)
        due = default_precision(place.device, exact)
        fault = "" if args.precision == due else f"--precision is {args.precision} and should be {due}"
        if torch.backends.cudnn.benchmark == exact:
            fault += f" cudnn.benchmark is {torch.backends.cudnn.benchmark}"
        name = " ".join(["defaults", *words])
        found.append(Figure(f"{name}: precision", args.precision, fault=fault))
        found.append(Figure(f"{name}: TF32", str(torch.backends.cudnn.allow_tf32)))
        found.append(Figure(f"{name}: cudnn.benchmark", str(torch.backends.cudnn.benchmark)))
        found.append(Figure(f"{name}: channels last", str(bool(args.channels_last))))
    torch.use_deterministic_algorithms(False)
    return found


def runs(place: Place) -> Iterator[Figure]:
    """A source network, and its adaptation with a choice among copies, as by default on the device and on the CPU."""
    dice = {}
    for device in dict.fromkeys((place.device, "cpu")):
        folder = place.folder / f"runs-{device}"
        epochs = ("--n_epoch", "2") if place.dry else ("--n_epoch", "8")
        source = line_of(place, "supervised", CROSS_ENTROPY, *epochs, "--l_rate", "3e-2", "--network", "Dimwit")
        start = ("--model_weights", str(folder / "source" / "last.pkl"), "--keep_every", "1", "--n_epoch", "2")
        adapted = line_of(place, "sfda", UNIFORM, *start, "--network", "Dimwit")
        with ExitStack() as held:
            if device == "cpu":
                held.enter_context(all_here(program))  # no process of its own for the choice, which imports everything
            for name, line in (("source", source), ("sfda", adapted)):
                begin = time.perf_counter()
                program.main([*line, "--device", device, "--workdir", str(folder / name)])
                spent = time.perf_counter() - begin
                yield Figure(f"{name} on {device}, from the data to the scores", spent, "s")
                yield from memory_of(folder / name, f"{name} on {device}: peak memory")
        dice[device] = pd.read_csv(folder / "sfda" / "patients_chosen.csv").dice.mean()
        yield Figure(f"sfda on {device}: Dice of the chosen network", 100 * dice[device], "%")
    gap = abs(dice[place.device] - dice["cpu"])
    fault = "" if gap <= CLOSE_DICE else f"the Dice differ by {gap:.2g}, more than {CLOSE_DICE:g}"
    yield Figure("sfda: difference of the Dice", 100 * gap, "points", fault=fault)


def memory_of(run: Path, what: str) -> list[Figure]:
    spent = json.loads((run / COST).read_text(encoding="utf-8"))["gpu_memory_mib"]
    return [] if spent is None else [Figure(what, spent, "MiB")]


def team(place: Place) -> Iterator[Figure]:
    """Two processes on one device, over gloo, against one: batches of five images, the last of an epoch with one."""
    device = "cuda:0" if place.on_gpu else place.device  # by this name it is one for both
    for precision in ("fp32", "bf16"):
        more = ("--precision", precision, "--batch_size", "5", "--n_epoch", "1" if place.dry else "2")
        losses, runs = {}, place.folder / f"team-{precision}"
        for name, train in (("one", program.main), ("two", train_in_team)):
            argv = line_of(place, "supervised", CROSS_ENTROPY, *more, "--device", device)
            begin = time.perf_counter()
            train([*argv, "--workdir", str(runs / name)], *([place] if name == "two" else []))
            yield Figure(f"{precision}, processes: {name}", time.perf_counter() - begin, "s")
            losses[name] = np.load(runs / name / "tra_loss.npy")
        gap = float(np.max(np.abs(losses["two"] - losses["one"])))
        fault = "" if gap <= ALIKE[precision] else f"{precision}: the losses of two processes differ by {gap:.2g}"
        note = f"allowed {ALIKE[precision]:g}"
        yield Figure(f"{precision}: largest difference of a loss", gap, "", note, fault)


def train_in_team(argv: list[str], place: Place) -> None:
    """The training of two processes, as torchrun sets them up. Raises RuntimeError if one of them fails."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True)
    context = multiprocessing.get_context("spawn" if place.on_gpu else "fork")
    members = [context.Process(target=be_member, args=(rank, store.port, argv)) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    codes = [member.exitcode for member in members]
    if codes != [0, 0]:
        raise RuntimeError(f"two processes on {place.device} ended with the exit codes {codes}")


def be_member(rank: int, port: int, argv: list[str]) -> None:
    """What torchrun tells a process of a team, then the program."""
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= told
    program.main(argv)
