"""What a run that is there was begun with, which the same command goes on with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nets.checkpoint_files import load_checkpoint
from nets.precision import AUTOCAST, PRECISIONS, default_precision
from networks import network_class
from processes.errors import UserError


def begun_with(workdir: Path) -> Mapping[str, Any] | None:
    """The identity of the run that is there, which has the value of its flags; None where no run is."""
    for name in ("last.pkl", "previous.pkl", "paused.pkl"):
        try:
            identity = load_checkpoint(workdir / name).get("identity")
        except UserError:  # not there, or torn, of which the run folder tells
            continue
        if isinstance(identity, Mapping):
            return identity
    return None


def precision_of(begun: Mapping[str, Any] | None, device: str, exact: bool) -> str:
    """The precision of a run that is told none: as it began, whichever device it goes on upon.

    With another precision it would be another run. exact: see `default_precision`
    """
    known = (begun or {}).get("precision")
    return known if known in PRECISIONS else default_precision(device, exact)


def layout_of(begun: Mapping[str, Any] | None, device: str, precision: str, network: str) -> int:
    """Whether a run that is not told has its channels last: as it began, or in half precision on a GPU.

    There it is faster for the networks that keep the layout.
    """
    known = (begun or {}).get("channels_last")
    halved = device.startswith("cuda") and precision in AUTOCAST
    return known if known in (0, 1) else int(halved and network_class(network).keeps_channels_last)
