"""A step of each method, beside the passes of its networks that it makes, which it cannot do without.

A pass is one of the network on a number of images, forward, or forward and back with a cross-entropy. Those of a step
are counted while it runs, and made again alone, with one step of the optimiser. What a step takes beyond them is what
a method costs besides.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import SimpleNamespace

import torch
from torch import nn

from datasets.streams import Batch
from engine.arguments import get_args
from losses import CrossEntropy
from main import build_method, build_objective
from methods.base import METHODS, Method
from nets.base import Network
from nets.precision import set_up_machine
from tests.benchmarks.table import Row, better, in_turns
from tests.gpu.sites import losses_of

TRIED = [name for name in METHODS if METHODS[name].streams and METHODS[name].segments]
FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, False)]"
MORE = {  # where a method has a second stream
    "unlabelled": ("--unlabelled_dataset", "none", "--warmup_start", "0"),
    "source": ("--source_dataset", "none"),
}


@dataclass(frozen=True)
class Pass:
    """Of a network on so many images, in training mode or not, with a way back or not."""

    net: Network
    images: int
    trains: bool
    learns: bool


class Still:
    """A stream of one batch, whatever the epoch."""

    def __init__(self, batch: Batch) -> None:
        image, label = (SimpleNamespace(is_map=False) for _ in range(2))
        self.batch, self.slices = batch, SimpleNamespace(folders=(image, label, label), spacing=None)

    def epoch(self, epoch: int) -> Iterator[tuple[Batch, None]]:
        yield self.batch, None


class Trial:
    """A method on noise, ready to make the same step again and again."""

    def __init__(self, name: str, options: Namespace) -> None:
        kind = METHODS[name]
        network = "UNet:nG=4" if options.quick else "UNet"
        argv = f"--target_dataset none --workdir none --n_class 2 --network {network} --method {name}".split()
        argv += ["--target_folders", FOLDERS, "--grp_regex", "(.)", "--target_losses", losses_of(name)]
        argv += ["--device", options.device, "--precision", options.precision, "--batch_size", str(options.batch)]
        argv += ["--model_weights", "given"] if kind.needs_weights else []
        argv += [word for stream in kind.streams for word in MORE.get(stream, ())]
        args = get_args(argv)
        set_up_machine(args.precision, deterministic=False)
        self.method: Method = build_method(args, build_objective(args), 1)
        self.batches = {stream: self._batch(options, stream in kind.labelled) for stream in kind.streams}
        self.method.meet({stream: Still(batch) for stream, batch in self.batches.items()})
        self.method.begin_epoch(0)

    def _batch(self, options: Namespace, labelled: bool) -> Batch:
        generator = torch.Generator(options.device).manual_seed(0)
        count, size = options.batch, options.size
        image = torch.rand(count, 1, size, size, generator=generator, device=options.device)
        bound = torch.full((count, 2, 2), size**2 / 2, dtype=torch.float64, device=options.device)
        label = (image[:, 0] > 0.5).long() if labelled else None
        losses = self.method.loss.losses
        return Batch(image, [label] * len(losses), [bound for _ in losses], torch.arange(count))

    def step(self) -> None:
        self.method.begin_step(0, seed=0)
        self.method.step(self.batches)

    def passes(self) -> list[Pass]:
        """Those of one step."""
        held = nn.ModuleList(value for value in vars(self.method).values() if isinstance(value, nn.Module))
        seen: list[Pass] = []
        with counted([part for part in held.modules() if isinstance(part, Network)], seen):
            self.step()
        return seen

    def alone(self, passes: list[Pass]) -> None:
        """These passes and a step of the optimiser, and nothing else."""
        (image, *_), settings, total = (batch.image for batch in self.batches.values()), self.method.settings, 0
        for each in passes:
            shown = image.repeat(-(-each.images // len(image)), 1, 1, 1)[: each.images]
            with torch.set_grad_enabled(each.learns), settings.autocast():
                logits = each.net.train(each.trains)(settings.laid_out(shown))
            if each.learns:
                total = total + CrossEntropy()(logits, (shown[:, 0] > 0.5).long())
        self.method.update(total)


@contextmanager
def counted(networks: list[Network], seen: list[Pass]) -> Iterator[None]:
    """In this block each pass of these networks is noted."""

    def noted(net: Network, features: Callable[..., list[torch.Tensor]], image: torch.Tensor) -> list[torch.Tensor]:
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in net.parameters())
        seen.append(Pass(net, len(image), net.training, learns))
        return features(image)

    for net in networks:
        net.features = partial(noted, net, net.features)
    try:
        yield
    finally:
        for net in networks:
            del net.features  # its class has it


def measure(options: Namespace) -> Iterator[Row]:
    for name in TRIED:
        trial = Trial(name, options)
        trial.step()
        passes = trial.passes()
        works = {"ours": trial.step, "passes": partial(trial.alone, passes)}
        times = in_turns(works, options.rounds, options.seconds)
        ratio = better(times["ours"], times["passes"])
        learnt, plain = (sum(each.images for each in passes if each.learns == is_so) for is_so in (True, False))
        what = f"{name}, {learnt} images forward and back" + f", {plain} forward" * (plain > 0)
        middles = [1e3 * median(each) for each in times.values()]
        yield Row("methods", what, "its passes alone", *middles, "ms", ratio, f"{1 / ratio - 1:+.1%}")
