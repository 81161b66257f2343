"""What the card in a checkpoint may tell of its set's volumes, before anything is made of what it tells."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets.trained_on import PERCENTILES
from processes.errors import UserError
from utils import described, fits, listing

PLANE = 2**24  # pixels of a slice: more than any network was trained on
CHANNELS = 64
SPREAD = 3  # numbers in which a spread is told
LEVELS = {str(percent) for percent in PERCENTILES}
PAIR = Sequence[float] | None
CARD: dict[str, Any] = {
    "n_class": int | None,
    "orient": str | None,
    "axis": int,
    "channel": int | None,
    "format": str,
    "bits": int | None,
    "multiple": int | None,
    "n4": Mapping[str, Any] | None,
    "size": Sequence[int] | None,
    "resized": bool,
    "spacing": PAIR,
    "cut": Mapping[str, Any],
    "centre": str,
    "label_map": Mapping[str, Any] | None,
    "other_labels": str | int | None,
    "normalisation": Mapping[str, Any] | str | None,
    "channels": Mapping[str, int],
    "axes": Sequence[int],
    "kept_channels": Sequence[int] | None,
    "scale": Mapping[str, Any] | None,
    "geometry": Mapping[str, Any],
    "grey_levels": Mapping[str, Any],
}
INSIDE: dict[str, dict[str, Any]] = {
    "cut": {"size": Sequence[int] | None, "resize": Sequence[int] | None, "spacing": PAIR},
    "normalisation": {
        "kind": str,
        "scope": str | None,
        "percentiles": PAIR,
        "window": PAIR,
        "clip": PAIR,
        "no_clip": bool,
    },
    "n4": {"shrink": int},
    "scale": {"mean": float, "sd": float},
    "geometry": {"directions": str | None, "stored": Mapping[str, Any], "spacing": Mapping[str, Any]},
}
PAIRS = ("size", "resize", "spacing", "percentiles", "window", "clip")  # of two numbers


def check_card(card: Mapping[str, Any], where: str) -> None:
    """Raises UserError that lists values which no set of ours has. `where` says in words what the card belongs to."""
    wrong = mistyped(_entries(card))
    wrong += [] if wrong else _impossible(card)
    if wrong:
        raise UserError(
            f"{where} tells what cannot be of how images were made of volumes: {'; '.join(wrong)}. The file was "
            "damaged, or written by another program; give --like FOLDER, a set that was made the same way."
        )


def mistyped(entries: Iterable[tuple[str, Any, Any]]) -> list[str]:
    """A clause on each value that is not of the type it must have. Each entry is a name, its value, and that type."""
    return [
        f"{name} is {str(value)[:40]!r}, expected {described(kind)}"
        for name, value, kind in entries
        if not fits(value, kind)
    ]


def _entries(card: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and what it must be of everything that is told."""
    for name, kind in CARD.items():
        if name in card:
            yield name, card[name], kind
        parts = card.get(name)
        for part, each in INSIDE.get(name, {}).items() if isinstance(parts, Mapping) else ():
            if part in parts:
                yield f"{name}.{part}", parts[part], each
    geometry, levels = card.get("geometry"), card.get("grey_levels")
    spacing = geometry.get("spacing") if isinstance(geometry, Mapping) else None
    for part, spread in spacing.items() if isinstance(spacing, Mapping) else ():
        yield f"geometry.spacing.{part}", spread, Sequence[float]
    for folder, channels in levels.items() if isinstance(levels, Mapping) else ():
        yield f"grey_levels.{folder}", channels, Sequence[Mapping[str, Any]]
        for channel in channels if fits(channels, Sequence[Mapping[str, Any]]) else ():
            for percent, spread in channel.items():
                yield f"grey_levels.{folder}.{percent}", spread, Sequence[float]


def _impossible(card: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the numbers of values that have the right types."""
    for name, value, _ in _entries(card):
        first, _, last = name.rpartition(".")
        if first.startswith(("geometry.", "grey_levels.")) and (len(value) != SPREAD or sorted(value) != list(value)):
            yield f"{name} is {value}, expected the lowest, the middle and the highest number"
        elif value and last in PAIRS and not isinstance(value, Mapping) and "axes" not in card:
            yield from _wrong_pair(name, last, value)
    for folder, channels in card.get("grey_levels", {}).items():
        if any(LEVELS - channel.keys() for channel in channels):
            yield f"grey_levels.{folder} lacks percentiles, expected {listing(PERCENTILES)} of each channel"
    if "axes" in card and sorted(card["axes"]) != [0, 1, 2]:
        yield f"axes is {card['axes']}, expected an order of 0, 1 and 2"
    if any(not 1 <= count <= CHANNELS for count in card.get("channels", {}).values()):
        yield f"channels is {dict(card['channels'])}, expected counts from 1 to {CHANNELS}"
    if "axes" in card and "scale" not in card:
        yield "scale is missing, expected a mean and an sd, or null"
    if (scale := card.get("scale")) and not (scale.keys() >= {"mean", "sd"} and scale["sd"] > 0):
        yield f"scale is {dict(scale)}, expected a mean and an sd above 0"


def _wrong_pair(name: str, what: str, pair: Sequence[float]) -> Iterator[str]:
    if len(pair) != 2:
        yield f"{name} is {pair}, expected two numbers"
    elif what in ("size", "resize") and not (min(pair) > 0 and math.prod(pair) <= PLANE):
        yield f"{name} is {pair}, expected pixels along W and H, from 1 up"
    elif what == "spacing" and min(pair) <= 0:
        yield f"{name} is {pair}, expected mm above 0"
