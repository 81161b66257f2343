"""Which slices make the batches of an epoch: all of them in random order, or drawn volume by volume.

A sampler is called with a generator and gives the rows of every batch of one epoch; its length is their number.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from processes.errors import UserError
from utils import listing


class Sampler(Protocol):
    """The rows of each batch of an epoch."""

    def __call__(self, generator: torch.Generator) -> list[Tensor]: ...

    def __len__(self) -> int: ...


class Shuffled:
    """Every row once, in random order."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __call__(self, generator: torch.Generator) -> list[Tensor]:
        return list(torch.randperm(self.count, generator=generator).split(self.batch_size))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)


class FixedSteps:
    """A fixed number of whole batches of another sampler's rows, which starts again as often as needed.

    It serves sets of few slices, and crops.
    """

    def __init__(self, sampler: Sampler, batch_size: int, steps: int) -> None:
        self.sampler, self.batch_size, self.steps = sampler, batch_size, steps

    def __call__(self, generator: torch.Generator) -> list[Tensor]:
        drawn, lacking = [], self.steps * self.batch_size
        while lacking > 0:
            drawn += (epoch := self.sampler(generator))
            lacking -= sum(map(len, epoch))
        return list(torch.cat(drawn).split(self.batch_size))[: self.steps]

    def __len__(self) -> int:
        return self.steps


class InOrder:
    """Every row once, as they lie."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __call__(self, generator: torch.Generator) -> list[Tensor]:
        return list(torch.arange(self.count).split(self.batch_size))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)


class PatientByPatient:
    """Every row once, as they lie, in batches of one patient each: all slices, or parts that are as equal as can be.

    patients: that of each row
    """

    def __init__(self, patients: Sequence[str], batch_size: int) -> None:
        rows: dict[str, list[int]] = {}
        for row, patient in enumerate(patients):
            rows.setdefault(patient, []).append(row)
        of_patients = [torch.tensor(found) for found in rows.values()]
        self.batches = [part for found in of_patients for part in found.tensor_split(-(-len(found) // batch_size))]

    def __call__(self, generator: torch.Generator) -> list[Tensor]:
        return list(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Partitions:
    """Batches of whole groups: m volumes, and of each one slice out of each of S partitions along its axis.

    The volumes of a batch are different, m = batch_size / S of them, and the rows lie volume by volume: (volume 0,
    partition 0), (volume 0, partition 1), …, (volume m−1, partition S−1). A volume's slices are parted as equally as
    can be, none left out. An epoch has as many batches as it takes to draw the number of slices of the set.
    (Chaitanya et al., NeurIPS 2020; the published code leaves the slices at the end of a volume out, and the last
    group of a batch empty.)

    patients: the volume of each row, rows in the order of volume and slice number
    Raises UserError for a batch that is no whole number of groups, or that needs more volumes than there are. Raises
    it, too, for volumes with fewer than S slices.
    """

    def __init__(self, patients: Sequence[str], batch_size: int, n_parts: int) -> None:
        rows = {patient: [] for patient in patients}
        for row, patient in enumerate(patients):
            rows[patient].append(row)
        self.volumes, self.count = batch_size // max(n_parts, 1), len(patients)
        if n_parts < 2 or batch_size % n_parts or not 1 <= self.volumes <= len(rows):
            raise UserError(
                f"--batch_size {batch_size} with --n_parts {n_parts}: a batch is made of one slice out of each of "
                f"n_parts (2 or more) partitions of some of the {len(rows)} volumes, so it is a multiple of n_parts "
                f"and at most {len(rows)} times n_parts."
            )
        if short := [f"{patient} ({len(found)})" for patient, found in rows.items() if len(found) < n_parts]:
            raise UserError(f"--n_parts {n_parts}, but these volumes have fewer slices: {listing(short)}.")
        self.parts = [[torch.from_numpy(p) for p in np.array_split(found, n_parts)] for found in rows.values()]

    def __call__(self, generator: torch.Generator) -> list[Tensor]:
        batches = []
        for _ in range(len(self)):
            chosen = torch.randperm(len(self.parts), generator=generator)[: self.volumes].tolist()
            groups = [part for volume in chosen for part in self.parts[volume]]
            draws = torch.rand(len(groups), generator=generator).tolist()
            batches.append(torch.stack([part[int(u * len(part))] for part, u in zip(groups, draws, strict=True)]))
        return batches

    def __len__(self) -> int:
        return -(-self.count // (self.volumes * len(self.parts[0])))
