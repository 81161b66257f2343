"""The directions in which the axes of a network's volumes ran: new ones are turned to them before it sees them.

Told by the card; by an older one, which knows no `geometry`, only where its volumes were turned. Else it is looked for
in the manifest of the set that the network was trained on, where that is still there. Nothing is guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import LONG
from datasets.set_tables import read_card
from datasets.trained_on import read_orders
from files.grids import ORIENT_RULE, is_direction
from processes.errors import UserError
from utils import listing

STORED = "stored"


def directions_of(card: Mapping[str, Any], where: str, home: Path | None, orient: str | None) -> str | None:
    """The directions of a network's volumes, as in 'LPS'; None for volumes taken as they are stored, if asked for.

    where: what the card is of, in words; home: folder of the set, if it is known
    orient: what the user typed, directions or 'stored', for a card that does not tell
    Raises UserError where nothing tells, or the user says otherwise than the card.
    """
    if orient and orient != STORED and not is_direction(orient):
        raise UserError(f"{ORIENT_RULE}; got {orient}.")
    directions = card.get("orient")
    if orient == STORED and not directions:
        return None
    directions = directions or of_geometry(card) or (of_manifest(card, home) if "geometry" not in card else None)
    if directions and orient not in (None, directions):
        raise UserError(
            f"--orient {orient}: {where} says that the volumes' axes ran to {directions}; leave --orient out."
        )
    if directions or orient:
        return directions or orient
    stored = card.get("geometry", {}).get("stored")
    said = f"they were stored in several, {listing(f'{n} {order}' for order, n in stored.items())}" if stored else ""
    raise UserError(
        f"{where} does not tell in which directions the axes of the network's volumes ran ({said or 'an older version'}"
        "), and in other ones its masks are wrong. Give --orient, as in --orient LPS (axes to the patient's left, back "
        "and head; nibabel.aff2axcodes names those of a volume), or --orient stored, to take these volumes as they lie "
        "in their files, or a network that was trained on a set cut anew."
    )


def of_geometry(card: Mapping[str, Any]) -> str | None:
    """The directions that the card's geometry tells.

    For a set of volumes they are those before the axes became D, W, H.
    """
    directions = card.get("geometry", {}).get("directions")
    return directions and in_file_order(directions, card.get("axes", (0, 1, 2)))


def in_file_order(directions: str, axes: tuple[int, int, int]) -> str:
    """The directions of axes that were reordered as `axes`, in their old order."""
    return "".join(directions[axis] for axis in np.argsort(axes))


def of_manifest(card: Mapping[str, Any], home: Path | None) -> str | None:
    """The directions in the manifest of the set, if the card belongs to that set and all its volumes run alike."""
    theirs = read_card(home) if home else None
    if theirs is None or any(theirs.get(name) != value for name, value in card.items() if name not in LONG):
        return None
    _, directions = read_orders(home)
    return directions and in_file_order(directions, card.get("axes", (0, 1, 2)))
