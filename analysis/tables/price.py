"""What a source network pays at home for another training: its Dice on the source's images, against `cesource`'s."""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from analysis.tables.harm import Scored
from analysis.tables.table import NOTHING

PLAIN = "cesource"
COLUMN = f"against {PLAIN}"
NOTE = (
    f"{COLUMN[0].upper()}{COLUMN[1:]}: how much lower (-) or higher the mean Dice of a source network is than that of "
    f"{PLAIN}, on the same images of the source: what its training costs where there is no gap."
)


class Priced(Scored, Protocol):
    """One run at one of its epochs."""

    price: float  # the mean Dice less that of `cesource`; NaN of what is no source network


Entry = TypeVar("Entry", bound=Priced)


def find_prices(block: Sequence[Entry]) -> None:
    """Fills `price` of each run cesource_… that was scored on the same images of the same set as `cesource`."""
    plain = next((entry for entry in block if entry.run.name == PLAIN), None)
    for entry in block if plain else ():
        alike = (entry.run.set_name, entry.images) == (plain.run.set_name, plain.images)
        if alike and entry.run.name.startswith(f"{PLAIN}_"):
            entry.price = entry.score - plain.score


def price_words(entry: Priced) -> str:
    """'-0.012', or that there is none."""
    return f"{entry.price:+.3f}" if math.isfinite(entry.price) else NOTHING
