"""Builds the network, losses, bounds and method of every command line that a makefile would run, without data.

python -m tests.tools.check_makefiles prostate.make whs.make …
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import main as program
from networks import build_network
from processes.errors import UserError
from tests.tools.checkout import ROOT
from utils import run_program

GOALS = ("pack", "ablations", "baselines", "inference", "few_labels")


def dry_run(makefile: str, *words: str) -> tuple[str, str]:
    """What `make -n -B` prints for all of its runs: commands, and warnings. The same is asked of make once."""
    told = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return _dry_run(makefile, words, (ROOT / makefile).read_bytes(), tuple(sorted(told.items())))


@functools.cache
def _dry_run(makefile: str, words: tuple[str, ...], *_: object) -> tuple[str, str]:
    done = subprocess.run(
        ["make", "-n", "-B", "-f", makefile, f"CC={sys.executable}", *words, *GOALS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"make -n -f {makefile} failed: {done.stderr.strip()}")
    return done.stdout, done.stderr


def trainings(commands: str) -> list[list[str]]:
    """The arguments of main.py in each of its calls."""
    joined = commands.replace("\\\n", " ").splitlines()
    calls = [shlex.split(line) for line in joined if re.search(r"\bmain\.py\b", line)]
    return [call[call.index("main.py") + 1 :] for call in calls]


def runs_made(commands: str) -> dict[str, str]:
    """The folder of each run that make would train -> its line. Raises UserError where a run would be trained twice."""
    runs: dict[str, str] = {}
    for line in commands.splitlines():
        if "main.py" in line:
            run = line.split("renew ")[1].split(" --")[0]
            if run in runs:
                raise UserError(f"{run} would be trained twice")
            runs[run] = line
    return runs


class Undrawn(TorchFunctionMode):
    """Weights begin as whatever the memory holds: to draw those of large networks takes longer than all the rest."""

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), more: dict[str, Any] | None = None
    ) -> Any:
        more = more or {}
        if function in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else more["tensor"]
        return function(*args, **more)


_built: dict[tuple[object, ...], tuple[nn.Module, list[str], list[bool]]] = {}


def layers(net: nn.Module) -> list[str]:
    return [f"{name} {type(layer)}" for name, layer in net.named_modules()]


def network(*which: Any) -> nn.Module:
    """A network as `build_network` makes it of these: one for all lines that ask for the same, with what it learns.

    To build one takes most of a line's time. Where a method gave it other layers, the next line gets a new one.
    """
    net, names, learns = _built.get(which, (None, [], []))
    if net is None or layers(net) != names or len(learns) != len(list(net.parameters())):
        net = build_network(*which)
        _built[which] = net, layers(net), [each.requires_grad for each in net.parameters()]
        return net
    for each, learnt in zip(net.parameters(), learns, strict=True):
        each.requires_grad_(learnt)
    return net.train()


@functools.cache
def build(*call: str) -> None:
    """Everything of one command line, once: how a training is launched changes none of it."""
    with Undrawn(), mock.patch.object(program, "build_network", network):
        program.main([*call, "--check"])


def check(makefile: str, *words: str) -> int:
    """Number of command lines checked. Raises UserError for the first bad one, and for any warning of make."""
    commands, warnings = dry_run(makefile, *words)
    if warnings:
        raise UserError(f"make -n -f {makefile} warns: {warnings.strip()}")
    calls = trainings(commands)
    for call in calls:
        try:
            build(*call)
        except UserError as error:
            raise UserError(f"{makefile}: {error} In: main.py {shlex.join(call)}") from error
    return len(calls)


def main(makefiles: Sequence[str] | None = None) -> None:
    for makefile in makefiles or sys.argv[1:]:
        for words in ((), ("SIZE=full",), ("NET=Dimwit", "EPC=5", "DEBUG=--debug")):
            print(f"{makefile} {' '.join(words)}: {check(makefile, *words)} command lines are fine")


if __name__ == "__main__":
    run_program(main)
