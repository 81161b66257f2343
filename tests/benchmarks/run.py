"""What the pipeline costs on this machine, measured next to what it could cost otherwise.

    make bench        (python -m tests.benchmarks.run [--only surfaces,training] [--networks UNet,ENet] [--rounds 3] …)

Prints a table and writes it to results/bench as .txt and .csv, with a picture of the ratios. Ours and theirs take
turns, and a ratio is the median over the rounds: on a shared machine read ratios, not times. Trainings take all
threads, everything else one.

For training on a GPU the defaults are batches of 24 at 384x384 in bf16, compiled; on a CPU 8 at 256x256 in fp32.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import importlib
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from processes.errors import UserError
from tests.benchmarks.table import Row, as_text, describe_machine, write
from utils import ProgramParser, nearest, run_program

SUBJECTS = ("surfaces", "losses", "distances", "slicing", "items", "memory", "volumes", "augmentation")
SUBJECTS += ("methods", "training")


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def read_options(argv: Sequence[str] | None = None) -> Namespace:
    parser = ProgramParser("make bench", description=__doc__)
    add = parser.add_argument
    add("--only", type=names, default=list(SUBJECTS), metavar="A,B", help=f"out of {', '.join(SUBJECTS)}")
    add("--out", type=Path, default=Path("results/bench"), help="folder of table and picture (default %(default)s)")
    add("--rounds", type=int, default=3, help="turns of each comparison (default %(default)s)")
    add("--quick", action="store_true", help="everything tiny, once: whether it runs, not how fast")
    add("--slices", type=int, default=10_000, help="of the larger set whose memory is measured (default %(default)s)")
    training = parser.add_argument_group("training").add_argument
    gpu = torch.cuda.is_available()
    training("--networks", type=names, default=["UNet", "ENet", "Dimwit"], metavar="A,B")
    training("--device", default="cuda" if gpu else "cpu")
    training("--size", type=int, default=384 if gpu else 256, help="of the images (default %(default)s)")
    training("--batch", type=int, default=24 if gpu else 8, help="images a step (default %(default)s)")
    training("--steps", type=int, default=40, help="of an epoch, at most (default %(default)s)")
    training("--seconds", type=float, default=30, help="to spend on a network and method (default %(default)s)")
    training("--precision", default="bf16" if gpu else "fp32", help="default %(default)s")
    training("--compile", type=int, choices=(0, 1), default=int(gpu), help="default %(default)s")
    options = parser.parse_args(argv)
    options.threads = torch.get_num_threads()
    if options.quick:
        options.networks, options.rounds, options.seconds = ["Dimwit"], 1, 0
        options.size, options.batch, options.steps = 32, 2, 2
    if unknown := [name for name in options.only if name not in SUBJECTS]:
        raise UserError(f"--only names {unknown[0]}, which is no subject.{nearest(unknown[0], SUBJECTS)}")
    return options


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = read_options(argv)
    machine, rows = describe_machine(), []
    print(machine, flush=True)
    torch.set_num_threads(1)  # small work is slower on several, the slow forms' above all; training has its own
    for subject in options.only:
        start = time.perf_counter()
        found = list(importlib.import_module(f"tests.benchmarks.{subject}").measure(options))
        rows += found
        print("\n".join([*as_text(found), f"({time.perf_counter() - start:.0f} s)"]), flush=True)
    name = time.strftime("%Y-%m-%d_%H%M%S")
    write(rows, machine, options.out, name)
    print(f"\nWritten to {options.out / name}.txt, .csv and .png.")
    return rows


if __name__ == "__main__":
    run_program(main)
