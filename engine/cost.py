"""What a run cost: seconds, memory, and energy where the device tells it. Of all starts of a run together."""

import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from engine.run_folder import RunFolder
from files.run_names import COST
from utils import fits

SUMS, PEAKS = ("seconds", "energy_joules"), ("memory_mib", "gpu_memory_mib")
Cost = dict[str, float | None]


class Meter:
    """What this process takes from now on, on its devices: 'cpu', or one GPU a process of the training."""

    def __init__(self, device: str, world: int = 1) -> None:
        self.begun = time.perf_counter()
        self.devices = [device] if world == 1 else [f"cuda:{number}" for number in range(world)]
        self.gpu = device if device.startswith("cuda") else None
        self.energy = read_energy(self.devices) if self.gpu else None

    def read(self) -> Cost:
        """Seconds and joules until now, the most MiB that this process held, and that torch held on its GPU.

        What nobody tells is None. Python's own start is not in it; processes that this one started are, in the seconds
        and joules. The joules are all that these GPUs took, for whomever.
        """
        energy = read_energy(self.devices) if self.energy is not None else None
        return {
            "seconds": time.perf_counter() - self.begun,
            "energy_joules": None if energy is None else energy - self.energy,
            "memory_mib": peak_memory(),
            "gpu_memory_mib": torch.cuda.max_memory_allocated(self.gpu) / 2**20 if self.gpu else None,
        }


class CostFile:
    """Writes cost.json: what all starts of a run cost until now, and its steps; those that were repeated count once."""

    def __init__(self, folder: RunFolder, meter: Meter) -> None:
        told = folder.read_json(COST)
        self.folder, self.meter, self.before = folder, meter, told if fits(told, Mapping[str, float | None]) else {}
        self.updates = self.before.get("updates", 0)

    def write(self) -> None:
        cost = add_cost(self.before, self.meter.read()) if self.before else self.meter.read()
        counts = {"updates": self.updates, "starts": self.before.get("starts", 0) + 1}
        self.folder.write_json(COST, cost | counts)


def add_cost(before: Mapping[str, float | None], now: Cost) -> Cost:
    """The cost of the starts before and of this one: sums and peaks; a sum that one of them does not know is None."""
    sums = {name: None if None in (before.get(name), now[name]) else before[name] + now[name] for name in SUMS}
    known = {name: [value for value in (before.get(name), now[name]) if value is not None] for name in PEAKS}
    return sums | {name: max(values, default=None) for name, values in known.items()}


def peak_memory() -> float:
    """MiB that this process held at the most.

    Out of /proc where there is one, as ru_maxrss goes on from what the starting process held.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def read_energy(devices: Sequence[str]) -> float | None:
    """Joules that these GPUs took since their driver was loaded; None where they, or the missing nvidia-ml-py, do not
    tell.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuids = [f"GPU-{torch.cuda.get_device_properties(device).uuid}" for device in devices]
        handles = map(pynvml.nvmlDeviceGetHandleByUUID, uuids)
        return sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles)) / 1000
    except (pynvml.NVMLError, AssertionError, RuntimeError):  # an older card, a part of one, one of another machine
        return None
