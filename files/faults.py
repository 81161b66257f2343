"""Faults of files: collected over a whole set, so that the user sees all of them at once."""

from collections.abc import Iterable

from utils import listing

Fault = tuple[str, str]  # what is wrong and how to mend it; which file it is


class VolumeFault(Exception):
    """One volume cannot be used. These faults are collected, so that the user sees all of them at once."""

    def __init__(self, what: str, which: str) -> None:
        super().__init__(what, which)
        self.fault: Fault = (what, which)


def describe_faults(faults: Iterable[Fault], limit: int = 40) -> str:
    """The faults in one paragraph, grouped by kind, the offenders listed behind each."""
    groups: dict[str, list[str]] = {}
    for what, which in faults:
        groups.setdefault(what, []).append(which)
    return "; ".join(f"{what}: {listing(which, limit)}" for what, which in groups.items()) + "."
