"""The log as TensorBoard shows it:  tensorboard --logdir results/prostate

Its columns are scalars of the same names, its pictures images, the flags a text.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from engine.logs.base import LOGS, Entry, Log


@LOGS.register()
class TensorBoard(Log):
    """A file of events. It is written anew at every start, as one that a kill tore is shown up to the tear alone."""

    packages = ("tensorboard",)
    install = "tensorboard==2.21.0"

    def begin(self, done: int) -> int:
        from torch.utils.tensorboard import SummaryWriter  # here, as few runs need it and the package may lack

        for events in self.folder.glob("events.out.tfevents.*"):
            events.unlink()
        self.writer = SummaryWriter(str(self.folder), purge_step=0)  # a TensorBoard that is open forgets the old file
        self.writer.add_text("flags", as_block(self.about.parameters), 0)
        self.writer.add_text("run", as_block(self.about.tags), 0)
        self.writer.flush()
        return 0

    def add(self, entry: Entry) -> None:
        for name, value in entry.values.items():
            self.writer.add_scalar(name, value, entry.epoch, walltime=entry.time)
        if entry.picture:
            pixels = np.asarray(Image.open(entry.picture))
            self.writer.add_image("val", pixels, entry.epoch, walltime=entry.time, dataformats="HWC")
        self.writer.flush()

    def end(self, place: Path) -> None:
        self.writer.close()


def as_block(words: Mapping[str, str]) -> str:
    """Lines of name and value that Markdown shows letter by letter: each is indented by four blanks."""
    return "".join(f"    {name}: {value}\n" for name, value in words.items())
