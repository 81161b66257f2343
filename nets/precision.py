"""The devices and the precisions that a network can compute in."""

import os

import torch

from processes.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", "fp32", "tf32", *AUTOCAST)  # auto: tf32 on a GPU, which is fp32 everywhere else


def allow_tf32(precision: str) -> None:
    """Whether a GPU may round the factors of float32 products to ten bits, several times as fast.

    Everywhere but in fp32: under bf16 and fp16 it holds for what stays float32, such as random convolutions of images.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def default_precision(device: str, exact: bool) -> str:
    """The precision where nobody says one: bf16 on a GPU whose units multiply it (of NVIDIA's, since Ampere).

    exact: for a run that is to be compared number by number, on a GPU all of float32
    """
    if not device.startswith("cuda"):
        return "auto"
    if exact:
        return "fp32"
    major, _ = torch.cuda.get_device_capability(device)
    return "bf16" if major >= 8 else "auto"  # from 7 down torch emulates it, which is slower than float32


def set_up_machine(precision: str, deterministic: bool) -> None:
    """Sets the precision of the device, and whether it computes deterministically."""
    allow_tf32(precision)
    torch.backends.cudnn.benchmark = not deterministic  # shapes repeat: the fastest algorithm is worth a search
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def device_of(name: str | None) -> str:
    """The device of this name; without a name a GPU, else the CPU. Raises UserError for one that is not here."""
    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = [f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())] if kind else []
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None  # no name of any device
    if device is None or (device.type != "cpu" and f"{device.type}:{device.index or 0}" not in here):
        raise UserError(f"--device {name}: there is none of that name here. There is {', '.join(['cpu', *here])}.")
    return name
