"""What the presets of --augmentation cost beside the step that they feed, forward and back, of the published U-Net."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator

import torch

from datasets.augmentation import Augmentation
from datasets.presets import PRESETS
from losses import CrossEntropy
from networks import build_network
from tests.benchmarks.table import Row, seconds


def measure(options: Namespace) -> Iterator[Row]:
    """Processor time where there is no GPU, as other programs may run; the smaller of two of each preset."""
    lasted = seconds if options.device.startswith("cuda") else processor_seconds
    generator = torch.Generator(options.device).manual_seed(0)
    shape = (options.batch, 1, options.size, options.size)
    image = torch.rand(shape, generator=generator, device=options.device)
    label = (2 * image[:, 0]).long()
    net = build_network("UNet:nG=4" if options.quick else "UNet", 1, 2).to(options.device)

    def step() -> None:
        CrossEntropy()(net(image), label).backward()

    def augment(ranges: Augmentation) -> None:
        draw = ranges.draw(options.batch, shape[1:], generator, n_class=2)
        moved = draw.label(label)
        draw.image(image, label=moved)

    works = {name: Augmentation(**ranges) for name, ranges in {"default": {}, **PRESETS}.items()}
    step()
    whole = lasted(step)
    for name, ranges in works.items():
        cost = min(lasted(lambda ranges=ranges: augment(ranges)) for _ in range(2))
        what = f"{name} {'x'.join(map(str, shape))}"
        note = f"{cost / whole:.1%} of the step"
        yield Row("augmentation", what, "step of UNet", 1e3 * cost, 1e3 * whole, "ms", whole / cost, note)


def processor_seconds(work: Callable[[], object]) -> float:
    """Time that the processor spent on one call."""
    start = time.process_time()
    work()
    return time.process_time() - start
